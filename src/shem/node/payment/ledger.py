"""The arithmetic of a deal's money, on both sides. Pure: values in, values out, or an error and nothing.

Per agreement there is one :class:`Account`, per activity one :class:`Chain` of debit notes. All totals are cumulative
and only grow, so that every rule is a comparison and repeating a message adds nothing:

* *requested* by notes (the highest of each chain) or by the invoice, which may not ask for less than its notes did;
* *accepted*: what the requestor owes. It grows by differences, each drawn from an :class:`Allocation`, never past it;
* *scheduled* ≤ accepted: what was ordered from the payment driver;
* *settled* ≤ scheduled: what is final on the chain.

A document that brought *accepted* to N is settled when *settled* reaches N. The same sums, one number per agreement,
are what a cumulative voucher signs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec

from shem.errors import Conflict, Gone, MoneyShort, Refused
from shem.terms.amounts import format_amount
from shem.terms.pricing import LinearPricing

TOLERANCE_UNITS = 1000
"""Base units by which another implementation's rounding of price × usage may exceed ours."""

MAX_NOTES = 50_000
"""Debit notes of one activity: one every two minutes for two months."""


class TooManyNotes(Refused):
    """An activity has no need of that many."""

    default_code = "too_many_notes"


class Lowered(Refused):
    """Totals only grow."""

    default_code = "amount_lowered"


class AlreadyInvoiced(Conflict):
    """One live invoice per agreement, and no notes above it."""

    default_code = "already_invoiced"


class OverBilled(Refused):
    """The document asks for more than the agreed price of the usage it claims."""

    default_code = "over_billed"


class WrongAmount(Refused):
    """Documents are accepted at exactly what they ask."""

    default_code = "wrong_amount"


class WrongAllocation(Refused):
    """That allocation cannot pay this document."""

    default_code = "wrong_allocation"


class AllocationReleased(Gone):
    """That allocation sets nothing aside any more."""

    default_code = "allocation_released"


class AllocationShort(MoneyShort):
    """The allocation does not hold that much."""

    default_code = "money_short_allocation"


class FundsShort(MoneyShort):
    """The account does not hold that much beside what is promised already."""

    default_code = "money_short_funds"


class Allocation(msgspec.Struct, frozen=True, kw_only=True):
    """The requestor's money set aside, in base units. ``spent`` ≤ ``total``, always."""

    allocation_id: str
    owner: str
    platform: str
    address: str
    total: int
    spent: int = 0
    created_at: datetime
    timeout: datetime | None = None
    make_deposit: bool = False
    released: bool = False

    @property
    def remaining(self) -> int:
        """What it still reserves; nothing once released."""
        return 0 if self.released else self.total - self.spent

    def expired(self, now: datetime) -> bool:
        """True when its time is up."""
        return self.timeout is not None and self.timeout <= now


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """One agreement's money on one side."""

    owner: str
    agreement_id: str
    role: str
    """``Requestor`` (it pays) or ``Provider`` (it is paid)."""
    peer_id: str
    platform: str
    payer: str
    payee: str
    session: str | None
    """The agreement's session on this side."""
    noted: int = 0
    """Σ over chains of what was requested by notes."""
    notes_accepted: int = 0
    invoiced: int | None = None
    """The live invoice's amount."""
    accepted: int = 0
    scheduled: int = 0
    settled: int = 0
    allocation_id: str | None = None
    """Which allocation paid last."""

    @property
    def requested(self) -> int:
        """What the provider asks for so far."""
        return self.noted if self.invoiced is None else self.invoiced


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """The debit notes of one activity."""

    owner: str
    activity_id: str
    agreement_id: str
    requested: int = 0
    accepted: int = 0
    last_note_id: str | None = None
    notes: int = 0
    """How many there were."""


# --- requests --------------------------------------------------------------------------------------------------------


def add_note(account: Account, chain: Chain, note_id: str, total: int) -> tuple[Account, Chain]:
    """A debit note asks for ``total`` for its activity so far."""
    if chain.notes >= MAX_NOTES:
        raise TooManyNotes(f"activity {chain.activity_id} has {MAX_NOTES} debit notes already")
    if total < chain.requested:
        raise Lowered(
            "Requested amount for activity cannot be lowered. "
            f"Current amount requested: {format_amount(chain.requested)} Amount on debit note: {format_amount(total)}"
        )
    noted = account.noted + total - chain.requested
    if account.invoiced is not None and noted > account.invoiced:
        raise AlreadyInvoiced(
            f"the agreement is invoiced at {format_amount(account.invoiced)}; no note may ask for more"
        )
    return (
        msgspec.structs.replace(account, noted=noted),
        msgspec.structs.replace(chain, requested=total, last_note_id=note_id, notes=chain.notes + 1),
    )


def take_note_back(account: Account, chain: Chain, before: int, before_id: str | None) -> tuple[Account, Chain]:
    """The last note was refused by the requestor's node: the chain stands where the note before it left it."""
    before = max(before, chain.accepted)
    return (
        msgspec.structs.replace(account, noted=account.noted - chain.requested + before),
        msgspec.structs.replace(chain, requested=before, last_note_id=before_id),
    )


