"""What is remembered of payment channels: rows in, frozen values out. Callers open the transaction.

Nothing here reads all rows there ever were. What closed channels have paid is counted when they close, one sum for each
pair of addresses, and :meth:`ChannelStore.sweep` forgets the rows later. A payee also remembers how far it has forgotten,
since a channel counted once must never be announced to it again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import msgspec

from shem.node.db import Database
from shem.node.payment.channel import PAY_S, Channel, Cover
from shem.node.payment.drivers.evm.vault import ChannelKey, Vault
from shem.node.payment.rows import Rows

RequestKind = Literal["deposit", "reserve", "extend", "settle", "close", "release", "redeem"]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of a vault; ``state`` is ``open``, ``done`` or ``failed``."""

    request_id: str
    owner: str
    kind: RequestKind
    peer_id: str
    platform: str
    payer: str
    payee: str
    channel_id: str = ""
    amount: int = 0
    state: str = "open"
    tx_hash: str = ""
    created_at: int = 0


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """An order: paid once all channels between the two have paid ``target``, the sum of all orders up to this."""

    order_id: str
    owner: str
    peer_id: str
    platform: str
    payer: str
    payee: str
    amount: int
    target: int
    settle_at: int
    """When the payer pays even if the channel goes on, Unix seconds."""
    done: bool = False
    seq: int | None = None


Way = tuple[str, str, str]
"""(owner, peer, platform): who pays whom where, as one side sees it."""
Pair = tuple[str, str, str, str]
"""(owner, platform, payer's address, payee's address)."""
MAX_LISTED = 1000


class ChannelName(Protocol):
    """What names a channel here: its id, in one vault."""

    @property
    def owner(self) -> str: ...
    @property
    def chain_id(self) -> int: ...
    @property
    def vault(self) -> str: ...
    @property
    def channel_id(self) -> str: ...


