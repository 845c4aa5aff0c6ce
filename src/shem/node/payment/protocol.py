"""What payment services say to each other: signed messages, each a request; all answers but one are empty.

A message travels as ``Signed(payload, signature)``: the payload is msgpack bytes, signed as they are under the method's
name, so that a receiver checks exactly what was signed and keeps it as evidence, and a later version may add a field
(an acceptance on a channel platform carries the voucher that makes it worth something). Before a service sees a message it is
bounded, its signature is verified, and its issuer is the peer on the line; nobody bills or accepts for somebody else.

Every handler is idempotent by the id of its document or payment, since letters are delivered at least once. A handler
that refuses does so for good: the sender drops the letter.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Literal, Protocol, TypeVar, cast

import msgspec

from shem.cogs.decoding import DECODE_ERRORS
from shem.errors import Refused
from shem.node.db import Database
from shem.node.identity.signing import verify
from shem.terms.amounts import MAX_UNITS
from shem.terms.ids import NodeId
from shem.wire.payment import RejectionReason

MAX_MESSAGE_BYTES = 256 << 10
MAX_PARTS = 256
MAX_HELD = 64

_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
_Text = Annotated[str, msgspec.Meta(max_length=2000)]
_Node = Annotated[str, msgspec.Meta(pattern=r"^0x[0-9a-f]{40}\Z")]
_Us = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_999_999)]
"""Microseconds since 1970, up to the year 9999: what a calendar can hold."""
_Signature = Annotated[bytes, msgspec.Meta(min_length=65, max_length=65)]
Units = Annotated[str, msgspec.Meta(pattern=r"^(0|[1-9][0-9]{0,28})\Z")]
"""Base units: msgpack's integers end at 64 bits."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Who says it, and to whom."""

    issuer: _Node
    recipient: _Node


class Billing(Message, frozen=True, kw_only=True):
    """What notes and invoices share."""

    document_id: _Id
    agreement_id: _Id
    platform: _Id
    payer: _Id
    payee: _Id
    amount: Units
    issued_at: _Us


class NoteMessage(Billing, frozen=True, kw_only=True):
    """A debit note. ``amount`` is the activity's total so far."""

    activity_id: _Id
    previous_id: _Id | None = None
    usage: Annotated[list[float], msgspec.Meta(max_length=64)] | None = None
    due_at: _Us | None = None


class InvoiceMessage(Billing, frozen=True, kw_only=True):
    """An invoice. ``amount`` is the agreement's total, notes included."""

    activity_ids: Annotated[list[_Id], msgspec.Meta(max_length=1000)]
    due_at: _Us


class KeyPart(msgspec.Struct, frozen=True, kw_only=True):
    """What names a channel in its vault."""

    payer: _Node
    payee: _Node
    signer: _Node
    nonce: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class VoucherPart(msgspec.Struct, frozen=True, kw_only=True):
    """The payee may collect ``amount`` in all from this channel: signed for its vault, see ``drivers.evm.vault``."""

    key: KeyPart
    amount: Units
    signature: _Signature


class AcceptanceMessage(Message, frozen=True, kw_only=True):
    """The payer owes this document. ``accepted`` is what it owes for the whole agreement, this included."""

    document_id: _Id
    agreement_id: _Id
    amount: Units
    accepted: Units
    issued_at: _Us
    voucher: VoucherPart | None = None


class ChannelMessage(Message, frozen=True, kw_only=True):
    """The payer has reserved money for the payee, or more of it. The payee looks for itself before it believes."""

    platform: _Id
    chain_id: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    vault: _Node
    key: KeyPart
    tx_hash: _Id


class CloseMessage(Message, frozen=True, kw_only=True):
    """The payer asks for the payee's word that ``amount`` is all that it gets from the channel. The answer is that
    word's signature, 65 bytes."""

    chain_id: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    vault: _Node
    channel_id: _Id
    amount: Units
    signature: _Signature | None = None
    """The voucher for that, should the payee have forgotten it."""


class HeldMessage(Message, frozen=True, kw_only=True):
    """A payer that was started asks what it has signed, since its memory may be an older copy. The answer is a
    :class:`Held`."""

    chain_id: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    vault: _Node
    channel_id: _Id


class RejectionMessage(Message, frozen=True, kw_only=True):
    """The payer will not pay this document."""

    document_id: _Id
    agreement_id: _Id
    reason: RejectionReason
    amount_accepted: Units
    text: _Text | None = None


class CancellationMessage(Message, frozen=True, kw_only=True):
    """The payee takes an invoice back. Refused once it is accepted."""

    document_id: _Id
    agreement_id: _Id


class PaymentPart(msgspec.Struct, frozen=True, kw_only=True):
    """What a transfer pays of one agreement, or of one activity's notes."""

    agreement_id: _Id
    amount: Units
    activity_id: _Id | None = None


class PaymentMessage(Message, frozen=True, kw_only=True):
    """The payer says that a final transaction paid this. The payee looks for itself before it believes."""

    payment_id: _Id
    platform: _Id
    payer: _Id
    payee: _Id
    amount: Units
    tx_hash: _Id
    parts: Annotated[list[PaymentPart], msgspec.Meta(min_length=1, max_length=MAX_PARTS)]


