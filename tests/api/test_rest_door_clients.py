"""Clients that wait, vanish, stall or crowd: what they do to the node and to each other, which is nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from yarl import URL

from tests.api.conftest import ACTIVITY, MARKET, OURS, PAYMENT, QUICK_S, Deal, Door, World, assert_shaped, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

CROWD = 200


def handlers() -> set[asyncio.Task[Any]]:
    """What the nodes of this process do for callers and for themselves, but for this test."""
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


@contextlib.asynccontextmanager
async def nothing_stays_behind(world: World) -> AsyncIterator[None]:
    """As many tasks after as before. Connections of the pool are let go first: each holds a task of the server."""
    await world.deal()
    await _settle(world)
    before = len(handlers())
    yield
    await _settle(world)
    await until(lambda: len(handlers()) <= before, within_s=QUICK_S)


async def _settle(world: World) -> None:
    for session in (world.alice.session, world.rent.session, world.host.session):
        connector = session.connector
        assert connector is not None
        for connections in list(connector._conns.values()):
            for protocol, _ in connections:
                protocol.close()


def polls(deal: Deal) -> list[tuple[str, str]]:
    """Every call of the requestor that waits when there is nothing to tell."""
    return [
        ("GET", f"{MARKET}/demands/{deal.demand_id}/events"),
        ("GET", f"{MARKET}/agreementEvents?afterTimestamp=2999-01-01T00:00:00Z"),
        ("GET", f"{MARKET}/scan/{deal.scan_id}/events"),
        ("GET", f"{ACTIVITY}/events?afterTimestamp=2999-01-01T00:00:00Z"),
        ("GET", f"{PAYMENT}/debitNoteEvents?afterTimestamp=2999-01-01T00:00:00Z"),
        ("GET", f"{PAYMENT}/invoiceEvents?afterTimestamp=2999-01-01T00:00:00Z"),
        ("GET", f"{PAYMENT}/payments?afterTimestamp=2999-01-01T00:00:00Z"),
        ("GET", f"{OURS}/settlements?afterTimestamp=2999-01-01T00:00:00Z"),
        ("GET", f"{OURS}/files/inbox/{deal.inbox_id}"),
    ]


async def drained(world: World) -> Deal:
    """A deal whose scan and demand have nothing left to tell."""
    deal = await world.deal(fresh=True)
    for path in (f"{MARKET}/scan/{deal.scan_id}/events", f"{MARKET}/demands/{deal.demand_id}/events"):
        while (await world.alice("GET", f"{path}?timeout=0.1&maxEvents=100")).json:
            pass
    return deal


def _timed(path: str, timeout: str) -> str:
    return f"{path}{'&' if '?' in path else '?'}timeout={timeout}"


async def test_every_long_poll_waits_as_long_as_it_was_asked_to(world: World) -> None:
    deal = await drained(world)

    async def one(method: str, path: str) -> None:
        begun = time.monotonic()
        answer = await world.alice(method, _timed(path, "0.3"))
        took = time.monotonic() - begun
        if path.startswith(f"{ACTIVITY}/events"):
            assert answer.status == 408
            assert_shaped(answer)
        elif "/inbox/" in path:
            assert (answer.status, answer.json) == (200, {"state": "empty"})
        else:
            assert (answer.status, answer.json) == (200, []), path
        assert 0.29 <= took < 3, (path, took)

    async with asyncio.TaskGroup() as group:
        for method, path in polls(deal):
            group.create_task(one(method, path))


@pytest.mark.parametrize("timeout", ["1e300", "inf", "99999999999999999999", "61"])
async def test_an_endless_time_out_is_a_long_one_and_no_accident(world: World, timeout: str) -> None:
    deal = await drained(world)
    async with nothing_stays_behind(world):
        waiting = [
            asyncio.get_running_loop().create_task(world.alice(method, _timed(path, timeout), within_s=0.3))
            for method, path in polls(deal)
        ]
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in done] == [TimeoutError] * len(waiting)


async def test_a_caller_that_hangs_up_in_a_long_poll_leaves_nothing_behind(world: World) -> None:
    deal = await drained(world)
    async with nothing_stays_behind(world):
        for method, path in polls(deal):
            for rude in (False, True):
                _, writer = await world.alice.raw(world.alice.head(method, _timed(path, "60")))
                await _arrived(world)
                if rude:
                    _reset(writer)
                else:
                    writer.close()


async def _arrived(world: World) -> None:
    """Another call was answered, so what was sent before it has been read."""
    assert (await world.alice("GET", "/me")).status == 200


def _reset(writer: asyncio.StreamWriter) -> None:
    """As a crash or a firewall ends a connection: RST, not FIN."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def test_half_closed_and_half_sent_requests_leave_nothing_behind(world: World) -> None:
    async with nothing_stays_behind(world):
        for part in (
            b"",
            b"GET /me HT",
            world.alice.head("GET", "/me")[:-2],
            world.alice.head("POST", f"{MARKET}/demands", "Content-Length: 100") + b'{"prop',
            world.alice.head("POST", f"{OURS}/files", "Content-Length: 1000000") + b"x" * 1000,
            world.alice.head("POST", f"{OURS}/files", "Transfer-Encoding: chunked") + b"5\r\nhello\r\n",
        ):
            for rude in (False, True):
                _, writer = await world.alice.raw(part)
                await _arrived(world)
                if rude:
                    _reset(writer)
                else:
                    writer.close()