class ChannelStore:
    """Beside :class:`~shem.node.payment.store.Store`, whose migrations make the tables."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def _run(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        return self._db.connection.execute(sql, arguments)

    def _put(self, table: str, value: msgspec.Struct, big: Sequence[str]) -> None:
        row = msgspec.structs.asdict(value)
        row |= {name: str(row[name]) for name in big}
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        self._run(f"insert or replace into {table} ({names}) values ({marks})", *row.values())  # noqa: S608  our names

    # --- channels ---

    def save(self, channel: Channel) -> None:
        """Insert or update."""
        if channel.state == "closed":
            self._count_closed(channel)
        _CHANNELS.save(self._db.connection, channel)

    def _count_closed(self, channel: Channel) -> None:
        before = self.channel(channel)
        counted = _counts(before) if before is not None and before.state == "closed" else 0
        grown = _counts(channel) - counted
        if grown:
            pair = (channel.owner, channel.role, channel.platform, channel.payer, channel.payee)
            total = self._past(*pair) + grown
            self._run("insert or replace into payment_channel_past values (?, ?, ?, ?, ?, ?)", *pair, str(total))

    def channel(self, named: ChannelName) -> Channel | None:
        """By its owner, vault and id."""
        return self.channel_at(named.owner, named.chain_id, named.vault, named.channel_id)

    def channel_at(self, owner: str, chain_id: int, vault: str, channel_id: str) -> Channel | None:
        """The same. The id alone names no channel: two chains may have equal ones."""
        where = "owner = ? and chain_id = ? and vault = ? and channel_id = ?"
        return next(iter(self._channels(where, owner, chain_id, vault, channel_id)), None)

    def live_channels(self) -> list[Channel]:
        """Everybody's that are not closed, oldest first."""
        return self._channels("state <> 'closed' order by created_at, nonce")

    def channels(self, owner: str, limit: int = MAX_LISTED) -> list[Channel]:
        """An owner's newest, closed ones too, oldest first."""
        found = self._channels("owner = ? order by created_at desc, nonce desc limit ?", owner, limit)
        return found[::-1]

    def of_way(self, role: str, way: Way) -> list[Channel]:
        """Those between two nodes on one platform that are not closed, oldest first."""
        return self._channels(
            "state <> 'closed' and role = ? and owner = ? and peer_id = ? and platform = ? order by created_at, nonce",
            role,
            *way,
            index="payment_channel_way",
        )

    def live_between(self, role: str, pair: Pair) -> list[Channel]:
        """Those between two addresses that are not closed, oldest first."""
        owner, *rest = pair
        where = f"{_OPEN_PAIR} order by created_at, nonce"
        return self._channels(where, owner, role, *rest, index="payment_channel_between")

    def last_between(self, role: str, pair: Pair) -> Channel | None:
        """The newest between two addresses that has paid something, or just the newest; closed or not. ``None`` also once
        it is forgotten."""
        owner, *rest = pair
        for which in (f"claimed <> '0' and {_PAIR}", _PAIR):
            newest = self._channels(f"{which} order by created_at desc, nonce desc limit 1", owner, role, *rest)
            if newest:
                return newest[0]
        return None

    def unpaid_pairs(self) -> list[tuple[str, ...]]:
        """(owner, peer, platform, payer, payee) where a provider's accepted sums are not settled."""
        rows = self._run(
            "select distinct owner, peer_id, platform, payer, payee from payment_account "
            "indexed by payment_account_unpaid where accepted <> settled and role = 'Provider'"
        )
        return [tuple(row) for row in rows.fetchall()]

    def claimed(self, role: str, pair: Pair) -> int:
        """What all channels between two addresses have paid in final blocks; for a payer also what its payee gave up by
        closing a channel below its highest voucher, which no one can pay any more."""
        owner, *rest = pair
        live = self._run(
            f"select claimed from payment_channel indexed by payment_channel_between where {_OPEN_PAIR}",  # noqa: S608  ours
            owner,
            role,
            *rest,
        )
        return self._past(owner, role, *rest) + sum(int(row["claimed"]) for row in live.fetchall())

    def _past(self, *pair: str) -> int:
        row = self._run(
            f"select claimed from payment_channel_past where {_PAIR}",  # noqa: S608  our own words
            *pair,
        ).fetchone()
        return int(row["claimed"]) if row else 0

    def known_of(self, owner: str, peer_id: str) -> tuple[int, int]:
        """(how many channels a peer has with us that are not closed, how many of them no block has shown yet)."""
        row = self._run(
            "select count(*) as n, coalesce(sum(reserved = '0'), 0) as unseen "
            "from payment_channel indexed by payment_channel_way "
            "where state <> 'closed' and owner = ? and peer_id = ?",
            owner,
            peer_id,
        ).fetchone()
        return int(row["n"]), int(row["unseen"])

    def is_forgotten(self, owner: str, vault: Vault, key: ChannelKey) -> bool:
        """Whether a channel of that name may have been here, was counted, and is forgotten."""
        row = self._run(
            "select nonce from payment_channel_gone where owner = ? and chain_id = ? and vault = ? and payer = ?",
            owner,
            vault.chain_id,
            vault.address,
            key.payer,
        ).fetchone()
        return row is not None and key.nonce <= row["nonce"]

    def _channels(self, where: str, *arguments: Any, index: str = "") -> list[Channel]:
        return _CHANNELS.find(self._db.connection, where, *arguments, index=index)

    # --- what agreements need ---

    def save_cover(self, cover: Cover) -> None:
        """Insert or update."""
        self._put("payment_cover", cover, _COVER_BIG)

    def cover(self, owner: str, agreement_id: str) -> Cover | None:
        """By agreement."""
        return next(iter(self._covers("owner = ? and agreement_id = ?", owner, agreement_id)), None)

    def live_covers(self, role: str, way: Way | None = None) -> list[Cover]:
        """Of agreements that go on: everybody's, or those of one way."""
        if way is None:
            return self._covers("live = 1 and role = ?", role)
        where = "live = 1 and role = ? and owner = ? and peer_id = ? and platform = ?"
        return self._covers(where, role, *way, index="payment_cover_live")

    def covers_since(self, role: str, way: Way, since: float, limit: int = MAX_LISTED) -> list[Cover]:
        """Of agreements of one way that came or ended at ``since`` or later, newest first."""
        return self._covers(
            "role = ? and owner = ? and peer_id = ? and platform = ? and changed_at >= ? "
            "order by changed_at desc limit ?",
            role,
            *way,
            since,
            limit,
        )

    def last_change(self, role: str, way: Way) -> int:
        """When the last agreement of a way came or ended, Unix seconds; zero before the first."""
        row = self._run(
            "select max(changed_at) as at from payment_cover "
            "where role = ? and owner = ? and peer_id = ? and platform = ?",
            role,
            *way,
        ).fetchone()
        return int(row["at"] or 0)

    def _covers(self, where: str, *arguments: Any, index: str = "") -> list[Cover]:
        by = f"indexed by {index}" if index else ""
        rows = self._run(f"select * from payment_cover {by} where {where}", *arguments)  # noqa: S608  our own words
        return [msgspec.convert(_numbers(row, _COVER_BIG, ("live",)), Cover) for row in rows.fetchall()]

    # --- requests ---

    def save_request(self, request: Request) -> None:
        """Insert or update."""
        self._put("payment_channel_request", request, ("amount",))

    def request(self, request_id: str) -> Request | None:
        """By id."""
        return next(iter(self._requests("request_id = ?", request_id)), None)

    def open_requests(self, owner: str, peer_id: str, platform: str) -> list[Request]:
        """What is under way between two nodes."""
        return self._requests("state = 'open' and owner = ? and peer_id = ? and platform = ?", owner, peer_id, platform)

    def reserving(self, owner: str, platform: str) -> int:
        """What is being reserved and not yet seen in a channel."""
        found = self._requests(
            "state = 'open' and owner = ? and platform = ? and kind in ('reserve', 'extend')", owner, platform
        )
        return sum(request.amount for request in found)

    def depositing(self, owner: str, platform: str) -> int:
        """What is on its way from the wallet into the vault."""
        found = self._requests("state = 'open' and owner = ? and platform = ? and kind = 'deposit'", owner, platform)
        return sum(request.amount for request in found)

    def _requests(self, where: str, *arguments: Any) -> list[Request]:
        rows = self._run(f"select * from payment_channel_request where {where}", *arguments)  # noqa: S608  our own words
        return [msgspec.convert(_numbers(row, ("amount",)), Request) for row in rows.fetchall()]

    def has_letter(self, owner: str, peer_id: str, kind: str) -> bool:
        """Whether such a letter waits for a peer."""
        sql = "select 1 from payment_outbox where peer_id = ? and owner = ? and kind = ? limit 1"
        return self._run(sql, peer_id, owner, kind).fetchone() is not None

    # --- orders ---

    def save_target(self, target: Target) -> None:
        """Insert or update."""
        self._put("payment_channel_order", target, _TARGET_BIG)

    def target(self, order_id: str) -> Target | None:
        """By order."""
        return next(iter(self._targets("order_id = ?", order_id)), None)

    def open_targets(self) -> list[Target]:
        """Orders that are not paid yet, oldest first."""
        return self._targets("done = 0 order by seq")

    def open_between(self, pair: Pair, upto: int) -> list[Target]:
        """Open orders between two addresses that are paid once ``upto`` is, oldest first."""
        found = []
        for target in self._targets(
            "done = 0 and owner = ? and platform = ? and payer = ? and payee = ? order by seq", *pair
        ):
            if target.target > upto:
                break
            found.append(target)
        return found

    def next_settle(self) -> int | None:
        """When the next open order must be paid even if its channel goes on, Unix seconds."""
        row = self._run("select min(settle_at) as at from payment_channel_order where done = 0").fetchone()
        return None if row["at"] is None else int(row["at"])

    def due(self, now: float) -> list[Target]:
        """Open orders that must be paid now."""
        return self._targets("done = 0 and settle_at <= ? order by settle_at", now)

    def waiting_pairs(self) -> list[Target]:
        """The oldest open order of each pair of addresses."""
        return self._targets(
            "done = 0 and seq in (select min(seq) from payment_channel_order where done = 0 "
            "group by owner, platform, payer, payee)"
        )

    def last_target(self, pair: Pair) -> int:
        """The sum of all orders between two addresses."""
        found = self._targets("owner = ? and platform = ? and payer = ? and payee = ? order by seq desc limit 1", *pair)
        return found[0].target if found else 0

    def _targets(self, where: str, *arguments: Any) -> list[Target]:
        rows = self._run(f"select * from payment_channel_order where {where}", *arguments)  # noqa: S608  our own words
        return [msgspec.convert(_numbers(row, _TARGET_BIG, ("done",)), Target) for row in rows.fetchall()]

    # --- forgetting ---

    def end_covers(self, now: int) -> None:
        """Agreements that ran out and that nobody has ended."""
        self._run(
            "update payment_cover set live = 0, changed_at = ends_at + max(after_s, ?) "
            "where live = 1 and ends_at + max(after_s, ?) < ?",
            PAY_S,
            PAY_S,
            now,
        )

    def sweep(self, before: int, most: int = 500) -> bool:
        """Forget up to ``most`` rows of each kind that were over before Unix time ``before``; whether some may be left.

        What still counts stays: sums, the last order of each pair, and how far a payee has forgotten.
        """
        full = False
        for channel in self._channels("state = 'closed' and valid_until < ? limit ?", before, most):
            full = self._forget(channel) or full
        for channel in self._channels(
            "state <> 'closed' and role = 'Provider' and reserved = '0' and signed = '0' and created_at < ? limit ?",
            before,
            most,
        ):  # was announced and never seen
            self._drop_channel(channel)
        for table, key, where in _OVER:
            sql = f"delete from {table} where ({key}) in (select {key} from {table} where {where} limit ?)"  # noqa: S608
            full = self._run(sql, before, most).rowcount == most or full
        return full

    def _forget(self, channel: Channel) -> bool:
        at = (channel.owner, channel.chain_id, channel.vault, channel.payer)
        self._run(
            "insert into payment_channel_gone values (?, ?, ?, ?, ?) "
            "on conflict do update set nonce = max(nonce, excluded.nonce)",
            *at,
            channel.nonce,
        )
        self._drop_channel(channel)
        return True

    def _drop_channel(self, channel: Channel) -> None:
        self._run(
            "delete from payment_channel where owner = ? and chain_id = ? and vault = ? and channel_id = ?",
            channel.owner,
            channel.chain_id,
            channel.vault,
            channel.channel_id,
        )


