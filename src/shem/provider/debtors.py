"""Requestors that owe what is overdue: they get no new agreement before it is paid.

What was accepted on a platform of transfers is a promise to pay at a date. A requestor's node keeps it by itself once it has the
money, so a refusal says what is owed, and is not final. What is paid by channel is never a debt: its voucher came with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

import msgspec

from shem.provider.offering import CHANNEL
from shem.terms.amounts import format_amount, parse_amount
from shem.wire.payment import Invoice

MAX_DEBTS = 10_000
"""Remembered; the oldest is forgotten first."""


class Debt(msgspec.Struct, frozen=True, kw_only=True):
    """An accepted invoice that is not paid yet."""

    requestor_id: str
    amount: int
    due: datetime


class Debtors:
    """Who owes what, by what our node has told."""

    def __init__(self, grace_s: float) -> None:
        """``grace_s``: a debt counts when it is overdue for so long."""
        self._grace = timedelta(seconds=grace_s)
        self._debts: dict[str, Debt] = {}

    def note(self, invoices: Iterable[Invoice]) -> None:
        """How these invoices stand now."""
        for invoice in invoices:
            self._debts.pop(invoice.invoice_id, None)
            amount = parse_amount(invoice.amount)
            if invoice.status != "ACCEPTED" or not amount or invoice.payment_platform.startswith(CHANNEL):
                continue
            while len(self._debts) >= MAX_DEBTS:
                del self._debts[next(iter(self._debts))]
            self._debts[invoice.invoice_id] = Debt(
                requestor_id=invoice.recipient_id.lower(), amount=amount, due=invoice.payment_due_date
            )

    def overdue(self, requestor_id: str, now: datetime) -> str:
        """What this requestor owes, in a sentence; empty when nothing is overdue."""
        late = [
            debt
            for debt in self._debts.values()
            if debt.requestor_id == requestor_id.lower() and debt.due + self._grace < now
        ]
        if not late:
            return ""
        since, total = min(debt.due for debt in late), sum(debt.amount for debt in late)
        return f"{format_amount(total)} of accepted invoices are not paid, due since {since:%Y-%m-%d %H:%M:%S} UTC"
