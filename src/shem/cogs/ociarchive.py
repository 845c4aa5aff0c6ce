"""Read a container image from a local file or directory, without unpacking it.

Three shapes are understood: an *OCI layout* directory (``oci-layout``, ``index.json``, ``blobs/``), the same as a tar
(new ``docker save``, ``skopeo``, ``buildah push oci-archive:``), and the old ``docker save`` tar (``manifest.json``
with one ``layer.tar`` each). All are turned into the same thing: the digest of a manifest, and for each blob it needs,
its size and where its bytes lie: in a file, from an offset, so that they can be sent or unpacked without a copy.

An old ``docker save`` tar has no manifest of the registry kind; one is made from its configuration and layers, always
the same bytes for the same tar. Layers in such a tar are not compressed, so a layer's digest is its ``diff_id``, which
the configuration states.

Nothing is hashed here except the manifest and the configuration (and compressed layers of an old tar): whoever copies
the bytes verifies them on the way. Sizes are checked against the real ones.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec

from shem.cogs.decoding import DECODE_ERRORS
from shem.cogs.ociformat import (
    CONFIG,
    DIGEST,
    LAYER,
    MANIFEST,
    MAX_CONFIG,
    MAX_LAYERS,
    MAX_MANIFEST,
    Descriptor,
    ImageUnusable,
    Index,
    Manifest,
    check_platform,
    choose,
    encode_manifest,
    host_architecture,
    parse_manifest,
    sha256_digest,
)

_MAX_ENTRIES = 20_000
_CHUNK = 1 << 20


class BlobAt(msgspec.Struct, frozen=True, kw_only=True):
    """Where the bytes of a blob are: ``size`` bytes of ``path`` from ``offset``, or (no path) ``data``."""

    digest: str
    size: int
    path: Path | None = None
    offset: int = 0
    data: bytes = b""

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        """The bytes from ``start``, in pieces of at most 1 MiB. Raises :class:`ImageUnusable` when the file is shorter
        than it was."""
        if self.path is None:
            yield self.data[start:]
            return
        with self.path.open("rb") as file:
            file.seek(self.offset + start)
            left = self.size - start
            while left > 0:
                piece = file.read(min(left, _CHUNK))
                if not piece:
                    raise ImageUnusable(f"{self.path} became shorter while it was read")
                left -= len(piece)
                yield piece


class ImageArchive(msgspec.Struct, frozen=True, kw_only=True):
    """A readable image."""

    digest: str
    """``sha256:<hex>`` of the manifest."""
    manifest: Manifest
    blobs: Mapping[str, BlobAt]
    """By digest: manifest, configuration and layers; in this order, each once."""

    @property
    def size(self) -> int:
        """Bytes of all blobs."""
        return sum(blob.size for blob in self.blobs.values())


def read_image(path: Path, *, name: str = "", architecture: str = "") -> ImageArchive:
    """Read the image at ``path``.

    ``name``: which one, when there are several: a tag or ``org.opencontainers.image.ref.name``.
    ``architecture``: of which platform, default this machine's.
    Raises :class:`ImageUnusable` (``image_bad``, ``image_wrong_platform``, ``image_ambiguous``).
    """
    architecture = architecture or host_architecture()
    store: _Store
    try:
        store = _Directory(path) if path.is_dir() else _Tar(path)
        if (index := store.small("index.json", MAX_MANIFEST)) is not None:
            return _from_layout(store, index, name, architecture)
        if (listing := store.small("manifest.json", MAX_MANIFEST)) is not None:
            return _from_docker(store, listing, name, architecture)
    except OSError as error:
        raise ImageUnusable(f"{path} cannot be read: {error.strerror or error}") from None
    raise ImageUnusable(
        f"{path} is not an image: it has neither index.json nor manifest.json",
        hint="make one with docker save, or podman save --format oci-archive",
    )


class _Store:
    """Files by name inside a directory or a tar."""

    where: Path

    def at(self, name: str) -> BlobAt | None:
        """Where the file is; the digest is left empty."""
        raise NotImplementedError

    def small(self, name: str, limit: int) -> bytes | None:
        found = self.at(name)
        if found is None:
            return None
        if found.size > limit:
            raise ImageUnusable(f"{name} in {self.where} is larger than {limit >> 20} MiB")
        return b"".join(found.chunks())


class _Directory(_Store):
    def __init__(self, path: Path) -> None:
        self.where = path

    def at(self, name: str) -> BlobAt | None:
        path = self.where / name
        if ".." in Path(name).parts or not path.is_file():
            return None
        return BlobAt(digest="", size=path.stat().st_size, path=path)


class _Tar(_Store):
    def __init__(self, path: Path) -> None:
        self.where = path
        self._files: dict[str, tuple[int, int]] = {}
        links: dict[str, str] = {}
        with path.open("rb") as file:
            _refuse_compressed(file, path)
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for count, entry in enumerate(tar):
                        if count > _MAX_ENTRIES:
                            raise ImageUnusable(f"{path} has more than {_MAX_ENTRIES} entries: it is not a saved image")
                        name = entry.name.removeprefix("./")
                        if entry.isreg() and entry.sparse is None:
                            self._files[name] = (entry.offset_data, entry.size)
                        elif entry.islnk() or entry.issym():
                            links[name] = _target(name, entry)
            except (tarfile.TarError, EOFError, ValueError) as error:
                raise ImageUnusable(f"{path} is not a tar: {error}") from None
        # docker save writes a layer that occurs twice as a link to the first.
        for name, target in links.items():
            if target in self._files:
                self._files.setdefault(name, self._files[target])

    def at(self, name: str) -> BlobAt | None:
        found = self._files.get(name)
        return None if found is None else BlobAt(digest="", path=self.where, offset=found[0], size=found[1])


def _refuse_compressed(file: BinaryIO, path: Path) -> None:
    start = file.read(6)
    file.seek(0)
    if start[:2] == b"\x1f\x8b" or start[:4] == b"\x28\xb5\x2f\xfd" or start == b"\xfd7zXZ\x00" or start[:3] == b"BZh":
        raise ImageUnusable(f"{path} is compressed as a whole", hint="decompress it first (gunzip, unzstd, unxz)")


def _target(name: str, entry: tarfile.TarInfo) -> str:
    if entry.islnk():
        return entry.linkname.removeprefix("./")
    parts = name.split("/")[:-1]
    for part in entry.linkname.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _from_layout(store: _Store, raw: bytes, name: str, architecture: str) -> ImageArchive:
    index = parse_manifest(raw)
    if not isinstance(index, Index):
        raise ImageUnusable(f"index.json in {store.where} is not an index")
    entry = _named(index, name, architecture, store.where)
    for _ in range(3):
        at, data = _blob(store, entry, MAX_MANIFEST)
        manifest = parse_manifest(data)
        if isinstance(manifest, Manifest):
            return _complete(store, entry.digest, at, manifest, architecture)
        entry = choose(manifest, architecture)
    raise ImageUnusable(f"the indexes in {store.where} are nested too deeply")


def _named(index: Index, name: str, architecture: str, where: Path) -> Descriptor:
    entries = index.manifests
    if name:
        keys = ("org.opencontainers.image.ref.name", "io.containerd.image.name")
        entries = tuple(e for e in entries if any(_same(e.annotations.get(k, ""), name) for k in keys))
        if not entries:
            raise ImageUnusable(f"{where} has no image named {name!r}", code="image_not_found")
    if len({e.digest for e in entries}) <= 1 and entries:
        return entries[0]
    if any(e.platform is not None for e in entries):
        return choose(Index(manifests=entries), architecture)
    raise ImageUnusable(
        f"{where} holds {len(entries)} images",
        code="image_ambiguous",
        hint="say which one by its name" if entries else "",
    )


def _same(found: str, name: str) -> bool:
    return found == name or found.endswith((f":{name}", f"/{name}"))


def _complete(store: _Store, digest: str, at: BlobAt, manifest: Manifest, architecture: str) -> ImageArchive:
    config_at, config = _blob(store, manifest.config, MAX_CONFIG)
    check_platform(config, architecture)
    blobs = {digest: at, config_at.digest: config_at}
    for layer in manifest.layers:
        found = store.at(_blob_name(layer.digest))
        if found is None:
            raise ImageUnusable(f"{store.where} lacks layer {layer.digest}", hint="save the image again")
        if found.size != layer.size:
            raise ImageUnusable(f"layer {layer.digest} in {store.where} has {found.size} bytes instead of {layer.size}")
        blobs[layer.digest] = msgspec.structs.replace(found, digest=layer.digest)
    return ImageArchive(digest=digest, manifest=manifest, blobs=blobs)


def _blob_name(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _blob(store: _Store, entry: Descriptor, limit: int) -> tuple[BlobAt, bytes]:
    data = store.small(_blob_name(entry.digest), limit)
    at = store.at(_blob_name(entry.digest))
    if data is None or at is None:
        raise ImageUnusable(f"{store.where} lacks {entry.digest}", hint="save the image again")
    if sha256_digest(data) != entry.digest or len(data) != entry.size:
        raise ImageUnusable(f"{entry.digest} in {store.where} is damaged", code="image_digest_mismatch")
    return msgspec.structs.replace(at, digest=entry.digest), data


class _Saved(msgspec.Struct, frozen=True, rename="pascal"):
    config: str
    layers: tuple[str, ...]
    repo_tags: tuple[str, ...] | None = None


class _RootFs(msgspec.Struct, frozen=True):
    diff_ids: tuple[str, ...] = ()


class _Config(msgspec.Struct, frozen=True):
    rootfs: _RootFs = _RootFs()


def _from_docker(store: _Store, listing: bytes, name: str, architecture: str) -> ImageArchive:
    try:
        images = msgspec.json.decode(listing, type=tuple[_Saved, ...])
    except DECODE_ERRORS as error:
        raise ImageUnusable(f"manifest.json in {store.where} cannot be read: {error}") from None
    if name:
        images = tuple(i for i in images if any(_same(tag, name) for tag in i.repo_tags or ()))
        if not images:
            raise ImageUnusable(f"{store.where} has no image named {name!r}", code="image_not_found")
    if len(images) != 1:
        raise ImageUnusable(
            f"{store.where} holds {len(images)} images", code="image_ambiguous", hint="save one image, or say which"
        )
    saved = images[0]
    config = store.small(saved.config, MAX_CONFIG)
    config_at = store.at(saved.config)
    if config is None or config_at is None:
        raise ImageUnusable(f"{store.where} lacks {saved.config[:80]!r}", hint="save the image again")
    check_platform(config, architecture)
    try:
        diff_ids = msgspec.json.decode(config, type=_Config).rootfs.diff_ids
    except DECODE_ERRORS as error:
        raise ImageUnusable(f"the image's configuration cannot be read: {error}") from None
    if len(diff_ids) != len(saved.layers) or len(diff_ids) > MAX_LAYERS:
        raise ImageUnusable(f"{store.where} has {len(saved.layers)} layers and names {len(diff_ids)}")
    config_at = msgspec.structs.replace(config_at, digest=sha256_digest(config))
    layers = [_saved_layer(store, file, diff) for file, diff in zip(saved.layers, diff_ids, strict=True)]
    return _synthesised(config_at, layers)


def _saved_layer(store: _Store, name: str, diff_id: str) -> BlobAt:
    at = store.at(name)
    if at is None or not DIGEST.fullmatch(diff_id):
        raise ImageUnusable(f"{store.where} lacks layer {name[:80]!r}", hint="save the image again")
    start = next(iter(msgspec.structs.replace(at, size=min(at.size, 4)).chunks()), b"")
    if start[:2] != b"\x1f\x8b" and start != b"\x28\xb5\x2f\xfd":
        return msgspec.structs.replace(at, digest=diff_id)
    sha = hashlib.sha256()
    for piece in at.chunks():
        sha.update(piece)
    return msgspec.structs.replace(at, digest=f"sha256:{sha.hexdigest()}")


def _synthesised(config: BlobAt, layers: list[BlobAt]) -> ImageArchive:
    manifest = Manifest(
        config=Descriptor(digest=config.digest, size=config.size, media_type=CONFIG),
        layers=tuple(Descriptor(digest=at.digest, size=at.size, media_type=LAYER) for at in layers),
        media_type=MANIFEST,
    )
    raw = encode_manifest(manifest)
    digest = sha256_digest(raw)
    blobs = {digest: BlobAt(digest=digest, size=len(raw), data=raw), config.digest: config}
    blobs.update({at.digest: at for at in layers})
    return ImageArchive(digest=digest, manifest=manifest, blobs=blobs)


def write_layout(directory: Path, config: bytes, layers: list[tuple[Path, str]], *, name: str) -> str:
    """Make an OCI layout in ``directory`` (which must exist) of a configuration and layer files ``(path, media type)``,
    which are moved into it. Returns the manifest's digest. Same inputs, same digest."""
    blobs = _blobs(directory)
    described = []
    for path, media_type in layers:
        with path.open("rb") as file:
            hexed = hashlib.file_digest(file, "sha256").hexdigest()
        described.append(Descriptor(digest=f"sha256:{hexed}", size=path.stat().st_size, media_type=media_type))
        path.replace(blobs / hexed)
    digest = sha256_digest(config)
    (blobs / digest[7:]).write_bytes(config)
    conf = Descriptor(digest=digest, size=len(config), media_type=CONFIG)
    raw = encode_manifest(Manifest(config=conf, layers=tuple(described), media_type=MANIFEST))
    (blobs / sha256_digest(raw)[7:]).write_bytes(raw)
    return _index(directory, raw, name)


