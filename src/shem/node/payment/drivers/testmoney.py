"""Test money: a ledger in memory with the manners of a chain, and a driver that pays on it.

A :class:`Bank` stands for the chain. It outlives the nodes that use it, numbers blocks, keeps transfers apart from their
finality, and pays an order once however often it is sent. :class:`TestMoneyDriver` keeps its orders in the node's
database and passes the suite of the EVM driver (``tests/seams``), so tests of what lies above may use it in its place.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime

import msgspec

from shem.cogs.tasks import TaskScope
from shem.errors import Refused
from shem.node.db import Database
from shem.node.payment.drivers.base import (
    Balance,
    ChainUnreachable,
    DriverProblem,
    Failure,
    NotFinalYet,
    PaymentNotFound,
    PaymentOrder,
    Platform,
    Settlement,
    VerifiedTransfer,
)
from shem.terms.amounts import format_amount

log = logging.getLogger(__name__)

PLATFORM = Platform(platform="testmoney-local-tglm", driver="testmoney", network="local", token="tGLM")  # noqa: S106

GIFT = 1000 * 10**18

SCHEMA = [
    """
create table testmoney_order (
    order_id text primary key, payer text not null, payee text not null, amount text not null, done integer not null
);
"""
]


class BankTransfer(msgspec.Struct, frozen=True):
    """One transaction."""

    tx_hash: str
    payer: str
    payee: str
    amount: int
    block: int


class Bank:
    """The chain. ``final_at_once`` off: transfers wait for :meth:`finalize`."""

    def __init__(self, *, final_at_once: bool = True) -> None:
        self.balances: dict[str, int] = {}
        self.transfers: dict[str, BankTransfer] = {}
        """By transaction hash."""
        self.final_at_once = final_at_once
        self.down = False
        """Nobody answers."""
        self._by_order: dict[str, str] = {}
        self._final_block = 0
        self._watchers: list[Callable[[], None]] = []

    def fund(self, address: str, units: int) -> None:
        """Make money."""
        self.balances[address] = self.balances.get(address, 0) + units
        self._changed()

    def transfer(self, order_id: str, payer: str, payee: str, amount: int) -> BankTransfer:
        """Move money, once per order. Raises :class:`Refused` when the payer lacks it."""
        if order_id in self._by_order:
            return self.transfers[self._by_order[order_id]]
        held = self.balances.get(payer, 0)
        if amount > held:
            raise Refused(f"{payer} holds {format_amount(held)} only", code="lacks_tokens")
        self.balances[payer] = held - amount
        self.balances[payee] = self.balances.get(payee, 0) + amount
        tx_hash = "0x" + hashlib.sha256(order_id.encode()).hexdigest()
        transfer = BankTransfer(tx_hash, payer, payee, amount, len(self.transfers) + 1)
        self.transfers[tx_hash] = transfer
        self._by_order[order_id] = tx_hash
        if self.final_at_once:
            self._final_block = transfer.block
        return transfer

    def finalize(self) -> None:
        """Everything so far is final."""
        self._final_block = len(self.transfers)
        self._changed()

    def is_final(self, transfer: BankTransfer) -> bool:
        """True once it cannot be undone."""
        return transfer.block <= self._final_block

    @property
    def height(self) -> int:
        """The last block."""
        return len(self.transfers)

    def watch(self, callback: Callable[[], None]) -> None:
        """Call after every change that was not a transfer of one's own."""
        self._watchers.append(callback)

    def unwatch(self, callback: Callable[[], None]) -> None:
        """Stop calling."""
        self._watchers.remove(callback)

    def _changed(self) -> None:
        for watcher in self._watchers:
            watcher()


