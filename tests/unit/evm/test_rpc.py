"""Endpoints that fail in every way they know."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from shem.node.payment.drivers.base import ChainUnreachable
from shem.node.payment.drivers.evm.rpc import MAX_LINES, Receipt, RpcPool, RpcRefused, WrongChain, read
from shem.testing.devchain.node import DevChain

GOOD, BAD = "http://good", "http://bad"

Answer = Callable[[list[dict[str, object]]], object]


class Line:
    """Two endpoints: a good one, and one that does what the test says."""

    def __init__(self, bad: Answer | BaseException) -> None:
        self.bad = bad
        self.asked: list[str] = []

    async def __call__(self, url: str, body: bytes) -> bytes:
        self.asked.append(url)
        if url == BAD and isinstance(self.bad, BaseException):
            raise self.bad
        decoded = msgspec.json.decode(body)
        requests = decoded if isinstance(decoded, list) else [decoded]
        if url == BAD and not isinstance(self.bad, BaseException):
            answers = self.bad(requests)
            if isinstance(answers, bytes):
                return answers
        else:
            answers = honest(requests)
        if isinstance(answers, list) and not isinstance(decoded, list):
            answers = answers[0]
        return msgspec.json.encode(answers)


def honest(
    requests: list[dict[str, object]], *, chain_id: int = 7, age_s: float = 0.0, **results: object
) -> list[object]:
    head = {"number": "0x5", "hash": "0x" + "00" * 32, "timestamp": hex(int(time.time() - age_s))}
    known: dict[str, object] = {"eth_chainId": hex(chain_id), "eth_getBlockByNumber": head, "eth_blockNumber": "0x5"}
    known |= results
    return [{"jsonrpc": "2.0", "id": r["id"], "result": known[str(r["method"])]} for r in requests]


def pool(line: Line, *urls: str, **how: Any) -> RpcPool:
    return RpcPool(urls, 7, transport=line, timeout_s=0.2, **how)


async def slow(url: str, body: bytes) -> bytes:
    await asyncio.sleep(60)  # plays dead
    return b""


FAILURES: dict[str, tuple[Answer | BaseException, str]] = {
    "down": (aiohttp.ClientConnectionError("refused"), r"^http://bad does not answer: no connection \(chain_"),
    "refused": (
        ConnectionRefusedError(111, "Connect call"),
        r"^http://bad does not answer: connection refused \(chain_",
    ),
    "reset": (ConnectionResetError("reset"), r"^http://bad does not answer: the connection was cut \(chain_"),
    "no route": (OSError(errno.ENETUNREACH, "x"), r"^http://bad does not answer: network is unreachable \(chain_"),
    "cut": (aiohttp.ServerDisconnectedError(), r"^http://bad does not answer: the connection was cut \(chain_"),
    "429": (aiohttp.ClientError("HTTP 429"), r"^http://bad does not answer: HTTP 429 \(chain_"),
    "no json": (lambda r: b"<html>", "not JSON-RPC"),
    "half an answer": (lambda r: honest(r)[:-1] or b"[]", "other questions|not JSON-RPC"),
    "wrong ids": (lambda r: [{"id": 0, "result": "0x7"}] * len(r), "other questions"),
    "wrong chain": (lambda r: honest(r, chain_id=8), "serves chain 8, not 7"),
    "old head": (lambda r: honest(r, age_s=1000), r"its last block is 100\d s old"),
    "chain id is a word": (lambda r: honest(r, eth_chainId="seven"), "where a number belongs"),
    "a time of no calendar": (
        lambda r: honest(r, eth_getBlockByNumber={"number": "0x5", "hash": "0x", "timestamp": "0x" + "f" * 400}),
        "where a number belongs",
    ),
    "head is null": (lambda r: honest(r, eth_getBlockByNumber=None), "not what was asked for"),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_the_next_endpoint_serves_when_the_first_fails(name: str) -> None:
    line = Line(FAILURES[name][0])
    both = pool(line, BAD, GOOD, max_head_age_s=60)
    assert await both.call("eth_blockNumber", [], str) == "0x5"
    line.asked.clear()
    assert await both.call("eth_blockNumber", [], str) == "0x5"
    assert line.asked == [GOOD], "the failed one is passed over for a while"


@pytest.mark.parametrize("name", FAILURES)
async def test_the_reason_is_told_when_none_is_left(name: str) -> None:
    answer, reason = FAILURES[name]
    alone = pool(Line(answer), BAD, max_head_age_s=60)
    with pytest.raises(ChainUnreachable, match=reason) as caught:
        await alone.call("eth_blockNumber", [], str)
    assert isinstance(caught.value, WrongChain) == (name == "wrong chain")


async def test_who_is_not_there_is_told_in_our_words_and_without_the_key() -> None:
    """By the real line: what the libraries say has their own words, and some of them the whole address."""
    with socket.socket() as taken:  # bound and not listening: it refuses
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        refused = await reason_of(f"http://127.0.0.1:{port}/v3/secret?key=secret")
    assert refused == f"http://127.0.0.1:{port} does not answer: connection refused"
    assert (
        await reason_of("http://nobody.invalid/secret")
        == "http://nobody.invalid does not answer: its name is not known"
    )


async def reason_of(url: str) -> str:
    """Why there is no answer."""
    alone = RpcPool([url], 7)
    with pytest.raises(ChainUnreachable) as refused:
        await alone.call("eth_blockNumber", [], str)
    await alone.close()
    return refused.value.message


def refuse(requests: list[dict[str, object]], method: str) -> object:
    """As by an endpoint that has answered enough for today, with a status of 200."""
    error = {"code": -32005, "message": "daily request count exceeded"}
    return [
        {"id": r["id"], "error": error} if r["method"] == method else told
        for r, told in zip(requests, honest(requests), strict=True)
    ]


@pytest.mark.parametrize(
    "bad",
    [lambda r: refuse(r, "eth_blockNumber"), lambda r: honest(r, eth_blockNumber={"nonsense": 1})],
    ids=["a refusal", "nonsense"],
)
async def test_what_every_endpoint_should_know_is_asked_of_the_next_one(bad: Answer) -> None:
    """It passes the check, so it is no bad endpoint as far as that shows."""
    line = Line(bad)
    both = pool(line, BAD, GOOD)
    assert await both.ask([("eth_blockNumber", [])], lambda results: read(results[0], str)) == "0x5"
    line.asked.clear()
    assert await both.each([("eth_blockNumber", [])] * 250, lambda result: read(result, str)) == ["0x5"] * 250
    assert set(line.asked) == {GOOD}, "it is passed over for a while"
    with pytest.raises(ChainUnreachable, match=r"daily request count exceeded|not what was asked for"):
        await pool(line, BAD).ask([("eth_blockNumber", [])], lambda results: read(results[0], str))


async def test_nonsense_is_asked_of_the_next_one_and_a_refusal_is_an_answer() -> None:
    nonsense = pool(Line(lambda r: honest(r, eth_blockNumber={"nonsense": 1})), BAD, GOOD)
    assert await nonsense.call("eth_blockNumber", [], str) == "0x5"
    with pytest.raises(RpcRefused, match="daily request count"):
        await pool(Line(lambda r: refuse(r, "eth_blockNumber")), BAD, GOOD).call("eth_blockNumber", [], str)


async def test_an_endpoint_that_comes_back_is_used_at_once_when_it_is_the_only_one() -> None:
    line = Line(ConnectionResetError("down"))
    alone = pool(line, BAD)
    for _ in range(3):
        with pytest.raises(ChainUnreachable):
            await alone.call("eth_blockNumber", [], str)
    line.bad = honest
    assert await alone.call("eth_blockNumber", [], str) == "0x5"


async def test_an_endpoint_that_falls_behind_later_is_left_then() -> None:
    line = Line(honest)
    both = pool(line, BAD, GOOD, max_head_age_s=60, recheck_s=0)
    assert await both.call("eth_blockNumber", [], str) == "0x5"
    assert set(line.asked) == {BAD}
    line.bad = lambda r: honest(r, age_s=1000)
    line.asked.clear()
    assert await both.call("eth_blockNumber", [], str) == "0x5"
    assert line.asked[-1] == GOOD


async def test_the_chain_is_known_by_its_first_block() -> None:
    seen: list[str] = []

    def pin(first: str) -> str:
        seen.append(first)
        return seen[0]

    other = {"number": "0x0", "hash": "0x" + "11" * 32, "timestamp": hex(int(time.time()))}
    line = Line(lambda r: honest(r, eth_getBlockByNumber=other))
    assert await pool(line, GOOD, BAD, pin=pin).call("eth_blockNumber", [], str) == "0x5"
    with pytest.raises(WrongChain, match="not the chain it was"):
        await pool(line, BAD, pin=pin).call("eth_blockNumber", [], str)
    assert await pool(line, BAD, GOOD, pin=pin).call("eth_blockNumber", [], str) == "0x5"


async def test_silence_ends_after_the_timeout() -> None:
    silent = RpcPool([BAD], 7, transport=slow, timeout_s=0.05)
    with pytest.raises(ChainUnreachable, match="no answer within"):
        await silent.call("eth_blockNumber", [], str)


async def test_no_endpoint_at_all() -> None:
    with pytest.raises(ChainUnreachable, match="no endpoint is configured"):
        await pool(Line(honest)).call("eth_blockNumber", [], str)


async def test_a_refusal_is_not_a_failure(chain: DevChain) -> None:
    real = RpcPool([chain.rpc_url], 1337)
    with pytest.raises(RpcRefused, match="does not exist") as caught:
        await real.call("eth_nonsense", [], str)
    assert caught.value.rpc_code == -32601
    number, refused = await real.batch([("eth_blockNumber", []), ("eth_nonsense", [])])
    assert read(number, str).startswith("0x")
    assert isinstance(refused, RpcRefused)
    await real.close()


@pytest.mark.parametrize("most", [1, 10])
async def test_an_endpoint_that_refuses_many_questions_is_asked_fewer(most: int) -> None:
    longest: list[int] = []

    def few(requests: list[dict[str, object]]) -> object:
        longest.append(len(requests))
        if len(requests) > most:
            return msgspec.json.encode(
                {"jsonrpc": "2.0", "id": None, "error": {"code": -32005, "message": "batch limit"}}
            )
        return honest(requests)

    alone = pool(Line(few), BAD)
    for _ in range(2):
        results = await alone.batch([("eth_blockNumber", [])] * 90)
        assert [read(result, str) for result in results] == ["0x5"] * 90  # type: ignore[arg-type]
    assert longest.count(90) <= 1, "it is remembered"


async def test_errors_hold_no_key_of_an_endpoint() -> None:
    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"SIP/2.0 what\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    urls = [f"http://user:s3cret@127.0.0.1:{port}/v2/s3cret?key=s3cret", "http://[s3cret", "http://127.0.0.1:1/s3cret"]
    real = RpcPool([*urls, "s3cret"], 7)
    with pytest.raises(ChainUnreachable) as caught:
        await real.call("eth_chainId", [], str)
    assert "s3cret" not in caught.value.message
    assert f"http://127.0.0.1:{port}" in caught.value.message
    await real.close()
    server.close()


REASON = "08c379a0" + f"{32:064x}{9:064x}" + b"no dice 1".hex().ljust(64, "0")


@pytest.mark.parametrize(
    ("code", "message", "data", "said"),
    [
        (3, "execution reverted: no dice 1", "0x" + REASON, "execution reverted: no dice 1"),
        (3, "execution reverted", "0x" + REASON, "execution reverted: no dice 1"),
        (-32015, "VM execution error.", "Reverted 0x" + REASON, "VM execution error. (execution reverted: no dice 1)"),
        (-32000, "out of luck", {"data": "0x" + REASON}, "out of luck (execution reverted: no dice 1)"),
        (3, "no", None, "no (execution reverted)"),
        (-32015, "no", 7, "no (execution reverted)"),
        (-32000, "no", "0x" + REASON[:70], "no"),
        (-32000, "no", "0x08c379a0zz", "no"),
    ],
)
async def test_what_a_contract_said_is_found_wherever_it_stands(
    code: int, message: str, data: object, said: str
) -> None:
    error = {"code": code, "message": message, "data": data}
    alone = pool(
        Line(lambda r: [{"id": q["id"], "error": error} if q["method"] == "x" else honest([q])[0] for q in r]), BAD
    )
    (refused,) = await alone.batch([("x", [])])
    assert isinstance(refused, RpcRefused)
    assert (refused.message, refused.rpc_code) == (said, code)


async def test_long_batches_are_cut(chain: DevChain) -> None:
    real = RpcPool([chain.rpc_url], 1337)
    results = await real.batch([("eth_getBalance", [f"0x{place:040x}", "latest"]) for place in range(250)])
    assert len(results) == 250
    await real.close()


async def test_a_result_of_another_shape_is_no_crash() -> None:
    line = Line(lambda r: honest(r, eth_getTransactionReceipt={"logs": 5}))
    with pytest.raises(ChainUnreachable, match="not what was asked for"):
        await pool(line, BAD).call("eth_getTransactionReceipt", ["0x"], Receipt)


async def test_http_errors_and_floods_are_failures() -> None:
    async def too_many(request: web.Request) -> web.Response:
        return web.Response(status=429)

    async def flood(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            for _ in range(64):
                await response.write(b" " * (1 << 20))
        except ConnectionError:
            pass
        return response

    app = web.Application()
    app.router.add_post("/429", too_many)
    app.router.add_post("/flood", flood)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    for path, reason in (("/429", "HTTP 429"), ("/flood", "more than")):
        real = RpcPool([base + path], 7)
        with pytest.raises(ChainUnreachable, match=reason):
            await real.call("eth_chainId", [], str)
        await real.close()
    await runner.cleanup()


@pytest.mark.parametrize("status", [400, 413, 500])
async def test_few_questions_at_a_time_are_asked_where_many_are_refused_by_a_status(status: int) -> None:
    """With the error object of JSON-RPC, or (a proxy before the endpoint) with a page."""

    async def few(request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read())
        if not isinstance(asked, list):
            return web.Response(body=msgspec.json.encode(honest([asked])[0]))
        error = {"jsonrpc": "2.0", "id": None, "error": {"code": 31, "message": "batch of more than one"}}
        body = b"<html>too large</html>" if status == 413 else msgspec.json.encode(error)
        return web.Response(status=status, body=body)

    async def refused(request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read())
        error = {"code": 3, "message": "execution reverted"}
        told = [{"id": one["id"], "error": error} if one["method"] == "eth_call" else honest([one])[0] for one in asked]
        failed = any("error" in one for one in told)  # type: ignore[operator]
        return web.Response(status=status if failed else 200, body=msgspec.json.encode(told))

    app = web.Application()
    app.router.add_post("/few", few)
    app.router.add_post("/refused", refused)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    real = RpcPool([f"{base}/few"], 7)
    assert await real.each([("eth_blockNumber", [])] * 5, lambda result: read(result, str)) == ["0x5"] * 5
    await real.close()
    if status != 413:
        real = RpcPool([f"{base}/refused"], 7)
        called, head = await real.batch([("eth_call", []), ("eth_blockNumber", [])])
        assert isinstance(called, RpcRefused)
        assert read(head, str) == "0x5"
        await real.close()
    await runner.cleanup()


async def test_many_callers_at_once_do_not_make_an_endpoint_look_slow() -> None:
    """Who has to wait for the others' turns waits on our side, which says nothing about the endpoint."""
    lines = 0
    most = 0

    async def serve(url: str, body: bytes) -> bytes:
        nonlocal lines, most
        lines += 1
        most = max(most, lines)
        await asyncio.sleep(0.1)  # what an endpoint far away takes
        lines -= 1
        asked = msgspec.json.decode(body)
        return msgspec.json.encode(honest(asked) if isinstance(asked, list) else honest([asked])[0])

    busy = RpcPool([BAD], 7, transport=serve, timeout_s=0.3)
    async with asyncio.TaskGroup() as group:
        for _ in range(40):
            group.create_task(busy.call("eth_blockNumber", [], str))
    assert most == MAX_LINES


async def test_an_endpoint_that_was_silent_to_one_is_not_waited_for_by_all_behind_it() -> None:
    line = Line(honest)
    silent = 0

    async def serve(url: str, body: bytes) -> bytes:
        nonlocal silent
        if url == BAD:
            silent += 1
            await slow(url, body)
        return await line(url, body)

    busy = RpcPool([BAD, GOOD], 7, transport=serve, timeout_s=0.1)
    async with asyncio.TaskGroup() as group:
        for _ in range(40):
            group.create_task(busy.call("eth_blockNumber", [], str))
    assert silent == MAX_LINES
