"""From accepted to paid: the requestor's orders, and the provider's own look at the chain.

Requestor: an acceptance leaves a *due* in its transaction. The settler, woken after the commit, gathers all open dues
between the same two addresses into one order and hands it to the driver in one transaction, so that an order exists
exactly once whatever happens in between. When the driver says that the order is final, the accounts grow, documents
become SETTLED and a signed payment notice goes to the provider, again in one transaction.

Provider: a notice is a claim. It counts only after the driver has found the transaction final, and only as far as other
claims have not used that transaction up.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import timedelta

import msgspec

from shem.cogs.tasks import TaskScope
from shem.errors import PeerFailed, Refused
from shem.node.payment import ledger
from shem.node.payment.books import Books
from shem.node.payment.drivers.base import (
    DriverProblem,
    Failure,
    NotFinalYet,
    PaymentNotFound,
    PaymentOrder,
    Settlement,
    VerifiedTransfer,
)
from shem.node.payment.protocol import MAX_PARTS, PaymentMessage, PaymentPart, Signed, units
from shem.node.payment.store import Due, Order, Part, Transfer
from shem.terms.amounts import format_amount

log = logging.getLogger(__name__)

MAX_OPEN_CLAIMS = 64
"""Unverified notices of one peer; each costs looks at the chain."""
MAX_NOT_FOUND = 12
"""How often a claimed transaction may be missing: endpoints lag, but not for ever."""
MAX_CLAIM_AGE = timedelta(days=7)
VERIFY_TIMEOUT_S = 30.0
VERIFY_AT_ONCE = 8
REORDER_FIRST = timedelta(seconds=10)
REORDER_LAST = timedelta(hours=1)
MAX_DUES = 1000
"""Looked at together."""


class WrongClaim(Refused):
    """The payment notice does not fit the agreements it names."""

    default_code = "payment_mismatch"


class TooManyClaims(PeerFailed):
    """Too many unverified payment notices of this peer. Not a refusal: it may say so again later, and should."""

    default_code = "too_many_claims"


class Settler:
    """The requestor's half."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._store = books.store
        self._stuck: dict[tuple[str, ...], DriverProblem] = {}
        for driver in {id(driver): driver for driver in books.drivers.values()}.values():
            driver.on_settled(self._on_outcome)

    def order_dues(self) -> None:
        """Make orders of everything that is due now, and of what the same account is to pay later: one transaction pays
        them all."""
        now, last = self._books.clock.now(), 0
        while due_now := self._store.open_dues(now, MAX_DUES, last):
            last = due_now[-1].due_id  # not again those that cannot be ordered
            later = self._store.early_dues(now, MAX_DUES)
            self._order_all([(due, False) for due in due_now] + [(due, True) for due in later])

    def _order_all(self, dues_now: Sequence[tuple[Due, bool]]) -> None:
        """``True``: only with others of the same account."""
        groups: dict[tuple[str, ...], list[Due]] = {}
        accounts: dict[tuple[str, ...], ledger.Account] = {}
        paying: set[tuple[str, str]] = set()
        for due, early in dues_now:
            account = self._store.account(due.agreement_id, due.owner)
            if account is None:
                continue
            purse = (account.platform, account.payer)
            if early and purse not in paying:
                continue
            paying.add(purse)
            key: tuple[str, ...] = (account.owner, account.peer_id, account.platform, account.payer, account.payee)
            accounts[key] = account
            groups.setdefault(key, []).append(due)
        for way, dues in groups.items():
            for start in range(0, len(dues), MAX_PARTS):
                try:
                    self._order(accounts[way], dues[start : start + MAX_PARTS])
                except Refused as error:
                    # Nothing but a changed configuration helps: keep the dues, show the problem, go on with the others.
                    log.error("%s cannot be paid: %s", way, error)
                    self._stuck[way] = self._problem(accounts[way], error)

    def _problem(self, account: ledger.Account, error: Refused) -> DriverProblem:
        platform = self._books.platforms.get(account.platform)
        return DriverProblem(
            code="CantSign",
            message=error.message,
            driver=platform.driver if platform else "",
            network=platform.network if platform else "",
            address=account.payer,
            platform=account.platform,
        )

    def _order(self, account: ledger.Account, dues: Sequence[Due]) -> None:
        driver = self._books.drivers.get(account.platform)
        if driver is None:
            raise Refused(f"no driver serves {account.platform}", code="unknown_platform")
        order = Order(
            order_id=str(uuid.uuid4()),
            owner=account.owner,
            peer_id=account.peer_id,
            platform=account.platform,
            payer=account.payer,
            payee=account.payee,
            amount=sum(due.amount for due in dues),
            state="ordered",
        )
        with self._books.write():
            self._store.save_order(order)
            self._store.assign(dues, order.order_id)
            driver.pay(
                self._books.db.connection,
                PaymentOrder(
                    order_id=order.order_id,
                    platform=order.platform,
                    payer=order.payer,
                    payee=order.payee,
                    amount_units=order.amount,
                ),
            )

    def problems(self) -> list[DriverProblem]:
        """What keeps dues from becoming orders."""
        return list(self._stuck.values())

    def _on_outcome(self, outcome: Settlement | Failure) -> None:
        """The driver's word, inside its transaction; may come twice."""
        with self._books.write():
            order = self._store.order(outcome.order_id)
            if order is None or order.state != "ordered":
                return
            if isinstance(outcome, Failure):
                self._failed(order, outcome)
            else:
                self._settled(order, outcome)

    def _failed(self, order: Order, failure: Failure) -> None:
        log.error(
            "order %s of %s to %s failed: %s", order.order_id, format_amount(order.amount), order.payee, failure.message
        )
        self._store.save_order(msgspec.structs.replace(order, state="failed"))
        now = self._books.clock.now()
        for due in self._store.dues_of(order.order_id):
            delay = min(REORDER_FIRST * 2 ** min(due.attempts, 20), REORDER_LAST)
            self._store.take_back(due, now + delay)
        self._books.db.after_commit(self._books.wake_settler)

    def _settled(self, order: Order, settlement: Settlement) -> None:
        self._store.save_order(msgspec.structs.replace(order, state="settled"))
        dues = self._store.dues_of(order.order_id)
        accounts = self._grow(order, dues)
        transfer = Transfer(
            owner=order.owner,
            payment_id=order.order_id,
            role="Requestor",
            payer_id=order.owner,
            payee_id=order.peer_id,
            payer=order.payer,
            payee=order.payee,
            platform=order.platform,
            amount=order.amount,
            at=self._books.now(),
            tx_hash=settlement.tx_hash,
            block_number=settlement.block_number,
            block_hash=settlement.block_hash,
            parts=tuple(
                Part(
                    agreement_id=due.agreement_id,
                    amount=str(due.amount),
                    activity_id=due.activity_id,
                    allocation_id=due.allocation_id,
                )
                for due in dues
            ),
            sessions=sessions_of(accounts),
            state="final",
        )
        self._store.save_transfer(transfer)
        self._books.wake(order.owner, "payment")
        notice = PaymentMessage(
            issuer=order.owner,
            recipient=order.peer_id,
            payment_id=order.order_id,
            platform=order.platform,
            payer=order.payer,
            payee=order.payee,
            amount=str(order.amount),
            tx_hash=settlement.tx_hash,
            parts=[
                PaymentPart(agreement_id=due.agreement_id, amount=str(due.amount), activity_id=due.activity_id)
                for due in dues
            ],
        )
        self._books.post(order.owner, order.peer_id, "payment", notice, order.order_id)

    def _grow(self, order: Order, dues: Sequence[Due]) -> list[ledger.Account]:
        grown: dict[str, ledger.Account] = {}
        for due in dues:
            account = grown.get(due.agreement_id) or self._store.account(due.agreement_id, order.owner)
            if account is not None:
                grown[due.agreement_id] = ledger.settle(account, due.amount)
        for account in grown.values():
            self._books.save(account)
            self._books.cover(account)
        return list(grown.values())


