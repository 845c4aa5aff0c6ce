"""What may go wrong between a payer, a payee and a chain, one thing at a time: older databases, wrong clocks, lost and late
letters, chains that change their mind, and payees that hurt themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from shem.errors import MoneyShort, PeerFailed, Refused
from shem.node.identity.keys import Identity
from shem.node.identity.signing import ORDER
from shem.node.payment.channel import StillOpen
from shem.node.payment.channel_books import id_bytes, vault_of
from shem.node.payment.drivers.evm.vault import ChannelKey, voucher_digest
from shem.node.payment.protocol import AcceptanceMessage, ChannelMessage, KeyPart, VoucherPart, method_of
from shem.terms.amounts import format_amount
from shem.terms.ids import NodeId
from shem.wire import payment as wire
from tests.network.payment.simulation import BLOCK_S, MARGIN_S, PLATFORMS, START, TGLM, Asked, World

DUE = datetime(2030, 1, 1, tzinfo=UTC)
CENT = TGLM // 100
DAY_S = 86400.0


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    try:
        yield made
        assert made.broken.found == []
        for state in (made.vault.latest, made.vault.final):
            assert state.total() == made.held
    finally:
        made.close()


class Deal:
    """One agreement between alice and bob, with cover."""

    def __init__(
        self,
        world: World,
        *,
        platform: str = PLATFORMS[0],
        allocation: str = "",
        life_s: float = 3600,
        payee: str | None = None,
    ) -> None:
        self.world = world
        self.allocation = allocation or world.allocate("10", platform)
        self.deal = world.agree(platform, life_s, payee=payee)
        self.activity = world.deals.activity(self.deal)
        world.run(20)

    def note(self, cents: int) -> str:
        bob = self.world.bob
        body = wire.NewDebitNote(activity_id=self.activity, total_amount_due=format_amount(cents * CENT))
        note = self.world.do(lambda: bob.payments.provider.issue_note(bob.id, body)).document_id
        self.world.loop.run_until_complete(bob.payments.provider.send(bob.id, "debit-note", note, 5))
        return str(note)

    def invoice(self, cents: int) -> str:
        bob = self.world.bob
        body = wire.NewInvoice(agreement_id=self.deal, amount=format_amount(cents * CENT), payment_due_date=DUE)
        invoice = self.world.do(lambda: bob.payments.provider.issue_invoice(bob.id, body)).document_id
        self.world.loop.run_until_complete(bob.payments.provider.send(bob.id, "invoice", invoice, 5))
        return str(invoice)

    def accept(self, document_id: str, tries: int = 3) -> None:
        """As her agent does: where more must be reserved first, it tries again."""
        alice = self.world.alice
        document = alice.store.document(document_id, alice.id)
        body = wire.Acceptance(total_amount_accepted=format_amount(document.amount), allocation_id=self.allocation)
        for left in range(tries, 0, -1):
            try:
                self.world.do(lambda: alice.payments.requestor.accept(alice.id, document.kind, document_id, body))
                break
            except MoneyShort:
                if left == 1:
                    raise
                self.world.run(10)
        self.world.run(1)

    def bill(self, cents: int) -> str:
        note = self.note(cents)
        self.accept(note)
        return note

    def end(self, cents: int = 0) -> None:
        """The last invoice, if there is one, and no more money for it."""
        self.world.tell(self.deal, "Terminated")
        if cents:
            self.accept(self.invoice(cents))
        self.release()

    def release(self) -> None:
        alice = self.world.alice
        self.world.do(lambda: alice.payments.allocations.release(alice.id, self.allocation))

    def cents(self, node: Any) -> tuple[int, int]:
        """(accepted, settled)"""
        account = node.store.account(self.deal, node.id)
        return account.accepted // CENT, account.settled // CENT


def channel(node: Any) -> Any:
    return node.payments.channels.listed(node.id)[-1][0]


def paid(world: World) -> int:
    """Cents that bob has."""
    return int(world.vault.final.wallets.get(world.bob.id, 0)) // CENT


def all_is_over(world: World, *deals: Deal) -> None:
    for deal in deals:
        assert len({*deal.cents(world.alice), *deal.cents(world.bob)}) == 1, (
            deal.cents(world.alice),
            deal.cents(world.bob),
        )
    assert paid(world) == sum(deal.cents(world.alice)[0] for deal in deals)
    assert world.vault.final.channels == {}
    for node in world.nodes:
        assert [c.state for c in node.channels.channels(node.id) if c.state != "closed"] == []
        assert node.db.connection.execute("select count(*) from payment_outbox").fetchone()[0] == 0
    assert world.alice.channels.open_targets() == []


# --- vouchers


def test_two_agreements_at_once_are_paid_by_one_channel(world: World) -> None:
    one = Deal(world)
    two = Deal(world, allocation=one.allocation)
    for cents in (1, 3, 6):
        one.bill(cents)
        two.bill(2 * cents)
    assert len(world.alice.channels.channels(world.alice.id)) == 1
    assert channel(world.bob).signed == channel(world.bob).owed == 18 * CENT
    world.tell(one.deal, "Terminated")
    two.end(13)
    world.run(3600)
    all_is_over(world, one, two)
    assert paid(world) == 19


def by_hand(world: World, note: str, cents: int, **changes: Any) -> AcceptanceMessage:
    """An acceptance with a voucher on bob's last channel."""
    held = channel(world.bob)
    signature = changes.pop("signature", None) or world.alice.identity.sign_digest(
        voucher_digest(vault_of(held), id_bytes(held), cents * CENT)
    )
    key = KeyPart(payer=held.payer, payee=held.payee, signer=held.signer, nonce=held.nonce)
    document = world.bob.store.document(note, world.bob.id)
    return AcceptanceMessage(
        issuer=world.alice.id,
        recipient=world.bob.id,
        document_id=note,
        agreement_id=document.agreement_id,
        amount=str(document.amount),
        accepted=str(document.amount),
        issued_at=1,
        voucher=VoucherPart(key=msgspec.structs.replace(key, **changes), amount=str(cents * CENT), signature=signature),
    )


