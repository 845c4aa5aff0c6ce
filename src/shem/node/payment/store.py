"""What the payment service remembers: plain functions over one SQLite connection.

Callers open the transaction (durable: this is money). Amounts are decimal integers in text columns, because 96 bits do
not fit SQLite's integers; times are microseconds since 1970. Everything is keyed by owner, since one daemon may hold
both ends of a deal.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec

from shem.node.db import Database
from shem.node.payment.ledger import Account, Allocation, Chain
from shem.node.payment.lifecycle import LIVE, State
from shem.node.payment.rows import Codec, Rows
from shem.node.payment.schema import SCHEMA

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

Kind = Literal["debit-note", "invoice"]


def to_us(moment: datetime) -> int:
    """Microseconds since 1970, exact."""
    return (moment - EPOCH) // _MICROSECOND


def from_us(us: int) -> datetime:
    """The time of :func:`to_us`."""
    return EPOCH + timedelta(microseconds=us)


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A debit note or invoice on one side. ``payload`` is what its issuer signed."""

    owner: str
    document_id: str
    kind: Kind
    role: str
    agreement_id: str
    activity_id: str | None
    amount: int
    state: State
    payload: bytes
    signature: bytes
    created_at: datetime
    due_at: datetime | None
    covered_at: int | None = None
    """The account's accepted total once this was accepted: settled when that much is."""
    allocation_id: str | None = None
    answer: bytes | None = None
    answer_signature: bytes | None = None
    failure: str | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something an agent may want to know. ``at`` is unique and grows."""

    at: datetime
    owner: str
    kind: Kind
    role: str
    document_id: str
    type: str
    session: str | None
    rejection: bytes | None = None


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """Accepted money that must be ordered."""

    due_id: int
    owner: str
    agreement_id: str
    activity_id: str | None
    allocation_id: str | None
    amount: int
    attempts: int
    """Orders for it that failed."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What was given to the driver; ``state`` is ``ordered``, ``settled`` or ``failed``."""

    order_id: str
    owner: str
    peer_id: str
    platform: str
    payer: str
    payee: str
    amount: int
    state: str


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a transfer pays of one agreement."""

    agreement_id: str
    amount: str
    """Base units."""
    activity_id: str | None = None
    allocation_id: str | None = None


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """Money that moved. ``state``: ``claimed`` (by the payer), ``final`` (by our look at the chain), ``refuted``."""

    owner: str
    payment_id: str
    role: str
    payer_id: str
    payee_id: str
    payer: str
    payee: str
    platform: str
    amount: int
    at: datetime
    tx_hash: str
    block_number: int
    block_hash: str
    parts: tuple[Part, ...]
    sessions: tuple[str, ...]
    state: str
    attempts: int = 0
    pot: str = ""
    """What claims are counted on: a transaction, or a channel."""


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """A signed message that waits for its peer."""

    seq: int
    owner: str
    peer_id: str
    kind: str
    payload: bytes
    signature: bytes
    document_id: str
    created_at: datetime


class Store:
    """Rows in, frozen values out. Nothing here commits."""

    def __init__(self, db: Database) -> None:
        db.migrate("payment", SCHEMA)
        self._db = db
        self._last_us = self._highest_stamp()

    def _run(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        return self._db.connection.execute(sql, arguments)

    def _put(self, table: str, row: dict[str, Any]) -> None:
        names = ", ".join(row)
        marks = ", ".join("?" * len(row))
        self._run(f"insert or replace into {table} ({names}) values ({marks})", *row.values())  # noqa: S608  our names

    def _highest_stamp(self) -> int:
        row = self._run(
            "select max(coalesce((select max(at) from payment_event), 0), "
            "coalesce((select max(at) from payment_transfer), 0)) as last"
        ).fetchone()
        return int(row["last"])

    def stamp(self, now: datetime) -> datetime:
        """``now``, moved on where needed so that no two stamps are equal and none goes back, restarts included."""
        self._last_us = max(to_us(now), self._last_us + 1)
        return from_us(self._last_us)

    # --- allocations ---

    def save_allocation(self, allocation: Allocation) -> None:
        """Insert or update."""
        _ALLOCATIONS.save(self._db.connection, allocation)

    def allocation(self, allocation_id: str, owner: str) -> Allocation | None:
        """By id, released ones included."""
        return _ALLOCATIONS.one(self._db.connection, "allocation_id = ? and owner = ?", allocation_id, owner)

    def active_allocations(self, owner: str) -> list[Allocation]:
        """All that are not released, oldest first."""
        return _ALLOCATIONS.find(self._db.connection, "owner = ? and released = 0 order by created_at, rowid", owner)

    def expired_allocations(self, now: datetime) -> list[Allocation]:
        """Not released yet although their time is up; every owner's."""
        return _ALLOCATIONS.find(self._db.connection, "released = 0 and timeout <= ?", to_us(now))

    def next_timeout(self) -> datetime | None:
        """When the next allocation ends by itself."""
        row = self._run("select min(timeout) as next from payment_allocation where released = 0").fetchone()
        return None if row["next"] is None else from_us(row["next"])

    # --- accounts and chains ---

    def save_account(self, account: Account) -> None:
        """Insert or update."""
        _ACCOUNTS.save(self._db.connection, account)

    def account(self, agreement_id: str, owner: str) -> Account | None:
        """One side's account of an agreement."""
        return _ACCOUNTS.one(self._db.connection, "owner = ? and agreement_id = ?", owner, agreement_id)

    def accounts(self, owner: str, platform: str | None = None) -> list[Account]:
        """All accounts of an owner."""
        return _ACCOUNTS.find(
            self._db.connection, "owner = ? and (? is null or platform = ?)", owner, platform, platform
        )

    def asking(self, owner: str, peer_id: str, platform: str) -> list[Account]:
        """Accounts between two nodes whose documents ask for more than was accepted."""
        found = _ACCOUNTS.find(
            self._db.connection,
            "coalesce(invoiced, noted) <> accepted and owner = ? and peer_id = ? and platform = ?",
            owner,
            peer_id,
            platform,
            index="payment_account_asking",
        )
        return [account for account in found if account.requested > account.accepted]

    def unpaid(self, owner: str, peer_id: str, platform: str) -> list[Account]:
        """Accounts between two nodes of which less is settled than was accepted."""
        found = _ACCOUNTS.find(
            self._db.connection,
            "accepted <> settled and owner = ? and peer_id = ? and platform = ?",
            owner,
            peer_id,
            platform,
            index="payment_account_unpaid",
        )
        return [account for account in found if account.accepted > account.settled]

    def owing(self, owner: str, platform: str) -> list[Account]:
        """The owner's accounts as requestor that owe something not settled yet."""
        return _ACCOUNTS.find(
            self._db.connection,
            "owner = ? and owing and platform = ? and role = 'Requestor'",
            owner,
            platform,
        )

    def unscheduled_of(self, allocation_id: str) -> list[Account]:
        """Accounts last paid from an allocation that owe more than was ordered."""
        return _ACCOUNTS.find(self._db.connection, "allocation_id = ? and accepted <> scheduled", allocation_id)

    def save_chain(self, chain: Chain) -> None:
        """Insert or update."""
        _CHAINS.save(self._db.connection, chain)

    def chain(self, activity_id: str, owner: str) -> Chain | None:
        """The debit notes of an activity."""
        return _CHAINS.one(self._db.connection, "owner = ? and activity_id = ?", owner, activity_id)

    # --- documents ---

    def save_document(self, document: Document) -> None:
        """Insert or update."""
        _DOCUMENTS.save(self._db.connection, document)

    def document(self, document_id: str, owner: str) -> Document | None:
        """By id."""
        return _DOCUMENTS.one(self._db.connection, "owner = ? and document_id = ?", owner, document_id)

    def documents(self, owner: str, kind: Kind, after: datetime | None, limit: int) -> list[Document]:
        """Oldest first, created strictly after ``after``."""
        return _DOCUMENTS.find(
            self._db.connection,
            "owner = ? and kind = ? and created_at > ? order by created_at, document_id limit ?",
            owner,
            kind,
            to_us(after) if after else -1,
            limit,
        )

    def of_agreement(self, agreement_id: str, owner: str) -> list[Document]:
        """All documents of an agreement on one side, oldest first."""
        return _DOCUMENTS.find(
            self._db.connection,
            "owner = ? and agreement_id = ? order by created_at, document_id",
            owner,
            agreement_id,
        )

    def covered(self, account: Account) -> list[Document]:
        """Accepted documents of an agreement that what is settled covers, oldest first."""
        settled = str(account.settled)
        return _DOCUMENTS.find(
            self._db.connection,
            "owner = ? and agreement_id = ? and state = 'ACCEPTED' "
            # Decimal integers in text compare by length first.
            "and (length(covered_at), covered_at) <= (?, ?) order by created_at, document_id",
            account.owner,
            account.agreement_id,
            len(settled),
            settled,
        )

    def unanswered(self, limit: int) -> list[Document]:
        """A provider's newest documents that the requestor's node has and its agent has not answered."""
        where = "state = 'RECEIVED' and role = 'Provider' order by created_at desc limit ?"
        return _DOCUMENTS.find(self._db.connection, where, limit, index="payment_document_unanswered")

    def last_accepted(self, agreement_id: str, owner: str) -> Document | None:
        """The document of an agreement that was accepted for the highest total."""
        where = (
            "covered_at is not null and owner = ? and agreement_id = ? and state in ('ACCEPTED', 'SETTLED') "
            "order by length(covered_at) desc, covered_at desc limit 1"
        )
        found = _DOCUMENTS.find(self._db.connection, where, owner, agreement_id, index="payment_document_covered")
        return found[0] if found else None

    def live_notes(self, activity_id: str, agreement_id: str, owner: str) -> list[Document]:
        """The debit notes of an activity that still ask for their money, lowest first."""
        notes = [d for d in self.of_agreement(agreement_id, owner) if d.activity_id == activity_id and d.state in LIVE]
        return sorted(notes, key=lambda note: (note.amount, note.created_at))

    # --- events ---

    def add_event(self, event: Event) -> None:
        """Append; ``event.at`` comes from :meth:`stamp`."""
        _EVENTS.add(self._db.connection, event)

    def events(
        self,
        owner: str,
        kind: Kind,
        after: datetime | None,
        limit: int,
        session: str | None,
        wanted: Iterable[tuple[str, str]],
    ) -> list[Event]:
        """Strictly after ``after``, oldest first; ``wanted`` are (role, type) pairs."""
        pairs = list(wanted)
        if not pairs:
            return []
        marks = ", ".join(["(?, ?)"] * len(pairs))
        rows = self._run(
            "select * from payment_event where owner = ? and kind = ? and at > ? and (? is null or session = ?) "  # noqa: S608  marks only
            f"and (role, type) in (values {marks}) order by at limit ?",
            owner,
            kind,
            to_us(after) if after else -1,
            session,
            session,
            *(value for pair in pairs for value in pair),
            limit,
        )
        return [Event(**dict(row) | {"at": from_us(row["at"])}) for row in rows]

    # --- dues and orders ---

    def add_due(self, account: Account, activity_id: str | None, amount: int, not_before: datetime = EPOCH) -> None:
        """Accepted money to order, from ``not_before`` on."""
        self._run(
            "insert into payment_due (owner, agreement_id, activity_id, allocation_id, amount, attempts, not_before) "
            "values (?, ?, ?, ?, ?, 0, ?)",
            account.owner,
            account.agreement_id,
            activity_id,
            account.allocation_id,
            str(amount),
            to_us(not_before),
        )

    def open_dues(self, now: datetime, limit: int, after: int = 0) -> list[Due]:
        """Those in no order that may be ordered now and came after one, oldest first."""
        where = "order_id is null and not_before <= ? and due_id > ? order by due_id limit ?"
        return self._dues(where, to_us(now), after, limit)

    def early_dues(self, now: datetime, limit: int) -> list[Due]:
        """Those that wait for their date, not for another attempt; the next first."""
        where = "order_id is null and attempts = 0 and not_before > ? order by not_before, due_id limit ?"
        return self._dues(where, to_us(now), limit)

    def next_due(self, now: datetime) -> datetime | None:
        """When the next due that waits for its moment may be ordered."""
        query = "select min(not_before) as next from payment_due where order_id is null and not_before > ?"
        row = self._run(query, to_us(now)).fetchone()
        return None if row["next"] is None else from_us(row["next"])

    def dues_of(self, order_id: str) -> list[Due]:
        """Those of an order."""
        return self._dues("order_id = ? order by due_id", order_id)

    def _dues(self, where: str, *arguments: Any) -> list[Due]:
        columns = "due_id, owner, agreement_id, activity_id, allocation_id, amount, attempts"
        rows = self._run(f"select {columns} from payment_due where {where}", *arguments)  # noqa: S608  our own words
        return [Due(**dict(row) | {"amount": int(row["amount"])}) for row in rows]

    def assign(self, dues: Sequence[Due], order_id: str) -> None:
        """Put dues into an order."""
        for due in dues:
            self._run("update payment_due set order_id = ? where due_id = ?", order_id, due.due_id)

    def take_back(self, due: Due, not_before: datetime) -> None:
        """The order failed for good: another may be made from ``not_before`` on."""
        self._run(
            "update payment_due set order_id = null, attempts = attempts + 1, not_before = ? where due_id = ?",
            to_us(not_before),
            due.due_id,
        )

    def save_order(self, order: Order) -> None:
        """Insert or update."""
        self._put("payment_order", _row(order))

    def order(self, order_id: str) -> Order | None:
        """By id."""
        row = self._run("select * from payment_order where order_id = ?", order_id).fetchone()
        return Order(**dict(row) | {"amount": int(row["amount"])}) if row else None

    # --- transfers ---

    def save_transfer(self, transfer: Transfer) -> None:
        """Insert or update. One that is final is so for ever."""
        if (transfer.role, transfer.state) == ("Provider", "final"):
            self._take_from_pot(transfer)
        row = _row(transfer)
        row["parts"] = msgspec.json.encode(transfer.parts)
        # Bounded by newlines on both sides, so that a session is found by an exact search.
        row["sessions"] = "\n" + "".join(f"{session}\n" for session in transfer.sessions)
        self._put("payment_transfer", row)

    def _take_from_pot(self, transfer: Transfer) -> None:
        known = self.transfer(transfer.payment_id, transfer.owner)
        if known is None or known.state != "final":
            pot = (transfer.pot, transfer.payer, transfer.payee)
            taken = self.claimed_on(*pot) + transfer.amount
            self._run("insert or replace into payment_pot values (?, ?, ?, ?)", *pot, str(taken))

    def transfer(self, payment_id: str, owner: str) -> Transfer | None:
        """By id."""
        return next(self._transfers("owner = ? and payment_id = ?", owner, payment_id), None)

    def transfers(self, owner: str, after: datetime | None, limit: int, session: str | None = None) -> list[Transfer]:
        """The final ones, strictly after ``after``, oldest first."""
        return list(
            self._transfers(
                "owner = ? and state = 'final' and at > ? and (? is null or instr(sessions, ?) > 0) "
                "order by at limit ?",
                owner,
                to_us(after) if after else -1,
                session,
                f"\n{session}\n",
                limit,
            )
        )

    def received(self, owner: str, limit: int) -> list[Transfer]:
        """What came to the owner for good, the newest first."""
        where = "owner = ? and state = 'final' and role = 'Provider' order by at desc limit ?"
        return list(self._transfers(where, owner, limit))

    def claims(self) -> list[Transfer]:
        """Claimed, and not looked at with success yet; every owner's, oldest first."""
        return list(self._transfers("state = 'claimed' order by at"))

    def claims_of(self, owner: str, payer_id: str) -> int:
        """How many open claims one peer has."""
        row = self._run(
            "select count(*) as n from payment_transfer where owner = ? and state = 'claimed' and payer_id = ?",
            owner,
            payer_id,
        ).fetchone()
        return int(row["n"])

    def claimed_on(self, pot: str, payer: str, payee: str) -> int:
        """What final payments of every owner here take already of one pot between two addresses."""
        row = self._run(
            "select taken from payment_pot where pot = ? and payer = ? and payee = ?", pot, payer, payee
        ).fetchone()
        return int(row["taken"]) if row else 0

    def _transfers(self, where: str, *arguments: Any) -> Iterator[Transfer]:
        for row in self._run(f"select * from payment_transfer where {where}", *arguments).fetchall():  # noqa: S608  ours
            yield Transfer(
                **dict(row)
                | {
                    "amount": int(row["amount"]),
                    "at": from_us(row["at"]),
                    "parts": msgspec.json.decode(row["parts"], type=tuple[Part, ...]),
                    "sessions": tuple(row["sessions"].split("\n")[1:-1]),
                }
            )

    # --- outbox ---

    def post(
        self, owner: str, peer_id: str, kind: str, payload: bytes, signature: bytes, document_id: str, now: datetime
    ) -> None:
        """Queue a signed message."""
        self._run(
            "insert into payment_outbox (owner, peer_id, kind, payload, signature, document_id, created_at) "
            "values (?, ?, ?, ?, ?, ?, ?)",
            owner,
            peer_id,
            kind,
            payload,
            signature,
            document_id,
            to_us(now),
        )

    def letters(self, peer_id: str, limit: int, after: int = 0) -> list[Letter]:
        """The oldest messages for a peer that came after one."""
        rows = self._run(
            "select * from payment_outbox where peer_id = ? and seq > ? order by seq limit ?", peer_id, after, limit
        )
        return [Letter(**dict(row) | {"created_at": from_us(row["created_at"])}) for row in rows]

    def is_posted(self, owner: str, kind: str, document_id: str, peer_id: str) -> bool:
        """True while such a message waits."""
        row = self._run(
            "select 1 from payment_outbox where peer_id = ? and owner = ? and kind = ? and document_id = ? limit 1",
            peer_id,
            owner,
            kind,
            document_id,
        ).fetchone()
        return row is not None

    def addressees(self) -> list[str]:
        """Peers with waiting messages."""
        return [row["peer_id"] for row in self._run("select distinct peer_id from payment_outbox")]

    def drop_letter(self, seq: int) -> None:
        """Delivered, refused for good, or too old."""
        self._run("delete from payment_outbox where seq = ?", seq)