def copy_layout(image: ImageArchive, directory: Path, *, name: str) -> str:
    """Write ``image`` as an OCI layout into ``directory`` (which must exist). Returns the manifest's digest.

    Raises :class:`ImageUnusable` when a blob is not what its digest says.
    """
    blobs = _blobs(directory)
    for digest, blob in image.blobs.items():
        sha = hashlib.sha256()
        with (blobs / digest[7:]).open("wb") as file:
            for piece in blob.chunks():
                sha.update(piece)
                file.write(piece)
        if f"sha256:{sha.hexdigest()}" != digest:
            raise ImageUnusable(f"{digest} is damaged", code="image_digest_mismatch")
    return _index(directory, b"".join(image.blobs[image.digest].chunks()), name)


def _blobs(directory: Path) -> Path:
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    return blobs


def _index(directory: Path, manifest: bytes, name: str) -> str:
    entry = Descriptor(
        digest=sha256_digest(manifest),
        size=len(manifest),
        media_type=MANIFEST,
        annotations={"org.opencontainers.image.ref.name": name},
    )
    index = {"schemaVersion": 2, "manifests": [msgspec.to_builtins(entry)]}
    (directory / "index.json").write_bytes(msgspec.json.encode(index, order="sorted"))
    (directory / "oci-layout").write_bytes(b'{"imageLayoutVersion":"1.0.0"}')
    return entry.digest
