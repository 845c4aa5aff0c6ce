"""Many tasks over many machines: who does what next, what is tried again, when to stop.

Each worker rents a machine, takes attempts from the common queue until there are none, and gives it back. An attempt that
fails goes back into the queue, marked with the provider it failed at, and is preferably taken by a worker at another one.
A machine that is lost costs its worker a new one, and its provider is not asked again; the attempt it had does not count
as the task's fault. Items are drawn as they are needed, so a generator may be endless; results wait in a bounded buffer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Sequence, Sized
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from shem.cogs.tasks import TaskScope
from shem.errors import MoneyShort, ShemError
from shem.sdk import events
from shem.sdk.purse import ReserveShort
from shem.sdk.rental import LOST, Rental
from shem.sdk.types import CommandFailed, TaskFailed

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

MAX_LOSSES = 5
"""How often one task may lose its machine before it is given up: it may be what kills them."""
LINGER_S = 5.0
"""How long a machine without work is kept while others still work: a failed task may need it."""
BAD_STREAK = 3
"""So many failures in a row on one machine, and it is given back: it may be what fails them."""


_OURS = frozenset({"task_timed_out", "rental_spent", "node_unreachable"})
"""A machine lost for these reasons is not its provider's fault."""

OpenRental = Callable[[frozenset[str]], AbstractAsyncContextManager[Rental]]
"""Rents a machine, preferably not of the named providers."""


@dataclass
class Attempt(Generic[T]):
    """One task, on its way through the machines."""

    index: int
    item: T
    number: int = 1
    losses: int = 0
    tried: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """A task's end: a result, or the error it was given up with."""

    index: int
    result: R | None = None
    error: BaseException | None = None


