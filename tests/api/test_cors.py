"""Browsers: preflights and marks on answers, for the origins of the node and for those of a key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from shem.node.app import Node
from shem.node.config import NodeConfig
from shem.node.peer.loopback import Loopback
from tests.api.conftest import MARKET, NET, Answer, Door

pytestmark = pytest.mark.asyncio(loop_scope="session")

OURS, THEIRS, BAD = "https://ours.example", "https://theirs.example", "https://bad.example"
ALLOW, MAX_AGE = "Access-Control-Allow-Origin", "Access-Control-Max-Age"
KEY = "a-key-for-tests"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    """A node that lets pages of one origin in, and has a key for those of another."""
    config = NodeConfig(
        data_dir=tmp_path_factory.mktemp("node"),
        api_port=0,
        app_key=KEY,
        api_allow_origin=(OURS, "https://more.example"),
    )
    async with aiohttp.ClientSession() as session, Node(config, transport=Loopback().transport) as node:
        yield Door(node, KEY, session)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def page_key(door: Door) -> str:
    return door.node.keys.create("a page", door.node.identity.node_id, origins=[THEIRS])


async def preflight(door: Door, origin: str, path: str = "/me", method: str = "GET", wanted: str = "") -> Answer:
    headers = {"Origin": origin, "Access-Control-Request-Method": method}
    if wanted:
        headers["Access-Control-Request-Headers"] = wanted
    return await door("OPTIONS", path, headers=headers, auth=None)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/me", "/nowhere", "/version/get", f"{MARKET}/demands/x/events"])
async def test_a_page_of_the_nodes_list_may_do_anything_anywhere(door: Door, path: str, method: str) -> None:
    answer = await preflight(door, OURS, path, method, "authorization,x-anything")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers[ALLOW] == OURS
    assert answer.headers[MAX_AGE] == "3600"
    assert method in answer.headers["Access-Control-Allow-Methods"].split(", ")
    assert answer.headers["Access-Control-Allow-Headers"] == "authorization,x-anything"
    assert "Origin" in answer.headers["Vary"]


@pytest.mark.parametrize("origin", [BAD, "null", "", "https://ours.example.bad.example", "HTTPS://OURS.EXAMPLE"])
async def test_other_pages_are_told_no(door: Door, origin: str) -> None:
    answer = await preflight(door, origin)
    assert (answer.status, answer.body) == (400, b"Origin is not allowed to make this request")
    assert ALLOW not in answer.headers


async def test_options_that_are_no_preflight_need_a_key_like_anything_else(door: Door) -> None:
    for headers in ({}, {"Origin": OURS}, {"Access-Control-Request-Method": "GET"}):
        assert (await door("OPTIONS", "/me", headers=headers, auth=None)).status == 401
    assert (await door("OPTIONS", "/me")).status == 405


async def test_answers_are_marked_for_the_nodes_list_whatever_they_are(door: Door) -> None:
    for path, status in (("/me", 200), ("/nowhere", 404), ("/version/get", 200), (f"{NET}/net/x", 404)):
        answer = await door("GET", path, headers={"Origin": OURS})
        assert (answer.status, answer.headers[ALLOW]) == (status, OURS)
        assert "Origin" in answer.headers["Vary"]
    answer = await door("GET", "/me", headers={"Origin": OURS}, auth="Bearer wrong-wrong")
    assert (answer.status, answer.headers[ALLOW]) == (401, OURS)
    bad = await door("GET", "/me", headers={"Origin": BAD})
    assert bad.status == 200
    assert ALLOW not in bad.headers
    assert ALLOW not in (await door("GET", "/me")).headers


async def test_a_page_of_a_keys_list_may_use_that_key_and_no_other(door: Door, page_key: str) -> None:
    assert (await preflight(door, THEIRS)).headers[ALLOW] == THEIRS  # a browser shows no key here
    own = await door("GET", "/me", headers={"Origin": THEIRS}, auth=f"Bearer {page_key}")
    assert own.headers[ALLOW] == THEIRS
    other = await door("GET", "/me", headers={"Origin": THEIRS})
    assert other.status == 200
    assert ALLOW not in other.headers
    assert (await door("GET", "/me", headers={"Origin": OURS}, auth=f"Bearer {page_key}")).headers[ALLOW] == OURS


async def test_a_dropped_key_takes_its_pages_with_it(door: Door) -> None:
    door.node.keys.create("short", door.node.identity.node_id, origins=["https://short.example"])
    assert (await preflight(door, "https://short.example")).status == 200
    door.node.keys.drop("short")
    assert (await preflight(door, "https://short.example")).status == 400


async def test_streams_are_marked_too(door: Door) -> None:
    scan = await door("POST", f"{MARKET}/scan", b'{"type": "offer", "timeout": 5}')
    url = f"{door.node.api_url}{MARKET}/scan/{scan.json}/events"
    headers = {"Origin": OURS, "Authorization": f"Bearer {KEY}", "Accept": "text/event-stream"}
    async with door.session.get(url, headers=headers) as answer:
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        assert answer.headers[ALLOW] == OURS


async def test_a_star_is_any_page(tmp_path: Path) -> None:
    config = NodeConfig(data_dir=tmp_path, api_port=0, app_key=KEY, api_allow_origin=("*",), api_max_age_s=60)
    async with aiohttp.ClientSession() as session, Node(config, transport=Loopback().transport) as node:
        door = Door(node, KEY, session)
        answer = await preflight(door, BAD)
        assert (answer.status, answer.headers[ALLOW], answer.headers[MAX_AGE]) == (200, BAD, "60")
        assert (await door("GET", "/me", headers={"Origin": BAD})).headers[ALLOW] == BAD
