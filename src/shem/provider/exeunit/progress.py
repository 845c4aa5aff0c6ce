"""How far a deploy or a transfer is, for requestors who ask: the newest numbers, at the pace they asked for.

Two paces: a time (``updateInterval``, as in ``300ms`` or ``1s 500ms``) and an amount (``updateStep``, bytes); with both,
whichever comes first. The last numbers are always reported, and never are there more than twenty reports a second.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from typing import Any, TypeVar

from shem.client.exeunit import ExeUnitLink
from shem.cogs.tasks import TaskScope
from shem.terms.script import ProgressOption
from shem.wire.exeunit import Progress

T = TypeVar("T")

DEFAULT_INTERVAL_S = 0.3
_SHORTEST_S = 0.05
_LONGEST_S = 3600.0
_SPAN = re.compile(
    r"\s*(\d{1,12})\s*(ns|nsec|us|usec|ms|msec|s|sec|seconds?|m|mins?|minutes?|h|hrs?|hours?)(?![a-z])\s*"
)
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class ProgressReports:
    """Of one command. Without an option nothing is reported."""

    def __init__(self, link: ExeUnitLink, batch_id: str, index: int, option: ProgressOption | None) -> None:
        self._link = link
        self._place = (batch_id, index)
        self._wanted = option is not None
        self._interval_s, self._step = _pace(option)
        self._newest: Progress | None = None
        self._reported = 0
        self._changed = asyncio.Event()
        self._step_made = asyncio.Event()

    def fetching(self, done: int, total: int, what: str) -> None:
        """The image store's word; a total of 0 is not known yet."""
        self._note(Progress(step=(0, 1), message=what, progress=(done, total or None), unit="Bytes"))

    def moved(self, done: int, total: int | None) -> None:
        """A transfer's word."""
        self._note(Progress(step=(0, 1), progress=(done, total), unit="Bytes"))

    async def during(self, work: Coroutine[Any, Any, T]) -> T:
        """Report while ``work`` runs."""
        if not self._wanted:
            return await work
        async with TaskScope("progress") as scope:
            scope.start(self._report(), "report")
            result = await work
        if self._newest is not None:
            await self._link.emit(*self._place, self._newest)
        return result

    def _note(self, progress: Progress) -> None:
        self._newest = progress
        self._changed.set()
        if self._step is not None and progress.progress[0] - self._reported >= self._step:
            self._step_made.set()

    async def _report(self) -> None:
        while True:
            await (self._changed if self._interval_s is not None else self._step_made).wait()
            self._changed.clear()
            self._step_made.clear()
            newest, self._newest = self._newest, None
            if newest is not None:
                self._reported = newest.progress[0]
                await self._link.emit(*self._place, newest)
            await asyncio.sleep(_SHORTEST_S)  # a rate, not a wait: whatever comes meanwhile is merged
            await self._until_due()

    async def _until_due(self) -> None:
        """The interval, or less when a step is made before it ends."""
        if self._interval_s is None:
            return
        try:
            async with asyncio.timeout(max(0.0, self._interval_s - _SHORTEST_S)):
                await self._step_made.wait()
        except TimeoutError:
            pass


def _pace(option: ProgressOption | None) -> tuple[float | None, int | None]:
    if option is None:
        return None, None
    step = option.update_step or None
    interval = parse_span(option.update_interval)
    if interval is None and step is None:
        interval = DEFAULT_INTERVAL_S
    return interval, step


def parse_span(text: str | None) -> float | None:
    """``300ms``, ``2s``, ``1m 30s``: seconds, within reason; ``None`` for anything else."""
    seconds, at = 0.0, 0
    while text and at < len(text):
        found = _SPAN.match(text, at)
        if found is None:
            return None
        unit = found[2][:2] if found[2][:2] in _SECONDS else found[2][0]
        seconds, at = seconds + int(found[1]) * _SECONDS[unit], found.end()
    return min(_LONGEST_S, max(_SHORTEST_S, seconds)) if text else None
