"""The counters that are billed: never more than was agreed, and never going back."""

from __future__ import annotations

from decimal import Decimal

import pytest

from shem.cogs.clock import ManualClock
from shem.provider.exeunit.meter import Meter
from shem.provider.presets import CPU, DURATION
from shem.runtimes.base import SandboxUsage
from shem.runtimes.guest.client import GuestAgent


class Burner:
    """A sandbox that says how much CPU time it has used."""

    def __init__(self) -> None:
        self.cpu_s = 0.0

    @property
    def guest(self) -> GuestAgent:
        raise AssertionError("nobody asks for it")

    def usage(self) -> SandboxUsage:
        return SandboxUsage(cpu_s=self.cpu_s)

    async def destroy(self) -> None: ...

    async def wait_dead(self) -> str:
        return ""


async def test_cpu_time_beyond_what_was_agreed_is_not_counted() -> None:
    clock, burner = ManualClock(), Burner()
    meter = Meter(clock, (DURATION, CPU), threads=1.5)
    meter.attach(burner)
    before = [0.0, 0.0]
    for burnt in (1.0, 40.0, 40.0, 41.0):
        burner.cpu_s = burnt
        await clock.advance(10)
        now = meter.read()
        assert all(new >= old for new, old in zip(now, before, strict=True))
        assert now[1] == min(burnt, 1.5 * now[0])
        before = now
    meter.stop()
    burner.cpu_s = 1000.0
    await clock.advance(1000)
    assert meter.read() == [40.0, 60.0]


async def test_the_limit_is_never_exceeded_by_rounding() -> None:
    clock, burner = ManualClock(), Burner()
    meter = Meter(clock, (DURATION, CPU), threads=1 / 3)
    meter.attach(burner)
    burner.cpu_s = 100.0
    for _ in range(50):
        await clock.advance(0.0417)
        seconds, cpu = meter.read()
        assert cpu <= seconds / 3


async def test_sandboxes_add_up() -> None:
    clock = ManualClock()
    meter = Meter(clock, (CPU, "golem.usage.unknown"), threads=4)
    await clock.advance(100)
    for _ in range(2):
        burner = Burner()
        meter.attach(burner)
        burner.cpu_s = 2.5
        meter.detach()
    assert meter.read() == [5.0, 0.0]


@pytest.mark.parametrize("seconds", [0.1, 59.9999, 3600.123, 1e6 + 0.7, 3e8 + 0.3])
async def test_counters_are_the_same_number_as_float_and_as_text(seconds: float) -> None:
    clock, burner = ManualClock(), Burner()
    meter = Meter(clock, (DURATION, CPU), threads=64)
    meter.attach(burner)
    burner.cpu_s = seconds * 7
    await clock.advance(seconds)
    for counter, measured in zip(meter.read(), (seconds, seconds * 7), strict=True):
        assert Decimal(counter) == Decimal(repr(counter))
        assert measured - 1 / 64 - 1e-6 < counter <= measured + 1e-6
