"""What a vault was asked to do, as rows: written in the asker's transaction, kept until the chain's word is final.

A row waits, becomes an entry of a call (an intent of the transaction manager), and ends ``done`` or ``failed``. A row
goes back to waiting only when its call is known never to have happened: it was never signed, or it finally reverted.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Literal

import msgspec

from shem.node.payment.drivers.evm import vault
from shem.node.payment.drivers.evm.vault import ChannelKey, Claim, Reservation

Kind = Literal["deposit", "withdraw", "reserve", "extend", "settle", "close", "release", "redeem"]
State = Literal["waiting", "called", "done", "failed"]

MIGRATIONS = (
    """
create table vault_request (
    id integer primary key,
    request_id text not null unique,
    chain_id integer not null,
    vault text not null,
    account text not null,
    kind text not null,
    payer text not null,
    payee text not null,
    signer text not null,
    nonce integer not null,
    amount text not null,
    valid_until integer not null,
    signature blob not null,
    made_at real not null,
    state text not null default 'waiting',
    intent integer references evm_intent,
    place integer not null default 0,
    size integer not null,
    calls integer not null default 0,
    refusals integer not null default 0,
    detail text not null default ''
);
create index vault_request_open on vault_request (chain_id, vault, state, account, kind);
create index vault_request_call on vault_request (intent);
create table vault_seen (
    chain_id integer not null,
    vault text not null,
    channel blob not null,
    since integer not null,
    primary key (chain_id, vault, channel)
) without rowid;
""",
    # what each entry moved, as its events say
    """
alter table vault_request add column moved text not null default '0';
""",
)

_COLUMNS = (
    "id, request_id, account, kind, payer, payee, signer, nonce, amount, valid_until, signature, made_at, state, intent,"
    " size, calls, refusals, detail"
)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One row. Which of the fields mean something depends on ``kind``."""

    id: int = 0
    request_id: str
    account: str
    """Who sends the transaction: the payer, the payee that redeems, or who redeems for it."""
    kind: Kind
    payer: str
    payee: str = ""
    """The receiver of a withdrawal."""
    signer: str = ""
    nonce: int = 0
    amount: int = 0
    """To move, to reserve, to add, or in all."""
    valid_until: int = 0
    signature: bytes = b""
    made_at: float
    """Unix seconds."""
    state: State = "waiting"
    intent: int | None = None
    size: int = vault.MAX_BATCH
    """It goes with at most so many entries in one call: fewer after a call of more was refused."""
    calls: int = 0
    refusals: int = 0
    detail: str = ""
    """Why it failed."""

    @property
    def key(self) -> ChannelKey:
        """Of the channel that it is about; not for what has none yet."""
        return ChannelKey(self.payer, self.payee, self.signer, self.nonce)


def call_of(requests: Sequence[Request]) -> bytes:
    """The call that does them all; they are of one account and one kind."""
    first = requests[0]
    if first.kind == "deposit":
        return vault.deposit(first.payer, first.amount)
    if first.kind == "withdraw":
        return vault.withdraw(first.payee, first.amount)
    if first.kind == "extend":
        return vault.extend(first.key, first.amount, first.valid_until)
    if first.kind == "reserve":
        return vault.reserve([Reservation(r.payee, r.signer, r.amount, r.valid_until) for r in requests])
    if first.kind == "settle":
        return vault.settle([(r.key, r.amount) for r in requests])
    if first.kind == "close":
        return vault.cooperative_close([(r.key, r.amount, r.signature) for r in requests])
    if first.kind == "release":
        return vault.release([r.key for r in requests])
    return vault.redeem(first.payee, [Claim(r.key, r.amount, r.signature) for r in requests])


