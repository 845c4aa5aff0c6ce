"""Every payment exactly once, whatever breaks and in whatever order.

The manager runs on a real chain through a line that breaks as a seed says: endpoint down, reply lost after the request
took effect, garbage, and ``kill -9`` between storing and sending or between sending and noting. The chain does its part:
partial blocks, reorgs with and without the transactions coming back, mempools wiped. Orders trickle in and are repeated.
At the end the balances on chain are compared with the orders. So with orders that go many in one transaction. A manager
that sends before it stores runs through the same, and must fail: a test that cannot tell the two apart would prove nothing.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shem.cogs.clock import ManualClock
from shem.node.config import NetworkConfig
from shem.node.db import Database
from shem.node.identity.keys import Identity
from shem.node.payment.drivers.base import (
    ChainUnreachable,
    DriverProblem,
    Failure,
    PaymentOrder,
    Settlement,
)
from shem.node.payment.drivers.evm.driver import EvmDriver
from shem.node.payment.drivers.evm.manager import TransactionManager
from shem.node.payment.drivers.evm.store import Attempt
from shem.node.payment.drivers.networks import networks_from
from shem.testing.devchain import places
from shem.testing.devchain.chain import Chain
from shem.testing.devchain.rpc import Rpc

MAX_TICKS = 1500


class Killed(Exception):
    """The process is gone; only the disk is left."""


class SendsBeforeItStores(TransactionManager):
    """The control: wrong on purpose."""

    async def _commit_and_send(
        self, given: Sequence[tuple[int, int]], attempts: Sequence[Attempt], problems: dict[str, DriverProblem]
    ) -> None:
        await self._broadcast(attempts, problems)
        self._persist(given, attempts)


class WrongDriver(EvmDriver):
    manager_type = SendsBeforeItStores


class World:
    """One seed's run."""

    changes: Mapping[str, Any] = {}
    """Of the network."""
    gathers = 0.0
    """How often orders that wait for company are made a call."""

    def __init__(self, seed: int, payments: int, directory: Path, driver_type: type[EvmDriver]) -> None:
        self.rng = random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.payments = payments
        self.directory = directory
        self.driver_type = driver_type
        self.identity = Identity(b"\7" * 32)
        self.clock = ManualClock()
        self.start_chain()
        self.chain.fund(bytes.fromhex(self.identity.address[2:]), 10**18, 10**24)
        for _ in range(3):
            self.chain.mine()  # the money itself must not go in a reorg
        config = NetworkConfig(chain_id=1337, rpc_urls=("line",), token=places.TOKEN_ADDRESS, token_symbol="tGLM")
        (network,) = networks_from({"devnet": config})
        # Time passes half a second a tick: stuck after four ticks.
        self.network = msgspec.structs.replace(network, rebroadcast_s=1.0, replace_after_s=2.0, **self.changes)
        self.ordered = 0
        self.open()

    def start_chain(self) -> None:
        self.chain = Chain(self.directory)
        self.rpc = Rpc(self.chain, changed=lambda: None, automine=lambda on: None)

    def open(self) -> None:
        self.db = Database(self.directory / "node.sqlite")
        self.db.connection.execute("create table if not exists told (order_id text, kind text)")
        self.driver = self.driver_type(self.db, [self.network], [self.identity], clock=self.clock, transport=self.line)
        self.driver.on_settled(self.tell)
        (self.manager,) = self.driver.managers.values()

    def tell(self, outcome: Settlement | Failure) -> None:
        """Writes in the driver's transaction, as the payment service does."""
        self.db.connection.execute("insert into told values (?, ?)", (outcome.order_id, type(outcome).__name__))

    async def line(self, url: str, body: bytes) -> bytes:
        sends = b"eth_sendRawTransaction" in body
        chance = self.rng.random()
        if chance < 0.05:
            self._fault("down")
            raise ConnectionRefusedError("down")
        if sends and chance < 0.15:
            self._fault("killed before sending")
            raise Killed
        answer = msgspec.json.encode(self.rpc.answer(msgspec.json.decode(body)))
        chance = self.rng.random()
        if sends and chance < 0.10:
            self._fault("killed after sending")
            raise Killed
        if chance < 0.03 or (sends and chance < 0.20):
            self._fault("reply lost")
            raise TimeoutError
        if chance < 0.22 and chance > 0.20:
            self._fault("garbage")
            return b"<html>502</html>"
        return answer

    def _fault(self, name: str) -> None:
        self.faults[name] += 1

    def payee(self, place: int) -> str:
        return f"0x{0xABC0000 + place:040x}"

    def order(self, place: int) -> None:
        with self.db.transaction(durable=True) as connection:
            order = PaymentOrder(
                f"o{place}", "erc20-devnet-tglm", self.identity.address, self.payee(place), 1000 + place
            )
            self.driver.pay(connection, order)

    async def step(self) -> None:
        try:
            if self.rng.random() < self.gathers:
                self.driver.payouts["devnet"].gather()
            await self.manager.step()
        except ChainUnreachable:
            pass
        except Killed:
            self.db.close()
            self.open()

    def shake(self) -> None:
        """What the chain does between two steps."""
        chance = self.rng.random()
        if chance < 0.6:
            self.chain.mine(limit=self.rng.choice([0, 1, 3, 20]))
        elif chance < 0.72:
            depth = self.rng.randint(1, 2)
            if self.chain.head - depth >= self.chain.finalized:
                requeue = self.rng.random() < 0.5
                self._fault(f"reorg, {'back in the pool' if requeue else 'lost'}")
                self.chain.reorg(depth, requeue=requeue)
        if self.rng.random() < 0.04:
            self._fault("mempool wiped")
            self.chain.pool.clear()

    async def run(self) -> str:
        """Empty when every payment was made exactly once and told exactly once; else what is wrong."""
        for _ in range(MAX_TICKS):
            while self.ordered < self.payments and self.rng.random() < 0.4:
                self.order(self.ordered)
                self.ordered += 1
            if self.ordered and self.rng.random() < 0.2:
                self.order(self.rng.randrange(self.ordered))  # the same order again is the same order
            await self.step()
            self.shake()
            await self.clock.advance(0.5)
            if self.ordered == self.payments and not self._left():
                break
        return self._judge()

    def _left(self) -> int:
        """What is under way, or waits for company."""
        under_way = self._count("state not in ('final', 'failed')")
        waiting = self.db.connection.execute("select count(*) from evm_order where intent is null").fetchone()[0]
        return under_way + int(waiting)

    def _count(self, where: str) -> int:
        query = f"select count(*) from evm_intent where {where}"
        return int(self.db.connection.execute(query).fetchone()[0])

    def _judge(self) -> str:
        wrong = []
        for place in range(self.payments):
            data = "0x70a08231" + self.payee(place)[2:].rjust(64, "0")
            call = {"to": places.TOKEN_ADDRESS, "data": data}
            held = int(str(self.rpc.call("eth_call", [call, "latest"])), 16)
            if held != 1000 + place:
                wrong.append(f"o{place}: {held} instead of {1000 + place}")
        told = sorted(tuple(row) for row in self.db.connection.execute("select * from told"))
        if told != sorted((f"o{place}", "Settlement") for place in range(self.payments)):
            wrong.append(f"{len(told)} settlements told")
        return "; ".join(wrong)

    def close(self) -> None:
        self.db.close()
        self.chain.close()


