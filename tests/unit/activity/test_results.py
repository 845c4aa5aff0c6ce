"""From events to results and streams, for any cutting of the output into pieces."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shem.node.activity.events import MAX_PIECE, STDOUT, Event, Finished, Kind, Output, Started, encode_kind
from shem.node.activity.results import MAX_LINE, Script, Streamer, place_of, results, split_text


def script(capture: Any) -> Script:
    return Script(json.dumps([{"run": {"entry_point": "x", "capture": {"stdout": capture}}}]))


def events(pieces: list[bytes]) -> list[Event]:
    kinds: list[Kind] = [Started(), *(Output(STDOUT, piece) for piece in pieces), Finished(0, None)]
    return [Event(no, "b", 0, no, encode_kind(kind)) for no, kind in enumerate(kinds, start=1)]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(edges)]


def streamed(what: Script, happened: list[Event]) -> list[str | bytes]:
    streamer = Streamer(what)
    items = [
        item for event in happened for item in streamer.items(event, happened if streamer.needs_output(event) else [])
    ]
    return [item.stdout for item in items if item.stdout is not None]


PLACES = st.lists(st.integers(0, 1000), max_size=8)


@given(st.text(max_size=60), PLACES)
def test_text_is_text_however_it_is_cut(text: str, places: list[int]) -> None:
    what = script({"stream": {}})
    happened = events(cut(text.encode(), places))
    shown = streamed(what, happened)
    assert all(isinstance(piece, str) for piece in shown)
    assert "".join(map(str, shown)) == text
    (result,) = results(what, happened)
    assert result.stdout == text


@given(st.binary(max_size=60), PLACES)
def test_no_byte_is_lost_or_moved(data: bytes, places: list[int]) -> None:
    what = script({"stream": {}})
    happened = events(cut(data, places))
    shown = b"".join(piece.encode() if isinstance(piece, str) else piece for piece in streamed(what, happened))
    assert shown == data
    (result,) = results(what, happened)
    assert (result.stdout.encode() if isinstance(result.stdout, str) else result.stdout) == data


@given(st.binary(max_size=60), PLACES, st.integers(0, 70), st.sampled_from(["head", "tail", "headTail"]))
def test_a_capture_at_the_end_is_the_same_in_result_and_stream(
    data: bytes, places: list[int], count: int, part: str
) -> None:
    what = script({"atEnd": {part: count, "format": "bin"}})
    happened = events(cut(data, places))
    (result,) = results(what, happened)
    assert isinstance(result.stdout, bytes)
    assert len(result.stdout) == min(count, len(data))
    assert streamed(what, happened) == ([result.stdout] if result.stdout else [])


@pytest.mark.parametrize("letter", ["a", "\0", "é", "€", "😀", '"'])
@pytest.mark.parametrize("capture", [{"stream": {}}, {"atEnd": {}}, {"atEnd": {"format": "bin"}}])
def test_no_piece_of_a_stream_is_long(letter: str, capture: Any) -> None:
    """Each is a line for clients, and some of them take no longer ones."""
    data = (letter * 300_000).encode()
    happened = events([data[at : at + MAX_PIECE] for at in range(0, len(data), MAX_PIECE)])
    shown = streamed(script(capture), happened)
    assert b"".join(piece.encode() if isinstance(piece, str) else piece for piece in shown) == data
    lines = [
        len(json.dumps(list(piece) if isinstance(piece, bytes) else piece, ensure_ascii=False).encode())
        for piece in shown
    ]
    assert max(lines) <= 2 * MAX_LINE  # json.dumps puts blanks between numbers
    assert len(shown) < 100


def test_items_of_one_event_have_places_of_their_own() -> None:
    streamer = Streamer(script({"atEnd": {}}))
    happened = events([b"x" * MAX_PIECE, b"y" * MAX_PIECE])
    items = [item for event in happened for item in streamer.items(event, happened)]
    places = [place_of(item) for item in items]
    assert len(set(places)) == len(places) > 4
    assert places == sorted(places)
    assert [item.part for item in items if item.finished is not None] == [0]


@given(st.binary(max_size=20))
def test_only_the_beginning_of_a_character_is_held_back(data: bytes) -> None:
    now, later = split_text(data)
    assert now + later == data
    assert len(later) <= 3
    if later:
        assert later[0] >= 0xC2
        assert all(0x80 <= byte < 0xC0 for byte in later[1:])
