"""Talks to the agent inside a sandbox: runs commands, moves files. The same for every driver.

A command is one job on the :class:`~shem.runtimes.guest.channel.Channel`; so is a file operation, which the agent runs
in a process of its own inside the sandbox: a symbolic link, a device or a race in there can reach nothing that the
sandbox's own programs could not. Everything streams: output waits for the reader, input for the program, and memory is
bounded by the windows of the channel.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec

from shem.runtimes.base import CommandNotStarted, Entry, ExitStatus, GuestBroken, GuestFileError
from shem.runtimes.guest import frames
from shem.runtimes.guest.channel import KILL_GRACE_S, Channel, Job

HELLO_TIMEOUT_S = 20.0
ANSWER_TIMEOUT_S = 120.0
"""How long a file operation may give no sign of life."""
MAX_ENTRIES = 200_000
"""Entries of one :meth:`GuestAgent.walk`."""

T = TypeVar("T")

OnOutput = Callable[[int, bytes], Awaitable[None]]


class GuestAgent:
    """The agent of one sandbox. Made by :meth:`attach`; several tasks may use it at once."""

    def __init__(self, channel: Channel, oom_kills: Callable[[], int]) -> None:
        self._channel = channel
        self._oom_kills = oom_kills

    @classmethod
    async def attach(
        cls,
        sock: socket.socket,
        *,
        oom_kills: Callable[[], int] = lambda: 0,
        hello_timeout_s: float = HELLO_TIMEOUT_S,
        kill_grace_s: float = KILL_GRACE_S,
    ) -> GuestAgent:
        """Take over our end of the socket pair whose other end is the agent's standard input and output.

        ``oom_kills`` counts, from outside, the processes killed for want of memory so far.
        Raises :class:`GuestBroken` when no agent speaks.
        """
        channel = Channel(kill_grace_s)
        await channel.open(sock, hello_timeout_s)
        return cls(channel, oom_kills)

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        stdin: bytes | AsyncIterable[bytes] | None = None,
        on_output: OnOutput | None = None,
        timeout_s: float | None = None,
    ) -> ExitStatus:
        """Run a command to its end.

        ``env`` is the whole environment (``PATH`` and ``HOME`` are added when missing); ``user`` is ``name``, ``uid``,
        either with ``:group``, or empty for root; ``on_output(1 or 2, bytes)`` is awaited for each piece in order, and
        while it waits, so does the program. After ``timeout_s`` everything that the command started is killed and the
        status says ``timed_out``; cancelling the call kills it too.
        Raises :class:`CommandNotStarted` (``details["errno"]``) and :class:`GuestBroken`.
        """
        kills = self._oom_kills()
        pairs = [f"{name}={value}" for name, value in (env or {}).items()]
        async with self._job(argv, pairs, cwd, user, stdin=stdin is not None) as job:
            timer = asyncio.get_running_loop().call_later(timeout_s, job.kill) if timeout_s is not None else None
            try:
                if stdin is None:
                    status = await _collect(job, on_output)
                else:
                    status = await _with_input(job, stdin, _collect(job, on_output))
            finally:
                if timer is not None:
                    timer.cancel()
            oom = status.code != 0 and not job.killed and self._oom_kills() > kills
            return msgspec.structs.replace(status, timed_out=job.killed, oom=oom)

    async def kill(self) -> None:
        """Kill every process of the sandbox but the agent."""
        self._channel.send(frames.pack_signal(0, signal.SIGKILL, tree=True))
        await self._channel.drain()

    async def put_file(self, path: str, chunks: AsyncIterable[bytes] | bytes, mode: int = 0o644) -> None:
        """Write a file (parents are made). An interrupted transfer leaves a shorter file."""
        await self._operate(["put", f"{mode:o}", path], path, stdin=chunks)

    async def get_file(self, path: str) -> AsyncGenerator[bytes, None]:
        """The bytes of a regular file, as fast as the caller takes them; ``contextlib.aclosing`` when leaving early."""
        async with self._job(["get", path], [], "", "", stdin=False, builtin=True) as job:
            head = RecordHead()
            async for data in _answers(job, path):
                if rest := head.strip(data):
                    yield rest

    async def stat(self, path: str) -> Entry:
        """What is there; a final symbolic link is not followed. Raises :class:`GuestFileError` (errno 2: nothing)."""
        entries = frames.RecordReader().feed(await self._operate(["stat", path], path))
        if len(entries) != 1:
            raise GuestBroken("The guest agent gave no answer to a question")
        return entries[0]

    async def walk(self, path: str, limit: int = MAX_ENTRIES) -> list[Entry]:
        """Everything below a directory, parents before children, links not followed; at most ``limit`` entries."""
        reader = frames.RecordReader()
        found: list[Entry] = []
        async with self._job(["walk", path, str(limit)], [], "", "", stdin=False, builtin=True) as job:
            async for data in _answers(job, path):
                found += reader.feed(data)
                if len(found) > limit:
                    raise GuestBroken("The guest agent listed more than it was asked for")
        if reader.rest():
            raise GuestBroken("The guest agent cut a listing short")
        return found

    async def make_dir(self, path: str, mode: int = 0o755) -> None:
        """Make a directory and its parents; one that exists gets the mode."""
        await self._operate(["mkdir", f"{mode:o}", path], path)

    async def symlink(self, target: str, path: str) -> None:
        """Make a symbolic link, replacing another link."""
        await self._operate(["symlink", target, path], path)

    async def remove(self, path: str) -> None:
        """Remove a file or a whole tree; what does not exist is fine."""
        await self._operate(["remove", path], path)

    async def wait_gone(self) -> str:
        """Resolves with a reason when the agent is gone."""
        return await self._channel.wait_gone()

    async def close(self) -> None:
        """Close the channel, which ends the agent."""
        await self._channel.close()

    async def _operate(self, argv: list[str], path: str, stdin: AsyncIterable[bytes] | bytes | None = None) -> bytes:
        async with self._job(argv, [], "", "", stdin=stdin is not None, builtin=True) as job:
            if stdin is None:
                return await _whole(job, path)
            return await _with_input(job, stdin, _whole(job, path, patient=True))

    @asynccontextmanager
    async def _job(
        self, argv: Sequence[str], env: Sequence[str], cwd: str, user: str, *, stdin: bool, builtin: bool = False
    ) -> AsyncIterator[Job]:
        job = self._channel.begin()
        frame = frames.pack_exec(job.number, argv, env, cwd, user, stdin=stdin, builtin=builtin)
        if frame is None or not argv:
            self._channel.cancel_unsent(job)
            raise CommandNotStarted("The command is empty, too long, or holds a NUL", code="bad_command", errno=22)
        self._channel.send(frame)
        try:
            await self._channel.drain()
            yield job
        finally:
            if self._channel.has(job):
                job.abandon()


class RecordHead:
    """Takes the record off the front of a file's bytes."""

    def __init__(self) -> None:
        self._reader: frames.RecordReader | None = frames.RecordReader()

    def strip(self, data: bytes) -> bytes:
        if self._reader is None:
            return data
        if self._reader.take_first(data) is None:
            return b""
        rest = self._reader.rest()
        self._reader = None
        return rest


