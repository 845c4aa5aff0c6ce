"""What the chain remembers: state, blocks, transactions, logs, in one SQLite file.

State is py-evm's own content-addressed trie (a node's key is the hash of its value), so old states stay readable and
values never change: a small read cache in front needs no invalidation. Blocks, transactions and logs are rows of ours,
keyed by block number: a reorg deletes the rows above the fork and nothing else, and a restart has nothing to rebuild.
Writes of one block are one SQLite transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eth.db.backends.base import BaseDB

from shem.errors import Misconfigured

CACHED_NODES = 20_000
"""Trie nodes kept in memory: about 10 MB at most."""

_SCHEMA = """
create table if not exists node (key blob primary key, value blob not null) without rowid;
create table if not exists meta (name text primary key, value text not null);
create table if not exists block (
    number integer primary key, hash blob not null unique, header blob not null, timestamp integer not null
);
create table if not exists tx (
    hash blob primary key, block integer not null, position integer not null, raw blob not null,
    body text not null, receipt text not null
);
create unique index if not exists tx_by_block on tx (block, position);
create table if not exists log (
    block integer not null, position integer not null, address text not null, topic0 text, topic1 text, topic2 text,
    topic3 text, body text not null, primary key (block, position)
) without rowid;
create index if not exists log_by_address on log (address, topic0, block);
"""


class StateNodes(BaseDB):  # type: ignore[misc]
    """py-evm's key-value store over the ``node`` table."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._cache: OrderedDict[bytes, bytes] = OrderedDict()

    def __getitem__(self, key: bytes) -> bytes:
        value = self._cache.get(key)
        if value is not None:
            self._cache.move_to_end(key)
            return value
        row = self._connection.execute("select value from node where key = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        self._remember(key, row[0])
        return bytes(row[0])

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._connection.execute("insert or replace into node values (?, ?)", (key, value))
        self._remember(key, value)

    def __delitem__(self, key: bytes) -> None:
        """Nodes are kept: an older state, or a block mined again after a reorg, may share them."""

    def _exists(self, key: bytes) -> bool:
        try:
            self[key]
        except KeyError:
            return False
        return True

    def __iter__(self) -> Iterator[bytes]:
        return (row[0] for row in self._connection.execute("select key from node"))

    def __len__(self) -> int:
        count: int = self._connection.execute("select count(*) from node").fetchone()[0]
        return count

    def _remember(self, key: bytes, value: bytes) -> None:
        self._cache[key] = value
        self._cache.move_to_end(key)
        if len(self._cache) > CACHED_NODES:
            self._cache.popitem(last=False)

    def forget(self) -> None:
        """Drop the cache (after a rollback: it may hold what was never written)."""
        self._cache.clear()


class Store:
    """Rows in and out; decides nothing."""

    def __init__(self, path: Path) -> None:
        """Opens or creates ``path``. Raises :class:`Misconfigured` when another process runs on it."""
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=0.1)
        try:
            # One process owns a chain: the lock says so, and spares the shared-memory file of the log.
            self._connection.execute("pragma locking_mode = exclusive")
            self._connection.execute("pragma journal_mode = wal")
            self._connection.execute("pragma synchronous = normal")
            self._connection.executescript(_SCHEMA)
            self._connection.execute("begin immediate")
            self._connection.execute("commit")
        except sqlite3.OperationalError as error:
            self._connection.close()
            raise Misconfigured(
                f"the chain in {path} cannot be opened: {error}",
                code="chain_in_use",
                hint="another devnet chain may run on this directory; choose another one",
            ) from error
        self.nodes = StateNodes(self._connection)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing: the state and the rows of one block."""
        self._connection.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._connection.execute("rollback")
            self.nodes.forget()
            raise
        self._connection.execute("commit")

    def meta(self, name: str) -> str | None:
        row = self._connection.execute("select value from meta where name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_meta(self, name: str, value: str) -> None:
        self._connection.execute("insert or replace into meta values (?, ?)", (name, value))

    def add_block(self, number: int, block_hash: bytes, header: bytes, timestamp: int) -> None:
        self._connection.execute("insert into block values (?, ?, ?, ?)", (number, block_hash, header, timestamp))

    def add_transaction(
        self,
        number: int,
        position: int,
        tx_hash: bytes,
        raw: bytes,
        body: dict[str, Any],
        receipt: dict[str, Any],
    ) -> None:
        """``body`` and ``receipt`` are kept as the JSON that callers will get."""
        self._connection.execute(
            "insert into tx values (?, ?, ?, ?, ?, ?)",
            (tx_hash, number, position, raw, json.dumps(body), json.dumps(receipt)),
        )
        for log in receipt["logs"]:
            topics = [*log["topics"], None, None, None, None][:4]
            self._connection.execute(
                "insert into log values (?, ?, ?, ?, ?, ?, ?, ?)",
                (number, int(log["logIndex"], 16), log["address"], *topics, json.dumps(log)),
            )

    def head(self) -> tuple[int, bytes] | None:
        """(number, header) of the last block; ``None`` before genesis."""
        row = self._connection.execute("select number, header from block order by number desc limit 1").fetchone()
        return None if row is None else (row[0], row[1])

    def header(self, number: int) -> bytes | None:
        row = self._connection.execute("select header from block where number = ?", (number,)).fetchone()
        return None if row is None else bytes(row[0])

    def number_of(self, block_hash: bytes) -> int | None:
        row = self._connection.execute("select number from block where hash = ?", (block_hash,)).fetchone()
        return None if row is None else int(row[0])

    def hashes_below(self, number: int, count: int) -> Iterator[bytes]:
        """Hashes of the blocks before ``number``, newest first."""
        # Read on first use (few transactions ask) and at once: an open cursor would keep the file open after close().
        query = "select hash from block where number < ? order by number desc limit ?"
        for row in self._connection.execute(query, (number, count)).fetchall():
            yield bytes(row[0])

    def last_block_with_transactions(self) -> int:
        row = self._connection.execute("select max(block) from tx").fetchone()
        return int(row[0] or 0)

    def has_transaction(self, tx_hash: bytes) -> bool:
        return self._connection.execute("select 1 from tx where hash = ?", (tx_hash,)).fetchone() is not None

    def body(self, tx_hash: bytes) -> dict[str, Any] | None:
        return self._json("select body from tx where hash = ?", tx_hash)

    def receipt(self, tx_hash: bytes) -> dict[str, Any] | None:
        return self._json("select receipt from tx where hash = ?", tx_hash)

    def _json(self, query: str, tx_hash: bytes) -> dict[str, Any] | None:
        row = self._connection.execute(query, (tx_hash,)).fetchone()
        if row is None:
            return None
        loaded: dict[str, Any] = json.loads(row[0])
        return loaded

    def transactions_of(self, number: int) -> list[tuple[bytes, dict[str, Any]]]:
        """(hash, body) in order."""
        rows = self._connection.execute("select hash, body from tx where block = ? order by position", (number,))
        return [(row[0], json.loads(row[1])) for row in rows]

    def receipts_of(self, number: int) -> list[dict[str, Any]]:
        rows = self._connection.execute("select receipt from tx where block = ? order by position", (number,))
        return [json.loads(row[0]) for row in rows]

    def raw_above(self, number: int) -> list[bytes]:
        """Signed bytes of all transactions in blocks above ``number``, oldest first."""
        rows = self._connection.execute("select raw from tx where block > ? order by block, position", (number,))
        return [bytes(row[0]) for row in rows]

    def logs(
        self,
        low: int,
        high: int,
        addresses: Sequence[str],
        topics: Sequence[Sequence[str] | None],
        limit: int,
    ) -> list[dict[str, Any]]:
        """Logs of blocks ``low..high``; an empty ``addresses`` or a ``None`` topic matches everything."""
        where, values = ["block between ? and ?"], [low, high]
        arguments: list[object] = list(values)
        if addresses:
            where.append(f"address in ({','.join('?' * len(addresses))})")
            arguments += addresses
        for place, choice in enumerate(topics):
            if choice is None:
                where.append(f"topic{place} is not null")
            else:
                where.append(f"topic{place} in ({','.join('?' * len(choice))})")
                arguments += choice
        query = f"select body from log where {' and '.join(where)} order by block, position limit ?"  # noqa: S608
        return [json.loads(row[0]) for row in self._connection.execute(query, (*arguments, limit))]

    def cut_above(self, number: int) -> None:
        """Forget the blocks above ``number``; their state nodes stay."""
        self._connection.execute("delete from log where block > ?", (number,))
        self._connection.execute("delete from tx where block > ?", (number,))
        self._connection.execute("delete from block where number > ?", (number,))

    def close(self) -> None:
        self._connection.close()
