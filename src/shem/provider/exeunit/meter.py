"""The usage counters of one activity, measured from outside the sandbox.

Nobody has agreed to more CPU time than the agreed threads can use in the time that passes. Where a sandbox used more
(nothing limits it there, or only roughly), that is the provider's loss: a counter above it would make a bill that the
requestor must take for a lie.

Counters move in 64ths of a second. Such a number is the same as a binary float and as the text it prints as, so that
a requestor that computes with the one gets the sum of a provider that computes with the other: over a long agreement the
difference would grow beyond what golem-core lets pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from shem.cogs.clock import Clock
from shem.provider.presets import CPU, DURATION
from shem.runtimes.base import Sandbox

_STEPS = 64
"""To the second."""


class Meter:
    """Counts from its making. CPU time of sandboxes that are gone stays counted; counters never go back."""

    def __init__(self, clock: Clock, vector: Sequence[str], *, threads: float) -> None:
        """``threads`` are those that were agreed: CPU time is never more than so many times the time."""
        self._clock = clock
        self._threads = threads
        self._vector = tuple(vector)
        self._began = clock.monotonic()
        self._ended: float | None = None
        self._sandbox: Sandbox | None = None
        self._cpu_before = 0.0
        self._cpu = 0.0

    def attach(self, sandbox: Sandbox) -> None:
        """Count this sandbox's CPU time from now on."""
        self.detach()
        self._sandbox = sandbox

    def detach(self) -> None:
        """The sandbox is going away: keep what it has used. Call it after the last command, before or after destroy."""
        self._read()
        self._cpu_before = self._cpu
        self._sandbox = None

    def stop(self) -> None:
        """The activity has ended: time stands still."""
        self._read()
        if self._ended is None:
            self._ended = self._clock.monotonic()

    def read(self) -> list[float]:
        """The counters now, in the order of the usage vector; ones we do not measure are 0."""
        self._read()
        until = self._clock.monotonic() if self._ended is None else self._ended
        seconds = _in_steps(until - self._began)
        # of two counters that never go back the lesser never does either; rounded down, it stays below the limit
        known = {DURATION: seconds, CPU: _in_steps(min(self._cpu, self._threads * seconds))}
        return [known.get(name, 0.0) for name in self._vector]

    def _read(self) -> None:
        if self._sandbox is not None:
            self._cpu = max(self._cpu, self._cpu_before + self._sandbox.usage().cpu_s)


def _in_steps(seconds: float) -> float:
    return math.floor(seconds * _STEPS) / _STEPS