async def _collect(job: Job, on_output: OnOutput | None) -> ExitStatus:
    while True:
        kind, payload = await job.next()
        if kind in (frames.OUT, frames.ERR):
            if on_output is not None:
                await on_output(1 if kind == frames.OUT else 2, payload)
            job.consumed(len(payload))
        elif kind == frames.EXIT:
            return frames.read_exit(payload)
        elif kind == frames.FAILED:
            raise _not_started(payload)


async def _answers(job: Job, path: str, *, patient: bool = False) -> AsyncIterator[bytes]:
    """Standard output of a file operation; raises its error."""
    errors = b""
    while True:
        async with asyncio.timeout(None if patient else ANSWER_TIMEOUT_S):
            kind, payload = await job.next()
        if kind == frames.OUT:
            yield payload
            job.consumed(len(payload))
        elif kind == frames.ERR:
            errors = (errors + payload)[:4]
            job.consumed(len(payload))
        elif kind == frames.EXIT:
            _raise_for(frames.read_exit(payload), errors, path)
            return
        elif kind == frames.FAILED:
            error, _ = frames.read_failed(payload)
            raise GuestFileError(f"The sandbox cannot work on files now: {os.strerror(error)}", errno=error, path=path)


async def _whole(job: Job, path: str, *, patient: bool = False) -> bytes:
    out = b""
    async for data in _answers(job, path, patient=patient):
        out += data
        if len(out) > frames.MAX_ANSWER:
            raise GuestBroken("The guest agent gave too long an answer")
    return out


def _raise_for(status: ExitStatus, errors: bytes, path: str) -> None:
    if status.code == 0:
        return
    if status.signal or len(errors) != 4:
        raise GuestFileError("The file operation was killed inside the sandbox", errno=0, path=path)
    error = int(struct.unpack("<i", errors)[0])
    raise GuestFileError(f"{path}: {os.strerror(error)}", errno=error, path=path)


def _not_started(payload: bytes) -> CommandNotStarted:
    error, stage = frames.read_failed(payload)
    doing = frames.STAGES.get(stage, "start")
    return CommandNotStarted(f"The sandbox could not {doing}: {os.strerror(error)}", errno=error, stage=doing)


async def _feed(job: Job, source: bytes | AsyncIterable[bytes]) -> None:
    if isinstance(source, bytes):
        await job.feed(source)
    else:
        async for chunk in source:
            await job.feed(chunk)
    job.feed_eof()


async def _with_input(job: Job, source: bytes | AsyncIterable[bytes], work: Coroutine[Any, Any, T]) -> T:
    """Feed a job while ``work`` reads it; the feeding ends with the work, an error of the source ends both."""
    try:
        async with asyncio.TaskGroup() as group:
            feeder = group.create_task(_feed(job, source))
            result = await work
            feeder.cancel()
            return result
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
