"""``kill -9`` of nodes at random moments of a job: after the restart every accepted second is paid once, and nothing is
reserved any more.

Real processes, a real chain, a job of the SDK's. The seeds of a run stand in its test ids; ``SHEM_MONEY_SEEDS=7,20-29`` runs
others.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.conftest import until
from tests.e2e.money_life import CHANNEL, TRANSFER, Blow, Life, Story, World, story
from tests.e2e.money_oracle import read

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


async def test_both_nodes_die_when_the_last_bills_come(world: World) -> None:
    """One life of many, for the suite that runs often."""
    blow = Blow("closing", 0.05, ("requestor", "node"), 0, 0.0)
    told = await world.tell(Story(-1, CHANNEL, (blow,), tasks=4))
    assert len(told.rented) >= 2
    assert not told.broken


@pytest.mark.slow
@pytest.mark.parametrize("seed", _seeds(os.environ.get("SHEM_MONEY_SEEDS", "0-49")))
async def test_every_accepted_second_is_paid_once(world: World, seed: int) -> None:
    told = await world.tell(story(seed))
    print(story(seed), *told.log, sep="\n  ")


@pytest.mark.slow
async def test_money_that_a_node_forgets_is_noticed(world: World) -> None:
    """Control: a provider wakes up with the books of before the job. The tokens are there; its word about them is not."""
    await world.ready()
    provider = world.net.providers[0]
    await world.stop_node(provider)
    before = world.copy_books(provider)
    await world.net.start_node(provider)
    await world.tell(Story(-2, CHANNEL, (), tasks=4))
    assert await world.oracle.problems(world.rented) == []
    await world.put_back(provider, before)
    problems = await world.oracle.problems(world.rented)
    assert any("with nobody" in problem for problem in problems), problems


@pytest.mark.slow
async def test_money_that_is_paid_twice_is_noticed(world: World) -> None:
    """Control: the requestor's node pays, and wakes up with the books of before it did. A transfer knows no better than to
    pay again (a channel would: its sums are the chain's)."""
    await world.ready()
    net, life = world.net, Life(world, Story(-3, TRANSFER, (), tasks=4))
    async with asyncio.TaskGroup() as group:
        group.create_task(life.run())
        await life.signs["running"].wait()
        assert net.chain is not None
        net.chain.kill()
        await life.signs["closing"].wait()
        await until(lambda: _all_accepted(world, life), 60)
        await world.stop_node(net.requestor)
        unpaid = world.copy_books(net.requestor)
        await net.start_chain()
        await net.start_node(net.requestor)
    await world.rest(life.told)
    await world.put_back(net.requestor, unpaid)
    await until(lambda: _paid_too_much(world), 60)


async def _all_accepted(world: World, life: Life) -> bool:
    sums = (await read(world.net.requestor)).sums
    return all(s.invoiced and s.accepted == s.billed for s in (sums[agreement] for agreement in life.told.rented))


async def _paid_too_much(world: World) -> bool:
    problems = await world.oracle.problems(world.rented)
    return any("has got" in problem for problem in problems)
