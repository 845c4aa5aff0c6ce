"""The byte stream to a guest agent, shared by its jobs.

One task reads frames and hands them to jobs. Each job has its own window of unread output, so that a job whose reader is
slow stops its own program and nobody else; an agent that sends more than its window, or anything else that an agent of
ours would not, is cut off at once: every job fails with the reason, and the sandbox is of no use any more.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections import deque

from shem.cogs.tasks import TaskScope
from shem.errors import ShemError
from shem.runtimes.base import GuestBroken
from shem.runtimes.guest import frames

log = logging.getLogger(__name__)

MAX_JOBS = 250
"""The agent takes 256."""
KILL_GRACE_S = 10.0
"""How long a killed job may take to end before we give up on the agent."""

Event = tuple[int, bytes]


class Job:
    """One program or file operation, from our side."""

    def __init__(self, channel: Channel, number: int) -> None:
        self.number = number
        self.killed = False
        self.input_room = frames.STDIN_WINDOW
        self.abandoned = False
        self._channel = channel
        self._events: deque[Event] = deque()
        self._unread = 0  # what the agent has sent and we have not given back as credit
        self._consumed = 0
        self._waiter: asyncio.Future[None] | None = None
        self._room_waiter: asyncio.Future[None] | None = None
        self._error: ShemError | None = None

    async def next(self) -> Event:
        """The next frame of this job. Raises :class:`GuestBroken` when the channel is gone."""
        while not self._events:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._events.popleft()

    def consumed(self, size: int) -> None:
        """The output frame of ``size`` bytes has been dealt with; the agent may send as much again."""
        self._consumed += size + frames.FRAME_COST
        if self._consumed >= frames.OUTPUT_WINDOW // 2:
            self._channel.send(frames.pack_u32(frames.CREDIT, self.number, self._consumed))
            self._unread -= self._consumed
            self._consumed = 0

    async def feed(self, data: bytes) -> None:
        """Send standard input, as fast as the program takes it."""
        view = memoryview(data)
        while view:
            while self.input_room <= 0:
                if self._error is not None:
                    raise self._error
                self._room_waiter = asyncio.get_running_loop().create_future()
                await self._room_waiter
            part = view[: min(self.input_room, 65536)]
            self.input_room -= len(part)
            self._channel.send(frames.pack(frames.STDIN, self.number, bytes(part)))
            await self._channel.drain()
            view = view[len(part) :]

    def feed_eof(self) -> None:
        self._channel.send(frames.pack(frames.STDIN_EOF, self.number))

    def signal(self, number: int) -> None:
        """Send a signal to the program's process group."""
        self._channel.send(frames.pack_signal(self.number, number, tree=False))

    def kill(self) -> None:
        """Kill the program and everything it has started."""
        if self.killed or not self._channel.has(self):
            return
        self.killed = True
        self._channel.send(frames.pack_signal(self.number, signal.SIGKILL, tree=True))
        asyncio.get_running_loop().call_later(self._channel.kill_grace_s, self._look_for_end)

    def abandon(self) -> None:
        """Nobody listens any more: kill, and swallow what still comes."""
        self.abandoned = True
        self.kill()
        for kind, payload in self._events:
            if kind in (frames.OUT, frames.ERR):
                self.consumed(len(payload))
        self._events.clear()

    def _look_for_end(self) -> None:
        if not self._channel.has(self):
            return
        if self._events:  # our own reader is slow, the agent may still be waiting for credit
            asyncio.get_running_loop().call_later(self._channel.kill_grace_s, self._look_for_end)
        else:
            self._channel.fail(GuestBroken("The guest agent did not end a command that it was told to kill"))

    def arrived(self, kind: int, payload: bytes) -> None:
        """Called by the channel."""
        if kind == frames.CREDIT:
            self.input_room += frames.read_u32(payload)
            if self.input_room > frames.STDIN_WINDOW:
                raise GuestBroken("The guest agent confirmed input that it was not sent")
            self._wake(self._room_waiter)
            return
        if kind in (frames.OUT, frames.ERR):
            self._unread += len(payload) + frames.FRAME_COST
            if self._unread > frames.OUTPUT_WINDOW + frames.MAX_ANSWER + frames.FRAME_COST:
                raise GuestBroken("The guest agent sent more than it was allowed to")
            if self.abandoned:
                self.consumed(len(payload))
                return
        if not self.abandoned:
            self._events.append((kind, payload))
            self._wake(self._waiter)

    def broken(self, error: ShemError) -> None:
        """Called by the channel: there will be no more events."""
        self._error = error
        self._wake(self._waiter)
        self._wake(self._room_waiter)

    @staticmethod
    def _wake(waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Channel:
    """Owns the socket to one agent."""

    def __init__(self, kill_grace_s: float = KILL_GRACE_S) -> None:
        self.kill_grace_s = kill_grace_s
        self._jobs: dict[int, Job] = {}
        self._last = 0
        self._error: ShemError | None = None
        self._greeted = asyncio.Event()
        self._gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._scope = TaskScope("guest")
        self._writer: asyncio.StreamWriter | None = None

    async def open(self, sock: socket.socket, hello_timeout_s: float) -> None:
        """Take the socket over and wait for the agent to say hello. Raises :class:`GuestBroken`."""
        try:
            reader, self._writer = await asyncio.open_connection(sock=sock, limit=1 << 18)
        except BaseException:
            sock.close()
            raise
        self._scope.start(self._read(reader), "read")
        try:
            async with asyncio.timeout(hello_timeout_s):
                await self._greeted.wait()
        except TimeoutError:
            self.fail(GuestBroken(f"The guest agent did not say hello within {hello_timeout_s:g} s"))
        except BaseException:
            self.fail(GuestBroken("The sandbox was closed", code="closed"))
            raise
        if self._error is not None:
            await self.close()
            raise self._error

    def begin(self) -> Job:
        """A new job. Raises :class:`GuestBroken` when the channel is gone or full."""
        if self._error is not None:
            raise self._error
        if len(self._jobs) >= MAX_JOBS:
            raise GuestBroken(f"More than {MAX_JOBS} commands at once in one sandbox", code="too_many_commands")
        self._last += 1
        job = Job(self, self._last)
        self._jobs[job.number] = job
        return job

    def has(self, job: Job) -> bool:
        return self._jobs.get(job.number) is job

    def cancel_unsent(self, job: Job) -> None:
        """Forget a job whose request was never sent."""
        self._jobs.pop(job.number, None)

    def send(self, frame: bytes) -> None:
        """Queue a frame; nothing happens when the channel is gone (jobs learn it by their next event)."""
        if self._writer is not None and self._error is None:
            self._writer.write(frame)

    async def drain(self) -> None:
        if self._writer is not None and self._error is None:
            try:
                await self._writer.drain()
            except ConnectionError:
                self.fail(GuestBroken("The guest agent closed its channel"))

    def fail(self, error: ShemError) -> None:
        """Cut the agent off: every job fails with ``error``."""
        if self._error is not None:
            return
        self._error = error
        if self._writer is not None:
            self._writer.transport.abort()
        jobs = list(self._jobs.values())
        self._jobs.clear()
        for job in jobs:
            job.broken(error)
        self._greeted.set()
        self._gone.set_result(error.message)

    async def wait_gone(self) -> str:
        """Resolves with the reason when the channel ends."""
        return await asyncio.shield(self._gone)

    async def close(self) -> None:
        self.fail(GuestBroken("The sandbox was closed", code="closed"))
        await self._scope.close()
        if self._writer is not None:
            try:
                await self._writer.wait_closed()
            except OSError:
                pass

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                length, kind, number = frames.HEADER.unpack(await reader.readexactly(frames.HEADER.size))
                if length > frames.MAX_ANSWER:
                    raise GuestBroken("The guest agent sent a frame that is too long")
                self._arrived(kind, number, await reader.readexactly(length) if length else b"")
        except (asyncio.IncompleteReadError, ConnectionError):
            self.fail(GuestBroken("The guest agent closed its channel: the sandbox has ended"))
        except GuestBroken as error:
            log.warning("cutting a guest agent off: %s", error)
            self.fail(error)

    def _arrived(self, kind: int, number: int, payload: bytes) -> None:
        if self._error is not None:
            return
        if not self._greeted.is_set():
            if kind != frames.HELLO or frames.read_u32(payload) != frames.VERSION:
                raise GuestBroken("The guest agent did not say hello")
            self._greeted.set()
            return
        job = self._jobs.get(number)
        if job is None:
            raise GuestBroken("The guest agent spoke of a command that does not run")
        if kind not in (frames.STARTED, frames.OUT, frames.ERR, frames.CREDIT, frames.EXIT, frames.FAILED):
            raise GuestBroken("The guest agent sent a frame of an unknown type")
        if kind in (frames.EXIT, frames.FAILED):
            del self._jobs[number]
        job.arrived(kind, payload)