_BIG = frozenset(
    {"total", "spent", "noted", "notes_accepted", "invoiced", "accepted", "scheduled", "settled", "requested"}
    | {"amount", "covered_at"}
)


_CODECS: Mapping[str, Codec] = (
    dict.fromkeys(_BIG, (str, int))
    | dict.fromkeys(("created_at", "timeout", "due_at", "at"), (to_us, from_us))
    | dict.fromkeys(("make_deposit", "released"), (int, bool))
)
"""Columns of frozen values: times as microseconds, money as text."""
_ALLOCATIONS = Rows(
    "payment_allocation", Allocation, ("allocation_id",), ("total", "spent", "timeout", "released"), _CODECS
)
_ACCOUNTS = Rows(
    "payment_account",
    Account,
    ("owner", "agreement_id"),
    ("noted", "notes_accepted", "invoiced", "accepted", "scheduled", "settled", "allocation_id"),
    _CODECS,
)
_CHAINS = Rows(
    "payment_chain", Chain, ("owner", "activity_id"), ("requested", "accepted", "last_note_id", "notes"), _CODECS
)
_DOCUMENTS = Rows(
    "payment_document",
    Document,
    ("owner", "document_id"),
    ("state", "covered_at", "allocation_id", "answer", "answer_signature", "failure"),
    {**_CODECS, "state": (str, State)},
)
_EVENTS = Rows("payment_event", Event, ("at",), (), _CODECS)


def _row(value: msgspec.Struct) -> dict[str, Any]:
    row = msgspec.structs.asdict(value)
    return row | {name: encode(row[name]) for name, (encode, _) in _CODECS.items() if row.get(name) is not None}