class Verifier:
    """The provider's half."""

    def __init__(self, books: Books, tasks: TaskScope, *, retry_s: tuple[float, float]) -> None:
        self._books = books
        self._store = books.store
        self._tasks = tasks
        self._first_delay_s, self._last_delay_s = retry_s
        self._looking: set[tuple[str, str]] = set()
        self.channels: Callable[[Transfer], Awaitable[VerifiedTransfer]] | None = None
        """Looks at what was paid through channels; set with the platforms of which that is so."""
        self.channel_platforms: Collection[str] = ()
        self.refuted: Callable[[Transfer], None] = lambda claim: None
        """Told of every claim that did not count: what it meant may have come all the same."""
        self._turn = asyncio.Semaphore(VERIFY_AT_ONCE)

    def start(self) -> None:
        """Look at every claim that is still open."""
        if self._books.closed:
            return
        for claim in self._store.claims():
            key = (claim.owner, claim.payment_id)
            if key not in self._looking:
                self._looking.add(key)
                self._tasks.start(self._look(claim, key), f"look for payment {claim.payment_id}")

    def receive(self, message: PaymentMessage, signed: Signed) -> None:
        """A requestor says it has paid."""
        owner, amount = message.recipient, units(message.amount)
        with self._books.write():
            known = self._store.transfer(message.payment_id, owner)
            parts = tuple(
                Part(agreement_id=part.agreement_id, amount=part.amount, activity_id=part.activity_id)
                for part in message.parts
            )
            if known is not None:
                if (known.payer_id, known.parts) != (message.issuer, parts):
                    raise WrongClaim("another payment has this id")
                return
            if self._store.claims_of(owner, message.issuer) >= MAX_OPEN_CLAIMS:
                raise TooManyClaims(f"{MAX_OPEN_CLAIMS} of your payments are not verified yet")
            accounts = [self._claimed_account(message, part) for part in parts]
            if amount != sum(int(part.amount) for part in parts):
                raise WrongClaim("the parts do not add up to the payment")
            self._store.save_transfer(
                Transfer(
                    owner=owner,
                    payment_id=message.payment_id,
                    role="Provider",
                    payer_id=message.issuer,
                    payee_id=owner,
                    payer=message.payer,
                    payee=message.payee,
                    platform=message.platform,
                    amount=amount,
                    at=self._books.now(),
                    tx_hash=message.tx_hash,
                    block_number=0,
                    block_hash="",
                    parts=parts,
                    sessions=sessions_of(accounts),
                    state="claimed",
                )
            )
            self._books.db.after_commit(self.start)

    def _claimed_account(self, message: PaymentMessage, part: Part) -> ledger.Account:
        account = self._store.account(part.agreement_id, message.recipient)
        said = (message.issuer, message.platform, message.payer, message.payee)
        if (
            account is None
            or account.role != "Provider"
            or said != (account.peer_id, account.platform, account.payer, account.payee)
        ):
            raise WrongClaim(f"that is no payment of agreement {part.agreement_id}")
        return account

    async def _look(self, claim: Transfer, key: tuple[str, str]) -> None:
        """Until the claim is final or refuted."""
        delay_s = self._first_delay_s
        missing = 0
        try:
            while True:
                try:
                    async with self._turn, asyncio.timeout(VERIFY_TIMEOUT_S):
                        found = await self._verify(claim)
                except PaymentNotFound as error:
                    missing += 1
                    if missing >= MAX_NOT_FOUND:
                        self._refute(claim, error.message)
                        return
                except Refused as error:
                    self._refute(claim, error.message)
                    return
                except (NotFinalYet, PeerFailed, TimeoutError) as error:
                    log.debug("payment %s waits: %s", claim.payment_id, error)
                else:
                    if self._found(claim, found, patient=missing < MAX_NOT_FOUND):
                        return
                    missing += 1
                if claim.at + MAX_CLAIM_AGE < self._books.clock.now():
                    self._refute(claim, "it did not become final in a week")
                    return
                await self._books.clock.sleep(delay_s)
                delay_s = min(delay_s * 2, self._last_delay_s)
        finally:
            self._looking.discard(key)

    async def _verify(self, claim: Transfer) -> VerifiedTransfer:
        if self.channels is not None and claim.platform in self.channel_platforms:
            return await self.channels(claim)
        driver = self._books.drivers.get(claim.platform)
        if driver is None:
            raise Refused(f"no driver serves {claim.platform}", code="unknown_platform")
        return await driver.verify(claim.platform, claim.tx_hash, claim.payer, claim.payee, claim.amount)

    def _found(self, claim: Transfer, found: VerifiedTransfer, *, patient: bool) -> bool:
        """Count the transfer, as far as other claims leave something of it; false to look again at a pot that grows."""
        with self._books.write():
            # By the driver's spelling of the hash: the claim's may differ from another claim's in case only. On whatever
            # platform: a network may go by several names, and a transaction is one chain's only.
            taken = self._store.claimed_on(found.pot or found.tx_hash, claim.payer, claim.payee)
            if found.pot:
                fitting = self._fitting(claim)
                if patient and (fitting.amount < claim.amount or taken + claim.amount > found.amount_units):
                    return False
                if not fitting.parts:
                    self._refute(claim, "what it says that it paid is paid already, or was never owed")
                    return True
                claim = fitting
            if taken + claim.amount > found.amount_units:
                self._refute(
                    claim,
                    f"transaction {claim.tx_hash} moved {format_amount(found.amount_units)}, "
                    f"and {format_amount(taken)} of it paid something else",
                )
                return True
            grown: dict[str, ledger.Account] = {}
            for part in claim.parts:
                account = grown.get(part.agreement_id) or self._store.account(part.agreement_id, claim.owner)
                if account is not None:
                    grown[part.agreement_id] = ledger.settle(account, int(part.amount))
            self._store.save_transfer(
                msgspec.structs.replace(
                    claim,
                    state="final",
                    at=self._books.now(),
                    tx_hash=found.tx_hash,
                    block_number=found.block_number,
                    block_hash=found.block_hash,
                    pot=found.pot or found.tx_hash,
                )
            )
            for account in grown.values():
                self._books.save(account)
                self._books.cover(account)
            self._books.wake(claim.owner, "payment")
            return True

    def _fitting(self, claim: Transfer) -> Transfer:
        """What it pays of what is owed: of a pot that pays several debts, each gets its own, and only once."""
        owed: dict[str, int] = {}
        parts = []
        for part in claim.parts:
            account = self._store.account(part.agreement_id, claim.owner)
            if account is None:
                continue
            left = owed.get(part.agreement_id, max(account.accepted - account.settled, 0))
            units = min(int(part.amount), left)
            owed[part.agreement_id] = left - units
            if units:
                parts.append(msgspec.structs.replace(part, amount=str(units)))
        amount = sum(int(part.amount) for part in parts)
        return msgspec.structs.replace(claim, parts=tuple(parts), amount=amount)

    def _refute(self, claim: Transfer, why: str) -> None:
        log.warning("%s did not pay what it says (%s): %s", claim.payer_id, claim.payment_id, why)
        with self._books.write():
            self._store.save_transfer(msgspec.structs.replace(claim, state="refuted"))
            self._books.db.after_commit(lambda: self.refuted(claim))


def sessions_of(accounts: Sequence[ledger.Account]) -> tuple[str, ...]:
    """The agents' sessions that a payment belongs to."""
    return tuple(dict.fromkeys(account.session for account in accounts if account.session is not None))
