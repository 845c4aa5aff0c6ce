"""A power cut at every single commit of either node: nothing is paid twice, nothing is lost, nothing stays reserved.

One story (two notes, an invoice, acceptance, payment, notice, verification) is told by agents that only look at states
and do what is due, as REST clients do after a restart. Each run cuts one node's power just before or just after its N-th
commit, starts it again on the same file, and lets the agents go on.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from shem.errors import PeerFailed

TGLM = 10**18
NOTE, FINAL = TGLM // 10, TGLM // 2


class Agents:
    """Both agents: idempotent steps towards a settled invoice."""

    def __init__(self, world: Any, deal: str, activity: str) -> None:
        self.world = world
        self.alice, self.bob = world.nodes["alice"], world.nodes["bob"]
        self.deal, self.activity = deal, activity
        self.allocation = ""

    def documents(self, node: Any, kind: str) -> list[Any]:
        found = node.payments.books.store.of_agreement(self.deal, node.id)
        return [document for document in found if document.kind == kind]

    async def step(self) -> None:
        """Whatever is due now, of both."""
        if not self.bob.db.dead:
            await self._provide()
        if not self.alice.db.dead:
            await self._rent()

    async def _provide(self) -> None:
        if not self.documents(self.bob, "debit-note"):
            self.bob.note(self.activity, "0.1", due=True)
        [note] = self.documents(self.bob, "debit-note")
        if note.state == "ISSUED":
            await self._send("debit-note", note)
        elif note.state in ("ACCEPTED", "SETTLED") and not self.documents(self.bob, "invoice"):
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
        active = self.alice.payments.allocations.active(self.alice.id)
        self.allocation = active[0].allocation_id if active else await self.alice.allocate("1")
        for document in self.alice.payments.books.store.of_agreement(self.deal, self.alice.id):
            if document.state == "RECEIVED":
                amount = "0.1" if document.kind == "debit-note" else "0.5"
                self.alice.accept(document.kind, document.document_id, amount, self.allocation)

    def done(self) -> bool:
        states = [
            [document.state for document in self.documents(node, kind)]
            for node in (self.alice, self.bob)
            for kind in ("debit-note", "invoice")
        ]
        return states == [["SETTLED"]] * 4


async def tell_story(
    open_world: Any, directory: Path, victim: str | None, at: int, before: bool, cuts: list[int]
) -> tuple[int, int]:
    """Runs the story; how many commits (alice, bob) it took when nothing was cut."""
    async with open_world(directory, "alice", "bob") as world:
        alice, bob = world.nodes["alice"], world.nodes["bob"]
        world.bank.fund(alice.id, TGLM)
        deal = world.deals.make(alice.id, bob.id)
        agents = Agents(world, deal, world.deals.activity(deal))
        start = alice.db.commits, bob.db.commits
        if victim is not None:
            database = world.nodes[victim].db
            database.die_at, database.before = database.commits + at, before
        async with asyncio.timeout(20):
            while not agents.done():
                try:
                    await agents.step()
                except BaseException as error:
                    if type(error).__name__ != "PowerCut":
                        raise
                for node in (alice, bob):
                    if node.db.dead:
                        cuts.append(at)
                        await node.stop()
                        node.bootstrap = [other for other in (alice, bob) if other is not node]
                        await node.start()
                await asyncio.sleep(0.002)
        assert world.bank.balances == {alice.id: TGLM - FINAL, bob.id: FINAL}
        assert sum(transfer.amount for transfer in world.bank.transfers.values()) == FINAL
        for node in (alice, bob):
            account = node.account(deal)
            assert (account.accepted, account.settled) == (FINAL, FINAL)
        spent = [a for a in alice.payments.allocations.active(alice.id) if a.spent]
        assert [(a.total, a.spent) for a in spent] == [(TGLM, FINAL)]
        assert alice.payments.allocations.reserved(alice.id, "testmoney-local-tglm") == sum(
            a.remaining for a in alice.payments.allocations.active(alice.id)
        )
        return alice.db.commits - start[0], bob.db.commits - start[1]


async def test_power_cuts(open_world, tmp_path):
    cuts: list[int] = []
    commits = dict(zip(("alice", "bob"), await tell_story(open_world, tmp_path, None, 0, False, cuts), strict=True))
    assert min(commits.values()) >= 8, commits
    for victim, count in commits.items():
        for at in range(1, count + 1):
            for before in (True, False):
                try:
                    await tell_story(open_world, tmp_path, victim, at, before, cuts)
                except BaseException as error:
                    error.add_note(f"the cut: {victim}, commit {at} of {count}, {'before' if before else 'after'} it")
                    raise
    # How letters and steps interleave differs from run to run; nearly every run must have had its cut.
    assert len(cuts) >= 2 * sum(commits.values()) - 4


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_power_cuts_twenty_times(open_world, tmp_path):
    """The same with the races of more runs."""
    for _ in range(20):
        await test_power_cuts(open_world, tmp_path)
