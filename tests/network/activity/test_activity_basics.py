"""One activity from its creation to its end, over the REST API of two nodes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shem.errors import Gone, NotFound, Refused


async def test_a_whole_life(pair: Any, tools: Any) -> None:
    agreement = pair.agree()
    activity_id = await pair.rent.create(agreement, timeout_s=5)
    assert len(activity_id) == 32
    assert (await pair.rent.state(activity_id)).state == ("Initialized", None)
    assert await pair.rent.agreement(activity_id) == agreement
    assert await pair.rent.of_agreement(agreement) == [activity_id]
    batch = await pair.rent.exec(
        activity_id, [{"deploy": {}}, {"start": {}}, tools.run("echo", "hi\n"), tools.run("err", "oh")]
    )
    results = await pair.rent.results(activity_id, batch, timeout_s=5)
    assert [r.index for r in results] == [0, 1, 2, 3]
    assert [r.result for r in results] == ["Ok"] * 4
    assert [r.is_batch_finished for r in results] == [False, False, False, True]
    assert results[0].stdout == '{"valid": true}'
    assert (results[1].stdout, results[1].stderr, results[1].message) == (None, None, None)
    assert (results[2].stdout, results[2].stderr) == ("hi\n", "")
    assert (results[3].stdout, results[3].stderr) == ("", "oh")
    assert (await pair.rent.state(activity_id)).state == ("Ready", None)
    await tools.until(lambda: _usage_is(pair, activity_id, [2.0, 1.0]))
    await pair.rent.destroy(activity_id, timeout_s=5)
    state = await pair.rent.state(activity_id)
    assert state.state == ("Terminated", None)
    assert state.reason == "destroyed"
    assert (await pair.rent.usage(activity_id)).current_usage == [99.0, 9.0]
    assert pair.bob.activities.usage(activity_id) == [99.0, 9.0]
    await pair.rent.destroy(activity_id, timeout_s=5)  # again: no harm
    with pytest.raises(Gone):
        await pair.rent.exec(activity_id, [tools.run("echo", "late")])
    states = [state for a, state in pair.bob.changes if a == activity_id]
    assert states == ["New", "Initialized", "Deployed", "Ready", "Terminated"]
    assert [state for a, state in pair.alice.changes if a == activity_id] == states


async def _usage_is(pair: Any, activity_id: str, expected: list[float]) -> bool:
    return (await pair.rent.usage(activity_id)).current_usage == expected


async def test_both_body_forms(pair: Any) -> None:
    async with pair.alice.http() as http:
        answer = await http.call(
            "POST", "/activity-api/v1/activity", json={"agreementId": pair.agree(), "requestorPubKey": None}
        )
    assert set(answer) == {"activityId"}


async def test_a_failing_command_ends_its_batch(pair: Any, tools: Any) -> None:
    activity_id, unit = await pair.activity()
    batch = await pair.rent.exec(activity_id, [tools.run("exit", "3"), tools.run("echo", "never")])
    (result,) = await pair.rent.results(activity_id, batch, timeout_s=5)
    assert (result.result, result.is_batch_finished) == ("Error", True)
    assert result.message == "ExeScript command exited with code 3"
    assert (batch, 1) not in unit.begun
    later = await pair.rent.exec(activity_id, [tools.run("echo", "next batch")])
    (result,) = await pair.rent.results(activity_id, later, timeout_s=5)
    assert result.stdout == "next batch"


async def test_results_while_it_runs(pair: Any, tools: Any) -> None:
    activity_id, unit = await pair.activity()
    batch = await pair.rent.exec(activity_id, [tools.run("echo", "a"), tools.run("wait", "go"), tools.run("echo", "b")])
    await tools.until(lambda: (batch, 1) in unit.begun)
    partial = await tools.until(lambda: pair.rent.results(activity_id, batch, timeout_s=0))
    assert [r.stdout for r in partial] == ["a"]
    assert not partial[0].is_batch_finished
    assert [r.stdout for r in await pair.rent.results(activity_id, batch, timeout_s=5, command_index=0)] == ["a"]
    with pytest.raises(TimeoutError):
        await pair.rent.results(activity_id, batch, timeout_s=0.05, command_index=1)
    (running,) = await tools.until(lambda: pair.rent.running(activity_id))
    assert (running.command, running.params) == ("Run", ["wait", "go"])
    waiting = asyncio.gather(*(pair.rent.results(activity_id, batch, timeout_s=10) for _ in range(5)))
    unit.gate("go").set()
    for results in await waiting:
        assert [r.stdout for r in results] == ["a", "", "b"]
    assert await pair.rent.running(activity_id) == []
    assert [r.index for r in await pair.rent.results(activity_id, batch, timeout_s=5, max_events=2)] == [0, 1]


async def test_queued_batches_run_in_order(pair: Any, tools: Any) -> None:
    activity_id, unit = await pair.activity()
    first = await pair.rent.exec(activity_id, [tools.run("wait", "go")])
    later = [await pair.rent.exec(activity_id, [tools.run("echo", str(n))]) for n in range(5)]
    unit.gate("go").set()
    for number, batch in enumerate(later):
        (result,) = await pair.rent.results(activity_id, batch, timeout_s=5)
        assert result.stdout == str(number)
    assert [b for b, _ in unit.begun[2:]] == [first, *later]


async def test_terminate_and_deploy_again(pair: Any, tools: Any) -> None:
    activity_id, _ = await pair.activity()
    batch = await pair.rent.exec(activity_id, [{"terminate": {}}])
    await pair.rent.results(activity_id, batch, timeout_s=5)
    assert (await pair.rent.state(activity_id)).state[0] == "Initialized"
    batch = await pair.rent.exec(activity_id, [{"deploy": {}}, {"start": {}}])
    assert len(await pair.rent.results(activity_id, batch, timeout_s=5)) == 2
    assert (await pair.rent.state(activity_id)).state[0] == "Ready"


async def test_several_activities_in_one_agreement(pair: Any) -> None:
    agreement = pair.agree()
    ids = await asyncio.gather(*(pair.rent.create(agreement, timeout_s=5) for _ in range(4)))
    assert len(set(ids)) == 4
    assert sorted(await pair.rent.of_agreement(agreement)) == sorted(ids)
    await pair.rent.destroy(ids[0], timeout_s=5)
    assert (await pair.rent.state(ids[1])).state[0] == "Initialized"


async def test_the_end_of_the_agreement_is_the_end_of_its_activities(pair: Any, tools: Any) -> None:
    activity_id, _ = await pair.activity()
    agreement = await pair.rent.agreement(activity_id)
    pair.bob.book.change(pair.bob.db, agreement, "Terminated")
    await tools.until(lambda: _is(pair, activity_id, "Terminated"))
    other, _ = await pair.activity()
    pair.alice.book.change(pair.alice.db, await pair.rent.agreement(other), "Expired")
    await tools.until(lambda: _is(pair, other, "Terminated"))
    assert pair.bob.activities.activity(other).state == "Terminated"


async def _is(pair: Any, activity_id: str, state: str) -> bool:
    return (await pair.rent.state(activity_id)).state[0] == state


async def test_nobody_initializes_it(pair: Any, tools: Any) -> None:
    agreement = pair.agree()
    pair.provider.paused = True
    with pytest.raises(TimeoutError):
        await pair.rent.create(agreement, timeout_s=0.3)
    (activity_id,) = await pair.rent.of_agreement(agreement)
    await tools.until(lambda: pair.bob.activities.activity(activity_id).state == "Terminated")
    await tools.until(lambda: _is(pair, activity_id, "Terminated"))


@pytest.mark.parametrize("state", ["Pending", "Proposal", "Rejected", "Terminated"])
async def test_only_approved_agreements(pair: Any, state: str) -> None:
    with pytest.raises(Refused) as caught:
        await pair.rent.create(pair.agree(state), timeout_s=5)
    assert caught.value.code == "agreement_not_approved"


async def test_the_provider_has_not_approved(pair: Any) -> None:
    agreement = pair.agree()
    pair.bob.deals[agreement].state = "Pending"
    with pytest.raises(Refused) as caught:
        await pair.rent.create(agreement, timeout_s=5)
    assert caught.value.code == "agreement_not_approved"


async def test_unknown_things(pair: Any, tools: Any) -> None:
    with pytest.raises(NotFound):
        await pair.rent.create("0" * 64, timeout_s=5)
    for call in (
        pair.rent.state("0" * 32),
        pair.rent.usage("0" * 32),
        pair.rent.agreement("0" * 32),
        pair.rent.destroy("0" * 32),
        pair.rent.exec("0" * 32, [tools.run("echo", "x")]),
        pair.rent.results("0" * 32, "0" * 32),
    ):
        with pytest.raises(NotFound):
            await call
    activity_id, _ = await pair.activity()
    with pytest.raises(NotFound):
        await pair.rent.results(activity_id, "0" * 32)
    with pytest.raises(NotFound):
        await anext(pair.rent.stream(activity_id, "0" * 32))


@pytest.mark.parametrize("text", ["", "{}", "[]", '[{"run": {}}]', '[{"fly": {}}]', "[{}]"])
async def test_bad_scripts(pair: Any, text: str) -> None:
    activity_id, _ = await pair.activity()
    with pytest.raises(Refused) as caught:
        await pair.rent.exec(activity_id, text)
    assert caught.value.code == "bad_script"
