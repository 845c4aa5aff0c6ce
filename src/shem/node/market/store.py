"""What the market remembers: subscriptions, proposals, agreements, their events, and messages not yet delivered.

Functions are synchronous and take part in the caller's transaction: a state change, the event it causes and the message
it sends are one commit. A row is its struct as msgpack beside the columns that are searched by.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec

from shem.node.db import Database
from shem.node.market import documents
from shem.node.market.lifecycle import OPEN, Agreement, AgreementState, Proposal, Role, Subscription

SCHEMA = [
    """
    create table market_subscription (
        subscription_id text primary key, owner text not null, kind text not null, state text not null,
        changed_us integer not null, data blob not null
    ) without rowid;
    create index market_subscription_owner on market_subscription (owner, kind, state);
    create table market_proposal (
        owner text not null, proposal_id text not null, subscription_id text not null, peer text not null,
        initial integer not null, created_us integer not null, data blob not null,
        primary key (owner, proposal_id)
    ) without rowid;
    create index market_proposal_age on market_proposal (created_us);
    create index market_proposal_peer on market_proposal (subscription_id, peer, initial, created_us);
    create table market_pair (
        demand_id text not null, offer_id text not null, primary key (demand_id, offer_id)
    ) without rowid;
    create table market_agreement (
        owner text not null, agreement_id text not null, role text not null, state text not null,
        created_us integer not null, session text, data blob not null,
        primary key (owner, agreement_id)
    ) without rowid;
    create index market_agreement_list on market_agreement (owner, created_us);
    create index market_agreement_state on market_agreement (state);
    create table market_event (
        seq integer primary key autoincrement, subscription_id text not null, data blob not null
    );
    create index market_event_subscription on market_event (subscription_id, seq);
    create table market_agreement_event (
        owner text not null, at_us integer not null, agreement_id text not null, data blob not null,
        primary key (owner, at_us)
    ) without rowid;
    create table market_outbox (
        seq integer primary key autoincrement, peer text not null, topic text not null, kind text not null,
        message_id text not null unique, payload blob not null, expires_us integer not null
    );
    create index market_outbox_peer on market_outbox (peer, topic, seq);
    """,
    # rows at the end of a table instead of in the order of their random ids, and no index that nobody asks: each new offer
    # touches half of the pages
    """
    create table market_subscription_2 (
        subscription_id text primary key, owner text not null, kind text not null, state text not null,
        changed_us integer not null, data blob not null
    );
    insert into market_subscription_2 select * from market_subscription;
    drop table market_subscription;
    alter table market_subscription_2 rename to market_subscription;
    """,
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

EventKind = Literal["Proposal", "ProposalRejected", "Agreement"]
AgreementEventKind = Literal["Approved", "Rejected", "Cancelled", "Terminated"]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something for the agent that holds a subscription. ``subject`` is a proposal's or an agreement's id."""

    kind: EventKind
    at: datetime
    subject: str
    reason: dict[str, Any] | None = None


class AgreementEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to an agreement; kept for ever, read by time."""

    kind: AgreementEventKind
    at: datetime
    agreement_id: str
    terminator: Role | None = None
    signature: str | None = None
    reason: dict[str, Any] | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A message that a peer must get."""

    seq: int
    peer: str
    topic: str
    kind: str
    message_id: str
    payload: bytes
    expires_at: datetime


def to_us(moment: datetime) -> int:
    """Microseconds since 1970, exact."""
    return (moment - _EPOCH) // _MICROSECOND


