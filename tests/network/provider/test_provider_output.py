"""What is seen of a command's output, from a real sandbox to the client: in every form, by long poll and as a stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.network.provider.conftest import Rental, World

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rental(shop: World) -> AsyncIterator[Rental]:
    rented = await shop.requestor.rent(shop.package)
    await rented.open()
    yield rented
    await shop.requestor.end(rented)


def shell(text: str, out: Any, err: Any = None) -> dict[str, Any]:
    return {"run": {"entry_point": "/bin/sh", "args": ["-c", text], "capture": {"stdout": out, "stderr": err}}}


async def seen(shop: World, rental: Rental, *commands: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """The results of a batch as a long poll gives them, and its events as they are sent."""
    batch = await shop.requestor.activities.exec(rental.activity_id, commands)
    await rental.finish(batch)
    path = f"/activity-api/v1/activity/{rental.activity_id}/exec/{batch}"
    results = await shop.requestor.http.call("GET", path)
    events = [json.loads(data) async for _, _, data in shop.requestor.http.events(path)]
    return results, events


def outputs(events: list[Any], name: str = "stdout") -> list[Any]:
    return [event["kind"][name] for event in events if name in event["kind"]]


@pytest.mark.parametrize(
    ("mode", "shown"),
    [
        ({"stream": {}}, "0123456789"),
        ({"stream": {"limit": 4}}, "0123"),
        ({"stream": {"limit": None, "format": "str"}}, "0123456789"),
        ({"stream": {"format": "binary"}}, list(b"0123456789")),
        ({"atEnd": {}}, "0123456789"),
        ({"atEnd": {"head": 3, "format": "string"}}, "012"),
        ({"atEnd": {"tail": 3}}, "789"),
        ({"atEnd": {"headTail": 5}}, "01289"),
        ({"atEnd": {"headTail": 4, "format": "bin"}}, list(b"0189")),
        ({"atEnd": {"head": 100}}, "0123456789"),
        ({"atEnd": {"tail": 0}}, ""),
        (None, None),
    ],
)
async def test_captures(shop: World, rental: Rental, mode: Any, shown: Any) -> None:
    (result,), events = await seen(shop, rental, shell("printf 0123456789; printf 0123456789 >&2", mode, mode))
    assert (result["stdout"], result["stderr"]) == (shown, shown)
    for name in ("stdout", "stderr"):
        assert _join(outputs(events, name)) == (shown or None)


def _join(pieces: list[Any]) -> Any:
    if not pieces:
        return None
    return "".join(pieces) if isinstance(pieces[0], str) else [byte for piece in pieces for byte in piece]


async def test_the_events_of_a_batch(shop: World, rental: Rental) -> None:
    first = shell("echo a", {"stream": {}}, {"stream": {}})
    results, events = await seen(
        shop, rental, first, shell("exit 3", {"stream": {}}), shell("echo never", {"stream": {}})
    )
    assert [result["result"] for result in results] == ["Ok", "Error"]
    assert results[1]["message"] == "ExeScript command exited with code 3"
    assert [result["isBatchFinished"] for result in results] == [False, True]
    assert [event["kind"] for event in events] == [
        {"started": {"command": first}},
        {"stdout": "a\n"},
        {"finished": {"return_code": 0, "message": None}},
        {"started": {"command": shell("exit 3", {"stream": {}})}},
        {"finished": {"return_code": 3, "message": "ExeScript command exited with code 3"}},
    ]
    assert [event["index"] for event in events] == [0, 0, 0, 1, 1]
    assert all(set(event) == {"batch_id", "index", "timestamp", "kind"} for event in events)


@pytest.mark.parametrize("mode", [{"stream": {}}, {"atEnd": {}}])
async def test_much_output_is_whole_and_in_order(shop: World, rental: Rental, mode: Any) -> None:
    (result,), events = await seen(shop, rental, shell("seq 1 300000", mode))
    expected = "".join(f"{number}\n" for number in range(1, 300_001))
    assert result["stdout"] == expected
    assert "".join(outputs(events)) == expected


@pytest.mark.parametrize("form", ["bin", "str"])
async def test_any_bytes(shop: World, rental: Rental, form: str) -> None:
    script = 'i=0; while [ $i -lt 256 ]; do printf "\\\\$(printf %03o $i)"; i=$((i+1)); done'
    (result,), events = await seen(shop, rental, shell(script, {"stream": {"format": form}}))
    assert result["stdout"] == list(range(256))
    got = b"".join(piece.encode() if isinstance(piece, str) else bytes(piece) for piece in outputs(events))
    assert got == bytes(range(256))


async def test_letters_that_come_in_halves(shop: World, rental: Rental) -> None:
    script = "printf '\\342'; sleep 0.05; printf '\\202'; sleep 0.05; printf '\\254 ok'"
    (result,), events = await seen(shop, rental, shell(script, {"stream": {}}))
    assert result["stdout"] == "€ ok"
    assert "".join(outputs(events)) == "€ ok"


async def test_terminate_within_a_batch_and_all_over_again(shop: World, rental: Rental) -> None:
    commands = [
        shell("echo one > /work/mark; cat /work/mark", {"stream": {}}),
        {"terminate": {}},
        {"deploy": {}},
        {"start": {"args": []}},
        shell("ls /work", {"stream": {}}),
    ]
    results, _ = await seen(shop, rental, *commands)
    assert [result["result"] for result in results] == ["Ok"] * 5
    assert results[0]["stdout"] == "one\n"
    assert "one" not in results[4]["stdout"]
    assert await rental.state() == "Ready"
