"""Debit notes and invoices, carried out: issued at the own node, sent, tried again until they are there.

An agreement gets exactly one invoice, also for nothing: requestors wait for it. Whoever asks for it a second time (a
retry after a lost answer, a restart) is given the one that exists.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from typing import TypeVar

from shem.client.payment import PaymentApi
from shem.cogs.clock import Clock
from shem.errors import Conflict, Gone, NotFound, PeerFailed, Refused
from shem.provider.billing import Bill, SendNote
from shem.terms.amounts import format_amount
from shem.wire.payment import DebitNote, Invoice, NewDebitNote, NewInvoice

log = logging.getLogger(__name__)

D = TypeVar("D", DebitNote, Invoice)

_SEND_WAIT_S = 5.0
_FIRST_RETRY_S = 0.5
_LAST_RETRY_S = 60.0
_SKEW = timedelta(minutes=10)
"""How far the node's clock may be from ours when we look for documents of an agreement."""


class Accountant:
    """Sends what :class:`~shem.provider.billing.Bill` decides."""

    def __init__(self, payment: PaymentApi, clock: Clock) -> None:
        self._payment = payment
        self._clock = clock

    async def issue_note(self, bill: Bill, order: SendNote) -> str:
        """Issue a note at the own node and enter it into the bill; its id, for :meth:`deliver_note`.

        Raises ``PeerFailed`` when the own node is away and ``Refused`` when it will not have the note: nothing is
        entered then.
        """
        note = await self._payment.issue_debit_note(
            NewDebitNote(
                activity_id=order.activity_id,
                total_amount_due=format_amount(order.amount),
                usage_counter_vector=list(order.usage),
                payment_due_date=order.payment_due,
            )
        )
        # entered before it is sent: its acceptance may come back faster than the answer to our call
        bill.note_sent(order, note.debit_note_id, self._clock.now())
        return note.debit_note_id

    async def deliver_note(self, note_id: str) -> None:
        """Send a note; returns when the requestor has it, or after a few seconds (the node then goes on trying)."""
        try:
            await self._payment.send_debit_note(note_id, timeout_s=_SEND_WAIT_S)
        except (PeerFailed, TimeoutError) as error:
            log.info("debit note %s is on its way: %s", note_id, error)
        except Refused as error:
            log.warning("debit note %s: %s", note_id, error)

    async def invoice_once(self, agreement_id: str, bill: Bill, since: datetime) -> Invoice | None:
        """Issue and send the invoice of an agreement that began at ``since``; retried until the node has it.

        ``None`` when the node refuses it for good (which is logged).
        """
        pause = _FIRST_RETRY_S
        uncertain = False
        while True:
            try:
                invoice = (await self.invoiced(since)).get(agreement_id) if uncertain else None
                if invoice is None:
                    invoice = await self._issue(agreement_id, bill, since)
                await self._send(invoice)
                return invoice
            except (PeerFailed, TimeoutError) as error:
                uncertain = True
                log.warning("agreement %s: no invoice yet: %s", agreement_id, error)
            except Refused as error:
                log.error("agreement %s: the node refuses our invoice: %s", agreement_id, error)
                return None
            await self._clock.sleep(pause)
            pause = min(_LAST_RETRY_S, pause * 2)

    async def invoiced(self, since: datetime) -> dict[str, Invoice]:
        """Invoices issued since then, by agreement."""
        found = await self.invoices(since)
        return {invoice.agreement_id: invoice for invoice in found if invoice.status != "CANCELLED"}

    async def invoices(self, since: datetime) -> list[Invoice]:
        """All that were issued since then, oldest first."""
        return [invoice async for invoice in _all(self._payment.invoices, since - _SKEW)]

    async def asked_before(self, agreement_id: str, since: datetime) -> dict[str, str]:
        """The highest total (a decimal string) that was asked for each activity of the agreement."""
        asked: dict[str, str] = {}
        async for note in _all(self._payment.debit_notes, since - _SKEW):
            if note.agreement_id == agreement_id and note.status != "CANCELLED":
                asked[note.activity_id] = note.total_amount_due  # oldest first, and totals only grow
        return asked

    async def _issue(self, agreement_id: str, bill: Bill, since: datetime) -> Invoice:
        order = NewInvoice(
            agreement_id=agreement_id,
            amount=format_amount(bill.total),
            payment_due_date=self._clock.now() + bill.terms.invoice_due,
            activity_ids=bill.activity_ids,
        )
        try:
            return await self._payment.issue_invoice(order)
        except Conflict:
            found = (await self.invoiced(since)).get(agreement_id)
            if found is None:
                raise
            return found

    async def _send(self, invoice: Invoice) -> None:
        if invoice.status != "ISSUED":
            return
        try:
            await self._payment.send_invoice(invoice.invoice_id, timeout_s=_SEND_WAIT_S)
        except (NotFound, Gone, Conflict) as error:
            log.info("invoice %s: %s", invoice.invoice_id, error)
        except (PeerFailed, TimeoutError) as error:
            if getattr(error, "code", "") == "node_unreachable":
                raise
            log.info("invoice %s is on its way: %s", invoice.invoice_id, error)  # the node goes on trying


async def _all(ask: Callable[..., Awaitable[list[D]]], after: datetime) -> AsyncIterator[D]:
    """All there are, oldest first: the node hands out so many at a time."""
    while found := await ask(after=after):
        for document in found:
            yield document
        if found[-1].timestamp <= after:
            return  # a node that does not heed ``after`` has said all it says
        after = found[-1].timestamp
