"""Plain threads and one loop: results, errors, iterators, Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from shem.sdk._facade import Facade, Portal, TaskExited


@pytest.fixture
def portal() -> Iterator[Portal]:
    opened = Portal()
    yield opened
    opened.close()


def test_results_and_errors_cross_over(portal: Portal) -> None:
    async def good() -> int:
        await asyncio.sleep(0)
        return 7

    async def bad() -> int:
        raise KeyError("inside")

    assert portal.call(good) == 7
    with pytest.raises(KeyError, match="inside"):
        portal.call(bad)


def test_an_iterator_left_early_is_closed(portal: Portal) -> None:
    closed = threading.Event()

    async def numbers() -> AsyncIterator[int]:
        try:
            for n in range(100):
                yield n
        finally:
            await asyncio.sleep(0)
            closed.set()

    for n in portal.iterate(numbers()):
        if n == 3:
            break
    assert closed.is_set()


def test_a_plain_function_may_call_back_into_the_loop(portal: Portal) -> None:
    async def inner() -> str:
        return threading.current_thread().name

    async def outer() -> tuple[str, str]:
        return await portal.in_thread(lambda: (threading.current_thread().name, portal.call(inner)))

    worker, loop = portal.call(outer)
    assert worker.startswith("shem-task")
    assert loop == "shem"


PROGRAM = """
import asyncio, signal, os
from shem.sdk._facade import Facade, Portal, TaskExited
portal = Portal()
async def work():
    try:
        print("working", flush=True)
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.05)
        print("cleaned up", flush=True)
async def items():
    yield await work()
try:
    for _ in portal.iterate(items()):
        pass
except KeyboardInterrupt:
    print("interrupted", flush=True)
portal.close()
"""


def test_ctrl_c_waits_until_the_work_has_cleaned_up() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGINT)
    said, complaints = process.communicate(timeout=20)
    assert said == "cleaned up\ninterrupted\n", complaints
    assert process.returncode == 0, complaints


@pytest.mark.parametrize("ending", [SystemExit(3), StopIteration(), KeyboardInterrupt(), GeneratorExit()])
def test_a_function_that_ends_itself_is_an_error_and_nobody_hangs(portal: Portal, ending: BaseException) -> None:
    def task() -> None:
        raise ending

    async def run() -> None:
        await portal.in_thread(task)

    with pytest.raises(TaskExited):
        portal.call(run)
    assert not portal.closed


def test_a_loop_that_ends_frees_whoever_waits() -> None:
    portal = Portal()

    async def end() -> None:
        asyncio.get_running_loop().stop()
        await asyncio.Event().wait()

    with pytest.raises((RuntimeError, asyncio.CancelledError)):
        portal.call(end)
    portal.close()
    with pytest.raises(RuntimeError, match="over"):
        portal.call(end)


def test_an_iterator_left_over_after_the_end_does_no_harm() -> None:
    portal = Portal()

    async def numbers() -> AsyncIterator[int]:
        for n in range(3):
            yield n

    held = portal.iterate(numbers())
    assert next(held) == 0
    portal.close()
    held.close()


def test_items_are_drawn_beside_the_loop(portal: Portal) -> None:
    names: list[str] = []

    def source() -> Iterator[int]:
        for n in range(3):
            names.append(threading.current_thread().name)
            yield n

    async def collect() -> list[int]:
        return [n async for n in Facade(None, portal)._drawn(source())]

    assert portal.call(collect) == [0, 1, 2]
    assert set(names) == {"shem-items"}
