"""Own offers and demands: how they begin, live, are read, and end.

A subscription lives for a time (an hour) and is prolonged as long as its agent asks for events, so that what a crashed
agent left behind goes away by itself. An offer is published under a signed statement with a growing sequence number: a
statement that prolongs it, and one that withdraws it, are short and need no second copy of the offer.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec

from shem.errors import KeyLocked, Refused
from shem.node.market import documents, protocol
from shem.node.market.core import Core
from shem.node.market.documents import Statement, SubscriptionBody
from shem.node.market.lifecycle import (
    Kind,
    Subscription,
    SubscriptionGone,
    SubscriptionNotFound,
    SubscriptionState,
)
from shem.node.market.matching import Interest, compiled
from shem.node.market.offers import SignedOffer
from shem.node.market.store import Event
from shem.node.market.timers import Timers
from shem.terms.properties import flatten

EXPIRATION = "golem.srv.comp.expiration"
"""Property of demands: milliseconds since 1970."""
MAX_CONSTRAINT_CHARS = 32 << 10


class OfferTooLarge(Refused):
    default_code = "offer_too_large"


class TooManySubscriptions(Refused):
    default_code = "too_many_subscriptions"


class Subscriptions:
    """The live ones, in memory and in the store."""

    def __init__(self, core: Core, timers: Timers) -> None:
        self._core = core
        self._timers = timers
        self._live: dict[str, Subscription] = {}
        self._owned: dict[tuple[str, Kind], dict[str, None]] = {}
        """Ids of the live ones by owner and kind, oldest first."""
        self.on_demand: list[Callable[[Subscription], None]] = []
        """Called for every new demand."""

    def start(self) -> None:
        """Bring back what lived before a restart."""
        for subscription in self._core.store.live_subscriptions():
            if subscription.expires_at <= self._core.now():
                self._store_end(subscription, "expired")
                continue
            # Others may have heard our farewell: a higher sequence revives an offer
            self._begin(self._next_statement(subscription) if subscription.kind == "offer" else subscription)

    def farewell(self) -> list[SignedOffer]:
        """Withdrawals of all live offers, for the peers; the offers come back with :meth:`start`."""
        offers = [s for s in self._live.values() if s.kind == "offer" and not self._locked(s)]
        return [self._statement(self._next_statement(s), withdrawn=True)[1] for s in offers]

    def republish(self) -> None:
        """Say anew what was changed while it could not be signed."""
        for subscription in [s for s in self._live.values() if s.kind == "offer" and not self._locked(s)]:
            again = self._next_statement(subscription)
            self._live[again.subscription_id] = again
            self._publish(again, documents.decode(again.body, SubscriptionBody))

    def _locked(self, subscription: Subscription) -> bool:
        """Nothing can be said about it now; what others know of an offer ends by itself."""
        return self._core.signer(subscription.owner).locked

    def create(self, owner: str, kind: Kind, properties: documents.Properties, constraints: str) -> str:
        """Publish; the id. A constraint that does not parse is accepted and never matches."""
        core = self._core
        signer = core.signer(owner)
        if kind == "offer" and signer.locked:
            raise KeyLocked("an offer is signed, and this node's key is locked", hint="unlock it: shem identity unlock")
        flat = flatten(properties)
        if len(constraints) > MAX_CONSTRAINT_CHARS:
            raise OfferTooLarge(f"the constraints may have {MAX_CONSTRAINT_CHARS} characters")
        if len(self._owned.get((owner, kind), ())) >= core.config.max_subscriptions:
            raise TooManySubscriptions(
                f"you have {core.config.max_subscriptions} live {kind}s",
                hint="unsubscribe those you do not need, or raise max_offers_each",
            )
        now = core.now()
        body = SubscriptionBody(
            nonce=secrets.token_hex(16), issuer=owner, created_at=now, properties=flat, constraints=constraints
        )
        raw = documents.encode(body)
        if kind == "offer" and len(raw) > protocol.MAX_OFFER_BYTES:
            raise OfferTooLarge(f"the offer takes {len(raw)} bytes, more than {protocol.MAX_OFFER_BYTES}")
        ends_at = _expiration(flat, now) if kind == "demand" else None
        subscription = Subscription(
            subscription_id=documents.subscription_id(body, raw),
            owner=owner,
            kind=kind,
            properties=flat,
            constraints=constraints,
            created_at=now,
            expires_at=self._lease(ends_at),
            ends_at=ends_at,
            body=raw if kind == "offer" else b"",
        )
        with core.db.transaction():
            core.store.put_subscription(subscription, now)
        self._begin(subscription, body)
        return subscription.subscription_id

    def end(self, owner: str, kind: Kind, subscription_id: str) -> None:
        """Unsubscribe. Raises :class:`SubscriptionNotFound`, or :class:`SubscriptionGone` for an offer's second time."""
        subscription = self._live.get(subscription_id)
        if subscription is None or (subscription.owner, subscription.kind) != (owner, kind):
            ended = self._core.store.subscription(subscription_id)
            if kind == "offer" and ended is not None and (ended.owner, ended.kind) == (owner, kind):
                raise SubscriptionGone(f"Offer [{subscription_id}] was already unsubscribed.")
            raise _not_found(subscription_id)
        self._finish(subscription, "unsubscribed")

    def of(self, owner: str, kind: Kind) -> list[Subscription]:
        """Live ones of one identity, oldest first."""
        return [self._live[subscription_id] for subscription_id in self._owned.get((owner, kind), ())]

    def demands(self) -> list[Subscription]:
        """Live demands of all identities of this node."""
        return [s for s in self._live.values() if s.kind == "demand"]

    def find(self, subscription_id: str) -> Subscription | None:
        """A live one."""
        return self._live.get(subscription_id)

    def live(self, owner: str, kind: Kind, subscription_id: str) -> Subscription:
        """Raises :class:`SubscriptionNotFound` for one that never was, :class:`SubscriptionGone` for one that ended."""
        subscription = self._live.get(subscription_id)
        if subscription is None:
            subscription = self._core.store.subscription(subscription_id)
            if subscription is not None and (subscription.owner, subscription.kind) == (owner, kind):
                raise SubscriptionGone(f"Subscription [{subscription_id}] was unsubscribed or has expired.")
        if subscription is None or (subscription.owner, subscription.kind) != (owner, kind):
            raise _not_found(subscription_id)
        return subscription

    def push(self, subscription_id: str, event: Event) -> None:
        """Queue an event in the caller's transaction. Raises :class:`Refused` (``queue_full``)."""
        store = self._core.store
        if store.count_events(subscription_id) >= self._core.config.max_events:
            raise Refused("the receiver has too many unread events", code="queue_full", hint="try again later")
        store.add_event(subscription_id, event)
        self._core.beat_after_commit(subscription_id)

    async def collect(
        self,
        owner: str,
        kind: Kind,
        subscription_id: str,
        *,
        limit: int,
        timeout_s: float,
        more: Callable[[Subscription, int], list[Event]] = lambda subscription, limit: [],
    ) -> list[Event]:
        """Events, each given once; waits up to ``timeout_s`` for the first.

        ``more`` adds events that are made only when asked for. Raises :class:`SubscriptionNotFound`, also when the
        subscription ends during the wait; an *offer* withdrawn before gives an empty list, as the original does.
        """
        pulses = self._core.pulses
        if subscription_id not in self._live and self._was_unsubscribed_offer(owner, kind, subscription_id):
            await pulses.wait_for(subscription_id, lambda: None, timeout_s)
            return []
        subscription = self._reader(owner, kind, subscription_id)
        self._prolong(subscription)

        def read() -> list[Event]:
            found = self._live.get(subscription_id)
            if found is None:
                raise _not_found(subscription_id)
            with self._core.db.transaction():
                events = self._core.store.take_events(subscription_id, limit)
                if len(events) < limit:
                    events += more(found, limit - len(events))
            return events

        page = await pulses.wait_for(subscription_id, read, timeout_s)
        if (still := self._live.get(subscription_id)) is not None:
            self._prolong(still)
        return page or []

    # inner

    def _reader(self, owner: str, kind: Kind, subscription_id: str) -> Subscription:
        subscription = self._live.get(subscription_id)
        if subscription is None or (subscription.owner, subscription.kind) != (owner, kind):
            raise _not_found(subscription_id)
        return subscription

    def _was_unsubscribed_offer(self, owner: str, kind: Kind, subscription_id: str) -> bool:
        if kind != "offer":
            return False
        ended = self._core.store.subscription(subscription_id)
        return ended is not None and (ended.owner, ended.kind, ended.state) == (owner, "offer", "unsubscribed")

    def _begin(self, subscription: Subscription, body: SubscriptionBody | None = None) -> None:
        self._live[subscription.subscription_id] = subscription
        self._owned.setdefault((subscription.owner, subscription.kind), {})[subscription.subscription_id] = None
        self._arm(subscription)
        if subscription.kind == "offer":
            self._publish(subscription, body or documents.decode(subscription.body, SubscriptionBody))
            return
        interest = Interest(
            subscription.subscription_id,
            subscription.owner,
            compiled(subscription.constraints),
            subscription.properties,
        )
        interest.met = self._core.store.pairs_of(subscription.subscription_id)
        self._core.book.watch(interest)
        for tell in self.on_demand:
            tell(subscription)

    def _prolong(self, subscription: Subscription) -> None:
        """Its agent is there: move the end away when less than half of the time is left."""
        ttl_s = self._core.config.subscription_ttl_s
        if (subscription.expires_at - self._core.now()).total_seconds() > ttl_s / 2:
            return
        expires_at = self._lease(subscription.ends_at)
        if expires_at <= subscription.expires_at:
            return
        subscription = msgspec.structs.replace(subscription, expires_at=expires_at)
        if subscription.kind == "offer":
            subscription = self._next_statement(subscription)
        else:
            self._core.store.put_subscription(subscription, self._core.now())
        self._live[subscription.subscription_id] = subscription
        self._arm(subscription)
        if subscription.kind == "offer":
            self._publish(subscription, None)

    def _expire(self, subscription_id: str) -> None:
        subscription = self._live.get(subscription_id)
        if subscription is not None:
            self._finish(subscription, "expired")

    def _finish(self, subscription: Subscription, state: SubscriptionState) -> None:
        core, subscription_id = self._core, subscription.subscription_id
        del self._live[subscription_id]
        owned = self._owned[subscription.owner, subscription.kind]
        del owned[subscription_id]
        if not owned:
            del self._owned[subscription.owner, subscription.kind]
        self._timers.cancel(("subscription", subscription_id))
        if subscription.kind == "offer":
            subscription = msgspec.structs.replace(subscription, sequence=subscription.sequence + 1)
        self._store_end(subscription, state)
        if subscription.kind == "offer" and not self._locked(subscription):
            statement, signed = self._statement(subscription, withdrawn=True)
            core.book.publish(subscription_id, None, statement, signed, None)
        else:
            core.book.unwatch(subscription_id)
        core.pulses.beat(subscription_id)

    def _store_end(self, subscription: Subscription, state: SubscriptionState) -> None:
        core = self._core
        with core.db.transaction():
            core.store.put_subscription(msgspec.structs.replace(subscription, state=state), core.now())
            core.store.drop_events(subscription.subscription_id)
            core.store.drop_pairs(subscription.subscription_id)

    def _next_statement(self, subscription: Subscription) -> Subscription:
        """A number is never used twice, also over a restart."""
        subscription = msgspec.structs.replace(subscription, sequence=subscription.sequence + 1)
        self._core.store.put_subscription(subscription, self._core.now())
        return subscription

    def _publish(self, subscription: Subscription, body: SubscriptionBody | None) -> None:
        """``body`` is wanted for an offer that the book does not know."""
        if self._locked(subscription):
            return
        statement, signed = self._statement(subscription, withdrawn=False)
        self._core.book.publish(subscription.subscription_id, body, statement, signed, None)

    def _statement(self, subscription: Subscription, *, withdrawn: bool) -> tuple[Statement, SignedOffer]:
        statement = Statement(
            offer_id=subscription.subscription_id,
            sequence=subscription.sequence,
            expires_at=subscription.expires_at,
            withdrawn=withdrawn,
        )
        signer = self._core.signer(subscription.owner)
        return statement, protocol.sign_statement(signer, b"" if withdrawn else subscription.body, statement)

    def _arm(self, subscription: Subscription) -> None:
        key = subscription.subscription_id
        self._timers.at(subscription.expires_at, ("subscription", key), lambda: self._expire(key))

    def _lease(self, ends_at: datetime | None) -> datetime:
        lease = self._core.later(self._core.config.subscription_ttl_s)
        return lease if ends_at is None else min(lease, ends_at)


def _not_found(subscription_id: str) -> SubscriptionNotFound:
    return SubscriptionNotFound(f"Subscription [{subscription_id[:120]}] not found. Could be unsubscribed.")


def _expiration(properties: documents.Properties, now: datetime) -> datetime | None:
    """When the demand says that it ends; ``None`` when it does not say, or nonsense."""
    value = properties.get(EXPIRATION)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e14:
        return None
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=value)
    return moment if moment > now else None
