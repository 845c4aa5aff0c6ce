"""A power cut at the commits of a node whose owner moves money into the vault, out of it, and leaves: nothing is lost, and
nothing happens twice."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from shem.errors import NotFound
from shem.terms.pricing import LinearPricing
from shem.testing.devchain import places

PLATFORM = "channel-devnet-tglm"
TGLM = 10**18
PRICE = LinearPricing((Decimal("0.001"),), Decimal(0), ("golem.usage.duration_sec",))
STRANGER = "0x5aaeb6053f3e94c9b9a09f33669435e7ef1beaed"
IN, OUT, OWED = 5 * TGLM, 2 * TGLM, TGLM // 5


class Owner:
    """Deposits 5, sends 2 of it to a stranger, and leaves: idempotent steps, by what the node itself remembers."""

    def __init__(self, node: Any) -> None:
        self.node = node
        self.left = ""

    async def step(self) -> None:
        treasury = self.node.payments.treasury
        vault = treasury.platform(None, None)
        states = {deed.kind: deed.state for deed in await self.history() if deed.amount in (IN, OUT)}
        if "deposit" not in states:
            await treasury.deposit(self.node.id, vault, "5")
        elif states["deposit"] == "final" and "withdraw" not in states:
            await treasury.withdraw(self.node.id, vault, "2", STRANGER)
        elif states.get("withdraw") == "final":
            if self.left:
                try:
                    await treasury.exit_state(self.node.id, self.left, unless=None, timeout_s=0)
                except NotFound:
                    self.left = ""
            self.left = self.left or (await treasury.exit(self.node.id, vault, None, force=True)).exit_id

    async def history(self) -> list[Any]:
        found = await self.node.payments.treasury.transactions(self.node.id, after=None, limit=99, timeout_s=0)
        return [deed for deed, _ in found]

    async def done(self) -> bool:
        if not self.left:
            return False
        found = await self.node.payments.treasury.exit_state(self.node.id, self.left, unless=None, timeout_s=0)
        return bool(found.state == "done")


async def tell_story(open_channels: Any, wait: Any, directory: Path, at: int, before: bool) -> int:
    """Runs the story; how many commits it took. ``at``: which one is fatal; 0: none is."""
    directory.mkdir(exist_ok=True)
    async with open_channels(directory) as world:
        alice, bob = world.nodes["alice"], world.nodes["bob"]
        await owe(world, alice, bob, wait)
        owner, start = Owner(alice), alice.db.commits
        if at:
            alice.db.die_at, alice.db.before = start + at, before
        async with asyncio.timeout(60):
            while alice.db.dead or not await owner.done():
                try:
                    await owner.step()
                except BaseException as error:
                    if type(error).__name__ != "PowerCut":
                        raise
                if alice.db.dead:
                    await alice.stop()
                    alice.bootstrap = [bob]
                    await alice.start()
                await asyncio.sleep(0.005)
        kinds = Counter(deed.kind for deed in await owner.history() if deed.state == "final")
        assert (kinds["deposit"], kinds["withdraw"]) == (2, 2), kinds  # the first deposit was for the channel
        assert {deed.state for deed in await owner.history()} == {"final"}
        assert await alice.payments.channels.shared.chains[PLATFORM].free(alice.id) == 0
        assert tokens(world, STRANGER) == OUT
        assert tokens(world, bob.id) == 100 * TGLM + OWED
        assert tokens(world, alice.id) == 100 * TGLM - OUT - OWED
        commits: int = alice.db.commits - start
        return commits


async def owe(world: Any, alice: Any, bob: Any, wait: Any) -> None:
    """A deal that is over and billed, in a channel that is still open because its payer has an allocation."""
    expires = int((time.time() + 3600) * 1000)
    allocation = await alice.allocate("10", platform=PLATFORM)
    deal = world.deals.make(
        alice.id, bob.id, platform=PLATFORM, pricing=PRICE, demand={"golem.srv.comp.expiration": expires}
    )
    world.deals.tell(deal, "Approved")
    await bob.payments.admit(bob.id, deal)
    world.deals.tell(deal, "Terminated")
    invoice = await bob.bill(deal, "0.2")
    alice.accept("invoice", invoice, "0.2", allocation)
    await wait(lambda: bob.state(invoice) == "ACCEPTED", "the voucher")


def tokens(world: Any, owner: str) -> int:
    data = "0x70a08231" + owner.removeprefix("0x").rjust(64, "0")
    return int(str(world.chain.rpc.call("eth_call", [{"to": places.TOKEN_ADDRESS, "data": data}, "latest"])), 16)


async def cut(open_channels: Any, wait: Any, directory: Path, step: int) -> None:
    count = await tell_story(open_channels, wait, directory / "whole", 0, False)
    assert count >= 15
    for at in range(2, count + 1, step):
        before = at % 2 == 0
        try:
            await tell_story(open_channels, wait, directory / str(at), at, before)
        except BaseException as error:
            error.add_note(f"the cut: commit {at} of {count}, {'before' if before else 'after'} it")
            raise


async def test_power_cuts_while_an_owner_moves_money(open_channels, wait, tmp_path):
    """Some commits; the slow test takes all."""
    await cut(open_channels, wait, tmp_path, step=30)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_power_cuts_at_every_commit_of_an_exit(open_channels, wait, tmp_path):
    await cut(open_channels, wait, tmp_path, step=1)
