"""Things that happen at a time: one task sleeps until the nearest of them.

Keyed, so that a later time can replace an earlier one. Times are wall-clock times of the service's clock.
"""

from __future__ import annotations

import heapq
import itertools
import logging
from asyncio import Task
from collections.abc import Callable, Hashable
from datetime import datetime

from shem.cogs.clock import Clock
from shem.cogs.tasks import TaskScope

log = logging.getLogger(__name__)


class Timers:
    """Callbacks at times. A callback that raises is logged; the others go on."""

    def __init__(self, clock: Clock, tasks: TaskScope) -> None:
        self._clock = clock
        self._tasks = tasks
        self._heap: list[tuple[datetime, int, Hashable]] = []
        self._armed: dict[Hashable, tuple[datetime, int, Callable[[], None]]] = {}
        self._order = itertools.count()
        self._sleeper: Task[None] | None = None
        self._wakes_at: datetime | None = None

    def at(self, when: datetime, key: Hashable, callback: Callable[[], None]) -> None:
        """Call back at ``when`` (at the next turn of the loop if that is past). Replaces what ``key`` stood for."""
        number = next(self._order)
        self._armed[key] = (when, number, callback)
        heapq.heappush(self._heap, (when, number, key))
        if len(self._heap) > 64 + 4 * len(self._armed):
            self._heap = [(w, n, k) for k, (w, n, _) in self._armed.items()]  # replaced ones had piled up
            heapq.heapify(self._heap)
        if self._wakes_at is None or when < self._wakes_at:
            self._sleep_until(when)

    def cancel(self, key: Hashable) -> None:
        """Forget; nothing happens when it was not armed."""
        self._armed.pop(key, None)

    def __len__(self) -> int:
        return len(self._armed)

    def _sleep_until(self, when: datetime) -> None:
        if self._sleeper is not None:
            self._sleeper.cancel()
        self._wakes_at = when
        self._sleeper = self._tasks.start(self._run(), "timers")

    async def _run(self) -> None:
        while self._heap:
            when, number, key = self._heap[0]
            armed = self._armed.get(key)
            if armed is None or armed[1] != number:
                heapq.heappop(self._heap)
                continue
            left = (when - self._clock.now()).total_seconds()
            if left > 0:
                self._wakes_at = when
                await self._clock.sleep(left)
                continue
            heapq.heappop(self._heap)
            del self._armed[key]
            try:
                armed[2]()
            except Exception:  # a door: what one deal's end stumbles over must not keep the others from ending
                log.exception("the timer %r failed", key)
        self._wakes_at = None
        self._sleeper = None
