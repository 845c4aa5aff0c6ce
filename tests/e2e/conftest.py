"""One network of real processes for the whole suite, and images made of the machine's own busybox."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from shem.sdk import Golem
from shem.testing.devnet import Devnet
from shem.testing.small_image import make_small_image


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image that every provider can start."""
    return make_small_image(tmp_path_factory.mktemp("images") / "busybox")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def net(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Devnet]:
    """A chain, a requestor node and three providers."""
    async with Devnet(tmp_path_factory.mktemp("devnet"), providers=3) as network:
        yield network


@pytest.fixture
def golem(net: Devnet) -> Golem:
    """A session with the network's requestor; enter it with ``async with``."""
    return session(net)


def session(net: Devnet, **options: object) -> Golem:
    """A session with chosen options."""
    return Golem(api_url=net.requestor.api_url, app_key=net.requestor.app_key, progress=False, **options)  # type: ignore[arg-type]


async def until(condition: object, timeout_s: float = 30.0) -> None:
    """Wait for ``condition()`` (plain or async) to hold, under a deadline."""
    async with asyncio.timeout(timeout_s):
        while True:
            found = condition()  # type: ignore[operator]
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.05)


def processes_of(root: Path) -> list[int]:
    """Live processes whose command line names ``root``."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if str(root).encode() in Path(f"/proc/{entry}/cmdline").read_bytes():
                    found.append(int(entry))
            except OSError:
                continue
    return found