class TestMoneyDriver:
    """A :class:`~shem.node.payment.drivers.base.PaymentDriver` on a :class:`Bank`."""

    __test__ = False  # the name is the architecture's; it is no test class
    name = "testmoney"

    def __init__(self, db: Database, bank: Bank, accounts: Collection[str]) -> None:
        """``accounts``: the addresses that this node pays from."""
        db.migrate("payment_testmoney", SCHEMA)
        self._db = db
        self._bank = bank
        self._accounts = frozenset(accounts)
        self._callbacks: list[Callable[[Settlement | Failure], None]] = []
        self._wake = asyncio.Event()
        self._tasks: TaskScope | None = None
        self._problem: DriverProblem | None = None

    def platforms(self) -> Sequence[Platform]:
        return [PLATFORM]

    async def start(self) -> None:
        self._tasks = TaskScope("testmoney")
        self._bank.watch(self._wake.set)
        self._wake.set()
        self._tasks.start(self._run(), "pay")

    async def stop(self) -> None:
        if self._tasks is not None:
            self._bank.unwatch(self._wake.set)
            await self._tasks.close()

    async def balance(self, platform: str, address: str) -> Balance:
        self._check(platform)
        return Balance(
            token_units=self._bank.balances.get(address, 0),
            gas_wei=0,
            block_number=self._bank.height,
            block_time=datetime.now(UTC),
        )

    async def fund(self, platform: str, address: str) -> str:
        self._check(platform)
        self._bank.fund(address, GIFT)
        return f"{format_amount(GIFT)} {PLATFORM.token} came from the bank"

    def pay(self, connection: sqlite3.Connection, order: PaymentOrder) -> None:
        self._check(order.platform, asked=False)
        if order.payer not in self._accounts:
            raise Refused(f"this node does not hold the key of {order.payer}", code="not_our_account")
        if order.amount_units <= 0:
            raise Refused(f"{order.amount_units} cannot be paid", code="bad_amount")
        connection.execute(
            "insert into testmoney_order values (?, ?, ?, ?, 0) on conflict (order_id) do nothing",
            (order.order_id, order.payer, order.payee, str(order.amount_units)),
        )
        self._db.after_commit(self._wake.set)

    def on_settled(self, callback: Callable[[Settlement | Failure], None]) -> None:
        self._callbacks.append(callback)

    async def verify(self, platform: str, tx_hash: str, payer: str, payee: str, amount_units: int) -> VerifiedTransfer:
        self._check(platform)
        found = self._bank.transfers.get(tx_hash.lower())
        if found is None:
            raise PaymentNotFound(f"there is no transaction {tx_hash[:80]!r}")
        moved = found.amount if (found.payer, found.payee) == (payer, payee) else 0
        if moved < amount_units:
            raise PaymentNotFound(f"{tx_hash} moved {format_amount(moved)} from {payer} to {payee}")
        if not self._bank.is_final(found):
            raise NotFinalYet(f"{tx_hash} is not final")
        return VerifiedTransfer(platform, found.tx_hash, payer, payee, moved, found.block, f"block-{found.block}")

    def problems(self) -> Sequence[DriverProblem]:
        return [] if self._problem is None else [self._problem]

    def _check(self, platform: str, *, asked: bool = True) -> None:
        if platform != PLATFORM.platform:
            raise Refused(f"the test-money driver does not serve {platform[:60]!r}", code="unknown_platform")
        if asked and self._bank.down:
            raise ChainUnreachable("the bank does not answer")

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._problem = None
            if not self._bank.down:
                rows = self._db.connection.execute(
                    "select * from testmoney_order where done = 0 order by rowid"
                ).fetchall()
                for row in rows:
                    self._advance(row)

    def _advance(self, row: sqlite3.Row) -> None:
        try:
            transfer = self._bank.transfer(row["order_id"], row["payer"], row["payee"], int(row["amount"]))
        except Refused as error:
            self._problem = DriverProblem(
                code="InsufficientToken",
                message=error.message,
                driver=self.name,
                network=PLATFORM.network,
                address=row["payer"],
                platform=PLATFORM.platform,
            )
            return
        if self._bank.is_final(transfer):
            with self._db.transaction(durable=True) as connection:
                connection.execute("update testmoney_order set done = 1 where order_id = ?", (row["order_id"],))
                for callback in self._callbacks:
                    callback(
                        Settlement(
                            order_id=row["order_id"],
                            tx_hash=transfer.tx_hash,
                            block_number=transfer.block,
                            block_hash=f"block-{transfer.block}",
                            gas_used=0,
                        )
                    )
