"""Files in transit: a bounded spool on this node, read and filled by this node's agents and by peers; and files that programs
of this node hand out or take in themselves (:mod:`~shem.node.files.live`), which pass through and leave nothing here.

A *published* file is named by the sha3-256 of its content; whoever knows that name may read it (``may_read`` can narrow
that to peers with an agreement). An *inbox* has a random name that cannot be guessed and takes one upload from whoever
knows it. Files that nobody touches for a week are dropped.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import msgspec

from shem.cogs.clock import Clock
from shem.cogs.pulse import Pulses
from shem.errors import Conflict, Misconfigured, NotFound
from shem.node.db import Database
from shem.node.files import protocol, store
from shem.node.files.incoming import BrokenContent, Incoming, held_back
from shem.node.files.live import (
    LiveFile,
    LiveFiles,
    LiveTarget,
    NoLiveFiles,
    SpoolTarget,
    Target,
    promised,
)
from shem.node.files.protocol import Bulk, Head
from shem.node.files.spool import SpoolFull, TooLarge, Writer, read_pieces
from shem.terms.ids import NodeId

log = logging.getLogger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes and counts; times in seconds."""

    total_bytes: int = 64 << 30
    file_bytes: int = 16 << 30
    max_inboxes: int = 10_000
    max_served: int = 256
    """Transfers with peers at once."""
    stall_s: float = 60.0
    """A peer that moves nothing for so long is dropped."""
    keep_s: float = 7 * 86400.0
    open_s: float = 10.0


class Peers(Protocol):
    """What this domain needs of the peer network."""

    node_id: NodeId

    def serve_stream(self, kind: str, handler: protocol.StreamHandler) -> None: ...

    async def open_stream(self, node_id: NodeId, kind: str, header: bytes, *, timeout_s: float = 10.0) -> Bulk: ...


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """A complete file of this node."""

    path: Path
    size: int
    sha3: str


class InboxBusy(Conflict):
    """Somebody is filling this inbox, or has filled it."""

    default_code = "inbox_busy"


