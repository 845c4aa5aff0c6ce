"""What binds somebody: the documents that are signed, and the ids that follow from their content.

A document travels as the very bytes that were signed, and is hashed as such: nobody has to agree on a canonical encoding.
An offer's id contains the hash of its body, so the short *statement* ("offer X, number 3, good until then") is all that
needs signing again when an offer is prolonged or withdrawn. Proposal ids are hashes over what both sides know, so both
nodes compute the same id without asking each other, and the same counter sent twice has the same id.

Every document names issuer and receiver, so none can be replayed to a third node. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from shem.errors import Refused
from shem.terms.constraints import MAX_CHARS
from shem.terms.properties import check_flat

OFFER = "market.offer"
COUNTER = "market.counter"
REJECTION = "market.rejection"
AGREEMENT = "market.agreement"
APPROVAL = "market.approval"
COMMITMENT = "market.commitment"
ENDING = "market.ending"

MAX_REASON_BYTES = 16 << 10

Time = Annotated[datetime, msgspec.Meta(tz=True)]
Node = Annotated[str, msgspec.Meta(pattern=r"^0x[0-9a-f]{40}\Z")]
Hash = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
SubscriptionId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}-[0-9a-f]{64}\Z")]
Constraints = Annotated[str, msgspec.Meta(max_length=MAX_CHARS)]
ReasonText = Annotated[str, msgspec.Meta(max_length=MAX_REASON_BYTES)]


UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""All that the decoder raises at bytes from a stranger."""


class BadDocument(Refused):
    """A peer sent what is not the document it claims to be."""

    default_code = "bad_document"


class _Document(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Arrays on the wire: field order is the format. A new version gets a new purpose, not a new field."""


class SubscriptionBody(_Document, frozen=True):
    """An offer (or a demand, which never leaves its node)."""

    nonce: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    issuer: Node
    created_at: Time
    properties: dict[str, Any]
    constraints: Constraints


class Statement(_Document, frozen=True):
    """What the issuer says now about one of its offers; the highest ``sequence`` counts."""

    offer_id: SubscriptionId
    sequence: Annotated[int, msgspec.Meta(ge=1, le=(1 << 62))]
    expires_at: Time
    withdrawn: bool


class Counter(_Document, frozen=True):
    """One turn of a negotiation. ``initial_at`` is when the requestor's matcher made the initial proposal."""

    prev: Hash
    initial_at: Time
    offer_id: SubscriptionId
    demand_id: SubscriptionId
    issuer: Node
    receiver: Node
    created_at: Time
    properties: dict[str, Any]
    constraints: Constraints


class Rejection(_Document, frozen=True):
    """The end of a negotiation; ``proposal`` is the receiver's own."""

    proposal: Hash
    issuer: Node
    receiver: Node
    reason: ReasonText


class AgreementDocument(_Document, frozen=True):
    """The deal: both last proposals in full. The requestor signs these bytes, their hash is the agreement's id."""

    proposal: Hash
    demand_id: SubscriptionId
    offer_id: SubscriptionId
    issuer: Node
    receiver: Node
    created_at: Time
    valid_to: Time
    demand_properties: dict[str, Any]
    demand_constraints: Constraints
    offer_properties: dict[str, Any]
    offer_constraints: Constraints


class Approval(_Document, frozen=True):
    """The provider's yes. The requestor's commitment is its signature over these same bytes, for another purpose."""

    agreement_id: Hash
    issuer: Node
    receiver: Node
    approved_at: Time


EndingKind = Literal["cancel", "reject", "terminate"]


class Ending(_Document, frozen=True):
    """How one side ends an agreement. ``reason`` is JSON."""

    agreement_id: Hash
    issuer: Node
    receiver: Node
    kind: EndingKind
    ended_at: Time
    reason: ReasonText


Properties = Mapping[str, Any]

D = TypeVar("D", bound=_Document)

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[type[Any], msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(kind)
    for kind in (SubscriptionBody, Statement, Counter, Rejection, AgreementDocument, Approval, Ending)
}


def encode(document: msgspec.Struct) -> bytes:
    """The bytes that are hashed and signed."""
    return _encoder.encode(document)


def decode(raw: bytes, kind: type[D]) -> D:
    """Raises :class:`BadDocument` unless ``raw`` is exactly one well-formed document of that kind."""
    try:
        document: D = _decoders[kind].decode(raw)
    except UNDECODABLE as error:
        raise BadDocument(f"not a {kind.__name__}: {error}") from None
    for name in ("properties", "demand_properties", "offer_properties"):
        properties = getattr(document, name, None)
        if properties is not None:
            check_flat(properties)
    return document


def subscription_id(body: SubscriptionBody, raw: bytes) -> str:
    """32 hex digits of the nonce, a dash, and the hash of the body."""
    return f"{body.nonce}-{_digest(raw)}"


def initial_id(offer_id: str, demand_id: str, initial_at: datetime) -> str:
    """The proposal that the matcher makes of a pair."""
    return _digest(_encoder.encode(("initial", offer_id, demand_id, initial_at)))


def counter_id(counter: Counter) -> str:
    """Over what is proposed and what it answers; not over the time, so that a repeated counter is the same one."""
    return _digest(_encoder.encode((counter.prev, counter.issuer, counter.properties, counter.constraints)))


def agreement_id(raw: bytes) -> str:
    """Of an encoded :class:`AgreementDocument`."""
    return _digest(raw)


def _digest(raw: bytes) -> str:
    return hashlib.sha3_256(raw).hexdigest()
