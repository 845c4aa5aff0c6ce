from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shem.errors import Refused
from shem.terms.properties import MAX_BYTES, MAX_COUNT, MAX_DEPTH, BadProperties, check_flat, flatten, unflatten


@pytest.mark.parametrize(
    ("given_", "flat"),
    [
        ({}, {}),
        ({"a": 1}, {"a": 1}),
        ({"golem": {"inf": {"mem": {"gib": 4.0}}}}, {"golem.inf.mem.gib": 4.0}),
        ({"golem.inf": {"mem.gib": 4.0}}, {"golem.inf.mem.gib": 4.0}),
        ({"golem": {"x": {"@tag": "v", "y": 1}}}, {"golem.x": "v", "golem.x.y": 1}),
        ({"golem.x.@tag": "v"}, {"golem.x": "v"}),
        ({"golem.x": "v", "golem": {"x": {"y": 1}}}, {"golem.x": "v", "golem.x.y": 1}),
        ({"sv@v": "1.10.0"}, {"sv@v": "1.10.0"}),
        ({"gone": {}, "kept": None, "deep": {"gone": {}}}, {"kept": None}),
        ({"list": ["a", {"b": {"c": 1}}], "empty": []}, {"empty": [], "list": ["a", {"b": {"c": 1}}]}),
        ({"z": 1, "a": True, "a.b": "ż"}, {"a": True, "a.b": "ż", "z": 1}),
    ],
)
def test_flatten(given_: dict[str, Any], flat: dict[str, Any]) -> None:
    found = flatten(given_)
    assert found == flat
    assert list(found) == sorted(found)
    assert flatten(found) == found
    check_flat(found)


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {"x": 1}
    for _ in range(levels):
        value = {"n": value}
    return value


def deep_list(levels: int) -> dict[str, Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return {"x": value}


@pytest.mark.parametrize(
    "bad",
    [
        {"": 1},
        {"@tag": 1},
        {"n" * 600: 1},
        {"a.b": 1, "a": {"b": 2}},
        {"x": float("nan")},
        {"x": float("inf")},
        {"x": 1 << 64},
        {"x": -(1 << 63) - 1},
        {"x": b"bytes"},
        {"x": [object()]},
        {"x": [{1: 2}]},
        {"x": "\ud800"},
        {1: 2},
        {"x": "v" * (MAX_BYTES + 1)},
        {"x": ["v" * 1000] * 1000},
        {str(i): i for i in range(MAX_COUNT + 1)},
        deep(MAX_DEPTH + 1),
        deep(100_000),
        deep_list(MAX_DEPTH + 1),
    ],
)
def test_refused(bad: dict[Any, Any]) -> None:
    with pytest.raises(Refused) as caught:
        flatten(bad)
    assert caught.value.code == "bad_properties"


def test_the_same_value_spelled_twice_is_fine() -> None:
    assert flatten({"a.b": 1, "a": {"b": 1}}) == {"a.b": 1}


def test_flat_means_no_objects() -> None:
    with pytest.raises(BadProperties):
        check_flat({"a": {"b": 1}})
    with pytest.raises(BadProperties):
        check_flat({str(i): i for i in range(MAX_COUNT + 1)})


names = st.lists(st.text("ab@?!-", min_size=1, max_size=3), min_size=1, max_size=3).map(".".join)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.text()
    | st.lists(st.text() | st.floats(allow_nan=False, allow_infinity=False), max_size=3)
)


@given(st.dictionaries(names, leaves, max_size=8))
def test_unflatten_is_undone_by_flatten(flat: dict[str, Any]) -> None:
    assert flatten(unflatten(flat)) == dict(sorted(flat.items()))


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=4))
def test_any_json_is_flattened_or_refused(value: dict[str, Any]) -> None:
    try:
        check_flat(flatten(value))
    except BadProperties:
        pass