def from_us(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


class Store:
    """All tables of the market in one database."""

    def __init__(self, db: Database) -> None:
        db.migrate("market", SCHEMA)
        self.db = db
        self._sql = db.connection
        self._encode = msgspec.msgpack.Encoder().encode
        self._bare_subscription = msgspec.msgpack.Decoder(Subscription).decode
        self._proposal = msgspec.msgpack.Decoder(Proposal).decode
        self._agreement = msgspec.msgpack.Decoder(Agreement).decode
        self._event = msgspec.msgpack.Decoder(Event).decode
        self._agreement_event = msgspec.msgpack.Decoder(AgreementEvent).decode

    # subscriptions

    def put_subscription(self, value: Subscription, now: datetime) -> None:
        if value.body:  # it says the same: a row need not hold it twice
            value = msgspec.structs.replace(value, properties={}, constraints="")
        self._sql.execute(
            "insert or replace into market_subscription values (?, ?, ?, ?, ?, ?)",
            (value.subscription_id, value.owner, value.kind, value.state, to_us(now), self._encode(value)),
        )

    def _subscription(self, data: bytes) -> Subscription:
        value = self._bare_subscription(data)
        if not value.body:
            return value
        body = documents.decode(value.body, documents.SubscriptionBody)
        return msgspec.structs.replace(value, properties=body.properties, constraints=body.constraints)

    def subscription(self, subscription_id: str) -> Subscription | None:
        row = self._sql.execute(
            "select data from market_subscription where subscription_id = ?", (subscription_id,)
        ).fetchone()
        return self._subscription(row[0]) if row else None

    def live_subscriptions(self) -> list[Subscription]:
        rows = self._sql.execute("select data from market_subscription where state = 'live'")
        return sorted((self._subscription(row[0]) for row in rows), key=lambda s: s.created_at)

    # proposals

    def put_proposal(self, value: Proposal) -> None:
        initial = value.prev_id is None
        self._sql.execute(
            "insert or replace into market_proposal values (?, ?, ?, ?, ?, ?, ?)",
            (
                value.owner,
                value.proposal_id,
                value.subscription_id,
                value.peer_id,
                initial,
                to_us(value.created_at),
                self._encode(value),
            ),
        )

    def proposal(self, owner: str, proposal_id: str) -> Proposal | None:
        row = self._sql.execute(
            "select data from market_proposal where owner = ? and proposal_id = ?", (owner, proposal_id)
        ).fetchone()
        return self._proposal(row[0]) if row else None

    def delete_proposal(self, owner: str, proposal_id: str) -> None:
        self._sql.execute("delete from market_proposal where owner = ? and proposal_id = ?", (owner, proposal_id))

    def count_negotiations(self, subscription_id: str, peer: str, since: datetime) -> int:
        row = self._sql.execute(
            "select count(*) from market_proposal"
            " where subscription_id = ? and peer = ? and initial = 1 and created_us > ?",
            (subscription_id, peer, to_us(since)),
        ).fetchone()
        return int(row[0])

    def pairs_of(self, demand_id: str) -> set[str]:
        """Offers with which the demand negotiates or has negotiated: no fresh initial proposal for these."""
        rows = self._sql.execute("select offer_id from market_pair where demand_id = ?", (demand_id,))
        return {row[0] for row in rows}

    def add_pair(self, demand_id: str, offer_id: str) -> None:
        self._sql.execute("insert or ignore into market_pair values (?, ?)", (demand_id, offer_id))

    def free_pair(self, demand_id: str, offer_id: str) -> None:
        self._sql.execute("delete from market_pair where demand_id = ? and offer_id = ?", (demand_id, offer_id))

    def drop_pairs(self, demand_id: str) -> None:
        self._sql.execute("delete from market_pair where demand_id = ?", (demand_id,))

    def sweep(self, before: datetime) -> None:
        """Forget proposals made, and subscriptions ended, before that time. Agreements carry what they need."""
        limit = to_us(before)
        self._sql.execute("delete from market_proposal where created_us < ?", (limit,))
        self._sql.execute("delete from market_subscription where state != 'live' and changed_us < ?", (limit,))

    # events of a subscription

    def add_event(self, subscription_id: str, event: Event) -> None:
        self._sql.execute(
            "insert into market_event (subscription_id, data) values (?, ?)", (subscription_id, self._encode(event))
        )

    def count_events(self, subscription_id: str) -> int:
        row = self._sql.execute(
            "select count(*) from market_event where subscription_id = ?", (subscription_id,)
        ).fetchone()
        return int(row[0])

    def take_events(self, subscription_id: str, limit: int) -> list[Event]:
        """The oldest, which are then gone."""
        rows = self._sql.execute(
            "select seq, data from market_event where subscription_id = ? order by seq limit ?",
            (subscription_id, limit),
        ).fetchall()
        if rows:
            self._sql.execute(
                "delete from market_event where subscription_id = ? and seq <= ?", (subscription_id, rows[-1][0])
            )
        return [self._event(row[1]) for row in rows]

    def drop_events(self, subscription_id: str) -> None:
        self._sql.execute("delete from market_event where subscription_id = ?", (subscription_id,))

    # agreements

    def put_agreement(self, value: Agreement) -> None:
        self._sql.execute(
            "insert or replace into market_agreement values (?, ?, ?, ?, ?, ?, ?)",
            (
                value.owner,
                value.agreement_id,
                value.role,
                value.state,
                to_us(value.created_at),
                value.app_session_id,
                self._encode(value),
            ),
        )

    def agreement(self, owner: str, agreement_id: str) -> Agreement | None:
        row = self._sql.execute(
            "select data from market_agreement where owner = ? and agreement_id = ?", (owner, agreement_id)
        ).fetchone()
        return self._agreement(row[0]) if row else None

    def open_agreements(self) -> list[Agreement]:
        """Those that end by themselves."""
        marks = ", ".join("?" for _ in OPEN)
        rows = self._sql.execute(f"select data from market_agreement where state in ({marks})", tuple(OPEN))  # noqa: S608
        return [self._agreement(row[0]) for row in rows]

    def agreements(
        self,
        owner: str,
        *,
        state: AgreementState | None = None,
        after: datetime | None = None,
        before: datetime | None = None,
        session: str | None = None,
    ) -> list[Agreement]:
        """Filtered, oldest first; ``None`` filters nothing."""
        rows = self._sql.execute(
            "select data from market_agreement where owner = :owner"
            " and (:state is null or state = :state) and (:session is null or session = :session)"
            " and (:after is null or created_us > :after) and (:before is null or created_us < :before)"
            " order by created_us",
            {
                "owner": owner,
                "state": state,
                "session": session,
                "after": None if after is None else to_us(after),
                "before": None if before is None else to_us(before),
            },
        )
        return [self._agreement(row[0]) for row in rows]

    def add_agreement_event(self, owner: str, event: AgreementEvent) -> AgreementEvent:
        """Kept with a time strictly after all earlier ones of that owner: readers resume by time."""
        row = self._sql.execute("select max(at_us) from market_agreement_event where owner = ?", (owner,)).fetchone()
        at_us = max(to_us(event.at), (row[0] or 0) + 1)
        event = msgspec.structs.replace(event, at=from_us(at_us))
        self._sql.execute(
            "insert into market_agreement_event values (?, ?, ?, ?)",
            (owner, at_us, event.agreement_id, self._encode(event)),
        )
        return event

    def agreement_events(
        self, owner: str, after: datetime | None, limit: int, session: str | None
    ) -> list[AgreementEvent]:
        """Strictly after a time, oldest first; with ``session`` only of agreements confirmed or approved in it."""
        rows = self._sql.execute(
            "select e.data from market_agreement_event e"
            " where e.owner = :owner and e.at_us > :after and (:session is null or exists (select 1"
            " from market_agreement a where a.owner = e.owner and a.agreement_id = e.agreement_id"
            " and a.session = :session)) order by e.at_us limit :limit",
            {"owner": owner, "after": -1 if after is None else to_us(after), "session": session, "limit": limit},
        )
        return [self._agreement_event(row[0]) for row in rows]

    # outbox

    def add_message(
        self, *, peer: str, topic: str, kind: str, message_id: str, payload: bytes, expires_at: datetime
    ) -> None:
        self._sql.execute(
            "insert or ignore into market_outbox (peer, topic, kind, message_id, payload, expires_us)"
            " values (?, ?, ?, ?, ?, ?)",
            (peer, topic, kind, message_id, payload, to_us(expires_at)),
        )

    def next_message(self, peer: str, topic: str) -> Message | None:
        row = self._sql.execute(
            "select * from market_outbox where peer = ? and topic = ? order by seq limit 1", (peer, topic)
        ).fetchone()
        if row is None:
            return None
        return Message(
            seq=row["seq"],
            peer=row["peer"],
            topic=row["topic"],
            kind=row["kind"],
            message_id=row["message_id"],
            payload=row["payload"],
            expires_at=from_us(row["expires_us"]),
        )

    def has_message(self, message_id: str) -> bool:
        row = self._sql.execute("select 1 from market_outbox where message_id = ?", (message_id,)).fetchone()
        return row is not None

    def delete_message(self, message_id: str) -> None:
        self._sql.execute("delete from market_outbox where message_id = ?", (message_id,))

    def count_messages(self) -> int:
        return int(self._sql.execute("select count(*) from market_outbox").fetchone()[0])

    def waiting_topics(self, peer: str | None = None) -> Iterable[tuple[str, str]]:
        """``(peer, topic)`` of what is undelivered."""
        rows = self._sql.execute(
            "select distinct peer, topic from market_outbox where ?1 is null or peer = ?1", (peer,)
        ).fetchall()
        return [(row[0], row[1]) for row in rows]
