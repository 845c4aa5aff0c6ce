"""The same chaos of channels and of transfers on a real node (anvil), where there is one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from shem.node.identity.signing import keccak256
from shem.testing.devchain import places
from shem.testing.devchain.chain import Chain
from shem.testing.devchain.rpc import Rpc
from tests.unit.evm.test_channel_chaos import Channels
from tests.unit.evm.test_chaos import EvmDriver, Many, World
from tests.unit.vault.conftest import Call, anvil_process

DEPTH = 2
"""Blocks on top that make one final: a young anvil has no final block of its own."""
BALANCES = places.artifact("Token")["storageLayout"]["balanceOf"]


class Anvil:
    """The node behind the few words by which a world moves its chain, and by which it speaks to it."""

    def __init__(self, ask: Call, directory: Path) -> None:
        self.answer = ask
        self.shift_s = 0
        self.pool = SimpleNamespace(clear=lambda: self.call("anvil_dropAllTransactions", []))
        ours = Chain(directory)
        rpc = Rpc(ours, changed=lambda: None, automine=lambda on: None)
        for place in (places.TOKEN_ADDRESS, places.MULTI_TRANSFER_ADDRESS, places.VAULT_ADDRESS):
            self.call("anvil_setCode", [place, rpc.call("eth_getCode", [place, "latest"])])
        ours.close()

    def call(self, method: str, params: list[object]) -> Any:
        told = self.answer({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        assert "error" not in told, told["error"]
        return told["result"]

    @property
    def head(self) -> int:
        return int(self.call("eth_blockNumber", []), 16)

    @property
    def finalized(self) -> int:
        return max(self.head - DEPTH, 0)

    def header(self, number: int) -> Any:
        return SimpleNamespace(timestamp=int(self.call("eth_getBlockByNumber", [hex(number), False])["timestamp"], 16))

    def mine(self, limit: int = 1) -> None:
        if limit:
            # Said for each block: what anvil was told before is forgotten in a reorg.
            moment = max(self.header(self.head).timestamp + 1, int(time.time()) + self.shift_s)
            self.call("evm_setNextBlockTimestamp", [moment])
            self.call("evm_mine", [])

    def fund(self, receiver: bytes, wei: int, token_units: int) -> None:
        """By decree, as only a test's chain can."""
        address = "0x" + receiver.hex()
        self.call("anvil_setBalance", [address, hex(wei)])
        slot = keccak256(BALANCES.to_bytes(32, "big") + receiver.rjust(32, b"\0"))
        self.call("anvil_setStorageAt", [places.TOKEN_ADDRESS, "0x" + slot.hex(), f"0x{token_units:064x}"])

    def advance_time(self, seconds: int) -> None:
        self.shift_s += seconds

    def reorg(self, depth: int, *, requeue: bool) -> None:
        """Anvil forgets the transactions; who wants them back sends them again."""
        self.call("anvil_reorg", [depth, []])

    def close(self) -> None:
        """Ended by who started it."""


class OnAnvil(World):
    """Before the kind of world in the order of bases."""

    ask: Call

    def start_chain(self) -> None:
        self.chain = self.rpc = Anvil(self.ask, self.directory)  # type: ignore[assignment]

    def open(self) -> None:
        self.network = msgspec.structs.replace(self.network, depth=DEPTH)
        super().open()


@pytest.fixture
def node() -> Iterator[Call]:
    with anvil_process() as ask:
        yield ask


@pytest.mark.interop
@pytest.mark.parametrize("kind", [Channels, World, Many])
@pytest.mark.parametrize("seed", range(8))
async def test_exactly_once_on_a_real_node(seed: int, kind: type[World], tmp_path: Path, node: Call) -> None:
    world_type = type("OnNode", (OnAnvil, kind), {"ask": staticmethod(node)})
    world = world_type(seed, 10 if kind is Channels else 30, tmp_path, EvmDriver)
    try:
        async with asyncio.timeout(100):
            wrong = await world.run()
        assert not wrong, f"{wrong} after {dict(world.faults)}"
        assert any(fault.startswith("reorg") for fault in world.faults)
    finally:
        world.close()
