"""When notes are due, what they ask, and when a deal ends: a bill driven through time by hand."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shem.errors import Refused
from shem.provider.billing import Bill, Cover, DealTerms, EndAgreement, SendNote, read_terms
from shem.provider.config import Rules
from shem.provider.negotiators import Counter, negotiate
from tests.unit.provider.builders import CHANNEL, NOW, RULES, a_demand, a_request, an_offer_by_channel, in_ms

TOKEN = 10**18


def terms(rules: Rules = RULES, **demand: Any) -> DealTerms:
    wanted = a_demand(**demand)
    answer = negotiate(a_request(wanted, rules=rules))
    assert isinstance(answer, Counter), answer
    return read_terms(wanted, answer.properties, rules)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def notes(orders: list[SendNote | EndAgreement]) -> list[SendNote]:
    return [order for order in orders if isinstance(order, SendNote)]


def ends(orders: list[SendNote | EndAgreement]) -> list[str]:
    return [order.code for order in orders if isinstance(order, EndAgreement)]


def carry_out(bill: Bill, orders: list[SendNote | EndAgreement], now: datetime) -> list[str]:
    ids = []
    for order in notes(orders):
        ids.append(f"note-{order.activity_id}-{(now - NOW).total_seconds():g}")
        bill.note_sent(order, ids[-1], now)
    return ids


def test_what_was_agreed() -> None:
    agreed = terms(interval="30", payment=60, accept=20.0)
    assert agreed.interval == timedelta(seconds=30)
    assert agreed.payment_timeout == agreed.invoice_due == timedelta(seconds=60)
    assert agreed.accept_timeout == timedelta(seconds=20)
    assert agreed.expires_at == at(1200)
    assert agreed.multi_activity


def test_what_was_not_agreed() -> None:
    agreed = terms(multi=None)
    assert agreed.interval == timedelta(seconds=120)
    assert agreed.payment_timeout is None
    assert agreed.accept_timeout is None
    assert agreed.invoice_due == timedelta(days=1)
    assert not agreed.multi_activity


@pytest.mark.parametrize("change", [{"golem.srv.comp.expiration": None}, {"golem.srv.comp.expiration": "x"}])
def test_terms_that_make_no_sense(change: dict[str, Any]) -> None:
    answer = negotiate(a_request(a_demand()))
    assert isinstance(answer, Counter)
    with pytest.raises(Refused, match="expiration"):
        read_terms(a_demand() | change, answer.properties, RULES)


def test_a_note_each_interval_from_the_approval() -> None:
    bill = Bill(terms(interval=30), NOW)
    bill.activity_began("a", at(10))
    assert bill.next_moment() == at(30)
    assert bill.due(at(29)) == []
    bill.used("a", [19.5, 2.0])
    (note,) = notes(bill.due(at(30)))
    # 0.1 to start, 3.6 an hour of time, 36 an hour of cpu
    assert note.amount == TOKEN // 10 + 19_500_000_000_000_000 + 20_000_000_000_000_000
    assert (note.usage, note.payment_due, note.final) == ((19.5, 2.0), None, False)
    carry_out(bill, [note], at(30))
    assert bill.due(at(30)) == []
    assert bill.next_moment() == at(60)


def test_notes_that_were_missed_are_not_made_up_for() -> None:
    bill = Bill(terms(interval=30), NOW)
    bill.activity_began("a", at(0))
    assert len(notes(bill.due(at(100)))) == 1
    assert bill.next_moment() == at(120)


def test_the_end_of_an_activity_brings_one_final_note() -> None:
    bill = Bill(terms(interval=30), NOW)
    bill.activity_began("a", at(0))
    bill.used("a", [5.0, 1.0])
    bill.activity_ended("a", at(5))
    (note,) = notes(bill.due(at(5)))
    assert note.final
    assert note.payment_due is None, "mid-agreement payment was not negotiated"
    carry_out(bill, [note], at(5))
    assert notes(bill.due(at(31))) == []


def test_payable_notes_come_once_a_payment_timeout() -> None:
    bill = Bill(terms(interval=30, payment=70), NOW)
    bill.activity_began("a", at(0))
    due = {}
    for second in (30, 60, 90, 120, 150):
        orders = bill.due(at(second))
        due[second] = notes(orders)[0].payment_due
        carry_out(bill, orders, at(second))
    assert due == {30: None, 60: None, 90: at(160), 120: None, 150: None}
    bill.activity_ended("a", at(155))
    assert notes(bill.due(at(155)))[0].payment_due == at(225)


def test_a_note_nobody_accepts_ends_the_deal() -> None:
    bill = Bill(terms(interval=30, accept=20), NOW)
    bill.activity_began("a", at(0))
    (first,) = carry_out(bill, bill.due(at(30)), at(30))
    assert bill.next_moment() == at(50)
    assert ends(bill.due(at(49.9))) == []
    assert ends(bill.due(at(50))) == ["DebitNotesDeadline"]
    bill.note_accepted(first)
    assert ends(bill.due(at(50))) == []


def test_accepting_a_note_covers_those_before_it() -> None:
    bill = Bill(terms(interval=10, accept=100), NOW)
    bill.activity_began("a", at(0))
    bill.activity_began("b", at(0))
    early = carry_out(bill, bill.due(at(10)), at(10))
    late = carry_out(bill, bill.due(at(20)), at(20))
    assert all(bill.knows(note) for note in (*early, *late))
    bill.note_accepted(late[0])
    assert [bill.knows(note) for note in (*early, *late)] == [False, True, False, True]
    assert ends(bill.due(at(111))) == ["DebitNotesDeadline"], "those of the other activity still wait"


def test_a_note_that_is_not_paid_ends_the_deal() -> None:
    bill = Bill(terms(interval=30, payment=30, accept=20), NOW)
    bill.activity_began("a", at(0))
    (note,) = carry_out(bill, bill.due(at(30)), at(30))
    bill.note_accepted(note)
    assert ends(bill.due(at(59.9))) == []
    assert "DebitNoteNotPaid" in ends(bill.due(at(60)))
    bill.note_paid(note)
    assert ends(bill.due(at(60))) == []


def test_a_disputed_note_ends_the_deal() -> None:
    bill = Bill(terms(interval=30), NOW)
    bill.activity_began("a", at(0))
    (note,) = carry_out(bill, bill.due(at(30)), at(30))
    bill.note_rejected("somebody-else's", "no")
    assert ends(bill.due(at(31))) == []
    bill.note_rejected(note, "too dear")
    assert ends(bill.due(at(31))) == ["DebitNoteRejected"]


def test_no_activity_after_the_approval() -> None:
    bill = Bill(terms(), NOW)
    assert bill.next_moment() == at(90)
    assert bill.due(at(89)) == []
    assert ends(bill.due(at(90))) == ["NoActivity"]


def test_no_activity_after_the_last_one() -> None:
    bill = Bill(terms(), NOW)
    bill.activity_began("a", at(10))
    bill.activity_began("b", at(20))
    bill.activity_ended("a", at(30))
    carry_out(bill, bill.due(at(30)), at(30))
    assert ends(bill.due(at(119))) == []
    bill.activity_ended("b", at(100))
    carry_out(bill, bill.due(at(100)), at(100))
    assert bill.next_moment() == at(190)
    assert ends(bill.due(at(190))) == ["NoActivity"]


def test_a_demand_for_one_activity_ends_with_it() -> None:
    bill = Bill(terms(multi=None), NOW)
    bill.activity_began("a", at(10))
    assert ends(bill.due(at(11))) == []
    bill.activity_ended("a", at(20))
    orders = bill.due(at(20))
    assert [note.final for note in notes(orders)] == [True]
    assert ends(orders) == ["Success"]


def test_expiration_ends_the_deal_with_the_work_on_it() -> None:
    bill = Bill(terms(expiration=in_ms(timedelta(seconds=300))), NOW)
    bill.activity_began("a", at(0))
    carry_out(bill, bill.due(at(120)), at(120))
    carry_out(bill, bill.due(at(240)), at(240))
    assert bill.next_moment() == at(300)
    assert ends(bill.due(at(300))) == ["Expired"]


def test_the_invoice_is_the_sum_of_all_activities() -> None:
    bill = Bill(terms(), NOW)
    assert bill.total == 0
    bill.activity_began("a", at(0))
    bill.activity_began("b", at(0))
    bill.used("a", [100.0, 0.0])
    assert bill.total == 2 * (TOKEN // 10) + 100 * TOKEN // 1000
    assert bill.activity_ids == ["a", "b"]


def test_what_was_asked_before_a_restart_is_never_lowered() -> None:
    bill = Bill(terms(), NOW)
    bill.activity_began("a", at(0))
    bill.note_asked_before("a", 5 * TOKEN)
    bill.used("a", [1.0, 0.0])
    assert bill.total == 5 * TOKEN
    assert bill.final_notes(at(1)) == []


def test_a_note_the_node_refuses_is_not_tried_for_ever() -> None:
    bill = Bill(terms(), NOW)
    bill.activity_began("a", at(0))
    bill.activity_ended("a", at(1))
    (note,) = notes(bill.due(at(1)))
    bill.note_refused(note)
    assert notes(bill.due(at(2))) == []
    assert bill.total == TOKEN // 10


reports = st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), max_size=20)


@given(reports)
def test_totals_only_grow_whatever_is_reported(found: list[tuple[float, float]]) -> None:
    bill = Bill(terms(interval=1), NOW)
    bill.activity_began("a", at(0))
    last = 0
    for second, usage in enumerate(found, 1):
        bill.used("a", usage)
        (note,) = notes(bill.due(at(second)))
        assert note.amount >= last
        assert note.amount == bill.terms.pricing.cost(note.usage)
        last = note.amount
        carry_out(bill, [note], at(second))
    assert bill.total >= last


def test_a_report_of_another_length_changes_nothing() -> None:
    bill = Bill(terms(), NOW)
    bill.activity_began("a", at(0))
    bill.used("a", [1.0, 2.0])
    bill.used("a", [5.0])
    bill.used("a", [])
    assert bill.total == TOKEN // 10 + TOKEN // 1000 + 2 * TOKEN // 100


def test_a_long_deal_forgets_what_is_settled() -> None:
    bill = Bill(terms(interval=1, accept=100), NOW)
    bill.activity_began("a", at(0))
    for second in range(1, 1000):
        for note in carry_out(bill, bill.due(at(second)), at(second)):
            bill.note_accepted(note)
    assert not bill.knows("note-a-999")
    assert ends(bill.due(at(1001))) == []


# paid by channel


def by_channel(rules: Rules = RULES, **demand: Any) -> DealTerms:
    """1 thread: 0.1 to start, 0.011 for a second of full use."""
    wanted = a_demand(platform=CHANNEL, **demand)
    answer = negotiate(a_request(wanted, rules=rules, offer=an_offer_by_channel(rules)))
    assert isinstance(answer, Counter), answer
    return read_terms(wanted, answer.properties | {"golem.inf.cpu.threads": 1}, rules)


def reserved(room: int, *, accepted: int = 0, started: bool = True, **more: Any) -> Cover:
    return Cover(started=started, expected_until=at(30), accepted=accepted, room=room, **more)


def test_an_accepted_note_is_paid_by_its_voucher() -> None:
    bill = Bill(by_channel(interval=30, payment=30, accept=20), NOW)
    bill.covered(reserved(TOKEN), at(0))
    bill.activity_began("a", at(0))
    (note,) = carry_out(bill, bill.due(at(30)), at(30))
    bill.note_accepted(note)
    assert not bill.knows(note)
    assert ends(bill.due(at(59))) == []


def test_by_transfer_it_is_not_and_finality_takes_its_time() -> None:
    bill = Bill(terms(interval=30, payment=30, accept=20), NOW)
    bill.payments_take(15.0)
    bill.activity_began("a", at(0))
    (note,) = carry_out(bill, bill.due(at(30)), at(30))
    bill.note_accepted(note)
    assert "DebitNoteNotPaid" not in ends(bill.due(at(74.9)))
    assert "DebitNoteNotPaid" in ends(bill.due(at(75)))


def test_nothing_reserved_in_time() -> None:
    bill = Bill(by_channel(), NOW)
    assert ends(bill.due(at(100))) == [], "the node has not answered yet"
    bill.covered(reserved(0, started=False), at(1))
    assert ends(bill.due(at(29))) == []
    assert bill.next_moment() == at(30)
    assert ends(bill.due(at(30))) == ["NoCover"]


def test_nobody_is_idle_before_the_reserve_is_final() -> None:
    bill = Bill(by_channel(), NOW)
    bill.covered(reserved(0, started=False), at(1))
    bill.covered(reserved(TOKEN), at(25))
    assert ends(bill.due(at(114))) == []
    assert ends(bill.due(at(115))) == ["NoActivity"]


def test_the_work_stops_before_the_bill_is_more_than_what_is_reserved() -> None:
    bill = Bill(by_channel(interval=3600), NOW)
    bill.covered(reserved(TOKEN), at(0))
    bill.activity_began("a", at(0))
    assert bill.due(at(0)) == []
    # 1 - 0.1 to start - 5 s to spare at 0.011
    assert bill.next_moment() == at(76)
    bill.used("a", [76.0, 76.0])
    assert ends(bill.due(at(76))) == []
    assert bill.next_moment() == at(77)
    bill.used("a", [77.0, 77.0])
    assert ends(bill.due(at(77))) == ["CoverUsedUp"]


def test_more_that_is_reserved_or_accepted_keeps_the_work_going() -> None:
    bill = Bill(by_channel(), NOW)
    bill.covered(reserved(TOKEN), at(0))
    bill.activity_began("a", at(0))
    bill.used("a", [77.0, 77.0])
    bill.covered(reserved(TOKEN, accepted=TOKEN // 2), at(77))
    assert ends(bill.due(at(77))) == []
    bill.covered(reserved(TOKEN, credit=TOKEN), at(78))
    assert ends(bill.due(at(78))) == []
    bill.covered(reserved(TOKEN), at(79))
    assert ends(bill.due(at(79))) == ["CoverUsedUp"]


def test_a_bill_that_could_not_be_accepted_is_not_sent() -> None:
    bill = Bill(by_channel(), NOW)
    bill.covered(reserved(TOKEN), at(0))
    bill.activity_began("a", at(0))
    bill.used("a", [500.0, 0.0])
    bill.used("a", [500.0, 500.0])
    assert ends(bill.due(at(50))) == ["CoverUsedUp"]
    bill.activity_ended("a", at(50))
    assert bill.final_notes(at(50)) == []
    assert bill.total == TOKEN


def test_the_work_stops_before_the_end_of_the_reserves_time() -> None:
    bill = Bill(by_channel(), NOW)
    bill.covered(reserved(100 * TOKEN, until=at(100)), at(0))
    bill.activity_began("a", at(0))
    assert bill.next_moment() == at(70)
    assert ends(bill.due(at(69))) == []
    assert ends(bill.due(at(70))) == ["CoverEnds"]


use = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


@given(use, st.integers(TOKEN // 5, 2 * TOKEN))
def test_whatever_is_used_the_bill_can_be_accepted(steps: list[tuple[float, float, bool]], room: int) -> None:
    """A deal is looked at when the bill wants it, and uses what it can in between."""
    bill = Bill(by_channel(interval=20), NOW)
    signed, now = 0, 0.0
    bill.covered(reserved(room), at(0))
    bill.activity_began("a", at(0))
    clock, cpu = 0.0, 0.0
    for part, busy, accept in steps:
        orders = bill.due(at(now))
        if ends(orders):
            break
        sent = carry_out(bill, orders, at(now))
        if sent and accept:
            signed = bill.asked("a")
            bill.note_accepted(sent[-1])
            bill.covered(reserved(room - signed, accepted=signed), at(now))
        step = max((bill.next_moment() - at(now)).total_seconds(), 0) * (part or 1)
        now, clock, cpu = now + step, clock + step, cpu + step * busy
        bill.used("a", [clock, cpu])
        assert bill.total <= room
