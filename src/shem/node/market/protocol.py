"""The market between nodes: what is sent, and what a message must pass before anybody acts on it.

Every message is an envelope of a document's bytes and a signature over exactly these. A message is bounded, decoded
strictly, and refused unless the peer that sent it is the issuer, the receiver lives here and the signature is the
issuer's for this very purpose. Only offers may be passed on by others; they are checked against the issuer they name,
whose identity the offer's id commits to.

Handlers are synchronous (the store is) and run only after all that, so what they raise is about the deal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Annotated, Protocol, TypeVar

import msgspec

from shem.cogs.clock import Clock
from shem.errors import Conflict, NotAllowed
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

    @property
    def locked(self) -> bool: ...

    def sign(self, purpose: str, payload: bytes) -> bytes:
        """Raises :class:`~shem.errors.KeyLocked`."""


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


class Busy(Conflict):
    """A peer sends more pages at once than it may."""

    default_code = "too_many_pages"


class Meter:
    """How much news of one peer costs us: signatures verified, refilled with time. A peer that has used its share waits
    for the answer to its page, and so for its next one."""

    MAX_PAGES = 2

    def __init__(self, clock: Clock, *, burst: int, per_s: float) -> None:
        self._clock = clock
        self._burst = burst
        self._per_s = per_s
        self._left = float(burst)
        self._since = clock.monotonic()
        self.pages = 0
        """Pages being read."""

    async def take(self) -> None:
        """One signature's worth."""
        now = self._clock.monotonic()
        self._left = min(float(self._burst), self._left + (now - self._since) * self._per_s) - 1
        self._since = now
        if self._left < 0:
            await self._clock.sleep(-self._left / self._per_s)

    def is_full(self) -> bool:
        """Whether it can be forgotten."""
        full_after_s = (self._burst - self._left) / self._per_s
        return not self.pages and self._clock.monotonic() - self._since >= full_after_s


class Meters:
    """One per peer that has told us something lately."""

    def __init__(self, clock: Clock, *, burst: int, per_s: float) -> None:
        self._clock = clock
        self._burst = burst
        self._per_s = per_s
        self._meters: dict[NodeId, Meter] = {}

    def pages(self, caller: NodeId) -> int:
        """How many pages of that peer are being read."""
        meter = self._meters.get(caller)
        return 0 if meter is None else meter.pages

    @contextmanager
    def page(self, caller: NodeId) -> Iterator[Meter]:
        """For one page. Raises :class:`Busy`."""
        if len(self._meters) > 4096:
            self._meters = {peer: meter for peer, meter in self._meters.items() if not meter.is_full()}
        meter = self._meters.get(caller)
        if meter is None:
            meter = self._meters[caller] = Meter(self._clock, burst=self._burst, per_s=self._per_s)
        if meter.pages >= Meter.MAX_PAGES:
            raise Busy("one page of offers at a time", hint="wait for the answer")
        meter.pages += 1
        try:
            yield meter
        finally:
            meter.pages -= 1


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
    except documents.UNDECODABLE as error:
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
    clock: Clock,
    meters: Meters,
    on_heard: Callable[[NodeId, Subject, SignedOffer], None],
) -> None:
    """Take pages of offers. One that is forged ends its page: no honest peer passes such a thing on."""

    async def answer(caller: NodeId, payload: bytes) -> bytes:
        try:
            page = _page.decode(payload)
        except documents.UNDECODABLE as error:
            raise BadDocument(f"not a page of offers: {error}") from None
        with meters.page(caller) as meter:
            for number, offer in enumerate(page.offers):
                if number % 16 == 15:
                    await asyncio.sleep(0)  # a signature takes 0.1 ms; others want the loop too
                statement = documents.decode(offer.statement, Statement)
                subject = (offer.issuer, statement.offer_id)
                on_heard(caller, subject, offer)
                # Nothing of our own is news; what is no news need not be verified
                if NodeId(offer.issuer) not in identities and statement.sequence > book.sequence(*subject):
                    await meter.take()
                    _take_offer(book, offer, statement, caller, clock.now())
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
