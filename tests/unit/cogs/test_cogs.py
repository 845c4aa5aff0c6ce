"""The small parts: clock, pulses, tasks, processes."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import pytest

from shem.cogs.clock import ManualClock, SystemClock
from shem.cogs.process import ProcessFailed, start_child
from shem.cogs.pulse import Pulses
from shem.cogs.tasks import TaskScope


async def test_a_manual_clock_wakes_sleepers_in_order_and_only_when_due() -> None:
    clock = ManualClock()
    woken: list[float] = []

    async def sleeper(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    async with asyncio.TaskGroup() as group:
        for seconds in (3.0, 1.0, 2.0):
            group.create_task(sleeper(seconds))
        await asyncio.sleep(0)
        start = clock.now()
        await clock.advance(2.5)
        assert woken == [1.0, 2.0]
        await clock.advance(0.5)
    assert woken == [1.0, 2.0, 3.0]
    assert (clock.now() - start).total_seconds() == 3.0


async def test_the_system_clock_is_aware_and_monotonic() -> None:
    clock = SystemClock()
    first = clock.monotonic()
    await clock.sleep(0)
    assert clock.monotonic() >= first
    assert clock.now().tzinfo is not None


async def test_a_beat_wakes_whoever_waits_and_nobody_else() -> None:
    pulses: Pulses[str] = Pulses()
    box: list[int] = []

    async def reader() -> list[int] | None:
        return await pulses.wait_for("a", lambda: list(box) or None, 10)

    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(reader())
        await asyncio.sleep(0)
        pulses.beat("b")
        await asyncio.sleep(0)
        assert not waiting.done()
        box.append(1)
        pulses.beat("a")
    assert waiting.result() == [1]


async def test_a_wait_ends_with_nothing_when_its_time_is_up_and_leaves_nothing_behind() -> None:
    pulses: Pulses[str] = Pulses()
    assert await pulses.wait_for("a", lambda: None, 0.01) is None
    assert not pulses._waiting


async def test_an_error_in_reading_ends_the_wait() -> None:
    pulses: Pulses[str] = Pulses()

    def read() -> None:
        raise KeyError("gone")

    with pytest.raises(KeyError):
        await pulses.wait_for("a", read, 10)
    assert not pulses._waiting


async def test_a_failing_task_is_logged_and_counted_and_its_siblings_go_on(caplog: pytest.LogCaptureFixture) -> None:
    done = asyncio.Event()

    async def fail() -> None:
        raise ValueError("boom")

    async def work() -> None:
        await asyncio.sleep(0)
        done.set()

    async with TaskScope("test") as scope:
        with caplog.at_level(logging.ERROR):
            scope.start(fail(), "fail")
            scope.start(work(), "work")
            await asyncio.wait_for(done.wait(), 5)
        assert scope.failures == 1
    assert "boom" in caplog.text


async def test_leaving_a_scope_cancels_and_awaits_its_tasks() -> None:
    cleaned: list[str] = []

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append("yes")

    async with TaskScope("test") as scope:
        scope.start(stubborn(), "stubborn")
        await asyncio.sleep(0)
    assert cleaned == ["yes"]
    refused = stubborn()
    with pytest.raises(RuntimeError):
        scope.start(refused, "late")


async def test_a_child_says_that_it_is_ready_and_ends_when_told(tmp_path: Path) -> None:
    code = "import signal, sys; sys.stderr.write('log'); sys.stderr.flush(); print('ready', flush=True); signal.pause()"
    child, line = await start_child("child", [sys.executable, "-c", code], log_path=tmp_path / "log")
    assert line == "ready"
    assert child.running
    assert await child.stop() != 0
    assert not child.running
    assert (tmp_path / "log").read_text() == "log"


async def test_a_child_that_fails_shows_its_last_words(tmp_path: Path) -> None:
    code = "import sys; sys.exit('no such luck')"
    with pytest.raises(ProcessFailed, match="no such luck"):
        await start_child("child", [sys.executable, "-c", code], log_path=tmp_path / "log")
