"""Who may come in, and what is the same of every call: asked of our nodes and of the original daemon."""

from __future__ import annotations

import pytest

from tests.api.conversation import Conversation
from tests.api.shapes import NODE_ID, PLAIN_TIME, TEXT

pytestmark = pytest.mark.asyncio(loop_scope="session")
RELEASE = {
    "version": TEXT,
    "name": TEXT,
    "seen": bool,
    "releaseTs": PLAIN_TIME,
    "insertionTs": PLAIN_TIME,
    "updateTs": PLAIN_TIME,
}


async def test_me(talk: Conversation) -> None:
    for who in "RPS":
        me = await talk(who, "GET", "/me", gives=200, shape={"identity": NODE_ID, "name": TEXT, "role": "manager"})
        assert me["identity"] == talk.side(who).node_id
        assert me["name"] == ("stranger" if who == "S" else "autoconfigured")


async def test_the_version_is_open_to_all(talk: Conversation) -> None:
    found = await talk(
        "R", "GET", "/version/get", auth=False, gives=200, shape={"current": RELEASE, "pending": (None, RELEASE)}
    )
    assert found["current"]["version"] == "0.16.0"


@pytest.mark.parametrize(
    ("header", "query", "words"),
    [
        ("", "", "Missing"),
        ("Bearer wrong", "", "Invalid"),
        ("Basic wrong", "", "Missing"),
        ("", "?authToken=wrong", "Invalid"),
    ],
)
async def test_who_is_turned_away(talk: Conversation, header: str, query: str, words: str) -> None:
    headers = {"Authorization": header} if header else {}
    for path in ("/", "/me", "/nowhere", "/market-api/v1/offers", "/payment-api/v1/allocations"):
        answer = await talk.network.ask(talk.side("R"), "GET", path + query, headers=headers, auth=False)
        assert (answer.status, answer.content_type) == (401, "text/plain")
        assert answer.body.decode() == f"{words} application key"


async def test_keys_in_other_places(talk: Conversation) -> None:
    key = talk.side("R").app_key
    await talk("R", "GET", f"/me?authToken={key}", auth=False, gives=200)
    for name in ("authorization", "AUTHORIZATION"):
        await talk("R", "GET", "/me", auth=False, headers={name: f"Bearer {key}"}, gives=200)
    await talk("R", "GET", "/me", auth=False, headers={"Authorization": f"bearer {key}"}, gives="bearer")


async def test_what_is_not_there(talk: Conversation) -> None:
    for path in ("/", "/nowhere", "/market-api/v1/nothing", "/payment-api/v1/allocations/x/y", "/market-api/v2/offers"):
        await talk("R", "GET", path, gives=404)
    for method, path in (
        ("POST", "/me"),
        ("DELETE", "/market-api/v1/demands"),
        ("PUT", "/market-api/v1/offers"),
        ("PATCH", "/payment-api/v1/allocations"),
        ("PUT", "/activity-api/v1/activity"),
    ):
        await talk("R", method, path, {}, gives="wrong-method")


async def test_metrics_are_open_to_all(talk: Conversation) -> None:
    answer = await talk.network.ask(talk.side("R"), "GET", "/metrics-api/v1/expose", auth=False)
    assert (answer.status, answer.content_type) == (200, "text/plain")
    lines = [line for line in answer.body.decode().splitlines() if line and not line.startswith("#")]
    for line in lines:
        name, value = line.rsplit(" ", 1)
        assert name.partition("{")[0].replace("_", "").isalnum()
        float(value)
        assert name.startswith(talk.either("metrics", "shem_", ""))
    assert lines
