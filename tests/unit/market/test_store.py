from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shem.node.db import Database
from shem.node.market.store import AgreementEvent, Event, Store, from_us, to_us

NOW = datetime(2026, 11, 23, 18, 54, 21, 787460, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Database(tmp_path / "x.db"))


def test_times_are_exact() -> None:
    assert from_us(to_us(NOW)) == NOW
    assert to_us(NOW + timedelta(microseconds=1)) == to_us(NOW) + 1


def test_agreement_events_never_share_a_time(store: Store) -> None:
    for number in range(5):
        store.add_agreement_event("alice", AgreementEvent(kind="Approved", at=NOW, agreement_id=str(number)))
    store.add_agreement_event("alice", AgreementEvent(kind="Approved", at=NOW - timedelta(days=1), agreement_id="5"))
    store.add_agreement_event("bob", AgreementEvent(kind="Approved", at=NOW, agreement_id="b"))
    found = store.agreement_events("alice", None, 100, None)
    assert [e.agreement_id for e in found] == list("012345")
    assert len({e.at for e in found}) == 6
    assert [e.agreement_id for e in store.agreement_events("alice", found[2].at, 2, None)] == ["3", "4"]
    assert store.agreement_events("alice", None, 100, "session") == []
    assert store.agreement_events("bob", None, 100, None)[0].at == NOW


def test_events_are_given_once_in_order(store: Store) -> None:
    for number in range(5):
        store.add_event("s", Event(kind="Proposal", at=NOW, subject=str(number)))
    store.add_event("other", Event(kind="Proposal", at=NOW, subject="x", reason={"message": "m"}))
    assert [e.subject for e in store.take_events("s", 2)] == ["0", "1"]
    assert store.count_events("s") == 3
    assert [e.subject for e in store.take_events("s", 10)] == ["2", "3", "4"]
    assert store.take_events("s", 10) == []
    assert store.take_events("other", 1)[0].reason == {"message": "m"}


def test_messages_of_a_topic_keep_their_order_and_are_stored_once(store: Store) -> None:
    for number, topic in enumerate(("a", "b", "a")):
        for _ in range(2):
            store.add_message(peer="p", topic=topic, kind="k", message_id=f"m{number}", payload=b"x", expires_at=NOW)
    assert store.count_messages() == 3
    assert sorted(store.waiting_topics()) == [("p", "a"), ("p", "b")]
    assert store.waiting_topics("q") == []
    first = store.next_message("p", "a")
    assert first is not None
    assert (first.message_id, first.payload, first.expires_at) == ("m0", b"x", NOW)
    store.delete_message("m0")
    assert store.next_message("p", "a").message_id == "m2"  # type: ignore[union-attr]
    store.delete_message("m2")
    assert store.next_message("p", "a") is None
    assert not store.has_message("m0")
    assert store.has_message("m1")
