"""A session's money: one allocation, every bill checked before it is accepted, every payment followed until it is final.

A bill is accepted when it is for an agreement of this session and does not exceed what the agreed price makes of the time the
machine was ours. One that asks too much is refused and its provider is left.

The budgets are kept before money is owed (:mod:`shem.sdk.purse` knows how): when one of the session's or of a map's is used
up, its machines are given back and its work ends. When only what one provider may earn is used up, the machines there are given
back, nothing more is rented there, and the work goes on elsewhere.

Where money is owed by voucher, a bill can be accepted only as far as money is reserved for its provider. The node reserves more
by itself, which takes a moment; the bill waits for that, holds up no other, and is told of when it waits long.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Literal, TypeVar

from shem.client.http import NodeUnreachable
from shem.client.payment import PaymentApi
from shem.cogs.tasks import TaskScope
from shem.errors import Conflict, Gone, KeyLocked, MoneyShort, NotFound, PeerFailed, ShemError
from shem.sdk import events
from shem.sdk.channels import ChannelWatch, reserve_wanted
from shem.sdk.hiring import Hired
from shem.sdk.purse import Account, BudgetExceeded, Line, Purse
from shem.terms.amounts import format_amount, parse_amount
from shem.terms.budgets import Limits
from shem.wire.payment import Acceptance, DebitNote, Invoice, Rejection, Settlement

log = logging.getLogger(__name__)

E = TypeVar("E")

POLL_S = 30.0
MAX_TRIES = 3
CLOCK_SLACK = timedelta(minutes=10)
"""How far a remote node's clock may be behind ours. The session's id is new, so older events are never ours."""
LOST_WAIT_S = 3.0
TELL_S = 1.0
"""How often what is owed is told while machines are open."""
SHORTEST_WAIT_S = 0.05
"""Between two looks at the limits; the time that giving back may take allows for it."""
COVER_FIRST_S = 5.0
"""A bill that waits longer than this for money to be reserved is told of."""
COVER_POLL_S = 30.0
COVER_TRIES = 20
"""So often the node is asked to accept a bill when enough is reserved, each time for up to :data:`COVER_POLL_S`."""
BILL_TOO_HIGH = "bill_too_high"
COVER_CODES = frozenset({"cover_short", "no_channel"})

Taken = Literal["accepted", "refused", "waits"]


class OverBilled(PeerFailed):
    """The provider bills more than was agreed, so its machine was given back."""

    default_code = BILL_TOO_HIGH


class OpenPurse(Purse):
    """A purse with somebody to tell: ``broke`` fails with :class:`~shem.sdk.purse.BudgetExceeded` once."""

    def __init__(self, limits: Limits, of: str = "session") -> None:
        super().__init__(limits, of)
        self.broke: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # seen, whether or not somebody works on it
        self.broke.add_done_callback(lambda future: None if future.cancelled() else future.exception() and None)


@dataclass(frozen=True)
class Bill:
    """A document to accept: a debit note's running total, or an invoice's sum."""

    account: Account
    document: DebitNote | Invoice
    due: int

    @property
    def invoice(self) -> Invoice | None:
        """``None`` for a debit note."""
        return self.document if isinstance(self.document, Invoice) else None

    @property
    def stream(self) -> str:
        """Of one stream only the latest bill matters."""
        document = self.document
        return document.agreement_id if isinstance(document, Invoice) else document.activity_id

    @property
    def total(self) -> int:
        """What it brings its agreement's bill to."""
        others = (v for k, v in self.account.billed.items() if k != self.stream)
        return self.due if self.invoice is not None else self.due + sum(others)

    @property
    def activities(self) -> int:
        """How many it is for, with what was billed before."""
        document = self.document
        if isinstance(document, Invoice):
            return len(set(document.activity_ids))  # named twice, it is one all the same
        return len({*self.account.billed, document.activity_id})