def test_signatures_in_any_other_form_are_none(world: World) -> None:
    deal = Deal(world)
    note = deal.note(5)
    held = channel(world.bob)
    good = world.alice.identity.sign_digest(voucher_digest(vault_of(held), id_bytes(held), 5 * CENT))
    r, s, v = good[:32], int.from_bytes(good[32:64], "big"), good[64]
    twin = r + (ORDER - s).to_bytes(32, "big") + bytes([55 - v])
    for what, signature in {
        "the high twin": twin,
        "another parity": good[:64] + bytes([55 - v]),
        "a small v": good[:64] + bytes([v - 27]),
        "r is zero": bytes(32) + good[32:],
        "r is too large": ORDER.to_bytes(32, "big") + good[32:],
        "s is zero": r + bytes(32) + good[64:],
        "nothing": bytes(65),
    }.items():
        with pytest.raises(Refused):
            world.say(world.alice, world.bob, "acceptance", by_hand(world, note, 5, signature=signature))
        assert channel(world.bob).signed == 0, what
    world.say(world.alice, world.bob, "acceptance", by_hand(world, note, 5, signature=good))
    assert channel(world.bob).signed == 5 * CENT


def test_a_channel_that_is_opened_again_has_another_name(world: World) -> None:
    """What was signed for the first is worth nothing on the second, and the second is used from nothing up."""
    first = Deal(world)
    first.bill(5)
    old = channel(world.bob)
    first.end()
    world.run(600)
    all_is_over(world, first)
    again = Deal(world)
    new = channel(world.bob)
    assert (new.channel_id != old.channel_id, new.signed, new.owed) == (True, 0, 0)
    note = again.note(5)
    with pytest.raises(Refused):  # the old voucher, on the new channel
        world.say(world.alice, world.bob, "acceptance", by_hand(world, note, 5, signature=old.signature))
    with pytest.raises((Refused, PeerFailed)):  # and on the old
        world.say(
            world.alice, world.bob, "acceptance", by_hand(world, note, 5, signature=old.signature, nonce=old.nonce)
        )
    assert (channel(world.bob).signed, world.bob.channels.channel(old).owed) == (0, 5 * CENT)
    again.accept(note)
    again.end(7)
    world.run(3600)
    all_is_over(world, first, again)
    assert paid(world) == 12


