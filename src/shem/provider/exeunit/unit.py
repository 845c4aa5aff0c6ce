"""One activity: takes scripts from the node, runs them in a sandbox, and reports everything that happens.

Batches run one after the other, commands of a batch in order; the first failure ends its batch. Three things may end a
command from outside: the node cancels its batch or destroys the activity, a later script begins with ``terminate``, or
the sandbox dies. Each way the command gets one clear result, and the state that follows is reported in an order that
makes sense to a reader: what a command led to before its result, the end of the activity after the last result.

Usage is measured from outside the sandbox and reported every second and once more at the end.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from shem.client.exeunit import ExeUnitLink
from shem.cogs.clock import Clock
from shem.cogs.tasks import TaskScope
from shem.errors import ShemError
from shem.provider.exeunit.capture import OutputBudget
from shem.provider.exeunit.commands import Commands
from shem.provider.exeunit.failures import CANCELLED, OUT_OF_MEMORY, SANDBOX_DIED, CommandFailed, as_failure
from shem.provider.exeunit.machine import Machine, Place, Tools
from shem.provider.exeunit.meter import Meter
from shem.runtimes.base import GuestBroken, Sandbox, SandboxFailed
from shem.terms.script import Command, Terminate, order_error, parse_commands, state_after
from shem.wire.exeunit import Cancel, Destroy, Execute, Finished, Started

log = logging.getLogger(__name__)

MAX_WAITING = 256
"""Batches that may wait for their turn."""
REPORT_INTERVAL_S = 1.0
_DEATH_NOTICE_S = 2.0
"""A broken guest and the death of its sandbox are seen on two lines: how long to wait for the second, which says why."""
_LAST_RESULT_S = 5.0
_COUNTERS_S = 2.0
_DRAIN_S = 10.0


class UnitPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What one unit is to run, all of it from the agreement."""

    activity_id: str
    place: Place
    usage_vector: tuple[str, ...]


class UnitEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How an activity ended, and its last counters."""

    usage: tuple[float, ...]
    reason: str = ""
    error: str = ""


class ExeUnit:
    """The supervisor of one activity. :meth:`run` is its whole life."""

    def __init__(
        self,
        plan: UnitPlan,
        tools: Tools,
        link: ExeUnitLink,
        clock: Clock,
        *,
        on_usage: Callable[[Sequence[float]], None] = lambda usage: None,
    ) -> None:
        self._plan = plan
        self._link = link
        self._clock = clock
        self._on_usage = on_usage
        self._meter = Meter(clock, plan.usage_vector, threads=plan.place.limits.cpus)
        self._machine = Machine(plan.activity_id, plan.place, tools, self._meter)
        self._commands = Commands(self._machine, tools, link, self._watch)
        self._scope = TaskScope(f"unit {plan.activity_id[:8]}")
        self._state = "New"
        self._waiting: deque[Execute] = deque()
        self._arrived = asyncio.Event()
        self._current: asyncio.Task[None] | None = None
        self._current_id = ""
        self._interruption: CommandFailed | None = None
        self._end: tuple[str, str] | None = None
        self._ended = asyncio.Event()

    def stop(self, reason: str, error: str = "") -> None:
        """End the activity; :meth:`run` returns once everything is away and reported. The first reason stays."""
        if self._end is None:
            self._end = (reason, error)
        self._ended.set()

    async def run(self) -> UnitEnd:
        """Serve the activity to its end. The sandbox is gone when this returns, however it returns."""
        async with self._link:
            try:
                self._enter("Initialized")
                self._scope.start(self._guarded(self._listen()), "instructions")
                self._scope.start(self._guarded(self._work()), "batches")
                self._scope.start(self._guarded(self._report_usage()), "usage")
                await self._ended.wait()
                await self._finish_current()
            finally:
                await self._scope.close()
                await self._machine.dispose()
            return await self._say_goodbye()

    async def _say_goodbye(self) -> UnitEnd:
        self._meter.stop()
        usage = self._meter.read()
        reason, error = self._end or ("", "")
        self._on_usage(usage)
        self._link.usage(usage)
        await self._link.drained(timeout_s=_COUNTERS_S)  # what comes after the end is not taken any more
        self._link.state("Terminated", reason=reason or None, error_message=error or None)
        if not await self._link.drained(timeout_s=_DRAIN_S):
            log.warning("activity %s: the node has not taken the last reports", self._plan.activity_id)
        return UnitEnd(usage=tuple(usage), reason=reason, error=error)

    async def _guarded(self, work: Awaitable[None]) -> None:
        """The supervisor's door: a mistake of ours ends this activity with a word, and no other."""
        try:
            await work
        except Exception as error:
            log.exception("activity %s failed", self._plan.activity_id)
            self.stop("InternalError", f"the exe unit made a mistake: {type(error).__name__}")

    # instructions

    async def _listen(self) -> None:
        async for instruction in self._link.instructions():
            match instruction:
                case Execute():
                    await self._accept(instruction)
                case Cancel(batch_id=batch_id):
                    await self._cancel(batch_id)
                case Destroy():
                    self.stop("Destroyed")
                    return

    async def _accept(self, batch: Execute) -> None:
        if batch.script and set(batch.script[0]) == {"terminate"}:
            why = CommandFailed(CANCELLED, "the activity was told to terminate")
            dropped, self._waiting = list(self._waiting), deque()
            self._interrupt(why)
            for other in dropped:
                await self._link.emit(other.batch_id, 0, _finished(why))
        if len(self._waiting) >= MAX_WAITING:
            why = CommandFailed("too_many_batches", f"{MAX_WAITING} batches wait already")
            await self._link.emit(batch.batch_id, 0, _finished(why))
            return
        self._waiting.append(batch)
        self._arrived.set()

    async def _cancel(self, batch_id: str) -> None:
        self._waiting = deque(batch for batch in self._waiting if batch.batch_id != batch_id)
        if batch_id == self._current_id:
            self._interrupt(None)

    def _interrupt(self, why: CommandFailed | None) -> None:
        """Stop the current batch; its command fails with ``why``, or silently."""
        if self._current is not None and not self._current.done():
            self._interruption = why
            self._current.cancel()

    async def _finish_current(self) -> None:
        self._waiting.clear()
        if self._current is not None:
            if self._interruption is None:  # else it is ending already, and a second blow could cost its last word
                self._interrupt(CommandFailed(CANCELLED, "the activity was destroyed"))
            await asyncio.wait({self._current}, timeout=_LAST_RESULT_S)

    # batches

    async def _work(self) -> None:
        while not self._ended.is_set():
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            batch = self._waiting.popleft()
            self._current_id, self._interruption = batch.batch_id, None
            self._current = self._scope.start(self._guarded(self._run_batch(batch)), "batch")
            await asyncio.wait({self._current})
            self._current_id = ""

    async def _run_batch(self, batch: Execute) -> None:
        index = 0
        try:
            commands = parse_commands(batch.script)
            budget = OutputBudget()
            for index, (command, raw) in enumerate(commands):
                await self._link.emit(batch.batch_id, index, Started(command=raw))
                try:
                    await self._run_command(batch.batch_id, index, command, raw, budget)
                except (GuestBroken, SandboxFailed) as error:
                    raise await self._explain(error) from error  # inside the outer try: it may be interrupted too
                await self._link.emit(batch.batch_id, index, Finished(return_code=0))
        except asyncio.CancelledError:
            if self._interruption is not None:
                await self._link.emit(batch.batch_id, index, _finished(self._interruption))
        except ShemError as error:
            await self._link.emit(batch.batch_id, index, _finished(as_failure(error, "failed")))

    async def _run_command(
        self, batch_id: str, index: int, command: Command, raw: dict[str, Any], budget: OutputBudget
    ) -> None:
        wrong = order_error(self._state, command)
        if wrong is not None:
            raise CommandFailed("", wrong)
        if isinstance(command, Terminate):
            await self._machine.dispose()
        else:
            await self._commands.run(batch_id, index, command, raw, budget)
        self._enter(state_after(self._state, command))

    def _enter(self, state: str) -> None:
        if state != self._state:
            self._state = state
            self._link.state(state)

    # the sandbox's death

    def _watch(self, sandbox: Sandbox) -> None:
        self._scope.start(self._guarded(self._await_death(sandbox)), "sandbox")

    async def _await_death(self, sandbox: Sandbox) -> None:
        reason = await sandbox.wait_dead()
        if self._machine.sandbox is not sandbox:
            return  # taken away by us
        why = self._cause_of_death(sandbox, reason)
        self._interrupt(why)
        self.stop("SandboxDied" if why.code == SANDBOX_DIED else "OutOfMemory", why.line)

    async def _explain(self, error: ShemError) -> CommandFailed:
        sandbox = self._machine.sandbox
        reason = error.message
        if sandbox is not None:
            try:
                async with asyncio.timeout(_DEATH_NOTICE_S):
                    reason = await sandbox.wait_dead()
            except TimeoutError:
                pass
            return self._cause_of_death(sandbox, reason)
        return CommandFailed(SANDBOX_DIED, reason)

    def _cause_of_death(self, sandbox: Sandbox, reason: str) -> CommandFailed:
        if sandbox.usage().oom_kills:
            limit = self._plan.place.limits.memory_bytes >> 20
            return CommandFailed(
                OUT_OF_MEMORY, f"the sandbox used more than {limit} MiB (limit) and was killed: {reason}"
            )
        return CommandFailed(SANDBOX_DIED, f"the sandbox has ended: {reason}")

    # usage

    def report_usage(self) -> None:
        """Read the counters now, for the bill and for the node: both should know the same when a note is sent."""
        usage = self._meter.read()
        self._on_usage(usage)
        self._link.usage(usage)

    async def _report_usage(self) -> None:
        while True:
            self.report_usage()
            await self._clock.sleep(REPORT_INTERVAL_S)


def _finished(failure: CommandFailed) -> Finished:
    return Finished(return_code=failure.return_code, message=failure.line)
