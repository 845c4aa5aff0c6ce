"""The node's memory: one SQLite file, one writer.

The event loop's thread owns the connection and every store function runs inline in it: a commit costs 0.05 ms
(``NORMAL``) to 0.30 ms (``FULL``) on a plain SSD, less than handing the work to a thread would. WAL mode; a crash loses
nothing that was committed with ``durable=True`` and at most the last moments of what was not.

What waits for the disk is the commit, so callers that come together may share one (:meth:`Database.grouped`): whatever is
asked for in one turn of the loop is written in one transaction, and nobody hears of his part before all is on the disk.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from shem.errors import Misconfigured

MEMORY = ":memory:"
MAX_GROUP = 128
"""Callers that share one transaction; more wait for the next turn, so that others get theirs in between."""

T = TypeVar("T")


class Database:
    """One SQLite file. Rows come as :class:`sqlite3.Row`."""

    def __init__(self, path: Path | str) -> None:
        """Open or create. Raises :class:`Misconfigured` when the file cannot be used."""
        self.path = path
        try:
            if path != MEMORY:
                # The database names keys and peers: nobody else on this machine needs to read it.
                os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            self.connection = sqlite3.connect(path, isolation_level=None, timeout=10)
            self.connection.row_factory = sqlite3.Row
            self.connection.execute("pragma journal_mode = wal")
            self.connection.execute("pragma foreign_keys = on")
            self.connection.execute("pragma synchronous = normal")
            # 16 MB instead of 4: a page that many commits touch is copied into the file, and synced, a quarter as often
            self.connection.execute("pragma wal_autocheckpoint = 4000")
            self.connection.execute("pragma cache_size = -16384")
            self.connection.execute(
                "create table if not exists schema_version (domain text primary key, version integer not null)"
            )
        except (OSError, sqlite3.Error) as error:
            raise Misconfigured(
                f"the database {path} cannot be opened: {error}",
                code="database_unusable",
                hint="check that the data directory is yours and that the disk is not full",
            ) from error
        self._durable = False
        self._depth = 0
        self._after_commit: list[Callable[[], None]] = []
        self._group: list[tuple[Callable[[], Any], asyncio.Future[Any]]] = []

    def migrate(self, domain: str, scripts: Sequence[str]) -> None:
        """Bring ``domain``'s tables up to date. Script *i* takes version *i* to *i + 1*; added, never edited."""
        row = self.connection.execute("select version from schema_version where domain = ?", (domain,)).fetchone()
        version = row["version"] if row else 0
        if version > len(scripts):
            raise Misconfigured(
                f"the database was written by a newer Shem ({domain} {version} > {len(scripts)})",
                code="database_newer",
                hint="install that version again, or choose another data directory",
            )
        for number, script in enumerate(scripts[version:], start=version + 1):
            with self.transaction(durable=True) as connection:
                for statement in _statements(script):
                    connection.execute(statement)
                connection.execute(
                    "insert or replace into schema_version values (?, ?)",
                    (domain, number),
                )

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """All or nothing. Inside another transaction it joins that one (and its durability).

        ``durable`` syncs the disk before it returns: for money, and for what is promised to a peer.
        Never await inside: the whole node shares this connection.
        """
        if self._depth:
            yield self.connection
            return
        if durable != self._durable:
            self.connection.execute(f"pragma synchronous = {'full' if durable else 'normal'}")
            self._durable = durable
        self.connection.execute("begin immediate")
        self._depth = 1
        self._after_commit = []
        try:
            yield self.connection
            self.connection.execute("commit")
        except BaseException:
            self._depth = 0
            self._after_commit = []
            if self.connection.in_transaction:  # a full disk may have ended it already
                self.connection.execute("rollback")
            raise
        self._depth = 0
        callbacks, self._after_commit = self._after_commit, []
        for callback in callbacks:
            callback()

    async def grouped(self, work: Callable[[], T]) -> T:
        """What ``work()`` gives, in a durable transaction that callers of the same turn of the loop share, in their order.

        An error of ``work`` undoes its own changes only and is raised here; an error of the commit is raised for all. A
        caller that is cancelled before its turn has asked for nothing.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        if not self._group:
            loop.call_soon(self._write_group)
        self._group.append((work, done))
        return await done

    def _write_group(self) -> None:
        group, self._group = self._group[:MAX_GROUP], self._group[MAX_GROUP:]
        if self._group:
            asyncio.get_running_loop().call_soon(self._write_group)
        outcomes: list[tuple[asyncio.Future[Any], Any, BaseException | None]] = []
        try:
            with self.transaction(durable=True):
                outcomes += [(done, *self._attempt(work)) for work, done in group if not done.done()]
        except BaseException as error:  # noqa: BLE001  the commit failed, or the power: that concerns everybody
            outcomes = [(done, None, error) for _, done in group]
        for done, result, failure in outcomes:
            if done.done():
                continue
            if failure is None:
                done.set_result(result)
            else:
                done.set_exception(failure)

    def _attempt(self, work: Callable[[], T]) -> tuple[T | None, Exception | None]:
        """(what ``work()`` gives, ``None``), or (``None``, why nothing of it remains)."""
        callbacks = len(self._after_commit)
        self.connection.execute("savepoint part")
        try:
            result, failure = work(), None
        except Exception as error:  # noqa: BLE001  a door: it is raised where it was asked, and harms no other
            self.connection.execute("rollback to part")
            del self._after_commit[callbacks:]
            result, failure = None, error
        self.connection.execute("release part")
        return result, failure

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Call back once the open transaction has committed (waking a long poll, say); at once when there is none."""
        if self._depth:
            self._after_commit.append(callback)
        else:
            callback()

    def close(self) -> None:
        """Fold the write-ahead log into the file and close."""
        self.connection.close()


def _statements(script: str) -> Iterator[str]:
    """Split on complete statements. ``executescript`` would commit the open transaction first."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        raise ValueError(f"unfinished statement: {statement!r}")
