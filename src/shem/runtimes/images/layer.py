"""A layer's blob, from bytes in a file to a directory: decompressed, hashed and unpacked in one pass.

The directory is only worth anything when this returns: then both the compressed bytes (if asked) and the tar had the
digests they were said to have. How the blob is compressed is seen from its first bytes; what comes out of the decompressor
is asked for in small pieces, so a bomb costs no memory, and is counted against the limit.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import zstandard
from isal import igzip

from shem.cogs.ociformat import ImageUnusable
from shem.runtimes.images.cage import tar_of
from shem.runtimes.images.errors import ImageDigestMismatch, ImageTooLarge
from shem.runtimes.images.extract import Extractor, Unpacked
from shem.runtimes.images.tarstream import TarStream

_BUFFER = 1 << 18
_ZSTD_WINDOW = 1 << 27
_PROGRESS_EVERY = 8 << 20
# A tar of empty files is larger than its content; beyond that, padding is only there to waste.
_OVERHEAD_PER_FILE = 16 << 10
_OVERHEAD = 64 << 20


DAMAGES = (zlib.error, zstandard.ZstdError, EOFError, igzip.BadGzipFile)
"""What decompressors raise."""


def unpack(
    blob: Path,
    offset: int,
    size: int,
    *,
    digest: str,
    diff_id: str,
    into: Path,
    max_bytes: int,
    max_files: int,
    progress: Callable[[int], None],
) -> Unpacked:
    """Unpack ``size`` bytes of ``blob`` from ``offset`` into ``into``, an empty directory.

    ``digest``: of the compressed bytes, checked here; ``""`` when somebody did already. ``diff_id``: of the tar.
    ``progress`` is told now and then how many compressed bytes were read. Raises our image errors and :class:`OSError`;
    the directory is then in any state.
    """
    with blob.open("rb") as file:
        file.seek(offset)
        part = Part(file, size, progress, hashing=bool(digest))
        extractor = Extractor(into, max_bytes=max_bytes, max_files=max_files)
        tar = _Hashing(decompressed(io.BufferedReader(part, _BUFFER)), extractor, max_bytes, max_files)
        try:
            stream = TarStream(tar.read)
            for member in stream:
                extractor.add(stream, member)
            while tar.read(_BUFFER):  # the hash is over all of it
                pass
            report = extractor.finish()
        except DAMAGES as error:
            raise ImageUnusable(f"a layer cannot be decompressed: {error}") from None
        finally:
            extractor.close()
        part.drain()
    if digest and part.digest() != digest:
        raise ImageDigestMismatch(f"a layer is {part.digest()}, not {digest} as its name says")
    if tar.digest() != diff_id:
        raise ImageDigestMismatch(f"a layer unpacks to {tar.digest()}, and the image's configuration says {diff_id}")
    return report


def unpack_squashfs(image: Path, *, into: Path, max_bytes: int, max_files: int) -> Unpacked:
    """Unpack the squashfs at the start of ``image``, whose digest somebody checked, into ``into``, an empty directory.

    It is a whole root file system: names that mean something in a layer mean nothing in it. Raises as :func:`unpack`, and
    as :func:`~shem.runtimes.images.cage.tar_of`.
    """
    extractor = Extractor(into, max_bytes=max_bytes, max_files=max_files, whiteouts=False)
    try:
        with tar_of(image) as source:
            stream = TarStream(_Counted(source, extractor, max_bytes, max_files).read)
            for member in stream:
                extractor.add(stream, member)
        return extractor.finish()
    finally:
        extractor.close()


class Part(io.RawIOBase):
    """A stretch of a file, hashed as it is read."""

    def __init__(self, file: BinaryIO, size: int, progress: Callable[[int], None], *, hashing: bool) -> None:
        self._file = file
        self._size = size
        self._left = size
        self._progress = progress
        self._told = 0
        self._sha = hashlib.sha256() if hashing else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        piece = self._file.read(min(len(buffer), self._left))
        if self._left and not piece:
            raise ImageUnusable("the file of a layer is shorter than it should be")
        buffer[: len(piece)] = piece
        self._left -= len(piece)
        if self._sha is not None:
            self._sha.update(piece)
        done = self._size - self._left
        if done - self._told >= _PROGRESS_EVERY:
            self._told = done
            self._progress(done)
        return len(piece)

    def drain(self) -> None:
        """Read what the decompressor had no use for: it belongs to the digest."""
        while self.read(_BUFFER):
            pass

    def digest(self) -> str:
        return f"sha256:{self._sha.hexdigest()}" if self._sha is not None else ""


class _Counted:
    """A tar as it comes: counted and limited."""

    def __init__(self, source: BinaryIO, extractor: Extractor, max_bytes: int, max_files: int) -> None:
        self._source = source
        self._extractor = extractor
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._count = 0

    def read(self, size: int) -> bytes:
        piece = self._source.read(size)
        self._count += len(piece)
        files = min(self._extractor.report.files, self._max_files)
        if self._count > self._max_bytes + _OVERHEAD + _OVERHEAD_PER_FILE * files:
            raise ImageTooLarge(f"a layer unpacks to more than {self._max_bytes >> 20} MiB")
        return piece


class _Hashing(_Counted):
    """The tar as it comes out of the decompressor: hashed as well."""

    def __init__(self, source: BinaryIO, extractor: Extractor, max_bytes: int, max_files: int) -> None:
        super().__init__(source, extractor, max_bytes, max_files)
        self._sha = hashlib.sha256()

    def read(self, size: int) -> bytes:
        piece = super().read(size)
        self._sha.update(piece)
        return piece

    def digest(self) -> str:
        return f"sha256:{self._sha.hexdigest()}"


def decompressed(raw: io.BufferedReader) -> BinaryIO:
    """What is in ``raw``: gzip, zstd, or as it is. Reading raises one of :data:`DAMAGES` when it is damaged."""
    start = raw.peek(4)[:4]
    if start[:2] == b"\x1f\x8b":
        return cast(BinaryIO, igzip.IGzipFile(fileobj=raw, mode="rb"))
    if start == b"\x28\xb5\x2f\xfd":
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        return cast(BinaryIO, decompressor.stream_reader(raw, read_size=_BUFFER, read_across_frames=True))
    return raw