def test_a_payer_with_an_older_database_neither_signs_lower_nor_pays_twice(world: World) -> None:
    """All that happened after the copy: a voucher, an acceptance, and another agreement's only bill."""
    deal = Deal(world)
    other = Deal(world, allocation=deal.allocation)
    deal.bill(5)
    late, only = deal.note(9), other.note(30)
    copied = world.alice.db.snapshot()
    deal.accept(late)
    other.accept(only)
    before = channel(world.alice)
    assert before.signed == channel(world.bob).signed == 39 * CENT
    world.alice.db.dead = True
    world.run(1)
    world.alice.db.restore(copied)
    world.line(False)
    world.restart(world.alice)
    with pytest.raises(MoneyShort):  # she waits for bob's word before she gives hers
        deal.accept(late, tries=1)
    world.line(True)
    world.run(30)
    assert (channel(world.alice).signed, channel(world.alice).owed) == (39 * CENT, 39 * CENT)
    assert (deal.cents(world.alice)[0], other.cents(world.alice)[0]) == (9, 30)
    deal.accept(late)  # her agent has forgotten, too
    other.accept(only)
    deal.bill(11)
    assert channel(world.alice).signed == channel(world.bob).signed == 41 * CENT
    [kept] = world.alice.store.active_allocations(world.alice.id)
    assert kept.spent == 41 * CENT
    world.tell(other.deal, "Terminated")
    deal.end(12)
    world.run(3 * DAY_S)
    all_is_over(world, deal, other)
    assert paid(world) == 42


@pytest.mark.parametrize("lie", [b"", b"\1" * 65, bytes(65)])
def test_a_payee_that_lies_to_a_payer_with_an_older_database_gains_nothing(world: World, lie: bytes) -> None:
    """Her acceptances tell what his voucher does not."""
    deal = Deal(world)
    deal.bill(5)
    late = deal.note(9)
    copied = world.alice.db.snapshot()
    deal.accept(late)
    world.alice.db.dead = True
    world.run(1)
    world.alice.db.restore(copied)
    world.bob.channels.save(msgspec.structs.replace(channel(world.bob), signature=lie))
    world.restart(world.alice)
    world.run(5)
    assert channel(world.alice).signed == 9 * CENT
    deal.accept(late)
    assert channel(world.alice).signed == channel(world.alice).owed == 9 * CENT


def test_a_payee_with_an_older_database_is_paid_all_the_same(world: World) -> None:
    """bob forgets an acceptance: he asks again, hears it again, and the end is agreed on the right sum."""
    deal = Deal(world)
    deal.bill(5)
    late = deal.note(9)
    copied = world.bob.db.snapshot()
    deal.accept(late)
    assert channel(world.bob).signed == 9 * CENT
    world.bob.db.dead = True
    world.run(1)
    world.bob.db.restore(copied)
    world.restart(world.bob)
    world.run(30)
    assert (channel(world.bob).signed, deal.cents(world.bob)[0]) == (9 * CENT, 9)
    deal.end(10)
    world.run(3600)
    all_is_over(world, deal)
    assert paid(world) == 10


def test_a_payee_that_has_forgotten_a_channel_hears_of_it_by_its_vouchers(world: World) -> None:
    """The copy is from before the channel was opened."""
    copied = world.bob.db.snapshot()
    deal = Deal(world)
    world.bob.db.dead = True
    world.run(1)
    world.bob.db.restore(copied)
    world.restart(world.bob)
    world.tell(deal.deal, "Approved")  # his market remembers
    assert world.bob.channels.channels(world.bob.id) == []
    note = deal.note(5)
    deal.accept(note)
    world.run(10)
    assert (world.bob.store.document(note, world.bob.id).state, channel(world.bob).signed) == ("ACCEPTED", 5 * CENT)
    deal.end(6)
    world.run(3600)
    all_is_over(world, deal)


def test_a_close_reminds_a_payee_of_a_voucher_it_has_forgotten(world: World) -> None:
    deal = Deal(world)
    deal.bill(5)
    held = channel(world.bob)
    deal.bill(9)
    forgot = msgspec.structs.replace(channel(world.bob), signed=held.signed, signature=held.signature)
    world.bob.channels.save(forgot)
    deal.end()
    world.run(600)
    assert world.vault.final.channels == {}  # by its word: the term is hours away
    assert paid(world) == 9


