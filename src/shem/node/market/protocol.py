"""The market between nodes: what is sent, and what a message must pass before anybody acts on it.

Every message is an envelope of a document's bytes and a signature over exactly these. A message is bounded, decoded
strictly, and refused unless the peer that sent it is the issuer, the receiver lives here and the signature is the
issuer's for this very purpose. Only offers may be passed on by others; they are checked against the issuer they name,
whose identity the offer's id commits to.

Handlers are synchronous (the store is) and run only after all that, so what they raise is about the deal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import Annotated, Protocol, TypeVar

import msgspec

from shem.errors import NotAllowed
from shem.node.identity.signing import verify
from shem.node.market import documents
from shem.node.market.documents import (
    AgreementDocument,
    Approval,
    BadDocument,
    Counter,
    Ending,
    Rejection,
    Statement,
    SubscriptionBody,
)
from shem.node.market.offers import OfferBook, SignedOffer, Subject, TooManyOffers
from shem.terms.ids import NodeId

MAX_OFFER_BYTES = 64 << 10
MAX_PAGE_OFFERS = 128
PAGE_BYTES = 256 << 10
"""A page of offers is closed when it has this size."""
MAX_REQUEST = 1 << 20
MAX_OFFER_LIFE = timedelta(hours=25)
"""How far ahead an offer may expire: nobody fills our memory for ever."""

OFFERS = "market.offers"
COUNTER = "market.counter"
REJECT = "market.reject"
PROPOSE = "market.propose"
APPROVE = "market.approve"
END = "market.end"


class Signer(Protocol):
    """An identity that lives on this node."""

    @property
    def node_id(self) -> NodeId: ...

    def sign(self, purpose: str, payload: bytes) -> bytes: ...


Identities = Mapping[NodeId, Signer]


class Peers(Protocol):
    """What the market needs of the peer network."""

    def serve(
        self, method: str, handler: Callable[[NodeId, bytes], Awaitable[bytes]], *, max_request: int = ...
    ) -> None: ...

    async def call(self, node_id: NodeId, method: str, payload: bytes, *, timeout_s: float = ...) -> bytes: ...

    def on_connected(self, callback: Callable[[NodeId], Awaitable[None]]) -> None: ...

    def on_disconnected(self, callback: Callable[[NodeId], None]) -> None: ...

    def connected(self) -> list[NodeId]: ...


class NotTheSender(NotAllowed):
    """A peer sends a document that somebody else issued, or that is for somebody else."""

    default_code = "not_the_sender"


class Signed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The envelope."""

    document: bytes
    signature: bytes


class OffersPage(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A part of what a peer knows."""

    offers: Annotated[list[SignedOffer], msgspec.Meta(max_length=MAX_PAGE_OFFERS)]


D = TypeVar("D", Counter, Rejection, AgreementDocument, Approval, Ending)
_encoder = msgspec.msgpack.Encoder()
_signed = msgspec.msgpack.Decoder(Signed)
_page = msgspec.msgpack.Decoder(OffersPage)


def pack(message: Signed | OffersPage) -> bytes:
    return _encoder.encode(message)


def sign(signer: Signer, purpose: str, raw: bytes) -> Signed:
    """The envelope of a document that ``signer`` issues."""
    return Signed(raw, signer.sign(purpose, raw))


def sign_statement(signer: Signer, body: bytes, statement: Statement) -> SignedOffer:
    """An offer of ``signer`` as it travels."""
    raw = documents.encode(statement)
    return SignedOffer(signer.node_id, body, raw, signer.sign(documents.OFFER, raw))


def open_envelope(
    caller: NodeId, payload: bytes, purpose: str, kind: type[D], identities: Identities
) -> tuple[D, Signed]:
    """The document of a message, proven to be what ``caller`` says to an identity of ours."""
    try:
        signed = _signed.decode(payload)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadDocument(f"not a signed message: {error}") from None
    document = documents.decode(signed.document, kind)
    if document.issuer != caller:
        raise NotTheSender("only its issuer may send this document")
    if NodeId(document.receiver) not in identities:
        raise NotTheSender("the document is for another node")
    verify(purpose, signed.document, signed.signature, caller)
    return document, signed


def serve_documents(
    peers: Peers,
    identities: Identities,
    method: str,
    purpose: str,
    kind: type[D],
    handler: Callable[[D, Signed], bytes],
) -> None:
    """Answer ``method``: ``handler`` sees a verified document and its envelope."""

    async def answer(caller: NodeId, payload: bytes) -> bytes:
        document, signed = open_envelope(caller, payload, purpose, kind, identities)
        return handler(document, signed)

    peers.serve(method, answer, max_request=MAX_REQUEST)


def check_offer(offer: SignedOffer, statement: Statement, now: datetime) -> SubscriptionBody | None:
    """The body of a travelling offer. Raises unless its issuer signed it and it names what it says it does."""
    if len(offer.body) > MAX_OFFER_BYTES:
        raise BadDocument(f"an offer may take {MAX_OFFER_BYTES} bytes")
    if statement.expires_at > now + MAX_OFFER_LIFE:
        raise BadDocument("an offer expires too far ahead")
    body = None
    if offer.body:
        body = documents.decode(offer.body, SubscriptionBody)
        if body.issuer != offer.issuer or documents.subscription_id(body, offer.body) != statement.offer_id:
            raise BadDocument("an offer's id is not that of its content")
    verify(documents.OFFER, offer.statement, offer.signature, NodeId(offer.issuer))
    return body


def serve_offers(
    peers: Peers,
    book: OfferBook,
    identities: Identities,
    now: Callable[[], datetime],
    on_heard: Callable[[NodeId, Subject, SignedOffer], None],
) -> None:
    """Take pages of offers. One that is forged ends its page: no honest peer passes such a thing on."""

    async def answer(caller: NodeId, payload: bytes) -> bytes:
        try:
            page = _page.decode(payload)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise BadDocument(f"not a page of offers: {error}") from None
        for number, offer in enumerate(page.offers):
            if number % 16 == 15:
                await asyncio.sleep(0)  # a signature takes 0.1 ms; others want the loop too
            statement = documents.decode(offer.statement, Statement)
            subject = (offer.issuer, statement.offer_id)
            on_heard(caller, subject, offer)
            # Nothing of our own is news; what is no news need not be verified
            if NodeId(offer.issuer) not in identities and statement.sequence > book.sequence(*subject):
                _take_offer(book, offer, statement, caller, now())
        return b""

    peers.serve(OFFERS, answer, max_request=MAX_REQUEST)


def _take_offer(book: OfferBook, offer: SignedOffer, statement: Statement, caller: NodeId, now: datetime) -> None:
    body = check_offer(offer, statement, now)
    if statement.expires_at <= now:
        return
    try:
        book.publish(statement.offer_id, body, statement, offer, caller)
    except TooManyOffers:
        return  # our limit, not the peer's fault