class RequestStore:
    """The rows of one vault."""

    def __init__(self, connection: sqlite3.Connection, place: vault.Vault) -> None:
        self._connection = connection
        self._vault = (place.chain_id, place.address)

    def add(self, request: Request) -> bool:
        """False when a request of this id is there already."""
        done = self._connection.execute(
            "insert into vault_request (request_id, chain_id, vault, account, kind, payer, payee, signer, nonce, amount,"
            " valid_until, signature, made_at, size) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " on conflict (request_id) do nothing",
            (
                request.request_id,
                *self._vault,
                request.account,
                request.kind,
                request.payer,
                request.payee,
                request.signer,
                request.nonce,
                str(request.amount),
                request.valid_until,
                request.signature,
                request.made_at,
                request.size,
            ),
        )
        return done.rowcount == 1

    def waiting(self) -> list[Request]:
        """In no call yet, by account and kind, oldest first."""
        return self._where("state = 'waiting' order by account, kind, id")

    def of(self, intents: Sequence[int]) -> list[Request]:
        """The entries of these calls, in their order."""
        marks = ",".join("?" * len(intents))
        return self._where(f"intent in ({marks}) and state = 'called' order by intent, place", *intents)

    def open_of(self, account: str) -> list[Request]:
        """All that is under way for an account, oldest first."""
        return self._where("account = ? and state in ('waiting', 'called') order by id", account)

    def unmined(self, account: str, kinds: Sequence[Kind]) -> int:
        """What is asked for in these kinds and in no block yet, in all."""
        marks = ",".join("?" * len(kinds))
        rows = self._connection.execute(
            "select amount from vault_request r left join evm_intent i on i.id = r.intent"  # noqa: S608
            " where r.chain_id = ? and r.vault = ? and r.account = ? and r.state in ('waiting', 'called')"
            f" and r.kind in ({marks}) and coalesce(i.state, 'new') in ('new', 'sent')",
            (*self._vault, account, *kinds),
        )
        return sum(int(row["amount"]) for row in rows)

    def unheard(self) -> list[int]:
        """Calls that ended while nobody minded this vault: a node that ran without it in its configuration."""
        rows = self._connection.execute(
            "select distinct intent from vault_request r join evm_intent i on i.id = r.intent"
            " where r.chain_id = ? and r.vault = ? and r.state = 'called' and i.state in ('final', 'failed')"
            " order by intent",
            self._vault,
        )
        return [int(row["intent"]) for row in rows]

    def _where(self, condition: str, *values: object) -> list[Request]:
        rows = self._connection.execute(
            f"select {_COLUMNS} from vault_request where chain_id = ? and vault = ? and {condition}",  # noqa: S608
            (*self._vault, *values),
        )
        return [msgspec.convert(dict(row) | {"amount": int(row["amount"])}, Request) for row in rows]

    def give_call(self, requests: Sequence[Request], intent: int) -> None:
        """They are entries of this intent's call."""
        for place, request in enumerate(requests):
            self._connection.execute(
                "update vault_request set state = 'called', intent = ?, place = ?, calls = calls + 1 where id = ?",
                (intent, place, request.id),
            )

    def take_back(self, requests: Sequence[Request], size: int) -> None:
        """Their call never happened: wait for another, of at most ``size`` entries."""
        for request in requests:
            self._connection.execute(
                "update vault_request set state = 'waiting', intent = null, size = ? where id = ?", (size, request.id)
            )

    def note_refusal(self, request: Request) -> None:
        """The chain says that it would refuse it."""
        self._connection.execute("update vault_request set refusals = refusals + 1 where id = ?", (request.id,))

    def end(self, requests: Sequence[Request], state: State, detail: str = "", intent: int | None = None) -> None:
        """For good."""
        for request in requests:
            self._connection.execute(
                "update vault_request set state = ?, detail = ?, intent = ? where id = ?",
                (state, detail, intent, request.id),
            )

    def note_moved(self, request: Request, units: int) -> None:
        """What the call paid, or gave back, for this entry."""
        self._connection.execute("update vault_request set moved = ? where id = ?", (str(units), request.id))

    # Channels that were seen on chain

    def seen(self, channel: bytes) -> int | None:
        """A block in which the channel was open and nothing was paid yet; ``None`` when we did not look at one."""
        row = self._connection.execute(
            "select since from vault_seen where chain_id = ? and vault = ? and channel = ?", (*self._vault, channel)
        ).fetchone()
        return None if row is None else int(row["since"])

    def note_seen(self, channel: bytes, block: int) -> None:
        """Open and unused in this final block; the first one counts."""
        self._connection.execute(
            "insert into vault_seen values (?, ?, ?, ?) on conflict do nothing", (*self._vault, channel, block)
        )
