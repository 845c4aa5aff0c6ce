"""What happens to a user's work, as facts in the past tense. The progress display, the report and programs listen to these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

from shem.terms.budgets import Budget, Limits, Price


@dataclass(frozen=True)
class DemandPublished:
    """The market was asked. ``constraints`` is the filter that offers must pass."""

    demand_id: str
    constraints: str


@dataclass(frozen=True)
class ProposalSeen:
    """A provider's offer matches."""

    provider_id: str
    provider_name: str


@dataclass(frozen=True)
class ProviderLeft:
    """A provider will not be asked again in this session, and why (a stable code and a sentence)."""

    provider_id: str
    provider_name: str
    code: str
    reason: str


@dataclass(frozen=True)
class RentalStarted:
    """A machine is ours: the agreement is approved and the image is running."""

    rental: int
    provider_id: str
    provider_name: str
    agreement_id: str


@dataclass(frozen=True)
class RentalProgress:
    """What a rental is busy with before it can work (pulling an image, say); ``done`` of ``total`` in ``unit``."""

    rental: int
    provider_name: str
    message: str
    done: int | None = None
    total: int | None = None
    unit: str | None = None


@dataclass(frozen=True)
class RentalEnded:
    """A machine was given back."""

    rental: int
    provider_id: str
    agreement_id: str
    reason: str


@dataclass(frozen=True)
class OutputReceived:
    """A piece of a command's output (``stream``: 1 stdout, 2 stderr)."""

    rental: int
    stream: int
    data: bytes


@dataclass(frozen=True)
class TasksAdded:
    """So many tasks are to be done; ``total`` is ``None`` when the items have no length."""

    total: int | None


@dataclass(frozen=True)
class TaskStarted:
    """A task begins on a machine."""

    task: int
    attempt: int
    rental: int
    provider_id: str
    provider_name: str


@dataclass(frozen=True)
class TaskFinished:
    """A task gave its result."""

    task: int
    rental: int
    provider_id: str
    seconds: float


@dataclass(frozen=True)
class TaskFailed:
    """A task failed on one machine; ``retried`` says whether it goes to another."""

    task: int
    attempt: int
    rental: int
    provider_id: str
    code: str
    reason: str
    retried: bool


@dataclass(frozen=True)
class CostChanged:
    """A provider's bill for one agreement so far, in base units of the token."""

    agreement_id: str
    provider_id: str
    cost: int


@dataclass(frozen=True)
class BudgetSet:
    """What the session (or one ``map`` in it) may cost: as written, in base units of ``token``, and the price in between
    where the budget was written in dollars."""

    of: str
    token: str
    written: Budget
    limits: Limits
    price: Price | None


@dataclass(frozen=True)
class SpendingChanged:
    """In base units: the bills ``accepted`` so far, the most that is ``owed`` at this moment (what runs and is not billed
    yet, fully used), and what an hour of all that is rented now costs. Comes every second while machines are rented."""

    accepted: int
    owed: int
    hourly: int


@dataclass(frozen=True)
class BillRefused:
    """A bill was not accepted, for ``code`` and ``reason``; ``amount`` is what it asked for, in base units."""

    provider_id: str
    agreement_id: str
    amount: int
    code: str
    reason: str


@dataclass(frozen=True)
class BillWaits:
    """A bill that brings its agreement to ``amount`` (base units) cannot be accepted yet: too little is reserved for its
    provider by channel (``cover_short``, ``no_channel``), or the node's key is locked. It is accepted as soon as it can be."""

    provider_id: str
    agreement_id: str
    amount: int
    code: str
    reason: str


@dataclass(frozen=True)
class ChannelChanged:
    """A payment channel with one of the session's providers, in base units: what is ``reserved`` for it on the chain, the
    voucher that was ``signed`` last, and what it has ``claimed``. ``state``: ``open``, ``closing`` or ``closed``; what a
    closed one had reserved beyond its claim has come back. Vouchers count all that was ever paid through the channel."""

    provider_id: str
    channel_id: str
    platform: str
    state: str
    reserved: int
    signed: int
    claimed: int
    opened_tx: str
    valid_until: datetime


@dataclass(frozen=True)
class BillMissing:
    """A provider has sent no final bill in time (it went away, mostly)."""

    provider_id: str
    agreement_id: str


@dataclass(frozen=True)
class PaymentSettled:
    """Money arrived: final on its chain (``tx_hash`` is empty for platforms without one)."""

    provider_id: str
    amount: int
    platform: str
    tx_hash: str
    block_number: int | None
    agreement_ids: tuple[str, ...] = field(default_factory=tuple)


Event: TypeAlias = (
    DemandPublished
    | ProposalSeen
    | ProviderLeft
    | RentalStarted
    | RentalProgress
    | RentalEnded
    | OutputReceived
    | TasksAdded
    | TaskStarted
    | TaskFinished
    | TaskFailed
    | CostChanged
    | BudgetSet
    | SpendingChanged
    | BillRefused
    | BillWaits
    | BillMissing
    | ChannelChanged
    | PaymentSettled
)

Listener: TypeAlias = Callable[[Event], Any]
