"""What a bill costs does not depend on how many there were: counted in steps of SQLite's machine, not in time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from shem.node.payment.channel_books import KEEP_S
from shem.terms.amounts import format_amount
from shem.wire import payment as wire
from tests.network.payment.simulation import PLATFORMS, START, TGLM, SimNode, World

OLD = 20_000
DUE = datetime(2030, 1, 1, tzinfo=UTC)
NUMBERS = f"with recursive n(i) as (select 1 union all select i + 1 from n where i < {OLD}) "
EACH = 100


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


class Deal:
    """One agreement with cover; each bill costs a cent more."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.allocation = world.allocate("10")
        self.deal = world.agree()
        self.activity = world.deals.activity(self.deal)
        self.cents = 0
        world.run(20)

    def bill(self) -> None:
        world, bob, alice = self.world, self.world.bob, self.world.alice
        self.cents += 1
        amount = format_amount(self.cents * TGLM // 100)
        body = wire.NewDebitNote(activity_id=self.activity, total_amount_due=amount, payment_due_date=DUE)
        note = world.do(lambda: bob.payments.provider.issue_note(bob.id, body)).document_id
        world.loop.run_until_complete(bob.payments.provider.send(bob.id, "debit-note", note, 5))
        accepted = wire.Acceptance(total_amount_accepted=amount, allocation_id=self.allocation)
        world.do(lambda: alice.payments.requestor.accept(alice.id, "debit-note", note, accepted))
        world.run(3)
        assert bob.store.account(self.deal, bob.id).accepted == self.cents * TGLM // 100


@contextmanager
def steps_of(*nodes: SimNode) -> Iterator[list[int]]:
    """How many hundred steps SQLite makes for these nodes."""
    made = [0]

    def step() -> int:
        made[0] += 1
        return 0

    for node in nodes:
        node.db.connection.set_progress_handler(step, EACH)
    yield made
    for node in nodes:
        node.db.connection.set_progress_handler(None, EACH)


def age(node: SimNode, peer: str, role: str) -> None:
    """The past of a busy node: with this peer, and all of it over."""
    payer, payee = (node.id, peer) if role == "Requestor" else (peer, node.id)
    say = node.db.connection.execute
    where = {"me": node.id, "peer": peer, "role": role, "payer": payer, "payee": payee, "p": PLATFORMS[0]}
    past = int(START.timestamp()) - 10 * 86400
    us = past * 1_000_000
    for sql in (
        "insert into payment_account (owner, agreement_id, role, peer_id, platform, payer, payee, noted, notes_accepted,"
        " invoiced, accepted, scheduled, settled) select :me, 'a' || i, :role, :peer, :p, :payer, :payee, '5', '5', '5',"
        " '5', '5', '5' from n",
        "insert into payment_cover (owner, agreement_id, role, peer_id, platform, payer, payee, wanted, least, ends_at,"
        f" live, changed_at) select :me, 'a' || i, :role, :peer, :p, :payer, :payee, '5', '1', {past}, 0, {past} from n",
        "insert into payment_channel (owner, chain_id, vault, channel_id, role, peer_id, platform, payer, payee, signer,"
        " nonce, reserved, valid_until, claimed, owed, signed, state, opened_tx, created_at) select :me, 1337, '0x', i,"
        f" :role, :peer, :p, :payer, :payee, :payer, i, '9', {past}, '0', '0', '0', 'closed', '0x', {past} from n",
        "insert into payment_channel_request select 'r' || i, :me, 'reserve', :peer, :p, :payer, :payee, 'c', '5',"
        f" 'done', '0x', {past} from n",
        "insert into payment_channel_order (order_id, owner, peer_id, platform, payer, payee, amount, target, settle_at,"
        f" done) select 'o' || i, :me, :peer, :p, :payer, :payee, '0', '10000000000000000', {past}, 1 from n",
        f"insert into payment_allocation select 'l' || i, :me, :p, :me, '5', '5', {us}, {us}, 0, 1 from n",
        "insert into payment_transfer select :me, 't' || i, :role, :payer, :payee, :payer, :payee, :p, '0',"
        f" {us} + i, '0x', 1, '0x', '[]', '', 'final', 0, 'pot' from n",
        "insert into payment_event (at, owner, kind, role, document_id, type) select"
        f" {us} + i, :me, 'debit-note', :role, 'd' || i, 'DebitNoteAcceptedEvent' from n",
        "insert into payment_document (owner, document_id, kind, role, agreement_id, activity_id, amount, state, payload,"
        " signature, created_at, covered_at) select :me, 'd' || i, 'debit-note', :role, 'a' || i, 'x', '5', 'SETTLED',"
        f" x'', x'', {us} + i, '5' from n",
    ):
        say(NUMBERS + sql if not sql.startswith("insert") else sql.replace(" select", f" {NUMBERS}select", 1), where)


def test_a_bill_costs_the_same_after_twenty_thousand(world: World) -> None:
    deal = Deal(world)
    deal.bill()

    def cost() -> int:
        with steps_of(*world.nodes) as made:
            for _ in range(5):
                deal.bill()
        return made[0]

    young = cost()
    age(world.alice, world.bob.id, "Requestor")
    age(world.bob, world.alice.id, "Provider")
    old = cost()
    assert old <= 1.3 * young, (young, old)


def test_what_is_over_is_forgotten_and_stays_counted(world: World) -> None:
    deal = Deal(world)
    deal.bill()
    world.tell(deal.deal, "Terminated")
    world.do(lambda: world.alice.payments.allocations.release(world.alice.id, deal.allocation))
    world.run(3600)
    pair = {
        role: (node.id, PLATFORMS[0], world.alice.id, world.bob.id)
        for role, node in (("Requestor", world.alice), ("Provider", world.bob))
    }
    nodes = (("Requestor", world.alice), ("Provider", world.bob))
    assert [node.channels.claimed(role, pair[role]) for role, node in nodes] == [TGLM // 100] * 2
    gone = world.bob.channels.channels(world.bob.id)[0]
    age(world.alice, world.bob.id, "Requestor")
    age(world.bob, world.alice.id, "Provider")
    world.run(KEEP_S + 2 * 86400.0)
    kept = {
        table: [node.db.connection.execute(f"select count(*) from {table}").fetchone()[0] for node in world.nodes]
        for table in ("payment_cover", "payment_channel", "payment_channel_request", "payment_channel_order")
    }
    assert kept.pop("payment_channel_order") <= [1, 1]
    assert all(counts == [0, 0] for counts in kept.values()), kept
    assert [node.channels.claimed(role, pair[role]) for role, node in nodes] == [TGLM // 100] * 2
    # what was counted once is not announced again
    key: Any = gone
    assert world.bob.channels.is_forgotten(world.bob.id, world.vault.place, key)
    # and the next deal is paid as ever
    again = Deal(world)
    again.bill()
    world.tell(again.deal, "Terminated")
    world.do(lambda: world.alice.payments.allocations.release(world.alice.id, again.allocation))
    world.run(3600)
    assert world.vault.final.wallets[world.bob.id] == 2 * TGLM // 100
    assert world.vault.final.channels == {}
    for node in world.nodes:
        account = node.store.account(again.deal, node.id)
        assert account.accepted == account.settled == TGLM // 100
