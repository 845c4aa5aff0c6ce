"""What one bill may ask for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from shem.sdk.bookkeeping import Bill
from shem.terms.amounts import format_amount
from shem.wire.payment import DebitNote, Invoice
from tests.unit.sdk.test_purse import account

NOW = datetime(2026, 11, 24, tzinfo=UTC)
PARTS = {
    "issuer_id": "0xp",
    "recipient_id": "0xr",
    "payee_addr": "0xp",
    "payer_addr": "0xr",
    "payment_platform": "free",
    "timestamp": NOW,
    "agreement_id": "a1",
    "status": "RECEIVED",
}


def invoice(units: int, activity_ids: list[str]) -> Invoice:
    return Invoice(
        **PARTS,
        invoice_id="i",
        activity_ids=activity_ids,
        amount=format_amount(units),
        payment_due_date=NOW + timedelta(days=1),
    )


def note(units: int, activity_id: str) -> DebitNote:
    return DebitNote(**PARTS, debit_note_id="n", activity_id=activity_id, total_amount_due=format_amount(units))


def test_an_invoice_that_names_an_activity_again_and_again_may_ask_for_one() -> None:
    used = account(1, 0.0)
    used.closed = 60.0
    honest, greedy = (Bill(used, invoice(1, ["x"] * times), 1) for times in (1, 1000))
    assert honest.activities == greedy.activities == 1
    assert used.most(greedy.activities, 60.0) == used.most(1, 60.0)


def test_bills_of_several_activities_add_up() -> None:
    used = account(1, 0.0)
    used.billed = {"x": 5}
    second = Bill(used, note(7, "y"), 7)
    assert (second.activities, second.total) == (2, 12)
    again = Bill(used, note(8, "x"), 8)
    assert (again.activities, again.total) == (1, 8)
    last = Bill(used, invoice(20, ["x", "y"]), 20)
    assert (last.activities, last.total) == (2, 20)
