"""Restarts, crashes and absences in the middle of a batch: no output is lost, nothing runs twice, nobody hangs."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from shem.client.activity import ActivityApi
from shem.errors import PeerFailed
from shem.node.db import Database
from shem.wire.base import encode
from shem.wire.exeunit import Hello


async def finish(pair: Any, activity_id: str, batch: str) -> list[Any]:
    """Results, patiently: the node may be restarting."""
    async with asyncio.timeout(20):
        while True:
            try:
                found = await pair.rent.results(activity_id, batch, timeout_s=1)
            except PeerFailed:
                await asyncio.sleep(0.02)
                continue
            if found and found[-1].is_batch_finished:
                return list(found)


async def begin(pair: Any, tools: Any) -> tuple[str, Any, str]:
    activity_id, unit = await pair.activity()
    batch = await pair.rent.exec(
        activity_id, [tools.run("echo", "before"), tools.run("wait", "go"), tools.run("count", "500")]
    )
    await tools.until(lambda: (batch, 1) in unit.begun)
    return activity_id, unit, batch


def check(results: list[Any], unit: Any, batch: str) -> None:
    assert [r.result for r in results] == ["Ok"] * 3
    assert results[0].stdout == "before"
    assert results[2].stdout == "".join(f"{n}\n" for n in range(500))
    assert [b for b in unit.begun if b[0] == batch] == [(batch, 0), (batch, 1), (batch, 2)]


@pytest.mark.parametrize("how", ["stop", "crash"])
@pytest.mark.parametrize("who", ["alice", "bob"])
async def test_a_node_restarts_in_the_middle_of_a_batch(pair: Any, tools: Any, who: str, how: str) -> None:
    activity_id, unit, batch = await begin(pair, tools)
    node = getattr(pair, who)
    await getattr(node, how)()
    unit.gate("go").set()  # the unit goes on while the node is away
    await node.start()
    check(await finish(pair, activity_id, batch), unit, batch)
    events = [e async for e in pair.rent.stream(activity_id, batch)]
    text = "".join(e.kind.stdout for e in events if e.index == 2 and e.kind.stdout is not None)
    assert text == "".join(f"{n}\n" for n in range(500))
    again = await pair.rent.exec(activity_id, [tools.run("echo", "after")])
    (result,) = await finish(pair, activity_id, again)
    assert result.stdout == "after"
    await pair.rent.destroy(activity_id, timeout_s=5)


async def test_both_nodes_restart(pair: Any, tools: Any) -> None:
    activity_id, unit, batch = await begin(pair, tools)
    await asyncio.gather(pair.alice.crash(), pair.bob.crash())
    unit.gate("go").set()
    await pair.alice.start()
    pair.bob.bootstraps = [pair.alice.peers.address()]
    await pair.bob.start()
    check(await finish(pair, activity_id, batch), unit, batch)


async def test_the_link_between_the_nodes_breaks(pair: Any, tools: Any) -> None:
    activity_id, unit, batch = await begin(pair, tools)
    unit.gate("go").set()
    for _ in range(5):
        await pair.alice.peers.disconnect(pair.bob.node_id)
        await asyncio.sleep(0)
    check(await finish(pair, activity_id, batch), unit, batch)


async def test_a_batch_waits_for_an_absent_node(pair: Any, tools: Any) -> None:
    activity_id, unit = await pair.activity()
    await pair.bob.stop()
    batch = await pair.rent.exec(activity_id, [tools.run("echo", "patience")])
    await pair.bob.start()
    (result,) = await finish(pair, activity_id, batch)
    assert result.stdout == "patience"
    assert unit.begun[2:] == [(batch, 0)]


async def test_the_requestor_restarts_before_the_batch_is_delivered(pair: Any, tools: Any) -> None:
    activity_id, unit = await pair.activity()
    await pair.bob.stop()
    batch = await pair.rent.exec(activity_id, [tools.run("echo", "kept")])
    await pair.alice.stop()
    await pair.bob.start()
    pair.alice.bootstraps = [pair.bob.peers.address()]
    await pair.alice.start()
    (result,) = await finish(pair, activity_id, batch)
    assert result.stdout == "kept"
    assert unit.begun[2:] == [(batch, 0)]


async def test_the_providers_node_vanishes(pair: Any, tools: Any) -> None:
    activity_id, unit, batch = await begin(pair, tools)
    waiting = pair.rent.results(activity_id, batch, timeout_s=30)
    stream = pair.rent.stream(activity_id, batch)
    await pair.bob.stop()
    with pytest.raises(PeerFailed) as caught:
        await waiting
    assert caught.value.code == "activity_unresponsive"
    with pytest.raises(PeerFailed) as caught:
        async for _ in stream:
            pass
    assert caught.value.code == "activity_unresponsive"
    assert (await pair.rent.state(activity_id)).state == ("Unresponsive", None)
    with pytest.raises(PeerFailed):
        await pair.rent.exec(activity_id, [tools.run("echo", "x")])
    assert (activity_id, "Unresponsive") in pair.alice.changes
    unit.gate("go").set()
    await pair.bob.start()  # and comes back: everything goes on
    check(await finish(pair, activity_id, batch), unit, batch)
    assert (await pair.rent.state(activity_id)).state == ("Ready", None)


async def test_an_agent_that_hangs_up_while_it_creates(pair: Any, tools: Any) -> None:
    agreement = pair.agree()
    pair.provider.paused = True
    async with pair.alice.http() as http, asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(ActivityApi(http).create(agreement, timeout_s=30))
        await tools.until(lambda: pair.bob.activities.of_agreement(agreement))
        asking.cancel()
    (activity_id,) = await pair.rent.of_agreement(agreement)
    await tools.until(lambda: pair.bob.activities.activity(activity_id).state == "Terminated")
    await tools.until(lambda: pair.alice.activities.activity(activity_id).state == "Terminated")


async def test_destroying_at_a_vanished_node(pair: Any, tools: Any) -> None:
    activity_id, _, batch = await begin(pair, tools)
    await tools.until(lambda: pair.rent.results(activity_id, batch, timeout_s=0))
    await pair.bob.stop()
    await pair.rent.destroy(activity_id, timeout_s=10)
    assert (await pair.rent.state(activity_id)).state[0] == "Terminated"
    results = await pair.rent.results(activity_id, batch, timeout_s=5)
    assert [r.result for r in results] == ["Ok", "Error"]
    assert results[1].message.startswith("activity_terminated")
    assert results[1].is_batch_finished
    events = [e async for e in pair.rent.stream(activity_id, batch)]
    assert events[-1].kind.finished.return_code == 1
    await pair.bob.start()
    await tools.until(lambda: pair.bob.activities.activity(activity_id).state == "Terminated")


async def test_the_unit_dies(pair: Any, tools: Any) -> None:
    activity_id, _, batch = await begin(pair, tools)
    waiting = pair.rent.results(activity_id, batch, timeout_s=30)
    await pair.provider.kill(activity_id)
    with pytest.raises(PeerFailed) as caught:
        await waiting
    assert caught.value.code == "activity_unresponsive"
    await tools.until(lambda: pair.alice.activities.activity(activity_id).state == "Terminated")
    results = await pair.rent.results(activity_id, batch, timeout_s=5)
    assert results[-1].result == "Error"
    assert "the exe unit is gone" in results[-1].message
    await pair.rent.destroy(activity_id, timeout_s=5)


async def test_a_new_unit_never_runs_what_the_old_one_had(pair: Any, tools: Any) -> None:
    activity_id, _, batch = await begin(pair, tools)
    queued = await pair.rent.exec(activity_id, [tools.run("echo", "handed too")])
    await pair.provider.kill(activity_id)
    fresh = pair.provider.unit(activity_id)
    results = await finish(pair, activity_id, batch)
    assert [r.result for r in results] == ["Ok", "Error"]
    assert results[1].message.startswith("unit_lost")
    assert (await finish(pair, activity_id, queued))[0].message.startswith("unit_lost")
    await tools.until(lambda: pair.alice.activities.activity(activity_id).state == "Initialized")
    batch = await pair.rent.exec(activity_id, [{"deploy": {}}, {"start": {}}, tools.run("echo", "new")])
    assert (await finish(pair, activity_id, batch))[-1].stdout == "new"
    assert {b for b, _ in fresh.begun} == {batch}


async def test_a_unit_comes_back_in_time(pair: Any, tools: Any) -> None:
    activity_id, unit, batch = await begin(pair, tools)
    session = pair.bob.activities.hosting._sessions[activity_id]
    session.close()  # the node hangs up
    unit.gate("go").set()
    check(await finish(pair, activity_id, batch), unit, batch)
    assert "Unresponsive" not in [state for a, state in pair.bob.changes if a == activity_id]


async def test_a_unit_that_talks_nonsense_harms_only_itself(pair: Any, tools: Any) -> None:
    activity_id, _ = await pair.activity()
    other, _ = await pair.activity()
    hello = encode(Hello(unit_id="x", state="Ready")).decode()
    gap = '{"type":"StateChanged","seq":5,"state":"Ready"}'
    bad_state = '{"type":"StateChanged","seq":1,"state":"Flying"}'
    async with pair.bob.http() as http:
        for frames in (["nonsense"], ["{}"], [hello, "[]"], [hello, hello], [hello, gap], [hello, bad_state]):
            async with http.session.ws_connect(http.url(f"/shem-api/v1/exeunit/{activity_id}")) as line:
                for frame in frames:
                    await line.send_str(frame)
                async with asyncio.timeout(5):
                    while (await line.receive()).type is aiohttp.WSMsgType.TEXT:
                        pass
                assert line.close_code == 1008
    batch = await pair.rent.exec(other, [tools.run("echo", "untouched")])
    (result,) = await finish(pair, other, batch)
    assert result.stdout == "untouched"


async def test_a_power_failure_at_the_provider(pair: Any, tools: Any) -> None:
    """Its last commits are lost, so it counts events anew that Alice has already; its news must still get through."""
    activity_id, _, _ = await begin(pair, tools)
    await tools.until(lambda: pair.bob.db.connection.execute("select acked_no = last_no from hosted").fetchone()[0])
    await pair.provider.kill(activity_id)
    await pair.bob.stop()
    database = Database(pair.bob.path)
    database.connection.execute("update hosted set last_no = last_no - 4, acked_no = acked_no - 4")
    database.close()
    await pair.bob.start()
    await tools.until(lambda: pair.alice.activities.activity(activity_id).state == "Terminated")
    assert pair.alice.activities.activity(activity_id).reason == "the exe unit is gone"


async def test_a_flood_while_the_requestor_is_away(pair: Any, tools: Any) -> None:
    activity_id, unit = await pair.activity()
    batch = await pair.rent.exec(activity_id, [tools.run("wait", "go"), tools.run("count", "5000")])
    await tools.until(lambda: (batch, 0) in unit.begun)
    await pair.alice.stop()
    unit.gate("go").set()
    await tools.until(lambda: pair.bob.db.connection.execute("select finished from hosted_batch").fetchall()[-1][0])
    await pair.alice.start()
    results = await finish(pair, activity_id, batch)
    assert results[1].stdout == "".join(f"{n}\n" for n in range(5000))
    await tools.until(lambda: pair.bob.db.connection.execute("select count(*) from hosted_event").fetchone()[0] == 0)
