"""One chain under two names: what is promised, sent and claimed under one counts under the other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shem.errors import MoneyShort, Refused
from shem.node.config import NetworkConfig
from shem.node.payment.drivers.evm.driver import EvmDriver
from shem.node.payment.drivers.networks import networks_from
from shem.testing.devchain import places
from shem.testing.devchain.node import DevChain
from tests.network.payment.conftest import World
from tests.network.payment.test_hostile import claim, say, state_of

TGLM = 10**18
DEVNET, HOLESKY = "erc20-devnet-tglm", "erc20-holesky-tglm"
LONG_S = 30.0


class ChainWorld(World):
    """Everybody pays on a devnet's chain that goes by two names."""

    chain: DevChain

    def drivers(self, node: Any) -> list[Any]:
        config = NetworkConfig(
            chain_id=1337,
            rpc_urls=(self.chain.rpc_url,),
            token=places.TOKEN_ADDRESS,
            token_symbol="tGLM",
            aliases=("holesky",),
        )
        return [EvmDriver(node.db, networks_from({"devnet": config}), [node.identity])]

    def nonces(self, node: Any) -> list[int]:
        rows = node.db.connection.execute("select nonce from evm_intent where sender = ? order by id", (node.id,))
        return [row["nonce"] for row in rows]

    def tokens(self, address: str) -> int:
        data = "0x70a08231" + address.removeprefix("0x").rjust(64, "0")
        return int(str(self.chain.rpc.call("eth_call", [{"to": places.TOKEN_ADDRESS, "data": data}, "latest"])), 16)


@pytest.fixture
async def chained(tmp_path: Path, wait: Any) -> AsyncIterator[ChainWorld]:
    async with DevChain(block_time_s=0.05) as chain:
        world = ChainWorld(tmp_path)
        world.chain = chain
        try:
            for name in ("alice", "bob"):
                node = await world.add(name)
                chain.fund(node.id, wei=TGLM, token_units=100 * TGLM if name == "alice" else 0)
            await wait(
                lambda: all(len(n.network.connected()) == 1 for n in world.nodes.values()), "the network", LONG_S
            )
            yield world
        finally:
            for node in world.nodes.values():
                await node.stop()


async def test_both_names_are_served_and_the_networks_own_comes_first(chained):
    alice = chained.nodes["alice"]
    accounts = alice.payments.allocations.accounts(alice.id, send=True)
    assert [(a.platform, a.network, a.token) for a in accounts] == [
        (DEVNET, "devnet", "tGLM"),
        (HOLESKY, "holesky", "tGLM"),
    ]
    allocation = await alice.allocate("1", HOLESKY)
    [decoration, _] = alice.payments.allocations.decorations(alice.id, [allocation]).properties
    assert decoration.key == f"golem.com.payment.platform.{HOLESKY}.address"


async def test_money_is_promised_once_under_all_names(chained):
    alice = chained.nodes["alice"]
    await alice.allocate("60", HOLESKY)
    with pytest.raises(MoneyShort):
        await alice.allocate("60", DEVNET)
    await alice.allocate("40", DEVNET)
    allocations = alice.payments.allocations
    assert allocations.reserved(alice.id, DEVNET) == allocations.reserved(alice.id, HOLESKY) == 100 * TGLM


async def test_both_are_paid_with_one_sequence_of_nonces_also_after_a_restart(chained, wait):
    alice, bob = chained.nodes["alice"], chained.nodes["bob"]
    bills: list[str] = []
    for start in range(2):
        for platform in (DEVNET, HOLESKY):
            allocation = await alice.allocate("5", platform)
            deal = chained.deals.make(alice.id, bob.id, platform=platform)
            bills.append(await bob.bill(deal, "0.5"))
            alice.accept("invoice", bills[-1], "0.5", allocation)
        if start == 0:  # while the first two are on their way
            await alice.stop()
            alice.bootstrap = [bob]
            await alice.start()
            await wait(lambda: bob.id in alice.network.connected(), "the peers", LONG_S)
    await wait(lambda: {bob.state(bill) for bill in bills} == {"SETTLED"}, "settlement", LONG_S)
    assert {alice.state(bill) for bill in bills} == {"SETTLED"}
    assert sorted(chained.nonces(alice)) == [0, 1, 2, 3]
    assert chained.tokens(bob.id) == 2 * TGLM
    paid = await alice.payments.transfers(alice.id, after=None, limit=10, session=None, timeout_s=0)
    assert sorted(transfer.platform for transfer in paid) == [DEVNET, DEVNET, HOLESKY, HOLESKY]
    assert alice.payments.problems() == []


async def test_one_transaction_does_not_pay_a_second_bill_under_the_other_name(chained, wait):
    mallory, bob = chained.nodes["alice"], chained.nodes["bob"]
    allocation = await mallory.allocate("5", DEVNET)
    bill = await bob.bill(chained.deals.make(mallory.id, bob.id, platform=DEVNET), "1")
    mallory.accept("invoice", bill, "1", allocation)
    await wait(lambda: bob.state(bill) == "SETTLED", "settlement", LONG_S)
    [paid] = await bob.payments.transfers(bob.id, after=None, limit=10, session=None, timeout_s=0)
    other = chained.deals.make(mallory.id, bob.id, platform=HOLESKY)
    await bob.bill(other, "1")
    again = claim(mallory, bob, other, paid.tx_hash, platform=HOLESKY)
    await say(mallory, bob, "payment", again)
    await wait(lambda: state_of(bob, again.payment_id) == "refuted", "the look at the chain", LONG_S)
    assert bob.account(other).settled == 0


async def test_an_allocation_under_one_name_does_not_pay_a_bill_under_the_other(chained):
    alice, bob = chained.nodes["alice"], chained.nodes["bob"]
    allocation = await alice.allocate("5", DEVNET)
    bill = await bob.bill(chained.deals.make(alice.id, bob.id, platform=HOLESKY), "0.5")
    with pytest.raises(Refused):
        alice.accept("invoice", bill, "0.5", allocation)