class Files:
    """The service. ``directory`` is its own; nobody else may write there."""

    def __init__(
        self,
        db: Database,
        peers: Peers,
        directory: Path,
        clock: Clock,
        limits: Limits | None = None,
        *,
        may_read: Callable[[NodeId, str], bool] = lambda _peer, _owner: True,
        live: LiveFiles | None = None,
    ) -> None:
        """``may_read`` says whether a peer may have what that identity of this node publishes."""
        self._db = db
        self._peers = peers
        self._clock = clock
        self._limits = limits or Limits()
        self._may_read = may_read
        self._live = live or NoLiveFiles()
        self._content = directory / "content"
        self._incoming = directory / "incoming"
        self._filling: set[str] = set()
        self._reserved = 0  # bytes being written, not yet in the table
        self._served = 0
        self._arrivals: Pulses[str] = Pulses()  # keyed by inbox
        db.migrate(store.DOMAIN, store.SCRIPTS)
        try:
            for place in (self._content, self._incoming):
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Misconfigured(f"the spool {directory} cannot be used: {error}", code="spool_unusable") from error
        peers.serve_stream(protocol.GET, self._serve_get)
        peers.serve_stream(protocol.PUT, self._serve_put)

    def start(self) -> None:
        """Drop what a crash left half-done, and what nobody wants any more."""
        for stray in self._incoming.iterdir():
            stray.unlink()
        known: set[str] = set()
        with self._db.transaction() as connection:
            for row in store.all_files(connection):
                path = self._content / row["file_id"]
                if row["size"] is None or (path.is_file() and path.stat().st_size == row["size"]):
                    known.add(row["file_id"])
                else:
                    log.warning("file %s is not whole: dropped", row["file_id"])
                    store.forget(connection, row["file_id"])
        for path in self._content.iterdir():
            if path.name not in known:
                path.unlink()
        self._drop_unused()

    def stop(self) -> None:
        """Wake whoever waits."""
        self._arrivals.beat_all()

    def is_own(self, node_id: str) -> bool:
        """Whether files of that node are here."""
        return node_id == self._peers.node_id

    # what agents of this node ask

    async def publish(self, owner: str, chunks: AsyncIterator[bytes]) -> Head:
        """Keep content; its ``sha3`` is its file id. Raises :class:`SpoolFull`, :class:`TooLarge`."""
        async with self._writer() as writer:
            async for chunk in chunks:
                await writer.write(chunk)
            file_id = await writer.digest()
            with self._db.transaction(durable=True) as connection:
                writer.keep(self._content / file_id)
                store.add_published(connection, file_id, owner, writer.size, self._now_us())
            return Head(writer.size, file_id)

    def create_inbox(self, owner: str) -> str:
        """A place that one upload may fill; its id."""
        with self._db.transaction(durable=True) as connection:
            if store.count_inboxes(connection) >= self._limits.max_inboxes:
                raise SpoolFull("there are too many inboxes", hint="delete those that are not needed")
            file_id = secrets.token_hex(24)
            store.add_inbox(connection, file_id, owner, self._now_us())
        return file_id

    async def fill(self, file_id: str, chunks: AsyncIterator[bytes]) -> Head:
        """Fill an inbox of this node. Raises ``NotFound``, :class:`InboxBusy`, :class:`SpoolFull`, :class:`TooLarge`."""
        async with self._filled(file_id, None) as target:
            async for chunk in chunks:
                await target.write(chunk)
            return await target.keep("")

    async def wait_inbox(self, owner: str, file_id: str, timeout_s: float) -> Head | None:
        """What has arrived; ``None`` when nothing has in time. Raises ``NotFound``."""

        def read() -> Head | None:
            row = store.find(self._db.connection, file_id)
            if row is None or row["kind"] != "inbox" or row["owner"] != owner:
                raise _no_file(file_id)
            return None if row["size"] is None else Head(row["size"], row["sha3"])

        return await self._arrivals.wait_for(file_id, read, timeout_s)

    def content(self, file_id: str, peer: NodeId | None = None) -> Content | None:
        """A complete file of this node's spool. Raises ``NotFound`` when it is there and not for this ``peer``."""
        with self._db.transaction() as connection:
            row = store.find(connection, file_id)
            if row is None or row["size"] is None:
                return None
            if peer is not None and not any(self._may_read(peer, owner) for owner in store.owners(connection, row)):
                raise _no_file(file_id)
            store.touch(connection, file_id, self._now_us())
        return Content(path=self._content / file_id, size=row["size"], sha3=row["sha3"])

    def delete(self, owner: str, file_id: str) -> None:
        """Give up one reference, or an inbox. Raises ``NotFound`` when ``owner`` has none."""
        with self._db.transaction(durable=True) as connection:
            held, gone = store.release(connection, file_id, owner)
        if not held:
            raise _no_file(file_id)
        if gone:
            (self._content / file_id).unlink(missing_ok=True)
            self._arrivals.beat(file_id)

    @asynccontextmanager
    async def fetch(
        self, node_id: NodeId, file_id: str, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[tuple[Head, AsyncIterator[bytes]]]:
        """A file of a peer, or of a program of this node: its head, and its content as it comes.

        The last piece is given only when the whole is right, so a reader that got all of it got the right thing (a part of
        a file is checked only where its head has no hash). Raises :class:`BrokenContent`, the peer's refusal, and what a
        program says.
        """
        if self.is_own(node_id):
            live = self._find_live(file_id)
            head = Head(await live.size(), promised(file_id))
            length = _count(head, offset, length)
            sha3 = head.sha3 if length == head.size else ""
            async with aclosing(held_back(live.read(offset, length), length, sha3)) as pieces:
                yield head, pieces
            return
        header = protocol.pack(protocol.Get(file_id, offset, length))
        async with await self._peers.open_stream(
            node_id, protocol.GET, header, timeout_s=self._limits.open_s
        ) as stream:
            async with asyncio.timeout(self._limits.stall_s):
                head, first = await protocol.read_head(stream)
            # Where the id has the form of a hash, it is one.
            if promised(file_id) not in {"", head.sha3}:
                raise BrokenContent("the peer offers other content under this id")
            length = _count(head, offset, length)
            incoming = Incoming(length, head.sha3 if length == head.size else "", trailer=not head.sha3)
            yield head, self._received(stream, first, incoming)

    async def send(self, node_id: NodeId, file_id: str, chunks: AsyncIterator[bytes]) -> Head:
        """Fill a peer's inbox; returns when the peer has it. Raises :class:`BrokenContent` and the peer's refusal."""
        digest, size = hashlib.sha3_256(), 0
        header = protocol.pack(protocol.Put(file_id))
        async with await self._peers.open_stream(
            node_id, protocol.PUT, header, timeout_s=self._limits.open_s
        ) as stream:
            async for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                async with asyncio.timeout(self._limits.stall_s):
                    await stream.write(chunk)
            await stream.write(digest.digest())
            await stream.finish()
            head, _ = await protocol.read_head(stream)
        if head != Head(size, digest.hexdigest()):
            raise BrokenContent("the peer has stored something else")
        return head

    # what peers ask

    async def _serve_get(self, peer: NodeId, header: bytes, stream: Bulk) -> None:
        asked = protocol.unpack(header, protocol.Get)
        content = self.content(asked.file_id, peer)
        with self._serving():
            if content is None:
                await self._serve_live(peer, asked, stream)
                return
            head = Head(content.size, content.sha3)
            await stream.write(protocol.frame(head))
            async for piece in read_pieces(content.path, asked.offset, _count(head, asked.offset, asked.length)):
                async with asyncio.timeout(self._limits.stall_s):
                    await stream.write(piece)
            async with asyncio.timeout(self._limits.stall_s):
                await stream.finish()

    async def _serve_live(self, peer: NodeId, asked: protocol.Get, stream: Bulk) -> None:
        live = self._find_live(asked.file_id, peer)
        head = Head(await live.size(), promised(asked.file_id))
        await stream.write(protocol.frame(head))
        digest = None if head.sha3 else hashlib.sha3_256()
        async with aclosing(live.read(asked.offset, _count(head, asked.offset, asked.length))) as pieces:
            async for piece in pieces:
                if digest is not None:
                    digest.update(piece)
                async with asyncio.timeout(self._limits.stall_s):
                    await stream.write(piece)
        async with asyncio.timeout(self._limits.stall_s):
            if digest is not None:
                await stream.write(digest.digest())
            await stream.finish()

    async def _serve_put(self, peer: NodeId, header: bytes, stream: Bulk) -> None:
        asked = protocol.unpack(header, protocol.Put)
        with self._serving():
            async with self._filled(asked.file_id, peer) as target:
                tail = b""
                while True:
                    async with asyncio.timeout(self._limits.stall_s):
                        piece = await stream.read()
                    if not piece:
                        break
                    piece = tail + piece
                    tail = piece[-protocol.DIGEST_BYTES :]
                    await target.write(piece[: -protocol.DIGEST_BYTES])
                if len(tail) != protocol.DIGEST_BYTES:
                    raise Conflict("the content has no hash behind it", code="broken_content")
                head = await target.keep(tail.hex())
            log.debug("%s has filled inbox %s with %d bytes", peer, asked.file_id, head.size)
            await stream.write(protocol.frame(head))
            await stream.finish()

    # parts

    async def _received(self, stream: Bulk, first: bytes, incoming: Incoming) -> AsyncIterator[bytes]:
        piece = first
        while True:
            if not piece:
                async with asyncio.timeout(self._limits.stall_s):
                    piece = await stream.read()
                if not piece:
                    break
            for ready in incoming.take(piece):
                yield ready
            piece = b""
        if last := incoming.finish():
            yield last

    def _writer(self) -> Writer:
        written = 0

        def reserve(count: int) -> None:
            nonlocal written
            if written + count > self._limits.file_bytes:
                raise TooLarge(f"a file may have at most {self._limits.file_bytes} bytes here")
            if self._used() + count > self._limits.total_bytes:
                self._drop_unused()
                if self._used() + count > self._limits.total_bytes:
                    raise SpoolFull(
                        f"the spool of {self._limits.total_bytes} bytes is full",
                        hint="delete files that are not needed, or raise max_spool_bytes",
                    )
            written += count
            self._reserved += count

        def release(count: int) -> None:
            self._reserved -= count

        return Writer(self._incoming, reserve, release)

    def _used(self) -> int:
        return store.total_bytes(self._db.connection) + self._reserved

    @asynccontextmanager
    async def _filled(self, file_id: str, peer: NodeId | None) -> AsyncIterator[Target]:
        """What this upload fills; ``None`` for an agent of this node."""
        row = store.find(self._db.connection, file_id)
        live = None
        if row is None:
            live = self._find_live(file_id, peer)
        elif row["kind"] != "inbox":
            raise _no_file(file_id)
        if (row is not None and row["size"] is not None) or file_id in self._filling:
            raise InboxBusy("somebody is filling it" if file_id in self._filling else "this inbox has been filled")
        self._filling.add(file_id)
        try:
            if live is not None:
                with closing(live.sink()) as sink:
                    yield LiveTarget(sink, self._limits.file_bytes)
            else:
                async with self._writer() as writer:
                    yield SpoolTarget(writer, lambda writer, sha3: self._keep_inbox(file_id, writer, sha3))
        finally:
            self._filling.discard(file_id)

    def _find_live(self, file_id: str, peer: NodeId | None = None) -> LiveFile:
        """A program's file, for an agent of this node or for a ``peer`` that works for its owner. Raises ``NotFound``."""
        live = self._live.find(file_id)
        if live is None or not (peer is None or self._may_read(peer, live.owner)):
            raise _no_file(file_id)
        return live

    def _keep_inbox(self, file_id: str, writer: Writer, sha3: str) -> Head:
        with self._db.transaction(durable=True) as connection:
            if not store.fill_inbox(connection, file_id, writer.size, sha3, self._now_us()):
                raise _no_file(file_id)
            writer.keep(self._content / file_id)
            self._db.after_commit(lambda: self._arrivals.beat(file_id))
        return Head(writer.size, sha3)

    @contextmanager
    def _serving(self) -> Iterator[None]:
        """Counts a transfer with a peer while it lasts."""
        if self._served >= self._limits.max_served:
            raise Conflict("this node serves as many transfers as it can; try again", code="busy")
        self._served += 1
        try:
            yield
        finally:
            self._served -= 1

    def _drop_unused(self) -> None:
        before_us = self._now_us() - int(self._limits.keep_s * 1e6)
        with self._db.transaction() as connection:
            unused = store.unused_since(connection, before_us)
            for file_id in unused:
                store.forget(connection, file_id)
        for file_id in unused:
            (self._content / file_id).unlink(missing_ok=True)

    def _now_us(self) -> int:
        return (self._clock.now() - _EPOCH) // timedelta(microseconds=1)


def _count(head: Head, offset: int, length: int | None) -> int:
    """How many bytes there are of what was asked for."""
    there = max(0, head.size - offset)
    return there if length is None else min(there, length)


def _no_file(file_id: str) -> NotFound:
    return NotFound(f"there is no file {file_id[:64]!r} here", code="no_file")
