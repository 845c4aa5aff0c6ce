"""What the node remembers of activities: on the provider's side *hosted* ones, on the requestor's side *rented* ones.

A provider's node keeps an event until the requestor's node has it for good; the requestor's node keeps the events of
the newest batches. Functions take a connection and belong into the caller's transaction. Times are whole microseconds
since 1970.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import cast

import msgspec

from shem.errors import NotFound
from shem.node.activity.events import Event
from shem.node.activity.lifecycle import Activity, Role, State

DOMAIN = "activity"

SCRIPTS = [
    """
create table hosted (
    activity_id text primary key,
    agreement_id text not null,
    owner text not null,
    peer text not null,
    app_session text,
    state text not null,
    target text,
    reason text,
    error_message text,
    usage text,
    usage_at real,
    created_us integer not null,
    destroy_us integer,             -- when the end was asked for
    ended_us integer,
    unit_id text not null default '',
    unit_seq integer not null default 0,    -- the highest report stored from that unit
    last_no integer not null default 0,
    acked_no integer not null default 0     -- the requestor's node has everything up to here
);
create index hosted_by_agreement on hosted (agreement_id);
create index hosted_alive on hosted (state) where state != 'Terminated';
create table hosted_batch (
    activity_id text not null references hosted on delete cascade,
    number integer not null,
    batch_id text not null,
    script text not null,
    size integer not null,
    handed integer not null default 0,      -- given to a unit: never again to another one
    command integer not null default 0,     -- the one under way, or the next
    finished integer not null default 0,
    output_bytes integer not null default 0,
    events integer not null default 0,
    primary key (activity_id, batch_id)
);
create table hosted_event (
    activity_id text not null references hosted on delete cascade,
    no integer not null,
    batch_id text not null,
    idx integer not null,
    at_us integer not null,
    body blob not null,
    primary key (activity_id, no)
);
create table rented (
    activity_id text primary key,
    agreement_id text not null,
    owner text not null,
    peer text not null,
    state text not null,
    target text,
    reason text,
    error_message text,
    usage text,
    usage_at real,
    created_us integer not null,
    ended_us integer,
    created integer not null default 0,     -- the provider's node knows of it
    lost integer not null default 0,        -- the provider's node is away
    unwanted integer not null default 0,    -- to be destroyed
    told integer not null default 0,        -- and the provider's node knows
    have_no integer not null default 0
);
create index rented_by_agreement on rented (agreement_id);
create index rented_by_peer on rented (peer);
create table rented_batch (
    activity_id text not null references rented on delete cascade,
    number integer not null,
    batch_id text primary key,
    script text not null,
    size integer not null,
    delivered integer not null default 0,
    started integer not null default 0,     -- how many commands have begun
    done integer not null default 0,        -- how many have finished
    finished integer not null default 0,
    output_bytes integer not null default 0
);
create index rented_batch_by_activity on rented_batch (activity_id, number);
create table rented_event (
    batch_id text not null references rented_batch on delete cascade,
    no integer not null,
    idx integer not null,
    at_us integer not null,
    body blob not null
);
create index rented_event_by_batch on rented_event (batch_id, no);
"""
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_us(moment: datetime) -> int:
    """Whole microseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def from_us(us: int) -> datetime:
    """The other way."""
    return _EPOCH + timedelta(microseconds=us)


def activity_of(row: sqlite3.Row, role: Role) -> Activity:
    """The value of a row of ``hosted`` or ``rented``."""
    usage = row["usage"]
    lost = role == "Requestor" and row["lost"] and row["state"] != "Terminated"
    return Activity(
        activity_id=row["activity_id"],
        agreement_id=row["agreement_id"],
        role=role,
        owner=row["owner"],
        peer=row["peer"],
        state="Unresponsive" if lost else cast(State, row["state"]),
        target=row["target"],
        reason="the provider's node is away" if lost else row["reason"],
        error_message=row["error_message"],
        usage=None if usage is None else tuple(json.loads(usage)),
        usage_at=row["usage_at"],
        created_at=from_us(row["created_us"]),
        ended_at=None if row["ended_us"] is None else from_us(row["ended_us"]),
    )


def _table(role: Role) -> str:
    return "hosted" if role == "Provider" else "rented"


def find(connection: sqlite3.Connection, role: Role, activity_id: str) -> sqlite3.Row | None:
    """The row of an activity."""
    sql = f"select * from {_table(role)} where activity_id = ?"  # noqa: S608
    return cast("sqlite3.Row | None", connection.execute(sql, (activity_id,)).fetchone())


def get(connection: sqlite3.Connection, role: Role, activity_id: str) -> sqlite3.Row:
    """As :func:`find`. Raises :class:`NotFound` (``no_activity``)."""
    row = find(connection, role, activity_id)
    if row is None:
        raise NotFound(f"there is no activity {activity_id[:64]!r} here", code="no_activity")
    return row


