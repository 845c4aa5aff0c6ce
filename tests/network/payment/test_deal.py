"""A deal's money between two honest nodes, from the first note to the final payment on both sides."""

from __future__ import annotations

import pytest

from shem.errors import Conflict, Gone, MoneyShort, NotFound, Refused
from shem.node.payment import settlement
from shem.node.payment.drivers.free import PLATFORM as FREE
from shem.node.payment.ledger import AllocationReleased, WrongAllocation, WrongAmount
from shem.node.payment.provider import AlreadyAccepted, NoAnswerYet
from shem.wire import payment as wire

TGLM = 10**18


async def test_invoice_is_paid_once_and_seen_on_both_sides(world, alice, bob, wait):
    deal = world.deals.make(alice.id, bob.id)
    allocation = await alice.allocate("5")
    invoice = await bob.bill(deal, "0.5")
    assert (alice.state(invoice), bob.state(invoice)) == ("RECEIVED", "RECEIVED")

    alice.accept("invoice", invoice, "0.5", allocation)
    alice.accept("invoice", invoice, "0.50", allocation)  # again is harmless
    await wait(lambda: bob.state(invoice) == "SETTLED", "settlement")

    assert alice.state(invoice) == "SETTLED"
    assert world.bank.balances[bob.id] == TGLM // 2
    assert len(world.bank.transfers) == 1
    assert alice.events("invoice") == ["Received", "Accepted", "Settled"]
    assert bob.events("invoice") == ["Accepted", "Settled"]
    spent = alice.payments.allocations.get(alice.id, allocation)
    assert (spent.spent, spent.remaining) == (TGLM // 2, 9 * TGLM // 2)
    [paid] = await alice.payments.transfers(alice.id, after=None, limit=10, session=None, timeout_s=0)
    [got] = await bob.payments.transfers(bob.id, after=None, limit=10, session=None, timeout_s=0)
    assert (paid.payment_id, paid.tx_hash, paid.block_number) == (got.payment_id, got.tx_hash, got.block_number)
    assert got.amount == TGLM // 2


async def test_however_much_is_due_at_once_is_paid(world, alice, bob, wait, monkeypatch):
    """Nothing wakes the settler for what it leaves, and what cannot be paid stays where it is."""
    monkeypatch.setattr(settlement, "MAX_DUES", 5)
    allocation = await alice.allocate("5")
    deals = [world.deals.make(alice.id, bob.id) for _ in range(24)]
    for deal in deals:
        note = await bob.bill_note(world.deals.activity(deal), "0.01")
        alice.accept("debit-note", note, "0.01", allocation)
    with alice.db.transaction() as connection:  # as after a change of configuration
        connection.execute(
            f"update payment_account set platform = 'gone' where agreement_id in ({','.join('?' * 12)})", deals[:12]
        )
    alice.payments.allocations.release(alice.id, allocation)
    await wait(lambda: world.bank.balances.get(bob.id) == 12 * TGLM // 100, "what can be paid")


async def test_only_differences_are_spent_and_paid(world, alice, bob, wait):
    deal = world.deals.make(alice.id, bob.id)
    activity = world.deals.activity(deal)
    allocation = await alice.allocate("5")
    first = await bob.bill_note(activity, "0.1", due=True)
    second = await bob.bill_note(activity, "0.3")
    assert bob.document(second).payload != bob.document(first).payload
    alice.accept("debit-note", first, "0.1", allocation)
    await wait(lambda: bob.state(first) == "SETTLED")
    assert world.bank.balances[bob.id] == TGLM // 10

    alice.accept("debit-note", second, "0.3", allocation)
    assert alice.payments.allocations.get(alice.id, allocation).spent == 3 * TGLM // 10
    await wait(lambda: bob.state(second) == "ACCEPTED")
    assert world.bank.balances[bob.id] == TGLM // 10  # not payable yet

    invoice = await bob.bill(deal, "0.5")
    alice.accept("invoice", invoice, "0.5", allocation)
    await wait(lambda: bob.state(invoice) == "SETTLED")
    assert {alice.state(d) for d in (first, second, invoice)} == {"SETTLED"}
    assert bob.state(second) == "SETTLED"
    assert world.bank.balances[bob.id] == TGLM // 2
    assert alice.payments.allocations.get(alice.id, allocation).spent == TGLM // 2


async def test_older_note_after_a_newer_one_costs_nothing(world, alice, bob, wait):
    deal = world.deals.make(alice.id, bob.id)
    activity = world.deals.activity(deal)
    allocation = await alice.allocate("5")
    first, second = await bob.bill_note(activity, "0.1", due=True), await bob.bill_note(activity, "0.3", due=True)
    alice.accept("debit-note", second, "0.3", allocation)
    alice.accept("debit-note", first, "0.1", allocation)
    await wait(lambda: bob.state(first) == bob.state(second) == "SETTLED")
    assert world.bank.balances[bob.id] == 3 * TGLM // 10
    assert alice.account(deal).accepted == 3 * TGLM // 10


async def test_several_invoices_of_one_provider_are_one_payment(world, alice, bob, wait):
    deals = [world.deals.make(alice.id, bob.id) for _ in range(5)]
    allocation = await alice.allocate("5")
    invoices = [await bob.bill(deal, "0.2") for deal in deals]
    for invoice in invoices:
        alice.accept("invoice", invoice, "0.2", allocation)
    await wait(lambda: all(bob.state(invoice) == "SETTLED" for invoice in invoices))
    [transfer] = world.bank.transfers.values()
    assert transfer.amount == TGLM
    [paid] = await bob.payments.transfers(bob.id, after=None, limit=10, session=None, timeout_s=0)
    assert {part.agreement_id for part in paid.parts} == set(deals)


@pytest.mark.parametrize("platform", [None, FREE.platform])
async def test_zero_is_settled_without_a_payment(world, alice, bob, wait, platform):
    chosen = {} if platform is None else {"platform": platform}
    deal = world.deals.make(alice.id, bob.id, **chosen)
    activity = world.deals.activity(deal)
    allocation = await alice.allocate("0", **chosen)
    note = await bob.bill_note(activity, "0", due=True)
    invoice = await bob.bill(deal, "0")
    alice.accept("debit-note", note, "0", allocation)
    alice.accept("invoice", invoice, "0", allocation)
    assert (alice.state(note), alice.state(invoice)) == ("SETTLED", "SETTLED")
    await wait(lambda: bob.state(invoice) == "SETTLED")
    assert bob.events("debit-note") == ["Accepted", "Settled"]
    assert world.bank.transfers == {}


async def test_a_price_on_the_free_platform_is_refused(world, alice, bob):
    deal = world.deals.make(alice.id, bob.id, platform=FREE.platform)
    with pytest.raises(Refused) as caught:
        bob.invoice(deal, "0.1")
    assert caught.value.code == "platform_is_free"


async def test_free_needs_no_balance(bob):
    assert await bob.allocate("7", platform=FREE.platform)


async def test_acceptance_is_exact_and_within_the_allocation(world, alice, bob):
    deal = world.deals.make(alice.id, bob.id)
    allocation = await alice.allocate("0.4")
    invoice = await bob.bill(deal, "0.5")
    for amount in ("0.4", "0.6", "-0.5", "half", "0.5000000000000000001"):
        with pytest.raises(WrongAmount):
            alice.accept("invoice", invoice, amount, allocation)
    with pytest.raises(MoneyShort):
        alice.accept("invoice", invoice, "0.5", allocation)
    with pytest.raises(WrongAllocation, match="not found"):
        alice.accept("invoice", invoice, "0.5", "no-such")
    with pytest.raises(NotFound):
        alice.accept("debit-note", invoice, "0.5", allocation)
    free = await alice.allocate("1", platform=FREE.platform)
    with pytest.raises(WrongAllocation):
        alice.accept("invoice", invoice, "0.5", free)
    alice.payments.allocations.release(alice.id, allocation)
    with pytest.raises(AllocationReleased):
        alice.accept("invoice", invoice, "0.5", allocation)
    assert alice.state(invoice) == "RECEIVED"
    assert alice.account(deal).accepted == 0


async def test_what_was_accepted_is_paid_when_its_allocation_ends(world, alice, bob, wait):
    """Notes without a due date, and a provider that never invoices: nothing stays reserved for ever."""
    deal = world.deals.make(alice.id, bob.id)
    activity = world.deals.activity(deal)
    allocation = await alice.allocate("2")
    note = await bob.bill_note(activity, "0.3")
    alice.accept("debit-note", note, "0.3", allocation)
    await wait(lambda: bob.state(note) == "ACCEPTED")
    assert world.bank.transfers == {}
    assert alice.payments.allocations.reserved(alice.id, "testmoney-local-tglm") == 2 * TGLM
    alice.payments.allocations.release(alice.id, allocation)
    await wait(lambda: bob.state(note) == "SETTLED")
    assert alice.payments.allocations.reserved(alice.id, "testmoney-local-tglm") == 0
    with pytest.raises(Gone):
        alice.payments.allocations.release(alice.id, allocation)


async def test_rejected_invoice_may_be_followed_by_a_right_one(world, alice, bob, wait):
    deal = world.deals.make(alice.id, bob.id)
    allocation = await alice.allocate("5")
    wrong = await bob.bill(deal, "0.5")
    with pytest.raises(Conflict):
        bob.invoice(deal, "0.6")
    body = wire.Rejection(rejection_reason="INCORRECT_AMOUNT", total_amount_accepted="0", message="too dear")
    alice.payments.requestor.reject_invoice(alice.id, wrong, body)
    alice.payments.requestor.reject_invoice(alice.id, wrong, body)
    await wait(lambda: bob.state(wrong) == "REJECTED")
    with pytest.raises(Refused):
        alice.accept("invoice", wrong, "0.5", allocation)
    right = await bob.bill(deal, "0.4")
    alice.accept("invoice", right, "0.4", allocation)
    await wait(lambda: bob.state(right) == "SETTLED")
    assert world.bank.balances[bob.id] == 4 * TGLM // 10


async def test_cancelling_is_the_requestor_nodes_decision(world, alice, bob, wait):
    deal = world.deals.make(alice.id, bob.id)
    allocation = await alice.allocate("5")
    unsent = bob.invoice(deal, "0.7")
    await bob.payments.provider.cancel_invoice(bob.id, unsent, 5)
    sent = await bob.bill(deal, "0.5")
    await bob.payments.provider.cancel_invoice(bob.id, sent, 5)
    assert (alice.state(sent), bob.state(sent)) == ("CANCELLED", "CANCELLED")
    with pytest.raises(Refused):
        alice.accept("invoice", sent, "0.5", allocation)

    last = await bob.bill(deal, "0.4")
    alice.accept("invoice", last, "0.4", allocation)
    with pytest.raises(AlreadyAccepted):
        await bob.payments.provider.cancel_invoice(bob.id, last, 5)
    await wait(lambda: bob.state(last) == "SETTLED")
    assert alice.events("invoice") == ["Received", "Cancelled", "Received", "Accepted", "Settled"]


async def test_totals_never_fall(world, alice, bob):
    deal = world.deals.make(alice.id, bob.id)
    activity = world.deals.activity(deal)
    await bob.bill_note(activity, "0.3")
    with pytest.raises(Refused, match=r"cannot be lowered. Current amount requested: 0.3"):
        bob.note(activity, "0.2")
    with pytest.raises(Refused, match=r"cannot be lowered. Current amount requested: 0.3 Amount on invoice: 0.2"):
        bob.invoice(deal, "0.2")
    await bob.bill(deal, "0.3")
    with pytest.raises(Conflict):
        bob.note(activity, "0.4")


async def test_a_peer_that_is_away_is_told_when_it_comes_back(world, alice, bob, wait):
    deal = world.deals.make(alice.id, bob.id)
    await alice.stop()
    invoice = bob.invoice(deal, "0.5")
    with pytest.raises(NoAnswerYet):
        await bob.send("invoice", invoice, timeout_s=0.1)
    assert bob.state(invoice) == "ISSUED"
    alice.bootstrap = [bob]
    await alice.start()
    await wait(lambda: alice.state(invoice) == "RECEIVED")
    await wait(lambda: bob.state(invoice) == "RECEIVED")
    await bob.send("invoice", invoice)  # again is harmless
    assert alice.events("invoice") == ["Received"]


async def test_payment_waits_for_finality_and_for_funds(world, alice, bob, wait):
    world.bank.final_at_once = False
    deal = world.deals.make(alice.id, bob.id)
    allocation = await alice.allocate("100")
    world.bank.balances[alice.id] = 0  # spent elsewhere meanwhile
    invoice = await bob.bill(deal, "0.5")
    alice.accept("invoice", invoice, "0.5", allocation)
    await wait(alice.payments.problems)
    assert alice.payments.problems()[0].code == "InsufficientToken"
    world.bank.fund(alice.id, TGLM)
    await wait(lambda: world.bank.transfers)
    assert alice.state(invoice) == "ACCEPTED"
    assert alice.payments.problems() == []
    world.bank.finalize()
    await wait(lambda: bob.state(invoice) == "SETTLED")
