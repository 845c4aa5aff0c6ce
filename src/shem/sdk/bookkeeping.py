"""A session's money: one allocation, every bill checked before it is accepted, every payment followed until it is final.

A bill is accepted when it is for an agreement of this session and does not exceed what the agreed price makes of the time the
machine was ours. One that asks too much is refused and its provider is left.

The budget is kept *before* money is owed: what open machines will cost by the time they can be given back is counted as
spent. When that reaches the budget the work ends, with enough left to pay for all that was done.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import TypeVar

from shem.client.http import NodeUnreachable
from shem.client.payment import PaymentApi
from shem.cogs.tasks import TaskScope
from shem.errors import Conflict, Gone, MoneyShort, NotFound, ShemError
from shem.sdk import events
from shem.sdk.hiring import Hired
from shem.terms.amounts import format_amount, parse_amount
from shem.wire.payment import Acceptance, DebitNote, Invoice, Rejection

log = logging.getLogger(__name__)

E = TypeVar("E")

POLL_S = 30.0
TIME_SLACK_S = 10.0
"""A provider counts from when it starts to serve; we from the approval. Clocks and messages may differ by this."""
CPU_SLACK = 1.25
"""CPU counters are read at moments of their own; a short burst may seem to exceed the cores it had."""
MAX_TRIES = 3
CLOCK_SLACK = timedelta(minutes=10)
"""How far a remote node's clock may be behind ours. The session's id is new, so older events are never ours."""
LOST_WAIT_S = 3.0
GIVE_BACK_S = 5.0
"""What it may take from the decision to stop until a machine's counters stand still."""


class BudgetExceeded(MoneyShort):
    """The budget is used up: work stopped, what was done is paid."""

    default_code = "money_budget"


@dataclass
class Account:
    """One agreement's money."""

    hired: Hired
    threads: int
    opened: float = field(default_factory=time.monotonic)
    closed: float | None = None
    billed: dict[str, int] = field(default_factory=dict)
    """Activity id → accepted running total."""
    invoiced: int | None = None
    settled: int = 0
    refused: str = ""
    lost: bool = False
    """Its provider was not there to be told that the work is over."""

    @property
    def billed_for_good(self) -> bool:
        """Whether no further bill is expected."""
        return self.invoiced is not None or bool(self.refused)

    @property
    def cost(self) -> int:
        """What is owed as of now, in base units."""
        return self.invoiced if self.invoiced is not None else sum(self.billed.values())

    def most(self, activities: int) -> int:
        """The most that the agreed price allows for the time so far."""
        seconds = (self.closed or time.monotonic()) - self.opened
        return max(activities, 1) * self._full_use(seconds + TIME_SLACK_S, CPU_SLACK)

    def owed_by(self, moment: float) -> int:
        """What it will have cost by then, fully used; once billed, the bill."""
        if self.invoiced is not None or self.refused:
            return self.cost
        return max(self.cost, self._full_use((self.closed or moment) - self.opened))

    def _full_use(self, seconds: float, slack: float = 1.0) -> int:
        full = {"golem.usage.duration_sec": seconds, "golem.usage.cpu_sec": seconds * self.threads * slack}
        pricing = self.hired.pricing
        return pricing.cost([full.get(counter, 0.0) for counter in pricing.usage_vector])