class Bookkeeper:
    """Accepts, refuses, follows. An async context manager around one allocation."""

    def __init__(
        self,
        payment: PaymentApi,
        *,
        allocation_id: str,
        limits: Limits,
        session_id: str,
        platform: str,
        emit: Callable[[events.Event], None],
        leave: Callable[[str, str, str, str], None],
    ) -> None:
        self._payment = payment
        self._channels = ChannelWatch(payment, platform, emit)
        self._allocation_id = allocation_id
        self._all = OpenPurse(limits)
        self._purses: list[OpenPurse] = [self._all]
        self._session_id = session_id
        self._emit = emit
        self._leave = leave
        self._accounts = self._all.accounts
        self._scope = TaskScope("bookkeeping")
        self._changed = asyncio.Condition()
        self._since = datetime.now(UTC) - CLOCK_SLACK
        self._seen_payments: set[str] = set()
        self._accounts_changed = asyncio.Event()
        self._uncovered: dict[str, Bill] = {}
        """By stream: bills that wait for money to be reserved."""
        self._give_back: Callable[[Purse, str], None] = lambda purse, provider_id: None

    @property
    def broke(self) -> asyncio.Future[None]:
        """Fails with :class:`~shem.sdk.purse.BudgetExceeded` once a budget of the whole session is used up."""
        return self._all.broke

    @property
    def by_channel(self) -> bool:
        """Whether money is owed by voucher here."""
        return self._channels.serves

    def on_used_up(self, callback: Callable[[Purse, str], None]) -> None:
        """Called when machines of a purse must be given back: all, or those of the named provider."""
        self._give_back = callback

    def purse(self, limits: Limits) -> OpenPurse:
        """Limits of their own for some of the session's agreements."""
        purse = OpenPurse(limits, "map")
        self._purses.append(purse)
        return purse

    def spent_providers(self, purse: Purse | None) -> set[str]:
        """Who has earned all that one provider may, of the session or of this purse."""
        return self._all.spent_providers | (purse.spent_providers if purse else set())

    def ended(self, provider_id: str) -> BaseException | None:
        """Why a machine of this provider was taken from its user, if money is the reason."""
        if self.broke.done() and not self.broke.cancelled():
            return self.broke.exception()
        if provider_id in self._all.spent_providers:
            return self._all.used_up("budget_per_provider", "it has earned")
        for account in self._accounts.values():
            if account.hired.provider_id == provider_id and account.refused.startswith(f"{BILL_TOO_HIGH}:"):
                return OverBilled(f"{account.hired.name} {account.refused}", hint="rent elsewhere; it is left")
        return None

    def refusal(self, agreement_id: str) -> str:
        """Why a bill of this agreement was refused; empty if none was."""
        account = self._accounts.get(agreement_id)
        return "" if account is None else account.refused

    def all_spent(self, purse: Purse | None, why: str) -> BudgetExceeded | None:
        """The reason, if providers that may earn no more are a reason why nobody could be rented."""
        for limit in (purse, self._all):
            if limit is not None and limit.spent_providers:
                count = len(limit.spent_providers)
                return limit.used_up("budget_per_provider", f"{why}; {count} that could serve have used up")
        return None

    async def __aenter__(self) -> Bookkeeper:
        self._scope.start(self._follow("debit notes", self._payment.debit_note_events, self._on_debit_note), "notes")
        self._scope.start(self._follow("invoices", self._payment.invoice_events, self._on_invoice), "invoices")
        self._scope.start(self._watch_settlements(), "settlements")
        self._scope.start(self._guard(), "budget")
        self._scope.start(self._channels.run(), "channels")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._scope.close()
        for purse in self._purses:
            purse.broke.cancel()

    def open(self, hired: Hired, threads: int, purse: Purse | None = None) -> None:
        """Bills of this agreement are expected from now on. Raises :class:`~shem.sdk.purse.BudgetExceeded` when not even
        the start of it fits what is left."""
        now = time.monotonic()
        reserve = reserve_wanted(hired) if self.by_channel else 0
        account = Account(hired, threads, now, reserve=reserve)
        try:
            for limit in (self._all, purse):
                if limit is not None:
                    limit.open(account, now)
            account.awaited = reserve > 0
        except BudgetExceeded:
            account.closed = account.opened
            raise
        finally:
            self._accounts_changed.set()

    def started(self, agreement_id: str) -> None:
        """Its activity is there; if that waited for money to be reserved, time counts from now."""
        account = self._accounts[agreement_id]
        if account.awaited:
            account.awaited, account.started = False, time.monotonic()
            self._channels.look(account.hired.provider_id)
            self._accounts_changed.set()

    def close_account(self, agreement_id: str, *, lost: bool = False) -> None:
        """The machine was given back (or ``lost``): time stops counting for its bills."""
        account = self._accounts[agreement_id]
        account.lost = lost
        if account.closed is None:
            account.closed = time.monotonic()
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
        waiting = {bill.document.agreement_id for bill in self._uncovered.values() if bill.invoice is not None}
        for agreement_id in missing:
            if agreement_id not in waiting:
                self._emit(events.BillMissing(self._accounts[agreement_id].hired.provider_id, agreement_id))
        return missing

    async def wait_settled(self, timeout_s: float) -> list[str]:
        """Until every accepted bill is final on its chain; the agreements still open when the time is up."""
        unpaid = await self._wait(lambda a: a.settled >= a.cost, timeout_s)
        await self._channels.finish()
        return unpaid

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
        """Give machines back when what is owed by the time that takes reaches a limit; tell meanwhile what is owed."""
        while True:
            self._accounts_changed.clear()
            now = time.monotonic()
            waits = [TELL_S] if self._all.hourly else []
            for purse in self._purses:
                for line in [] if purse.broke.done() else list(purse.lines(now)):
                    if line.provider_id in purse.spent_providers:
                        continue
                    left = line.seconds_left
                    if left == 0:
                        self._used_up(purse, line)
                    elif left is not None:
                        waits.append(left)
            self._emit(events.SpendingChanged(self.spent, self._all.owed_by(now), self._all.hourly))
            try:
                async with asyncio.timeout(max(min(waits), SHORTEST_WAIT_S) if waits else None):
                    await self._accounts_changed.wait()
            except TimeoutError:
                pass

    def _used_up(self, purse: OpenPurse, line: Line) -> None:
        if not line.provider_id:
            if not purse.broke.done():
                purse.broke.set_exception(purse.used_up(line.which, "the work has used up"))
            self._give_back(purse, "")
            return
        purse.spent_providers.add(line.provider_id)
        hired = next(a.hired for a in purse.accounts.values() if a.hired.provider_id == line.provider_id)
        error = purse.used_up(line.which, "it has earned")
        self._emit(events.ProviderLeft(hired.provider_id, hired.name, error.code, error.message))
        self._give_back(purse, line.provider_id)

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
        await self._take(Bill(account, note, parse_amount(note.total_amount_due)))

    async def _on_invoice(self, event: object) -> None:
        if getattr(event, "event_type", "") != "InvoiceReceivedEvent":
            return
        invoice = await self._payment.invoice(event.invoice_id)  # type: ignore[attr-defined]
        account = self._accounts.get(invoice.agreement_id)
        if account is None:
            return
        if invoice.status not in ("RECEIVED", "ACCEPTED", "SETTLED"):
            return
        bill = Bill(account, invoice, parse_amount(invoice.amount))
        if invoice.status == "RECEIVED":
            await self._take(bill)
        else:
            await self._record(bill)

    async def _take(self, bill: Bill) -> None:
        """Accept or refuse it now, or let it wait beside the others."""
        waited = self._uncovered.get(bill.stream)
        if waited is None:
            if await self._accept(bill, 0.0) == "waits":
                self._uncovered[bill.stream] = bill
                self._scope.start(self._accept_covered(bill.stream), f"bill {bill.stream[:8]}")
        elif waited.due <= bill.due:
            self._uncovered[bill.stream] = bill

    async def _accept_covered(self, stream: str) -> None:
        """Until enough is reserved for the latest bill of a stream; the node tells."""
        try:
            for attempt in range(COVER_TRIES):
                bill = self._uncovered[stream]
                try:
                    taken = await self._accept(bill, COVER_POLL_S if attempt else COVER_FIRST_S, tell=True)
                except (ShemError, TimeoutError) as error:
                    log.info("a bill of %s could not be accepted: %s", bill.account.hired.name, error)
                    await asyncio.sleep(0.5)  # the node restarts, or is busy; a refused connection returns at once
                    continue
                if taken != "waits" and self._uncovered[stream] is bill:
                    return
            log.warning("a bill of %s is not accepted: too little is reserved for it", bill.account.hired.name)
        finally:
            del self._uncovered[stream]

    async def _accept(self, bill: Bill, wait_s: float, *, tell: bool = False) -> Taken:
        """Accept it, if need be when enough is reserved after up to ``wait_s``."""
        account, document, total = bill.account, bill.document, bill.total
        hired, now = account.hired, time.monotonic()
        most = account.most(bill.activities, now)
        if total > most:
            why = f"it bills {format_amount(total)} where the agreed price allows at most {format_amount(most)}"
            await self._refuse(account, document, BILL_TOO_HIGH, why)
            return "refused"
        for purse in self._purses:
            if purse.holds(hired.agreement.agreement_id) and (which := purse.refuses(account, total, now)):
                await self._refuse(account, document, "bill_over_budget", f"it does not fit the {purse.of}'s {which}")
                return "refused"
        acceptance = Acceptance(total_amount_accepted=format_amount(bill.due), allocation_id=self._allocation_id)
        try:
            if isinstance(document, Invoice):
                await self._payment.accept_invoice(document.invoice_id, acceptance, timeout_s=wait_s)
            else:
                await self._payment.accept_debit_note(document.debit_note_id, acceptance, timeout_s=wait_s)
        except (Conflict, Gone, NotFound) as error:
            log.info("a bill of %s could not be accepted: %s", hired.name, error)
            return "refused"
        except (MoneyShort, KeyLocked) as error:
            if isinstance(error, MoneyShort) and error.code not in COVER_CODES:
                await self._refuse(account, document, error.code, error.message)
                return "refused"
            if tell:
                agreement_id = document.agreement_id
                self._emit(events.BillWaits(hired.provider_id, agreement_id, total, error.code, error.message))
            return "waits"
        await self._record(bill)
        return "accepted"

    async def _record(self, bill: Bill) -> None:
        if bill.invoice is not None:
            bill.account.invoiced = bill.due
        else:
            bill.account.billed[bill.stream] = max(bill.due, bill.account.billed.get(bill.stream, 0))
        await self._moved(bill.account)

    async def _refuse(self, account: Account, document: DebitNote | Invoice, code: str, why: str) -> None:
        account.refused = f"{code}: {why}"
        asked = document.amount if isinstance(document, Invoice) else document.total_amount_due
        self._emit(events.BillRefused(account.hired.provider_id, document.agreement_id, parse_amount(asked), code, why))
        self._leave(account.hired.provider_id, account.hired.name, code, why)
        if isinstance(document, Invoice):
            rejection = Rejection(rejection_reason="INCORRECT_AMOUNT", total_amount_accepted="0", message=why)
            try:
                await self._payment.reject_invoice(document.invoice_id, rejection)
            except ShemError as error:
                log.info("the refusal was not taken: %s", error)
        elif code == BILL_TOO_HIGH:
            self._give_back(self._all, account.hired.provider_id)  # whoever works there must not go on
        async with self._changed:
            self._changed.notify_all()

    async def _moved(self, account: Account) -> None:
        agreement = account.hired.agreement.agreement_id
        self._accounts_changed.set()
        self._emit(events.CostChanged(agreement, account.hired.provider_id, account.cost))
        self._channels.look(account.hired.provider_id)
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
                self.settled(payment)
                async with self._changed:
                    self._changed.notify_all()

    def settled(self, payment: Settlement) -> None:
        """A payment is final: enter what it brings to this session's agreements. It may pay other programs' as well."""
        parts = {a: parse_amount(amount) for a, amount in payment.amounts.items() if a in self._accounts}
        if not parts or payment.payment_id in self._seen_payments:
            return
        self._seen_payments.add(payment.payment_id)
        for agreement_id, amount in parts.items():
            self._accounts[agreement_id].settled += amount
        self._emit(
            events.PaymentSettled(
                self._accounts[next(iter(parts))].hired.provider_id,  # who may be paid at another address than its id
                sum(parts.values()),
                payment.platform,
                payment.tx_hash,
                payment.block_number if payment.tx_hash else None,
                tuple(parts),
            )
        )
