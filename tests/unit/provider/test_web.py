"""Where a provider may be sent, and how a web server may treat it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from shem.errors import ShemError
from shem.provider.exeunit.web import Web, WebFailed, WebNotFound, WebRefused

OURS = "127.0.0.2"
"""Stands for the provider's own network in these tests; 127.0.0.1 stands for the rest of the world."""


class Server:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str | None]] = []
        self.port = 0

    async def answer(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        address = request.transport.get_extra_info("sockname")[0]
        self.asked.append((address, request.path_qs, request.headers.get("Authorization")))
        to = request.query.get("to")
        if to is not None:
            raise web.HTTPFound(to.replace("PORT", str(self.port)))
        if request.path.startswith("/packed"):
            return web.Response(body=b"\x1f\x8b as it is", headers={"Content-Encoding": "gzip"})
        if request.path.startswith("/status/"):
            return web.Response(status=int(request.path.split("/")[2]))
        return web.Response(body=await request.read() or b"content")


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    app = web.Application()
    app.router.add_route("*", "/{name:.*}", made.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.port = runner.addresses[0][1]
    await web.TCPSite(runner, OURS, made.port).start()
    yield made
    await runner.cleanup()


async def get(web: Web, url: str) -> bytes:
    async with asyncio.timeout(20), web.get(url) as answer:
        return b"".join([chunk async for chunk in answer.chunks()])


def guarded(*answers: str) -> Web:
    """Everything but OURS is public; names resolve to ``answers``, one after the other."""
    names = Names(iter(answers))
    return Web(public=lambda host: host != OURS, names=lambda: names)


class Names(AbstractResolver):
    def __init__(self, answers: Iterator[str]) -> None:
        self._answers = answers

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0)
            for address in next(self._answers).split()
        ]

    async def close(self) -> None: ...


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "127.1", "0x7f.1", "0x7f000001", "2130706433", "0", "[::1]", "[::ffff:127.0.0.1]"),
        *("169.254.169.254", "10.0.0.1", "[fe80::1]", "[64:ff9b::7f00:1]", "user:pw@127.0.0.1", "127.0.0.1."),
    ],
)
async def test_private_places_are_refused(server: Server, host: str) -> None:
    with pytest.raises(ShemError) as failure:
        await get(Web(), f"http://{host}:{server.port}/x")
    assert failure.type in (WebRefused, WebFailed), failure.value  # the latter: not an address, and no name either
    assert server.asked == []
    assert "pw" not in str(failure.value)


async def test_they_are_spoken_to_when_the_operator_says_so(server: Server) -> None:
    for host in ("127.0.0.1", "localhost"):
        assert await get(Web(private_addresses=True), f"http://{host}:{server.port}/x") == b"content"


async def test_a_redirect_obeys_the_same_rule(server: Server) -> None:
    for place in (f"http://{OURS}:PORT/x", f"//{OURS}:PORT/x", "http://name.test:PORT/x"):
        with pytest.raises(WebRefused):
            await get(guarded(OURS), f"http://127.0.0.1:{server.port}/?to={place}")
    assert {address for address, *_ in server.asked} == {"127.0.0.1"}
    with pytest.raises(WebRefused):
        await get(guarded(), f"http://127.0.0.1:{server.port}/?to=file:///etc/passwd")


async def test_what_was_checked_is_what_is_spoken_to(server: Server) -> None:
    """A name that changes its mind: each look-up is used once, and the connection goes to its answer."""
    web = guarded("127.0.0.1", OURS)
    assert await get(web, f"http://name.test:{server.port}/x") == b"content"
    with pytest.raises(WebRefused):
        await get(web, f"http://name.test:{server.port}/x")
    assert [address for address, *_ in server.asked] == ["127.0.0.1"]


async def test_of_several_addresses_the_private_are_left_out(server: Server) -> None:
    assert await get(guarded(f"{OURS} 127.0.0.1"), f"http://name.test:{server.port}/x") == b"content"
    assert [address for address, *_ in server.asked] == ["127.0.0.1"]


async def test_a_login_stays_where_it_belongs(server: Server) -> None:
    web = guarded("127.0.0.1")
    await get(web, f"http://me:pw@127.0.0.1:{server.port}/a?to=/b")
    assert [login is not None for _, _, login in server.asked] == [True, True]
    server.asked.clear()
    await get(web, f"http://me:pw@127.0.0.1:{server.port}/a?to=http://u:x@name.test:PORT/b")
    assert [login is not None for _, _, login in server.asked] == [True, False]


async def test_a_url_is_asked_for_as_it_is_written(server: Server) -> None:
    await get(Web(private_addresses=True), f"http://127.0.0.1:{server.port}/a%2fb%7e?sig=a%2Bb/c+d&e=%C3%A9#part")
    assert server.asked[0][1] == "/a%2fb%7e?sig=a%2Bb/c+d&e=%C3%A9"


async def test_what_is_packed_stays_so(server: Server) -> None:
    assert await get(Web(private_addresses=True), f"http://127.0.0.1:{server.port}/packed") == b"\x1f\x8b as it is"


@pytest.mark.parametrize(
    ("status", "kind"), [(404, WebNotFound), (410, WebNotFound), (403, WebFailed), (500, WebFailed)]
)
async def test_statuses(server: Server, status: int, kind: type[ShemError]) -> None:
    with pytest.raises(kind, match=str(status)):
        await get(Web(private_addresses=True), f"http://127.0.0.1:{server.port}/status/{status}")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://",
        "http:///x",
        "ftp://a/b",
        "http://a:99999/",
        "http://[::1",
        "http://a b/",
        "x" * 9000,
        "http://\0/",
    ],
)
async def test_what_is_no_url(url: str) -> None:
    with pytest.raises((WebRefused, WebFailed)):
        await get(Web(private_addresses=True), url)


async def test_an_upload_of_a_source_that_breaks(server: Server) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"some"
        raise WebNotFound("the source is gone")

    with pytest.raises((WebNotFound, WebFailed)):
        await Web(private_addresses=True).put(f"http://127.0.0.1:{server.port}/x", broken())


async def test_an_upload_to_a_private_place(server: Server) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"secret"

    with pytest.raises(WebRefused):
        await guarded().put(f"http://{OURS}:{server.port}/x", content())
    assert server.asked == []


async def test_names_of_nobody() -> None:
    with pytest.raises(WebFailed, match="no address"):
        await get(Web(), "http://nobody.invalid/x")