# --- time


@pytest.mark.parametrize("skew_s", [-2 * 3600.0, -600.0, 600.0])
def test_a_payee_with_a_wrong_clock_collects_before_the_term_ends(world: World, skew_s: float) -> None:
    """alice's node is gone; whoever has her key takes back what is left the second the term is over."""
    deal = Deal(world)
    deal.bill(7)
    until = channel(world.bob).valid_until
    world.bob.clock.skew_s = skew_s
    world.restart(world.bob)
    world.run(10)
    world.alice.db.dead = True
    world.run(1)
    held = channel(world.bob)
    key = ChannelKey(held.payer, held.payee, held.signer, held.nonce)
    world.run(until - START.timestamp() - world.loop.passed_s + 1.5)
    world.vault._execute(Asked(request_id="hers", kind="release", key=key))
    assert world.vault.latest.wallets[world.bob.id] == 7 * CENT
    world.run(60)
    assert deal.cents(world.bob) == (7, 7)


def test_an_agreement_of_weeks_has_cover_to_its_end(world: World) -> None:
    """bob hears of what is reserved for it, and tells what he holds, as on the first day."""
    deal = Deal(world, allocation=world.allocate("20"), life_s=40 * DAY_S)
    for day in range(1, 40):
        deal.bill(40 * day)
        world.run(60)
        assert channel(world.bob).reserved == channel(world.alice).reserved
        assert world.bob.payments.channels.gate.now(world.bob.id, deal.deal).room >= 30 * CENT
        if day == 30:
            copied = world.alice.db.snapshot()
        world.run(DAY_S)
    world.alice.db.dead = True
    world.run(1)
    world.alice.db.restore(copied)
    world.restart(world.alice)
    world.run(60)
    assert deal.cents(world.alice)[0] == deal.cents(world.bob)[0] == 39 * 40
    deal.end(1600)
    world.run(3 * DAY_S)
    assert deal.cents(world.bob) == (1600, 1600)


def test_nothing_is_signed_or_taken_within_the_margin(world: World) -> None:
    deal = Deal(world)
    deal.bill(7)
    note, until = deal.note(8), channel(world.bob).valid_until
    world.run(until - MARGIN_S - START.timestamp() - world.loop.passed_s + 1)
    with pytest.raises((Refused, PeerFailed)):
        world.say(world.alice, world.bob, "acceptance", by_hand(world, note, 8))
    assert world.bob.store.account(deal.deal, world.bob.id).accepted == 7 * CENT
    with pytest.raises(MoneyShort):
        deal.accept(note, tries=1)
    deal.accept(note)  # a new channel is reserved for what she wants to accept
    assert len(world.alice.channels.channels(world.alice.id)) == 2
    assert deal.cents(world.bob)[0] == 8
    deal.end()
    world.run(DAY_S)
    all_is_over(world, deal)


def test_a_payee_that_was_away_beyond_the_term_is_paid_and_told(world: World) -> None:
    """The acceptance comes when its channel is over: the payer has settled by then, and that counts."""
    deal = Deal(world)
    deal.bill(5)
    late = deal.note(9)
    world.line(False)
    deal.accept(late)
    world.run(DAY_S)
    world.line(True)
    deal.end()
    world.run(2 * DAY_S)
    assert (world.bob.store.document(late, world.bob.id).state, deal.cents(world.bob)) == ("SETTLED", (9, 9))
    all_is_over(world, deal)


def test_what_came_before_its_notice_is_counted_for_each_agreement_once(world: World) -> None:
    """bob counts what the channel paid for what he knows; then he hears of an acceptance, and of all payments."""
    one = Deal(world)
    two = Deal(world, allocation=one.allocation)
    one.bill(8)
    two.bill(32)
    late = one.note(40)
    world.line(False)
    one.accept(late)
    world.tell(one.deal, "Terminated")
    world.tell(two.deal, "Terminated")
    one.release()
    world.run(DAY_S)
    assert (one.cents(world.bob), two.cents(world.bob)) == ((8, 8), (32, 32))
    world.line(True)
    world.run(DAY_S)
    all_is_over(world, one, two)
    assert paid(world) == 72


