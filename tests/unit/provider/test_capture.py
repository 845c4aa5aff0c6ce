"""Output of commands: cut, split at characters, and bounded."""

from __future__ import annotations

from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shem.provider.exeunit.capture import OutputBudget, StreamCapture
from shem.provider.exeunit.failures import CommandFailed
from shem.terms.script import AtEndCapture, CaptureMode
from shem.terms.script import StreamCapture as Stream
from shem.wire.exeunit import MAX_OUTPUT_PIECE, Stderr, Stdout

MODES = {
    "stream": CaptureMode(stream=Stream()),
    "limit": CaptureMode(stream=Stream(limit=10)),
    "all": CaptureMode(at_end=AtEndCapture()),
    "head": CaptureMode(at_end=AtEndCapture(head=7)),
    "tail": CaptureMode(at_end=AtEndCapture(tail=7)),
    "head_tail": CaptureMode(at_end=AtEndCapture(head_tail=9)),
    "nothing": CaptureMode(at_end=AtEndCapture(head=0)),
}


def events(mode: CaptureMode | None, chunks: list[bytes], kind: type[Stdout] | type[Stderr] = Stdout) -> list[object]:
    with closing(StreamCapture(mode, kind, OutputBudget())) as capture:
        found: list[object] = []
        for chunk in chunks:
            found += capture.feed(chunk)
        return [*found, *capture.finish()]


def content(found: list[object]) -> bytes:
    return b"".join(event.content() for event in found if isinstance(event, Stdout | Stderr))


@given(st.sampled_from(sorted(MODES)), st.lists(st.binary(max_size=30), max_size=20))
def test_pieces_give_what_the_whole_would(mode: str, chunks: list[bytes]) -> None:
    assert content(events(MODES[mode], chunks)) == MODES[mode].cut(b"".join(chunks))


@given(st.text(max_size=200), st.integers(1, 7))
def test_text_stays_text_wherever_it_is_cut(text: str, step: int) -> None:
    whole = text.encode()
    found = events(MODES["stream"], [whole[at : at + step] for at in range(0, len(whole), step)])
    assert content(found) == whole
    assert all(event.encoding == "utf8" for event in found if isinstance(event, Stdout))


def test_large_reads_become_pieces_the_line_takes() -> None:
    whole = "ä€😀x".encode() * 40_000
    found = events(MODES["stream"], [whole])
    assert content(found) == whole
    assert len(found) > 3
    assert all(len(event.content()) <= MAX_OUTPUT_PIECE and event.encoding == "utf8" for event in found)  # type: ignore[attr-defined]


def test_bytes_that_are_not_text() -> None:
    found = events(MODES["stream"], [b"\xff\xfe", b"ok"])
    assert content(found) == b"\xff\xfeok"
    assert [event.encoding for event in found] == ["base64", "utf8"]  # type: ignore[attr-defined]


def test_binary_format_is_bytes_even_when_it_reads_as_text() -> None:
    mode = CaptureMode(stream=Stream(format="bin"))
    (event,) = events(mode, [b"text"], Stderr)
    assert isinstance(event, Stderr)
    assert (event.encoding, event.content()) == ("base64", b"text")


def test_an_open_character_at_the_end_is_not_lost() -> None:
    assert content(events(MODES["stream"], ["€".encode()[:2]])) == "€".encode()[:2]


def test_no_capture_no_output() -> None:
    assert events(None, [b"x" * 1000]) == []


def test_too_much_output_is_an_error_not_a_cut() -> None:
    budget = OutputBudget(limit=100)
    out, err = (StreamCapture(MODES["stream"], kind, budget) for kind in (Stdout, Stderr))
    assert list(out.feed(b"x" * 60))
    assert list(err.feed(b"x" * 40))
    with pytest.raises(CommandFailed) as failure:
        list(out.feed(b"x"))
    assert failure.value.line.startswith("output_limit: ")


def test_what_is_cut_does_not_count() -> None:
    capture = StreamCapture(MODES["head"], Stdout, OutputBudget(limit=10))
    for _ in range(100):
        list(capture.feed(b"x" * 1000))


def test_a_tail_keeps_only_what_it_needs() -> None:
    capture = StreamCapture(MODES["tail"], Stdout, OutputBudget())
    for _ in range(1000):
        assert list(capture.feed(b"y" * 4096)) == []
    assert content(list(capture.finish())) == b"y" * 7


def test_a_tail_too_large_for_memory_is_whole() -> None:
    size = (3 << 20) + 7
    pieces = [bytes([number % 251]) * (170_000 + number) for number in range(60)]
    for mode in (
        CaptureMode(at_end=AtEndCapture(tail=size, format="bin")),
        CaptureMode(at_end=AtEndCapture(head_tail=2 * size, format="bin")),
        CaptureMode(at_end=AtEndCapture(tail=1 << 40, format="bin")),
    ):
        for chunks in (pieces, [b"".join(pieces)], pieces[:2], []):
            assert content(events(mode, chunks)) == mode.cut(b"".join(chunks))


def test_a_tail_larger_than_a_batch_may_have_is_an_error_and_no_cut() -> None:
    with pytest.raises(CommandFailed) as failure:
        events(CaptureMode(at_end=AtEndCapture(tail=1 << 30, format="bin")), [bytes(1 << 20)] * 65)
    assert failure.value.code == "output_limit"
