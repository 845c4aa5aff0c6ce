"""``kill -9`` of nodes at random moments of a job: after the restart every accepted second is paid once, and nothing is
reserved any more.

Real processes, a real chain, a job of the SDK's. The seeds of a run stand in its test ids; ``SHEM_MONEY_SEEDS=7,20-29`` runs
others.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.money_life import World, story

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(420)]


def _seeds(text: str) -> list[int]:
    ranges = [part.partition("-") for part in text.split(",")]
    return [seed for first, _, last in ranges for seed in range(int(first), int(last or first) + 1)]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def world(tmp_path_factory: pytest.TempPathFactory, image: Path) -> AsyncIterator[World]:
    """One network for all seeds."""
    world = World(tmp_path_factory.mktemp("money"), image)
    yield world
    await world.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", _seeds(os.environ.get("SHEM_MONEY_SEEDS", "0-49")))
async def test_every_accepted_second_is_paid_once(world: World, seed: int) -> None:
    told = await world.tell(story(seed))
    print(story(seed), *told.log, sep="\n  ")
