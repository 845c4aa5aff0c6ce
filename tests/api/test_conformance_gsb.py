"""The service bus, asked the same of our nodes and of the original daemon: binding, sockets, frames, calls."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from flatbuffers import flexbuffers

from tests.api.conversation import NO_CONTENT_TYPE, Conversation

pytestmark = pytest.mark.asyncio(loop_scope="session")

SERVICES = "/gsb-api/v1/services"
PROTOCOL = "gsb+flexbuffers"
SOON_S = 30.0


def address() -> str:
    return f"/public/gftp/{secrets.token_hex(12)}"


def id_of(on: str) -> str:
    return base64.urlsafe_b64encode(on.encode()).rstrip(b"=").decode()


async def bind(talk: Conversation, on: str, *components: str, who: str = "R") -> str:
    listen = {"on": on, "components": list(components)}
    shape = {"listen": {"on": on, "components": list}, "servicesId": id_of(on)}
    made = await talk(who, "POST", SERVICES, {"listen": listen}, gives=201, shape=shape)
    assert made["listen"] == listen
    return f"{SERVICES}/{made['servicesId']}"


@asynccontextmanager
async def line(talk: Conversation, at: str, **more: Any) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    side = talk.network.requestor
    more = {"protocols": (PROTOCOL,), "headers": {"Authorization": f"Bearer {side.app_key}"}} | more
    async with talk.network.session.ws_connect(side.api_url + at, **more) as opened:
        yield opened


async def told(opened: aiohttp.ClientWebSocketResponse) -> Any:
    async with asyncio.timeout(SOON_S):
        return await opened.receive()


async def asked(opened: aiohttp.ClientWebSocketResponse) -> Any:
    message = await told(opened)
    assert message.type is aiohttp.WSMsgType.BINARY, message
    return flexbuffers.Loads(message.data)


async def test_binding(talk: Conversation) -> None:
    on = address()
    at = await bind(talk, on, "GetMetadata", "GetChunk")
    await talk("R", "POST", SERVICES, {"listen": {"on": on, "components": ["GetMetadata"]}}, gives=400)
    await talk("S", "POST", SERVICES, {"listen": {"on": on, "components": ["GetMetadata"]}}, gives=400)
    await talk("R", "DELETE", at, gives=200, shape=None)
    await talk("R", "DELETE", at, gives=404)
    for other in ("nope", "/local/thing", f"{on}/below", f"{on}/", f"{on} é\n", address()):
        await talk("R", "DELETE", await bind(talk, other, "Anything"), gives=200, shape=None)
    await talk("R", "DELETE", await bind(talk, address()), gives=200, shape=None)


async def test_where_it_is_told_in_a_header_too(talk: Conversation) -> None:
    on = address()
    answer = await talk.network.ask(
        talk.network.requestor, "POST", SERVICES, {"listen": {"on": on, "components": []}, "more": 1}
    )
    assert (answer.status, answer.headers["Location"]) == (201, f"/{id_of(on)}")


async def test_binding_nonsense(talk: Conversation) -> None:
    good = {"on": address(), "components": ["GetChunk"]}
    for body in (b"", b"{", b"[]", b"{}", b'{"listen":{}}', b'{"listen":null}', b'{"listen":{"on":"/a"}}'):
        await talk("R", "POST", SERVICES, body, gives=400)
    for wrong in ({"on": 5}, {"on": ""}, {"on": None}, {"components": "GetChunk"}, {"components": [5]}):
        await talk("R", "POST", SERVICES, {"listen": good | wrong}, gives=400)
    await talk("R", "POST", SERVICES, json.dumps({"listen": good}).encode(), headers=NO_CONTENT_TYPE, gives=400)
    await talk("R", "POST", SERVICES, {"listen": good}, auth=False, gives=401)


async def test_ids_of_nobody(talk: Conversation) -> None:
    for id_, status in (("!!!", 400), ("_____w", 400), ("AAAA", 404), (id_of("/nobody"), 404)):
        await talk("R", "DELETE", f"{SERVICES}/{id_}", gives=status)
        await talk("R", "GET", f"{SERVICES}/{id_}", gives=status)
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with line(talk, f"{SERVICES}/{id_}"):
                pass
        assert caught.value.status == status
    await talk("R", "GET", await bind(talk, address()), gives="no-upgrade")


async def test_services_of_others(talk: Conversation) -> None:
    at = await bind(talk, address(), "GetChunk")
    await talk("S", "GET", at, gives="stranger-socket")
    await talk("S", "DELETE", at, gives="stranger-service")


async def test_keys_and_protocols_of_sockets(talk: Conversation) -> None:
    at, key = await bind(talk, address(), "GetChunk"), talk.network.requestor.app_key
    for more, chosen in (
        ({"protocols": (PROTOCOL,)}, PROTOCOL),
        ({"protocols": ("other", PROTOCOL)}, PROTOCOL),
        ({"protocols": ("other",)}, None),
        ({"protocols": ()}, None),
    ):
        async with line(talk, f"{at}?authToken={key}", headers={}, **more) as opened:
            assert opened.protocol == chosen
            assert opened.compress == 0
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with line(talk, at, headers=headers):
                pass
        assert caught.value.status == 401


async def test_how_sockets_end(talk: Conversation) -> None:
    at = await bind(talk, address(), "GetChunk")
    async with line(talk, at) as first, line(talk, at) as second:
        assert ((end := await told(first)).type, end.data) == (aiohttp.WSMsgType.CLOSE, 1008)
        await talk("R", "DELETE", at, gives=200, shape=None)
        assert ((end := await told(second)).type, end.data) == (aiohttp.WSMsgType.CLOSE, 1000)
    at = await bind(talk, address(), "GetChunk")
    for noise, code in (("text", 1003), (b"", 1008), (b"\xff" * 40, 1008), (b"\0\0\0", 1008)):
        async with line(talk, at) as opened:
            await (opened.send_str(noise) if isinstance(noise, str) else opened.send_bytes(noise))
            assert ((end := await told(opened)).type, end.data) == (aiohttp.WSMsgType.CLOSE, code), noise


async def test_a_call_there_and_back(talk: Conversation) -> None:
    """The other side of the original's bus is a call in JSON, of the own node as anybody would write it."""
    on = address()
    at = await bind(talk, on, "GetMetadata", "GetChunk")
    side = talk.network.requestor
    call = f"/_gsb/net/{side.node_id}/gftp/{on.rpartition('/')[2]}"

    async def answers(opened: aiohttp.ClientWebSocketResponse, component: str, payload: Any, reply: Any) -> None:
        request = await asked(opened)
        assert set(request) == {"id", "component", "payload"}
        assert (request["component"], request["payload"]) == (component, payload)
        await opened.send_bytes(bytes(flexbuffers.Dumps({"id": request["id"], **reply})))

    for component, payload, reply, result in (
        ("GetMetadata", {}, {"payload": {"fileSize": 5}}, {"Ok": {"fileSize": 5}}),
        ("GetChunk", {"offset": 0, "size": 5}, {"payload": None}, {"Ok": None}),
        ("GetChunk", {"offset": 0, "size": 5}, {"error": {"ReadError": "boom"}}, {"Err": {"ReadError": "boom"}}),
    ):
        async with asyncio.TaskGroup() as tasks:
            calling = tasks.create_task(talk("R", "POST", f"{call}/{component}", payload, gives=200, shape=result))
            async with line(talk, at) as opened:  # what was asked before there was a socket waits for it
                await answers(opened, component, payload, reply)
                await calling
    await talk("R", "POST", f"{call}/Other", {}, gives="call-of-nothing")
    await talk("R", "POST", f"/_gsb/net/{side.node_id}/gftp/nobody/GetChunk", {}, gives="call-of-nothing")
    await talk("R", "POST", f"{call}/GetChunk", b"{}", headers=NO_CONTENT_TYPE, gives=400)
