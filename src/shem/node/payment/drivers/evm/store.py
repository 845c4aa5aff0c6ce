"""What the transaction manager remembers: intents, the signed attempts at them, and which chain they are for.

Sync functions over the node's database. An intent is one thing to be done on chain exactly once. Its nonce is given
once and never changes; attempts are signed bytes with that nonce and different fees, of which the chain can take one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Literal

import msgspec

from shem.node.db import Database

State = Literal["new", "sent", "mined", "final", "failed"]

MIGRATIONS = (
    """
create table evm_chain (chain_id integer primary key, genesis text not null);
create table evm_intent (
    id integer primary key,
    key text not null unique,
    chain_id integer not null,
    sender text not null,
    dst text not null,
    data blob not null,
    value text not null,
    state text not null default 'new',
    nonce integer,
    tx_hash text,
    block_number integer,
    block_hash text,
    gas_used integer,
    unique (chain_id, sender, nonce)
);
create index evm_intent_open on evm_intent (chain_id, sender, state);
create table evm_attempt (
    tx_hash text primary key,
    intent integer not null references evm_intent,
    raw blob not null,
    gas integer not null,
    max_fee integer not null,
    max_tip integer not null,
    signed_at real not null
);
create index evm_attempt_of on evm_attempt (intent);
create table evm_order (
    order_id text primary key,
    intent integer not null references evm_intent,
    platform text not null,
    payer text not null,
    payee text not null,
    amount text not null
);
create index evm_order_of on evm_order (intent);
""",
    # what others wait for goes first
    """
alter table evm_intent add column urgent integer not null default 0;
""",
    # an order waits for company, and may change calls
    """
create table evm_order_now (
    id integer primary key,
    order_id text not null unique,
    chain_id integer not null,
    intent integer references evm_intent,
    platform text not null,
    payer text not null,
    payee text not null,
    amount text not null,
    size integer not null default 1,
    calls integer not null default 1,
    made_at real
);
insert into evm_order_now (order_id, chain_id, intent, platform, payer, payee, amount)
    select order_id, chain_id, intent, platform, payer, payee, amount
    from evm_order join evm_intent on evm_intent.id = evm_order.intent order by evm_order.rowid;
drop table evm_order;
alter table evm_order_now rename to evm_order;
create index evm_order_of on evm_order (intent);
create index evm_order_waiting on evm_order (chain_id, payer) where intent is null;
""",
)

_INTENT = "id, key, dst, data, value, state, nonce, tx_hash, block_number, block_hash, gas_used"


class Intent(msgspec.Struct, frozen=True):
    """One row. ``tx_hash`` and what follows are of the attempt that was mined, as far as we know now."""

    id: int
    key: str
    dst: str
    data: bytes
    value: int
    state: State
    nonce: int | None
    tx_hash: str | None
    block_number: int | None
    block_hash: str | None
    gas_used: int | None


class Attempt(msgspec.Struct, frozen=True):
    """Signed bytes that may have been sent any number of times."""

    tx_hash: str
    intent: int
    raw: bytes
    gas: int
    max_fee: int
    max_tip: int
    signed_at: float


def pin_chain(db: Database, chain_id: int, first_block: str) -> str:
    """Hash of the chain's first block as it was when we first used it; now, if that was never."""
    query = "select genesis from evm_chain where chain_id = ?"
    row = db.connection.execute(query, (chain_id,)).fetchone()
    if row is None:
        with db.transaction(durable=True) as connection:
            connection.execute("insert into evm_chain values (?, ?)", (chain_id, first_block))
        return first_block
    return str(row["genesis"])