def of_agreement(connection: sqlite3.Connection, role: Role, agreement_id: str) -> list[sqlite3.Row]:
    """All activities of an agreement, oldest first."""
    sql = f"select * from {_table(role)} where agreement_id = ? order by created_us, activity_id"  # noqa: S608
    return connection.execute(sql, (agreement_id,)).fetchall()


def alive(connection: sqlite3.Connection, role: Role) -> list[sqlite3.Row]:
    """All activities that have not ended."""
    sql = f"select * from {_table(role)} where state != 'Terminated' order by created_us"  # noqa: S608
    return connection.execute(sql).fetchall()


def set_state(
    connection: sqlite3.Connection,
    role: Role,
    activity_id: str,
    state: State,
    target: str | None,
    reason: str | None,
    error_message: str | None,
    now_us: int,
) -> None:
    """Write a state (the lifecycle has been asked)."""
    connection.execute(
        f"update {_table(role)} set state = ?, target = ?, reason = ?, error_message = ?,"  # noqa: S608
        " ended_us = case when ? = 'Terminated' then ? else ended_us end where activity_id = ?",
        (state, target, reason, error_message, state, now_us, activity_id),
    )


def set_usage(
    connection: sqlite3.Connection, role: Role, activity_id: str, counters: Iterable[float], at: float
) -> None:
    """Write the newest counters."""
    connection.execute(
        f"update {_table(role)} set usage = ?, usage_at = ? where activity_id = ?",  # noqa: S608
        (json.dumps(list(counters)), at, activity_id),
    )


def sweep(connection: sqlite3.Connection, before_us: int) -> int:
    """Forget output of activities that ended before then; how many activities that were.

    The activities themselves stay, with their final usage: bills refer to them.
    """
    ended = connection.execute(
        "delete from rented_batch where activity_id in"
        " (select activity_id from rented where state = 'Terminated' and ended_us < ?)",
        (before_us,),
    ).rowcount
    connection.execute(
        "delete from hosted_batch where activity_id in"
        " (select activity_id from hosted where state = 'Terminated' and ended_us < ?)",
        (before_us,),
    )
    connection.execute(
        "delete from hosted_event where activity_id in"
        " (select activity_id from hosted where state = 'Terminated' and ended_us < ?)",
        (before_us,),
    )
    return ended


# hosted: the provider's side


def add_hosted(
    connection: sqlite3.Connection,
    *,
    activity_id: str,
    agreement_id: str,
    owner: str,
    peer: str,
    app_session: str | None,
    created_us: int,
) -> None:
    """A new activity, in state New."""
    connection.execute(
        "insert into hosted (activity_id, agreement_id, owner, peer, app_session, state, created_us)"
        " values (?, ?, ?, ?, ?, 'New', ?)",
        (activity_id, agreement_id, owner, peer, app_session, created_us),
    )


def newest_provider_event_us(connection: sqlite3.Connection) -> int:
    """The time of the newest event that a provider agent has been or will be told."""
    row = connection.execute("select max(max(created_us), max(coalesce(destroy_us, 0))) from hosted").fetchone()
    return int(row[0] or 0)


class ProviderEventRow(msgspec.Struct, frozen=True):
    """An event for the provider agent."""

    activity_id: str
    agreement_id: str
    at_us: int
    destroy: bool


def provider_events(
    connection: sqlite3.Connection, owner: str, session: str | None, after_us: int, limit: int, *, pending: bool
) -> list[ProviderEventRow]:
    """Creations and ends strictly after ``after_us``, oldest first; with ``pending`` the open ends before it instead."""
    side = "<=" if pending else ">"
    rows = connection.execute(
        "select activity_id, agreement_id, at_us, destroy from ("  # noqa: S608
        " select activity_id, agreement_id, created_us at_us, 0 destroy, app_session from hosted"
        "  where owner = :owner and state != 'Terminated' and destroy_us is null and not :pending"
        " union all"
        " select activity_id, agreement_id, destroy_us, 1, app_session from hosted"
        "  where owner = :owner and state != 'Terminated' and destroy_us is not null)"
        f" where at_us {side} :after and (:session is null or app_session = :session) order by at_us limit :limit",
        {"owner": owner, "session": session, "after": after_us, "limit": limit, "pending": pending},
    )
    return [ProviderEventRow(r["activity_id"], r["agreement_id"], r["at_us"], bool(r["destroy"])) for r in rows]


def add_event(connection: sqlite3.Connection, activity_id: str, event: Event) -> None:
    """Append to the events of a hosted activity."""
    connection.execute(
        "insert into hosted_event values (?, ?, ?, ?, ?, ?)",
        (activity_id, event.no, event.batch_id, event.index, event.at_us, event.body),
    )


def events_to_push(
    connection: sqlite3.Connection, activity_id: str, after_no: int, max_bytes: int, max_events: int
) -> list[Event]:
    """The next events for the requestor's node: at least one where there is one, else within the bounds."""
    found: list[Event] = []
    size = 0
    for row in connection.execute(
        "select no, batch_id, idx, at_us, body from hosted_event where activity_id = ? and no > ? order by no limit ?",
        (activity_id, after_no, max_events),
    ):
        size += len(row["body"]) + 100
        if found and size > max_bytes:
            break
        found.append(Event(row["no"], row["batch_id"], row["idx"], row["at_us"], row["body"]))
    return found