async def test_a_broken_upload_stores_nothing(world: World) -> None:
    spool = world.alice.node.config.data_dir / "files"

    def incoming() -> list[str]:
        return [path.name for path in (spool / "incoming").iterdir()]

    await until(lambda: not incoming())
    before = sorted(path.name for path in (spool / "content").iterdir())
    head = world.alice.head("POST", f"{OURS}/files", "Content-Length: 1000000")
    _, writer = await world.alice.raw(head + b"x" * 300_000)
    await until(incoming)
    _reset(writer)
    await until(lambda: not incoming())
    assert sorted(path.name for path in (spool / "content").iterdir()) == before


async def test_two_hundred_long_polls_do_not_slow_short_calls(world: World) -> None:
    deal = await drained(world)
    async with nothing_stays_behind(world), asyncio.TaskGroup() as group:
        waiting = polls(deal)
        crowd = []
        for number in range(CROWD):
            method, path = waiting[number % len(waiting)]
            crowd.append(group.create_task(world.alice(method, _timed(path, "20"), within_s=30)))
        await until(lambda: len(handlers()) >= 2 * CROWD)
        await _arrived(world)
        times = []
        for _ in range(100):
            begun = time.perf_counter()
            assert (await world.alice("GET", "/me")).status == 200
            times.append(time.perf_counter() - begun)
        assert not any(task.done() for task in crowd)
        assert sorted(times)[50] < 0.05, sorted(times)[50]
        # ... and whoever waits hears of news at once, all of them
        upload = f"{OURS}/files/{deal.node_id}/{deal.inbox_id}"
        assert (await world.alice("PUT", upload, b"news")).status == 200
        inbox = [task for n, task in enumerate(crowd) if "/inbox/" in waiting[n % len(waiting)][1]]
        for answer in await asyncio.wait_for(asyncio.gather(*inbox), 5):
            assert answer.json["state"] == "complete"
        for task in crowd:
            task.cancel()


async def test_a_crowd_of_callers_that_vanish_at_once(world: World) -> None:
    deal = await drained(world)
    async with nothing_stays_behind(world):
        waiting = polls(deal)
        lines = []
        for number in range(CROWD):
            method, path = waiting[number % len(waiting)]
            lines.append(await world.alice.raw(world.alice.head(method, _timed(path, "60"))))
        await _arrived(world)
        for _, writer in lines:
            _reset(writer)
    assert (await world.alice("GET", "/me")).status == 200


async def test_requests_in_a_row_on_one_line_are_answered_in_order(world: World) -> None:
    reader, writer = await world.alice.raw(world.alice.head("GET", "/me") * 20)
    for _ in range(20):
        status = await asyncio.wait_for(reader.readline(), 5)
        assert status.startswith(b"HTTP/1.1 200 ")
        length = 0
        while (line := await reader.readline()) != b"\r\n":
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        await reader.readexactly(length)
    writer.close()


# --- streams ----------------------------------------------------------------------------------------------------------


