"""The offers this node knows, its own and others', and who is told when that changes.

An offer arrives as body, statement and signature, verified by :mod:`shem.node.market.protocol` before it comes here.
The statement with the highest sequence counts; one that withdraws leaves a tombstone until the offer would have expired,
so that an offer heard late from somebody else does not come back to life.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from shem.errors import NotAllowed, Refused
from shem.node.market.documents import Statement, SubscriptionBody
from shem.node.market.matching import IndexedOffer, Interest, InterestIndex, OfferIndex, rotated
from shem.node.market.timers import Timers

MAX_TOMBS = 20_000


class SignedOffer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """As it travels. ``body`` is empty when only the statement is new to the receiver."""

    issuer: str
    body: bytes
    statement: bytes
    signature: bytes


class TooManyOffers(Refused):
    """This node has no room for more offers (of that issuer)."""

    default_code = "too_many_offers"


class NotTheIssuer(NotAllowed):
    """Only its issuer may say anything about an offer."""

    default_code = "not_the_issuer"


class KnownOffer:
    """A verified offer."""

    __slots__ = ("body", "indexed", "signed", "statement")

    def __init__(self, offer_id: str, body: SubscriptionBody, statement: Statement, signed: SignedOffer) -> None:
        self.body = body
        self.statement = statement
        self.signed = signed
        self.indexed = IndexedOffer(offer_id, body.issuer, body.properties, body.constraints)


Change = Literal["new", "renewed", "withdrawn"]
Subject = tuple[str, str]
"""``(issuer, offer_id)``."""
Listener = Callable[[Subject, Change, SignedOffer, str | None], None]
"""``(subject, change, signed, source)``: ``source`` is the peer that told us, ``None`` for our own."""


class OfferBook:
    """Known offers, indexed; interests in them; tombstones."""

    def __init__(self, timers: Timers, *, max_offers: int, max_per_issuer: int) -> None:
        self._timers = timers
        self._max_offers = max_offers
        self._max_per_issuer = max_per_issuer
        self._known: dict[str, KnownOffer] = {}
        self._tombs: dict[Subject, tuple[Statement, SignedOffer]] = {}
        self._by_issuer: dict[str, set[str]] = {}
        self._index = OfferIndex()
        self._interests = InterestIndex()
        self._listeners: list[Listener] = []
        self.on_candidates: Callable[[Interest], None] = lambda interest: None
        """Called for each interest that got a candidate."""

    def __len__(self) -> int:
        return len(self._known)

    def listen(self, listener: Listener) -> None:
        """Be told of every change, after it."""
        self._listeners.append(listener)

    def get(self, offer_id: str) -> KnownOffer | None:
        return self._known.get(offer_id)

    def find(self, offer_id: str) -> IndexedOffer | None:
        return self._index.offers.get(offer_id)

    def sequence(self, issuer: str, offer_id: str) -> int:
        """Of the last statement by ``issuer`` that we know, 0 for none."""
        known = self._known.get(offer_id)
        if known is not None and known.body.issuer == issuer:
            return known.statement.sequence
        tomb = self._tombs.get((issuer, offer_id))
        return tomb[0].sequence if tomb is not None else 0

    def everything(self) -> list[Subject]:
        """All that a new peer should hear of: offers, then tombstones."""
        return [*((known.body.issuer, offer_id) for offer_id, known in self._known.items()), *self._tombs]

    def signed(self, subject: Subject) -> SignedOffer | None:
        """What to send of an offer now."""
        issuer, offer_id = subject
        known = self._known.get(offer_id)
        if known is not None and known.body.issuer == issuer:
            return known.signed
        tomb = self._tombs.get(subject)
        return tomb[1] if tomb is not None else None

    def publish(
        self,
        offer_id: str,
        body: SubscriptionBody | None,
        statement: Statement,
        signed: SignedOffer,
        source: str | None,
    ) -> bool:
        """Take a verified offer or statement; whether it was news. ``body`` may be ``None`` for a known offer.

        Raises :class:`TooManyOffers`.
        """
        issuer = signed.issuer
        known = self._known.get(offer_id)
        if known is not None and known.body.issuer != issuer:
            raise NotTheIssuer(f"the offer {offer_id} is not by {issuer}")
        if statement.sequence <= self.sequence(issuer, offer_id):
            return False
        if statement.withdrawn:
            buried = self._bury(offer_id, statement, signed)
            if known is not None:  # else nobody has it from us
                self._tell((issuer, offer_id), "withdrawn", buried, source)
            return True
        if known is not None:
            known.statement = statement
            known.signed = SignedOffer(known.signed.issuer, known.signed.body, signed.statement, signed.signature)
            self._arm(offer_id, statement)
            self._tell((issuer, offer_id), "renewed", known.signed, source)
            return True
        if body is None:
            return False  # a beat of an offer that we do not know: whoever has it sends it whole
        self._check_room(issuer, own=source is None)
        self._tombs.pop((issuer, offer_id), None)
        known = KnownOffer(offer_id, body, statement, signed)
        self._known[offer_id] = known
        self._by_issuer.setdefault(issuer, set()).add(offer_id)
        self._index.add(known.indexed)
        self._arm(offer_id, statement)
        self._tell((issuer, offer_id), "new", signed, source)
        for interest in self._interests.offered(known.indexed):
            self.on_candidates(interest)
        return True

    def forget(self, offer_id: str) -> None:
        """Drop an offer without a word (it expired, or its issuer is away)."""
        known = self._known.pop(offer_id, None)
        if known is None:
            return
        self._index.remove(offer_id)
        issuer = known.body.issuer
        self._by_issuer[issuer].discard(offer_id)
        if not self._by_issuer[issuer]:
            del self._by_issuer[issuer]

    def of(self, issuer: str) -> list[str]:
        """Ids of the known offers of one node."""
        return list(self._by_issuer.get(issuer, ()))

    # interests

    def watch(self, interest: Interest) -> None:
        """Add a demand or scan. Everything known that it may want becomes a candidate, except what it has met."""
        interest.candidates = rotated(self._index.candidates(interest.constraint), _spread(interest.key))
        for offer_id in interest.met:
            interest.candidates.pop(offer_id, None)
        self._interests.add(interest)

    def unwatch(self, key: str) -> None:
        self._interests.remove(key)

    def interest(self, key: str) -> Interest | None:
        return self._interests.interests.get(key)

    def offer_again(self, key: str, offer_id: str) -> None:
        """Let them meet once more: now if the offer is known, else when it is."""
        interest = self.interest(key)
        if interest is None:
            return
        interest.met.discard(offer_id)
        if offer_id in self._known:
            interest.candidates[offer_id] = None
            self.on_candidates(interest)

    # inner

    def _bury(self, offer_id: str, statement: Statement, signed: SignedOffer) -> SignedOffer:
        """A tombstone is kept per issuer: nobody knows yet whose an offer is that was never seen."""
        known = self._known.get(offer_id)
        self.forget(offer_id)
        subject = (signed.issuer, offer_id)
        if len(self._tombs) >= MAX_TOMBS and subject not in self._tombs:
            self._tombs.pop(next(iter(self._tombs)))
        stone = SignedOffer(signed.issuer, b"", signed.statement, signed.signature)
        self._tombs[subject] = (statement, stone)
        until = max(statement.expires_at, known.statement.expires_at) if known else statement.expires_at
        self._timers.cancel(("offer", offer_id))
        self._timers.at(until, ("tomb", subject), lambda: self._drop_tomb(subject))
        return stone

    def _drop_tomb(self, subject: Subject) -> None:
        self._tombs.pop(subject, None)

    def _arm(self, offer_id: str, statement: Statement) -> None:
        self._timers.at(statement.expires_at, ("offer", offer_id), lambda: self.forget(offer_id))

    def _check_room(self, issuer: str, *, own: bool) -> None:
        if len(self._by_issuer.get(issuer, ())) >= self._max_per_issuer:
            raise TooManyOffers(f"more than {self._max_per_issuer} offers of {issuer}")
        if not own and len(self._known) >= self._max_offers:
            raise TooManyOffers(f"this node keeps no more than {self._max_offers} offers")

    def _tell(self, subject: Subject, change: Change, signed: SignedOffer, source: str | None) -> None:
        for listener in self._listeners:
            listener(subject, change, signed, source)


def _spread(key: str) -> str:
    """Hex digits by which to rotate: a demand's id begins with random ones."""
    return key if len(key) > 32 else "0"
