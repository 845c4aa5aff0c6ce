"""Deals paid through channels between two nodes on a chain in this process: cover, vouchers, the end, and restarts."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shem.errors import MoneyShort
from shem.node.payment.channel_cover import NoCover
from shem.node.payment.protocol import method_of
from shem.terms.pricing import LinearPricing
from shem.testing.devchain import places
from shem.testing.devchain.node import DevChain

PLATFORM = "channel-devnet-tglm"
TGLM = 10**18
PRICE = LinearPricing((Decimal("0.001"),), Decimal(0), ("golem.usage.duration_sec",))
"""0.6 tGLM of cover, 0.06 to start."""


@pytest.fixture
async def world(tmp_path: Path, open_channels: Any) -> AsyncIterator[Any]:
    async with open_channels(tmp_path) as made:
        yield made


@pytest.fixture
def chain(world: Any) -> DevChain:
    running: DevChain = world.chain
    return running


def tokens(chain: DevChain, owner: str) -> int:
    data = "0x70a08231" + owner.removeprefix("0x").rjust(64, "0")
    return int(str(chain.rpc.call("eth_call", [{"to": places.TOKEN_ADDRESS, "data": data}, "latest"])), 16)


def channel(node: Any) -> Any:
    found = node.payments.channels.listed(node.id)
    return found[-1][0] if found else None


def agree(world: Any, alice: Any, bob: Any, *, life_s: float = 3600) -> str:
    expires = int((time.time() + life_s) * 1000)
    deal = world.deals.make(
        alice.id, bob.id, platform=PLATFORM, pricing=PRICE, demand={"golem.srv.comp.expiration": expires}
    )
    world.deals.tell(deal, "Approved")
    return deal


async def start_work(world: Any, alice: Any, bob: Any, wait: Any, budget: str = "10") -> tuple[str, str]:
    """(agreement, allocation), with cover seen by bob and known to alice."""
    allocation = await alice.allocate(budget, platform=PLATFORM)
    deal = agree(world, alice, bob)
    await bob.payments.admit(bob.id, deal)
    return deal, allocation


async def test_a_deal_from_cover_to_one_closing_transaction(world, alice, bob, wait, chain):
    deal, allocation = await start_work(world, alice, bob, wait)
    assert channel(bob).reserved == channel(alice).reserved == 6 * TGLM // 10
    activity = world.deals.activity(deal)
    for amount in ("0.01", "0.03", "0.05"):
        note = await bob.bill_note(activity, amount, due=True)
        alice.accept("debit-note", note, amount, allocation)
        await wait(lambda note=note: bob.state(note) == "ACCEPTED", "the voucher")
    assert channel(bob).signed == channel(bob).owed == channel(alice).signed == 5 * TGLM // 100
    before = len(transactions(alice))

    world.deals.tell(deal, "Terminated")
    invoice = await bob.bill(deal, "0.06")
    alice.accept("invoice", invoice, "0.06", allocation)
    alice.payments.allocations.release(alice.id, allocation)
    await wait(lambda: bob.state(invoice) == alice.state(invoice) == "SETTLED", "the end", 20)
    await wait(lambda: channel(alice).state == "closed")
    assert tokens(chain, bob.id) == 100 * TGLM + 6 * TGLM // 100
    assert len(transactions(alice)) == before + 1
    paid = await alice.payments.transfers(alice.id, after=None, limit=10, session=None, timeout_s=0)
    got = await bob.payments.transfers(bob.id, after=None, limit=10, session=None, timeout_s=0)
    assert {(t.payment_id, t.amount, t.tx_hash) for t in paid} == {(t.payment_id, t.amount, t.tx_hash) for t in got}
    assert sum(t.amount for t in got) == 6 * TGLM // 100


def transactions(node: Any) -> list[str]:
    return [row[0] for row in node.db.connection.execute("select key from evm_intent").fetchall()]


async def test_no_work_without_cover(world, alice, bob):
    deal = agree(world, alice, bob)  # and no allocation
    with pytest.raises(NoCover):
        await bob.payments.admit(bob.id, deal)
    allocation = await alice.allocate("10", platform=PLATFORM)
    await bob.payments.admit(bob.id, deal)
    note = await bob.bill_note(world.deals.activity(deal), "0.7")
    with pytest.raises(MoneyShort):  # more than is reserved
        alice.accept("debit-note", note, "0.7", allocation)
    assert (alice.state(note), channel(alice).signed) == ("RECEIVED", 0)


async def test_the_channel_grows_before_it_is_used_up_and_serves_the_next_agreement(world, alice, bob, wait, chain):
    deal, allocation = await start_work(world, alice, bob, wait)
    activity = world.deals.activity(deal)
    note = await bob.bill_note(activity, "0.35")
    alice.accept("debit-note", note, "0.35", allocation)
    await wait(lambda: channel(bob).reserved == 95 * TGLM // 100, "the extension")
    world.deals.tell(deal, "Terminated")

    other = agree(world, alice, bob)
    await bob.payments.admit(bob.id, other)
    invoices = [await bob.bill(deal, "0.4"), await bob.bill(other, "0.1")]
    for invoice, amount in zip(invoices, ("0.4", "0.1"), strict=True):
        alice.accept("invoice", invoice, amount, allocation)
    await wait(lambda: [bob.state(i) for i in invoices] == ["ACCEPTED", "ACCEPTED"])
    assert channel(bob).signed == TGLM // 2
    assert len(alice.payments.channels.listed(alice.id)) == 1
    world.deals.tell(other, "Terminated")
    alice.payments.allocations.release(alice.id, allocation)
    await wait(lambda: [bob.state(i) for i in invoices] == ["SETTLED", "SETTLED"], "the end", 20)
    assert tokens(chain, bob.id) == 100 * TGLM + TGLM // 2
    assert await alice.payments.books.drivers[PLATFORM].chain(PLATFORM).free(alice.id) == 45 * TGLM // 100


async def test_a_payee_sees_the_end_of_a_channel_that_paid_nothing(world, alice, bob, wait):
    deal, allocation = await start_work(world, alice, bob, wait)
    world.deals.tell(deal, "Terminated")
    invoice = await bob.bill(deal, "0")
    alice.accept("invoice", invoice, "0", allocation)
    alice.payments.allocations.release(alice.id, allocation)
    await wait(lambda: channel(alice).state == "closed", "the end", 20)
    assert channel(alice).signed == 0
    await wait(lambda: channel(bob).state == "closed", "bob's look", 20)


async def test_no_payee_takes_a_whole_small_budget(world, alice, bob, wait):
    await start_work(world, alice, bob, wait, budget="0.2")
    assert channel(bob).reserved == TGLM // 10


async def test_money_in_channels_is_not_missing_for_other_allocations(world, alice, bob, wait):
    await start_work(world, alice, bob, wait, budget="50")
    assert await alice.allocate("50", platform=PLATFORM)
    with pytest.raises(MoneyShort):
        await alice.allocate("0.1", platform=PLATFORM)


async def test_a_payer_that_is_gone_is_collected_from(world, alice, bob, wait, chain):
    """The term is short, so that its margin is here at once."""
    deal, allocation = await start_work(world, alice, bob, wait)
    note = await bob.bill_note(world.deals.activity(deal), "0.3")
    alice.accept("debit-note", note, "0.3", allocation)
    await wait(lambda: bob.state(note) == "ACCEPTED")
    await alice.stop()
    store = bob.payments.channels.shared.store
    store.save(msgspec.structs.replace(channel(bob), valid_until=int(time.time())))
    bob.payments.channels.changed()
    await wait(lambda: bob.state(note) == "SETTLED", "the redemption", 20)
    assert tokens(chain, bob.id) == 100 * TGLM + 3 * TGLM // 10
    [got] = await bob.payments.transfers(bob.id, after=None, limit=10, session=None, timeout_s=0)
    assert (got.amount, got.state) == (3 * TGLM // 10, "final")

    # alice comes back: she sees that it is paid, and what she says of it later changes nothing
    alice.bootstrap = [bob]
    await alice.start()
    await wait(lambda: channel(alice).claimed == 3 * TGLM // 10, "her look at the chain", 20)
    world.deals.tell(deal, "Terminated")
    invoice = await bob.bill(deal, "0.3")
    alice.accept("invoice", invoice, "0.3", allocation)
    alice.payments.allocations.release(alice.id, allocation)
    await wait(lambda: alice.state(invoice) == bob.state(invoice) == "SETTLED", "the end", 20)
    assert tokens(chain, bob.id) == 100 * TGLM + 3 * TGLM // 10
    assert bob.account(deal).settled == bob.account(deal).accepted == 3 * TGLM // 10


async def test_a_payee_that_does_not_answer_is_settled(world, alice, bob, wait, chain):
    deal, allocation = await start_work(world, alice, bob, wait)
    world.deals.tell(deal, "Terminated")
    invoice = await bob.bill(deal, "0.25")
    alice.accept("invoice", invoice, "0.25", allocation)
    await wait(lambda: bob.state(invoice) == "ACCEPTED")
    store = bob.payments.channels.shared.store
    # What bob holds is not what alice signed: he will not agree to her sum.
    store.save(msgspec.structs.replace(channel(bob), signed=channel(bob).signed + 1))
    alice.payments.allocations.release(alice.id, allocation)
    await wait(lambda: alice.state(invoice) == "SETTLED", "the settlement", 20)
    assert tokens(chain, bob.id) == 100 * TGLM + TGLM // 4
    assert channel(alice).state == "closing"  # its rest comes back after the term


async def test_a_bill_that_nobody_accepts_does_not_hold_up_what_was_accepted(world, alice, bob, wait, chain):
    deal, allocation = await start_work(world, alice, bob, wait)
    note = await bob.bill_note(world.deals.activity(deal), "0.1")
    alice.accept("debit-note", note, "0.1", allocation)
    world.deals.tell(deal, "Terminated")
    await bob.bill(deal, "0.2")  # its program is gone
    alice.payments.allocations.release(alice.id, allocation)
    await wait(lambda: alice.state(note) == bob.state(note) == "SETTLED", "the settlement", 30)
    assert tokens(chain, bob.id) == 100 * TGLM + TGLM // 10
    assert channel(alice).state == "open"  # for the bill that may still be accepted


async def test_a_bill_that_nobody_accepts_takes_nothing_from_the_next_programs_budget(open_channels, tmp_path, wait):
    """What lies idle for the one provider is more than the next allocation holds, and the next provider starts all the same."""
    async with open_channels(tmp_path) as world:
        alice, bob, carol = world.nodes["alice"], world.nodes["bob"], await world.add("carol")
        deal, allocation = await start_work(world, alice, bob, wait)
        await bob.bill_note(world.deals.activity(deal), "0.1")
        world.deals.tell(deal, "Terminated")
        await bob.bill(deal, "0.2")  # its program is gone
        alice.payments.allocations.release(alice.id, allocation)
        idle, payer = channel(alice), alice.payments.channels.payer
        assert (idle.state, idle.room) == ("open", 6 * TGLM // 10)
        await wait(lambda: payer._rests(idle, payer._shared.now()), "the time in which more work is expected")
        _, allocation = await start_work(world, alice, carol, wait, budget="0.3")
        assert channel(carol).reserved == 15 * TGLM // 100


async def test_one_wallet_is_promised_once_however_it_is_paid(world, alice, bob, wait):
    plain = "erc20-devnet-tglm"
    await start_work(world, alice, bob, wait, budget="60")
    with pytest.raises(MoneyShort):
        await alice.allocate("41", platform=plain)
    assert await alice.allocate("30", platform=plain)
    with pytest.raises(MoneyShort):
        await alice.allocate("11", platform=PLATFORM)
    assert await alice.allocate("10", platform=PLATFORM)


async def test_the_rest_comes_back_after_the_term(world, alice, bob, wait, chain):
    """bob's node is gone for good: he is paid all the same, and what is left is alice's again."""
    deal, allocation = await start_work(world, alice, bob, wait)
    invoice = await bob.bill(deal, "0.2")
    alice.accept("invoice", invoice, "0.2", allocation)
    await wait(lambda: bob.state(invoice) == "ACCEPTED")
    await bob.stop()
    chain.rpc.call("shem_advanceTime", [3 * 3600])
    store = alice.payments.channels.shared.store
    store.save(msgspec.structs.replace(channel(alice), valid_until=int(time.time()) - 1))
    alice.payments.allocations.release(alice.id, allocation)
    await wait(lambda: alice.state(invoice) == "SETTLED", "the settlement", 20)
    assert tokens(chain, bob.id) == 100 * TGLM + TGLM // 5

    def over() -> bool:
        store.save(msgspec.structs.replace(channel(alice), valid_until=int(time.time()) - 1))
        return bool(channel(alice).state == "closed")

    await wait(over, "the release", 20)
    free = await alice.payments.books.drivers[PLATFORM].chain(PLATFORM).free(alice.id)
    assert free == 4 * TGLM // 10
    await bob.start()


async def test_a_payer_with_an_older_database_signs_no_lower(world, alice, bob, wait, chain):
    deal, allocation = await start_work(world, alice, bob, wait)
    activity = world.deals.activity(deal)
    note = await bob.bill_note(activity, "0.05")
    alice.accept("debit-note", note, "0.05", allocation)
    await wait(lambda: bob.state(note) == "ACCEPTED")
    await alice.stop()
    copy = alice.path.with_suffix(".copy")
    shutil.copy(alice.path, copy)
    alice.bootstrap = [bob]
    await alice.start()
    await wait(lambda: len(bob.network.connected()) == 1, "the network")
    later = await bob.bill_note(activity, "0.25")
    await wait(lambda: accepts(alice, later, "0.25", allocation), "her look at the chain")
    await wait(lambda: bob.state(later) == "ACCEPTED")
    await alice.stop()

    store = bob.payments.channels.shared.store
    before = channel(bob)
    store.save(msgspec.structs.replace(before, valid_until=int(time.time())))
    bob.payments.channels.changed()
    await wait(lambda: channel(bob).claimed == TGLM // 4, "the redemption", 20)
    for name in ("", "-wal", "-shm"):
        alice.path.with_name(alice.path.name + name).unlink(missing_ok=True)
    shutil.copy(copy, alice.path)
    await alice.start()
    await wait(lambda: channel(alice).claimed == TGLM // 4, "her look at the chain", 20)
    assert channel(alice).signed == TGLM // 4
    # What she forgot is neither ordered nor signed for again: bob holds her word, and shows it.
    await wait(lambda: len(bob.network.connected()) == 1, "the network")
    last = await bob.bill_note(activity, "0.3")
    await wait(lambda: accepts(alice, last, "0.3", allocation))
    assert channel(alice).signed == channel(alice).owed == 3 * TGLM // 10
    await wait(lambda: bob.state(last) == "ACCEPTED", "the voucher")
    assert alice.account(deal).accepted == bob.account(deal).accepted == 3 * TGLM // 10
    [kept] = alice.payments.allocations.active(alice.id)
    assert kept.spent == 3 * TGLM // 10


def accepts(alice: Any, note: str, amount: str, allocation: str) -> bool:
    """Her agent tries until it may."""
    try:
        alice.accept("debit-note", note, amount, allocation)
    except MoneyShort:
        return False
    return True


def answers_late(node: Any, seconds: float) -> None:
    """A long way to the node: what it says about the end of a channel takes so long."""
    routes = node.network._board.routes
    route = routes[method_of("close")]

    async def handler(peer: Any, request: bytes) -> bytes:
        await asyncio.sleep(seconds)
        return bytes(await route.handler(peer, request))

    routes[method_of("close")] = dataclasses.replace(route, handler=handler)


@pytest.mark.parametrize(("gather_s", "late_s"), [(0.5, 0.0), (0.0, 0.4)])
async def test_all_providers_are_paid_by_one_closing_transaction(open_channels, tmp_path, wait, gather_s, late_s):
    """Also when one of them answers later than the others."""
    async with open_channels(tmp_path, gather_s=gather_s) as world:
        alice, chain = world.nodes["alice"], world.chain
        providers = [world.nodes["bob"], await world.add("carol"), await world.add("dave")]
        answers_late(providers[1], late_s)
        allocation = await alice.allocate("10", platform=PLATFORM)
        deals = [agree(world, alice, provider) for provider in providers]
        for provider, deal in zip(providers, deals, strict=True):
            await provider.payments.admit(provider.id, deal)
            world.deals.tell(deal, "Terminated")
        invoices = [await provider.bill(deal, "0.1") for provider, deal in zip(providers, deals, strict=True)]
        for invoice in invoices:
            alice.accept("invoice", invoice, "0.1", allocation)
        alice.payments.allocations.release(alice.id, allocation)
        await wait(lambda: all(alice.state(i) == "SETTLED" for i in invoices), "the end", 20)
        asked = alice.db.connection.execute(
            "select kind, tx_hash from payment_channel_request order by created_at"
        ).fetchall()
        hashes = {kind: [tx for k, tx in asked if k == kind] for kind in ("reserve", "close", "settle")}
        assert (len(hashes["reserve"]), len(hashes["close"]), len(hashes["settle"])) == (3, 3, 0)
        assert len(set(hashes["close"])) == 1
        for provider in providers[1:]:
            assert tokens(chain, provider.id) == TGLM // 10  # without a coin for fees