def test_a_payee_whose_payer_says_nothing_counts_what_has_come(world: World) -> None:
    """alice's node settles and closes, and dies before it can say so."""
    deal = Deal(world)
    deal.bill(7)
    key = next(iter(world.vault.final.channels))
    world.alice.db.dead = True
    world.run(1)
    world.vault._execute(Asked(request_id="hers", kind="settle", key=key, amount=7 * CENT))
    world.vault.final = world.vault.latest
    world.run(DAY_S)
    assert deal.cents(world.bob) == (7, 7)


def test_a_bill_that_nobody_accepts_keeps_its_channel_for_ten_minutes(world: World) -> None:
    """Its program is gone. What is reserved comes back long before the term, and without anything that happens."""
    deal = Deal(world)
    deal.bill(5)
    world.tell(deal.deal, "Terminated")
    deal.invoice(9)
    deal.release()
    world.run(500)
    assert (paid(world), channel(world.alice).state) == (5, "open")
    world.run(200)
    assert (channel(world.alice).state, channel(world.bob).state) == ("closed", "closed")
    assert world.vault.final.channels == {}
    assert (deal.cents(world.alice), deal.cents(world.bob)) == ((5, 5), (5, 5))


# --- the chain


def test_a_reserve_that_comes_twice_in_another_order_is_still_one(world: World) -> None:
    """Two reserves change their places, and so their nonces, before they are final: nothing was signed on the first ones."""
    one, two = world.allocate("10", PLATFORMS[0]), world.allocate("10", PLATFORMS[1])
    deals = [world.agree(platform) for platform in PLATFORMS]
    world.run(1 + BLOCK_S)
    assert len(world.vault.latest.channels) == 2
    first = set(world.vault.latest.channels)
    assert world.alice.channels.channels(world.alice.id) == []  # not final
    world.vault.reorg()
    assert world.vault.latest.channels == {}
    world.run(20)
    assert set(world.vault.final.channels) == first  # the same names, the other way round
    names = {c.platform: c.nonce for c in world.alice.channels.channels(world.alice.id)}
    assert names == {c.platform: c.nonce for c in world.bob.channels.channels(world.bob.id)}
    bills = []
    for deal, allocation in zip(deals, (one, two), strict=True):
        bill = Deal.__new__(Deal)
        bill.world, bill.deal, bill.allocation = world, deal, allocation
        bill.activity = world.deals.activity(deal)
        bill.bill(4)
        bills.append(bill)
    for bill in bills:
        bill.end()
    world.run(3600)
    all_is_over(world, *bills)
    assert paid(world) == 8


def test_a_payee_that_closes_below_its_voucher_has_waived_the_rest(world: World) -> None:
    """No order of the payer's stays open for it, and the next deal is paid as ever."""
    deal = Deal(world)
    deal.bill(7)
    held = channel(world.bob)
    key = ChannelKey(held.payer, held.payee, held.signer, held.nonce)
    low = world.alice.identity.sign_digest(voucher_digest(vault_of(held), id_bytes(held), 3 * CENT))
    world.vault._execute(
        Asked(request_id="his", kind="redeem", key=key, amount=3 * CENT, signature=low, receiver="close")
    )
    world.vault.final = world.vault.latest
    deal.end()
    world.run(2 * DAY_S)
    assert paid(world) == 3
    assert world.alice.channels.open_targets() == []
    assert world.alice.payments.allocations.reserved(world.alice.id, PLATFORMS[0]) == 0
    again = Deal(world)
    again.bill(5)
    again.end()
    world.run(3600)
    assert again.cents(world.alice) == (5, 5)
    assert paid(world) == 8
    assert world.vault.final.channels == {}


def test_endpoints_that_are_away_for_a_day_are_not_asked_every_second(world: World) -> None:
    deal = Deal(world)
    deal.bill(7)
    world.vault.away = True
    deal.end()
    world.run(DAY_S)
    assert world.alice.chain.looks < DAY_S / 50
    assert world.bob.chain.looks < DAY_S / 10  # he also looks for what she says she has paid
    world.vault.away = False
    world.run(DAY_S)
    all_is_over(world, deal)


