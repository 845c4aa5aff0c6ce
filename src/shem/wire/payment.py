"""Shapes of the Payment API (``/payment-api/v1``) and of our payment additions under ``/shem-api/v1``.

Amounts are decimal strings, times RFC 3339. Optional fields that are unset do not appear.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from shem.wire.base import Timestamp, Wire

DocumentStatus = Literal["ISSUED", "RECEIVED", "ACCEPTED", "REJECTED", "FAILED", "SETTLED", "CANCELLED"]
RejectionReason = Literal["UNSOLICITED_SERVICE", "BAD_SERVICE", "INCORRECT_AMOUNT"]

_Text = Annotated[str, msgspec.Meta(max_length=2000)]
_Id = Annotated[str, msgspec.Meta(max_length=128)]
_Usage = Annotated[list[float], msgspec.Meta(max_length=64)]


# --- allocations -----------------------------------------------------------------------------------------------------


class PlatformChoice(Wire):
    """A platform by its parts; what is left out is the node's default."""

    driver: _Text | None = None
    network: _Text | None = None
    token: _Text | None = None


class NewAllocation(Wire):
    """Set money aside. Programs also send empty ``allocationId``, ``spentAmount`` and ``remainingAmount``: ignored."""

    total_amount: _Text
    make_deposit: bool
    address: _Text | None = None
    payment_platform: _Text | PlatformChoice | None = None
    timeout: Timestamp | None = None
    deposit: dict[str, Any] | None = None


class AllocationChange(Wire):
    """Amend an allocation; what is left out stays."""

    total_amount: _Text | None = None
    timeout: Timestamp | None = None
    deposit: dict[str, Any] | None = None


class Allocation(Wire):
    """The requestor's money set aside: ``total = spent + remaining``."""

    allocation_id: str
    address: str
    payment_platform: str
    total_amount: str
    spent_amount: str
    remaining_amount: str
    timestamp: Timestamp
    make_deposit: bool
    timeout: Timestamp | None = None


class Decoration(Wire):
    """One property for a demand; values are strings, even the version."""

    key: str
    value: str


class Decorations(Wire):
    """What an allocation adds to a demand."""

    properties: list[Decoration]
    constraints: list[str]


class Account(Wire):
    """An address that can pay or be paid on a platform."""

    platform: str
    address: str
    driver: str
    network: str
    token: str
    send: bool
    receive: bool


# --- documents -------------------------------------------------------------------------------------------------------


class NewDebitNote(Wire):
    """The running total of an activity."""

    activity_id: _Id
    total_amount_due: _Text
    usage_counter_vector: _Usage | None = None
    payment_due_date: Timestamp | None = None


class NewInvoice(Wire):
    """The final sum of an agreement."""

    agreement_id: _Id
    amount: _Text
    payment_due_date: Timestamp
    activity_ids: Annotated[list[_Id], msgspec.Meta(max_length=1000)] | None = None


class DebitNote(Wire):
    """A debit note as either side sees it."""

    debit_note_id: str
    issuer_id: str
    recipient_id: str
    payee_addr: str
    payer_addr: str
    payment_platform: str
    timestamp: Timestamp
    agreement_id: str
    activity_id: str
    total_amount_due: str
    status: DocumentStatus
    previous_debit_note_id: str | None = None
    usage_counter_vector: list[float] | None = None
    payment_due_date: Timestamp | None = None


class Invoice(Wire):
    """An invoice as either side sees it."""

    invoice_id: str
    issuer_id: str
    recipient_id: str
    payee_addr: str
    payer_addr: str
    payment_platform: str
    timestamp: Timestamp
    agreement_id: str
    activity_ids: list[str]
    amount: str
    payment_due_date: Timestamp
    status: DocumentStatus


class Acceptance(Wire):
    """Yes to a document; the amount must be exactly what it asks."""

    total_amount_accepted: _Text
    allocation_id: _Id


class Rejection(Wire):
    """No to a document."""

    rejection_reason: RejectionReason
    total_amount_accepted: _Text
    message: _Text | None = None


# --- events ----------------------------------------------------------------------------------------------------------


class DebitNoteEvent(Wire):
    """Something happened to a debit note: ``DebitNoteReceivedEvent``, ``…AcceptedEvent`` and so on."""

    debit_note_id: str
    event_date: Timestamp
    event_type: str
    rejection: Rejection | None = None


class InvoiceEvent(Wire):
    """Something happened to an invoice: ``InvoiceReceivedEvent``, ``…AcceptedEvent`` and so on."""

    invoice_id: str
    event_date: Timestamp
    event_type: str
    rejection: Rejection | None = None


# --- payments --------------------------------------------------------------------------------------------------------


class AgreementPayment(Wire):
    """The part of a payment that pays an agreement."""

    agreement_id: str
    amount: str
    allocation_id: str | None = None


class ActivityPayment(Wire):
    """The part of a payment that pays the debit notes of an activity."""

    activity_id: str
    amount: str
    allocation_id: str | None = None


class Payment(Wire):
    """A transfer that settled. ``details`` is base64 of the transaction's hash."""

    payment_id: str
    payer_id: str
    payee_id: str
    payer_addr: str
    payee_addr: str
    payment_platform: str
    amount: str
    timestamp: Timestamp
    agreement_payments: list[AgreementPayment]
    activity_payments: list[ActivityPayment]
    details: str


class DriverStatus(Wire):
    """Why payments wait; ``kind`` is ``InsufficientGas``, ``RpcError`` and so on. Ours: ``code``, where one of ours says
    more (``wrong_vault``)."""

    kind: str
    driver: str
    network: str
    message: str
    address: str | None = None
    platform: str | None = None
    needed_amount: str | None = None
    code: str | None = None


