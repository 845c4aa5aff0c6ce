"""The activity API as clients of the original network use it: statuses, shapes, and what is not offered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shem.client.activity import ActivityApi
from shem.client.http import ApiClient

ROOT = "/activity-api/v1"


@pytest.fixture
async def http(pair: Any) -> AsyncIterator[ApiClient]:
    async with pair.alice.http() as made:
        yield made


async def ask(http: ApiClient, method: str, path: str, body: Any = ..., **headers: str) -> tuple[int, Any]:
    more = {} if body is ... else {"json": body}
    async with http.session.request(method, http.url(ROOT + path), headers=headers, **more) as answer:
        if not answer.content_type.startswith("application/json"):
            return answer.status, await answer.text()
        return answer.status, await answer.json()


async def test_the_shapes_of_a_fresh_activity(pair: Any, http: ApiClient) -> None:
    agreement = pair.agree()
    status, activity_id = await ask(http, "POST", "/activity?timeout=10", agreement)
    assert (status, len(activity_id)) == (200, 32)
    assert await ask(http, "GET", f"/activity/{activity_id}/state") == (200, {"state": ["Initialized", None]})
    status, usage = await ask(http, "GET", f"/activity/{activity_id}/usage")
    assert (status, set(usage)) == (200, {"timestamp"})
    assert await ask(http, "GET", f"/activity/{activity_id}/agreement") == (200, agreement)
    assert await ask(http, "GET", f"/activity?agreementId={agreement}") == (200, [activity_id])
    status, answer = await ask(http, "GET", f"/activity/{activity_id}/command")
    assert (status, answer["code"]) == (404, "no_command")
    for _ in range(2):
        assert await ask(http, "DELETE", f"/activity/{activity_id}?timeout=5") == (200, None)


async def test_an_activity_with_a_key_for_enclaves(pair: Any, http: ApiClient) -> None:
    body = {"agreementId": pair.agree(), "requestorPubKey": "02" + "ab" * 32}
    status, answer = await ask(http, "POST", "/activity", body)
    assert (status, set(answer)) == (200, {"activityId"})


@pytest.mark.parametrize(
    "body", [None, 5, [], {}, {"agreementId": 1}, {"agreementId": "x", "requestorPubKey": "zz"}, {"agreementId": None}]
)
async def test_bodies_that_are_none(http: ApiClient, body: Any) -> None:
    status, answer = await ask(http, "POST", "/activity", body)
    assert (status, bool(answer["message"])) == (400, True)


async def test_who_may_not(pair: Any, http: ApiClient) -> None:
    assert (await ask(http, "POST", "/activity", pair.agree("Pending")))[0] == 400
    assert (await ask(http, "POST", "/activity", "0" * 64))[0] == 404
    async with pair.bob.http() as theirs:
        assert (await ask(theirs, "POST", "/activity", pair.agree()))[0] == 403
    pair.provider.paused = True
    assert (await ask(http, "POST", "/activity?timeout=0.1", pair.agree()))[0] == 408


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "encrypted"), ("GET", "proxy-http/x/y?z=1"), ("POST", "proxy-http"), ("PUT", "proxy-http/")],
)
async def test_what_is_not_offered_says_so(pair: Any, http: ApiClient, method: str, path: str) -> None:
    activity_id, _ = await pair.activity()
    status, answer = await ask(http, method, f"/activity/{activity_id}/{path}", {})
    assert (status, bool(answer["message"])) == (501, True)
    assert (await ask(http, method, f"/activity/{'0' * 32}/{path}", {}))[0] == 404


async def test_the_activity_is_looked_at_before_the_script(pair: Any, http: ApiClient) -> None:
    assert (await ask(http, "POST", f"/activity/{'0' * 32}/exec", {"text": "nonsense"}))[0] == 404
    activity_id, _ = await pair.activity()
    status, answer = await ask(http, "POST", f"/activity/{activity_id}/exec", {"text": "nonsense"})
    assert (status, answer["code"]) == (400, "bad_script")


async def test_what_other_clients_add_to_commands(pair: Any, http: ApiClient, tools: Any) -> None:
    activity_id, _ = await pair.activity()
    run = tools.run("echo", "hi")["run"] | {"env": None, "unknown": {"a": [1]}}
    run["capture"]["stderr"] = None
    transfer = {
        "from": "gftp://a/b",
        "to": "container:/x",
        "args": None,
        "format": None,
        "depth": None,
        "fileset": None,
    }
    script = tools.json.dumps([{"run": run}, {"transfer": transfer}, {"terminate": None}])
    _, batch = await ask(http, "POST", f"/activity/{activity_id}/exec", {"text": script})
    status, results = await ask(http, "GET", f"/activity/{activity_id}/exec/{batch}?timeout=5")
    assert status == 200
    assert [result["result"] for result in results] == ["Ok"] * 3
    assert set(results[0]) == {"index", "eventDate", "result", "stdout", "stderr", "message", "isBatchFinished"}
    assert results[0]["eventDate"].endswith("Z")
    assert (results[0]["stdout"], results[0]["stderr"]) == ("hi", None)


async def test_the_rules_of_long_polls(pair: Any, http: ApiClient, tools: Any) -> None:
    activity_id, unit = await pair.activity()
    script = [tools.run("echo", "a"), tools.run("echo", "b"), tools.run("wait", "go")]
    batch = await pair.rent.exec(activity_id, script)
    await tools.until(lambda: (batch, 2) in unit.begun)
    path = f"/activity/{activity_id}/exec/{batch}"
    await tools.until(lambda: _count(http, path, 2))
    for query, expected in (
        ("timeout=0", 2),
        ("timeout=0.05&maxEvents=1", 1),
        ("timeout=0&commandIndex=0", 1),
        ("timeout=0&commandIndex=1&maxEvents=5", 2),
    ):
        status, results = await ask(http, "GET", f"{path}?{query}")
        assert (status, len(results)) == (200, expected), query
    assert (await ask(http, "GET", f"{path}?timeout=0.05&commandIndex=2"))[0] == 408
    for query in ("commandIndex=-1", "commandIndex=x", "maxEvents=0", "maxEvents=x", "timeout=x"):
        assert (await ask(http, "GET", f"{path}?{query}"))[0] == 400, query
    unit.gate("go").set()
    status, results = await ask(http, "GET", f"{path}?timeout=5")
    assert [result["isBatchFinished"] for result in results] == [False, False, True]


async def _count(http: ApiClient, path: str, count: int) -> bool:
    return len((await ask(http, "GET", f"{path}?timeout=0"))[1]) == count


async def test_bytes_of_any_number(pair: Any, http: ApiClient, tools: Any) -> None:
    activity_id, _ = await pair.activity()
    raw = bytes(range(256)) * 300
    binary = {"stdout": {"stream": {"format": "bin"}}}
    batch = await pair.rent.exec(activity_id, [tools.run("bytes", raw.hex(), capture=binary)])
    _, results = await ask(http, "GET", f"/activity/{activity_id}/exec/{batch}?timeout=5")
    assert results[0]["stdout"] == list(raw)
    seen = b"".join([bytes(event.kind.stdout or []) async for event in pair.rent.stream(activity_id, batch)])
    assert seen == raw


async def test_another_program_goes_on_where_one_stopped(pair: Any, tools: Any) -> None:
    """With nothing but the key and the ids: what ran is there, what runs goes on, what comes is taken."""
    activity_id, unit = await pair.activity()
    batch = await pair.rent.exec(activity_id, [tools.run("echo", "before"), tools.run("wait", "go")])
    await tools.until(lambda: (batch, 1) in unit.begun)
    async with pair.alice.http() as another:
        rent = ActivityApi(another)
        agreement = await rent.agreement(activity_id)
        assert await rent.of_agreement(agreement) == [activity_id]
        assert (await rent.state(activity_id)).state == ("Ready", None)
        stream = rent.stream(activity_id, batch)
        seen = [await anext(stream), await anext(stream)]
        unit.gate("go").set()
        async with asyncio.timeout(10):
            seen += [event async for event in stream]
        assert [event.kind.stdout for event in seen if event.kind.stdout] == ["before"]
        later = await rent.exec(activity_id, [tools.run("echo", "after")])
        (result,) = await rent.results(activity_id, later, timeout_s=5)
        assert result.stdout == "after"
        await rent.destroy(activity_id, timeout_s=5)
    assert (await pair.rent.state(activity_id)).state[0] == "Terminated"


async def test_states_that_the_provider_agent_reports(pair: Any, tools: Any) -> None:
    pair.provider.paused = True
    creating = asyncio.gather(pair.rent.create(pair.agree(), timeout_s=10))
    after = "2020-01-01T00:00:00Z"
    async with pair.bob.http() as theirs:
        _, events = await ask(theirs, "GET", f"/events?afterTimestamp={after}&timeout=5")
        (event,) = events
        assert (set(event), event["eventType"]) == (
            {"activityId", "agreementId", "eventDate", "eventType"},
            {"CreateActivity": {}},
        )
        activity_id = event["activityId"]
        assert await ask(theirs, "GET", f"/activity/{activity_id}/state") == (200, {"state": ["New", None]})
        path = f"/activity/{activity_id}/state"
        assert await ask(theirs, "PUT", path, {"state": ["Initialized", None]}) == (200, None)
        assert await creating == [activity_id]
        assert (await ask(theirs, "PUT", path, {"state": ["Nonsense", None]}))[0] == 400
        assert (await ask(theirs, "PUT", path, {"state": ["Ready", None]}))[0] == 409
        assert (await ask(theirs, "GET", f"/events?afterTimestamp={event['eventDate']}&timeout=0"))[0] == 408
        assert (await ask(theirs, "GET", "/events?timeout=0"))[0] == 400
        ended = {"state": ["Terminated", None], "reason": "broken", "errorMessage": "a cable"}
        assert await ask(theirs, "PUT", path, ended) == (200, None)
    async with pair.alice.http() as ours:
        await tools.until(lambda: _is(ours, path, ended))


async def _is(http: ApiClient, path: str, expected: Any) -> bool:
    return await ask(http, "GET", path) == (200, expected)