def add_invoice(account: Account, amount: int) -> Account:
    """The invoice asks for ``amount`` for the whole agreement."""
    if account.invoiced is not None:
        raise AlreadyInvoiced(f"the agreement is invoiced already, at {format_amount(account.invoiced)}")
    floor = max(account.noted, account.accepted)
    if amount < floor:
        raise Lowered(
            "Requested amount for agreement cannot be lowered. "
            f"Current amount requested: {format_amount(floor)} Amount on invoice: {format_amount(amount)}"
        )
    return msgspec.structs.replace(account, invoiced=amount)


def take_invoice_back(account: Account) -> Account:
    """The invoice was rejected, cancelled or refused; another may follow."""
    return msgspec.structs.replace(account, invoiced=None)


def check_claim(pricing: LinearPricing, usage: Sequence[float], total: int) -> None:
    """Raises :class:`OverBilled` when ``total`` exceeds the agreed price of the usage that the document claims."""
    price = pricing.cost(usage)
    if total > price + TOLERANCE_UNITS:
        raise OverBilled(
            f"{format_amount(total)} is asked for usage that costs {format_amount(price)} at the agreed price",
            claimed=format_amount(total),
            price=format_amount(price),
        )


# --- acceptance ------------------------------------------------------------------------------------------------------


class Accepted(msgspec.Struct, frozen=True):
    """What an acceptance changes. ``drawn`` is new debt."""

    account: Account
    chain: Chain | None
    drawn: int


def accept_note(account: Account, chain: Chain, total: int) -> Accepted:
    """A note at ``total`` is accepted. An older note than one accepted before adds nothing."""
    grown = max(total - chain.accepted, 0)
    notes_accepted = account.notes_accepted + grown
    accepted = max(account.accepted, notes_accepted)
    return Accepted(
        msgspec.structs.replace(account, notes_accepted=notes_accepted, accepted=accepted),
        msgspec.structs.replace(chain, accepted=chain.accepted + grown),
        accepted - account.accepted,
    )


def accept_invoice(account: Account, amount: int) -> Accepted:
    """The invoice is accepted: the agreement costs ``amount``, notes included."""
    accepted = max(account.accepted, amount)
    return Accepted(msgspec.structs.replace(account, accepted=accepted), None, accepted - account.accepted)


def draw(allocation: Allocation, account: Account, amount: int, now: datetime) -> tuple[Allocation, Account]:
    """Take ``amount`` of new debt from ``allocation``."""
    if allocation.released or allocation.expired(now):
        raise AllocationReleased(f"Allocation {allocation.allocation_id} has been already released")
    if (allocation.platform, allocation.address) != (account.platform, account.payer):
        raise WrongAllocation(
            f"allocation {allocation.allocation_id} pays from {allocation.address} on {allocation.platform}, "
            f"the document asks {account.payer} on {account.platform}"
        )
    if amount > allocation.remaining:
        raise AllocationShort(
            f"Not enough funds. Allocated: {format_amount(allocation.remaining)} Needed: {format_amount(amount)}",
            hint="amend the allocation, or name another",
        )
    return (
        msgspec.structs.replace(allocation, spent=allocation.spent + amount),
        msgspec.structs.replace(account, allocation_id=allocation.allocation_id),
    )


def schedule(account: Account) -> tuple[Account, int]:
    """Everything accepted becomes due: the account, and what must be ordered for it."""
    due = account.accepted - account.scheduled
    return msgspec.structs.replace(account, scheduled=account.accepted), due


def settle(account: Account, amount: int) -> Account:
    """``amount`` more is final on the chain."""
    return msgspec.structs.replace(account, settled=account.settled + amount)


# --- allocations -----------------------------------------------------------------------------------------------------


def reserved(allocations: Iterable[Allocation], accounts: Iterable[Account]) -> int:
    """What one address has promised on one platform: set aside, or accepted and not settled yet."""
    owed = sum(max(a.accepted - a.settled, 0) for a in accounts if a.role == "Requestor")
    return sum(a.remaining for a in allocations) + owed


def check_funds(requested: int, balance: int, promised: int) -> None:
    """Raises :class:`FundsShort` when ``balance`` less what is ``promised`` elsewhere does not hold ``requested``."""
    available = max(balance - promised, 0)
    if requested > available:
        raise FundsShort(
            f"Insufficient funds: {format_amount(requested)} requested, {format_amount(available)} available, "
            f"{format_amount(promised)} reserved",
            hint="fund the account, release other allocations, or ask for less",
            requested_funds=format_amount(requested),
            available_funds=format_amount(available),
            reserved_funds=format_amount(promised),
        )


def amend(allocation: Allocation, total: int | None, timeout: datetime | None) -> Allocation:
    """Another total (never below what is spent) or time-out; ``None`` keeps."""
    total = allocation.total if total is None else total
    if total < allocation.spent:
        raise WrongAllocation(
            f"{format_amount(allocation.spent)} of the allocation is spent; it cannot shrink to {format_amount(total)}"
        )
    return msgspec.structs.replace(allocation, total=total, timeout=timeout or allocation.timeout)


def release(allocation: Allocation) -> Allocation:
    """Set nothing aside any more; what is spent stays owed."""
    return msgspec.structs.replace(allocation, released=True)