async def _flood(world: World, kib: int) -> tuple[Deal, str]:
    deal = await world.deal(fresh=True)
    capture = {"stdout": {"stream": {}}}
    command = {"run": {"entry_point": "flood", "args": [str(kib)], "capture": capture}}
    return deal, await world.activities.exec(deal.activity_id, [command])


def _narrow(door: Door) -> socket.socket:
    """A connection that holds little of what is not read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    url = URL(door.node.api_url)
    sock.connect((url.host, url.port))
    sock.setblocking(False)
    return sock


async def test_a_reader_that_stops_reading_holds_up_nobody(world: World) -> None:
    deal, batch = await _flood(world, 16 << 10)
    async with nothing_stays_behind(world):
        path = f"{ACTIVITY}/activity/{deal.activity_id}/exec/{batch}"
        loop = asyncio.get_running_loop()
        stalled = _narrow(world.alice)
        await loop.sock_sendall(stalled, world.alice.head("GET", path, "Accept: text/event-stream"))
        assert (await loop.sock_recv(stalled, 100)).startswith(b"HTTP/1.1 200 ")
        # it reads no further; somebody else gets everything meanwhile
        total = 0
        async for event in world.activities.stream(deal.activity_id, batch):
            total += len(event.kind.stdout or "")
        assert total == 16 << 20
        results = await world.activities.results(deal.activity_id, batch)
        assert [r.result for r in results] == ["Ok"]
        begun = time.perf_counter()
        await _arrived(world)
        assert time.perf_counter() - begun < 1
        stalled.close()


async def test_a_reader_of_events_that_goes_away_leaves_nothing_behind(world: World) -> None:
    deal, batch = await _flood(world, 1 << 10)
    async with nothing_stays_behind(world):
        for path in (f"{ACTIVITY}/activity/{deal.activity_id}/exec/{batch}", f"{MARKET}/scan/{deal.scan_id}/events"):
            for rude in (False, True):
                head = world.alice.head("GET", path, "Accept: text/event-stream")
                reader, writer = await world.alice.raw(head)
                assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
                if rude:
                    _reset(writer)
                else:
                    writer.close()


async def test_events_are_replayed_from_where_a_reader_lost_them(world: World) -> None:
    deal, batch = await _flood(world, 256)
    path = f"{ACTIVITY}/activity/{deal.activity_id}/exec/{batch}"

    async def ids(last: str) -> list[str]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
        answer = await world.alice("GET", path, headers=headers)
        assert answer.content_type == "text/event-stream"
        lines = answer.body.split(b"\n")
        return [line.removeprefix(b"id: ").decode() for line in lines if line.startswith(b"id: ")]

    whole = await ids("")
    assert len(whole) > 5
    assert len(set(whole)) == len(whole)
    assert await ids(whole[3]) == whole[4:]
    for junk in ("x", "-1", "9" * 40, "1e3", "٣"):
        assert await ids(junk) == whole


# --- the exe unit's WebSocket -----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _line(world: World, activity_id: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    url = f"{world.bob.node.api_url}{OURS}/exeunit/{activity_id}"
    headers = {"Authorization": f"Bearer {world.bob.key}"}
    async with world.bob.session.ws_connect(url, headers=headers) as line:
        yield line


HELLO = '{"type":"Hello","unitId":"stranger","state":"New","batches":[]}'


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "hello",
        "{}",
        "[]",
        '{"type":"Goodbye"}',
        '{"type":"Hello"}',
        '{"type":"Hello","unitId":"","state":"New"}',
        '{"type":"Hello","unitId":"u","state":5}',
        "[" * 100_000,
        b"\x00\x01",
    ],
    ids=range(10),
)
async def test_a_unit_that_does_not_begin_with_hello_is_sent_away(world: World, frame: str | bytes) -> None:
    deal = await world.deal(fresh=True)
    async with nothing_stays_behind(world), _line(world, deal.activity_id) as line:
        await (line.send_str(frame) if isinstance(frame, str) else line.send_bytes(frame))
        message = await line.receive(timeout=5)
        assert message.type is aiohttp.WSMsgType.CLOSE
        assert message.data == 1008


@pytest.mark.parametrize(
    "frame",
    [
        "nonsense",
        '{"type":"BatchEvent","seq":1}',
        '{"type":"BatchEvent","seq":1,"batchId":"none","index":0,"eventDate":"2026-01-01T00:00:00Z",'
        '"kind":{"type":"Started","command":{}}}',
        '{"type":"BatchEvent","seq":99,"batchId":"none","index":0,"eventDate":"2026-01-01T00:00:00Z",'
        '"kind":{"type":"Started","command":{}}}',
        '{"type":"StateChanged","seq":1,"state":"Sideways"}',
        '{"type":"StateChanged","seq":-1,"state":"Ready"}',
        '{"type":"UsageReport","usage":[1e308,-5],"timestamp":1e300}',
        '{"type":"UsageReport","usage":[],"timestamp":-1e300}',
        '{"type":"UsageReport","usage":[null],"timestamp":0}',
        HELLO,
    ],
    ids=range(10),
)
async def test_a_unit_that_talks_nonsense_hurts_nobody_but_its_activity(world: World, frame: str) -> None:
    deal = await world.deal(fresh=True)
    async with _stranger(world, deal) as line:
        await line.send_str(frame)
        await line.close()
    await _sound(world, deal, deal.batch_id)


@contextlib.asynccontextmanager
async def _stranger(world: World, deal: Deal) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A unit of another kind in the place of the deal's, welcomed by the node."""
    world.units[-1].cancel()
    await asyncio.wait({world.units[-1]})
    async with _line(world, deal.activity_id) as line:
        await line.send_str(HELLO)
        welcome = await line.receive_json(timeout=5)
        assert welcome["type"] == "Ack"
        yield line


