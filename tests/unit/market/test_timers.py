from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from shem.cogs.clock import ManualClock
from shem.cogs.tasks import TaskScope
from shem.node.market.timers import Timers


@pytest.fixture
async def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def timers(clock: ManualClock) -> AsyncIterator[Timers]:
    async with TaskScope("test") as tasks:
        yield Timers(clock, tasks)


async def test_in_order_whatever_the_order_of_arming(clock: ManualClock, timers: Timers) -> None:
    fired: list[int] = []
    for seconds in (30, 10, 20, 10):
        timers.at(clock.now() + timedelta(seconds=seconds), (seconds, len(timers)), lambda s=seconds: fired.append(s))
    await clock.advance(9)
    assert fired == []
    await clock.advance(2)
    assert fired == [10, 10]
    await clock.advance(100)
    assert fired == [10, 10, 20, 30]
    assert len(timers) == 0


async def test_replaced_cancelled_and_past(clock: ManualClock, timers: Timers) -> None:
    fired: list[str] = []
    now = clock.now()
    timers.at(now + timedelta(seconds=10), "a", lambda: fired.append("early"))
    timers.at(now + timedelta(seconds=20), "a", lambda: fired.append("late"))
    timers.at(now + timedelta(seconds=15), "b", lambda: fired.append("b"))
    timers.cancel("b")
    timers.cancel("unknown")
    timers.at(now - timedelta(seconds=1), "past", lambda: fired.append("past"))
    await clock.advance(0)
    await clock.advance(12)
    assert fired == ["past"]
    await clock.advance(10)
    assert fired == ["past", "late"]
    timers.at(clock.now() + timedelta(seconds=1), "again", lambda: fired.append("again"))
    await clock.advance(2)
    assert fired[-1] == "again"


async def test_one_that_fails_does_not_stop_the_others(clock: ManualClock, timers: Timers) -> None:
    fired: list[str] = []

    def fail() -> None:
        raise ValueError("oh")

    timers.at(clock.now() + timedelta(seconds=1), "bad", fail)
    timers.at(clock.now() + timedelta(seconds=2), "good", lambda: fired.append("good"))
    await clock.advance(3)
    assert fired == ["good"]


async def test_a_timer_may_arm_another(clock: ManualClock, timers: Timers) -> None:
    fired: list[float] = []
    start = clock.now()

    def again() -> None:
        fired.append((clock.now() - start).total_seconds())
        if len(fired) < 3:
            timers.at(clock.now() + timedelta(seconds=5), "again", again)

    timers.at(clock.now() + timedelta(seconds=5), "again", again)
    await clock.advance(0)
    await clock.advance(60)
    assert fired == [5, 10, 15]


async def test_replacing_for_ever_does_not_pile_up(clock: ManualClock, timers: Timers) -> None:
    for second in range(10_000):
        timers.at(clock.now() + timedelta(seconds=second + 1), "same", lambda: None)
    assert len(timers) == 1
    assert len(timers._heap) < 200
