"""Which offers suit which demands.

A pair matches when each side's constraint is *true* of the other's properties, and the two are of different nodes. To
ask every offer about every demand would be too much: :class:`OfferIndex` knows offers by the text values of a few
properties that demands usually fix (runtime, subnet), and :class:`InterestIndex` does the same the other way round, so
that a new offer finds the demands that may want it.

An :class:`Interest` (a demand, or a scan) holds *candidates*: offers it has not looked at. They are looked at only when
its agent asks for events, as many as needed for the answer. So publishing a demand among 100,000 offers costs no more
than the first page of its answers, and an agent that never asks costs nothing. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from shem.terms.constraints import BadConstraint, Constraint, matches, parse

INDEX_KEYS = (
    "golem.runtime.name",
    "golem.node.debug.subnet",
    "golem.inf.cpu.architecture",
    "golem.!exp.shem.v1.runtime.driver",
)
"""Properties by whose text offers are indexed."""


@lru_cache(maxsize=4096)
def compiled(text: str) -> Constraint | None:
    """The constraint, or ``None`` (which never matches) for text that is none. Offers often share theirs."""
    try:
        return parse(text)
    except BadConstraint:
        return None


def is_match(
    properties: Mapping[str, Any],
    constraint: Constraint | None,
    other_properties: Mapping[str, Any],
    other_constraint: Constraint | None,
) -> bool:
    """Both directions true."""
    return matches(constraint, other_properties) and matches(other_constraint, properties)


class IndexedOffer:
    """An offer as the matcher sees it. Its constraint is compiled when it is first asked for."""

    __slots__ = ("_constraint", "_ready", "constraints", "issuer", "offer_id", "properties")

    def __init__(self, offer_id: str, issuer: str, properties: Mapping[str, Any], constraints: str) -> None:
        self.offer_id = offer_id
        self.issuer = issuer
        self.properties = properties
        self.constraints = constraints
        self._constraint: Constraint | None = None
        self._ready = False

    @property
    def constraint(self) -> Constraint | None:
        if not self._ready:
            self._constraint = compiled(self.constraints)
            self._ready = True
        return self._constraint


class Interest:
    """A demand or a scan, looking for offers."""

    __slots__ = ("candidates", "constraint", "key", "met", "owner", "properties")

    def __init__(
        self, key: str, owner: str | None, constraint: Constraint | None, properties: Mapping[str, Any] | None
    ) -> None:
        """``owner``'s own offers are not found (``None``: everybody's are). ``properties`` ``None``: one-way."""
        self.key = key
        self.owner = owner
        self.constraint = constraint
        self.properties = properties
        self.candidates: dict[str, None] = {}
        """Offers not looked at, in order."""
        self.met: set[str] = set()
        """Offers that were found before: one that goes away and comes back is no news."""

    def wants(self, offer: IndexedOffer) -> bool:
        """The full match."""
        if offer.issuer == self.owner or not matches(self.constraint, offer.properties):
            return False
        return self.properties is None or matches(offer.constraint, self.properties)

    def take(
        self, find: Callable[[str], IndexedOffer | None], limit: int, looks: int, issuer: str | None = None
    ) -> list[IndexedOffer]:
        """Look at up to ``looks`` candidates; those that match, at most ``limit``. What was looked at is forgotten.

        With ``issuer``, candidates of other nodes stay for later.
        """
        found: list[IndexedOffer] = []
        seen: list[str] = []
        for offer_id in self.candidates:
            if len(found) >= limit or len(seen) >= looks:
                break
            offer = find(offer_id)
            if issuer is not None and offer is not None and offer.issuer != issuer:
                continue
            seen.append(offer_id)
            if offer is not None and self.wants(offer):
                found.append(offer)
                self.met.add(offer_id)
        for offer_id in seen:
            del self.candidates[offer_id]
        return found


class OfferIndex:
    """Known offers by what demands ask for first."""

    def __init__(self) -> None:
        self.offers: dict[str, IndexedOffer] = {}
        self._by_text: dict[str, dict[str, dict[str, None]]] = {key: {} for key in INDEX_KEYS}
        self._not_text: dict[str, dict[str, None]] = {key: {} for key in INDEX_KEYS}

    def add(self, offer: IndexedOffer) -> None:
        self.offers[offer.offer_id] = offer
        for key, bucket in self._buckets(offer):
            (self._by_text[key].setdefault(bucket, {}) if bucket is not None else self._not_text[key])[
                offer.offer_id
            ] = None

    def remove(self, offer_id: str) -> IndexedOffer | None:
        offer = self.offers.pop(offer_id, None)
        if offer is None:
            return None
        for key, bucket in self._buckets(offer):
            if bucket is None:
                self._not_text[key].pop(offer_id, None)
                continue
            texts = self._by_text[key]
            texts[bucket].pop(offer_id, None)
            if not texts[bucket]:
                del texts[bucket]
        return offer

    def candidates(self, constraint: Constraint | None) -> Iterable[str]:
        """Ids of all offers of which the constraint might be true, and few others."""
        if constraint is None:
            return ()
        best: tuple[int, tuple[dict[str, None], ...]] = (len(self.offers), (dict.fromkeys(self.offers),))
        for key, value in _fixed(constraint):
            places = (self._by_text[key].get(value, {}), self._not_text[key])
            size = sum(map(len, places))
            if size < best[0]:
                best = (size, places)
        return [offer_id for place in best[1] for offer_id in place]

    @staticmethod
    def _buckets(offer: IndexedOffer) -> Iterator[tuple[str, str | None]]:
        """Key and text of each indexed property that is there; ``None`` for one that is not text."""
        for key in INDEX_KEYS:
            value = offer.properties.get(key)
            if value is not None:
                yield key, value if isinstance(value, str) else None


class InterestIndex:
    """Demands and scans by the first indexed property that they fix."""

    def __init__(self) -> None:
        self.interests: dict[str, Interest] = {}
        self._by_text: dict[str, dict[str, dict[str, Interest]]] = {key: {} for key in INDEX_KEYS}
        self._rest: dict[str, Interest] = {}

    def add(self, interest: Interest) -> None:
        self.interests[interest.key] = interest
        self._place(interest, create=True)[interest.key] = interest

    def remove(self, key: str) -> None:
        interest = self.interests.pop(key, None)
        if interest is None:
            return
        self._place(interest, create=False).pop(key, None)
        for name, value in _fixed(interest.constraint):
            if self._by_text[name].get(value) == {}:
                del self._by_text[name][value]

    def offered(self, offer: IndexedOffer) -> list[Interest]:
        """Give a new offer to all that may want it; those are returned."""
        places: list[dict[str, Interest]] = [self._rest]
        for key in INDEX_KEYS:
            value = offer.properties.get(key)
            if isinstance(value, str):
                places.append(self._by_text[key].get(value, {}))
            elif value is not None:
                places.extend(self._by_text[key].values())
        told = [
            interest
            for place in places
            for interest in place.values()
            if interest.constraint is not None and offer.offer_id not in interest.met
        ]
        for interest in told:
            interest.candidates[offer.offer_id] = None
        return told

    def _place(self, interest: Interest, *, create: bool) -> dict[str, Interest]:
        for key, value in _fixed(interest.constraint):
            texts = self._by_text[key]
            return texts.setdefault(value, {}) if create else texts.get(value, {})
        return self._rest


def _fixed(constraint: Constraint | None) -> Iterator[tuple[str, str]]:
    """The indexed properties that a constraint wants with one certain text."""
    if constraint is not None:
        for key in INDEX_KEYS:
            value = constraint.equalities.get(key)
            if value is not None:
                yield key, value


def rotated(offer_ids: Iterable[str], by: str) -> dict[str, None]:
    """Candidates in an order of one's own, so that not every demand knocks at the same doors first."""
    ids = list(offer_ids)
    start = int(by[:8], 16) % len(ids) if ids else 0
    return dict.fromkeys(ids[start:] + ids[:start])