class Signed(msgspec.Struct, frozen=True, array_like=True):
    """The envelope."""

    payload: Annotated[bytes, msgspec.Meta(max_length=MAX_MESSAGE_BYTES)]
    signature: Annotated[bytes, msgspec.Meta(max_length=65)]


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """The highest voucher that a payee holds on a channel, and the last acceptance of each agreement of late: nothing but
    what the payer has signed itself."""

    amount: Units
    signature: Annotated[bytes, msgspec.Meta(max_length=65)]
    """Empty when there is none."""
    acceptances: Annotated[list[Signed], msgspec.Meta(max_length=MAX_HELD)]


LetterKind = Literal["debit-note", "invoice", "acceptance", "rejection", "cancellation", "payment", "channel"]
CallKind = Literal["close", "held"]
KINDS: Mapping[str, type[Message]] = MappingProxyType(
    {
        "debit-note": NoteMessage,
        "invoice": InvoiceMessage,
        "acceptance": AcceptanceMessage,
        "rejection": RejectionMessage,
        "cancellation": CancellationMessage,
        "payment": PaymentMessage,
        "channel": ChannelMessage,
        "close": CloseMessage,
        "held": HeldMessage,
    }
)


class BadMessage(Refused):
    """Not a message of this protocol, or not from whom it says."""

    default_code = "bad_payment_message"


class VoucherKey(Protocol):
    """What signs vouchers: the identity, or a key that can do nothing else."""

    @property
    def node_id(self) -> NodeId:
        """Its address, as channels name it."""

    def sign_digest(self, digest: bytes) -> bytes:
        """65 bytes over the digest of a voucher that was built here."""


class Signer(Protocol):
    """The identity that binds itself. While it is locked its signatures raise :class:`~shem.errors.KeyLocked`."""

    @property
    def node_id(self) -> NodeId: ...

    @property
    def locked(self) -> bool: ...

    def sign(self, purpose: str, payload: bytes) -> bytes:
        """65 bytes."""

    def sign_digest(self, digest: bytes) -> bytes:
        """65 bytes over the digest of a typed structure that was built here: vouchers and their ends."""


class Peers(Protocol):
    """What payment needs of the peer network."""

    def serve(
        self, method: str, handler: Callable[[NodeId, bytes], Awaitable[bytes]], *, max_request: int = ...
    ) -> None: ...

    async def call(self, node_id: NodeId, method: str, payload: bytes, *, timeout_s: float = ...) -> bytes: ...

    def on_connected(self, callback: Callable[[NodeId], Awaitable[None]]) -> None: ...


M = TypeVar("M", bound=Message)


def method_of(kind: str) -> str:
    """The RPC method, which is also the signature's purpose."""
    return f"payment.{kind}"


def seal(kind: str, message: Message, signer: Signer) -> Signed:
    """Encode and sign."""
    payload = msgspec.msgpack.encode(message)
    return Signed(payload, signer.sign(method_of(kind), payload))


def read_note(payload: bytes) -> NoteMessage:
    """The debit note that ``payload`` is; it was checked when it came."""
    return msgspec.msgpack.decode(payload, type=NoteMessage)


def read_invoice(payload: bytes) -> InvoiceMessage:
    """The invoice that ``payload`` is; it was checked when it came."""
    return msgspec.msgpack.decode(payload, type=InvoiceMessage)


def units(text: str) -> int:
    """Base units of a checked :data:`Units`. Raises :class:`BadMessage` above the largest amount there may be."""
    number = int(text)
    if number > MAX_UNITS:
        raise BadMessage(f"{text} base units is more than any token's supply")
    return number


def serve(
    peers: Peers, db: Database, kind: LetterKind, shape: type[M], me: Signer, handle: Callable[[M, Signed], None]
) -> None:
    """Hand every verified message of ``kind`` that is meant for ``me`` to ``handle`` (sync), in a durable transaction that
    messages which come together share. The answer leaves when it is on the disk."""

    async def answer(message: M, signed: Signed) -> bytes:
        await db.grouped(lambda: handle(message, signed))
        return b""

    answering(peers, kind, shape, me, answer)


def answering(
    peers: Peers,
    kind: LetterKind | CallKind,
    shape: type[M],
    me: Signer,
    handle: Callable[[M, Signed], Awaitable[bytes]],
) -> None:
    """The same for messages whose sender waits for what ``handle`` has to say."""
    method = method_of(kind)

    async def on_call(peer: NodeId, request: bytes) -> bytes:
        try:
            signed = msgspec.msgpack.decode(request, type=Signed)
            message = msgspec.msgpack.decode(signed.payload, type=shape)
        except DECODE_ERRORS as error:
            raise BadMessage(f"not a {kind}: {error}") from None
        if message.issuer != peer or message.recipient != me.node_id:
            raise BadMessage(f"a {kind} from {message.issuer} to {message.recipient} came from {peer} to {me.node_id}")
        verify(method, signed.payload, signed.signature, cast(NodeId, message.issuer))
        return await handle(message, signed)

    peers.serve(method, on_call, max_request=MAX_MESSAGE_BYTES + 1024)