class IntentStore:
    """The rows of one account on one chain."""

    def __init__(self, connection: sqlite3.Connection, chain_id: int, sender: str) -> None:
        self._connection = connection
        self._account = (chain_id, sender)

    def add(
        self, connection: sqlite3.Connection, key: str, dst: str, data: bytes, value: int, urgent: bool = False
    ) -> int:
        """Note a new intent (or find the one that has this key already); gives its id."""
        connection.execute(
            "insert into evm_intent (key, chain_id, sender, dst, data, value, urgent) values (?, ?, ?, ?, ?, ?, ?)"
            " on conflict (key) do nothing",
            (key, *self._account, dst, data, str(value), int(urgent)),
        )
        row = connection.execute("select id from evm_intent where key = ?", (key,)).fetchone()
        return int(row["id"])

    def has_open_call(self, dst: str, data: bytes) -> bool:
        """Whether the same call is under way already."""
        row = self._connection.execute(
            "select 1 from evm_intent where chain_id = ? and sender = ? and dst = ? and data = ?"
            " and state in ('new', 'sent', 'mined') limit 1",
            (*self._account, dst, data),
        ).fetchone()
        return row is not None

    def calls(self, dst: str, data: bytes) -> list[Intent]:
        """Whenever it was made, the oldest first."""
        rows = self._connection.execute(
            f"select {_INTENT} from evm_intent where chain_id = ? and sender = ? and dst = ? and data = ? order by id",  # noqa: S608
            (*self._account, dst, data),
        )
        return [_intent(row) for row in rows]

    def has_open(self) -> bool:
        row = self._connection.execute(
            "select 1 from evm_intent where chain_id = ? and sender = ? and state in ('new', 'sent', 'mined') limit 1",
            self._account,
        ).fetchone()
        return row is not None

    def waiting(self, limit: int) -> list[Intent]:
        """Not signed yet, the urgent first, then the oldest."""
        rows = self._connection.execute(
            f"select {_INTENT} from evm_intent where chain_id = ? and sender = ? and state = 'new'"  # noqa: S608
            " order by urgent desc, id limit ?",
            (*self._account, limit),
        )
        return [_intent(row) for row in rows]

    def drop(self, intent: int) -> None:
        """As if it had never been asked for; only while it is ``new``: what has a nonce is for ever."""
        gone = self._connection.execute("delete from evm_intent where id = ? and state = 'new'", (intent,))
        assert gone.rowcount == 1

    def under_way(self) -> list[Intent]:
        """Signed and not final, in nonce order."""
        # With the plus: else all that ever had a nonce are looked at, in its order, instead of the few in these states.
        rows = self._connection.execute(
            f"select {_INTENT} from evm_intent where chain_id = ? and sender = ? and state in ('sent', 'mined')"  # noqa: S608
            " order by +nonce",
            self._account,
        )
        return [_intent(row) for row in rows]

    def attempts(self, intents: Sequence[int]) -> dict[int, list[Attempt]]:
        """All attempts at each, oldest first."""
        found: dict[int, list[Attempt]] = {intent: [] for intent in intents}
        marks = ",".join("?" * len(intents))
        rows = self._connection.execute(
            f"select * from evm_attempt where intent in ({marks}) order by signed_at, max_fee",  # noqa: S608
            tuple(intents),
        )
        for row in rows:
            found[row["intent"]].append(Attempt(*row))
        return found

    def next_nonce(self) -> int:
        """One above the highest that any intent of this account has; 0 when none has one."""
        row = self._connection.execute(
            "select max(nonce) as highest from evm_intent where chain_id = ? and sender = ?", self._account
        ).fetchone()
        return 0 if row["highest"] is None else int(row["highest"]) + 1

    def has_nonce(self, nonce: int) -> bool:
        """Whether an intent of this account was given it, whatever became of that."""
        row = self._connection.execute(
            "select 1 from evm_intent where chain_id = ? and sender = ? and nonce = ?", (*self._account, nonce)
        ).fetchone()
        return row is not None

    def give_nonce(self, intent: int, nonce: int) -> None:
        """Once, for ever."""
        done = self._connection.execute(
            "update evm_intent set nonce = ?, state = 'sent' where id = ? and nonce is null", (nonce, intent)
        )
        assert done.rowcount == 1

    def add_attempt(self, attempt: Attempt) -> None:
        self._connection.execute(
            "insert into evm_attempt values (?, ?, ?, ?, ?, ?, ?)",
            (
                attempt.tx_hash,
                attempt.intent,
                attempt.raw,
                attempt.gas,
                attempt.max_fee,
                attempt.max_tip,
                attempt.signed_at,
            ),
        )

    def note_mined(self, intent: Intent) -> None:
        """Store its state and where it was mined."""
        self._connection.execute(
            "update evm_intent set state = ?, tx_hash = ?, block_number = ?, block_hash = ?, gas_used = ? where id = ?",
            (intent.state, intent.tx_hash, intent.block_number, intent.block_hash, intent.gas_used, intent.id),
        )

    def note_vanished(self, intent: int) -> None:
        """Its block is gone: under way again."""
        self._connection.execute(
            "update evm_intent set state = 'sent', tx_hash = null, block_number = null, block_hash = null,"
            " gas_used = null where id = ? and state = 'mined'",
            (intent,),
        )


def intent_of(connection: sqlite3.Connection, intent: int) -> Intent:
    """Any account's; it must be there."""
    row = connection.execute(f"select {_INTENT} from evm_intent where id = ?", (intent,)).fetchone()  # noqa: S608
    return _intent(row)


def _intent(row: sqlite3.Row) -> Intent:
    values = dict(row)
    values["value"] = int(values["value"])
    return Intent(**values)
