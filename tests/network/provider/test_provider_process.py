"""The agent as a process: killed without warning, asked to stop, and the node restarted under it."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from shem.client.cover import CoverApi
from shem.client.market import MarketApi
from shem.cogs.process import Child, start_child
from shem.wire.activity import ActivityState
from tests.network.provider.conftest import ChainWorld, World, run, until

PROGRAM = """
import asyncio, json, sys
from pathlib import Path
from shem.provider.agent import run_provider
from shem.provider.config import load_provider_config
import logging
logging.basicConfig(level="INFO")
config = load_provider_config(Path(sys.argv[1]))
asyncio.run(run_provider(config, sys.argv[2], sys.argv[3], lambda facts: print(json.dumps(facts), flush=True)))
"""
SETTINGS = """
name = "bob"
subnet = "test"
drivers = ["bwrap"]
[limits]
cpu_threads = 2
memory_gib = 1
storage_gib = 2
max_agreements = 2
[[presets]]
name = "test"
start = "0.1"
env_per_hour = "3.6"
"""


async def start_agent(world: World) -> Child:
    directory = world.root / "agent"
    directory.mkdir(exist_ok=True)
    (directory / "provider.toml").write_text(SETTINGS)
    relative = os.path.relpath(directory)
    argv = [sys.executable, "-c", PROGRAM, relative, world.bob.url, world.bob.key]
    child, line = await start_child("agent", argv, log_path=world.root / "agent.log")
    assert json.loads(line)["offers"]
    return child


def sleepers() -> list[str]:
    """Command lines of the command that a killed agent leaves in its sandbox."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if "sleep 4242" in text:
                found.append(text)
    return found


async def test_killed_and_started_again(world: World) -> None:
    requestor = world.requestor
    agent = await start_agent(world)
    busy = await (await requestor.rent(world.package)).open()
    idle = await requestor.rent(world.package)
    batch = await requestor.activities.exec(busy.activity_id, [run("/bin/sleep", "4242")])
    await until(lambda: requestor.activities.running(busy.activity_id))

    async def counted() -> bool:
        usage = (await requestor.activities.usage(busy.activity_id)).current_usage
        return bool(usage and usage[0] > 0.9)

    await until(counted)
    agent.kill()
    await agent.wait()

    agent = await start_agent(world)
    try:
        assert await busy.state() == "Terminated"
        state: ActivityState = await requestor.activities.state(busy.activity_id)
        assert state.error_message is not None
        assert "restarted" in state.error_message
        for rental in (busy, idle):
            assert (await requestor.ended(rental.agreement_id))["golem.provider.code"] == "Shutdown"
        assert float((await requestor.invoice(busy.agreement_id)).amount) > 0.1, "what was used is billed"
        assert (await requestor.invoice(idle.agreement_id)).amount == "0"
        assert sleepers() == []
        offers = await MarketApi(world.provider_http).offers()
        kinds = [(o.properties["golem.runtime.name"], o.properties["golem.inf.cpu.threads"]) for o in offers]
        assert len(set(kinds)) == len(kinds), "the offers of the killed agent are withdrawn"
        results = await requestor.activities.results(busy.activity_id, batch, timeout_s=1)
        assert all(result.result == "Error" for result in results)
        again = await (await requestor.rent(world.package)).open()
        assert (await again.shell("echo alive")).stdout == "alive\n"
        await requestor.end(again)
        await requestor.invoice(again.agreement_id)
    finally:
        assert await agent.stop() == 0

    # a third start finds nothing to do: no second invoice for anything
    agent = await start_agent(world)
    assert await agent.stop() == 0
    for rental in (busy, idle, again):
        assert len(await requestor.invoices(rental.agreement_id)) == 1


@pytest.mark.slow
async def test_killed_while_it_is_paid_by_channel(tmp_path: Path) -> None:
    """What was used is billed after the restart, accepted with a voucher, and paid when the channel closes."""
    async with ChainWorld(tmp_path, "channel-devnet-tglm") as world:
        requestor = world.requestor
        agent = await start_agent(world)
        rental = await (await requestor.rent(world.package)).open()
        agent.kill()
        await agent.wait()
        agent = await start_agent(world)
        try:
            assert (await requestor.ended(rental.agreement_id))["golem.provider.code"] == "Shutdown"
            invoice = await requestor.invoice(rental.agreement_id)
            await requestor.accept(invoice)

            async def vouched() -> bool:
                return (await CoverApi(world.provider_http).cover(rental.agreement_id)).accepted == invoice.amount

            await until(vouched)
            await requestor.payment.release_allocation(requestor.allocation)
            await until(lambda: world.paid_to(world.bob.id, invoice.amount), 30)
        finally:
            assert await agent.stop() == 0


async def test_ended_by_the_requestor_while_the_agent_is_away(world: World) -> None:
    requestor = world.requestor
    agent = await start_agent(world)
    rental = await (await requestor.rent(world.package)).open()
    agent.kill()
    await agent.wait()
    await requestor.market.terminate(rental.agreement_id, {"message": "gone"})
    agent = await start_agent(world)
    try:
        assert float((await requestor.invoice(rental.agreement_id)).amount) >= 0.1
        assert await rental.state() == "Terminated"
    finally:
        assert await agent.stop() == 0
    assert len(await requestor.invoices(rental.agreement_id)) == 1


async def test_a_signal_ends_and_bills(world: World) -> None:
    requestor = world.requestor
    agent = await start_agent(world)
    rental = await (await requestor.rent(world.package)).open()
    os.kill(agent.pid, signal.SIGINT)
    assert await agent.wait() == 0
    assert (await requestor.ended(rental.agreement_id))["golem.provider.code"] == "Shutdown"
    assert float((await requestor.invoice(rental.agreement_id)).amount) >= 0.1


async def test_the_node_restarts_under_the_work(world: World) -> None:
    requestor = world.requestor
    async with world.agent() as agent:
        rental = await (await requestor.rent(world.package)).open()
        batch = await requestor.activities.exec(
            rental.activity_id, [run("/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.2; done")]
        )
        await until(lambda: requestor.activities.running(rental.activity_id))
        await world.bob.stop()
        await world.bob.start()
        results = await rental.finish(batch)
        assert results[-1].stdout == "1\n2\n3\n4\n5\n6\n7\n8\n"
        assert (await rental.shell("echo still here")).stdout == "still here\n"
        await requestor.end(rental)
        await requestor.invoice(rental.agreement_id)
        again = await (await requestor.rent(world.package)).open()
        await requestor.end(again)
        assert agent.facts["offers"]
