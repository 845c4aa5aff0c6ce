"""The activity API as far as the original goes without an exe unit: creating, states, events, destroying."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.api.conversation import ACTIVITY, NO_CONTENT_TYPE, ZERO_32, ZERO_AGREEMENT, Conversation, Talks, moment
from tests.api.shapes import ACTIVITY_EVENT, AGREEMENT_ID, EMPTY, HEX32, STATE, USAGE

pytestmark = pytest.mark.asyncio(loop_scope="session")
ACTIVITIES = f"{ACTIVITY}/activity"
EVENTS = f"{ACTIVITY}/events"
INITIALIZED = {"state": ["Initialized", None]}


async def begin(talk: Conversation, session: str, body: Any = None) -> Talks:
    """Up to an initialized activity."""
    started = moment(-1)
    talks = await talk.agree(session)
    async with asyncio.TaskGroup() as group:
        asked = talks.agreement if body is None else body | {"agreementId": talks.agreement}
        shape = HEX32 if body is None else {"activityId": HEX32}
        created = group.create_task(talk("R", "POST", f"{ACTIVITIES}?timeout=30", asked, gives=200, shape=shape))
        query = f"{EVENTS}?timeout=20&appSessionId=p{session}&afterTimestamp={started}"
        (event,) = await talk("P", "GET", query, gives=200, shape=[ACTIVITY_EVENT])
        assert (event["agreementId"], event["eventType"]) == (talks.agreement, {"CreateActivity": {}})
        talks.activity = event["activityId"]
        fresh = await talk("P", "GET", f"{ACTIVITIES}/{talks.activity}/state", gives=200, shape=STATE)
        assert fresh["state"] == ["New", None]
        await talk("P", "PUT", f"{ACTIVITIES}/{talks.activity}/state", INITIALIZED, gives=200, shape=None)
    made = created.result()
    assert made == talks.activity if body is None else made["activityId"] == talks.activity
    return talks


async def test_a_life_of_an_activity(talk: Conversation) -> None:
    talks = await begin(talk, "life")
    at = f"{ACTIVITIES}/{talks.activity}"
    for who in "RP":
        state = await talk(who, "GET", f"{at}/state", gives=200, shape=STATE)
        assert state["state"] == ["Initialized", None]
        await talk(who, "GET", f"{at}/usage", gives=200, shape=USAGE)
        assert await talk(who, "GET", f"{at}/agreement", gives=200, shape=AGREEMENT_ID) == talks.agreement
    started = moment()
    async with asyncio.TaskGroup() as group:
        group.create_task(talk("R", "DELETE", f"{at}?timeout=30", gives=200, shape=None))
        query = f"{EVENTS}?timeout=20&appSessionId=plife&afterTimestamp={started}"
        for _ in range(2):  # told again as long as it is not done
            events = await talk("P", "GET", query, gives=200, shape=[ACTIVITY_EVENT])
            assert events[-1]["eventType"] == {"DestroyActivity": {}}
        over = {"state": ["Terminated", None], "reason": "destroyed", "errorMessage": "none"}
        await talk("P", "PUT", f"{at}/state", over, gives=200, shape=None)
    await talk("R", "DELETE", f"{at}?timeout=5", gives=200, shape=None)
    for who in "RP":
        state = await talk(who, "GET", f"{at}/state", gives=200, shape=STATE)
        assert state["state"] == ["Terminated", None]
    await talk("P", "GET", f"{EVENTS}?timeout=0.2&appSessionId=plife&afterTimestamp={moment()}", gives=408)


async def test_the_other_form_of_creating(talk: Conversation) -> None:
    await begin(talk, "form", {"requestorPubKey": None})


async def test_what_creates_nothing(talk: Conversation) -> None:
    talks = await talk.propose("early")
    at = f"{ACTIVITIES}?timeout=0.2"
    for body in (b"{bad", b"", b"null", b"[]", b"{}", b"5"):
        await talk("R", "POST", at, body, gives=400)
    await talk("R", "POST", at, "nope", gives="activity-nonsense-agreement")
    await talk("R", "POST", at, ZERO_AGREEMENT, gives=404)
    await talk("R", "POST", at, {"agreementId": ZERO_AGREEMENT, "requestorPubKey": None}, gives=404)
    await talk("R", "POST", at, talks.agreement, gives=400)
    await talk("P", "POST", f"{talks.agreement_at}/approve?timeout=20&appSessionId=pearly", gives=204)
    await talk("S", "POST", at, talks.agreement, gives="stranger-activity")
    await talk("P", "POST", at, talks.agreement, gives="provider-creates")
    await talk("R", "POST", f"{ACTIVITIES}?timeout=x", talks.agreement, gives=400)
    await talk("R", "POST", at, f'"{talks.agreement}"'.encode(), headers=NO_CONTENT_TYPE, gives=400)
    await talk("R", "POST", at, talks.agreement, gives=408)  # the provider does nothing
    await talk("R", "POST", f"{talks.agreement_at}/terminate", b"null", gives=200, shape=EMPTY)
    await talk("R", "POST", at, talks.agreement, gives=400)


async def test_the_queries_of_events(talk: Conversation) -> None:
    talks = await begin(talk, "polls")
    since = moment(-60)
    for query in ("timeout=0.1", "timeout=0.1&afterTimestamp=x", f"timeout=x&afterTimestamp={since}"):
        await talk("P", "GET", f"{EVENTS}?{query}", gives=400)
    await talk("P", "GET", f"{EVENTS}?timeout=0.2&afterTimestamp={since}&appSessionId=other", gives=408)
    for more in ("", "&appSessionId=ppolls", "&maxEvents=100"):
        events = await talk(
            "P", "GET", f"{EVENTS}?timeout=5&afterTimestamp={since}{more}", gives=200, shape=[ACTIVITY_EVENT]
        )
        assert talks.activity in [event["activityId"] for event in events]
    await talk("R", "GET", f"{EVENTS}?timeout=0.2&afterTimestamp={since}&appSessionId=polls", gives=408)


async def test_states_that_nobody_reports(talk: Conversation) -> None:
    talks = await begin(talk, "states")
    at = f"{ACTIVITIES}/{talks.activity}/state"
    for body in (b"{bad", b"null", b"{}", b'{"state":"Ready"}', b'{"state":["Ready"]}', b'{"state":["Nonsense",null]}'):
        await talk("P", "PUT", at, body, gives=400)
    for who in "RS":
        await talk(who, "PUT", at, INITIALIZED, gives=404)
    state = await talk("P", "GET", at, gives=200, shape=STATE)
    assert state["state"] == ["Initialized", None]


async def test_activities_of_nobody(talk: Conversation) -> None:
    for wrong in (ZERO_32, "nope"):
        for noun in ("state", "usage", "agreement", "command"):
            await talk("R", "GET", f"{ACTIVITIES}/{wrong}/{noun}", gives="unknown-activity")
        await talk("R", "DELETE", f"{ACTIVITIES}/{wrong}?timeout=1", gives="unknown-activity")
        await talk("R", "POST", f"{ACTIVITIES}/{wrong}/exec", {"text": '[{"deploy":{}}]'}, gives="unknown-activity")
        await talk("R", "GET", f"{ACTIVITIES}/{wrong}/exec/{ZERO_32}?timeout=0.1", gives="unknown-activity")


async def test_activities_of_others(talk: Conversation) -> None:
    talks = await begin(talk, "others")
    at = f"{ACTIVITIES}/{talks.activity}"
    for noun in ("state", "usage", "agreement"):
        await talk("S", "GET", f"{at}/{noun}", gives=403)
    await talk("S", "POST", f"{at}/exec", {"text": '[{"deploy":{}}]'}, gives=403)
    await talk("S", "DELETE", f"{at}?timeout=1", gives=403)
    await talk("P", "POST", f"{at}/exec", {"text": '[{"deploy":{}}]'}, gives=404)


async def test_scripts_that_are_none(talk: Conversation) -> None:
    talks = await begin(talk, "scripts")
    at = f"{ACTIVITIES}/{talks.activity}/exec"
    for body in (b"{bad", b"", b"null", b"{}", b'{"text":5}'):
        await talk("R", "POST", at, body, gives=400)
    for text in ("nope", "{}", '[{"nope":{}}]', '[{"run":5}]'):
        await talk("R", "POST", at, {"text": text}, gives=400)
    for batch in (ZERO_32, "nope"):
        await talk("R", "GET", f"{at}/{batch}?timeout=0.1", gives="unknown-batch")
    await talk("R", "GET", f"{ACTIVITIES}/{talks.activity}/command", gives="no-command")
