"""One verified peer: its connection, and the conversation on its control stream.

Requests of both sides share one long-lived stream as id-tagged frames, because a stream per request costs fifteen times
as much. One task reads (``read`` only, into the splitter's buffer, so nothing is lost whatever is cancelled), one writes
everything that has queued since its last write at once, one accepts bulk streams. Each request runs in a task of its
own and is cancelled when its caller gives up or the link ends.

Limits: the peer may have so many requests in flight (told in the hello; exceeding it closes the link); we keep to its
number, and further callers of ours wait in a bounded line. Pings and pongs overtake what is queued.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from shem.cogs.clock import Clock
from shem.cogs.decoding import DECODE_ERRORS
from shem.cogs.tasks import TaskScope
from shem.errors import NotFound, PeerFailed, Refused
from shem.node.peer.frames import MAX_METHOD_BYTES, Kind, Splitter, Violation, pack, pack_request, unpack_request
from shem.node.peer.limits import MAX_URGENT, PeerLimits
from shem.node.peer.remote_errors import INTERNAL, PeerUnreachable, pack_error, unpack_error
from shem.node.peer.transport import CloseCode, Connection, Stream, TransportLost
from shem.terms.ids import NodeId

log = logging.getLogger(__name__)

READ_BYTES = 128 << 10
WRITE_BYTES = 256 << 10
FAREWELL_S = 0.5

Handler = Callable[[NodeId, bytes], Awaitable[bytes]]


class PeerBusy(PeerFailed):
    """Too many of our own calls wait for this peer."""

    default_code = "peer_busy"


@dataclass(frozen=True, slots=True)
class Route:
    """A method that peers may call."""

    handler: Handler
    max_request: int


@dataclass(slots=True)
class Switchboard:
    """What all links of a node share."""

    clock: Clock
    limits: PeerLimits
    routes: dict[str, Route] = field(default_factory=dict)
    counters: Counter[str] = field(default_factory=Counter)


class LinkOwner(Protocol):
    """Who is told what a link itself does not understand."""

    def records_arrived(self, link: Link, body: bytes) -> None:
        """Gossip. Raises :class:`Violation` for garbage."""

    async def stream_arrived(self, link: Link, stream: Stream) -> None:
        """A bulk stream that the peer opened."""


class Link:
    """The live connection with one node."""

    def __init__(
        self,
        node_id: NodeId,
        connection: Connection,
        control: Stream,
        splitter: Splitter,
        board: Switchboard,
        *,
        incarnation: int,
        remote_in_flight: int,
        first: bytes = b"",
    ) -> None:
        """``first`` is written before anything else (our hello, where the peer's came first)."""
        self.node_id = node_id
        self.connection = connection
        self.incarnation = incarnation
        self.scope = TaskScope(f"peer {node_id[:10]}")
        self._control = control
        self._splitter = splitter
        self._board = board
        self._queue: deque[bytes] = deque()
        self._urgent: deque[bytes] = deque([first] if first else [])
        self._queued_bytes = 0
        self._wake: asyncio.Future[None] | None = None
        self._pending: dict[int, asyncio.Future[bytes]] = {}
        self._next_id = 0
        self._remote_in_flight = remote_in_flight
        self._line: deque[asyncio.Future[None]] = deque()
        self._working: dict[int, asyncio.Task[None]] = {}
        self._tasks_running = 0
        self._undrained: list[asyncio.Future[None]] = []
        self._ended: asyncio.Future[tuple[CloseCode, str]] = asyncio.get_running_loop().create_future()
        self._heard_at = board.clock.monotonic()
        self._pinged_at: float | None = None
        self._alive_waiters: list[asyncio.Future[None]] = []

    # --- life -------------------------------------------------------------------------------------------------------

    @property
    def live(self) -> bool:
        return not self._ended.done()

    def close(self, code: CloseCode, reason: str) -> None:
        """End it; :meth:`run` does the rest. The first reason counts."""
        if not self._ended.done():
            self._ended.set_result((code, reason))

    async def wait_ended(self) -> None:
        """Until :meth:`close`, whoever calls it."""
        await asyncio.shield(self._ended)

    async def run(self, owner: LinkOwner) -> tuple[CloseCode, str]:
        """Serve until the link ends; returns why. Everything of it has ended when this does."""
        try:
            for work, name in ((self._read(owner), "read"), (self._write(), "write"), (self._accept(owner), "accept")):
                self.scope.start(work, name).add_done_callback(self._part_ended)
            return await asyncio.shield(self._ended)
        finally:
            self.close(CloseCode.LEAVING, "leaving")
            code, reason = self._ended.result()
            self.connection.close(code, reason)
            lost = f"the connection with {self.node_id} ended: {reason}"
            for future in self._pending.values():
                if not future.done():
                    future.set_exception(PeerUnreachable(lost, code="peer_lost"))
                    future.exception()  # its caller may be gone
            _wake_all(self._alive_waiters)
            for place in self._line:  # stays in the line: each takes itself out
                if not place.done():
                    place.set_result(None)
            await self.scope.close()

    def _part_ended(self, task: asyncio.Task[None]) -> None:
        self.close(CloseCode.LEAVING, f"{task.get_name()} ended")

    # --- our calls --------------------------------------------------------------------------------------------------

    async def call(self, method: str, payload: bytes, timeout_s: float) -> bytes:
        """Raises :class:`PeerUnreachable`, :class:`PeerRefused` and its kin, :class:`PeerBusy`, ``TimeoutError``."""
        limits, name = self._board.limits, method.encode("ascii")
        if len(payload) > limits.max_payload or not 0 < len(name) <= MAX_METHOD_BYTES:
            raise Refused(f"a request to a peer carries at most {limits.max_payload} bytes", code="too_big")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        if not self._has_room():
            await self._stand_in_line(deadline)
        if not self.live:
            raise PeerUnreachable(f"the connection with {self.node_id} ended", code="peer_lost")
        frame_id = self._next_id = (self._next_id + 1) & 0xFFFFFFFF
        answer: asyncio.Future[bytes] = loop.create_future()
        self._pending[frame_id] = answer
        self._enqueue(pack_request(frame_id, name, payload))
        timer = loop.call_at(deadline, _expire, answer, method, self.node_id, timeout_s)
        try:
            return await answer
        finally:
            timer.cancel()
            if answer.done() and not answer.cancelled():
                answer.exception()  # looked at even when the caller was cancelled in this very moment
            if self._pending.pop(frame_id, None) is not None and self.live:
                self._enqueue(pack(Kind.CANCEL, frame_id))
            self._let_next_in()

    def _has_room(self) -> bool:
        return len(self._pending) < self._remote_in_flight and self._queued_bytes < self._board.limits.max_queued_bytes

    async def _stand_in_line(self, deadline: float) -> None:
        if len(self._line) >= self._board.limits.max_waiting:
            raise PeerBusy(f"{len(self._line)} calls wait for {self.node_id} already", hint="try again later")
        try:
            async with asyncio.timeout_at(deadline):
                while self.live and not self._has_room():
                    await self._take_a_place()
        except TimeoutError:
            raise TimeoutError(f"{self.node_id} had no room for another request in time") from None

    async def _take_a_place(self) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place in self._line:
                self._line.remove(place)
            else:
                self._let_next_in()  # called just now, and not coming
            raise

    def _let_next_in(self) -> None:
        while self._line and self._has_room():
            place = self._line.popleft()
            if not place.done():
                place.set_result(None)
                return

    def send_records(self, body: bytes) -> None:
        """Gossip, if there is room for it: it is not worth a queue."""
        if self._queued_bytes < self._board.limits.max_queued_bytes:
            self._enqueue(pack(Kind.RECORDS, 0, body))

    # --- heartbeat --------------------------------------------------------------------------------------------------

    def beat(self, *, late: bool) -> None:
        """Ask whether the peer lives, or conclude that it does not. Called every ``beat_s``.

        ``late``: we were held up ourselves, and its answer may be waiting unread; it gets the time anew.
        """
        now, limits = self._board.clock.monotonic(), self._board.limits
        if self._pinged_at is not None and late:
            self._pinged_at = now
        elif self._pinged_at is not None:
            waited = now - self._pinged_at
            if waited >= limits.dead_s and now - self._heard_at >= limits.dead_s:
                self.close(CloseCode.DEAD, f"not heard of for {now - self._heard_at:.1f} s")
            elif waited >= limits.stalled_s:
                self.close(CloseCode.DEAD, f"it has not read for {waited:.1f} s")
        else:
            self._ping()

    def _ping(self) -> None:
        if self._pinged_at is None:
            self._pinged_at = self._board.clock.monotonic()
        self._urge(pack(Kind.PING, 0))

    async def answers_within(self, seconds: float) -> bool:
        """Ask now; whether anything is heard in time (real seconds)."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._alive_waiters.append(waiter)
        self._ping()
        try:
            async with asyncio.timeout(seconds):
                await waiter
        except TimeoutError:
            return False
        return self.live

    async def _heard_farewell(self) -> bool:
        """A peer that leaves lets its streams go a moment before its farewell arrives, which the accepting part hears."""
        try:
            async with asyncio.timeout(FAREWELL_S):
                await self.wait_ended()
        except TimeoutError:
            return False
        return True

    # --- reading ----------------------------------------------------------------------------------------------------

    async def _read(self, owner: LinkOwner) -> None:
        try:
            frames = self._splitter.feed(b"")
            while True:
                for kind, frame_id, body in frames:
                    self._take(kind, frame_id, body, owner)
                data = await self._control.read(READ_BYTES)
                if not data:
                    if await self._heard_farewell():
                        return
                    raise Violation("the control stream ended")
                self._heard_at = self._board.clock.monotonic()
                frames = self._splitter.feed(data)
        except Violation as error:
            self._board.counters["violations"] += 1
            self.close(CloseCode.VIOLATION, error.message)
        except PeerFailed as error:
            self._lost(error)

    def _take(self, kind: int, frame_id: int, body: bytes, owner: LinkOwner) -> None:
        if kind in (Kind.ANSWER, Kind.ERROR):
            self._answered(kind, frame_id, body)
        elif kind == Kind.REQUEST:
            self._asked(frame_id, body)
        elif kind == Kind.PING:
            if len(self._urgent) >= MAX_URGENT:
                raise Violation("too many pings")
            self._urge(pack(Kind.PONG, frame_id))
        elif kind == Kind.PONG:
            self._pinged_at = None
            _wake_all(self._alive_waiters)
        elif kind == Kind.CANCEL:
            if (task := self._working.pop(frame_id, None)) is not None:
                task.cancel()
        elif kind == Kind.RECORDS:
            owner.records_arrived(self, body)
        else:
            raise Violation(f"a frame of unknown kind {kind}")

    def _answered(self, kind: int, frame_id: int, body: bytes) -> None:
        answer = self._pending.get(frame_id)
        if answer is None:
            return  # its caller gave up before
        error = None
        if kind == Kind.ERROR:
            try:
                error = unpack_error(body)
            except DECODE_ERRORS:
                raise Violation("an error that cannot be read") from None  # its caller learns that the link ended
            self._board.counters["refused_by_peer"] += 1
        del self._pending[frame_id]
        if answer.done():
            return
        if error is None:
            answer.set_result(body)
        else:
            answer.set_exception(error)

    def _asked(self, frame_id: int, body: bytes) -> None:
        method, payload = unpack_request(body)
        limit = self._board.limits.max_in_flight
        if len(self._working) >= limit:
            self._board.counters["floods"] += 1
            self.close(CloseCode.FLOOD, f"more than {limit} requests at once")
            return
        if frame_id in self._working:
            raise Violation("two requests with one id")
        if self._tasks_running >= 2 * limit:  # cancelled ones leave the first number at once, and this when wound up
            self._board.counters["dropped_requests"] += 1
            return  # its caller sees a timeout
        self._tasks_running += 1
        task = self._working[frame_id] = self.scope.start(self._answer(frame_id, method, payload), method)
        task.add_done_callback(self._handler_ended)

    def _handler_ended(self, _task: asyncio.Task[None]) -> None:
        self._tasks_running -= 1

    async def _answer(self, frame_id: int, method: str, payload: bytes) -> None:
        board, kind = self._board, Kind.ANSWER
        try:
            route = board.routes.get(method)
            if route is None:
                raise NotFound(f"no method {method[:40]!r} here", code="unknown_method")
            if len(payload) > route.max_request:
                raise Refused(f"{method} takes at most {route.max_request} bytes", code="too_big")
            answer = await route.handler(self.node_id, payload)
            if len(answer) > board.limits.max_payload:
                raise ValueError(f"{method} answered with {len(answer)} bytes")
        except Exception as error:  # noqa: BLE001  the door: nothing a peer asks may harm the node
            kind, answer = Kind.ERROR, self._explain(method, error)
        # While the peer does not read its answers, their requests still count as in flight.
        while self._queued_bytes >= board.limits.max_queued_bytes:
            drained: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._undrained.append(drained)
            await drained
        if self._working.pop(frame_id, None) is not None and self.live:
            self._enqueue(pack(kind, frame_id, answer))

    def _explain(self, method: str, error: Exception) -> bytes:
        told = pack_error(error)
        if told is None:
            self._board.counters["internal_errors"] += 1
            log.error("%s for %s failed: %r", method, self.node_id, error, exc_info=error)
            return INTERNAL
        self._board.counters["refused"] += 1
        return told

    # --- writing ----------------------------------------------------------------------------------------------------

    def _enqueue(self, frame: bytes) -> None:
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        self._wake_writer()

    def _urge(self, frame: bytes) -> None:
        self._urgent.append(frame)
        self._wake_writer()

    def _wake_writer(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                if not self._queue and not self._urgent:
                    self._wake = loop.create_future()
                    await self._wake
                    self._wake = None
                await self._control.write(self._next_batch())
                self._let_next_in()
                if self._undrained and self._queued_bytes < self._board.limits.max_queued_bytes:
                    _wake_all(self._undrained)
        except PeerFailed as error:
            self._lost(error)

    def _next_batch(self) -> bytes:
        batch = list(self._urgent)
        self._urgent.clear()
        size = 0
        while self._queue and size < WRITE_BYTES:
            frame = self._queue.popleft()
            size += len(frame)
            batch.append(frame)
        self._queued_bytes -= size
        return b"".join(batch)

    # --- bulk -------------------------------------------------------------------------------------------------------

    async def _accept(self, owner: LinkOwner) -> None:
        try:
            while True:
                stream = await self.connection.accept_stream()
                self.scope.start(owner.stream_arrived(self, stream), "stream")
        except PeerFailed as error:
            self._lost(error)

    def _lost(self, error: PeerFailed) -> None:
        code = error.close_code if isinstance(error, TransportLost) else None
        if code is None:
            self.close(CloseCode.DEAD, error.message)
            return
        known = code in CloseCode.__members__.values()
        self.close(CloseCode.LEAVING, f"closed by the peer ({CloseCode(code).name.lower() if known else code})")


def _wake_all(waiters: list[asyncio.Future[None]]) -> None:
    woken = waiters[:]
    waiters.clear()
    for waiter in woken:
        if not waiter.done():
            waiter.set_result(None)


def _expire(answer: asyncio.Future[bytes], method: str, node_id: NodeId, timeout_s: float) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError(f"{method} at {node_id} took longer than {timeout_s:g} s"))
