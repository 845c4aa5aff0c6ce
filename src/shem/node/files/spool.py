"""Content on disk: written beside, hashed on the way, moved into place when whole.

Disk work runs in threads, one piece of :data:`PIECE_BYTES` behind the network, so that a slow disk stalls one transfer
and not the loop; what fits one piece is written at once. Hashing stays in the loop (0.3 ms for what arrives at once): a
thread for it costs more in waiting for its turn than it saves. At most two pieces per transfer are in memory.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from shem.errors import Conflict, Refused

PIECE_BYTES = 512 << 10


class SpoolFull(Conflict):
    """There is no room for this content on this node now."""

    default_code = "spool_full"


class TooLarge(Refused):
    """One file may not be that large here."""

    default_code = "file_too_large"


class Writer:
    """One file being written. Use as an async context manager: what is not :meth:`keep`-t is removed."""

    def __init__(self, directory: Path, reserve: Callable[[int], None], release: Callable[[int], None]) -> None:
        """``reserve`` is asked for room for so many more bytes and raises :class:`SpoolFull`; ``release`` undoes it."""
        self._path = directory / secrets.token_hex(16)
        self._reserve = reserve
        self._release = release
        self._digest = hashlib.sha3_256()
        self._buffer = bytearray()
        self._writing: asyncio.Future[None] | None = None
        self._fd = -1
        self.size = 0

    async def __aenter__(self) -> Writer:
        with _disk_errors():
            self._fd = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            if self._writing is not None:
                await asyncio.wait({self._writing})
                self._writing.exception()
        finally:
            os.close(self._fd)
            self._path.unlink(missing_ok=True)
            self._release(self.size)

    async def write(self, data: bytes) -> None:
        """Append. Raises :class:`SpoolFull`, :class:`TooLarge`."""
        self._reserve(len(data))
        self.size += len(data)
        self._digest.update(data)
        self._buffer += data
        if len(self._buffer) >= PIECE_BYTES:
            await self._flush()

    async def digest(self) -> str:
        """sha3-256 of everything written, hex; all of it is in the file then."""
        if self._writing is None:
            with _disk_errors():
                self._store(self._buffer)
            self._buffer = bytearray()
        await self._flush()
        await self._settle()
        return self._digest.hexdigest()

    def keep(self, path: Path) -> None:
        """Move the (complete) file into place."""
        with _disk_errors():
            self._path.replace(path)

    async def _flush(self) -> None:
        await self._settle()
        if self._buffer:
            piece, self._buffer = self._buffer, bytearray()
            loop = asyncio.get_running_loop()
            self._writing = loop.run_in_executor(None, self._store, piece)

    async def _settle(self) -> None:
        if self._writing is not None:
            writing = self._writing
            await asyncio.wait({writing})  # not awaited itself: a write goes on in its thread when we are cancelled
            self._writing = None
            with _disk_errors():
                writing.result()

    def _store(self, piece: bytearray) -> None:
        left = memoryview(piece)
        while left:
            left = left[os.write(self._fd, left) :]


class _disk_errors:  # noqa: N801 - reads as a statement
    """A full disk is the spool's trouble, not a fault of ours."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise SpoolFull(
                f"the disk of the spool is full: {error.strerror}", hint="free some space, or move the data directory"
            ) from error


async def read_pieces(path: Path, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
    """A file's content, read one piece ahead. A file that is removed meanwhile is still read to its end."""
    loop = asyncio.get_running_loop()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    ahead: asyncio.Future[bytes] | None = None
    try:
        end = os.fstat(fd).st_size if length is None else offset + length
        while offset < end:
            if ahead is None:
                piece = os.pread(fd, min(PIECE_BYTES, end - offset), offset)  # the first, or the only one
            else:
                await asyncio.wait({ahead})
                piece, ahead = ahead.result(), None
            if not piece:
                return
            offset += len(piece)
            if offset < end:
                ahead = loop.run_in_executor(None, os.pread, fd, min(PIECE_BYTES, end - offset), offset)
            yield piece
    finally:
        if ahead is not None:
            await asyncio.wait({ahead})
        os.close(fd)
