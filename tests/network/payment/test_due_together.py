"""Bills paid by transfer: those due together are one transaction, and each provider finds its own part of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shem.node.config import NetworkConfig
from shem.node.payment.drivers.evm.driver import EvmDriver
from shem.node.payment.drivers.networks import networks_from
from shem.testing.devchain import places
from shem.testing.devchain.node import DevChain
from shem.wire import payment as wire
from tests.network.payment.conftest import World

TGLM = 10**18
PLATFORM = "erc20-devnet-tglm"
LONG_S = 30.0


class ManyWorld(World):
    """A chain with a contract that pays many at once."""

    chain: DevChain
    changes: dict[str, Any]

    def drivers(self, node: Any) -> list[Any]:
        config = NetworkConfig(
            chain_id=1337,
            rpc_urls=(self.chain.rpc_url,),
            token=places.TOKEN_ADDRESS,
            token_symbol="tGLM",
            multi_transfer=places.MULTI_TRANSFER_ADDRESS,
        )
        (network,) = networks_from({"devnet": config})
        quick = msgspec.structs.replace(network, poll_s=0.01, max_poll_s=0.05, gather_s=0.05, **self.changes)
        return [EvmDriver(node.db, [quick], [node.identity])]

    async def transfers(self, node: Any) -> list[Any]:
        return list(await node.payments.transfers(node.id, after=None, limit=20, session=None, timeout_s=0))


@pytest.fixture
async def open_many(tmp_path: Path, wait: Any) -> AsyncIterator[Any]:
    async with DevChain(block_time_s=0.02) as chain:
        world = ManyWorld(tmp_path)
        world.chain = chain

        async def start(**changes: Any) -> ManyWorld:
            world.changes = changes
            for name in ("alice", "bob", "carol"):
                node = await world.add(name)
                chain.fund(node.id, wei=TGLM, token_units=100 * TGLM if name == "alice" else 0)
            connected = [node.network.connected for node in world.nodes.values()]
            await wait(lambda: all(len(peers()) == 2 for peers in connected), "the network", LONG_S)
            return world

        try:
            yield start
        finally:
            for node in world.nodes.values():
                await node.stop()


async def test_bills_accepted_together_are_one_transaction(open_many: Any, wait: Any) -> None:
    world = await open_many()
    alice, bob, carol = (world.nodes[name] for name in ("alice", "bob", "carol"))
    allocation = await alice.allocate("10", PLATFORM)
    bills = {}
    for node, amount in ((bob, "0.5"), (carol, "0.25"), (bob, "1")):
        deal = world.deals.make(alice.id, node.id, platform=PLATFORM)
        bills[await node.bill(deal, amount)] = (node, amount)
    for bill, (_, amount) in bills.items():
        alice.accept("invoice", bill, amount, allocation)
    await wait(lambda: {node.state(bill) for bill, (node, _) in bills.items()} == {"SETTLED"}, "settlement", LONG_S)
    paid = await world.transfers(alice)
    assert len({transfer.tx_hash for transfer in paid}) == 1
    assert sum(transfer.amount for transfer in paid) == 175 * TGLM // 100
    for node, hundredths in ((bob, 150), (carol, 25)):
        seen = await world.transfers(node)
        assert sum(transfer.amount for transfer in seen) == hundredths * TGLM // 100
        assert {transfer.tx_hash for transfer in seen} == {paid[0].tx_hash}
    assert alice.payments.problems() == []


async def test_bills_wait_for_their_date_and_go_with_the_first(open_many: Any, wait: Any) -> None:
    world = await open_many(pay_ahead_s=3600.0)
    alice, bob, carol = (world.nodes[name] for name in ("alice", "bob", "carol"))
    allocation = await alice.allocate("10", PLATFORM)

    async def bill(node: Any, due_in: timedelta) -> str:
        deal = world.deals.make(alice.id, node.id, platform=PLATFORM)
        body = wire.NewInvoice(agreement_id=deal, amount="1", payment_due_date=datetime.now(UTC) + due_in)
        invoice = node.payments.provider.issue_invoice(node.id, body).document_id
        await node.send("invoice", invoice)
        alice.accept("invoice", invoice, "1", allocation)
        return str(invoice)

    late = [await bill(bob, timedelta(hours=24)), await bill(carol, timedelta(hours=30))]
    await wait(lambda: alice.payments.books.store.next_due(datetime.now(UTC)) is not None)
    assert alice.db.connection.execute("select count(*) from payment_order").fetchone()[0] == 0
    waiting = alice.payments.books.store.next_due(datetime.now(UTC))
    assert timedelta(hours=22) < waiting - datetime.now(UTC) < timedelta(hours=24)
    await alice.stop()
    alice.bootstrap = [bob, carol]
    await alice.start()
    await wait(lambda: len(alice.network.connected()) == 2, "the peers", LONG_S)
    assert {alice.state(invoice) for invoice in late} == {"ACCEPTED"}
    soon = await bill(bob, timedelta(minutes=50))
    await wait(lambda: alice.state(soon) == "SETTLED", "settlement", LONG_S)
    await wait(lambda: {alice.state(invoice) for invoice in late} == {"SETTLED"}, "the others", LONG_S)
    assert len({transfer.tx_hash for transfer in await world.transfers(alice)}) == 1
    await wait(lambda: (bob.state(late[0]), carol.state(late[1])) == ("SETTLED", "SETTLED"), "the claims", LONG_S)
