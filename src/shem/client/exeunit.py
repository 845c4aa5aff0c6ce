"""The exe unit's line to its node: one WebSocket that is opened again whenever it breaks.

What the unit reports is numbered and kept until the node has stored it, so a restarted node (or a cut line) loses
nothing; what the node sends twice is handed on once. The unit's memory is bounded: :meth:`ExeUnitLink.emit` waits while
too much is unacknowledged, and that wait is the back-pressure on the command's output.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from types import TracebackType

import aiohttp

from shem.client.http import ApiClient
from shem.cogs.tasks import TaskScope
from shem.errors import Refused
from shem.wire.base import encode
from shem.wire.exeunit import (
    MAX_FRAME_BYTES,
    MAX_OUTPUT_PIECE,
    PATH,
    Ack,
    BatchEvent,
    Cancel,
    Destroy,
    EventKind,
    Execute,
    Hello,
    StateChanged,
    Stderr,
    Stdout,
    UsageReport,
    output,
    parse_instruction,
)

log = logging.getLogger(__name__)

_QUEUE = 256
_KNOWN_BATCHES = 1024
_FIRST_RETRY_S = 0.02
_LAST_RETRY_S = 1.0
_HEARTBEAT_S = 10.0
_GONE = {400, 403, 404, 409, 410}
"""Answers to the handshake that no retry will change: the activity is not (or no longer) ours."""


class ExeUnitLink:
    """An async context manager; one per activity. Everything may be called while the line is down."""

    def __init__(
        self, http: ApiClient, activity_id: str, *, unit_id: str = "", state: str = "New", window_bytes: int = 1 << 20
    ) -> None:
        """``unit_id`` names this run of the unit; a random one by default. ``window_bytes`` bounds what is unacked."""
        self._http = http
        self._activity_id = activity_id
        self._unit_id = unit_id or uuid.uuid4().hex
        self._state = state
        self._window = window_bytes
        self._seq = 0
        self._kept: deque[tuple[int, bytes]] = deque()
        self._kept_bytes = 0
        self._unsent: deque[tuple[int, bytes]] = deque()  # not yet written to the line as it is now
        self._usage: bytes | None = None
        self._to_send = asyncio.Event()
        self._acked = asyncio.Condition()
        self._instructions: asyncio.Queue[Execute | Cancel | Destroy] = asyncio.Queue(_QUEUE)
        self._known: deque[str] = deque(maxlen=_KNOWN_BATCHES)
        self._scope = TaskScope(f"exeunit {activity_id[:8]}")
        self.connected = asyncio.Event()
        """Set while the node is on the line."""

    async def __aenter__(self) -> ExeUnitLink:
        self._scope.start(self._keep_connected(), "line")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._scope.close()

    async def instructions(self) -> AsyncIterator[Execute | Cancel | Destroy]:
        """What the node wants, each once. Ends after :class:`Destroy`, which also comes when the node no longer knows
        the activity."""
        while True:
            instruction = await self._instructions.get()
            yield instruction
            if isinstance(instruction, Destroy):
                return

    async def emit(self, batch_id: str, index: int, kind: EventKind) -> None:
        """Report an event of a command; waits while :attr:`window_bytes` are unacknowledged."""
        await self._room()
        self._keep(
            BatchEvent(seq=self._next(), batch_id=batch_id, index=index, event_date=datetime.now(UTC), kind=kind)
        )

    async def emit_output(self, batch_id: str, index: int, kind: type[Stdout] | type[Stderr], content: bytes) -> None:
        """Report output of any size, in pieces."""
        for start in range(0, len(content), MAX_OUTPUT_PIECE):
            await self.emit(batch_id, index, output(kind, content[start : start + MAX_OUTPUT_PIECE]))

    def state(
        self, state: str, *, target: str | None = None, reason: str | None = None, error_message: str | None = None
    ) -> None:
        """Report the activity's state (before the ``Finished`` of the command that led to it)."""
        self._state = state
        self._keep(
            StateChanged(seq=self._next(), state=state, target=target, reason=reason, error_message=error_message)
        )

    def usage(self, usage: Sequence[float]) -> None:
        """Report the counters; only the newest report is sent."""
        self._usage = encode(UsageReport(usage=list(usage), timestamp=datetime.now(UTC).timestamp()))
        self._to_send.set()

    async def drained(self, *, timeout_s: float) -> bool:
        """Wait until the node has stored everything; whether it has."""
        try:
            async with asyncio.timeout(timeout_s), self._acked:
                await self._acked.wait_for(lambda: not self._kept and self._usage is None)
        except TimeoutError:
            return False
        return True

    def _next(self) -> int:
        self._seq += 1
        return self._seq

    def _keep(self, report: BatchEvent | StateChanged) -> None:
        frame = encode(report)
        self._kept.append((report.seq, frame))
        self._unsent.append((report.seq, frame))
        self._kept_bytes += len(frame)
        self._to_send.set()

    async def _room(self) -> None:
        if self._kept_bytes < self._window:
            return
        async with self._acked:
            await self._acked.wait_for(lambda: self._kept_bytes < self._window)

    async def _keep_connected(self) -> None:
        pause = _FIRST_RETRY_S
        path = PATH.format(activity_id=self._activity_id)
        while True:
            try:
                async with self._http.session.ws_connect(
                    self._http.url(path), heartbeat=_HEARTBEAT_S, max_msg_size=MAX_FRAME_BYTES
                ) as line:
                    pause = _FIRST_RETRY_S
                    await self._talk(line)
            except aiohttp.WSServerHandshakeError as error:
                if error.status in _GONE:
                    log.info("the node no longer wants activity %s: status %d", self._activity_id, error.status)
                    await self._instructions.put(Destroy())
                    return
            except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
                log.debug("activity %s: no line to the node: %s", self._activity_id, error)
            finally:
                self.connected.clear()
            await asyncio.sleep(pause)
            pause = min(_LAST_RETRY_S, pause * 2)

    async def _talk(self, line: aiohttp.ClientWebSocketResponse) -> None:
        hello = Hello(unit_id=self._unit_id, state=self._state, batches=list(self._known))
        await line.send_str(encode(hello).decode())
        welcome = await line.receive()
        if welcome.type is not aiohttp.WSMsgType.TEXT:
            return
        try:
            first = parse_instruction(welcome.data)
            if not isinstance(first, Ack):
                raise Refused("the node did not begin with an Ack", code="bad_frame")
            await self._forget(first.seq)
            self._unsent = deque(self._kept)
            self._to_send.set()
            self.connected.set()
            async with asyncio.TaskGroup() as both:
                sender = both.create_task(self._send(line), name="exeunit sender")
                try:
                    await self._listen(line)
                finally:
                    sender.cancel()
        except* Refused as errors:
            log.error("activity %s: the node talks nonsense: %s", self._activity_id, errors.exceptions[0])
        except* (aiohttp.ClientError, ConnectionError):
            log.debug("activity %s: the line broke", self._activity_id)

    async def _listen(self, line: aiohttp.ClientWebSocketResponse) -> None:
        async for message in line:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            instruction = parse_instruction(message.data)
            if isinstance(instruction, Ack):
                await self._forget(instruction.seq)
                continue
            if isinstance(instruction, Execute):
                if instruction.batch_id in self._known:
                    continue
                self._known.append(instruction.batch_id)
            await self._instructions.put(instruction)

    async def _send(self, line: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            while self._unsent:
                _, frame = self._unsent.popleft()
                await line.send_str(frame.decode())
            if self._usage is not None:
                usage, self._usage = self._usage, None
                await line.send_str(usage.decode())
                async with self._acked:
                    self._acked.notify_all()

    async def _forget(self, seq: int) -> None:
        async with self._acked:
            while self._kept and self._kept[0][0] <= seq:
                _, frame = self._kept.popleft()
                self._kept_bytes -= len(frame)
            self._acked.notify_all()
