"""One suite over the payment drivers: what passes on test money passes on a chain.

``testmoney`` runs on its bank, ``erc20`` on the devnet's chain over JSON-RPC. The free driver moves nothing, so only the
part that is about nothing applies to it; that part is at the end.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shem.errors import Refused
from shem.node.config import NetworkConfig
from shem.node.db import Database
from shem.node.identity.keys import Identity
from shem.node.payment.drivers.base import (
    Failure,
    PaymentDriver,
    PaymentNotFound,
    PaymentOrder,
    Settlement,
)
from shem.node.payment.drivers.evm.driver import EvmDriver
from shem.node.payment.drivers.free import FreeDriver
from shem.node.payment.drivers.networks import networks_from
from shem.node.payment.drivers.testmoney import Bank, TestMoneyDriver
from shem.testing.devchain import places
from shem.testing.devchain.node import DevChain

TGLM = 10**18


class Seam:
    """A funded payer with a driver that can be stopped, started, and opened anew on the same database."""

    platform: str
    fund: Callable[[str, int], None]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity = Identity.generate()
        self.payer = str(self.identity.node_id)
        self.payee = str(Identity.generate().node_id)
        self.outcomes: list[Settlement | Failure] = []
        self.in_transaction: list[bool] = []
        self._changed = asyncio.Event()
        self.make: Callable[[Database], PaymentDriver]

    def open(self) -> None:
        """As a node does at start."""
        self.db = Database(self.path)
        self.driver = self.make(self.db)
        self.driver.on_settled(self._told)

    async def close(self) -> None:
        await self.driver.stop()
        self.db.close()

    def _told(self, outcome: Settlement | Failure) -> None:
        self.outcomes.append(outcome)
        self.in_transaction.append(self.db.connection.in_transaction)
        self._changed.set()

    def order(self, amount: int, order_id: str | None = None, **changes: Any) -> PaymentOrder:
        order = PaymentOrder(order_id or str(uuid.uuid4()), self.platform, self.payer, self.payee, amount)
        return msgspec.structs.replace(order, **changes)

    def pay(self, *orders: PaymentOrder) -> None:
        with self.db.transaction(durable=True) as connection:
            for order in orders:
                self.driver.pay(connection, order)

    async def outcome(self, *order_ids: str) -> list[Settlement]:
        """Wait until each order is done; all must be settled."""
        async with asyncio.timeout(20):
            while not set(order_ids) <= {outcome.order_id for outcome in self.outcomes}:
                self._changed.clear()
                await self._changed.wait()
        found = [next(o for o in self.outcomes if o.order_id == order_id) for order_id in order_ids]
        assert all(isinstance(outcome, Settlement) for outcome in found), found
        return [outcome for outcome in found if isinstance(outcome, Settlement)]

    async def held(self, address: str) -> int:
        return (await self.driver.balance(self.platform, address)).token_units

    async def until(self, check: Callable[[], Any]) -> None:
        async with asyncio.timeout(20):
            while not check():  # noqa: ASYNC110  problems are read, nobody announces them
                await asyncio.sleep(0.01)


@pytest.fixture(params=["testmoney", "erc20", "erc20, many at a time"])
async def seam(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Seam]:
    made = Seam(tmp_path / "node.db")
    if request.param == "testmoney":
        bank = Bank()
        made.fund = bank.fund
        made.make = lambda db: TestMoneyDriver(db, bank, [made.payer])
        async with opened(made):
            yield made
        return
    async with DevChain(block_time_s=0.05) as chain:
        config = NetworkConfig(
            chain_id=chain.chain_id,
            rpc_urls=(chain.rpc_url,),
            token=places.TOKEN_ADDRESS,
            token_symbol="tGLM",
            multi_transfer=places.MULTI_TRANSFER_ADDRESS if "many" in request.param else "",
        )
        networks = [n for n in networks_from({"devnet": config}) if n.name == "devnet"]
        made.fund = lambda address, units: chain.fund(address, wei=TGLM, token_units=units)
        made.make = lambda db: EvmDriver(db, networks, [made.identity])
        async with opened(made):
            yield made


class opened:  # noqa: N801  reads as a verb
    def __init__(self, seam: Seam) -> None:
        self.seam = seam

    async def __aenter__(self) -> None:
        self.seam.open()
        self.seam.platform = self.seam.driver.platforms()[0].platform
        self.seam.fund(self.seam.payer, 100 * TGLM)
        await self.seam.driver.start()

    async def __aexit__(self, *error: object) -> None:
        await self.seam.close()


async def test_platforms_have_their_names(seam):
    [platform] = seam.driver.platforms()
    assert platform.platform == f"{platform.driver}-{platform.network}-{platform.token.lower()}"
    assert platform.driver == seam.driver.name
    assert platform.moves_money
    assert platform.decimals == 18


async def test_balance(seam):
    balance = await seam.driver.balance(seam.platform, seam.payer)
    assert balance.token_units == 100 * TGLM
    assert balance.block_time is not None
    assert await seam.held(seam.payee) == 0
    with pytest.raises(Refused):
        await seam.driver.balance("erc20-nowhere-tglm", seam.payer)


async def test_order_is_settled_finally_and_in_a_transaction(seam):
    order = seam.order(3 * TGLM + 1)
    seam.pay(order)
    [settled] = await seam.outcome(order.order_id)
    assert settled.final is True
    assert settled.tx_hash.startswith("0x")
    assert settled.block_number > 0
    assert settled.block_hash
    assert seam.in_transaction == [True]
    assert (await seam.held(seam.payer), await seam.held(seam.payee)) == (97 * TGLM - 1, 3 * TGLM + 1)
    assert list(seam.driver.problems()) == []


async def test_order_id_is_paid_once_for_ever(seam):
    order = seam.order(TGLM, "the-one")
    seam.pay(order, order)
    seam.pay(order)
    await seam.outcome("the-one")
    seam.pay(order)
    last = seam.order(2 * TGLM)
    seam.pay(last)
    await seam.outcome(last.order_id)
    assert await seam.held(seam.payee) == 3 * TGLM


async def test_order_of_a_transaction_that_is_rolled_back_never_was(seam):
    lost, kept = seam.order(5 * TGLM), seam.order(TGLM)
    with pytest.raises(ZeroDivisionError), seam.db.transaction(durable=True) as connection:
        seam.driver.pay(connection, lost)
        raise ZeroDivisionError
    seam.pay(kept)
    await seam.outcome(kept.order_id)
    assert await seam.held(seam.payee) == TGLM
    assert [o.order_id for o in seam.outcomes] == [kept.order_id]


async def test_orders_that_can_never_be_paid_are_refused_at_once(seam):
    stranger = str(Identity.generate().node_id)
    for wrong in (
        seam.order(0),
        seam.order(-1),
        seam.order(TGLM, platform="erc20-nowhere-tglm"),
        seam.order(TGLM, payer=stranger),
    ):
        with pytest.raises(Refused):
            seam.pay(wrong)
    assert seam.outcomes == []


async def test_many_orders_in_one_transaction(seam):
    orders = [seam.order(TGLM + number) for number in range(8)]
    seam.pay(*orders)
    settled = await seam.outcome(*(order.order_id for order in orders))
    assert await seam.held(seam.payee) == sum(order.amount_units for order in orders)
    for order, settlement in zip(orders, settled, strict=True):
        found = await seam.driver.verify(seam.platform, settlement.tx_hash, seam.payer, seam.payee, order.amount_units)
        assert found.amount_units >= order.amount_units
        assert (found.block_number, found.block_hash) == (settlement.block_number, settlement.block_hash)


async def test_own_look_at_a_claim(seam):
    order = seam.order(2 * TGLM)
    seam.pay(order)
    [settled] = await seam.outcome(order.order_id)
    tx, look = settled.tx_hash, seam.driver.verify
    found = await look(seam.platform, tx, seam.payer, seam.payee, TGLM)
    assert (found.amount_units, found.payer, found.payee) == (2 * TGLM, seam.payer, seam.payee)
    assert (await look(seam.platform, "0x" + tx[2:].upper(), seam.payer, seam.payee, 1)).tx_hash == found.tx_hash
    stranger = str(Identity.generate().node_id)
    for claim in (
        (tx, seam.payer, seam.payee, 2 * TGLM + 1),
        (tx, stranger, seam.payee, TGLM),
        (tx, seam.payer, stranger, TGLM),
        (tx, seam.payee, seam.payer, TGLM),
        ("0x" + "ab" * 32, seam.payer, seam.payee, TGLM),
        ("", seam.payer, seam.payee, TGLM),
        ("nonsense", seam.payer, seam.payee, TGLM),
    ):
        with pytest.raises(PaymentNotFound):
            await look(seam.platform, *claim)
    with pytest.raises(Refused):
        await look("erc20-nowhere-tglm", tx, seam.payer, seam.payee, TGLM)


async def test_order_survives_its_node(seam):
    """Recorded by a node that never got to send it, and again by one that died right after."""
    await seam.driver.stop()
    first = seam.order(TGLM)
    seam.pay(first)
    seam.db.close()
    seam.open()
    await seam.driver.start()
    await seam.outcome(first.order_id)
    second = seam.order(TGLM)
    seam.pay(second)
    await seam.close()
    seam.open()
    await seam.driver.start()
    await seam.outcome(second.order_id)
    assert await seam.held(seam.payee) == 2 * TGLM


async def test_order_without_funds_waits_and_says_so(seam):
    order = seam.order(150 * TGLM)
    seam.pay(order)
    await seam.until(seam.driver.problems)
    [problem] = seam.driver.problems()
    assert problem.code == "InsufficientToken"
    assert (problem.platform, problem.address) == (seam.platform, seam.payer)
    assert seam.outcomes == []
    seam.fund(seam.payer, 50 * TGLM)
    await seam.outcome(order.order_id)
    await seam.until(lambda: not seam.driver.problems())


# --- the free driver: the same protocol, about nothing ---------------------------------------------------------------


async def test_free_orders_of_nothing_settle_in_the_transaction_that_makes_them(tmp_path):
    db = Database(tmp_path / "node.db")
    driver: PaymentDriver = FreeDriver()
    told: list[tuple[Settlement | Failure, bool]] = []
    driver.on_settled(lambda outcome: told.append((outcome, db.connection.in_transaction)))
    await driver.start()
    [platform] = driver.platforms()
    assert not platform.moves_money
    with db.transaction(durable=True) as connection:
        driver.pay(connection, PaymentOrder("o", platform.platform, "0xa", "0xb", 0))
    [(settled, inside)] = told
    assert (settled.order_id, inside) == ("o", True)
    with db.transaction() as connection:
        for order in (
            PaymentOrder("p", platform.platform, "0xa", "0xb", 1),
            PaymentOrder("q", "erc20-nowhere-tglm", "0xa", "0xb", 0),
        ):
            with pytest.raises(Refused):
                driver.pay(connection, order)
    assert (await driver.balance(platform.platform, "0xa")).token_units == 0
    with pytest.raises(PaymentNotFound):
        await driver.verify(platform.platform, "0x" + "11" * 32, "0xa", "0xb", 1)
    assert (await driver.verify(platform.platform, "", "0xa", "0xb", 0)).amount_units == 0
    assert list(driver.problems()) == []
    await driver.stop()
    db.close()
