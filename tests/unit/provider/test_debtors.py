"""Who gets no new agreement because of old ones."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from shem.provider import debtors
from shem.provider.debtors import Debtors
from shem.provider.negotiators import Counter, Rejection, negotiate
from shem.wire.payment import Invoice
from tests.unit.provider.builders import ADDRESS, CHANNEL, NOW, PLATFORM, a_demand, a_request

ALICE, EVE = "0xAA", "0xee"


def an_invoice(invoice_id: str = "i1", **changes: Any) -> Invoice:
    values: dict[str, Any] = {
        "invoice_id": invoice_id,
        "issuer_id": "0xbb",
        "recipient_id": ALICE,
        "payee_addr": ADDRESS,
        "payer_addr": ADDRESS,
        "payment_platform": PLATFORM,
        "timestamp": NOW - timedelta(days=2),
        "agreement_id": "a1",
        "activity_ids": [],
        "amount": "1.25",
        "payment_due_date": NOW - timedelta(hours=2),
        "status": "ACCEPTED",
    }
    return Invoice(**(values | changes))


def test_what_is_accepted_and_overdue_is_owed_until_it_is_paid() -> None:
    known = Debtors(3600)
    known.note([an_invoice(), an_invoice("i2", amount="0.5")])
    assert known.overdue(ALICE.lower(), NOW).startswith(
        "1.75 of accepted invoices are not paid, due since 2026-01-01 10"
    )
    assert known.overdue(EVE, NOW) == ""
    assert known.overdue(ALICE, NOW - timedelta(hours=1)) == "", "in its time of grace"
    known.note([an_invoice(status="SETTLED"), an_invoice("i2", status="CANCELLED")])
    assert known.overdue(ALICE, NOW) == ""


def test_what_is_no_debt() -> None:
    known = Debtors(0)
    known.note(
        [
            an_invoice("free", amount="0"),
            an_invoice("vouched for", payment_platform=CHANNEL),
            an_invoice("not accepted", status="RECEIVED"),
            an_invoice("disputed", status="REJECTED"),
            an_invoice("later", payment_due_date=NOW + timedelta(seconds=1)),
        ]
    )
    assert known.overdue(ALICE, NOW) == ""
    assert known.overdue(ALICE, NOW + timedelta(seconds=2))


def test_no_more_than_so_many_are_remembered() -> None:
    known = Debtors(0)
    known.note(an_invoice(str(number)) for number in range(debtors.MAX_DEBTS + 5))
    assert known.overdue(ALICE, NOW).startswith("12500 ")


def test_a_debtor_gets_no_agreement_and_hears_why() -> None:
    assert isinstance(negotiate(a_request(a_demand())), Counter)
    answer = negotiate(a_request(a_demand(), overdue="1 is not paid"))
    assert answer == Rejection("overdue_payments", "1 is not paid", False)
