"""What readers see: captures in every form, binary output, the stream replayed from the start, slow readers, limits."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from shem.node.activity.settings import Settings


async def collect(pair: Any, activity_id: str, batch: str) -> list[Any]:
    async with asyncio.timeout(10):
        return [event async for event in pair.rent.stream(activity_id, batch)]


def outputs(events: list[Any], name: str = "stdout") -> list[Any]:
    return [found for e in events if (found := getattr(e.kind, name)) is not None]


async def test_the_stream_is_complete_ordered_and_replayed(pair: Any, tools: Any) -> None:
    activity_id, unit = await pair.activity()
    batch = await pair.rent.exec(
        activity_id,
        [
            tools.run("echo", "one"),
            tools.run("wait", "go"),
            tools.run("err", "two"),
            {"transfer": {"from": "gftp://a/b", "to": "container:/x"}},
            tools.run("exit", "7"),
            tools.run("echo", "never"),
        ],
    )
    early = asyncio.gather(*(collect(pair, activity_id, batch) for _ in range(3)))
    await tools.until(lambda: (batch, 1) in unit.begun)
    unit.gate("go").set()
    first, *others = await early
    late = await collect(pair, activity_id, batch)
    for other in (*others, late):
        assert other == first
    assert {e.batch_id for e in first} == {batch}
    shapes = [(e.index, next(f for f in e.kind.__struct_fields__ if getattr(e.kind, f) is not None)) for e in first]
    assert shapes == [
        (0, "started"),
        (0, "stdout"),
        (0, "finished"),
        (1, "started"),
        (1, "finished"),
        (2, "started"),
        (2, "stderr"),
        (2, "finished"),
        (3, "started"),
        (3, "progress"),
        (3, "finished"),
        (4, "started"),
        (4, "finished"),
    ]
    assert first[0].kind.started.command == tools.run("echo", "one")
    assert first[9].kind.progress.progress == (5, 10)
    assert first[-1].kind.finished.return_code == 7
    assert first[-1].kind.finished.message == "ExeScript command exited with code 7"


async def test_raw_stream_format_and_resumption(pair: Any, tools: Any) -> None:
    activity_id, _ = await pair.activity()
    batch = await pair.rent.exec(activity_id, [tools.run("echo", "hi")])
    path = f"/activity-api/v1/activity/{activity_id}/exec/{batch}"
    async with pair.alice.http() as http:
        headers = {"Accept": "text/event-stream"}
        async with http.session.get(http.url(path), headers=headers) as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            lines = (await answer.read()).decode().split("\n")
        async with http.session.get(http.url(path), headers={**headers, "Last-Event-ID": ids(lines)[0]}) as answer:
            rest = (await answer.read()).decode().split("\n")
    assert lines[0] == "event: runtime"
    assert len(ids(lines)) == 3
    data = msgspec.json.decode(next(line for line in lines if line.startswith("data: {"))[6:])
    assert set(data) == {"batch_id", "index", "timestamp", "kind"}
    assert not data["timestamp"].endswith("Z")
    assert ids(rest) == ids(lines)[1:]


async def test_a_reader_that_lost_its_line_within_an_event_goes_on_there(pair: Any, tools: Any) -> None:
    """Output that is given at the end comes in several parts, and the end of the command behind it, all of one event."""
    activity_id, _ = await pair.activity()
    batch = await pair.rent.exec(activity_id, [tools.run("count", "60000", capture={"stdout": {"atEnd": {}}})])
    await pair.rent.results(activity_id, batch, timeout_s=20)
    path = f"/activity-api/v1/activity/{activity_id}/exec/{batch}"
    async with pair.alice.http() as http:

        async def read(last: str) -> list[str]:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": last}
            async with http.session.get(http.url(path), headers=headers) as answer:
                return (await answer.read()).decode().split("\n")

        whole = await read("")
        assert len(ids(whole)) > 6
        assert max(map(len, whole)) < 64 << 10
        for number, last in enumerate(ids(whole)):
            rest = await read(last)
            assert ids(rest) == ids(whole)[number + 1 :]


def ids(lines: list[str]) -> list[str]:
    return [line[4:] for line in lines if line.startswith("id: ")]


async def test_binary_and_broken_text(pair: Any, tools: Any) -> None:
    activity_id, _ = await pair.activity()
    raw = bytes(range(256)) * 3
    binary = {"stdout": {"atEnd": {"format": "bin"}}}
    batch = await pair.rent.exec(
        activity_id,
        [
            tools.run("bytes", raw.hex()),
            tools.run("bytes", "6869", capture=binary),
            # a euro sign cut in three, an emoji cut in two, then the beginning of a character that never ends
            tools.run("pieces", "e2", "82", "ac41", "f09f", "9880", "e2"),
        ],
    )
    results = await pair.rent.results(activity_id, batch, timeout_s=5)
    assert results[0].stdout == list(raw)
    assert results[0].stdout_bytes == raw
    assert results[1].stdout == [0x68, 0x69]
    assert results[2].stdout_bytes == b"\xe2\x82\xacA\xf0\x9f\x98\x80\xe2"
    events = await collect(pair, activity_id, batch)
    assert outputs([e for e in events if e.index == 0]) == [list(raw)]
    assert outputs([e for e in events if e.index == 1]) == [[0x68, 0x69]]
    assert outputs([e for e in events if e.index == 2]) == ["€A", "😀", [0xE2]]


@pytest.mark.parametrize(
    ("capture", "result", "streamed"),
    [
        (None, None, []),
        ({"stdout": None}, None, []),
        ({"stderr": {"stream": {}}}, None, []),
        ({"stdout": {"stream": {}}}, "0123456789", ["0123456789"]),
        ({"stdout": {"stream": {"limit": 4}}}, "0123", ["0123"]),
        ({"stdout": {"stream": {"format": "binary"}}}, list(b"0123456789"), [list(b"0123456789")]),
        ({"stdout": {"atEnd": {}}}, "0123456789", ["0123456789"]),
        ({"stdout": {"atEnd": {"head": 3, "format": "str"}}}, "012", ["012"]),
        ({"stdout": {"atEnd": {"tail": 3, "format": "string"}}}, "789", ["789"]),
        ({"stdout": {"atEnd": {"headTail": 5}}}, "01289", ["01289"]),
        ({"stdout": {"atEnd": {"head": 3, "format": "bin"}}}, list(b"012"), [list(b"012")]),
    ],
)
async def test_captures(pair: Any, tools: Any, capture: Any, result: Any, streamed: Any) -> None:
    activity_id, _ = await pair.activity()
    batch = await pair.rent.exec(activity_id, [tools.run("echo", "0123456789", capture=capture)])
    (found,) = await pair.rent.results(activity_id, batch, timeout_s=5)
    assert found.stdout == result
    assert outputs(await collect(pair, activity_id, batch)) == streamed


async def test_much_output_arrives_whole(pair: Any, tools: Any) -> None:
    activity_id, _ = await pair.activity()
    lines = 20_000
    batch = await pair.rent.exec(activity_id, [tools.run("count", str(lines))])
    reader = pair.rent.stream(activity_id, batch)
    first = await anext(reader)  # a slow reader: it looks again only when all is over
    (result,) = await pair.rent.results(activity_id, batch, timeout_s=30)
    expected = "".join(f"{n}\n" for n in range(lines))
    assert result.stdout == expected
    assert "".join(outputs([first, *[e async for e in reader]])) == expected
    stored = pair.bob.db.connection.execute("select count(*) from hosted_event").fetchone()[0]
    assert stored == 0  # what has arrived is not kept twice


class TestLimits:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return msgspec.structs.replace(settings, max_output_bytes=1000, keep_batches=3, max_queued_batches=4)

    async def test_too_much_output_fails_the_command(self, pair: Any, tools: Any) -> None:
        activity_id, unit = await pair.activity()
        batch = await pair.rent.exec(activity_id, [tools.run("count", "1000"), tools.run("echo", "no")])
        (result,) = await pair.rent.results(activity_id, batch, timeout_s=5)
        assert result.result == "Error"
        assert result.message.startswith("output_limit")
        assert result.is_batch_finished
        assert result.stdout.startswith("0\n1\n2\n")
        await tools.until(lambda: unit.cancelled == [batch])
        events = await collect(pair, activity_id, batch)
        assert events[-1].kind.finished.message.startswith("output_limit")

    async def test_old_batches_are_forgotten(self, pair: Any, tools: Any) -> None:
        activity_id, _ = await pair.activity()
        batches = []
        for number in range(6):
            batches.append(await pair.rent.exec(activity_id, [tools.run("echo", str(number))]))
            await pair.rent.results(activity_id, batches[-1], timeout_s=5)
        kept = [
            row["batch_id"]
            for row in pair.alice.db.connection.execute("select batch_id from rented_batch order by number")
        ]
        assert kept == batches[-3:]
        orphans = "select count(*) from rented_event where batch_id not in (select batch_id from rented_batch)"
        assert pair.alice.db.connection.execute(orphans).fetchone()[0] == 0

    async def test_too_many_batches_wait(self, pair: Any, tools: Any) -> None:
        activity_id, unit = await pair.activity()
        for _ in range(4):
            await pair.rent.exec(activity_id, [tools.run("wait", "go")])
        with pytest.raises(Exception, match="waiting already"):
            await pair.rent.exec(activity_id, [tools.run("echo", "x")])
        unit.gate("go").set()