class Many(World):
    """The same where several payments go in one transaction."""

    changes = {"multi_transfer": places.MULTI_TRANSFER_ADDRESS, "multi_max": 10}  # noqa: RUF012
    gathers = 0.2

    def _judge(self) -> str:
        calls = self._count("key like 'multi:%'")
        return super()._judge() or ("" if calls else "nothing went together")


async def run(
    seed: int,
    payments: int,
    directory: Path,
    driver_type: type[EvmDriver] = EvmDriver,
    world_type: type[World] = World,
) -> tuple[str, Counter[str]]:
    world = world_type(seed, payments, directory, driver_type)
    try:
        async with asyncio.timeout(60):
            return await world.run(), world.faults
    except sqlite3.IntegrityError as error:
        return f"the tables say no: {error}", world.faults
    finally:
        world.close()


@pytest.mark.parametrize("seed", range(12))
async def test_exactly_once(seed: int, tmp_path: Path) -> None:
    wrong, faults = await run(seed, 15, tmp_path)
    assert not wrong, f"{wrong} after {dict(faults)}"


@pytest.mark.parametrize("seed", range(50, 56))
async def test_exactly_once_many_at_a_time(seed: int, tmp_path: Path) -> None:
    wrong, faults = await run(seed, 30, tmp_path, world_type=Many)
    assert not wrong, f"{wrong} after {dict(faults)}"


@pytest.mark.parametrize("world_type", [World, Many])
async def test_the_control_fails(world_type: type[World], tmp_path: Path) -> None:
    """A manager that sends first must be caught, or the tests above show nothing."""
    caught = 0
    for seed in range(4, 12):
        directory = tmp_path / str(seed)
        directory.mkdir()
        wrong, _ = await run(seed, 40, directory, WrongDriver, world_type)
        caught += bool(wrong)
        if caught == 2:
            return
    pytest.fail(f"caught {caught} times only")


async def test_every_kind_of_fault_happens(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    for seed in range(3):
        directory = tmp_path / str(seed)
        directory.mkdir()
        seen += (await run(seed, 15, directory))[1]
    assert set(seen) == {
        "down",
        "garbage",
        "killed after sending",
        "killed before sending",
        "mempool wiped",
        "reorg, back in the pool",
        "reorg, lost",
        "reply lost",
    }


@pytest.mark.slow
@pytest.mark.parametrize("world_type", [World, Many])
@pytest.mark.parametrize("seed", range(100, 150))
async def test_exactly_once_sixty_payments(seed: int, world_type: type[World], tmp_path: Path) -> None:
    wrong, faults = await run(seed, 60, tmp_path, world_type=world_type)
    assert not wrong, f"{wrong} after {dict(faults)}"
