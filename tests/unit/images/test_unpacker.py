"""The worker processes: they end with their job's owner, and their end is noticed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from shem.runtimes.images.errors import ImageStoreFailed
from shem.runtimes.images.jobs import RemoveJob, UnpackJob
from shem.runtimes.images.unpacker import Unpacker


@pytest.fixture
async def unpacker() -> AsyncIterator[Unpacker]:
    made = Unpacker(workers=1)
    yield made
    await made.close()


def children() -> set[int]:
    found = set[int]()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread of an earlier test may end while we look
            found.update(map(int, (task / "children").read_text().split()))
    return found


def endless(tmp_path: Path) -> UnpackJob:
    """A job that waits for ever: its blob is a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "layer").mkdir()
    return UnpackJob(
        blob=str(tmp_path / "pipe"),
        offset=0,
        size=1,
        digest="",
        diff_id="",
        directory=str(tmp_path / "layer"),
        max_bytes=1,
        max_files=1,
    )


async def at_work(tmp_path: Path) -> None:
    async with asyncio.timeout(10):
        while not (tmp_path / "layer/fs").exists():  # noqa: ASYNC110 (directories do not tell)
            await asyncio.sleep(0.005)


async def test_a_cancelled_job_is_not_done_to_its_end(unpacker: Unpacker, tmp_path: Path) -> None:
    before = children()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(unpacker.run(endless(tmp_path)))
        await at_work(tmp_path)
        assert len(children() - before) == 1
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=5)
        left = children() - before
        for each in left:
            os.kill(each, signal.SIGKILL)  # or this test would never end
    assert done
    assert not left


async def test_a_worker_that_dies_is_noticed_and_replaced(unpacker: Unpacker, tmp_path: Path) -> None:
    before = children()

    async def kill() -> None:
        await at_work(tmp_path)
        os.kill((children() - before).pop(), signal.SIGKILL)

    async with asyncio.TaskGroup() as group:
        group.create_task(kill())
        with pytest.raises(ImageStoreFailed, match="ended by itself"):
            await unpacker.run(endless(tmp_path))
    await unpacker.run(RemoveJob(directory=str(tmp_path / "layer")))
    assert not (tmp_path / "layer").exists()


async def test_workers_have_no_secrets_and_stay_only_while_in_use(unpacker: Unpacker, tmp_path: Path) -> None:
    before = children()
    os.environ["SHEM_TEST_SECRET"] = "secret"
    try:
        async with unpacker.in_use():
            for number in range(3):
                (tmp_path / str(number)).mkdir()
                await unpacker.run(RemoveJob(directory=str(tmp_path / str(number))))
            [worker] = children() - before
            assert b"SHEM_TEST_SECRET" not in Path(f"/proc/{worker}/environ").read_bytes()
    finally:
        del os.environ["SHEM_TEST_SECRET"]
    await unpacker.close()
    assert children() <= before
