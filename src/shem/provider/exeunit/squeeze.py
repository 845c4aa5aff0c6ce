"""Compression of streams: gzip, bzip2 and xz, piece by piece and in bounded memory, whatever a stranger's data expand to.

Streams of several members are read to their end (parallel compressors write such), with zeros between and after them. The
slow formats work in a thread; both directions hold a piece or two.
"""

from __future__ import annotations

import asyncio
import bz2
import lzma
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

from shem.provider.exeunit.failures import TRANSFER_FAILED, CommandFailed

_PIECE = 128 << 10
_BATCH = 256 << 10
_XZ_MEMORY = 128 << 20
"""What the largest preset of ``xz`` needs to be read, and some more."""


class _Expander(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Gunzip:
    """zlib's, with the manners of the other two."""

    def __init__(self) -> None:
        self._inflater = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inflater.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflater.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        return self._inflater.decompress(self._inflater.unconsumed_tail + data, max_length)


_EXPANDERS: Mapping[str, Callable[[], _Expander]] = {
    "gz": _Gunzip,
    "bz2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY),
}
_COMPRESSORS: Mapping[str, Callable[[], _Compressor]] = {
    "gz": lambda: zlib.compressobj(1, wbits=31),
    "bz2": bz2.BZ2Compressor,
    "xz": lambda: lzma.LZMACompressor(preset=1),
}
_QUICK = "gz"


async def expand(pieces: AsyncIterator[bytes], form: str) -> AsyncIterator[bytes]:
    """Decompress (``gz``, ``bz2`` or ``xz``) as it comes; no piece is larger than 128 KiB.

    Raises :class:`CommandFailed` (``transfer_failed``) for what is no such stream, or ends too early.
    """
    one: _Expander | None = _EXPANDERS[form]()
    try:
        async for piece in pieces:
            data = piece
            while True:
                if one is None:
                    data = data.lstrip(b"\0")
                    if not data:
                        break
                    one = _EXPANDERS[form]()
                out = await _step(one.decompress, form, data, _PIECE)
                data = b""
                if one.eof:
                    data, one = one.unused_data, None
                if out:
                    yield out
                elif one is not None:
                    break
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        raise _bad(f"it is not {form}: {error}") from None
    if one is not None:
        raise _bad("it ends in the middle of the compressed data")


async def compress(pieces: AsyncIterator[bytes], form: str) -> AsyncIterator[bytes]:
    """Compress as it comes, at the fast end."""
    one = _COMPRESSORS[form]()
    waiting = bytearray()
    async for piece in pieces:
        waiting += piece
        if len(waiting) >= _BATCH:
            data, waiting = bytes(waiting), bytearray()
            if out := await _step(one.compress, form, data):
                yield out
    yield await _step(one.compress, form, bytes(waiting))
    yield await _step(one.flush, form)


async def _step(work: Callable[..., bytes], form: str, *arguments: object) -> bytes:
    return work(*arguments) if form == _QUICK else await asyncio.to_thread(work, *arguments)


def _bad(why: str) -> CommandFailed:
    return CommandFailed(TRANSFER_FAILED, f"the archive is not sound: {why}")
