"""One commit for callers that come together: each gets what its own part did, and no part harms another."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shem.node.db import MAX_GROUP, Database


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "node.db")
    made.migrate("test", ["create table note (id integer primary key, text text not null);"])
    yield made
    made.close()


def add(db: Database, number: int, told: list[int]) -> Callable[[], int]:
    def work() -> int:
        with db.transaction(durable=True):
            db.connection.execute("insert into note values (?, 'x')", (number,))
            db.after_commit(lambda: told.append(number))
        return number

    return work


def numbers(db: Database) -> list[int]:
    return [row["id"] for row in db.connection.execute("select id from note order by rowid")]


def counting(db: Database) -> list[str]:
    said: list[str] = []
    db.connection.set_trace_callback(said.append)
    return said


async def test_callers_of_one_turn_share_a_commit(db):
    told: list[int] = []
    said = counting(db)
    done = await asyncio.gather(*(db.grouped(add(db, number, told)) for number in range(10)))
    assert done == told == numbers(db) == list(range(10))
    assert [s.lower() for s in said].count("commit") == 1


async def test_a_failure_undoes_its_own_part_alone(db):
    told: list[int] = []

    def bad() -> None:
        add(db, 100, told)()
        raise ValueError("changed its mind")

    parts = [db.grouped(add(db, 1, told)), db.grouped(bad), db.grouped(add(db, 2, told))]
    first, failed, last = await asyncio.gather(*parts, return_exceptions=True)
    assert (first, last) == (1, 2)
    assert isinstance(failed, ValueError)
    assert told == numbers(db) == [1, 2]


async def test_nobody_hears_of_success_when_the_commit_fails(db):
    told: list[int] = []
    db.connection.execute("create table parent (id integer primary key)")
    db.connection.execute("create table child (id integer references parent deferrable initially deferred)")

    def orphan() -> None:
        db.connection.execute("insert into child values (7)")  # found out at the commit

    parts = [db.grouped(add(db, 1, told)), db.grouped(orphan)]
    results = await asyncio.gather(*parts, return_exceptions=True)
    assert [type(result) for result in results] == [sqlite3.IntegrityError] * 2
    assert told == numbers(db) == []
    assert await db.grouped(add(db, 2, told)) == 2  # and life goes on


async def test_who_gives_up_in_time_has_asked_for_nothing(db):
    told: list[int] = []
    async with asyncio.TaskGroup() as group:
        kept = group.create_task(db.grouped(add(db, 1, told)))
        dropped = group.create_task(db.grouped(add(db, 2, told)))
        await asyncio.sleep(0)  # both have asked, nothing is written yet
        dropped.cancel()
    assert (kept.result(), numbers(db)) == (1, [1])


async def test_a_group_has_a_limit(db):
    said = counting(db)
    told: list[int] = []
    await asyncio.gather(*(db.grouped(add(db, number, told)) for number in range(2 * MAX_GROUP + 1)))
    assert told == list(range(2 * MAX_GROUP + 1))
    assert [s.lower() for s in said].count("commit") == 3