class Purse:
    """A limit on what some agreements may cost together. ``broke`` fails with :class:`BudgetExceeded` once."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.broke: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # seen, whether or not somebody works on it
        self.broke.add_done_callback(lambda future: None if future.cancelled() else future.exception() and None)
        self.accounts: dict[str, Account] = {}

    def holds(self, agreement_id: str) -> bool:
        """Whether this agreement is paid from here."""
        return agreement_id in self.accounts

    def owed_by(self, moment: float) -> int:
        """What all its agreements will have cost by then."""
        return sum(a.owed_by(moment) for a in self.accounts.values())

    def used_up(self, why: str) -> BudgetExceeded:
        """The error that says so."""
        return BudgetExceeded(
            f"{why} the budget of {format_amount(self.budget)}",
            hint="raise budget=; what was done so far is kept and paid",
        )

    def seconds_left(self) -> float | None:
        """How long its open machines may run on so that they can still be paid; ``None``: for ever, 0: not at all."""
        moment = time.monotonic() + GIVE_BACK_S
        left = self.budget - self.owed_by(moment)
        rate = self.owed_by(moment + 1000) - self.owed_by(moment)
        if not rate:
            return None
        return max(left * 1000 / rate, 0.0)  # prices are linear


class Bookkeeper:
    """Accepts, refuses, follows. An async context manager around one allocation."""

    def __init__(
        self,
        payment: PaymentApi,
        *,
        allocation_id: str,
        budget: int,
        session_id: str,
        emit: Callable[[events.Event], None],
        leave: Callable[[str, str, str, str], None],
    ) -> None:
        self._payment = payment
        self._allocation_id = allocation_id
        self._all = Purse(budget)
        self._purses = [self._all]
        self._session_id = session_id
        self._emit = emit
        self._leave = leave
        self._accounts = self._all.accounts
        self._scope = TaskScope("bookkeeping")
        self._changed = asyncio.Condition()
        self._since = datetime.now(UTC) - CLOCK_SLACK
        self._seen_payments: set[str] = set()
        self._accounts_changed = asyncio.Event()
        self._when_broke: Callable[[Purse | None], None] = lambda purse: None

    @property
    def broke(self) -> asyncio.Future[None]:
        """Fails with :class:`BudgetExceeded` once the session's budget is used up."""
        return self._all.broke

    def on_broke(self, callback: Callable[[Purse | None], None]) -> None:
        """Called when a purse (``None``: the session's own) is used up."""
        self._when_broke = callback

    def purse(self, budget: int) -> Purse:
        """A limit of its own for some of the session's agreements."""
        purse = Purse(budget)
        self._purses.append(purse)
        return purse

    async def __aenter__(self) -> Bookkeeper:
        self._scope.start(self._follow("debit notes", self._payment.debit_note_events, self._on_debit_note), "notes")
        self._scope.start(self._follow("invoices", self._payment.invoice_events, self._on_invoice), "invoices")
        self._scope.start(self._watch_settlements(), "settlements")
        self._scope.start(self._guard(), "budget")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._scope.close()
        for purse in self._purses:
            purse.broke.cancel()

    def open(self, hired: Hired, threads: int, purse: Purse | None = None) -> None:
        """Bills of this agreement are expected from now on. Raises :class:`BudgetExceeded` when not even the start of it
        fits what is left."""
        account = Account(hired, threads)
        moment = time.monotonic() + GIVE_BACK_S
        for limit in (self._all, purse):
            if limit is None:
                continue
            limit.accounts[hired.agreement.agreement_id] = account
            if limit.owed_by(moment) > limit.budget:
                account.closed = account.opened
                raise limit.used_up(f"renting {hired.name} for {GIVE_BACK_S:g} s would exceed")
        self._accounts_changed.set()

    def close_account(self, agreement_id: str, *, lost: bool = False) -> None:
        """The machine was given back (or ``lost``): time stops counting for its bills."""
        account = self._accounts[agreement_id]
        account.lost = lost
        account.closed = account.closed or time.monotonic()
        self._accounts_changed.set()

    @property
    def spent(self) -> int:
        """Accepted so far over all agreements, in base units."""
        return sum(a.cost for a in self._accounts.values())

    async def wait_invoices(self, timeout_s: float) -> list[str]:
        """Until every agreement has its final bill; the ids of those that have none when the time is up.

        A provider that went away is given :data:`LOST_WAIT_S` to come back with its bill.
        """
        await self._wait(lambda a: a.billed_for_good or a.lost, timeout_s)
        missing = await self._wait(lambda a: a.billed_for_good, LOST_WAIT_S)
        for agreement_id in missing:
            self._emit(events.BillMissing(self._accounts[agreement_id].hired.provider_id, agreement_id))
        return missing

    async def wait_settled(self, timeout_s: float) -> list[str]:
        """Until every accepted bill is final on its chain; the agreements still open when the time is up."""
        return await self._wait(lambda a: a.settled >= a.cost, timeout_s)

    async def _wait(self, done: Callable[[Account], bool], timeout_s: float) -> list[str]:
        def missing() -> list[str]:
            return [key for key, account in self._accounts.items() if not done(account)]

        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: not missing())
        except TimeoutError:
            pass
        return missing()

    # -- the budget

    async def _guard(self) -> None:
        """End the work on a purse when what is owed by the time machines could be given back reaches its budget."""
        while True:
            self._accounts_changed.clear()
            soonest: float | None = None
            for purse in self._purses:
                left = None if purse.broke.done() else purse.seconds_left()
                if left == 0:
                    purse.broke.set_exception(purse.used_up("the work has used up"))
                    self._when_broke(None if purse is self._all else purse)
                elif left is not None:
                    soonest = left if soonest is None else min(soonest, left)
            try:
                async with asyncio.timeout(None if soonest is None else max(soonest, 0.01)):
                    await self._accounts_changed.wait()
            except TimeoutError:
                pass

    # -- bills

    async def _follow(
        self, what: str, poll: Callable[..., Awaitable[list[E]]], act: Callable[[E], Awaitable[None]]
    ) -> None:
        """Act on each event of this session once, in order; one that cannot be acted on holds up no other for long."""
        after = self._since
        tries = 0
        while True:
            try:
                for event in await poll(after=after, app_session_id=self._session_id, timeout_s=POLL_S):
                    tries += 1
                    await act(event)
                    after, tries = max(after, event.event_date), 0  # type: ignore[attr-defined]
            except (ShemError, TimeoutError) as error:
                log.info("%s: %s", what, error)
                if tries >= MAX_TRIES and not isinstance(error, NodeUnreachable):
                    log.warning("one of the %s is passed over: %s", what, error)
                    after, tries = await self._past(poll, after), 0
                await asyncio.sleep(0.5)  # the node restarts, or is busy; a refused connection returns at once

    async def _past(self, poll: Callable[..., Awaitable[list[E]]], after: datetime) -> datetime:
        """The moment of the next event."""
        try:
            found = await poll(after=after, app_session_id=self._session_id, timeout_s=0)
        except (ShemError, TimeoutError):
            return after
        return found[0].event_date if found else after  # type: ignore[attr-defined]

    async def _on_debit_note(self, event: object) -> None:
        if getattr(event, "event_type", "") != "DebitNoteReceivedEvent":
            return
        note = await self._payment.debit_note(event.debit_note_id)  # type: ignore[attr-defined]
        account = self._accounts.get(note.agreement_id)
        if account is None or note.status != "RECEIVED":
            return
        due = parse_amount(note.total_amount_due)
        others = sum(v for k, v in account.billed.items() if k != note.activity_id)
        if await self._accept(account, note, due, others + due, len({*account.billed, note.activity_id})):
            account.billed[note.activity_id] = due
            await self._moved(account)

    async def _on_invoice(self, event: object) -> None:
        if getattr(event, "event_type", "") != "InvoiceReceivedEvent":
            return
        invoice = await self._payment.invoice(event.invoice_id)  # type: ignore[attr-defined]
        account = self._accounts.get(invoice.agreement_id)
        if account is None:
            return
        if invoice.status not in ("RECEIVED", "ACCEPTED", "SETTLED"):
            return
        due = parse_amount(invoice.amount)
        if invoice.status != "RECEIVED" or await self._accept(account, invoice, due, due, len(invoice.activity_ids)):
            account.invoiced = due
            await self._moved(account)

    async def _accept(
        self, account: Account, document: DebitNote | Invoice, due: int, total: int, activities: int
    ) -> bool:
        """Accept ``due`` of a document that brings the agreement's bill to ``total``."""
        hired = account.hired
        most = account.most(activities)
        if total > most:
            why = f"it bills {format_amount(total)} where the agreed price allows at most {format_amount(most)}"
            await self._refuse(account, document, "bill_too_high", why)
            return False
        if self.spent - account.cost + total > self._all.budget:
            await self._refuse(account, document, "bill_over_budget", "it does not fit the budget")
            return False
        acceptance = Acceptance(total_amount_accepted=format_amount(due), allocation_id=self._allocation_id)
        try:
            if isinstance(document, Invoice):
                await self._payment.accept_invoice(document.invoice_id, acceptance)
            else:
                await self._payment.accept_debit_note(document.debit_note_id, acceptance)
        except (Conflict, Gone, NotFound) as error:
            log.info("a bill of %s could not be accepted: %s", hired.name, error)
            return False
        except MoneyShort as error:
            await self._refuse(account, document, error.code, error.message)
            return False
        return True

    async def _refuse(self, account: Account, document: DebitNote | Invoice, code: str, why: str) -> None:
        account.refused = why
        asked = document.amount if isinstance(document, Invoice) else document.total_amount_due
        self._emit(events.BillRefused(account.hired.provider_id, document.agreement_id, parse_amount(asked), code, why))
        self._leave(account.hired.provider_id, account.hired.name, code, why)
        if isinstance(document, Invoice):
            rejection = Rejection(rejection_reason="INCORRECT_AMOUNT", total_amount_accepted="0", message=why)
            try:
                await self._payment.reject_invoice(document.invoice_id, rejection)
            except ShemError as error:
                log.info("the refusal was not taken: %s", error)
        async with self._changed:
            self._changed.notify_all()

    async def _moved(self, account: Account) -> None:
        agreement = account.hired.agreement.agreement_id
        self._accounts_changed.set()
        self._emit(events.CostChanged(agreement, account.hired.provider_id, account.cost))
        async with self._changed:
            self._changed.notify_all()

    # -- payments

    async def _watch_settlements(self) -> None:
        after = self._since
        while True:
            try:
                found = await self._payment.settlements(after=after, timeout_s=POLL_S)
            except (ShemError, TimeoutError) as error:
                log.info("settlements are not heard of: %s", error)
                await asyncio.sleep(0.5)
                continue
            for payment in found:
                after = max(after, payment.timestamp)
                ours = [a for a in payment.agreement_ids if a in self._accounts]
                if not ours or payment.payment_id in self._seen_payments:
                    continue
                self._seen_payments.add(payment.payment_id)
                await self._settle(ours, parse_amount(payment.amount))
                self._emit(
                    events.PaymentSettled(
                        payment.payee,
                        parse_amount(payment.amount),
                        payment.platform,
                        payment.tx_hash,
                        payment.block_number if payment.tx_hash else None,
                        tuple(ours),
                    )
                )
                async with self._changed:
                    self._changed.notify_all()

    async def _settle(self, agreement_ids: list[str], amount: int) -> None:
        """Spread one payment over the agreements it pays, in their order."""
        for agreement_id in agreement_ids:
            account = self._accounts[agreement_id]
            part = min(amount, account.cost - account.settled)
            account.settled += part
            amount -= part
