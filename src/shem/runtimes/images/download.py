"""Bring one blob to a file, verified on the way, going on where a lost connection stopped."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from shem.cogs.ociformat import Descriptor, ImageUnusable
from shem.runtimes.images.errors import ImageDigestMismatch, ImageTooLarge, RegistryUnreachable
from shem.runtimes.images.sources import Source, closing

_TRIES = 5
_BATCH = 1 << 20


class _Sha(Protocol):
    def update(self, data: bytes | bytearray, /) -> None: ...

    def hexdigest(self) -> str: ...


async def download(
    source: Source, blob: Descriptor, path: Path, *, arrived: Callable[[int], None], backoff_s: float = 0.25
) -> None:
    """Write ``blob`` to ``path``; ``arrived`` hears of each megabyte or so.

    Raises :class:`ImageDigestMismatch` when it is not what its digest says, and whatever ``source`` raises.
    """
    with path.open("wb") as file:
        sink = _Sink(file, hashlib.sha256(), blob, arrived)
        for attempt in range(_TRIES):
            last = attempt == _TRIES - 1 or not source.resumes
            try:
                await sink.take(source)
            except RegistryUnreachable:
                if last:
                    raise
            if sink.received == blob.size:
                break
            if last:
                raise ImageDigestMismatch(f"{blob.digest} has {sink.received} bytes instead of {blob.size}")
            await asyncio.sleep(backoff_s * 2**attempt)
    sink.verify()


async def small_blob(source: Source, blob: Descriptor, limit: int) -> bytes:
    """A blob as bytes, verified. Raises as :func:`download`, and :class:`ImageUnusable` above ``limit``."""
    if blob.size > limit:
        raise ImageUnusable(f"{blob.digest} is larger than {limit >> 20} MiB")
    data = bytearray()
    pieces = source.read(blob, 0)
    async with closing(pieces):
        async for piece in pieces:
            data += piece
            if len(data) > blob.size:
                break
    if len(data) != blob.size or f"sha256:{hashlib.sha256(data).hexdigest()}" != blob.digest:
        raise ImageDigestMismatch(f"{blob.digest} arrived as something else")
    return bytes(data)


async def spool(
    pieces: AsyncIterator[bytes], path: Path, *, sha3: str, max_bytes: int, arrived: Callable[[int], None]
) -> int:
    """Write what arrives to ``path``, of a size that nobody knows before, and return the size. Nothing of it may be looked at
    before this returned: only then its SHA3 (of the length of ``sha3``) is as it should be.

    Raises :class:`ImageDigestMismatch`, :class:`ImageTooLarge`, and whatever ``pieces`` raises.
    """
    sha = hashlib.new(f"sha3_{len(sha3) * 4}")
    total = 0
    batch = bytearray()
    with path.open("wb") as file:

        def keep(data: bytearray) -> None:
            file.write(data)
            sha.update(data)

        async with closing(pieces):
            async for piece in pieces:
                batch += piece
                total += len(piece)
                if total > max_bytes:
                    raise ImageTooLarge(f"the image has more than the {max_bytes >> 20} MiB that this provider takes")
                if len(batch) >= _BATCH:
                    await asyncio.to_thread(keep, batch)
                    arrived(len(batch))
                    batch = bytearray()
        await asyncio.to_thread(keep, batch)
        arrived(len(batch))
    if sha.hexdigest() != sha3:
        raise ImageDigestMismatch(f"the image arrived as sha3:{sha.hexdigest()}, not sha3:{sha3}")
    return total


class _Sink:
    def __init__(self, file: BinaryIO, sha: _Sha, blob: Descriptor, arrived: Callable[[int], None]) -> None:
        self._file = file
        self._sha = sha
        self._blob = blob
        self._arrived = arrived
        self.received = 0

    async def take(self, source: Source) -> None:
        """Read on from where we are. What arrived before a failure is kept."""
        batch = bytearray()
        pieces = source.read(self._blob, self.received)
        try:
            async with closing(pieces):
                async for piece in pieces:
                    batch += piece
                    if self.received + len(batch) > self._blob.size:
                        raise ImageDigestMismatch(f"{self._blob.digest} is longer than {self._blob.size} bytes")
                    if len(batch) >= _BATCH:
                        await self._keep(batch)
                        batch = bytearray()
        except RegistryUnreachable:
            await self._keep(batch)
            raise
        await self._keep(batch)

    async def _keep(self, batch: bytearray) -> None:
        if batch:
            await asyncio.to_thread(self._write, batch)
            self.received += len(batch)
            self._arrived(len(batch))

    def _write(self, batch: bytearray) -> None:
        self._file.write(batch)
        self._sha.update(batch)

    def verify(self) -> None:
        found = f"sha256:{self._sha.hexdigest()}"
        if found != self._blob.digest:
            raise ImageDigestMismatch(f"a part of the image arrived as {found}, not {self._blob.digest}")