@pytest.mark.parametrize("date", ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00+23:59", "1969-01-01T00:00:00Z"])
async def test_a_unit_whose_clock_is_wild_spoils_no_answer(world: World, date: str) -> None:
    deal = await world.deal(fresh=True)
    async with _stranger(world, deal) as line:
        batch_id = await world.activities.exec(deal.activity_id, [{"run": {"entry_point": "x", "args": []}}])
        told = await line.receive_json(timeout=5)
        assert (told["type"], told["batchId"]) == ("Execute", batch_id)
        for seq, kind in enumerate(({"type": "Started", "command": {}}, {"type": "Finished", "returnCode": 0}), 1):
            event = {"type": "BatchEvent", "seq": seq, "batchId": batch_id, "index": 0, "eventDate": date, "kind": kind}
            await line.send_json(event)
        await _sound(world, deal, batch_id)


async def _sound(world: World, deal: Deal, batch_id: str) -> None:
    """Both sides can still be asked about the activity, and everything else."""
    activity = f"{ACTIVITY}/activity/{deal.activity_id}"
    for door in (world.alice, world.bob):
        for path in (f"{activity}/state", f"{activity}/usage", f"{activity}/exec/{batch_id}?timeout=0.3"):
            assert_shaped(await door("GET", path))
        assert (await door("GET", f"{ACTIVITY}/activity?agreementId={deal.agreement_id}")).status == 200
        assert_shaped(await door("GET", f"{OURS}/payment/debitNotes/{deal.note_id}/audit"))


async def test_a_unit_that_vanishes_leaves_no_task_behind(world: World) -> None:
    deal = await world.deal(fresh=True)
    async with nothing_stays_behind(world):
        for _ in range(5):
            async with _line(world, deal.activity_id) as line:
                await line.send_str(HELLO)
                await line.receive(timeout=5)
                transport = line.get_extra_info("socket")
                assert transport is not None
                line._writer.transport.abort()  # type: ignore[union-attr]


async def test_strangers_get_no_line_to_an_activity(world: World) -> None:
    deal = await world.deal()
    path = f"{OURS}/exeunit/{deal.activity_id}"
    upgrade = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw==",
    }
    answer = await world.alice("GET", path, headers=upgrade)  # the requestor is not its provider
    assert answer.status in (403, 404), answer
    assert_shaped(answer)
    for wrong in ({}, {**upgrade, "Sec-WebSocket-Key": "short"}, {**upgrade, "Sec-WebSocket-Version": "1"}):
        answer = await world.bob("GET", path, headers=wrong)
        assert answer.status == 400, answer
        assert_shaped(answer)