def news_of(world: World, held: Any) -> ChannelMessage:
    """What alice says of a channel whenever she likes."""
    return ChannelMessage(
        issuer=world.alice.id,
        recipient=world.bob.id,
        platform=held.platform,
        chain_id=held.chain_id,
        vault=held.vault,
        key=KeyPart(payer=held.payer, payee=held.payee, signer=held.signer, nonce=held.nonce),
        tx_hash="0x1",
    )


def test_news_of_a_channel_said_again_and_again_cost_a_look_each_second(world: World) -> None:
    Deal(world)
    said = news_of(world, channel(world.bob))
    world.run(10)
    before = world.bob.chain.looks
    for _ in range(200):
        world.say(world.alice, world.bob, "channel", said)
        world.run(0.02)
    world.run(10)
    assert 2 <= world.bob.chain.looks - before <= 12


def test_a_payer_cannot_keep_its_payee_from_collecting_by_news_of_the_channel(world: World) -> None:
    """So that it could take everything back when the term is over."""
    deal = Deal(world)
    deal.bill(7)
    held = channel(world.bob)
    world.alice.db.dead = True  # whoever has her key says news and pays nothing
    world.run(held.valid_until - MARGIN_S - START.timestamp() - world.loop.passed_s - 5)
    for _ in range(100):
        world.say(world.alice, world.bob, "channel", news_of(world, held))
        world.run(0.4)
    assert world.vault.latest.wallets[world.bob.id] == 7 * CENT


def test_a_payer_cannot_hold_up_its_payees_exit_by_news_of_the_channel(world: World) -> None:
    Deal(world)
    held = channel(world.bob)
    exits = world.bob.payments.treasury.exits
    assert exits is not None
    for _ in range(3):
        world.say(world.alice, world.bob, "channel", news_of(world, held))
    begun = world.do(lambda: exits.begin(world.bob.id, held.platform, world.bob.id, force=True))
    for _ in range(100):
        world.say(world.alice, world.bob, "channel", news_of(world, held))
        world.run(0.4)
    found = exits.get(world.bob.id, begun.exit_id)
    assert found is not None
    assert found.state == "done"


def test_a_letter_that_waits_for_the_chain_holds_up_no_other(world: World) -> None:
    """bob cannot see the cover of one acceptance, for as long as the chain is away; a rejection reaches him all the same."""
    deal, other = Deal(world), Deal(world)
    late, unwanted = deal.note(5), other.invoice(7)
    world.vault.away = True
    world.bob.channels.save(msgspec.structs.replace(channel(world.bob), reserved=0))
    deal.accept(late)
    body = wire.Rejection(rejection_reason="BAD_SERVICE", total_amount_accepted="0")
    world.do(lambda: world.alice.payments.requestor.reject_invoice(world.alice.id, unwanted, body))
    world.run(600)
    states = [world.bob.store.document(document, world.bob.id).state for document in (late, unwanted)]
    assert states == ["RECEIVED", "REJECTED"]
    world.vault.away = False
    world.run(300)
    assert world.bob.store.document(late, world.bob.id).state == "ACCEPTED"


