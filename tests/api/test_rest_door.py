"""Who may come in, and what the door says to those who may not or who do not know the way."""

from __future__ import annotations

import asyncio
import re
import secrets

import pytest

from tests.api.conftest import MARKET, QUICK_S, Call, World, assert_shaped

pytestmark = pytest.mark.asyncio(loop_scope="session")

OPEN = {"/version/get", "/metrics-api/v1/expose", "/metrics-api/v1/sorted"}


async def test_nobody_gets_anywhere_without_a_key(world: World) -> None:
    deal = await world.deal()
    for call in world.alice.calls:
        answer = await world.alice(call.method, deal.fill(call), auth=None)
        if call.template in OPEN:
            assert answer.status == 200
            continue
        shown = (answer.status, answer.content_type, answer.body)
        assert shown == (401, "text/plain", b"Missing application key"), call


async def test_nobody_gets_anywhere_with_a_wrong_key(world: World) -> None:
    deal = await world.deal()
    wrong = secrets.token_hex(16)
    for call in world.alice.calls:
        for auth, suffix in ((f"Bearer {wrong}", ""), (None, f"?authToken={wrong}")):
            answer = await world.alice(call.method, deal.fill(call) + suffix, auth=auth)
            if call.template in OPEN:
                assert answer.status == 200
                continue
            shown = (answer.status, answer.content_type, answer.body)
            assert shown == (401, "text/plain", b"Invalid application key"), call


@pytest.mark.parametrize("path", ["/", "/nowhere", f"{MARKET}/nowhere", "//", "/..%2f..%2fetc/passwd", "/me/"])
async def test_without_a_key_one_does_not_even_learn_what_exists(world: World, path: str) -> None:
    assert (await world.alice("GET", path, auth=None)).status == 401
    answer = await world.alice("GET", path)
    assert answer.status == 404
    assert_shaped(answer)


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ("Bearer", "Missing application key"),
        ("Bearer ", "Missing application key"),
        ("Basic dTpw", "Missing application key"),
        ("Bearer \t", "Missing application key"),
        ("Bearer ключ", "Invalid application key"),
        ("Bearer k\udcffy", "Invalid application key"),
        ("Bearer " + "k" * 5000, "Invalid application key"),
        ("Bearer ' or '1'='1", "Invalid application key"),
    ],
)
async def test_strange_authorizations_are_turned_away(world: World, header: str, why: str) -> None:
    head = f"GET /me HTTP/1.1\r\nHost: node\r\nConnection: close\r\nAuthorization: {header}\r\n\r\n"
    reader, writer = await world.alice.raw(head.encode("utf-8", "surrogateescape"))
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 401 "), answer
    assert answer.endswith(why.encode()), answer


@pytest.mark.parametrize("token", ["", "%ff", "%00", "a" * 5000, "%F0%9F%94%91", "+", "&authToken=x"])
async def test_strange_tokens_in_the_query_are_turned_away(world: World, token: str) -> None:
    answer = await world.alice("GET", f"/me?authToken={token}", auth=None)
    assert answer.status == 401


async def test_the_key_opens_in_each_form_that_clients_use(world: World) -> None:
    door = world.alice
    for auth, suffix in (
        (f"Bearer {door.key}", ""),
        (f"bearer {door.key}", ""),
        (f"Bearer  {door.key} ", ""),
        (None, f"?authToken={door.key}"),
        ("Basic dTpw", f"?authToken={door.key}"),
    ):
        assert (await door("GET", f"/me{suffix}", auth=auth)).status == 200, (auth, suffix)


async def test_me_says_who_the_key_stands_for(world: World) -> None:
    for door in (world.alice, world.bob):
        answer = await door("GET", "/me")
        assert answer.content_type == "application/json"
        assert answer.json == {"identity": door.node.identity.node_id, "name": "autoconfigured", "role": "manager"}
        assert re.fullmatch(r"0x[0-9a-f]{40}", answer.json["identity"])


async def test_a_dropped_key_is_turned_away_at_once(world: World) -> None:
    keys, node_id = world.alice.node.keys, world.alice.node.identity.node_id
    key = keys.create("a program", node_id)
    answer = await world.alice("GET", "/me", auth=f"Bearer {key}")
    assert (answer.status, answer.json["name"]) == (200, "a program")
    keys.drop("a program")
    answer = await world.alice("GET", "/me", auth=f"Bearer {key}")
    assert (answer.status, answer.body) == (401, b"Invalid application key")
    assert (await world.alice("GET", "/me")).status == 200


async def test_the_version_is_one_that_clients_accept(world: World) -> None:
    answer = await world.alice("GET", "/version/get", auth=None)
    assert answer.content_type == "application/json"
    told = answer.json
    assert set(told) == {"current", "pending"}
    assert told["pending"] is None
    current = told["current"]
    assert set(current) == {"version", "name", "seen", "releaseTs", "insertionTs", "updateTs"}
    assert tuple(int(part) for part in current["version"].split(".")) >= (0, 15, 2)
    for moment in ("releaseTs", "insertionTs", "updateTs"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", current[moment])


async def test_a_wrong_method_is_answered_in_json_with_the_right_ones(world: World) -> None:
    deal = await world.deal()
    allowed: dict[str, set[str]] = {}
    for call in world.alice.calls:
        allowed.setdefault(call.template, set()).add(call.method)
    for template, methods in allowed.items():
        path = deal.fill(Call("GET", template))
        for method in {"GET", "POST", "PUT", "DELETE", "PATCH"} - methods:
            answer = await world.alice(method, path)
            assert answer.status in (400, 404, 405), (method, path, answer)
            assert_shaped(answer)
            if answer.status == 405:
                assert methods <= set(answer.headers["Allow"].split(",")), (method, path)


async def test_answers_are_json_and_nothing_else(world: World) -> None:
    """Clients parse by content type alone."""
    for path in ("/me", f"{MARKET}/demands", f"{MARKET}/offers"):
        answer = await world.alice("GET", path)
        assert (answer.status, answer.content_type) == (200, "application/json")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # a TLS hello
        b"BREW /me HTTP/1.1\r\nHost: node\r\n\r\n",
        b"GET /me?authToken=two words HTTP/1.1\r\nHost: node\r\n\r\n",
        b"GET /me\r\n\r\n",
        b"GET /me HTTP/9.9\r\nHost: node\r\n\r\n",
        b"GET /me HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /me HTTP/1.1\r\nHost: node\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: node\r\n\r\n",
        b"POST /me HTTP/1.1\r\nHost: node\r\nContent-Length: many\r\n\r\n",
        b"POST /me HTTP/1.1\r\nHost: node\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /me HTTP/1.1\r\nHost: node\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
        b"\r\n" * 1000,
        b"",
    ],
    ids=range(13),
)
async def test_what_is_no_http_is_refused_and_not_logged_as_a_mistake_of_the_node(
    world: World, request_bytes: bytes
) -> None:
    reader, writer = await world.alice.raw(request_bytes)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), QUICK_S)
    writer.close()
    assert not answer or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ", b"HTTP/1.1 401 ")), answer
    assert (await world.alice("GET", "/me")).status == 200
