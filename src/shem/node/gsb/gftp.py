"""Files that programs hand out and take in themselves, chunk by chunk, as services of the bus.

golem-js answers for a ``Buffer`` with all of the memory behind it, whatever part was asked for. Where that is exactly the
file, the part is taken from it; where it is more (small ones share their memory), nobody can know which bytes were meant.

A download keeps a window of requests open, as a round trip through a program costs more than the bytes do; an upload sends
one chunk and waits, as programs write chunks in the order in which they arrive, whatever their offsets say.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from shem.cogs.flexbuffers import number
from shem.node.files.incoming import BrokenContent
from shem.node.gsb.service import Bus, Service
from shem.wire.gsb import CHUNK_BYTES, GFTP, whole

WINDOW = 4
"""Requests for content that are open at once: what a slow reader may make us hold, in chunks."""


class GftpServices:
    """The files of this node's programs, by file id. See :class:`~shem.node.files.live.LiveFiles`."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def find(self, file_id: str) -> GftpFile | None:
        """The program's file, if some program has bound it."""
        service = self._bus.find(GFTP + file_id)
        return None if service is None else GftpFile(service)


class GftpFile:
    """One file. See :class:`~shem.node.files.live.LiveFile`."""

    def __init__(self, service: Service) -> None:
        self.owner = service.owner
        self._service = service
        self._size = -1

    async def size(self) -> int:
        """What the program says. Raises ``PeerFailed``, ``NotFound`` when the file cannot be read."""
        answer = await self._service.request("GetMetadata", {})
        size = whole(answer.get("fileSize")) if isinstance(answer, Mapping) else None
        if size is None:
            raise BrokenContent("the program that publishes this file does not say how large it is")
        self._size = size
        return size

    async def read(self, offset: int, length: int) -> AsyncGenerator[bytes, None]:
        """The content from ``offset`` on, in order. Raises ``PeerFailed``."""
        window: deque[tuple[int, int, asyncio.Future[Any]]] = deque()
        asked, end = offset, offset + length
        try:
            while asked < end or window:
                while asked < end and len(window) < WINDOW:
                    size = min(CHUNK_BYTES, end - asked)
                    window.append((asked, size, self._ask(asked, size)))
                    asked += size
                place, size, answer = window.popleft()
                content = self._content(await answer, place, size)
                yield content
                while len(content) < size:  # a program may give less at a time than it is asked for
                    place, size = place + len(content), size - len(content)
                    content = self._content(await self._ask(place, size), place, size)
                    yield content
        finally:
            for _, _, answer in window:
                _forget(answer)

    def _ask(self, offset: int, size: int) -> asyncio.Future[Any]:
        return self._service.request("GetChunk", {"offset": number(offset), "size": size})

    def _content(self, answer: Any, offset: int, size: int) -> bytes:
        content = answer.get("content") if isinstance(answer, Mapping) else None
        if not isinstance(content, memoryview) or whole(answer.get("offset", offset)) != offset:
            raise BrokenContent("the program that publishes this file answers with something else")
        if size < len(content) == self._size:
            content = content[offset : offset + size]
        if not 0 < len(content) <= size:
            raise BrokenContent(
                f"the program that publishes this file gave {len(content)} bytes for {size} at {offset}",
                hint="has the file changed? is it a Buffer of Node.js, where a Uint8Array is meant?",
            )
        return bytes(content)

    def sink(self) -> GftpSink:
        """Where content for it goes."""
        return GftpSink(self._service)


class GftpSink:
    """One upload. See :class:`~shem.node.files.live.Sink`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._buffer = bytearray()
        self._offset = 0
        self._sent: asyncio.Future[Any] | None = None

    async def write(self, data: bytes) -> None:
        """Send what makes whole chunks. Raises ``PeerFailed``, ``NotFound`` when the program takes no uploads."""
        self._buffer += data
        while len(self._buffer) >= CHUNK_BYTES:
            chunk = bytes(memoryview(self._buffer)[:CHUNK_BYTES])
            del self._buffer[:CHUNK_BYTES]
            await self._send(chunk)

    async def finish(self, sha3: str) -> None:
        """That was all of it; returns when the program has taken note."""
        if self._buffer:
            await self._send(bytes(self._buffer))
        await self._settle()
        await self._service.request("UploadFinished", {"hash": sha3})

    def close(self) -> None:
        """Wait for nothing any more."""
        if self._sent is not None:
            _forget(self._sent)
            self._sent = None

    async def _send(self, chunk: bytes) -> None:
        await self._settle()
        self._sent = self._service.request("UploadChunk", {"chunk": {"offset": number(self._offset), "content": chunk}})
        self._offset += len(chunk)

    async def _settle(self) -> None:
        if self._sent is not None:
            await self._sent
            self._sent = None


def _forget(answer: asyncio.Future[Any]) -> None:
    """Nobody waits for it any more."""
    if not answer.done():
        answer.cancel()
    elif not answer.cancelled():
        answer.exception()
