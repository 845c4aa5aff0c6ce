"""A power cut at the commits of either node while a deal is paid through a channel: the provider gets exactly what was
accepted, by one channel, and the rest is the requestor's again."""

from __future__ import annotations

import asyncio
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from shem.errors import MoneyShort, PeerFailed
from shem.terms.pricing import LinearPricing
from shem.testing.devchain import places

PLATFORM = "channel-devnet-tglm"
TGLM = 10**18
FINAL = TGLM // 2
PRICE = LinearPricing((Decimal("0.001"),), Decimal(0), ("golem.usage.duration_sec",))


class Agents:
    """Both agents: idempotent steps towards a settled invoice and a closed channel."""

    def __init__(self, world: Any, deal: str, activity: str) -> None:
        self.world = world
        self.alice, self.bob = world.nodes["alice"], world.nodes["bob"]
        self.deal, self.activity = deal, activity
        self.told: set[tuple[str, str]] = set()

    def documents(self, node: Any, kind: str) -> list[Any]:
        found = node.payments.books.store.of_agreement(self.deal, node.id)
        return [document for document in found if document.kind == kind]

    async def step(self) -> None:
        """Whatever is due now, of both."""
        if not self.bob.db.dead:
            await self._provide()
        if not self.alice.db.dead:
            await self._rent()

    def tell(self, node: Any, state: str) -> None:
        """The market's word comes in a transaction of the market's: once, or again when that was lost."""
        if (node.id, state) not in self.told:
            with node.db.transaction(durable=True):
                self.world.deals.hooks[node.id](self.world.deals.agreement(self.deal, node.id), state)
            self.told.add((node.id, state))

    async def _provide(self) -> None:
        self.tell(self.bob, "Approved")
        if not self.documents(self.bob, "debit-note"):
            self.bob.note(self.activity, "0.1", due=True)
        [note] = self.documents(self.bob, "debit-note")
        if note.state == "ISSUED":
            await self._send("debit-note", note)
        elif note.state in ("ACCEPTED", "SETTLED"):
            self.tell(self.bob, "Terminated")
            if not self.documents(self.bob, "invoice"):
                self.bob.invoice(self.deal, "0.5")
        for invoice in self.documents(self.bob, "invoice"):
            if invoice.state == "ISSUED":
                await self._send("invoice", invoice)

    async def _send(self, kind: Any, document: Any) -> None:
        try:
            await self.bob.send(kind, document.document_id, timeout_s=0.05)
        except PeerFailed:
            pass

    async def _rent(self) -> None:
        allocations = self.alice.payments.allocations
        self.tell(self.alice, "Approved")
        active = allocations.active(self.alice.id)
        documents = self.alice.payments.books.store.of_agreement(self.deal, self.alice.id)
        for document in documents:
            if document.state == "RECEIVED":
                allocation = active[0].allocation_id if active else await self.alice.allocate("1", PLATFORM)
                try:
                    amount = "0.1" if document.kind == "debit-note" else "0.5"
                    self.alice.accept(document.kind, document.document_id, amount, allocation)
                except MoneyShort:
                    pass  # cover is on its way
                return
        if not active and not documents:
            await self.alice.allocate("1", PLATFORM)
        elif len(documents) == 2:
            self.tell(self.alice, "Terminated")
            for allocation in active:
                allocations.release(self.alice.id, allocation.allocation_id)

    def done(self) -> bool:
        states = [
            [document.state for document in self.documents(node, kind)]
            for node in (self.alice, self.bob)
            for kind in ("debit-note", "invoice")
        ]
        channels = self.alice.payments.channels.listed(self.alice.id)
        return states == [["SETTLED"]] * 4 and all(channel.state == "closed" for channel, _ in channels)


async def tell_story(open_channels: Any, directory: Path, victim: str | None, at: int, before: bool) -> dict[str, int]:
    """Runs the story; how many commits each node needed when nothing was cut."""
    directory.mkdir(exist_ok=True)
    async with open_channels(directory) as world:
        alice, bob = world.nodes["alice"], world.nodes["bob"]
        expires = int((time.time() + 3600) * 1000)
        deal = world.deals.make(
            alice.id, bob.id, platform=PLATFORM, pricing=PRICE, demand={"golem.srv.comp.expiration": expires}
        )
        agents = Agents(world, deal, world.deals.activity(deal))
        start = {name: node.db.commits for name, node in world.nodes.items()}
        if victim is not None:
            database = world.nodes[victim].db
            database.die_at, database.before = database.commits + at, before
        async with asyncio.timeout(40):
            while any(node.db.dead for node in (alice, bob)) or not agents.done():
                try:
                    await agents.step()
                except BaseException as error:
                    if type(error).__name__ != "PowerCut":
                        raise
                for node in (alice, bob):
                    if node.db.dead:
                        await node.stop()
                        node.bootstrap = [other for other in (alice, bob) if other is not node]
                        await node.start()
                await asyncio.sleep(0.005)
        data = "0x70a08231" + bob.id.removeprefix("0x").rjust(64, "0")
        held = world.chain.rpc.call("eth_call", [{"to": places.TOKEN_ADDRESS, "data": data}, "latest"])
        assert int(str(held), 16) == 100 * TGLM + FINAL
        for node in (alice, bob):
            account = node.account(deal)
            assert (account.accepted, account.settled) == (FINAL, FINAL)
        [(channel, _)] = alice.payments.channels.listed(alice.id)
        assert (channel.signed, channel.claimed) == (FINAL, FINAL)
        return {name: node.db.commits - start[name] for name, node in world.nodes.items()}


async def test_power_cuts_while_a_channel_lives(open_channels, tmp_path):
    """Some commits; the slow test takes all."""
    await cut_everywhere(open_channels, tmp_path, step=17)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_power_cuts_at_every_commit_of_a_channel(open_channels, tmp_path):
    await cut_everywhere(open_channels, tmp_path, step=1)


async def cut_everywhere(open_channels: Any, directory: Path, step: int) -> None:
    commits = await tell_story(open_channels, directory / "whole", None, 0, False)
    assert min(commits.values()) >= 8, commits
    for victim, count in commits.items():
        for at in range(1, count + 1, step):
            before = at % 2 == 0
            try:
                await tell_story(open_channels, directory / f"{victim}-{at}", victim, at, before)
            except BaseException as error:
                error.add_note(f"the cut: {victim}, commit {at} of {count}, {'before' if before else 'after'} it")
                raise
