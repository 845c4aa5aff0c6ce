"""From orders to transfers: one alone is a ``transfer``, several that come together are one call of the network's
multi-transfer contract.

Orders are rows. Where the network has such a contract an order waits a moment for company; then those of one account
become calls of at most :attr:`Network.multi_max` payments, each an intent of the account's transaction manager. A call
is all or nothing: it settles all its orders by one transaction, or, when the chain would refuse it, when it finally
reverted, or when the account can pay some of them only, none, and halves of it are tried, down to plain transfers. So
one receiver that the token's contract does not serve, or one sum too large, holds up nobody else.

An order belongs to one intent at a time. It gets another only when the intent before was never signed, or finally
reverted; both mean that nothing was moved and nothing will be.

The contract takes the payer's tokens by ``transferFrom``, for which the payer's leave is asked once. It takes nothing
from anybody but its caller.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sqlite3
import uuid
from collections.abc import Callable, Mapping, Sequence

import msgspec

from shem.cogs.clock import Clock
from shem.node.db import Database
from shem.node.payment.drivers.base import Failure, PaymentOrder, Settlement
from shem.node.payment.drivers.evm import erc20
from shem.node.payment.drivers.evm.manager import TransactionManager
from shem.node.payment.drivers.evm.rpc import RpcPool, quantity
from shem.node.payment.drivers.evm.store import Intent
from shem.node.payment.drivers.networks import Network

log = logging.getLogger(__name__)

SINGLE, MULTI = "order:", "multi:"
"""What the keys of our intents start with."""
LEAVE = "leave:"
"""And of those by which the contract gets leave to take tokens."""
MAX_PACKED = 2**96 - 1
"""More does not fit into an entry of a call."""
MAX_GATHERED = 1000
LEAVE_REST_S = 600.0
"""Leave that was not given is not asked for again for so long; orders go one by one meanwhile."""
_EVERYTHING = 2**256 - 1


class _Order(msgspec.Struct, frozen=True):
    """One row."""

    order_id: str
    payer: str
    payee: str
    amount: int
    size: int
    """It goes with at most so many in one call."""
    calls: int


class Payouts:
    """The orders of one network, for all accounts of this node."""

    def __init__(
        self,
        db: Database,
        network: Network,
        pool: RpcPool,
        managers: Mapping[tuple[str, str], TransactionManager],
        clock: Clock,
        tell: Callable[[Settlement | Failure], None],
    ) -> None:
        """``managers`` are by network and account, and may be filled in later. ``tell`` is called inside the manager's
        transaction in which an order's transfer becomes final or has finally failed."""
        self._db = db
        self._network = network
        self._pool = pool
        self._managers = managers
        self._clock = clock
        self._tell = tell
        self._wake = asyncio.Event()
        self._no_leave_until: dict[str, float] = {}
        self._leave_asked: dict[str, list[float]] = {}

    def ask(self, connection: sqlite3.Connection, order: PaymentOrder) -> None:
        """Note an order in the caller's transaction; the same id is the same order."""
        row = (order.order_id, self._network.chain_id, order.platform, order.payer, order.payee)
        done = connection.execute(
            "insert into evm_order (order_id, chain_id, platform, payer, payee, amount, size, made_at)"
            " values (?, ?, ?, ?, ?, ?, ?, ?) on conflict (order_id) do nothing",
            (*row, str(order.amount_units), self._most(order.amount_units), self._clock.now().timestamp()),
        )
        if not done.rowcount:
            return
        if self._network.multi_transfer:
            self._db.after_commit(self._wake.set)
        else:
            self.gather()

    def _most(self, amount: int) -> int:
        return max(self._network.multi_max, 1) if amount <= MAX_PACKED else 1

    async def run(self) -> None:
        """Gather what comes, until cancelled."""
        self._wake.set()
        while True:
            await self._wake.wait()
            await self._clock.sleep(self._network.gather_s)
            self._wake.clear()
            try:
                self.gather()
            except sqlite3.Error:  # a full disk: what waits is on it, and goes when there is room
                log.exception("orders on %s cannot be gathered now", self._network.name)
                self._wake.set()
                await self._clock.sleep(self._network.refused_s)

    def gather(self) -> None:
        """Make intents of the orders that wait."""
        with self._db.transaction(durable=True) as connection:
            waiting = self._waiting()
            for payer, orders in itertools.groupby(waiting, key=lambda order: order.payer):
                manager = self._managers[self._network.name, payer]
                for batch in self._batches(list(orders)):
                    self._submit(connection, manager, batch)
            if len(waiting) == MAX_GATHERED:
                self._db.after_commit(self._wake.set)

    def _waiting(self) -> list[_Order]:
        # Those of a key that this node had when it was asked wait for it, and hold up nobody.
        payers = [payer for network, payer in self._managers if network == self._network.name]
        rows = self._db.connection.execute(
            "select order_id, payer, payee, amount, size, calls from evm_order"  # noqa: S608
            f" where chain_id = ? and intent is null and payer in ({','.join('?' * len(payers))})"
            " order by payer, id limit ?",
            (self._network.chain_id, *payers, MAX_GATHERED),
        )
        return [_order(row) for row in rows]

    def _batches(self, orders: Sequence[_Order]) -> list[list[_Order]]:
        """In their order; none is in company larger than it may have."""
        most = self._network.multi_max if self._network.multi_transfer else 1
        batches: list[list[_Order]] = []
        for order in orders:
            last = batches[-1] if batches else []
            if last and len(last) < min(order.size, *(other.size for other in last), most):
                last.append(order)
            else:
                batches.append([order])
        return batches

    def _submit(self, connection: sqlite3.Connection, manager: TransactionManager, batch: Sequence[_Order]) -> None:
        first = batch[0]
        if len(batch) == 1:
            call = erc20.transfer(first.payee, first.amount)
            intent = manager.submit(connection, f"{SINGLE}{first.order_id}", self._network.token, call)
        else:
            call = erc20.transfer_many([(order.payee, order.amount) for order in batch])
            key = f"{MULTI}{first.order_id}:{first.calls}"
            intent = manager.submit(connection, key, self._network.multi_transfer, call)
        connection.executemany(
            "update evm_order set intent = ?, calls = calls + 1 where order_id = ?",
            [(intent, order.order_id) for order in batch],
        )

    # What the manager asks and tells

    async def admit(self, payer: str, waiting: Sequence[Intent], in_flight: Sequence[Intent]) -> list[Intent]:
        """Those of our ``waiting`` that the contracts would take now. Raises what the pool raises."""
        many = [intent for intent in waiting if intent.key.startswith(MULTI)]
        if not many:
            return list(waiting)
        allowed = await self._allowed(payer) if self._network.multi_transfer else 0
        allowed -= sum(tokens_of(intent) for intent in in_flight if intent.key.startswith(MULTI))
        held_back: set[int] = set()
        resting = self._clock.monotonic() < self._no_leave_until.get(payer, float("-inf"))
        for intent in many:
            allowed -= tokens_of(intent)
            if allowed >= 0 and intent.dst == self._network.multi_transfer:
                continue
            held_back.add(intent.id)
            # A contract that is not in the configuration any more, or that may take nothing, serves nobody.
            if intent.dst != self._network.multi_transfer or resting:
                self.split(intent, size=1)
            else:
                self._ask_leave(payer)
        return [intent for intent in waiting if intent.id not in held_back]

    async def _allowed(self, payer: str) -> int:
        call = erc20.allowance(payer, self._network.multi_transfer).hex()
        asked = [{"to": self._network.token, "data": "0x" + call}, "latest"]
        (allowed,) = await self._pool.each([("eth_call", asked)], quantity)
        return allowed

    def _ask_leave(self, payer: str) -> None:
        manager, now = self._managers[self._network.name, payer], self._clock.monotonic()
        leave = erc20.approve(self._network.multi_transfer, _EVERYTHING)
        asked = [at for at in self._leave_asked.get(payer, ()) if now - at < erc20.LEAVE_PERIOD_S]
        if len(asked) < erc20.MAX_LEAVES:
            if manager.submit_once(f"{LEAVE}{uuid.uuid4()}", self._network.token, leave, urgent=True):
                self._leave_asked[payer] = [*asked, now]
        elif not manager.has_open_call(self._network.token, leave):
            self._no_leave(payer, "it was given, and is not there")

    def split(self, intent: Intent, size: int = 0) -> None:
        """Replace a call that was never signed by smaller ones."""
        with self._db.transaction(durable=True):
            orders = self._of(intent)
            self._take_back(orders, size or len(orders) // 2)
            self._managers[self._network.name, orders[0].payer].drop(intent.id)
            self.gather()

    def _no_leave(self, payer: str, reason: str) -> None:
        log.warning("the token on %s gives no leave to pay many at once: %s", self._network.name, reason[:200])
        self._no_leave_until[payer] = self._clock.monotonic() + LEAVE_REST_S

    def refused(self, payer: str, intent: Intent, reason: str) -> bool:
        """The chain would refuse a call: whether that one is gone, and others in its place."""
        if "revert" not in reason.lower():
            return False
        if intent.key.startswith(LEAVE):
            self._no_leave(payer, reason)
            with self._db.transaction():
                self._managers[self._network.name, payer].drop(intent.id)
            return True
        if not intent.key.startswith(MULTI):
            return False
        log.warning("a payment to many is divided: the chain would refuse it: %s", reason[:200])
        self.split(intent)
        return True

    def done(self, payer: str, intent: Intent) -> None:
        """The end of a transfer, inside the manager's transaction."""
        if intent.key.startswith(LEAVE) and intent.state == "failed" and intent.tx_hash:
            self._no_leave(payer, f"refused in {intent.tx_hash}")
        orders = self._of(intent)
        if intent.state == "failed" and len(orders) > 1:
            log.warning("a payment to many was not made (%s); it is divided", intent.tx_hash or "its place was taken")
            self._take_back(orders, len(orders) // 2)
            self._db.after_commit(self._wake.set)
            return
        for order in orders:
            self._tell(_outcome(order.order_id, intent, len(orders)))

    def _of(self, intent: Intent) -> list[_Order]:
        rows = self._db.connection.execute(
            "select order_id, payer, payee, amount, size, calls from evm_order where intent = ? order by id",
            (intent.id,),
        )
        return [_order(row) for row in rows]

    def _take_back(self, orders: Sequence[_Order], size: int) -> None:
        self._db.connection.executemany(
            "update evm_order set intent = null, size = ? where order_id = ?",
            [(max(size, 1), order.order_id) for order in orders],
        )

    def smallest(self, intent: Intent) -> int:
        """The least that a call to many pays to one."""
        return min(order.amount for order in self._of(intent))


def tokens_of(intent: Intent) -> int:
    """What a transfer takes from the account; 0 for other intents."""
    if intent.key.startswith(SINGLE):
        return erc20.parse_transfer(intent.data)[1]
    if intent.key.startswith(MULTI):
        return sum(amount for _, amount in erc20.parse_transfer_many(intent.data))
    return 0


def _order(row: sqlite3.Row) -> _Order:
    return _Order(**dict(row) | {"amount": int(row["amount"])})


def _outcome(order_id: str, intent: Intent, company: int) -> Settlement | Failure:
    if intent.state == "failed":
        if not intent.tx_hash:
            return Failure(order_id, "displaced", "another transaction of the account took the transfer's place")
        return Failure(order_id, "reverted", f"the transfer was refused by the token's contract in {intent.tx_hash}")
    return msgspec.convert(
        {
            "order_id": order_id,
            "tx_hash": intent.tx_hash,
            "block_number": intent.block_number,
            "block_hash": intent.block_hash,
            "gas_used": None if intent.gas_used is None else intent.gas_used // company,
            "final": True,
        },
        type=Settlement,
    )