class Mapping(Generic[T, R]):
    """One run of ``Golem.map``."""

    def __init__(
        self,
        task: Callable[[Rental, T], Awaitable[R]],
        items: Iterable[T] | AsyncIterable[T],
        *,
        open_rental: OpenRental,
        leave: Callable[[str, str, str, str], None],
        emit: Callable[[events.Event], None],
        workers: int,
        timeout_s: float,
        retries: int,
        ordered: bool,
        broke: Sequence[asyncio.Future[None]],
    ) -> None:
        self._task = task
        self._items = items
        self._open_rental = open_rental
        self._leave = leave
        self._emit = emit
        self._workers = workers
        self._timeout_s = timeout_s
        self._retries = retries
        self._ordered = ordered
        self._broke = broke
        self._window = max(4 * workers, 16)
        self._waiting: deque[Attempt[T]] = deque()
        self._running = 0
        self._drawn = 0
        self._delivered = 0
        self._exhausted = False
        self._at_work: dict[int, str] = {}
        self._ready: deque[Outcome[R]] = deque()
        self._changed = asyncio.Condition()
        self._fatal: BaseException | None = None
        self._open_workers = 0
        self._scope = TaskScope("map")

    async def results(self) -> AsyncGenerator[Outcome[R], None]:
        """Every outcome: as they come, or in the items' order."""
        total = len(self._items) if isinstance(self._items, Sized) else getattr(self._items, "total", None)
        self._emit(events.TasksAdded(total))
        early: dict[int, Outcome[R]] = {}
        turn = 0
        for broke in self._broke:
            broke.add_done_callback(self._on_broke)
        try:
            async with self._scope as scope:
                scope.start(self._draw(), "items")
                self._open_workers = self._workers
                for number in range(self._workers):
                    scope.start(self._work(number), f"worker {number}")
                while (outcome := await self._next()) is not None:
                    if not self._ordered:
                        yield outcome
                        await self._count_delivered()
                        continue
                    early[outcome.index] = outcome
                    while turn in early:
                        yield early.pop(turn)
                        turn += 1
                        await self._count_delivered()
        finally:
            for broke in self._broke:
                broke.remove_done_callback(self._on_broke)

    # -- the consumer's side

    async def _next(self) -> Outcome[R] | None:
        async with self._changed:
            while True:
                if self._ready:
                    return self._ready.popleft()
                if self._fatal is not None:
                    raise self._fatal
                if self._finished:
                    return None
                await self._changed.wait()

    async def _count_delivered(self) -> None:
        async with self._changed:
            self._delivered += 1
            self._changed.notify_all()

    @property
    def _finished(self) -> bool:
        return self._exhausted and not self._waiting and not self._running

    def _on_broke(self, broke: asyncio.Future[None]) -> None:
        if not broke.cancelled() and (error := broke.exception()) is not None:
            self._scope.start(self._stop(error), "broke")

    async def _stop(self, error: BaseException) -> None:
        async with self._changed:
            self._fatal = self._fatal or error
            self._changed.notify_all()

    # -- the source

    async def _draw(self) -> None:
        try:
            if isinstance(self._items, AsyncIterable):
                async for item in self._items:
                    await self._add(item)
            else:
                for item in self._items:
                    await self._add(item)
        except Exception as error:  # noqa: BLE001 - the user's iterator failed: it is the user's to see
            self._fatal = self._fatal or error
        async with self._changed:
            self._exhausted = True
            self._changed.notify_all()

    async def _add(self, item: T) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._drawn - self._delivered < self._window)
            self._waiting.append(Attempt(self._drawn, item))
            self._drawn += 1
            self._changed.notify_all()

    # -- the workers

    async def _work(self, number: int) -> None:
        try:
            while await self._wanted():
                await self._use_one_machine(number)
        except (ShemError, TimeoutError) as error:
            await self._worker_gave_up(error)
        except Exception as error:  # noqa: BLE001 - the user's setup function failed: it is the user's to see
            await self._stop(error)
        finally:
            self._open_workers -= 1

    async def _worker_gave_up(self, error: ShemError | TimeoutError) -> None:
        """No machine for this worker. As long as others have one, or look for one, the work goes on with fewer."""
        async with self._changed:
            broke = isinstance(error, MoneyShort) and not isinstance(error, ReserveShort)
            if broke or self._open_workers <= 1:
                self._fatal = self._fatal or error
            else:
                log.warning("going on with fewer machines: %s", error)
            self._changed.notify_all()

    async def _wanted(self) -> bool:
        """Wait until there is something to rent a machine for; false when there never will be."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._waiting or self._finished or self._fatal)
            return bool(self._waiting) and self._fatal is None

    async def _use_one_machine(self, number: int) -> None:
        """Rent, work, give back."""
        avoid = frozenset.intersection(*(frozenset(a.tried) for a in self._waiting)) if self._waiting else frozenset()
        async with self._open_rental(avoid) as rental:
            self._at_work[number] = rental.provider_id
            try:
                await self._serve(rental)
            finally:
                del self._at_work[number]
                async with self._changed:
                    self._changed.notify_all()

    async def _serve(self, rental: Rental) -> None:
        streak = 0
        while (attempt := await self._take(rental.provider_id)) is not None:
            try:
                ok = await self._attempt(rental, attempt)
            except _MachineLost as lost:
                if lost.code not in _OURS:
                    self._leave(rental.provider_id, rental.provider_name, lost.code, lost.reason)
                return
            streak = 0 if ok else streak + 1
            if streak >= BAD_STREAK:
                self._leave(
                    rental.provider_id, rental.provider_name, "bad_streak", f"{streak} tasks in a row failed there"
                )
                return

    async def _take(self, provider_id: str) -> Attempt[T] | None:
        """The next attempt for a machine of this provider; ``None`` when it should be given back."""
        try:
            async with asyncio.timeout(None) as patience, self._changed:
                while True:
                    if self._fatal is not None or self._finished:
                        return None
                    attempt = self._choose(provider_id)
                    if attempt is not None:
                        self._running += 1
                        return attempt
                    if self._exhausted and patience.when() is None:
                        patience.reschedule(asyncio.get_running_loop().time() + LINGER_S)
                    await self._changed.wait()
        except TimeoutError:
            return None

    def _choose(self, provider_id: str) -> Attempt[T] | None:
        for place, attempt in enumerate(self._waiting):
            if provider_id not in attempt.tried:
                del self._waiting[place]
                return attempt
        # All that waits has failed here before. Another provider's machine at work will take it; without one, try again.
        if self._waiting and not any(p not in self._waiting[0].tried for p in self._at_work.values()):
            return self._waiting.popleft()
        return None

    async def _attempt(self, rental: Rental, attempt: Attempt[T]) -> bool:
        self._emit(
            events.TaskStarted(attempt.index, attempt.number, rental.number, rental.provider_id, rental.provider_name)
        )
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                result = await self._task(rental, attempt.item)
        except asyncio.CancelledError:
            await self._put_back(attempt)
            raise
        except TimeoutError as error:
            if not limit.expired():
                await self._failed(rental, attempt, error)  # the task's own
                return False
            failure: BaseException = TaskFailed(
                f"task {attempt.index} took longer than {self._timeout_s:g} s",
                code="task_timed_out",
                hint="raise timeout=, or give each task less to do",
            )
            failure.__cause__ = error
            await self._failed(rental, attempt, failure)
            # the machine is still busy with it
            raise _MachineLost("task_timed_out", "a task did not end in time") from error
        except CommandFailed as error:
            await self._failed(rental, attempt, error)
            return False
        except LOST as error:
            await self._lost(rental, attempt, error)
            raise _MachineLost(error.code, error.message) from error
        except Exception as error:  # noqa: BLE001 - the user's function failed: tried elsewhere, then theirs to see
            await self._failed(rental, attempt, error)
            return False
        self._emit(events.TaskFinished(attempt.index, rental.number, rental.provider_id, time.monotonic() - begun))
        await self._end(Outcome(attempt.index, result=result))
        return True

    async def _failed(self, rental: Rental, attempt: Attempt[T], error: BaseException) -> None:
        retried = attempt.number <= self._retries
        code = error.code if isinstance(error, ShemError) else type(error).__name__
        text = error.message if isinstance(error, ShemError) else f"{type(error).__name__}: {error}"
        self._emit(
            events.TaskFailed(attempt.index, attempt.number, rental.number, rental.provider_id, code, text, retried)
        )
        if not retried:
            await self._end(Outcome(attempt.index, error=error))
            return
        attempt.number += 1
        attempt.tried.add(rental.provider_id)
        await self._put_back(attempt)

    async def _lost(self, rental: Rental, attempt: Attempt[T], error: ShemError) -> None:
        attempt.losses += 1
        retried = attempt.losses < MAX_LOSSES
        self._emit(
            events.TaskFailed(
                attempt.index, attempt.number, rental.number, rental.provider_id, error.code, error.message, retried
            )
        )
        if not retried:
            await self._end(Outcome(attempt.index, error=error))
            return
        attempt.tried.add(rental.provider_id)
        await self._put_back(attempt)

    async def _put_back(self, attempt: Attempt[T]) -> None:
        async with self._changed:
            self._running -= 1
            self._waiting.appendleft(attempt)
            self._changed.notify_all()

    async def _end(self, outcome: Outcome[R]) -> None:
        async with self._changed:
            self._running -= 1
            self._ready.append(outcome)
            self._changed.notify_all()


class _MachineLost(Exception):
    """The machine cannot be used any more."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
