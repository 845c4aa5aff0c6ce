"""The payee's gate between two nodes on a chain in this process: what lets an agreement start, and what it is told then."""

from __future__ import annotations

import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from shem.cogs.tasks import TaskScope
from shem.errors import NotFound, Refused
from shem.node.payment.channel_cover import NoCover
from shem.terms.pricing import LinearPricing

PLATFORM = "channel-devnet-tglm"
TGLM = 10**18
PRICE = LinearPricing((Decimal("0.001"),), Decimal(0), ("golem.usage.duration_sec",))
"""0.6 tGLM of cover, 0.06 to start."""


def agree(world: Any, alice: Any, bob: Any, *, life_s: float = 600) -> str:
    expires = int((time.time() + life_s) * 1000)
    deal = world.deals.make(
        alice.id, bob.id, platform=PLATFORM, pricing=PRICE, demand={"golem.srv.comp.expiration": expires}
    )
    world.deals.tell(deal, "Approved")
    return str(deal)


def gate(node: Any) -> Any:
    return node.payments.channels.gate


async def test_what_an_agent_is_told_from_the_reserve_to_the_voucher(tmp_path: Path, open_channels: Any, wait: Any):
    async with open_channels(tmp_path) as world:
        alice, bob = world.nodes["alice"], world.nodes["bob"]
        allocation = await alice.allocate("10", platform=PLATFORM)
        deal = agree(world, alice, bob)
        before = gate(bob).now(bob.id, deal)
        assert (before.by_channel, before.started, before.room, before.until) == (True, False, 0, 0)
        assert 0 < before.expected_until - time.time() <= world.config.cover_timeout_s
        await bob.payments.admit(bob.id, deal)
        reserved = await gate(bob).changed(bob.id, deal, before.version, 5)
        assert (reserved.started, reserved.accepted, reserved.room) == (True, 0, 6 * TGLM // 10)
        assert reserved.until - time.time() > 600 + 600
        activity = world.deals.activity(deal)
        async with TaskScope("test") as scope:
            news = scope.start(gate(bob).changed(bob.id, deal, reserved.version, 10), "news")
            note = await bob.bill_note(activity, "0.01")
            alice.accept("debit-note", note, "0.01", allocation)
            after = await news
        assert (after.accepted, after.room) == (TGLM // 100, 59 * TGLM // 100)

        other = agree(world, alice, bob)
        await bob.payments.admit(bob.id, other)
        await bob.bill_note(activity, "0.03")
        assert gate(bob).now(bob.id, deal).room == gate(bob).now(bob.id, other).room + TGLM // 100
        shared = gate(bob).now(bob.id, deal)
        world.deals.tell(other, "Terminated")  # its bill is still to come …
        bob.invoice(other, "0")  # … and is nothing
        assert gate(bob).now(bob.id, deal).room >= 2 * shared.room
        for stranger, agreement in ((alice, deal), (bob, "ab" * 32)):
            with pytest.raises((NotFound, Refused)):
                gate(stranger).now(stranger.id, agreement)


async def test_what_has_started_counts_also_after_a_restart(tmp_path: Path, open_channels: Any):
    async with open_channels(tmp_path) as world:
        alice, bob = world.nodes["alice"], world.nodes["bob"]
        await alice.allocate("0.11", platform=PLATFORM)  # for one agreement, not for two
        deal = agree(world, alice, bob)
        await bob.payments.admit(bob.id, deal)
        await bob.stop()
        await bob.start()
        second = agree(world, alice, bob)
        with pytest.raises(NoCover):
            await bob.payments.admit(bob.id, second)
        await bob.payments.admit(bob.id, deal)
        world.deals.tell(deal, "Terminated")
        await bob.payments.admit(bob.id, second)


async def test_a_reserve_that_ends_too_early_is_waited_for(tmp_path: Path, open_channels: Any):
    async with open_channels(tmp_path) as world:
        alice, bob = world.nodes["alice"], world.nodes["bob"]
        await alice.allocate("10", platform=PLATFORM)
        await bob.payments.admit(bob.id, agree(world, alice, bob, life_s=60))
        short = gate(bob).now(bob.id, agree(world, alice, bob, life_s=9000))
        assert not short.started
        await bob.payments.admit(bob.id, short.agreement_id)
        assert gate(bob).now(bob.id, short.agreement_id).until - time.time() > 9000 + 600


async def test_credit_is_work_before_there_is_cover(tmp_path: Path, open_channels: Any):
    async with open_channels(tmp_path, credit=7 * TGLM // 100) as world:
        alice, bob = world.nodes["alice"], world.nodes["bob"]
        first, second = agree(world, alice, bob), agree(world, alice, bob)
        await bob.payments.admit(bob.id, first)  # 0.06, and nobody has reserved anything
        assert gate(bob).now(bob.id, first).credit == 7 * TGLM // 100
        with pytest.raises(NoCover):
            await bob.payments.admit(bob.id, second)


async def test_on_a_chain_with_slow_finality_more_is_reserved(tmp_path: Path, open_channels: Any):
    async with open_channels(tmp_path, finality_s=300.0) as world:
        alice, bob = world.nodes["alice"], world.nodes["bob"]
        await alice.allocate("10", platform=PLATFORM)
        deal = agree(world, alice, bob)
        await bob.payments.admit(bob.id, deal)
        now = gate(bob).now(bob.id, deal)
        assert (now.wanted, now.room, now.finality_s) == (12 * TGLM // 10, 12 * TGLM // 10, 300.0)


async def test_what_is_due_on_a_channel_that_goes_on_is_paid_after_the_networks_time(
    tmp_path: Path, open_channels: Any, wait: Any
):
    async with open_channels(tmp_path, settle_after_s=0.2) as world:
        alice, bob = world.nodes["alice"], world.nodes["bob"]
        allocation = await alice.allocate("10", platform=PLATFORM)
        deal = agree(world, alice, bob)
        await bob.payments.admit(bob.id, deal)
        note = await bob.bill_note(world.deals.activity(deal), "0.01", due=True)
        alice.accept("debit-note", note, "0.01", allocation)
        await wait(lambda: (alice.state(note), bob.state(note)) == ("SETTLED", "SETTLED"), "the settlement", 15)
        (channel, agreements), *_ = bob.payments.channels.listed(bob.id)
        assert (channel.state, agreements) == ("open", [deal])
