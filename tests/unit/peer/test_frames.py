"""Frames survive any cut of the byte stream, and refuse what is too big before holding it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shem.node.peer.frames import HEADER, Kind, Splitter, Violation, pack, pack_request, unpack_request

frames = st.lists(st.tuples(st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=300)), max_size=8)


@given(frames, st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_any_cut_gives_the_same_frames(sent: list[tuple[int, int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(pack(*frame) for frame in sent)
    splitter, got, position, turn = Splitter(300), [], 0, 0
    while position < len(stream):
        size = cuts[turn % len(cuts)]
        got += splitter.feed(stream[position : position + size])
        position, turn = position + size, turn + 1
    assert got == sent
    assert Splitter(300, stream).feed(b"") == sent


def test_an_oversized_frame_is_refused_by_its_header() -> None:
    with pytest.raises(Violation):
        Splitter(100).feed(HEADER.pack(101, Kind.REQUEST, 1))
    assert Splitter(100).feed(pack(Kind.REQUEST, 1, bytes(100))) == [(Kind.REQUEST, 1, bytes(100))]


@given(st.text("abc.xyz_09", min_size=1, max_size=100), st.binary(max_size=100))
def test_requests_come_back(method: str, payload: bytes) -> None:
    frame = pack_request(7, method.encode(), payload)
    assert unpack_request(frame[HEADER.size :]) == (method, payload)


@pytest.mark.parametrize("body", [b"", b"\x05abc", b"\x01", b"\x02\xff\xff"])
def test_a_request_without_a_method_is_a_violation(body: bytes) -> None:
    with pytest.raises(Violation):
        unpack_request(body)


@given(st.binary(max_size=200))
def test_garbage_is_a_violation_or_waits(garbage: bytes) -> None:
    splitter = Splitter(50)
    try:
        held = splitter.feed(garbage)
    except Violation:
        return
    assert sum(HEADER.size + len(body) for _, _, body in held) <= len(garbage)
