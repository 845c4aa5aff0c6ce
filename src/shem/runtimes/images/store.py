"""The images a provider has: pulled once, unpacked once, shared by all sandboxes.

On disk, below one directory::

    layers/<32 hex>/    a layer, unpacked, and its record; named after the digest of its tar (see .jobs)
    images/<64 hex>.json   one image: its layers and how to run it; named after the digest of its manifest (``sha3-…``: of
                           the image file of the original network)
    tmp/                what is being made, and what is being deleted

A layer is made in ``tmp`` and renamed into place only when it is whole and verified; an image's record is written after
all of its layers. So whatever is in ``layers`` and ``images`` is good, after a crash too (after a power failure, what had
not reached the disk is thrown away), and what is in ``tmp`` at start is waste. Callers that want the same image at the
same time share one pull; images that share layers share them on disk and while they are being made.

When the layers exceed ``max_bytes``, the images that were not used for longest go, except those that a *holder* (a running
sandbox) has: see ``holder`` and :meth:`ImageStore.release`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from shem.cogs.decoding import DECODE_ERRORS
from shem.cogs.ociarchive import read_image
from shem.cogs.ociformat import MAX_CONFIG, ImageUnusable, Manifest, check_platform, host_architecture, parse_manifest
from shem.cogs.tasks import TaskScope
from shem.errors import Misconfigured, ShemError
from shem.runtimes.base import ImageConfig, Rootfs
from shem.runtimes.images.cage import check_parts
from shem.runtimes.images.config import parse_config, parse_container_config, settle_user
from shem.runtimes.images.download import small_blob, spool
from shem.runtimes.images.errors import ImageStoreFailed, ImageTooLarge, ImageUnsupported
from shem.runtimes.images.gvmi import read_gvmi
from shem.runtimes.images.layers import LayerLimits, Layers, StoredLayer, layer_name
from shem.runtimes.images.registry import Registries, RegistryConfig, Resolved
from shem.runtimes.images.sources import ArchiveSource, BundleSource, Fetch, RegistrySource, Source
from shem.terms.images import GvmiImage, Package, RegistryImage

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Hears of bytes that arrived, bytes in all (0: not known yet), and what is being done."""

_MAX_ALIASES = 8


class StoreLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What images may take."""

    max_bytes: int = 50 << 30
    """Of all unpacked layers together; exceeded only by images in use and the one being pulled."""
    max_image_bytes: int = 20 << 30
    """Of one image, packed and unpacked."""
    max_layer_files: int = 1_000_000
    workers: int = 2
    """Processes that unpack."""
    settle_s: float = 5.0
    """How long new layers may wait before they are forced to the disk."""


class StoredImage(msgspec.Struct, frozen=True, kw_only=True):
    """The record of an image."""

    digest: str
    layers: tuple[StoredLayer, ...]
    config: ImageConfig
    aliases: tuple[str, ...] = ()
    """Digests of indexes that stand for this image here."""


class _Pull:
    """One pull and those who wait for it."""

    def __init__(self) -> None:
        self.task: asyncio.Task[StoredImage | ShemError | TimeoutError] | None = None
        self.waiting = 0
        self.listeners: list[Progress] = []
        self.holders: list[str] = []
        self.wanted: set[str] = set()
        self.done = 0
        self.total = 0

    def tell(self, message: str, arrived: int) -> None:
        self.done += arrived
        for listener in list(self.listeners):
            listener(self.done, self.total, message)


_Work = Callable[[_Pull], Awaitable[StoredImage]]
"""What a pull does."""


class ImageStore:
    """See the module. An async context manager; one process at a time has a directory."""

    def __init__(
        self, root: Path, *, registry: RegistryConfig | None = None, limits: StoreLimits | None = None
    ) -> None:
        self._root = root
        self._records = root / "images"
        self._limits = limits or StoreLimits()
        registry = registry or RegistryConfig()
        self._architecture = registry.architecture or host_architecture()
        self._registries = Registries(registry)
        self._scope = TaskScope("images")
        per_layer = LayerLimits(
            max_bytes=self._limits.max_image_bytes,
            max_files=self._limits.max_layer_files,
            backoff_s=registry.backoff_s,
            settle_s=self._limits.settle_s,
        )
        self._layers = Layers(root, self._scope, per_layer, self._limits.workers)
        self._images: dict[str, StoredImage] = {}
        self._aliases: dict[str, str] = {}
        self._used: dict[str, float] = {}
        self._held: dict[str, set[str]] = {}
        self._pulls: dict[str, _Pull] = {}
        self._lock = -1

    async def __aenter__(self) -> ImageStore:
        self._records.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root.chmod(0o700)
        self._lock = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise Misconfigured(
                f"another process uses the image store {self._root}", hint="give each provider its own directory"
            ) from None
        self._layers.open()
        self._read_records()
        self.collect()
        await self._registries.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._scope.close()
        await self._layers.close()
        await self._registries.__aexit__()
        os.close(self._lock)

    async def ensure(
        self, package: Package, *, fetch: Fetch | None = None, progress: Progress | None = None, holder: str = ""
    ) -> Rootfs:
        """Have an image, unpacked. At once and without a network when ``package`` has a digest that is here.

        ``fetch`` gives the bytes behind the URLs of a bundle, or of an image file. ``holder``: a name under which the image
        is kept until :meth:`release`. Raises errors of :mod:`.errors` (image_not_found, image_bad, image_wrong_platform,
        image_too_large, image_digest_mismatch, image_store_failed, image_unsupported, image_user_unknown,
        registry_unreachable, registry_denied, registry_not_allowed) and what ``fetch`` raises.
        """
        known = self._known(package.digest)
        if known is None:
            work: _Work
            if isinstance(package, RegistryImage):
                work = functools.partial(self._pull, source=RegistrySource(self._registries, package))
            elif fetch is None:
                raise ImageUnsupported("an image that is in no registry needs a node to fetch it from")
            elif isinstance(package, GvmiImage):
                work = functools.partial(self._pull_file, package=package, fetch=fetch)
            else:
                work = functools.partial(self._pull, source=BundleSource(package, fetch))
            known = await self._shared(package.package, work, progress, holder)
        return self._use(known, holder)

    async def load(self, path: Path, *, name: str = "", progress: Progress | None = None, holder: str = "") -> Rootfs:
        """Have the image of a local OCI layout, OCI archive or ``docker save`` tar; ``name`` if it holds several.

        Raises as :meth:`ensure`, and ``image_ambiguous``.
        """
        archive = await asyncio.to_thread(read_image, path, name=name, architecture=self._architecture)
        known = self._known(archive.digest)
        if known is None:
            work = functools.partial(self._pull, source=ArchiveSource(archive))
            known = await self._shared(f"archive:{archive.digest}", work, progress, holder)
        return self._use(known, holder)

    def has(self, package: Package) -> bool:
        """Whether :meth:`ensure` would answer at once."""
        return self._known(package.digest) is not None

    def release(self, holder: str) -> None:
        """``holder`` no longer needs its images. Unknown holders are fine."""
        self._held.pop(holder, None)

    def images(self) -> list[StoredImage]:
        """All images, the most recently used first."""
        return sorted(self._images.values(), key=lambda image: self._used[image.digest], reverse=True)

    def size(self) -> int:
        """Bytes of all layers of all images."""
        return sum({layer.name: layer.size for image in self._images.values() for layer in image.layers}.values())

    def collect(self) -> None:
        """Drop images, the longest unused first, until the store fits ``max_bytes``; then layers that nobody has.

        Directories leave ``layers`` at once; the deleting itself goes on in the background.
        """
        held = set[str]().union(*self._held.values())
        for image in reversed(self.images()):
            if self.size() <= self._limits.max_bytes:
                break
            if image.digest not in held:
                log.info("dropping image %s to make room", image.digest)
                self._forget(image)
        kept = {layer.name for image in self._images.values() for layer in image.layers}
        self._layers.keep_only(kept.union(*(pull.wanted for pull in self._pulls.values())))

    # -- images --------------------------------------------------------------------------------------------------

    def _known(self, digest: str) -> StoredImage | None:
        image = self._images.get(self._aliases.get(digest, digest))
        if image is None or all(map(self._layers.has, image.layers)):
            return image
        self._forget(image)  # somebody deleted directories under our feet
        return None

    def _use(self, image: StoredImage, holder: str) -> Rootfs:
        if holder:
            self._held.setdefault(holder, set()).add(image.digest)
        self._used[image.digest] = time.time()
        with contextlib.suppress(OSError):
            os.utime(self._record_path(image.digest))
        return Rootfs(
            layers=tuple(map(self._layers.tree, image.layers)),
            config=image.config,
            digest=image.digest,
        )

    def _record_path(self, digest: str) -> Path:
        return self._records / f"{digest.removeprefix('sha256:').replace(':', '-')}.json"

    def _remember(self, image: StoredImage) -> None:
        draft = self._layers.temporary()
        draft.write_bytes(msgspec.json.encode(image))
        draft.rename(self._record_path(image.digest))
        self._images[image.digest] = image
        self._used.setdefault(image.digest, time.time())
        self._aliases.update(dict.fromkeys(image.aliases, image.digest))

    def _forget(self, image: StoredImage) -> None:
        self._record_path(image.digest).unlink(missing_ok=True)
        self._images.pop(image.digest, None)
        self._used.pop(image.digest, None)
        self._aliases = {alias: digest for alias, digest in self._aliases.items() if digest != image.digest}

    def _read_records(self) -> None:
        """Images whose layers are not all there are forgotten at once."""
        for path in list(self._records.iterdir()):
            try:
                image = msgspec.json.decode(path.read_bytes(), type=StoredImage)
            except DECODE_ERRORS:
                log.warning("dropping a damaged image record: %s", path)
                path.unlink()
                continue
            self._images[image.digest] = image
            self._used[image.digest] = path.stat().st_mtime
            self._aliases.update(dict.fromkeys(image.aliases, image.digest))
            self._known(image.digest)

    # -- pulling -------------------------------------------------------------------------------------------------

    async def _shared(self, key: str, work: _Work, progress: Progress | None, holder: str) -> StoredImage:
        """Join the pull of ``key``, or begin it. It is cancelled when nobody waits any more."""
        pull = self._pulls.get(key)
        if pull is None or pull.task is None:
            pull = self._pulls[key] = _Pull()
            pull.task = self._scope.start(self._outcome(key, pull, work), f"pull {key[:80]}")
        pull.waiting += 1
        if progress is not None:
            pull.listeners.append(progress)
        if holder:
            pull.holders.append(holder)
        try:
            outcome = await asyncio.shield(pull.task)
        finally:
            pull.waiting -= 1
            if progress is not None:
                pull.listeners.remove(progress)
            if holder:
                pull.holders.remove(holder)
            if not pull.waiting and not pull.task.done():
                pull.task.cancel()
                self._done(key, pull)
        if isinstance(outcome, StoredImage):
            return outcome
        raise outcome

    def _done(self, key: str, pull: _Pull) -> None:
        if self._pulls.get(key) is pull:
            del self._pulls[key]

    async def _outcome(self, key: str, pull: _Pull, work: _Work) -> StoredImage | ShemError | TimeoutError:
        """Never raises our errors: they belong to those who wait, not to the log of background failures."""
        try:
            image = await work(pull)
            for holder in pull.holders:
                self._held.setdefault(holder, set()).add(image.digest)
            self.collect()
            return image
        except (ShemError, TimeoutError) as error:
            return error
        except OSError as error:
            return ImageStoreFailed(f"the image store failed: {error.strerror or error}")
        finally:
            self._done(key, pull)

    async def _pull(self, pull: _Pull, source: Source) -> StoredImage:
        pull.tell("looking the image up", 0)
        resolved = await source.resolve()
        known = self._known(resolved.digest)
        if known is not None:
            return self._with_aliases(known, resolved)
        manifest = parse_manifest(resolved.raw)
        if not isinstance(manifest, Manifest):
            raise ImageUnusable("the image's manifest is an index")
        raw = await small_blob(source, manifest.config, MAX_CONFIG)
        check_platform(raw, self._architecture)
        config, diff_ids = parse_config(raw)
        if len(diff_ids) != len(manifest.layers):
            raise ImageUnusable(f"the image has {len(manifest.layers)} layers and names {len(diff_ids)}")
        size = sum(layer.size for layer in manifest.layers)
        if size > self._limits.max_image_bytes:
            raise self._too_large(size)
        blobs = list(zip(manifest.layers, diff_ids, strict=True))
        pull.total = sum({diff_id: blob.size for blob, diff_id in blobs}.values())
        pull.wanted.update(map(layer_name, diff_ids))
        layers, records = await self._layers.have(source, blobs, pull.tell)
        layers = await self._layers.patched(layers, records, pull.wanted)
        if (unpacked := sum(layer.size for layer in layers)) > self._limits.max_image_bytes:
            raise self._too_large(unpacked)
        config = await asyncio.to_thread(settle_user, config, [self._layers.tree(layer) for layer in layers])
        image = StoredImage(digest=resolved.digest, layers=tuple(layers), config=config, aliases=resolved.aliases)
        self._remember(image)
        pull.tell("ready", 0)
        return image

    async def _pull_file(self, pull: _Pull, package: GvmiImage, fetch: Fetch) -> StoredImage:
        """Two that have the same file by two addresses both fetch it, so that neither waits for the other's; it is unpacked
        once."""
        await asyncio.to_thread(check_parts)
        pull.wanted.add(layer_name(package.digest))
        spooled = self._layers.temporary()
        try:
            pull.total = await spool(
                fetch(package.url),
                spooled,
                sha3=package.sha3,
                max_bytes=self._limits.max_image_bytes,
                arrived=lambda count: pull.tell("downloading the image", count),
            )
            outside = await asyncio.to_thread(read_gvmi, spooled)
            config = parse_container_config(outside.config)
            pull.tell("unpacking the image", 0)
            layer = await self._layers.have_squashfs(spooled, package.digest)
        finally:
            spooled.unlink(missing_ok=True)
        config = await asyncio.to_thread(settle_user, config, [self._layers.tree(layer)])
        image = StoredImage(digest=package.digest, layers=(layer,), config=config)
        self._remember(image)
        pull.tell("ready", 0)
        return image

    def _with_aliases(self, image: StoredImage, resolved: Resolved) -> StoredImage:
        new = [alias for alias in resolved.aliases if alias not in image.aliases]
        if new and len(image.aliases) + len(new) <= _MAX_ALIASES:
            image = msgspec.structs.replace(image, aliases=(*image.aliases, *new))
            self._remember(image)
        return image

    def _too_large(self, size: int) -> ImageTooLarge:
        return ImageTooLarge(
            f"the image has {size >> 20} MiB, and this provider takes at most {self._limits.max_image_bytes >> 20} MiB"
        )
