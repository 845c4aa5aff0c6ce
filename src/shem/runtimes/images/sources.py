"""Where the blobs of an image come from: a registry, a bundle held by a node, or a local archive.

A *bundle* is a JSON blob map ``{"blobs": {"sha256:…": {"url", "size"}}}`` behind a URL. The map is only a table of places: what
arrives from them is checked against the digests of the manifest, and the manifest against the digest in the package string.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import msgspec

from shem.cogs.decoding import DECODE_ERRORS
from shem.cogs.ociarchive import BlobAt, ImageArchive
from shem.cogs.ociformat import MAX_LAYERS, MAX_MANIFEST, Descriptor, ImageUnusable, sha256_digest
from shem.runtimes.images.errors import ImageDigestMismatch, ImageNotFound
from shem.runtimes.images.registry import Registries, Resolved
from shem.terms.images import BundleImage, RegistryImage

Fetch = Callable[[str], AsyncIterator[bytes]]
"""Gives the bytes behind a URL; raises when they cannot all be had."""

MAX_BLOB_MAP = 1 << 20


class Source(Protocol):
    """One image, somewhere."""

    resumes: bool
    """Whether :meth:`read` may be called again after it failed."""

    async def resolve(self) -> Resolved:
        """The manifest, verified."""

    def read(self, blob: Descriptor, start: int) -> AsyncIterator[bytes]:
        """The bytes of a blob from ``start``, unverified."""

    def local(self, blob: Descriptor) -> BlobAt | None:
        """Where the blob lies on this machine, if it does; unverified."""


class RegistrySource:
    """An image in a registry."""

    resumes = True

    def __init__(self, registries: Registries, image: RegistryImage) -> None:
        self._registries = registries
        self._image = registries.located(image)

    async def resolve(self) -> Resolved:
        return await self._registries.resolve(self._image)

    def read(self, blob: Descriptor, start: int) -> AsyncIterator[bytes]:
        return self._registries.read(self._image, blob, start)

    def local(self, blob: Descriptor) -> BlobAt | None:
        return None


class _Place(msgspec.Struct, frozen=True):
    url: str
    size: int


class BlobMap(msgspec.Struct, frozen=True):
    """The content of a bundle's file."""

    blobs: dict[str, _Place]


class BundleSource:
    """An image whose blobs are files of a node."""

    resumes = False  # the files of nodes have their own repetitions

    def __init__(self, bundle: BundleImage, fetch: Fetch) -> None:
        self._bundle = bundle
        self._fetch = fetch
        self._map = BlobMap(blobs={})

    async def resolve(self) -> Resolved:
        raw = await _all(self._fetch(self._bundle.url), MAX_BLOB_MAP, "the list of the image's parts")
        try:
            self._map = msgspec.json.decode(raw, type=BlobMap)
        except DECODE_ERRORS as error:
            raise ImageUnusable(f"the list of the image's parts cannot be read: {error}") from None
        if len(self._map.blobs) > MAX_LAYERS + 2:
            raise ImageUnusable("the list of the image's parts is too long")
        digest = self._bundle.digest
        manifest = await _all(self._fetch(self._place(digest).url), MAX_MANIFEST, "the image's manifest")
        if sha256_digest(manifest) != digest:
            raise ImageDigestMismatch(f"the image's manifest is {sha256_digest(manifest)}, not {digest}")
        return Resolved(digest=digest, raw=manifest)

    async def read(self, blob: Descriptor, start: int) -> AsyncIterator[bytes]:
        skip = start
        pieces = self._fetch(self._place(blob.digest).url)
        async with closing(pieces):
            async for piece in pieces:
                if skip < len(piece):
                    yield piece[skip:]
                skip = max(0, skip - len(piece))

    def local(self, blob: Descriptor) -> BlobAt | None:
        return None

    def _place(self, digest: str) -> _Place:
        place = self._map.blobs.get(digest)
        if place is None:
            raise ImageNotFound(f"the list of the image's parts lacks {digest}")
        return place


class ArchiveSource:
    """An image in a local file or directory."""

    resumes = False

    def __init__(self, archive: ImageArchive) -> None:
        self._archive = archive

    async def resolve(self) -> Resolved:
        return Resolved(digest=self._archive.digest, raw=b"".join(self._archive.blobs[self._archive.digest].chunks()))

    async def read(self, blob: Descriptor, start: int) -> AsyncIterator[bytes]:
        for piece in self._archive.blobs[blob.digest].chunks(start):
            yield piece

    def local(self, blob: Descriptor) -> BlobAt | None:
        at = self._archive.blobs.get(blob.digest)
        return at if at is not None and at.path is not None else None


async def _all(pieces: AsyncIterator[bytes], limit: int, what: str) -> bytes:
    whole = bytearray()
    async with closing(pieces):
        async for piece in pieces:
            whole += piece
            if len(whole) > limit:
                raise ImageUnusable(f"{what} is larger than {limit >> 20} MiB")
    return bytes(whole)


@asynccontextmanager
async def closing(pieces: AsyncIterator[bytes]) -> AsyncIterator[None]:
    """End a generator at once when its reader stops early, instead of when the collector finds it."""
    try:
        yield
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()
