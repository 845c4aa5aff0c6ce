"""Rows come back as they went in; stamps only grow; text columns compare as the numbers they are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shem.node.db import MEMORY, Database
from shem.node.payment.ledger import Account, Allocation, Chain
from shem.node.payment.lifecycle import State
from shem.node.payment.store import Document, Event, Order, Part, Store, Transfer, from_us, to_us

T0 = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
BIG = (1 << 96) - 1


@pytest.fixture
def store():
    db = Database(MEMORY)
    yield Store(db)
    db.close()


def account(**changes):
    base = Account(
        owner="me", agreement_id="g", role="Requestor", peer_id="peer", platform="p", payer="me", payee="you",
        session="s",
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


def document(document_id, **changes):
    base = Document(
        owner="me", document_id=document_id, kind="invoice", role="Requestor", agreement_id="g", activity_id=None,
        amount=BIG, state=State.RECEIVED, payload=b"p", signature=b"s", created_at=T0, due_at=T0,
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


def test_values_survive(store):
    allocation = Allocation(
        allocation_id="a", owner="me", platform="p", address="me", total=BIG, spent=BIG - 1, created_at=T0,
        timeout=T0 + timedelta(days=3650), make_deposit=True,
    )  # fmt: skip
    store.save_allocation(allocation)
    assert store.allocation("a", "me") == allocation
    assert store.allocation("a", "you") is None
    kept = account(noted=1, notes_accepted=2, invoiced=BIG, accepted=BIG, scheduled=3, settled=4, allocation_id="a")
    store.save_account(kept)
    assert store.account("g", "me") == kept
    assert store.unscheduled_of("a") == [kept]
    chain = Chain(owner="me", activity_id="x", agreement_id="g", requested=BIG, accepted=7, last_note_id="n", notes=3)
    store.save_chain(chain)
    assert store.chain("x", "me") == chain
    paper = document("d", covered_at=BIG, allocation_id="a", answer=b"1", answer_signature=b"2", failure="{}")
    store.save_document(paper)
    assert store.document("d", "me") == paper
    order = Order(
        order_id="o", owner="me", peer_id="peer", platform="p", payer="me", payee="you", amount=BIG, state="ordered"
    )
    store.save_order(order)
    assert store.order("o") == order
    transfer = Transfer(
        owner="me", payment_id="o", role="Provider", payer_id="them", payee_id="me", payer="them", payee="me",
        platform="p", amount=BIG, at=T0, tx_hash="0x1", block_number=1, block_hash="0x2",
        parts=(Part(agreement_id="g", amount=str(BIG), activity_id="x"),), sessions=("s", "t"), state="final",
        pot="0x1",
    )  # fmt: skip
    store.save_transfer(transfer)
    assert store.transfer("o", "me") == transfer
    assert store.transfers("me", None, 10, "t") == [transfer]
    assert store.transfers("me", None, 10, "") == []
    assert store.claimed_on("0x1", "them", "me") == BIG


def test_owing_is_only_what_is_not_settled(store):
    store.save_account(account(accepted=10, settled=10))
    assert store.owing("me", "p") == []
    store.save_account(account(accepted=10, settled=9))
    assert [a.accepted for a in store.owing("me", "p")] == [10]
    store.save_account(account(agreement_id="h", role="Provider", accepted=10))
    assert len(store.owing("me", "p")) == 1


@given(st.lists(st.integers(min_value=0, max_value=BIG), min_size=1, max_size=12), st.integers(0, BIG))
def test_covered_compares_numbers(totals, settled):
    db = Database(MEMORY)
    store = Store(db)
    for number, total in enumerate(totals):
        store.save_document(document(f"d{number}", state=State.ACCEPTED, covered_at=total))
    found = {paper.covered_at for paper in store.covered(account(settled=settled))}
    assert found == {total for total in totals if total <= settled}
    db.close()


def test_stamps_never_repeat_and_never_go_back(tmp_path):
    db = Database(tmp_path / "db")
    store = Store(db)
    stamps = [store.stamp(T0 - timedelta(seconds=n)) for n in range(5)]
    assert stamps == sorted(set(stamps))
    store.add_event(
        Event(at=stamps[-1], owner="me", kind="invoice", role="Provider", document_id="d", type="E", session=None)
    )
    db.close()
    again = Database(tmp_path / "db")
    assert Store(again).stamp(T0 - timedelta(days=1)) > stamps[-1]
    again.close()


@given(st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2200, 1, 1)))
def test_times_are_exact(moment):
    moment = moment.replace(tzinfo=UTC)
    assert from_us(to_us(moment)) == moment


def test_events_are_chosen_by_role_and_type(store):
    for number, (role, type_, session) in enumerate(
        [("Provider", "A", "s"), ("Provider", "B", "s"), ("Requestor", "A", None)]
    ):
        store.add_event(
            Event(
                at=T0 + timedelta(seconds=number),
                owner="me",
                kind="invoice",
                role=role,
                document_id=str(number),
                type=type_,
                session=session,
            )
        )

    def read(*wanted, after=None, session=None, limit=10):
        return [event.document_id for event in store.events("me", "invoice", after, limit, session, wanted)]

    everything = [("Provider", "A"), ("Provider", "B"), ("Requestor", "A")]
    assert read(*everything) == ["0", "1", "2"]
    assert read(*everything, limit=2) == ["0", "1"]
    assert read(*everything, after=T0) == ["1", "2"]
    assert read(*everything, session="s") == ["0", "1"]
    assert read(("Provider", "A")) == ["0"]
    assert read() == []
