"""Caller of the file API. Everything is streamed: memory does not grow with the file."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import aiohttp
import msgspec

from shem.client.http import ApiClient, NodeUnreachable, error_of
from shem.errors import PeerFailed
from shem.wire.files import CHUNK_BYTES, PREFIX, SHA3_HEADER, SIZE_HEADER, Inbox, InboxState, Received, StoredFile

T = TypeVar("T")

Source = Path | AsyncIterator[bytes]
"""What is uploaded: a file, or its content piece by piece."""

_OCTETS = "application/octet-stream"
_READ_BYTES = 4 * CHUNK_BYTES


class TransferBroken(PeerFailed):
    """The content did not arrive whole and right. Nothing of it may be used; the transfer may be repeated."""

    default_code = "transfer_broken"


class Download:
    """A file on its way: ``size`` and ``sha3`` as promised, and the content (checked at its end).

    ``sha3`` is ``""`` where nobody knows it beforehand: the node checks such content against what its sender says last.
    """

    def __init__(self, answer: aiohttp.ClientResponse, offset: int) -> None:
        self._answer = answer
        self._offset = offset
        self.size = int(answer.headers.get(SIZE_HEADER, "-1"))
        self.sha3 = answer.headers.get(SHA3_HEADER, "")

    async def raw(self) -> AsyncIterator[bytes]:
        """The content as it comes, unchecked. Raises :class:`TransferBroken` when it is cut short."""
        seen = self._offset
        try:
            async for chunk in self._answer.content.iter_chunked(_READ_BYTES):
                seen += len(chunk)
                yield chunk
        except aiohttp.ClientError as error:
            raise TransferBroken(f"the transfer broke after {seen} of {self.size} bytes: {error}") from error

    async def chunks(self) -> AsyncIterator[bytes]:
        """The content. Raises :class:`TransferBroken` after the last chunk when size or hash are wrong."""
        digest, seen = hashlib.sha3_256(), 0
        async for chunk in self.raw():
            digest.update(chunk)
            seen += len(chunk)
            yield chunk
        if seen != self.size or self.sha3 not in {"", digest.hexdigest()}:
            raise TransferBroken(f"the content is not what was promised ({seen} of {self.size} bytes)")


class FilesApi:
    """Files of this node and of its peers, by (node id, file id)."""

    def __init__(self, http: ApiClient) -> None:
        self._http = http

    async def upload(self, source: Source) -> StoredFile:
        """Publish content on the own node. The same content gives the same id and is kept until deleted as often.

        Raises ``Refused`` (``file_too_large``) and ``Conflict`` (``spool_full``: no room on this node now).
        """
        return await self._send("POST", PREFIX, source, StoredFile)

    async def send(self, node_id: str, file_id: str, source: Source) -> Received:
        """Fill an inbox, here or at a peer; returns when the receiver has it hashed and stored."""
        return await self._send("PUT", f"{PREFIX}/{node_id}/{file_id}", source, Received)

    async def create_inbox(self) -> Inbox:
        """A place on the own node that one upload may fill."""
        return await self._http.call("POST", f"{PREFIX}/inbox", into=Inbox)

    async def wait_inbox(self, file_id: str, *, timeout_s: float = 5.0) -> InboxState:
        """The inbox's state once it is complete, or when the time is up."""
        return await self._http.call(
            "GET", f"{PREFIX}/inbox/{file_id}", params={"timeout": timeout_s}, timeout_s=timeout_s + 10, into=InboxState
        )

    async def delete(self, node_id: str, file_id: str) -> None:
        """Give up one reference to a file of the own node, or an inbox."""
        await self._http.call("DELETE", f"{PREFIX}/{node_id}/{file_id}")

    @asynccontextmanager
    async def open(self, node_id: str, file_id: str, *, offset: int = 0) -> AsyncIterator[Download]:
        """The content from ``offset`` on, from the own node or fetched from that peer."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=60)
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        try:
            async with self._http.session.get(
                self._http.url(f"{PREFIX}/{node_id}/{file_id}"), timeout=timeout, headers=headers
            ) as answer:
                if answer.status not in {200, 206}:
                    raise error_of(answer.status, await answer.read())
                yield Download(answer, offset)
        except aiohttp.ClientError as error:
            raise NodeUnreachable(f"the node did not answer: {error}") from error

    async def download(self, node_id: str, file_id: str, path: Path) -> Received:
        """Write the content to ``path``, which appears only when whole and right.

        A transfer that breaks goes on where it broke, as long as each attempt brings something. Raises
        :class:`TransferBroken`, ``NotFound``, ``PeerFailed``.
        """
        part = path.with_name(f".{path.name}.part")
        digest, seen, waiting = hashlib.sha3_256(), 0, bytearray()
        try:
            with part.open("wb") as sink:
                while True:
                    before = seen
                    try:
                        async with self.open(node_id, file_id, offset=seen) as source:
                            promised = Received(size=source.size, sha3=source.sha3)
                            async for chunk in source.raw():
                                digest.update(chunk)
                                seen += len(chunk)
                                waiting += chunk
                                if len(waiting) >= _READ_BYTES:
                                    await asyncio.to_thread(sink.write, waiting)
                                    waiting = bytearray()
                        break
                    except PeerFailed:
                        if seen == before or not promised.sha3:  # without a hash, nothing joins the parts
                            raise
                await asyncio.to_thread(sink.write, waiting)
            sha3 = digest.hexdigest()
            if seen != promised.size or promised.sha3 not in {"", sha3}:
                raise TransferBroken(f"the content is not what was promised ({seen} of {promised.size} bytes)")
            part.replace(path)
            return Received(size=seen, sha3=sha3)
        finally:
            part.unlink(missing_ok=True)

    async def _send(self, method: str, path: str, source: Source, into: type[T]) -> T:
        body = _read(source) if isinstance(source, Path) else source
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=None)
        try:
            async with self._http.session.request(
                method, self._http.url(path), data=body, timeout=timeout, headers={"Content-Type": _OCTETS}
            ) as answer:
                content = await answer.read()
                if answer.status >= 400:
                    raise error_of(answer.status, content)
                return msgspec.json.decode(content, type=into)
        except aiohttp.ClientError as error:
            raise NodeUnreachable(f"the upload broke: {error}") from error


async def _read(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as source:
        while chunk := await asyncio.to_thread(source.read, _READ_BYTES):
            yield chunk
