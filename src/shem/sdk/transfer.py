"""Files between this program and rented machines, by way of our own node's spool.

An input goes to the node once and is fetched by any number of machines; it is named by its content. A result comes into an
inbox of the node first, and to the user's disk once it is whole.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tarfile
from collections.abc import AsyncIterator, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

from shem.client.files import FilesApi, Source
from shem.cogs.tasks import TaskScope
from shem.errors import NotFound, PeerFailed, Refused
from shem.wire.files import CHUNK_BYTES, Inbox, StoredFile

INBOX_WAIT_S = 30.0
"""The machine says that it has sent before our node has said that it has it; between the two lies this much at most."""


class Courier:
    """A session's transfers. Gives up what it published when it closes."""

    def __init__(self, files: FilesApi, node_id: str) -> None:
        self._files = files
        self._node_id = node_id
        self._published: dict[Hashable, asyncio.Task[StoredFile]] = {}
        self._uploads = TaskScope("uploads")

    async def __aenter__(self) -> Courier:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._uploads.close()
        for upload in self._published.values():
            if not upload.cancelled() and upload.exception() is None:
                await self._give_up(upload.result().file_id)
        self._published.clear()

    @asynccontextmanager
    async def offer(self, path: Path) -> AsyncIterator[tuple[str, dict[str, str]]]:
        """A file or directory as ``(url, extra keys of the transfer command)``.

        Files are published once for as long as they do not change, whoever asks, and stay until the session ends.
        """
        if path.is_dir():
            facts = await asyncio.to_thread(_facts, path)
            yield (await self._once((str(path.resolve()), facts), _tar(path))).url, {"format": "tar"}
        else:
            yield (await self.publish(path)).url, {}

    async def publish(self, path: Path) -> StoredFile:
        """Publish a file for the session; the same unchanged file is sent to the node only once."""
        try:
            facts = path.stat()
        except OSError as error:
            raise Refused(f"{path} cannot be read: {error.strerror}", code="input_unreadable") from error
        return await self._once((str(path.resolve()), facts.st_mtime_ns, facts.st_size), path)

    async def publish_stream(self, key: Hashable, source: AsyncIterator[bytes]) -> StoredFile:
        """Publish content for the session; a ``key`` that was published already is not read again."""
        return await self._once(key, source)

    async def _once(self, key: Hashable, source: Source) -> StoredFile:
        upload = self._published.get(key)
        if upload is None or (upload.done() and (upload.cancelled() or upload.exception() is not None)):
            upload = self._uploads.start(self._files.upload(source), f"publish {key}")
            self._published[key] = upload
        # shielded: who else waits for the same content must not lose it because this caller was cancelled
        return await asyncio.shield(upload)

    @asynccontextmanager
    async def offer_bytes(self, data: bytes) -> AsyncIterator[str]:
        """Bytes as a URL, for the time of one transfer."""

        async def whole() -> AsyncIterator[bytes]:
            for start in range(0, len(data), CHUNK_BYTES):
                yield data[start : start + CHUNK_BYTES]

        stored = await self._files.upload(whole())
        try:
            yield stored.url
        finally:
            await self._give_up(stored.file_id)

    @asynccontextmanager
    async def receive(self) -> AsyncIterator[Delivery]:
        """A place to send one file to."""
        inbox = await self._files.create_inbox()
        try:
            yield Delivery(self._files, self._node_id, inbox)
        finally:
            await self._give_up(inbox.file_id)

    async def _give_up(self, file_id: str) -> None:
        try:
            await self._files.delete(self._node_id, file_id)
        except (NotFound, PeerFailed):
            pass  # gone already, or the node is away: its spool is bounded and swept


class Delivery:
    """An inbox that a machine fills."""

    def __init__(self, files: FilesApi, node_id: str, inbox: Inbox) -> None:
        self._files = files
        self._node_id = node_id
        self._inbox = inbox

    @property
    def url(self) -> str:
        """Where the machine sends to."""
        return self._inbox.url

    async def _arrived(self) -> int:
        state = await self._files.wait_inbox(self._inbox.file_id, timeout_s=INBOX_WAIT_S)
        if state.state != "complete":
            raise PeerFailed("the machine said that it sent the file, but it did not arrive", code="result_missing")
        return state.size or 0

    async def save(self, path: Path) -> None:
        """Write it to ``path``, which appears once whole and right."""
        await self._arrived()
        await self._files.download(self._node_id, self._inbox.file_id, path)

    async def content(self, limit: int) -> bytes:
        """It, in memory."""
        size = await self._arrived()
        if size > limit:
            raise Refused(f"the file has {size} bytes, more than {limit}", code="too_large", hint="use download")
        async with self._files.open(self._node_id, self._inbox.file_id) as source:
            return b"".join([chunk async for chunk in source.chunks()])


def _facts(directory: Path) -> str:
    """Changes when anything below ``directory`` does. Raises ``Refused`` (``input_unreadable``)."""
    digest = hashlib.sha256()
    for place, directories, files in os.walk(directory, onerror=_unreadable):
        directories.sort()
        for name in sorted((*directories, *files)):
            path = Path(place) / name
            try:
                found = path.lstat()
            except OSError as error:
                _unreadable(error)
            digest.update(
                f"{path} {found.st_mode} {found.st_size} {found.st_mtime_ns}\0".encode(errors="surrogateescape")
            )
    return digest.hexdigest()


def _unreadable(error: OSError) -> NoReturn:
    raise Refused(f"{error.filename} cannot be read: {error.strerror}", code="input_unreadable") from error


async def _tar(directory: Path) -> AsyncIterator[bytes]:
    """The directory as a tar stream, made as it is read: memory does not grow with it.

    The maker has a thread of its own: in the common pool, as many makers as it has threads would leave none to read.
    """
    reader, writer = os.pipe()

    def make() -> None:
        with (
            os.fdopen(writer, "wb") as sink,
            tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as archive,
        ):
            archive.add(directory, arcname=".", recursive=True)

    maker = ThreadPoolExecutor(1, thread_name_prefix="shem-tar")
    making = asyncio.get_running_loop().run_in_executor(maker, make)
    try:
        while chunk := await asyncio.to_thread(os.read, reader, CHUNK_BYTES):
            yield chunk
        await asyncio.shield(making)
    except OSError as error:
        _unreadable(error)
    finally:
        os.close(reader)  # a maker that is still at it gets EPIPE and ends
        making.add_done_callback(lambda made: None if made.cancelled() else made.exception() and None)
        maker.shutdown(wait=False)
