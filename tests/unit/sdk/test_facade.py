"""Plain threads and one loop: results, errors, iterators, Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from shem.sdk._facade import Portal


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
from shem.sdk._facade import Portal
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
