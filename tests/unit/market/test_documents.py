from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shem.errors import Refused
from shem.node.market import documents
from shem.node.market.documents import Counter, Statement, SubscriptionBody

NOW = datetime(2026, 11, 23, 18, 54, 21, 787460, tzinfo=UTC)
ALICE, BOB = "0x" + "a" * 40, "0x" + "b" * 40
OFFER, DEMAND = f"{'0' * 32}-{'0' * 64}", f"{'1' * 32}-{'1' * 64}"


def counter(**more: Any) -> Counter:
    values: dict[str, Any] = {
        "prev": "c" * 64,
        "initial_at": NOW,
        "offer_id": OFFER,
        "demand_id": DEMAND,
        "issuer": ALICE,
        "receiver": BOB,
        "created_at": NOW,
        "properties": {"a": 1, "b": [1.5, None, True]},
        "constraints": "()",
    }
    return Counter(**values | more)


def test_there_and_back() -> None:
    document = counter()
    assert documents.decode(documents.encode(document), Counter) == document


def test_an_id_follows_from_content_and_not_from_time() -> None:
    base = documents.counter_id(counter())
    assert base == documents.counter_id(counter(created_at=NOW + timedelta(seconds=1)))
    for change in ({"prev": "d" * 64}, {"issuer": BOB}, {"properties": {"a": 1.0}}, {"constraints": "( )"}):
        assert documents.counter_id(counter(**change)) != base
    sent = documents.decode(documents.encode(counter()), Counter)
    assert documents.counter_id(sent) == base


def test_initial_ids_differ_by_time_and_agree_over_zones() -> None:
    first = documents.initial_id(OFFER, DEMAND, NOW)
    assert first != documents.initial_id(OFFER, DEMAND, NOW + timedelta(microseconds=1))
    assert first != documents.initial_id(DEMAND, OFFER, NOW)
    assert first == documents.initial_id(OFFER, DEMAND, NOW.astimezone(timezone(timedelta(hours=2))))


def test_a_subscription_id_commits_to_the_body() -> None:
    body = SubscriptionBody("0" * 32, ALICE, NOW, {"a": 1}, "()")
    raw = documents.encode(body)
    found = documents.subscription_id(body, raw)
    assert found.startswith("0" * 32 + "-")
    other = documents.encode(msgspec.structs.replace(body, properties={"a": 2}))
    assert documents.subscription_id(body, other) != found


@pytest.mark.parametrize(
    "changes",
    [
        {"prev": "x"},
        {"prev": "C" * 64},
        {"prev": "c" * 64 + "\n"},
        {"offer_id": "0" * 97},
        {"issuer": ALICE.upper()},
        {"receiver": ""},
        {"created_at": datetime(2026, 1, 1)},
        {"properties": {"a": {"b": 1}}},
        {"properties": {"": 1}},
        {"properties": {"a": float("nan")}},
        {"properties": {"a": NOW}},
        {"properties": {"a": b"bytes"}},
        {"properties": {str(i): i for i in range(2000)}},
        {"constraints": "(" * 100_000},
        {"constraints": None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_out_of_bounds(changes: dict[str, Any]) -> None:
    raw = msgspec.msgpack.encode(counter(**changes))
    with pytest.raises(Refused):
        documents.decode(raw, Counter)


def test_more_fields_are_another_document() -> None:
    fields = msgspec.msgpack.decode(documents.encode(counter()))
    for wrong in (fields[:-1], [*fields, 1]):
        with pytest.raises(documents.BadDocument):
            documents.decode(msgspec.msgpack.encode(wrong), Counter)


@given(st.binary(max_size=200))
@example(b"\x94\xa2\x00\x80")  # text that is not UTF-8
def test_garbage_is_refused(raw: bytes) -> None:
    for kind in (Counter, Statement, SubscriptionBody, documents.Ending, documents.AgreementDocument):
        with pytest.raises(Refused):
            documents.decode(raw, kind)


def test_depth_is_refused() -> None:
    with pytest.raises(Refused):
        documents.decode(b"\x91" * 100_000 + b"\xc0", Counter)
