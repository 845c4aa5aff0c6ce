"""Messages of the bus: as the original daemon and golem-js write them, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from flatbuffers import flexbuffers as library
from hypothesis import given, settings
from hypothesis import strategies as st

from shem.cogs import flexbuffers
from shem.errors import Refused
from shem.wire.gsb import (
    Reply,
    Request,
    pack_reply,
    pack_request,
    parse_reply,
    parse_request,
    parse_services_id,
    services_id,
    whole,
)

# Frames of the original daemon, and answers of a program to it, as they were recorded.
ASKED_METADATA = (
    "6964002465656633303636622d333463612d343561612d383165372d33643038343466346538376400636f6d706f6e656e74000b4765744d657461"
    "64617461007061796c6f6164000000010003244e0f0301031f5009141424062401"
)
ASKED_CHUNK = (
    "6964002463316561386365612d343266332d346539322d613937612d62373534353137356133343500636f6d706f6e656e7400084765744368756e"
    "6b007061796c6f6164006f66667365740073697a6500020d070201020005080803335d210301032e5f0d141424062401"
)
GAVE_CHUNK = (
    "6964002463316561386365612d343266332d346539322d613937612d623735343531373561333435007061796c6f6164006f666673657400636f6e"
    "74656e74000568656c6c6f020f170201020b006404025129020102520b1424042401"
)
FAILED = (
    "6964002433643666303066352d303161392d343534392d616364312d626666373033343830366234006572726f7200526561644572726f720004626f"
    "6f6d0001110101010a14021e4802010208492414042401"
)


def test_frames_of_the_original_daemon() -> None:
    asked = parse_request(bytes.fromhex(ASKED_METADATA))
    assert asked == Request("eef3066b-34ca-45aa-81e7-3d0844f4e87d", "GetMetadata", {})
    asked = parse_request(bytes.fromhex(ASKED_CHUNK))
    assert (asked.component, asked.payload) == ("GetChunk", {"offset": 0, "size": 5})


def test_answers_that_it_took() -> None:
    gave = parse_reply(bytes.fromhex(GAVE_CHUNK))
    assert gave.id == "c1ea8cea-42f3-4e92-a97a-b7545175a345"
    assert (gave.payload["offset"], bytes(gave.payload["content"])) == (0, b"hello")
    assert parse_reply(bytes.fromhex(FAILED)).error == ("ReadError", "boom")


def test_ours_are_read_by_the_library_as_they_are_meant() -> None:
    request = Request("1", "UploadChunk", {"chunk": {"offset": 5, "content": b"abc"}})
    assert library.Loads(pack_request(request)) == {
        "id": "1",
        "component": "UploadChunk",
        "payload": {"chunk": {"offset": 5, "content": b"abc"}},
    }
    assert library.Loads(pack_reply(Reply("1", None))) == {"id": "1", "payload": None}
    assert library.Loads(pack_reply(Reply("1", error=("ReadError", "x")))) == {"id": "1", "error": {"ReadError": "x"}}


@pytest.mark.parametrize(
    "message",
    [
        None,
        1,
        "text",
        [],
        {},
        {"id": 1, "payload": None},
        {"id": None, "payload": None},
        {"id": "x" * 129, "payload": None},
        {"id": "x"},
        {"payload": {}},
    ],
)
def test_what_is_no_answer(message: Any) -> None:
    with pytest.raises(Refused):
        parse_reply(flexbuffers.dumps(message))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"ReadError": "boom"}, ("ReadError", "boom")),
        ({"IntegrityError": None}, ("IntegrityError", "")),
        ("IntegrityError", ("IntegrityError", "")),
        ({"a": 1, "b": 2}, ("Error", "")),
        (None, ("Error", "")),
        (7, ("Error", "")),
        ({"E" * 500: "t" * 5000}, None),
        ({"W" * 120: "t" * 5000}, ("W" * 100, "t" * 500)),
    ],
)
def test_errors_of_programs_are_cut_to_size(error: Any, expected: Any) -> None:
    frame = bytes(library.Dumps({"id": "1", "error": error}))
    if expected is None:
        with pytest.raises(Refused):
            parse_reply(frame)
    else:
        assert parse_reply(frame).error == expected


@settings(max_examples=1000)
@given(st.binary(max_size=120), st.integers(0, 200))
def test_noise(noise: bytes, place: int) -> None:
    frame = bytearray(bytes.fromhex(GAVE_CHUNK))
    frame[place % len(frame) : place % len(frame) + len(noise)] = noise
    for parse in (parse_reply, parse_request):
        for data in (noise, bytes(frame)):
            try:
                parse(data)
            except Refused:
                pass


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=100))
def test_ids_of_services(on: str) -> None:
    assert parse_services_id(services_id(on)) == on
    assert "=" not in services_id(on)


def test_an_id_as_the_original_has_it() -> None:
    assert services_id("/public/gftp/abc") == "L3B1YmxpYy9nZnRwL2FiYw"


@pytest.mark.parametrize("text", ["!!!", "_____w", "a", "é", "a b", "YQ\n"])
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(Refused):
        parse_services_id(text)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0),
        (5.0, 5),
        (1 << 53, 1 << 53),
        ((1 << 53) + 1, None),
        (-1, None),
        (0.5, None),
        (True, None),
        ("1", None),
        (None, None),
    ]
    + [(float(word), None) for word in ("nan", "inf", "-inf")],
)
def test_whole_numbers(value: Any, expected: int | None) -> None:
    assert whole(value) == expected
