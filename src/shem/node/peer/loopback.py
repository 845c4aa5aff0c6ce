"""A transport inside one process, for devnets and tests: the same behaviour as QUIC, without sockets.

A :class:`Loopback` is the world in which its endpoints see each other. Streams are bounded pipes (a writer waits while
the reader does not read), a finished half ends clean, a reset one breaks, a closed connection fails everything on it at
both ends with the closer's code. :meth:`Loopback.vanish` is the power cut: the endpoint falls silent and nobody is told.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Sequence

from shem.node.peer.transport import DialFailed, StreamReset, TransportLost

WINDOW_BYTES = 1 << 20
"""How much a stream holds that nobody has read; like QUIC's."""
DEFAULT_STREAMS = 100
BACKLOG = 256
"""Callers that wait to be accepted; more are turned away."""

Failure = Callable[[], Exception]


class _Signal:
    """Wakes everybody who waits, each of whom looks again."""

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    def notify(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter


class _Pipe:
    """One direction of a stream."""

    def __init__(self, on_over: Callable[[], None]) -> None:
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._finished = False
        self._silent = False
        self._failure: Failure | None = None
        self._stopped: Failure | None = None
        self._signal = _Signal()
        self._on_over = on_over

    async def read(self, n: int) -> bytes:
        while True:
            if self._failure is not None:
                raise self._failure()
            if not self._silent:
                if self._chunks:
                    return self._take(n)
                if self._finished:
                    return b""
            await self._signal.wait()

    def _take(self, n: int) -> bytes:
        chunk = self._chunks.popleft()
        if len(chunk) > n:
            self._chunks.appendleft(chunk[n:])
            chunk = chunk[:n]
        self._held -= len(chunk)
        self._signal.notify()
        return chunk

    async def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while True:
            self._check_writable()
            if not rest:
                return
            room = WINDOW_BYTES - self._held
            if room > 0:
                piece, rest = bytes(rest[:room]), rest[room:]
                self._held += len(piece)
                self._chunks.append(piece)
                self._signal.notify()
            else:
                await self._signal.wait()

    def _check_writable(self) -> None:
        failure = self._failure or self._stopped
        if failure is not None:
            raise failure()
        if self._finished:
            raise StreamReset("the stream is closed")

    def finish(self) -> None:
        self._check_writable()
        self._finished = True
        self._settle()

    def reset(self, code: int) -> None:
        if not self._finished:
            self.fail(lambda: StreamReset("the peer broke the stream off", reset_code=code))

    def stop(self, code: int) -> None:
        if self._stopped is None:
            self._stopped = lambda: StreamReset("the peer reads no further", reset_code=code)
            self._settle()

    def fail(self, failure: Failure) -> None:
        if self._failure is None:
            self._failure = failure
            self._chunks.clear()
            self._settle()

    def fall_silent(self) -> None:
        """Nothing arrives any more; the writer fills the window and then waits."""
        self._silent = True

    @property
    def over(self) -> bool:
        return self._finished or self._failure is not None or self._stopped is not None

    def _settle(self) -> None:
        self._signal.notify()
        self._on_over()


class LoopbackStream:
    """One end of a two-way stream."""

    def __init__(
        self, end: LoopbackConnection, incoming: _Pipe, outgoing: _Pipe, on_first: Callable[[], None] | None = None
    ) -> None:
        self._end = end
        self._in = incoming
        self._out = outgoing
        self._on_first = on_first

    async def read(self, n: int) -> bytes:
        try:
            return await self._in.read(n)
        except TransportLost:
            raise await self._end.end() from None

    async def write(self, data: bytes) -> None:
        self._show()
        try:
            await self._out.write(data)
        except TransportLost:
            raise await self._end.end() from None
        await asyncio.sleep(0)  # a write to a network gives others a turn, and so does this

    async def finish(self) -> None:
        self._show()
        try:
            self._out.finish()
        except TransportLost:
            raise await self._end.end() from None

    async def reset(self, code: int) -> None:
        self._out.reset(code)

    async def stop(self, code: int) -> None:
        self._in.stop(code)

    def _show(self) -> None:
        on_first, self._on_first = self._on_first, None
        if on_first is not None:
            on_first()


class LoopbackConnection:
    """One end of a connection; ``twin`` is the other."""

    def __init__(self, remote_id: bytes) -> None:
        self.remote_id = remote_id
        self.twin: LoopbackConnection
        self._limit = DEFAULT_STREAMS
        self._opened: list[tuple[_Pipe, _Pipe]] = []
        self._arrived: deque[LoopbackStream] = deque()
        self._lost: TransportLost | None = None
        self._silent = False
        self._signal = _Signal()

    def limit_streams(self, count: int) -> None:
        self._limit = count
        self.twin._signal.notify()

    async def open_stream(self) -> LoopbackStream:
        while True:
            self._check()
            self._opened = [pair for pair in self._opened if not (pair[0].over and pair[1].over)]
            if len(self._opened) < self.twin._limit:
                break
            await self._signal.wait()
        there, back = _Pipe(self._signal.notify), _Pipe(self._signal.notify)
        self._opened.append((there, back))
        if self._silent:
            there.fall_silent()
            back.fall_silent()
        return LoopbackStream(self, back, there, lambda: self._show(there, back))

    def _show(self, there: _Pipe, back: _Pipe) -> None:
        if not self._silent:
            self.twin._arrived.append(LoopbackStream(self.twin, there, back))
            self.twin._signal.notify()

    async def accept_stream(self) -> LoopbackStream:
        while True:
            self._check()
            if self._arrived:
                return self._arrived.popleft()
            await self._signal.wait()

    def close(self, code: int, reason: str) -> None:
        if self._lost is not None:
            return
        self._finish("the connection is closed", None)
        if not self._silent:
            self.twin._finish("the peer closed the connection", code)

    async def end(self) -> TransportLost:
        """Why the connection ended, as this end sees it; after silence each end learns it by itself."""
        while self._lost is None:
            await self._signal.wait()
        return TransportLost(self._lost.message, close_code=self._lost.close_code)

    def fall_silent(self) -> None:
        """Cut the cable: neither end hears from the other again."""
        for end in (self, self.twin):
            end._silent = True
            for pair in end._opened:
                for pipe in pair:
                    pipe.fall_silent()

    @staticmethod
    def _pipe_lost() -> TransportLost:
        return TransportLost("the connection is closed")

    def _check(self) -> None:
        if self._lost is not None:
            raise TransportLost(self._lost.message, close_code=self._lost.close_code)

    def _finish(self, message: str, code: int | None) -> None:
        if self._lost is not None:
            return
        self._lost = TransportLost(message, close_code=code)
        for pair in [*self._opened, *self.twin._opened]:
            for pipe in pair:
                pipe.fail(self._pipe_lost)
        self._signal.notify()


class LoopbackIncoming:
    """A caller who waits for an answer."""

    def __init__(self, ours: LoopbackConnection) -> None:
        self._ours = ours
        self.answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def handshake(self) -> LoopbackConnection:
        if self.answer.done():
            raise DialFailed("the caller went away")
        self.answer.set_result(True)
        return self._ours

    async def refuse(self) -> None:
        if not self.answer.done():
            self.answer.set_result(False)


class LoopbackTransport:
    """One endpoint of a :class:`Loopback`."""

    def __init__(self, world: Loopback, endpoint_id: bytes, address: str) -> None:
        self._world = world
        self._endpoint_id = endpoint_id
        self.address = address
        self.closed = False
        self._callers: deque[LoopbackIncoming] = deque()
        self._signal = _Signal()
        self._connections: list[LoopbackConnection] = []

    def addresses(self) -> list[str]:
        return [self.address]

    async def accept(self) -> LoopbackIncoming | None:
        while True:
            while self._callers:
                caller = self._callers.popleft()
                if not caller.answer.done():
                    return caller
            if self.closed:
                return None
            await self._signal.wait()

    async def dial(self, endpoint_id: bytes, addresses: Sequence[str], timeout_s: float) -> LoopbackConnection:
        if endpoint_id == self._endpoint_id:
            raise DialFailed("a node does not call itself")
        there = self._world.find(endpoint_id, addresses)
        if there is None or self.closed or len(there._callers) >= BACKLOG:
            raise DialFailed(f"{endpoint_id.hex()[:16]} cannot be reached")
        ours, theirs = LoopbackConnection(endpoint_id), LoopbackConnection(self._endpoint_id)
        ours.twin, theirs.twin = theirs, ours
        caller = LoopbackIncoming(theirs)
        there._callers.append(caller)
        there._signal.notify()
        try:
            async with asyncio.timeout(timeout_s):
                welcome = await caller.answer
        except TimeoutError:
            raise DialFailed(f"{endpoint_id.hex()[:16]} did not answer within {timeout_s:g} s") from None
        finally:
            caller.answer.cancel()
        if not welcome:
            raise DialFailed(f"{endpoint_id.hex()[:16]} refused the connection")
        self._keep(ours)
        there._keep(theirs)
        return ours

    def _keep(self, connection: LoopbackConnection) -> None:
        self._connections = [one for one in self._connections if one._lost is None]
        self._connections.append(connection)

    def fall_silent(self) -> None:
        """See :meth:`Loopback.vanish`."""
        for connection in self._connections:
            connection.fall_silent()

    async def close(self) -> None:
        self.closed = True
        for connection in self._connections:
            connection.close(0, "leaving")
        while self._callers:
            await self._callers.popleft().refuse()
        self._signal.notify()


class Loopback:
    """One world. Pass its :meth:`transport` as the transport factory of every node in it."""

    def __init__(self) -> None:
        self._endpoints: dict[bytes, LoopbackTransport] = {}
        self._ports = itertools.count(1)

    async def transport(self, _seed: bytes, endpoint_id: bytes) -> LoopbackTransport:
        """A new endpoint. Raises :class:`DialFailed` when the id is taken by a living one."""
        old = self._endpoints.get(endpoint_id)
        if old is not None and not old.closed:
            raise DialFailed("an endpoint with this key lives here already")
        port = next(self._ports)
        transport = LoopbackTransport(self, endpoint_id, f"127.0.{port >> 8 & 255}.{port & 255}:1")
        self._endpoints[endpoint_id] = transport
        return transport

    def vanish(self, endpoint_id: bytes) -> None:
        """The endpoint's machine loses power: what was on the way is lost, and its peers are not told."""
        self._endpoints.pop(endpoint_id).fall_silent()

    def find(self, endpoint_id: bytes, addresses: Sequence[str]) -> LoopbackTransport | None:
        """Who listens at one of these addresses under that id."""
        found = self._endpoints.get(endpoint_id)
        return found if found is not None and not found.closed and found.address in addresses else None
