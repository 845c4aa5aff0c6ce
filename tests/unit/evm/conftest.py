"""A chain in this process, an account with money on it, and a driver over a line that can be broken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from shem.cogs.clock import Clock
from shem.node.config import NetworkConfig
from shem.node.db import Database
from shem.node.identity.keys import Identity
from shem.node.payment.drivers.base import Failure, PaymentOrder, Settlement
from shem.node.payment.drivers.evm.driver import EvmDriver
from shem.node.payment.drivers.evm.rpc import Transport
from shem.node.payment.drivers.networks import Network, networks_from
from shem.testing.devchain import places
from shem.testing.devchain.node import DevChain

PLATFORM = "erc20-devnet-tglm"
TOKEN = 10**18


def devnet(url: str, **changes: object) -> Network:
    config = NetworkConfig(chain_id=1337, rpc_urls=(url,), token=places.TOKEN_ADDRESS, token_symbol="tGLM")
    (network,) = networks_from({"devnet": config})
    return msgspec.structs.replace(network, **changes)


class Payer:
    """A node's worth of payment: a database, a key, the driver, and what it told."""

    def __init__(self, path: Path | str, identity: Identity, network: Network) -> None:
        self.path = path
        self.identity = identity
        self.network = network
        self.told: list[Settlement | Failure] = []
        self._changed = asyncio.Event()

    def open(self, *, clock: Clock | None = None, transport: Transport | None = None) -> EvmDriver:
        self.db = Database(self.path)
        self.driver = EvmDriver(self.db, [self.network], [self.identity], clock=clock, transport=transport)
        self.driver.on_settled(self._tell)
        return self.driver

    def _tell(self, outcome: Settlement | Failure) -> None:
        self.told.append(outcome)
        self._changed.set()

    def order(self, name: str, payee: str, units: int) -> None:
        with self.db.transaction(durable=True) as connection:
            order = PaymentOrder(name, PLATFORM, self.identity.address, payee, units)
            self.driver.pay(connection, order)

    async def wait_told(self, count: int, timeout_s: float = 20.0) -> list[Settlement | Failure]:
        async with asyncio.timeout(timeout_s):
            while len(self.told) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.told

    async def close(self) -> None:
        await self.driver.stop()
        self.db.close()


async def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - looks at rows of SQLite, which wake nobody
            await asyncio.sleep(0.005)


@pytest.fixture
async def chain(tmp_path: Path) -> AsyncIterator[DevChain]:
    async with DevChain(directory=tmp_path / "chain", block_time_s=0.02) as running:
        yield running


@pytest.fixture
def identity() -> Identity:
    return Identity(bytes([7]) * 32)


@pytest.fixture
def new_payer(chain: DevChain, identity: Identity, tmp_path: Path) -> Callable[..., Payer]:
    """Makes a funded payer; ``changes`` are of its network."""

    def make(*, wei: int = TOKEN, token_units: int = 1000 * TOKEN, **changes: object) -> Payer:
        if wei or token_units:
            chain.fund(identity.address, wei=wei, token_units=token_units)
        quick = {"poll_s": 0.01, "max_poll_s": 0.05}
        return Payer(tmp_path / "node.sqlite", identity, devnet(chain.rpc_url, **(quick | changes)))

    return make


@pytest.fixture
async def payer(new_payer: Callable[..., Payer]) -> AsyncIterator[Payer]:
    """Funded and running."""
    made = new_payer()
    await made.open().start()
    yield made
    await made.close()


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    return wait_until


@pytest.fixture
def token_balance(chain: DevChain) -> Callable[[str], int]:
    def read(owner: str) -> int:
        data = "0x70a08231" + owner.removeprefix("0x").rjust(64, "0")
        return int(str(chain.rpc.call("eth_call", [{"to": places.TOKEN_ADDRESS, "data": data}, "latest"])), 16)

    return read


@pytest.fixture
def devnet_network() -> Callable[..., Network]:
    return devnet


@pytest.fixture
def payer_type() -> type[Payer]:
    return Payer
