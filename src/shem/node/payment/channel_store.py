"""What is remembered of payment channels: rows in, frozen values out. Callers open the transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from shem.node.db import Database
from shem.node.payment.channel import Channel, Cover

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
        self._put("payment_channel", channel, _CHANNEL_BIG)

    def channel(self, owner: str, channel_id: str) -> Channel | None:
        """By id."""
        return next(iter(self._channels("owner = ? and channel_id = ?", owner, channel_id)), None)

    def live_channels(self) -> list[Channel]:
        """Everybody's that are not closed, oldest first."""
        return self._channels("state <> 'closed' order by created_at, nonce")

    def channels(self, owner: str) -> list[Channel]:
        """All of an owner, closed ones too, oldest first."""
        return self._channels("owner = ? order by created_at, nonce", owner)

    def of_way(self, role: str, way: Way) -> list[Channel]:
        """Those between two nodes on one platform that are not closed, oldest first."""
        return self._channels(
            "state <> 'closed' and role = ? and owner = ? and peer_id = ? and platform = ? order by created_at, nonce",
            role,
            *way,
        )

    def between(self, platform: str, payer: str, payee: str) -> list[Channel]:
        """All there ever were between two addresses, oldest first."""
        return self._channels(
            "platform = ? and payer = ? and payee = ? order by created_at, nonce", platform, payer, payee
        )

    def known_of(self, owner: str, peer_id: str) -> int:
        """How many channels a peer has with us that are not closed."""
        return int(
            self._run(
                "select count(*) from payment_channel where state <> 'closed' and owner = ? and peer_id = ?",
                owner,
                peer_id,
            ).fetchone()[0]
        )

    def _channels(self, where: str, *arguments: Any) -> list[Channel]:
        rows = self._run(f"select * from payment_channel where {where}", *arguments)  # noqa: S608  our own words
        return [msgspec.convert(_numbers(row, _CHANNEL_BIG), Channel) for row in rows.fetchall()]

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
            return self._covers("live and role = ?", role)
        return self._covers("live and role = ? and owner = ? and peer_id = ? and platform = ?", role, *way)

    def covers_of(self, role: str, way: Way) -> list[Cover]:
        """Of every agreement of one way that there was."""
        return self._covers("role = ? and owner = ? and peer_id = ? and platform = ?", role, *way)

    def _covers(self, where: str, *arguments: Any) -> list[Cover]:
        rows = self._run(f"select * from payment_cover where {where}", *arguments)  # noqa: S608  our own words
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

    def last_target(self, platform: str, payer: str, payee: str) -> int:
        """The sum of all orders between two addresses."""
        found = self._targets(
            "platform = ? and payer = ? and payee = ? order by seq desc limit 1", platform, payer, payee
        )
        return found[0].target if found else 0

    def _targets(self, where: str, *arguments: Any) -> list[Target]:
        rows = self._run(f"select * from payment_channel_order where {where}", *arguments)  # noqa: S608  our own words
        return [msgspec.convert(_numbers(row, _TARGET_BIG, ("done",)), Target) for row in rows.fetchall()]


_CHANNEL_BIG = ("reserved", "claimed", "owed", "signed")
_TARGET_BIG = ("amount", "target")
_COVER_BIG = ("wanted", "least")


def _numbers(row: sqlite3.Row, big: Sequence[str], flags: Sequence[str] = ()) -> dict[str, Any]:
    values = dict(row)
    return values | {name: int(values[name]) for name in big} | {name: bool(values[name]) for name in flags}