class Settlement(Wire):
    """Ours: a payment with its place on the chain, as either side has verified it."""

    payment_id: str
    platform: str
    payer: str
    payee: str
    amount: str
    tx_hash: str
    block_number: int
    block_hash: str
    timestamp: Timestamp
    agreement_ids: list[str]
    role: Literal["Requestor", "Provider"]
    chain_id: int | None = None
    amounts: dict[str, str] = msgspec.field(default_factory=dict)
    """What each of those agreements got of it: agreements of several programs may be paid together."""


class AgreementSum(Wire):
    """Money of one kind, and over how many agreements."""

    agreements_count: int
    total_amount: str


class ChannelStatus(Wire):
    """Ours: a payment channel as one side has it. ``reserved`` and ``claimed`` as the last final block that was looked at
    has them; ``signed`` is the highest voucher; ``agreements`` are those that go on between the two nodes."""

    channel_id: str
    platform: str
    role: Literal["Requestor", "Provider"]
    peer: str
    payer: str
    payee: str
    signer: str
    nonce: int
    vault: str
    reserved: str
    claimed: str
    signed: str
    valid_until: Timestamp
    state: Literal["open", "closing", "closed"]
    opened_tx: str
    agreements: list[str]


class MoneyMove(Wire):
    """Ours: into a vault or out of it. ``amount`` is a decimal string, or ``all``; the vault is the one of ``platform``, or of
    ``network``, or the node's first."""

    amount: str
    platform: str | None = None
    network: str | None = None
    receiver: str | None = None


class ExitOrder(Wire):
    """Ours: everything out of a vault; ``force`` although work goes on."""

    platform: str | None = None
    network: str | None = None
    receiver: str | None = None
    force: bool = False


class Asked(Wire):
    """Ours: what was asked for is written down. ``id`` finds it again."""

    id: str
    platform: str


class VaultOrder(Wire):
    """Ours: put the standard vault on the chain of ``platform``, or of ``network``, or of the node's first."""

    platform: str | None = None
    network: str | None = None


class VaultAsked(Wire):
    """Ours: the transaction ``id`` puts a vault at the address ``vault``."""

    id: str
    platform: str
    vault: str


class Transaction(Wire, omit_defaults=False):
    """Ours: what an account of this node did on its chain, or means to do. ``state``: ``new`` until it is signed, ``sent``,
    ``mined``, and for good ``final`` or ``failed``. ``amount``: what is asked to be moved and, once it is final, what was.
    ``tx_hash``: of the attempt that was mined, or else of the last that was sent; a later one may take its place.
    ``entries``: of how many channels. ``receiver``: who gets it, where that is one address and not a vault."""

    id: str
    kind: str
    platform: str
    state: Literal["new", "sent", "mined", "final", "failed"]
    amount: str
    tx_hash: str | None
    block: int | None
    gas_used: int | None
    at: Timestamp | None
    entries: int
    detail: str
    receiver: str | None = None


class LockedMoney(Wire):
    """Ours: what stays in a channel for its payee until its term is over."""

    channel_id: str
    peer: str
    amount: str
    until: Timestamp


class ExitStatus(Wire, omit_defaults=False):
    """Ours: an exit from a vault. ``closing`` and ``collecting`` count the channels that are being ended or paid, and
    collected from. ``withdrawal`` is the transaction that took out ``withdrawn``. ``locked`` is what stayed."""

    id: str
    platform: str
    receiver: str
    state: Literal["open", "done", "failed"]
    closing: int
    collecting: int
    withdrawal: str | None
    withdrawn: str
    locked: list[LockedMoney]
    detail: str


class FlowStatus(Wire):
    """Of what was asked for: what was accepted, and what is paid for good."""

    requested: AgreementSum
    accepted: AgreementSum
    confirmed: AgreementSum


class GasStatus(Wire):
    """The coin that pays the fees."""

    balance: str
    currency_short_name: str


class VaultStatus(Wire):
    """What an owner has in a vault. ``free`` can be taken out; ``reserved`` is in its channels, and of that ``signed`` is what
    its vouchers promise; ``to_collect`` is what vouchers of others are worth to it. None of it counts what is paid out."""

    address: str
    free: str
    reserved: str
    signed: str
    to_collect: str
    channels: int


class PlatformStatus(Wire):
    """Ours: one platform's money at a glance. Without an answer of the chain there is ``error`` (with its code and
    what to do) and no ``amount``.

    ``amount`` is what can be paid with: the ``wallet``, and what is free in the vault where there is one. ``reserved`` is all
    that is promised of the same tokens, on whichever platform; ``allocated``, ``owed`` and ``paid`` are this one's alone.
    ``alias_of`` is the platform whose money this is under another name.
    """

    platform: str
    driver: str
    network: str
    token: str
    address: str
    reserved: str
    incoming: FlowStatus
    outgoing: FlowStatus
    allocated: str = "0"
    owed: str = "0"
    paid: str = "0"
    amount: str | None = None
    alias_of: str | None = None
    wallet: str | None = None
    vault: VaultStatus | None = None
    gas: GasStatus | None = None
    block_number: int | None = None
    block_datetime: Timestamp | None = None
    error: str | None = None
    error_code: str | None = None
    error_hint: str | None = None


class Audit(Wire):
    """Ours: what the node knows about a document, for the one who must accept it.

    ``by_known_usage`` is the agreed price × the usage this node has seen itself (it lags by one report);
    ``by_claimed_usage`` the price × the usage that the document (an invoice: its debit notes) claims.
    Absent where there is no price or no usage to go by.
    """

    claimed: str
    known_usage: dict[str, list[float]]
    by_known_usage: str | None = None
    by_claimed_usage: str | None = None
