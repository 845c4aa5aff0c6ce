"""Deals paid through channels, with calls, letters, blocks and power cuts in any order: no money is made, none is promised
twice, nobody is paid more or less than was accepted, and in the end nothing is reserved."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shem.errors import ShemError
from shem.terms.amounts import format_amount
from shem.wire import payment as wire
from tests.network.payment.simulation import PLATFORMS, TGLM, PowerCut, SimNode, World

DUE = datetime(2030, 1, 1, tzinfo=UTC)
DAY_S = 86400.0
amounts = st.integers(1, 60).map(lambda cents: cents * TGLM // 100)
sides = st.sampled_from(["alice", "bob"])


class Money(RuleBasedStateMachine):
    """What agents, peers, chains and machines may do."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.deals: list[str] = []
        self.over: set[str] = set()
        self.activities: dict[str, str] = {}
        self.held = self.world.held
        self.copies: dict[str, tuple[int, bytes]] = {}
        self.forgot: set[str] = set()
        """Whose database is an older copy; then little holds before the end."""

    @initialize()
    def begin(self) -> None:
        self.allocate(10 * TGLM, 0)
        self.agree(0, 3600)
        self.wait(10)

    def node(self, side: str) -> SimNode:
        return getattr(self.world, side)

    def attempt(self, node: SimNode, work: Any) -> Any:
        """A call of an agent's, which may be refused."""
        if not node.alive:
            return None
        with suppress(ShemError):
            return self.world.do(work)
        return None

    # --- agents

    @rule(platform=st.sampled_from([0, 0, 1]), life_s=st.sampled_from([60, 3600, 3 * 3600]))
    def agree(self, platform: int, life_s: float) -> None:
        if len(self.deals) < 5:
            deal = self.world.agree(PLATFORMS[platform], life_s)
            self.deals.append(deal)
            self.activities[deal] = self.world.deals.activity(deal)

    @rule(data=st.data(), more=amounts, payable=st.booleans())
    def note(self, data: st.DataObject, more: int, payable: bool) -> None:
        bob, deal = self.world.bob, data.draw(st.sampled_from(self.deals))

        def issue() -> None:
            account = bob.store.account(deal, bob.id)
            body = wire.NewDebitNote(
                activity_id=self.activities[deal],
                total_amount_due=format_amount((account.noted if account else 0) + more),
                payment_due_date=DUE if payable else None,
            )
            self._send("debit-note", bob.payments.provider.issue_note(bob.id, body))

        self.attempt(bob, issue)

    @rule(data=st.data(), more=amounts)
    def invoice(self, data: st.DataObject, more: int) -> None:
        bob, deal = self.world.bob, data.draw(st.sampled_from(self.deals))

        def issue() -> None:
            account = bob.store.account(deal, bob.id)
            amount = format_amount((max(account.noted, account.accepted) if account else 0) + more)
            body = wire.NewInvoice(agreement_id=deal, amount=amount, payment_due_date=DUE)
            self._send("invoice", bob.payments.provider.issue_invoice(bob.id, body))

        self.attempt(bob, issue)

    def _send(self, kind: Any, document: Any) -> None:
        bob = self.world.bob
        account = bob.store.account(document.agreement_id, bob.id)
        with bob.payments.books.write():
            bob.payments.books.repost(
                bob.id, account.peer_id, kind, document.payload, document.signature, document.document_id
            )

    @rule(data=st.data())
    def accept(self, data: st.DataObject) -> None:
        alice = self.world.alice
        waiting = alice.documents("RECEIVED") if alice.alive else []
        allocations = alice.store.active_allocations(alice.id) if alice.alive else []
        if waiting and allocations:
            self._accept(data.draw(st.sampled_from(waiting)), data.draw(st.sampled_from(allocations)))

    def _accept(self, document: Any, allocation: Any) -> None:
        alice = self.world.alice
        body = wire.Acceptance(
            total_amount_accepted=format_amount(document.amount), allocation_id=allocation.allocation_id
        )
        self.attempt(
            alice,
            lambda: alice.payments.requestor.accept(alice.id, document.kind, document.document_id, body),
        )

    @rule(data=st.data(), more=amounts, payable=st.booleans(), wait_s=st.sampled_from([1.0, 10.0]))
    def work(self, data: st.DataObject, more: int, payable: bool, wait_s: float) -> None:
        """The usual: a note, and its acceptance."""
        self.note(data, more, payable)
        self.wait(wait_s)
        self.accept(data)

    @rule(data=st.data())
    def reject(self, data: st.DataObject) -> None:
        alice = self.world.alice
        invoices = [d for d in alice.documents("RECEIVED") if d.kind == "invoice"] if alice.alive else []
        if invoices:
            document = data.draw(st.sampled_from(invoices))
            body = wire.Rejection(rejection_reason="BAD_SERVICE", total_amount_accepted="0")
            self.attempt(alice, lambda: alice.payments.requestor.reject_invoice(alice.id, document.document_id, body))

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        going = [deal for deal in self.deals if deal not in self.over]
        if going:
            deal = data.draw(st.sampled_from(going))
            self.over.add(deal)
            self.world.tell(deal, "Terminated")

    @rule(units=st.sampled_from([TGLM // 10, TGLM, 10 * TGLM, 90 * TGLM]), platform=st.sampled_from([0, 0, 1]))
    def allocate(self, units: int, platform: int) -> None:
        if self.world.alice.alive:
            with suppress(ShemError, PowerCut):
                self.world.allocate(format_amount(units), PLATFORMS[platform])

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        alice = self.world.alice
        allocations = alice.store.active_allocations(alice.id) if alice.alive else []
        if allocations:
            chosen = data.draw(st.sampled_from(allocations)).allocation_id
            self.attempt(alice, lambda: alice.payments.allocations.release(alice.id, chosen))

    # --- the world

    @rule(seconds=st.sampled_from([0.05, 1.0, 3.0, 10.0, 70.0, 700.0, 4000.0, DAY_S]))
    def wait(self, seconds: float) -> None:
        self.world.run(seconds)

    @rule(faults=st.lists(st.sampled_from(["", "lost", "unheard", "twice"]), min_size=1, max_size=6))
    def trouble_on_the_line(self, faults: list[str]) -> None:
        self.world.faults = faults

    @rule()
    def line(self) -> None:
        self.world.line(not self.world.online)

    @rule()
    def reorg(self) -> None:
        self.world.vault.reorg()

    @rule()
    def endpoints(self) -> None:
        self.world.vault.away = not self.world.vault.away

    @rule(side=sides, commits=st.integers(1, 6), before=st.booleans(), seconds=st.sampled_from([1.0, 10.0]))
    def power_cut(self, side: str, commits: int, before: bool, seconds: float) -> None:
        """At a commit soon, if there is one."""
        node = self.node(side)
        if node.alive:
            node.db.die_in, node.db.before = commits, before
            self.world.run(seconds)

    @rule(side=sides, seconds=st.sampled_from([-1500.0, -60.0, 0.0, 60.0, 1500.0]))
    def clock(self, side: str, seconds: float) -> None:
        """It is wrong by less than half of the margin."""
        self.node(side).clock.skew_s = seconds

    @rule(side=sides)
    def power(self, side: str) -> None:
        self.world.restart(self.node(side))

    @rule(side=sides)
    def copy(self, side: str) -> None:
        """Somebody makes a copy of a database."""
        if self.node(side).alive:
            self.copies[side] = self._nonce(), self.node(side).db.snapshot()

    @rule(side=sides)
    def put_back(self, side: str) -> None:
        """And puts it back later. A channel that was opened in between would be forgotten with its key."""
        nonce, copied = self.copies.get(side, (-1, b""))
        node = self.node(side)
        if copied and self.forgot <= {side} and (side == "bob" or nonce == self._nonce()):
            if node.alive:
                node.db.dead = True
                self.world.run(0.1)
            node.db.restore(copied)
            self.forgot.add(side)
            self.world.restart(node)

    def _nonce(self) -> int:
        open_ones = "select count(*) from payment_channel_request where state = 'open'"
        waiting = self.world.alice.db.connection.execute(open_ones).fetchone()[0]
        return self.world.vault.latest.nonces.get(self.world.alice.id, 0) if not waiting else -2

    # --- what always holds

    @invariant()
    def no_money_is_made(self) -> None:
        for state in (self.world.vault.latest, self.world.vault.final):
            assert state.total() == self.held

    @invariant()
    def channels_are_in_order(self) -> None:
        if self.forgot:
            return
        alice, bob = self.world.nodes
        mine = {channel.channel_id: channel for channel in alice.channels.channels(alice.id)}
        for channel in mine.values():
            assert channel.claimed <= channel.signed == channel.owed <= channel.reserved
        for channel in bob.channels.channels(bob.id):
            assert channel.owed <= channel.signed
            if channel.signed:
                assert channel.signed <= mine[channel.channel_id].signed
        owed = sum(channel.owed for channel in bob.channels.channels(bob.id))
        assert owed == sum(account.accepted for account in bob.accounts())
        signed = sum(channel.signed for channel in mine.values())
        assert signed == sum(account.accepted for account in alice.accounts())

    @invariant()
    def accounts_are_in_order(self) -> None:
        if self.forgot:
            return
        alice, bob = self.world.nodes
        theirs = {account.agreement_id: account for account in bob.accounts()}
        paid = sum(total for total, _ in self.world.vault.latest.paid.values())
        final = sum(total for total, _ in self.world.vault.final.paid.values())
        for account in alice.accounts():
            assert account.settled <= account.scheduled <= account.accepted <= max(account.requested, account.noted)
            assert theirs[account.agreement_id].accepted <= account.accepted
        assert paid <= sum(account.accepted for account in alice.accounts())
        assert sum(account.settled for account in alice.accounts()) <= final
        assert sum(account.settled for account in bob.accounts()) <= final

    @invariant()
    def nothing_exceeds_its_allocation(self) -> None:
        if self.forgot:
            return
        alice = self.world.alice
        rows = alice.db.connection.execute("select allocation_id from payment_allocation").fetchall()
        allocations = [alice.store.allocation(row["allocation_id"], alice.id) for row in rows]
        assert all(0 <= allocation.spent <= allocation.total for allocation in allocations)
        assert sum(a.spent for a in allocations) == sum(account.accepted for account in alice.accounts())

    @invariant()
    def what_is_promised_is_there(self) -> None:
        if self.forgot:
            return
        alice, state = self.world.alice, self.world.vault.latest
        promised = alice.payments.allocations.reserved(alice.id, PLATFORMS[0])
        locked = sum(reserved - claimed for reserved, claimed, _ in state.channels.values())
        hers = state.wallets[alice.id] + state.free.get(alice.id, 0) + locked
        unbooked = sum(total for total, _ in state.paid.values()) - sum(a.settled for a in alice.accounts())
        assert promised <= hers + unbooked

    @invariant()
    def nothing_breaks(self) -> None:
        assert self.world.broken.found == []

    # --- the end

    def teardown(self) -> None:
        try:
            self._to_the_end()
        finally:
            self.world.close()

    def _to_the_end(self) -> None:
        """Everybody is there and does what is theirs."""
        world = self.world
        world.faults, world.vault.away = [], False
        self.clock("alice", 0.0)
        self.clock("bob", 0.0)
        for node in world.nodes:
            node.db.die_in = None
            if node.db.dead or not node.alive:
                world.restart(node)
        world.line(True)
        world.run(120)
        self.allocate(20 * TGLM, 0)
        self.allocate(20 * TGLM, 1)
        for _ in range(3):  # what lacked cover is tried again
            for document in world.alice.documents("RECEIVED"):
                account = world.alice.store.account(document.agreement_id, world.alice.id)
                for allocation in world.alice.store.active_allocations(world.alice.id):
                    if allocation.platform == account.platform:
                        self._accept(document, allocation)
            world.run(30)
        for deal in self.deals:
            if deal not in self.over:
                world.tell(deal, "Terminated")
        for allocation in world.alice.store.active_allocations(world.alice.id):
            chosen = allocation.allocation_id
            self.attempt(
                world.alice, lambda chosen=chosen: world.alice.payments.allocations.release(world.alice.id, chosen)
            )
        world.run(600)
        for _ in range(4):
            world.run(DAY_S)
        for check in (
            self.no_money_is_made,
            self.channels_are_in_order,
            self.accounts_are_in_order,
            self.nothing_exceeds_its_allocation,
            self.what_is_promised_is_there,
            self.nothing_breaks,
        ):
            check()
        self._all_is_over()

    def _all_is_over(self) -> None:
        alice, bob = self.world.nodes
        state = self.world.vault.final
        assert state.channels == {}
        # Who has forgotten documents knows less of them than the other.
        knowing = alice if "bob" in self.forgot else bob
        accepted = sum(account.accepted for account in knowing.accounts())
        assert state.wallets.get(bob.id, 0) == accepted
        assert state.wallets[alice.id] + state.free.get(alice.id, 0) == self.held - accepted
        for node in self.world.nodes if not self.forgot else [knowing]:
            sums = [(a.accepted, a.settled) for a in node.accounts()]
            assert all(accepted == settled for accepted, settled in sums), (node is alice, sums, state.paid)
        theirs = {a.agreement_id: a.accepted for a in bob.accounts()}
        for account in alice.accounts() if "bob" not in self.forgot else []:
            assert account.accepted == theirs[account.agreement_id]
        assert alice.payments.allocations.reserved(alice.id, PLATFORMS[0]) == 0
        open_rows = {
            "requests": "select count(*) from payment_channel_request where state = 'open'",
            "orders": "select count(*) from payment_channel_order where done = 0",
            "letters": "select count(*) from payment_outbox",
            "channels": "select count(*) from payment_channel where state <> 'closed'",
            "dues": "select count(*) from payment_due where order_id is null",
        }
        for node in self.world.nodes:
            left = {name: node.db.connection.execute(sql).fetchone()[0] for name, sql in open_rows.items()}
            if self.forgot:
                del left["letters"]  # of agreements that the other side has forgotten for good
            assert not any(left.values()), (node is alice, left)


few = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    phases=(Phase.explicit, Phase.generate),  # making a failing run short takes minutes: its steps are printed
)
many = settings(few, max_examples=300, stateful_step_count=40)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Refusals by the hundred are what is tested."""
    told = logging.getLogger("shem.node")
    level = told.level
    told.setLevel(logging.CRITICAL)
    yield
    told.setLevel(level)


class TestMoney(Money.TestCase):  # type: ignore[name-defined,misc]
    settings = few


@pytest.mark.slow
@pytest.mark.timeout(1800)
class TestMoneyForLong(Money.TestCase):  # type: ignore[name-defined,misc]
    settings = many
