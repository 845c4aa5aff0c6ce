"""Values as rows: made once, changed in place, and only where they say that they change."""

from __future__ import annotations

import sqlite3

import msgspec
import pytest

from shem.node.payment.rows import Rows


class Thing(msgspec.Struct, frozen=True, kw_only=True):
    owner: str
    name: str
    kind: str
    amount: int
    note: int | None = None


ROWS = Rows("thing", Thing, ("owner", "name"), ("amount", "note"), {"amount": (str, int), "note": (str, int)})


@pytest.fixture
def connection():
    made = sqlite3.connect(":memory:")
    made.execute(
        "create table thing (owner, name, kind, amount text, note text, extra default 'x', primary key (owner, name))"
    )
    yield made
    made.close()


def everything(connection):
    return connection.execute("select owner, name, kind, amount, note, extra from thing order by rowid").fetchall()


def test_a_row_is_made_once_and_then_changed(connection):
    big = 2**90
    ROWS.save(connection, Thing(owner="a", name="one", kind="k", amount=1))
    ROWS.save(connection, Thing(owner="a", name="two", kind="k", amount=2, note=7))
    connection.execute("update thing set extra = 'kept'")
    ROWS.save(connection, Thing(owner="a", name="one", kind="other", amount=big, note=5))
    assert everything(connection) == [
        ("a", "one", "k", str(big), "5", "kept"),  # its kind never changes
        ("a", "two", "k", "2", "7", "kept"),
    ]
    ROWS.save(connection, Thing(owner="a", name="two", kind="k", amount=2))
    assert everything(connection)[1] == ("a", "two", "k", "2", None, "kept")


def test_what_is_added_is_new(connection):
    thing = Thing(owner="a", name="one", kind="k", amount=1)
    ROWS.add(connection, thing)
    with pytest.raises(sqlite3.IntegrityError):
        ROWS.add(connection, thing)


def test_rows_are_read_as_they_were_saved(connection):
    things = [Thing(owner="a", name=str(n), kind="k", amount=2**90 + n, note=n or None) for n in range(3)]
    for thing in things:
        ROWS.add(connection, thing)
    assert ROWS.find(connection, "owner = ? order by name", "a") == things
    assert ROWS.find(connection, "owner = ? order by name desc limit 1", "a") == things[2:]
    assert ROWS.one(connection, "name = ?", "1") == things[1]
    assert ROWS.one(connection, "name = ?", "9") is None