def acknowledge(connection: sqlite3.Connection, activity_id: str, no: int) -> None:
    """The requestor's node has everything up to ``no`` for good: forget it here."""
    connection.execute("delete from hosted_event where activity_id = ? and no <= ?", (activity_id, no))
    connection.execute("update hosted set acked_no = max(acked_no, ?) where activity_id = ?", (no, activity_id))


def renumber(connection: sqlite3.Connection, activity_id: str, base: int, no: int) -> None:
    """The requestor's node has events up to ``no``, where this node remembered only ``base`` when it started (it lost its
    last moments with the power): what has happened since goes behind them."""
    connection.execute("delete from hosted_event where activity_id = ? and no <= ?", (activity_id, base))
    connection.execute("update hosted_event set no = -(no + ?) where activity_id = ?", (no - base, activity_id))
    connection.execute("update hosted_event set no = -no where activity_id = ?", (activity_id,))
    connection.execute(
        "update hosted set acked_no = ?, last_no = last_no + ? where activity_id = ?", (no, no - base, activity_id)
    )


def to_resume(connection: sqlite3.Connection) -> list[sqlite3.Row]:
    """Hosted activities that live, or have events that the requestor's node lacks."""
    return connection.execute("select * from hosted where state != 'Terminated' or acked_no < last_no").fetchall()


def unfinished_batches(connection: sqlite3.Connection, activity_id: str) -> list[sqlite3.Row]:
    """Batches of a hosted activity that have not finished, in order."""
    return connection.execute(
        "select * from hosted_batch where activity_id = ? and finished = 0 order by number", (activity_id,)
    ).fetchall()


# rented: the requestor's side


def add_rented(
    connection: sqlite3.Connection,
    *,
    activity_id: str,
    agreement_id: str,
    owner: str,
    peer: str,
    created_us: int,
) -> None:
    """A new activity, in state New."""
    connection.execute(
        "insert into rented (activity_id, agreement_id, owner, peer, state, created_us) values (?, ?, ?, ?, 'New', ?)",
        (activity_id, agreement_id, owner, peer, created_us),
    )


def of_peer(connection: sqlite3.Connection, peer: str) -> list[sqlite3.Row]:
    """Rented activities about which there is something left to say to that provider's node."""
    return connection.execute(
        "select * from rented where peer = ? and (state != 'Terminated' or (unwanted = 1 and told = 0))"
        " order by created_us",
        (peer,),
    ).fetchall()


def peers_with_rented(connection: sqlite3.Connection) -> list[str]:
    """Providers' nodes that :func:`of_peer` has something for."""
    rows = connection.execute(
        "select distinct peer from rented where state != 'Terminated' or (unwanted = 1 and told = 0)"
    )
    return [row["peer"] for row in rows]


def add_batch(
    connection: sqlite3.Connection, activity_id: str, batch_id: str, script: str, size: int, *, keep: int
) -> None:
    """A new batch. Finished ones older than the newest ``keep`` are forgotten, with their output."""
    row = connection.execute(
        "select coalesce(max(number), 0) from rented_batch where activity_id = ?", (activity_id,)
    ).fetchone()
    number = int(row[0]) + 1
    connection.execute(
        "insert into rented_batch (activity_id, number, batch_id, script, size) values (?, ?, ?, ?, ?)",
        (activity_id, number, batch_id, script, size),
    )
    connection.execute(
        "delete from rented_batch where activity_id = ? and number <= ? and finished = 1", (activity_id, number - keep)
    )


def undelivered(connection: sqlite3.Connection, activity_id: str) -> sqlite3.Row | None:
    """The first batch that the provider's node has not confirmed."""
    return cast(
        "sqlite3.Row | None",
        connection.execute(
            "select * from rented_batch where activity_id = ? and delivered = 0 order by number limit 1", (activity_id,)
        ).fetchone(),
    )


def batch(connection: sqlite3.Connection, activity_id: str, batch_id: str) -> sqlite3.Row:
    """Raises :class:`NotFound` (``no_batch``)."""
    row = connection.execute(
        "select * from rented_batch where batch_id = ? and activity_id = ?", (batch_id, activity_id)
    ).fetchone()
    if row is None:
        raise NotFound(f"activity {activity_id} has no batch {batch_id[:64]!r} (any more)", code="no_batch")
    return cast(sqlite3.Row, row)


def batch_events(
    connection: sqlite3.Connection, batch_id: str, *, after_no: int = 0, index: int | None = None, limit: int = -1
) -> Iterator[Event]:
    """Events of a batch in order, all or those of one command."""
    for row in connection.execute(
        "select no, idx, at_us, body from rented_event where batch_id = ? and no > ? and (? is null or idx = ?)"
        " order by no limit ?",
        (batch_id, after_no, index, index, limit),
    ):
        yield Event(row["no"], batch_id, row["idx"], row["at_us"], row["body"])
