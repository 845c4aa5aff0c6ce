"""Which networks there are. Kept over a restart, like the agreements and activities that use them."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from shem.node.vpn.lifecycle import Member, Network
from shem.terms.ids import NodeId

DOMAIN = "vpn"

SCRIPTS = [
    """
create table vpn_network (
    network_id text primary key,
    owner text not null,
    ip text not null,
    gateway text not null,
    used_us integer not null        -- when it was last changed
);
create index vpn_network_owner on vpn_network (owner, used_us);
create table vpn_address (
    seq integer primary key,
    network_id text not null references vpn_network on delete cascade,
    ip text not null,
    node_id text,                   -- null: the requestor's own
    unique (network_id, node_id, ip)
);
"""
]


def save(connection: sqlite3.Connection, before: Network | None, after: Network, now_us: int) -> None:
    """What has changed from ``before`` to ``after`` (``None``: it is new)."""
    connection.execute(
        "insert into vpn_network values (?, ?, ?, ?, ?) on conflict (network_id) do update set used_us = excluded.used_us",
        (after.network_id, after.owner, after.ip, after.gateway, now_us),
    )
    had = set() if before is None else set(_rows(before))
    has = _rows(after)
    connection.executemany(
        "delete from vpn_address where network_id = ? and node_id is ? and ip = ?", list(had - set(has))
    )
    connection.executemany(
        "insert into vpn_address (network_id, node_id, ip) values (?, ?, ?)", [row for row in has if row not in had]
    )


def _rows(network: Network) -> list[tuple[str, str | None, str]]:
    own: list[tuple[str, str | None, str]] = [(network.network_id, None, ip) for ip in network.addresses]
    return own + [(network.network_id, member.node_id, member.ip) for member in network.nodes]


def delete(connection: sqlite3.Connection, network_ids: Sequence[str]) -> None:
    """All that is known of them."""
    connection.executemany("delete from vpn_network where network_id = ?", [(one,) for one in network_ids])


def find(connection: sqlite3.Connection, network_id: str, owner: str) -> Network | None:
    """One network of this owner."""
    row = connection.execute(
        "select * from vpn_network where network_id = ? and owner = ?", (network_id, owner)
    ).fetchone()
    return None if row is None else _network(connection, row)


def of_owner(connection: sqlite3.Connection, owner: str) -> list[Network]:
    """All of an owner, oldest first."""
    rows = connection.execute("select * from vpn_network where owner = ? order by rowid", (owner,)).fetchall()
    return [_network(connection, row) for row in rows]


def count(connection: sqlite3.Connection, owner: str) -> int:
    """How many an owner has."""
    return int(connection.execute("select count(*) from vpn_network where owner = ?", (owner,)).fetchone()[0])


def unused_since(connection: sqlite3.Connection, owner: str, before_us: int) -> list[str]:
    """Ids of an owner's networks that have not changed since then."""
    rows = connection.execute(
        "select network_id from vpn_network where owner = ? and used_us < ?", (owner, before_us)
    ).fetchall()
    return [str(row["network_id"]) for row in rows]


def _network(connection: sqlite3.Connection, row: sqlite3.Row) -> Network:
    found = connection.execute(
        "select ip, node_id from vpn_address where network_id = ? order by seq", (row["network_id"],)
    ).fetchall()
    return Network(
        network_id=row["network_id"],
        owner=NodeId(row["owner"]),
        ip=row["ip"],
        gateway=row["gateway"],
        addresses=tuple(one["ip"] for one in found if one["node_id"] is None),
        nodes=tuple(Member(NodeId(one["node_id"]), one["ip"]) for one in found if one["node_id"] is not None),
    )
