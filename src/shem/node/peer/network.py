"""All peers of a node, by node id: call a method there, open a bulk stream there, answer theirs.

A call to a node without a link dials it, by the address book: records learnt in hellos, passed on by peers, and, when
those are missing or do not work, asked for. The parts: :mod:`~shem.node.peer.door` makes links out of connections,
:mod:`~shem.node.peer.link` is the conversation with one peer, :mod:`~shem.node.peer.gossip` knows where nodes are,
:mod:`~shem.node.peer.bootstrap` keeps us connected at all.

A handler runs as a task of the link it serves: it is cancelled when its caller gives up, or the link ends.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType

import msgspec

from shem.cogs.clock import Clock, SystemClock
from shem.cogs.tasks import TaskScope
from shem.errors import KeyLocked, NotFound, PeerFailed, ShemError
from shem.node.peer.addresses import format_bootstrap, parse_bootstrap
from shem.node.peer.bootstrap import Bootstraps
from shem.node.peer.bulk import BulkStream, StreamBroken, read_opening, send_opening
from shem.node.peer.door import Door
from shem.node.peer.frames import Kind, Splitter, pack
from shem.node.peer.gossip import FIND, Gossip
from shem.node.peer.hello import Hello, Met
from shem.node.peer.limits import ENVELOPE, PeerLimits
from shem.node.peer.link import Handler, Link, Route, Switchboard
from shem.node.peer.links import Links
from shem.node.peer.records import Credentials, Record, SignedRecord, sign_record
from shem.node.peer.remote_errors import PeerUnreachable, pack_error
from shem.node.peer.transport import CloseCode, Connection, Stream, Transport, TransportFactory
from shem.terms.ids import NodeId

log = logging.getLogger(__name__)

StreamHandler = Callable[[NodeId, bytes, BulkStream], Awaitable[None]]


class PeerNetwork:
    """An async context manager: inside it the node is reachable.

    ``credentials`` is the node's :class:`~shem.node.identity.keys.Identity`; ``transport`` makes the transport:
    ``iroh_transport("0.0.0.0:0")`` or the ``transport`` of a :class:`~shem.node.peer.loopback.Loopback`.
    Handlers and callbacks are best registered before entering.
    """

    def __init__(
        self,
        credentials: Credentials,
        transport: TransportFactory,
        *,
        clock: Clock | None = None,
        limits: PeerLimits | None = None,
    ) -> None:
        self.node_id: NodeId = credentials.node_id
        self._credentials = credentials
        self._make_transport = transport
        self._clock: Clock = clock or SystemClock()
        self._limits = limits or PeerLimits()
        self._board = Switchboard(self._clock, self._limits)
        self._links = Links()
        self._gossip = Gossip(credentials, self._board, self._links)
        self._board.routes[FIND] = Route(self._gossip.answer_find, 100)
        self._stream_handlers: dict[str, StreamHandler] = {}
        self._connected_callbacks: list[Callable[[NodeId], Awaitable[None]]] = []
        self._disconnected_callbacks: list[Callable[[NodeId], None]] = []
        self._incarnation = secrets.randbits(62)
        self._binding = b""
        self._record: SignedRecord | None = None
        self._recorded: list[str] = []
        self._record_seq = 0
        self._early_bootstraps: list[str] = []
        self._scope: TaskScope | None = None
        self._transport: Transport
        self._door: Door
        self._bootstraps: Bootstraps

    # --- life -------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> PeerNetwork:
        """Start listening. Raises :class:`~shem.errors.Misconfigured` when that is not possible."""
        if self._scope is not None:
            raise RuntimeError("a network is entered once")
        self._transport = await self._make_transport(self._credentials.transport_seed, self._credentials.transport_id)
        self._binding = self._credentials.make_binding(self._clock.now())
        self._scope = TaskScope("peers")
        self._door = Door(self._transport, self._credentials, self._board, self._links, self._our_hello, self._admit)
        self._bootstraps = Bootstraps(
            self._door, self._links, self._clock, self._limits, self._credentials.transport_id
        )
        self._scope.start(self._heartbeats(), "heartbeats")
        self._door.open()
        for address in self._early_bootstraps:
            self._bootstraps.add(address)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say goodbye to all and stop listening."""
        if self._scope is not None:
            await self._bootstraps.close()
            await self._door.close()
            await self._scope.close()
            await self._transport.close()

    # --- answering --------------------------------------------------------------------------------------------------

    def serve(self, method: str, handler: Handler, *, max_request: int = 1 << 20) -> None:
        """Answer ``method`` of any peer: ``await handler(peer's node id, payload)`` gives the answer's payload.

        Errors of our families that it raises reach the caller as they are; anything else as ``internal``.
        """
        if method in self._board.routes:
            raise ValueError(f"{method} is served already")
        self._board.routes[method] = Route(handler, max_request)

    def serve_stream(self, kind: str, handler: StreamHandler) -> None:
        """Serve bulk streams: ``await handler(peer's node id, header, stream)``. The stream is closed afterwards.

        What it wrote counts at the peer only after ``finish``; an error that it raises reaches the peer as in
        :meth:`serve`.
        """
        if kind in self._stream_handlers:
            raise ValueError(f"{kind} is served already")
        self._stream_handlers[kind] = handler

    def on_connected(self, callback: Callable[[NodeId], Awaitable[None]]) -> None:
        """Call for each peer once it is verified, whoever dialled; the callback's task ends with the link."""
        self._connected_callbacks.append(callback)

    def on_disconnected(self, callback: Callable[[NodeId], None]) -> None:
        """Call when a peer's link has ended (before ``on_connected``, when it comes back)."""
        self._disconnected_callbacks.append(callback)

    # --- asking -----------------------------------------------------------------------------------------------------

    async def call(self, node_id: NodeId, method: str, payload: bytes, *, timeout_s: float = 10.0) -> bytes:
        """Ask a peer, dialling it when there is no link.

        Raises :class:`PeerUnreachable` (code ``peer_lost``: it may have acted), :class:`PeerRefused` and its kin
        (``except NotFound`` works), ``TimeoutError``, and :class:`Refused` for a payload above the limit. Never
        repeated by itself.
        """
        link = self._links.get(node_id)
        if link is not None:
            return await link.call(method, payload, timeout_s)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        link = await self._reach(node_id, timeout_s)
        return await link.call(method, payload, deadline - loop.time())

    async def open_stream(
        self, node_id: NodeId, kind: str, header: bytes = b"", *, timeout_s: float = 10.0
    ) -> BulkStream:
        """A bulk stream to a peer's handler of ``kind``. Raises :class:`PeerUnreachable`, ``TimeoutError``.

        Use it as a context manager. That the peer has no such handler shows in the first read, write or finish.
        """
        async with asyncio.timeout(timeout_s):
            link = self._links.get(node_id) or await self._reach(node_id, timeout_s)
            try:
                stream = await link.connection.open_stream()
                await send_opening(stream, kind, header)
            except PeerFailed as error:
                raise PeerUnreachable(error.message, code="peer_lost") from error
            return BulkStream(stream)

    async def _reach(self, node_id: NodeId, timeout_s: float) -> Link:
        if self._scope is None or node_id == self.node_id:
            why = "the network is not up" if self._scope is None else "a node does not call itself"
            raise PeerUnreachable(why)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._find_and_dial(node_id)
        except TimeoutError:
            raise TimeoutError(f"no connection with {node_id} within {timeout_s:g} s") from None

    async def _find_and_dial(self, node_id: NodeId) -> Link:
        book, failure = self._gossip.book, "nobody knows where it is"
        known = book.get(node_id)
        if known is not None:
            try:
                return await self._dial_node(known[0])
            except PeerFailed as error:
                failure = error.message
        await self._gossip.ask(node_id)
        fresh = book.get(node_id)
        if fresh is not None and (known is None or fresh[0].seq > known[0].seq):
            return await self._dial_node(fresh[0])
        if (link := self._links.get(node_id)) is not None:
            return link
        raise PeerUnreachable(f"{node_id} cannot be reached: {failure}")

    async def _dial_node(self, record: Record) -> Link:
        link = await self._door.dial(record.endpoint_id, record.addresses)
        if link.node_id != record.node_id:
            raise PeerUnreachable(f"{record.node_id} cannot be reached: another node answers there")
        return link

    # --- knowing ----------------------------------------------------------------------------------------------------

    def connected(self) -> list[NodeId]:
        """Peers with a live link, the longest connected first."""
        return [link.node_id for link in self._links.live()]

    def known(self) -> int:
        """Nodes in the address book."""
        return len(self._gossip.book)

    @property
    def counters(self) -> Counter[str]:
        """What peers have cost: ``violations``, ``floods``, ``bad_hellos``, ``internal_errors``, …, ``closed_<code>``."""
        return self._board.counters

    def address(self) -> str:
        """``<endpoint id>@ip:port[,ip:port]``, for another node's :meth:`add_bootstrap`."""
        return format_bootstrap(self._credentials.transport_id, self._transport.addresses())

    def add_bootstrap(self, address: str) -> None:
        """Keep a link with that node from now on. Raises :class:`~shem.node.peer.addresses.BadAddress`."""
        if self._scope is None:
            parse_bootstrap(address)
            self._early_bootstraps.append(address)
        else:
            self._bootstraps.add(address)

    def reconnect_now(self) -> None:
        """Dial lost bootstraps at once instead of after their pause."""
        self._bootstraps.nudge()

    def announce(self) -> None:
        """Tell connected peers where we are, where our key could not sign that when they met us."""
        if self._scope is None or self._recorded == self._transport.addresses():
            return
        record = self._our_hello().record
        for link in self._links.live():
            link.send_records(msgspec.msgpack.encode([record]))

    async def disconnect(self, node_id: NodeId) -> None:
        """End the link with a peer, if there is one. A later call dials anew."""
        if (link := self._links.get(node_id)) is not None:
            link.close(CloseCode.LEAVING, "disconnected here")

    # --- links ------------------------------------------------------------------------------------------------------

    def _our_hello(self) -> Hello:
        addresses = self._transport.addresses()
        if self._record is None or addresses != self._recorded:
            self._record = self._new_record(addresses)
        return Hello(self._binding, self._record, self._incarnation, self._limits.max_in_flight)

    def _new_record(self, addresses: list[str]) -> SignedRecord:
        """Signed now; while our key is locked, the last one there was, until it is not locked any more."""
        now_ms = int(self._clock.now().timestamp() * 1000)
        seq = max(now_ms, self._record_seq + 1)
        try:
            record = sign_record(self._credentials, addresses, seq)
        except KeyLocked:
            kept = self._credentials.kept_record()
            if not kept:
                raise
            return msgspec.msgpack.decode(kept, type=SignedRecord)
        self._record_seq, self._recorded = seq, addresses
        self._credentials.keep_record(msgspec.msgpack.encode(record))
        return record

    def _admit(self, met: Met, connection: Connection, control: Stream, beyond: bytes, hello_due: bool) -> Link:
        assert self._scope is not None
        link = Link(
            met.node_id,
            connection,
            control,
            Splitter(self._limits.max_payload + ENVELOPE, beyond),
            self._board,
            incarnation=met.incarnation,
            remote_in_flight=met.max_in_flight,
            first=pack(Kind.HELLO, 0, msgspec.msgpack.encode(self._our_hello())) if hello_due else b"",
        )
        if (old := self._links.add(link)) is not None:
            self._gone(old)
        self._board.counters["connected"] += 1
        self._gossip.met(link, met.record, met.signed)
        self._scope.start(self._run(link), met.node_id)
        for callback in self._connected_callbacks:
            link.scope.start(_call_back(callback, met.node_id), "on_connected")
        return link

    async def _run(self, link: Link) -> None:
        try:
            code, reason = await link.run(self)
            self._board.counters[f"closed_{code.name.lower()}"] += 1
            log.info("the link with %s ended: %s", link.node_id, reason)
        finally:
            if self._links.remove(link):
                self._gone(link)

    def _gone(self, link: Link) -> None:
        self._gossip.gone(link)
        for callback in self._disconnected_callbacks:
            try:
                callback(link.node_id)
            except Exception:  # a door: every service must hear that the peer is gone
                self._board.counters["internal_errors"] += 1
                log.exception("on_disconnected failed for %s", link.node_id)

    async def _heartbeats(self) -> None:
        beat_s, previous = self._limits.beat_s, self._clock.monotonic()
        while True:
            await self._clock.sleep(beat_s)
            now = self._clock.monotonic()
            for link in self._links.live():
                link.beat(late=now - previous > 2 * beat_s)
            self._gossip.refill()
            previous = now

    # --- what links hand on -----------------------------------------------------------------------------------------

    def records_arrived(self, link: Link, body: bytes) -> None:
        """See :class:`~shem.node.peer.link.LinkOwner`."""
        self._gossip.arrived(link, body)

    async def stream_arrived(self, link: Link, stream: Stream) -> None:
        """See :class:`~shem.node.peer.link.LinkOwner`."""
        try:
            async with asyncio.timeout(self._limits.hello_timeout_s):
                kind, header, bulk = await read_opening(stream)
        except (PeerFailed, TimeoutError):
            self._board.counters["bad_streams"] += 1
            await stream.reset(1)
            await stream.stop(1)
            return
        try:
            handler = self._stream_handlers.get(kind)
            if handler is None:
                raise NotFound(f"no streams of kind {kind[:40]!r} here", code="unknown_stream")
            await handler(link.node_id, header, bulk)
            await bulk.close()
        except StreamBroken:
            await bulk.abort()
        except Exception as error:  # the door of bulk streams, as the link has one for calls
            if pack_error(error) is None:
                self._board.counters["internal_errors"] += 1
                log.error("stream %s of %s failed: %r", kind, link.node_id, error, exc_info=error)
            await bulk.fail(error)


async def _call_back(callback: Callable[[NodeId], Awaitable[None]], node_id: NodeId) -> None:
    try:
        await callback(node_id)
    except ShemError as error:  # the peer left again, say; anything else is a fault and the scope reports it
        log.info("on_connected for %s: %s", node_id, error)