_PAIR = "owner = ? and role = ? and platform = ? and payer = ? and payee = ?"
_OPEN_PAIR = f"state <> 'closed' and {_PAIR}"
_OVER = (
    ("payment_cover", "owner, agreement_id", "live = 0 and changed_at < ?"),
    ("payment_channel_request", "request_id", "state <> 'open' and created_at < ?"),
    (
        "payment_channel_order",
        "seq",
        "done = 1 and settle_at < ? and exists (select 1 from payment_channel_order later "
        "where later.owner = payment_channel_order.owner and later.platform = payment_channel_order.platform "
        "and later.payer = payment_channel_order.payer and later.payee = payment_channel_order.payee "
        "and later.seq > payment_channel_order.seq)",
    ),
)


def _counts(channel: Channel) -> int:
    """What a closed channel counts for: see :meth:`ChannelStore.claimed`."""
    return max(channel.signed, channel.claimed) if channel.role == "Requestor" else channel.claimed


_CHANNELS = Rows(
    "payment_channel",
    Channel,
    ("owner", "chain_id", "vault", "channel_id"),
    ("reserved", "valid_until", "claimed", "owed", "signed", "signature", "state", "close_signature"),
    dict.fromkeys(("reserved", "claimed", "owed", "signed"), (str, int)),
)
_TARGET_BIG = ("amount", "target")
_COVER_BIG = ("wanted", "least")


def _numbers(row: sqlite3.Row, big: Sequence[str], flags: Sequence[str] = ()) -> dict[str, Any]:
    values = dict(row)
    return values | {name: int(values[name]) for name in big} | {name: bool(values[name]) for name in flags}
