"""Files of this program's user as ``gftp://<node id>/<id>``, straight from and to the disk.

What is published is read when somebody asks for it. Its id is its hash, so the reader sees whether it got what was meant; a
file that has changed since is not given at all. What is received is written where it belongs as it comes.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from shem.client.gsb import CannotAnswer, GsbService
from shem.client.http import ApiClient
from shem.cogs.flexbuffers import number
from shem.cogs.tasks import finish
from shem.errors import Conflict, Refused
from shem.wire.files import gftp_url
from shem.wire.gsb import GFTP, INTEGRITY_ERROR, MAX_FRAME_BYTES, READ_ERROR, WRITE_ERROR, whole

T = TypeVar("T")

MAX_FILES = 4000
"""Files of one program that are open to others at once."""
MAX_HELD = 256
"""Published files that are held open, so that they can be read although their names are gone; more are opened when read."""
CLOSING = 64
"""Files that are closed at once."""
_HASH_BYTES = 1 << 20
_MAX_CHUNK_BYTES = MAX_FRAME_BYTES - 1024
_RECEIVE_CHARS = 48  # not 64: that is a hash
_ALPHABET = string.ascii_letters + string.digits

Facts = tuple[int, int, int, int]


class Unreadable(Refused):
    """A file cannot be published."""

    default_code = "file_unreadable"


class Unwritable(Refused):
    """A file cannot be written."""

    default_code = "file_unwritable"


class Gftp:
    """The files of one program. An async context manager: what it opened to others closes with it."""

    def __init__(self, http: ApiClient) -> None:
        self._http = http
        self._node_id = ""
        self._published: dict[str, _Published] = {}
        self._receiving: list[_Receiving] = []
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Gftp:
        """Raises ``NotAuthenticated``, ``NodeUnreachable``."""
        self._node_id = (await self._http.call("GET", "/me"))["identity"]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        room = asyncio.Semaphore(CLOSING)

        async def give_up(one: _Published | _Receiving) -> None:
            async with room:
                await one.close()

        async with asyncio.TaskGroup() as closing:
            for published in self._published.values():
                closing.create_task(give_up(published))
            for receiving in self._receiving:
                closing.create_task(give_up(receiving))
        self._published.clear()
        self._receiving.clear()

    async def publish(self, path: Path) -> str:
        """The URL of a file's content; each call counts, and :meth:`close` counts back. Raises :class:`Unreadable`."""
        source = await _in_thread(lambda: _Source(path))
        try:
            async with self._turn:
                published = self._published.get(source.sha3)
                if published is None:
                    self._make_room()
                    published = _Published(self._http, source.sha3)
                    await published.open()
                    self._published[source.sha3] = published
                published.add(source, hold=sum(p.held for p in self._published.values()) < MAX_HELD)
                return gftp_url(self._node_id, source.sha3)
        except BaseException:
            source.close()
            raise

    async def close(self, url: str) -> bool:
        """Take one :meth:`publish` back; whether there was one."""
        sha3 = url.rpartition("/")[2]
        async with self._turn:
            published = self._published.get(sha3)
            if published is None or url != gftp_url(self._node_id, sha3):
                return False
            published.count -= 1
            if not published.count:
                del self._published[sha3]
                await published.close()
            return True

    async def receive(self, path: Path) -> str:
        """A URL that fills this file, which is made now. Raises :class:`Unwritable`."""
        self._make_room()
        receiving = _Receiving(self._http, await _in_thread(lambda: _Target(path)))
        await receiving.open()
        self._receiving.append(receiving)
        return gftp_url(self._node_id, receiving.file_id)

    def _make_room(self) -> None:
        if len(self._published) + len(self._receiving) >= MAX_FILES:
            raise Conflict(f"{MAX_FILES} files are open to others already", code="too_many_files")


class _Published:
    """One content, as one or several files hold it."""

    def __init__(self, http: ApiClient, sha3: str) -> None:
        self.count = 0
        self._sources: list[_Source] = []
        handlers = {"GetMetadata": self._metadata, "GetChunk": self._chunk}
        self._service = GsbService(http, GFTP + sha3, handlers, shared=True)

    @property
    def held(self) -> int:
        """Files that are held open."""
        return sum(source.held for source in self._sources)

    async def open(self) -> None:
        await self._service.__aenter__()

    async def close(self) -> None:
        await self._service.__aexit__(None, None, None)
        for source in self._sources:
            source.close()

    def add(self, source: _Source, *, hold: bool) -> None:
        """One more that asks for it to be published, with a file that holds it."""
        self.count += 1
        if any(source.same(known) for known in self._sources):
            source.close()
            return
        if not hold:
            source.close()
        self._sources.append(source)

    async def _metadata(self, _payload: Any) -> Any:
        return {"fileSize": number(self._sources[0].size)}

    async def _chunk(self, payload: Any) -> Any:
        asked = payload if isinstance(payload, Mapping) else {}
        offset, size = whole(asked.get("offset")), whole(asked.get("size"))
        if offset is None or size is None or size > _MAX_CHUNK_BYTES:
            raise CannotAnswer(READ_ERROR, "a chunk is asked for by its offset and size")
        return {"offset": number(offset), "content": await _in_thread(lambda: self._read(offset, size))}

    def _read(self, offset: int, size: int) -> bytes:
        reason = ""
        for source in self._sources:
            try:
                return source.read(offset, size)
            except OSError as error:
                reason = reason or f"{source.path}: {error.strerror}"
        raise CannotAnswer(READ_ERROR, reason)