def test_an_acceptance_waits_for_the_one_before_it_where_they_are_on_two_channels(world: World) -> None:
    """The second's voucher says less than both together; refused, it would never be heard of again."""
    deal = Deal(world)
    deal.bill(5)
    first, second = deal.note(20), deal.note(70)
    old = channel(world.alice)
    world.alice.channels.save(msgspec.structs.replace(old, state="closing"))
    world.do(world.alice.payments.channels.changed)
    world.run(20)  # work goes on: another is reserved, and bob does not agree to the old one's end
    assert [c.state for c in world.alice.channels.channels(world.alice.id)] == ["open", "open"]
    world.vault.away = True
    world.bob.channels.save(msgspec.structs.replace(world.bob.channels.channels(world.bob.id)[0], reserved=5 * CENT))
    deal.accept(first)
    deal.accept(second)
    assert [c.signed // CENT for c in world.alice.channels.channels(world.alice.id)] == [20, 50]
    world.run(60)
    world.vault.away = False
    world.run(120)
    states = [world.bob.store.document(note, world.bob.id).state for note in (first, second)]
    assert (states, deal.cents(world.bob)) == (["ACCEPTED", "ACCEPTED"], (70, 0))
    deal.end(71)
    world.run(DAY_S)
    all_is_over(world, deal)


def test_a_payee_that_says_for_ever_that_work_goes_on_is_asked_less_and_less(world: World) -> None:
    """It is paid, and costs its payer a question now and then."""
    deal = Deal(world, life_s=10 * DAY_S)
    deal.bill(7)
    asked = []

    async def never(peer: NodeId, request: bytes) -> bytes:
        asked.append(world.loop.passed_s)
        raise StillOpen("an agreement goes on")

    world.bob.peers.handlers[method_of("close")] = never
    deal.end()
    world.run(60)
    assert 5 <= len(asked) <= 20
    world.run(9 * DAY_S)
    assert len(asked) < 700
    assert (paid(world), deal.cents(world.alice)) == (7, (7, 7))
    exits = world.alice.payments.treasury.exits
    assert exits is not None
    for _ in range(2):
        before = len(asked)
        begun = world.do(lambda: exits.begin(world.alice.id, PLATFORMS[0], world.alice.id, force=True))
        world.run(10)
        assert len(asked) > before
        world.run(300)
        over = exits.get(world.alice.id, begun.exit_id)
        assert over is not None
        assert over.state == "done"
    world.run(4 * DAY_S)
    assert world.vault.final.channels == {}


def test_two_agreements_on_two_channels_are_heard_of_in_any_order(world: World) -> None:
    """One's later acceptance comes before its earlier one, and uses up what the other's voucher says meanwhile."""
    one = Deal(world)
    two = Deal(world, allocation=one.allocation)
    one.bill(5)
    notes = [one.note(20), two.note(40), one.note(70)]
    old = channel(world.alice)
    world.alice.channels.save(msgspec.structs.replace(old, state="closing"))
    world.do(world.alice.payments.channels.changed)
    world.run(20)
    first, _ = world.alice.channels.channels(world.alice.id)
    world.line(False)
    one.accept(notes[0])
    world.alice.channels.save(msgspec.structs.replace(world.alice.channels.channel(first), state="closing"))
    two.accept(notes[1])
    one.accept(notes[2])
    world.alice.channels.save(msgspec.structs.replace(world.alice.channels.channel(first), state="open"))
    assert [c.signed // CENT for c in world.alice.channels.channels(world.alice.id)] == [20, 90]
    sent = [world.alice.store.document(note, world.alice.id) for note in notes]
    world.line(True)
    for document in (sent[2], sent[1], sent[0], sent[1], sent[2]):
        message = msgspec.msgpack.decode(document.answer, type=AcceptanceMessage)
        with suppress(Refused, PeerFailed):
            world.say(world.alice, world.bob, "acceptance", message)
    states = [world.bob.store.document(note, world.bob.id).state for note in notes]
    assert states == ["ACCEPTED"] * 3
    assert [c.signed // CENT for c in world.bob.channels.channels(world.bob.id)] == [20, 90]
    world.tell(two.deal, "Terminated")
    one.end(71)
    world.run(DAY_S)
    all_is_over(world, one, two)


# --- more than one at a time


def test_a_payee_that_moves_to_another_address_has_cover_there(world: World) -> None:
    """What is reserved for the old address pays nothing at the new one, and bob counts on none of it."""
    one = Deal(world)
    one.bill(5)
    world.vault.away = True
    two = Deal(world, allocation=one.allocation, payee="0x" + "ab" * 20)
    seen = world.bob.payments.channels.gate.now(world.bob.id, two.deal)
    assert (seen.started, seen.room) == (False, 0)
    world.vault.away = False
    world.run(30)
    admitted = world.bob.payments.channels.admit(world.bob.id, two.deal)
    world.loop.run_until_complete(admitted)
    assert {c.payee: c.reserved // CENT for c in world.alice.channels.channels(world.alice.id)} == {
        world.bob.id: 60,
        "0x" + "ab" * 20: 60,
    }
    two.bill(7)
    world.tell(one.deal, "Terminated")
    world.run(600)
    assert [c.payee for c in world.alice.channels.live_channels()] == ["0x" + "ab" * 20]  # nobody waits for the other
    two.end(8)
    world.run(3 * DAY_S)  # his node has no key to sign the end with
    assert (paid(world), world.vault.final.wallets["0x" + "ab" * 20]) == (5, 8 * CENT)
    assert world.vault.final.channels == {}
    assert (one.cents(world.bob), two.cents(world.bob)) == ((5, 5), (8, 8))


def test_what_a_payee_owes_the_other_way_neither_holds_a_channel_nor_fills_it(world: World) -> None:
    deal = Deal(world)
    deal.bill(5)
    turned = world.agree(turned=True)
    activity = world.deals.activity(turned)
    world.loop.run_until_complete(world.bob.payments.channels.admit(world.bob.id, deal.deal))
    body = wire.NewDebitNote(activity_id=activity, total_amount_due="1")
    note = world.do(lambda: world.alice.payments.provider.issue_note(world.alice.id, body)).document_id
    world.loop.run_until_complete(world.alice.payments.provider.send(world.alice.id, "debit-note", note, 5))
    assert world.bob.payments.channels.gate.now(world.bob.id, deal.deal).room == 55 * CENT
    deal.end()
    world.run(120)
    assert world.vault.final.channels == {}
    assert paid(world) == 5


# --- two programs on one node


def test_two_programs_pay_each_from_its_own_allocation(world: World) -> None:
    mine, yours = world.allocate("0.5"), world.allocate("10")
    one, two = Deal(world, allocation=mine), Deal(world, allocation=yours)
    one.bill(45)
    two.bill(90)
    note = one.note(60)
    with pytest.raises(MoneyShort):  # his money is not hers, although one channel holds both
        one.accept(note)
    assert channel(world.alice).signed == 135 * CENT
    two.bill(120)
    spent = {a.allocation_id: a.spent // CENT for a in world.alice.store.active_allocations(world.alice.id)}
    assert spent == {mine: 45, yours: 120}
    world.tell(one.deal, "Terminated")
    one.release()
    two.end()
    world.run(2 * DAY_S)  # what was never accepted holds nothing for ever
    assert paid(world) == 165
    assert world.vault.final.channels == {}
    assert (one.cents(world.bob), two.cents(world.bob)) == ((45, 45), (120, 120))


def test_a_program_that_died_takes_nothing_of_the_next_ones_budget(world: World) -> None:
    """Its agreement goes on, as far as alice knows: its provider is dead, too. But what it set aside was released."""
    dead = Deal(world, allocation=world.allocate("0.1"))
    dead.bill(1)
    dead.release()
    two = Deal(world, allocation=world.allocate("0.1"), payee="0x" + "ab" * 20)
    [old, new] = world.alice.channels.live_channels()
    assert (old.room, new.reserved) == (7 * CENT, 6 * CENT)  # the least that he starts with
    two.bill(6)
    dead.allocation = two.allocation  # somebody pays its bills after all
    dead.bill(4)
    world.tell(dead.deal, "Terminated")
    two.end()
    world.run(3 * DAY_S)
    assert world.vault.final.channels == {}
    assert (dead.cents(world.bob), two.cents(world.bob)) == ((4, 4), (6, 6))


def test_what_another_key_would_sign_takes_nothing_of_todays_budget(world: World) -> None:
    deal = Deal(world, allocation=world.allocate("0.1"))
    world.alice.voucher_key = Identity.generate()
    world.restart(world.alice)
    world.run(20)
    assert [c.reserved // CENT for c in world.alice.channels.live_channels()] == [6, 6]
    deal.bill(9)
    deal.end(10)
    world.run(3 * DAY_S)
    all_is_over(world, deal)


def test_names_of_one_vault_share_one_wallet(world: World) -> None:
    world.allocate("60", PLATFORMS[0])
    with pytest.raises(MoneyShort):
        world.allocate("41", PLATFORMS[1])
    deal = Deal(world, platform=PLATFORMS[1], allocation=world.allocate("40", PLATFORMS[1]))
    deal.bill(10)
    with pytest.raises(MoneyShort):
        world.allocate("0.01", PLATFORMS[0])
    deal.end()
    world.run(3600)
    with pytest.raises(MoneyShort):
        world.allocate("39.91", PLATFORMS[1])
    world.allocate("39.9", PLATFORMS[1])
