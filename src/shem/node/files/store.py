"""Which files the spool holds: published ones by the hash of their content, inboxes by a random name."""

from __future__ import annotations

import sqlite3
from typing import Literal, cast

DOMAIN = "files"

SCRIPTS = [
    """
create table file (
    file_id text primary key,
    kind text not null,             -- published, inbox
    owner text not null,
    size integer,                   -- null: an inbox that nobody has filled
    sha3 text,
    used_us integer not null
);
create table file_holder (          -- how often each owner has published it
    file_id text not null references file on delete cascade,
    owner text not null,
    count integer not null,
    primary key (file_id, owner)
);
"""
]

Kind = Literal["published", "inbox"]


def find(connection: sqlite3.Connection, file_id: str) -> sqlite3.Row | None:
    """The row of a file."""
    return cast("sqlite3.Row | None", connection.execute("select * from file where file_id = ?", (file_id,)).fetchone())


def all_files(connection: sqlite3.Connection) -> list[sqlite3.Row]:
    """Every row."""
    return connection.execute("select * from file").fetchall()


def total_bytes(connection: sqlite3.Connection) -> int:
    """What all complete files take."""
    return int(connection.execute("select coalesce(sum(size), 0) from file").fetchone()[0])


def count_inboxes(connection: sqlite3.Connection) -> int:
    """All inboxes, filled or not."""
    return int(connection.execute("select count(*) from file where kind = 'inbox'").fetchone()[0])


def add_published(connection: sqlite3.Connection, file_id: str, owner: str, size: int, now_us: int) -> None:
    """One more reference of ``owner`` to this content."""
    connection.execute(
        "insert into file values (?, 'published', ?, ?, ?, ?) on conflict (file_id) do update set used_us = ?",
        (file_id, owner, size, file_id, now_us, now_us),
    )
    connection.execute(
        "insert into file_holder values (?, ?, 1) on conflict (file_id, owner) do update set count = count + 1",
        (file_id, owner),
    )


def add_inbox(connection: sqlite3.Connection, file_id: str, owner: str, now_us: int) -> None:
    """An empty inbox."""
    connection.execute("insert into file values (?, 'inbox', ?, null, null, ?)", (file_id, owner, now_us))


def fill_inbox(connection: sqlite3.Connection, file_id: str, size: int, sha3: str, now_us: int) -> bool:
    """The content has arrived; ``False`` when the inbox is gone or was filled meanwhile."""
    return (
        connection.execute(
            "update file set size = ?, sha3 = ?, used_us = ? where file_id = ? and size is null",
            (size, sha3, now_us, file_id),
        ).rowcount
        == 1
    )


def owners(connection: sqlite3.Connection, row: sqlite3.Row) -> tuple[str, ...]:
    """Whose file it is: of all who hold a reference to published content."""
    if row["kind"] == "inbox":
        return (row["owner"],)
    held = connection.execute("select owner from file_holder where file_id = ?", (row["file_id"],))
    return tuple(holder["owner"] for holder in held)


def touch(connection: sqlite3.Connection, file_id: str, now_us: int) -> None:
    """It has been read."""
    connection.execute("update file set used_us = ? where file_id = ?", (now_us, file_id))


def release(connection: sqlite3.Connection, file_id: str, owner: str) -> tuple[bool, bool]:
    """Give up one reference of ``owner``: (whether there was one, whether the content is now nobody's)."""
    row = find(connection, file_id)
    if row is None:
        return False, False
    if row["kind"] == "inbox":
        if row["owner"] != owner:
            return False, False
    else:
        held = connection.execute(
            "update file_holder set count = count - 1 where file_id = ? and owner = ?", (file_id, owner)
        ).rowcount
        if not held:
            return False, False
        connection.execute("delete from file_holder where file_id = ? and count <= 0", (file_id,))
        if connection.execute("select 1 from file_holder where file_id = ?", (file_id,)).fetchone():
            return True, False
    forget(connection, file_id)
    return True, True


def forget(connection: sqlite3.Connection, file_id: str) -> None:
    """Remove a row."""
    connection.execute("delete from file where file_id = ?", (file_id,))


def unused_since(connection: sqlite3.Connection, before_us: int) -> list[str]:
    """Files that nobody has used since then."""
    rows = connection.execute("select file_id from file where used_us < ?", (before_us,))
    return [row["file_id"] for row in rows]
