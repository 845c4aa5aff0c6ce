"""What becomes of answers that no node gives, and of none at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web

from shem.client.http import ApiClient, BadAnswer, NodeSilent, NodeUnreachable
from shem.errors import PeerFailed
from shem.wire.base import Wire

BODIES: dict[str, bytes] = {
    "html": b"<html>hello</html>",
    "half": b'{"name": "a"',
    "another": b'{"title": "a"}',
    "list": b"[]",
    "bytes": b"\xff\xfe",
    "nested": b"[" * 100_000,
    "nothing": b"",
}


class Thing(Wire):
    """A shape."""

    name: str


@pytest_asyncio.fixture
async def silent() -> AsyncIterator[str]:
    """A server that takes connections and never says a word."""
    gone = asyncio.Event()

    async def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    yield "http://{}:{}".format(*server.sockets[0].getsockname())
    gone.set()
    server.close()
    await server.wait_closed()


@pytest_asyncio.fixture
async def odd() -> AsyncIterator[str]:
    """A web server that is no node: 200 and something else; ``/late`` is a node's 408."""

    async def answer(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name == "late":
            return web.json_response({"message": "nothing yet"}, status=408)
        return web.Response(body=BODIES[name], content_type="application/json")

    app = web.Application()
    app.router.add_get("/{name}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_node_that_never_answers_is_told_apart_from_one_that_says_not_yet(method: str, silent: str) -> None:
    async with ApiClient(silent, "key") as http:
        with pytest.raises(NodeSilent, match=r"did not answer within 0\.2 s") as told:
            await http.call(method, "/x", timeout_s=0.2)
    assert isinstance(told.value, TimeoutError)  # who waits for either needs one word
    assert isinstance(told.value, NodeUnreachable)
    assert told.value.code == "node_silent"


async def test_a_408_is_the_nodes_own_word(odd: str) -> None:
    async with ApiClient(odd, "key") as http:
        with pytest.raises(TimeoutError, match="nothing yet") as told:
            await http.call("GET", "/late")
    assert not isinstance(told.value, PeerFailed)


async def test_the_callers_own_deadline_stays_its_own(silent: str) -> None:
    async with ApiClient(silent, "key") as http:
        with pytest.raises(TimeoutError) as told:
            async with asyncio.timeout(0.1):
                await http.call("GET", "/x", timeout_s=30)
    assert not isinstance(told.value, PeerFailed)


@pytest.mark.parametrize("name", BODIES)
async def test_an_answer_that_no_node_gives_is_a_bad_answer(name: str, odd: str) -> None:
    async with ApiClient(odd, "key") as http:
        with pytest.raises(BadAnswer, match=f"/{name} gave an answer that no node gives") as told:
            await http.call("GET", f"/{name}", into=Thing)
    assert told.value.code == "bad_answer"


@pytest.mark.parametrize("name", ["html", "half", "bytes", "nested"])
async def test_so_it_is_where_any_json_would_do(name: str, odd: str) -> None:
    async with ApiClient(odd, "key") as http:
        with pytest.raises(BadAnswer):
            await http.call("GET", f"/{name}")
        assert await http.call("GET", "/nothing") is None