class _Receiving:
    """A file that others may fill."""

    def __init__(self, http: ApiClient, target: _Target) -> None:
        self.file_id = "".join(secrets.choice(_ALPHABET) for _ in range(_RECEIVE_CHARS))
        self._target = target
        handlers = {"UploadChunk": target.chunk, "UploadFinished": target.finished}
        self._service = GsbService(http, GFTP + self.file_id, handlers)

    async def open(self) -> None:
        try:
            await self._service.__aenter__()
        except BaseException:
            self._target.close()
            raise

    async def close(self) -> None:
        await self._service.__aexit__(None, None, None)
        self._target.close()


class _Source:
    """A file, as it was when it was published."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        try:
            self._fd = os.open(
                path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            )  # a pipe without a writer must not hold us up
            with os.fdopen(self._fd, "rb", buffering=0, closefd=False) as file:
                self._facts = _facts(self._fd)
                self.sha3 = _hash(file.read)
            if self._facts != _facts(self._fd):
                raise Unreadable(f"{path} changes while it is read")
        except OSError as error:
            self.close()
            raise Unreadable(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise Unreadable(f"that is no path: {error}") from error
        except BaseException:
            self.close()
            raise
        self.size = self._facts[2]

    @property
    def held(self) -> bool:
        """Whether it is open."""
        return self._fd >= 0

    def same(self, other: _Source) -> bool:
        """Whether it is the very same file, unchanged."""
        return (self.path, self._facts) == (other.path, other._facts)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, offset: int, size: int) -> bytes:
        """Raises ``OSError``, also when the file is not what it was."""
        if self._fd >= 0:
            return self._pread(self._fd, offset, size)
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return self._pread(fd, offset, size)
        finally:
            os.close(fd)

    def _pread(self, fd: int, offset: int, size: int) -> bytes:
        content = os.pread(fd, min(size, max(0, self.size - offset)), offset)
        if _facts(fd) != self._facts:
            raise OSError(0, "it has changed since it was published")
        return content


class _Target:
    """A file that is being received."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._digest = hashlib.sha3_256()
        self._complete = False
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise Unwritable(f"{path} cannot be written: {error.strerror}") from error
        except ValueError as error:
            raise Unwritable(f"that is no path: {error}") from error

    def close(self) -> None:
        os.close(self._fd)

    async def chunk(self, payload: Any) -> None:
        """The next piece, or the first of another attempt."""
        chunk = payload.get("chunk") if isinstance(payload, Mapping) else None
        found = chunk if isinstance(chunk, Mapping) else {}
        offset, content = whole(found.get("offset")), found.get("content")
        if offset is None or not isinstance(content, memoryview):
            raise CannotAnswer(WRITE_ERROR, "a chunk has an offset and content")
        if offset not in {0, self._offset}:
            raise CannotAnswer(WRITE_ERROR, f"the next chunk begins at {self._offset}, not at {offset}")
        try:
            await _in_thread(lambda: self._write(offset, content))
        except OSError as error:
            raise CannotAnswer(WRITE_ERROR, f"{self._path}: {error.strerror}") from error

    def _write(self, offset: int, content: memoryview) -> None:
        if offset == 0:
            self._begin()
        self._digest.update(content)
        while content:
            written = os.pwrite(self._fd, content, self._offset)
            self._offset += written
            content = content[written:]

    def _begin(self) -> None:
        self._offset, self._digest, self._complete = 0, hashlib.sha3_256(), False
        os.ftruncate(self._fd, 0)

    async def finished(self, payload: Any) -> None:
        """That was all. An empty file comes without a chunk."""
        if self._complete:
            self._begin()
        sha3 = payload.get("hash") if isinstance(payload, Mapping) else None
        if sha3 is not None and sha3 != self._digest.hexdigest():
            raise CannotAnswer(INTEGRITY_ERROR, f"{self._offset} bytes arrived, and they are not what was sent")
        self._complete = True


def _facts(fd: int) -> Facts:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _hash(read: Callable[[int], bytes]) -> str:
    digest = hashlib.sha3_256()
    while piece := read(_HASH_BYTES):
        digest.update(piece)
    return digest.hexdigest()


async def _in_thread(work: Callable[[], T]) -> T:
    """Run it in a thread, and to its end: what it uses must not be closed under it."""
    return await finish(asyncio.to_thread(work))
