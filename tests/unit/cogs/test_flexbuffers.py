"""FlexBuffers: what the library writes is read as it was meant, and nothing else does any harm."""

from __future__ import annotations

import math
import struct
import time
from typing import Any

import pytest
from flatbuffers import flexbuffers as library
from hypothesis import given, settings
from hypothesis import strategies as st

from shem.cogs.flexbuffers import (
    MAX_DEPTH,
    MAX_VALUES,
    SAFE_INT,
    BadFlexBuffer,
    dumps,
    loads,
    number,
)

NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False)
    | TEXTS
    | st.binary(max_size=300)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES, inner, max_size=5), max_leaves=20
)


def plain(value: Any) -> Any:
    """Blobs as bytes."""
    match value:
        case memoryview():
            return bytes(value)
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case list():
            return [plain(item) for item in value]
        case _:
            return value


@given(VALUES)
def test_what_is_written_is_read_by_us_and_by_the_library(value: Any) -> None:
    assert plain(loads(dumps(value))) == value
    assert library.Loads(dumps(value)) == value


@given(VALUES)
def test_what_the_library_writes_is_read(value: Any) -> None:
    try:
        written = bytes(library.Dumps(value))
    except (OverflowError, RuntimeError):  # it has no fractions beyond those of 32 bits
        return
    assert plain(loads(written)) == value


@pytest.mark.parametrize(
    "value", [object(), {1: 2}, {"a\0b": 1}, {"k" * 300: 1}, 1 << 63, -(1 << 63) - 1, "\ud800", {"\udfff": 1}, {1, 2}]
)
def test_what_cannot_be_written(value: Any) -> None:
    for nested in (value, [value], {"payload": value}):
        with pytest.raises(BadFlexBuffer):
            dumps(nested)


@given(
    st.lists(st.integers(-(1 << 40), 1 << 40), min_size=1, max_size=6)
    | st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=6)
)
def test_typed_vectors_are_lists(numbers: list[Any]) -> None:
    builder = library.Builder()
    builder.TypedVectorFromElements(numbers)
    assert loads(bytes(builder.Finish())) == numbers
    if 2 <= len(numbers) <= 4:
        builder = library.Builder()
        builder.FixedTypedVectorFromElements(numbers)
        assert loads(bytes(builder.Finish())) == numbers


def test_indirect_numbers_and_keys() -> None:
    builder = library.Builder()
    with builder.Vector():
        builder.IndirectInt(-5)
        builder.IndirectUInt(1 << 40)
        builder.IndirectFloat(0.25)
        builder.Key("name")
    assert loads(bytes(builder.Finish())) == [-5, 1 << 40, 0.25, "name"]


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_535, 65_536, 1 << 20])
def test_blobs_are_views_and_not_copies(size: int) -> None:
    data = dumps({"payload": {"offset": 0, "content": b"\x07" * size}})
    content = loads(data)["payload"]["content"]
    assert isinstance(content, memoryview)
    assert content.obj is data
    assert content == b"\x07" * size


@pytest.mark.parametrize("value", [0, 1, SAFE_INT, -SAFE_INT, SAFE_INT + 1, 1 << 32, (1 << 53) - 1, 1 << 53])
def test_a_wide_number_widens_nothing_else(value: int) -> None:
    """All members of a map have the width of the widest, and a 64-bit integer is a BigInt in JavaScript."""
    found = library.GetRoot(dumps({"offset": number(value), "size": 5})).AsMap
    assert found.ByteWidth <= 4
    assert found["size"].IsInt
    assert (found["offset"].AsInt if abs(value) <= SAFE_INT else found["offset"].AsFloat) == value
    assert found["offset"].IsInt == (abs(value) <= SAFE_INT)


@settings(max_examples=1500)
@given(st.binary(max_size=200))
def test_noise_is_refused_or_read_but_never_more(data: bytes) -> None:
    try:
        loads(data)
    except BadFlexBuffer:
        pass


@settings(max_examples=1500)
@given(st.data())
def test_changed_messages_are_refused_or_read_but_never_more(data: st.DataObject) -> None:
    message = bytearray(
        dumps({"id": "0" * 36, "payload": {"content": b"x" * 40, "list": [1, "two", None, 4.5], "offset": 300}})
    )
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(message)))
    for candidate in (bytes(message), bytes(message[:cut]), bytes(message[cut:])):
        try:
            loads(candidate)
        except BadFlexBuffer:
            pass


def test_vectors_that_share_their_members_do_not_unfold() -> None:
    """Each level holds the one below ten times: 200 bytes that the library would turn into 10^15 values."""
    builder = library.Builder()
    with builder.Vector():
        builder.Int(1)
    for _ in range(MAX_DEPTH - 1):
        shared = builder.LastValue
        builder._stack.pop()
        with builder.Vector():
            for _ in range(10):
                builder._stack.append(shared)
    data = bytes(builder.Finish())
    assert len(data) < 600
    started = time.monotonic()
    with pytest.raises(BadFlexBuffer, match="too many values"):
        loads(data)
    assert time.monotonic() - started < 30  # not the age of the universe


def test_depth_is_bounded() -> None:
    nested: Any = 1
    for _ in range(MAX_DEPTH):
        nested = [nested]
    assert loads(dumps(nested)) == nested
    with pytest.raises(BadFlexBuffer):
        loads(dumps([nested]))


def test_a_vector_that_contains_itself() -> None:
    # count 1, an offset of 0 that leads to the vector itself, its type: vector; then the root, one byte behind it
    data = bytes([1, 0, int(library.Type.VECTOR) << 2, 2, int(library.Type.VECTOR) << 2, 1])
    with pytest.raises(BadFlexBuffer):
        loads(data)


def test_counts_and_texts_are_bounded() -> None:
    with pytest.raises(BadFlexBuffer):
        loads(dumps([0] * MAX_VALUES + [0]))
    text = dumps("x" * 1000)
    builder = library.Builder()
    builder.String("x" * 1000)
    shared = builder.LastValue
    builder._stack.pop()
    with builder.Vector():
        for _ in range(50):
            builder._stack.append(shared)
    with pytest.raises(BadFlexBuffer, match="too much text"):
        loads(bytes(builder.Finish()))
    assert loads(text) == "x" * 1000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\0\0",
        b"\0\0\0",
        b"\0\0\x03",
        struct.pack("<QBB", 1 << 63, int(library.Type.STRING) << 2, 8),  # before the beginning
        struct.pack("<BBB", 200, int(library.Type.BLOB) << 2, 1),
        struct.pack("<BBB", 1, int(library.Type.KEY) << 2, 1),
        struct.pack("<BBB", 0, 63 << 2, 1),  # no such kind
        struct.pack("<HBB", 0, int(library.Type.FLOAT) << 2, 2),  # no such fraction
        struct.pack("<BBBBBB", 2, 0xFF, 0xFE, 2, int(library.Type.STRING) << 2, 1),  # not UTF-8
    ],
)
def test_what_is_wrong_in_its_own_way(data: bytes) -> None:
    with pytest.raises(BadFlexBuffer):
        loads(data)


def test_not_a_number_is_not_lost() -> None:
    assert math.isnan(loads(dumps(float("nan"))))
