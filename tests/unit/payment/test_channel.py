"""What a channel's two sides sign, take and end, together with the ledger, whatever messages and restarts do."""

from __future__ import annotations

import re
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shem.errors import PeerFailed, Refused, ShemError
from shem.node.payment import ledger
from shem.node.payment.channel import (
    MAX_AHEAD_S,
    PAY_S,
    Channel,
    Cover,
    CoverNotSeen,
    CoverShort,
    NoChannel,
    Seen,
    StillOpen,
    Voucher,
    VoucherLate,
    VoucherLow,
    VoucherMissing,
    VoucherWrong,
    WrongSum,
    agree_to_close,
    cover_wanted,
    covers,
    ends_at,
    lacking,
    lend,
    may_be_signed,
    may_close,
    observe,
    plan,
    redeem_moment,
    remember,
    sign_up,
    spare_of,
    take_voucher,
    term_after,
)
from shem.terms.pricing import LinearPricing

NOW, MARGIN = 1_800_000_000, 120
TERM = NOW + 10_000


def channel(role: str = "Requestor", **fields: object) -> Channel:
    plain = Channel(
        owner="0xa",
        channel_id="0xc1",
        role=role,
        peer_id="0xb",
        platform="channel-devnet-tglm",
        payer="0xa",
        payee="0xb",
        signer="0x51",
        nonce=0,
        chain_id=1337,
        vault="0xva",
        reserved=1000,
        valid_until=TERM,
    )
    return msgspec.structs.replace(plain, **fields)


def voucher(amount: int, *, channel_id: str = "0xc1", signer: str = "0x51") -> Voucher:
    return Voucher(channel_id, amount, signer, amount.to_bytes(8, "big"))


def cover(**fields: object) -> Cover:
    plain = Cover(
        owner="0xa",
        agreement_id="a1",
        role="Requestor",
        peer_id="0xb",
        platform="channel-devnet-tglm",
        payer="0xa",
        payee="0xb",
        wanted=600,
        least=60,
        ends_at=NOW + 3600,
    )
    return msgspec.structs.replace(plain, **fields)


# --- paying


def test_the_payer_signs_totals_up_to_what_is_reserved():
    signed = sign_up(sign_up(channel(), 400, NOW, MARGIN), 600, NOW, MARGIN)
    assert (signed.signed, signed.owed, signed.room) == (1000, 1000, 0)
    with pytest.raises(CoverShort):
        sign_up(signed, 1, NOW, MARGIN)
    with pytest.raises(ValueError, match="never falls"):
        sign_up(signed, -1, NOW, MARGIN)


def test_signing_nothing_more_keeps_the_signature():
    held = channel(signed=5, owed=5, signature=b"s")
    assert sign_up(held, 0, NOW, MARGIN) == held
    assert sign_up(held, 1, NOW, MARGIN).signature is None


@pytest.mark.parametrize(("state", "now"), [("closing", NOW), ("closed", NOW), ("open", TERM - MARGIN)])
def test_the_payer_signs_nothing_on_a_channel_that_ends(state, now):
    with pytest.raises(NoChannel):
        sign_up(channel(state=state), 1, now, MARGIN)


def test_the_payee_takes_what_covers_all_that_is_owed():
    bob = take_voucher(channel("Provider"), voucher(300), 300, NOW, MARGIN)
    assert (bob.signed, bob.owed, bob.signature) == (300, 300, voucher(300).signature)
    assert take_voucher(bob, voucher(300), 0, NOW, MARGIN) == bob  # again
    later = take_voucher(bob, voucher(900), 200, NOW, MARGIN)  # the one in between is under way
    assert take_voucher(later, voucher(700), 400, NOW, MARGIN).owed == 900


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (None, VoucherMissing),
        (voucher(99), VoucherWrong),
        (voucher(0), VoucherWrong),
        (voucher(100, signer="0x52"), VoucherWrong),
        (voucher(100, channel_id="0xc2"), VoucherWrong),
        (voucher(1001), CoverNotSeen),
    ],
)
def test_the_payee_takes_nothing_less(sent, error):
    with pytest.raises(error):
        take_voucher(channel("Provider"), sent, 100, NOW, MARGIN)


@pytest.mark.parametrize("state", ["closing", "closed"])
def test_the_payee_takes_nothing_on_a_channel_that_ends(state):
    with pytest.raises(VoucherLate):
        take_voucher(channel("Provider", state=state), voucher(100), 100, NOW, MARGIN)


@pytest.mark.parametrize("state", ["open", "closing", "closed"])
def test_what_has_arrived_on_the_chain_needs_no_voucher_in_time(state):
    """The acceptance was so long on its way that its payer has settled and closed meanwhile."""
    paid = channel("Provider", state=state, claimed=100, signed=40, owed=40)
    assert take_voucher(paid, voucher(100), 60, TERM + 1, MARGIN).owed == 100
    with pytest.raises((VoucherLate, CoverNotSeen)):
        take_voucher(paid, voucher(101), 61, TERM + 1, MARGIN)


def test_cover_that_is_not_seen_yet_is_asked_for_again():
    """A refusal would lose the acceptance for ever; the peer's letters come again instead."""
    with pytest.raises(CoverNotSeen):
        take_voucher(channel("Provider"), voucher(1), 1, TERM - MARGIN, MARGIN)  # a longer term may be under way
    with pytest.raises(CoverNotSeen):
        take_voucher(channel("Provider"), voucher(1), 1, TERM, MARGIN)  # or its payer may settle
    with pytest.raises(CoverNotSeen):
        take_voucher(channel("Provider", reserved=0, valid_until=0), voucher(1), 1, NOW, MARGIN)
    assert issubclass(CoverNotSeen, PeerFailed)
    assert not issubclass(CoverNotSeen, Refused)


def test_a_payer_with_an_older_memory_signs_no_lower_than_the_chain_has_paid():
    old = observe(channel(signed=100, owed=100), Seen(1000, 700, TERM))
    # 600 of what she promises now were promised before
    assert sign_up(old, 1, NOW, MARGIN).signed == 700
    assert sign_up(old, 601, NOW, MARGIN).signed == 701


def test_a_payer_takes_its_own_word_back_from_the_payee():
    old = channel(signed=100, owed=100)
    told = remember(old, 700, b"s", 550)
    assert (told.signed, told.owed, told.signature) == (700, 650, b"s")
    assert remember(old, 700, b"s", 10_000).owed == 700  # acceptances on channels before it explain nothing here
    assert remember(old, 50, b"s", 0) == old
    later = sign_up(told, 60, NOW, MARGIN)
    assert (later.signed, later.owed) == (710, 710)


def test_a_channel_that_left_the_chain_is_closed_and_stays_so():
    gone = observe(channel("Provider", signed=10), Seen(0, 10, 0))
    assert (gone.state, gone.claimed) == ("closed", 10)
    assert observe(gone, Seen(1000, 0, TERM)).state == "closed"


# --- cover


def test_cover_is_the_price_of_full_use():
    vector = ("golem.usage.duration_sec", "golem.usage.cpu_sec", "golem.usage.gib")
    pricing = LinearPricing((Decimal("0.001"), Decimal("0.002"), Decimal(5)), Decimal("0.5"), vector)
    wanted, least = cover_wanted(pricing, {}, {"golem.inf.cpu.threads": 4})
    assert wanted == 10**18 // 2 + 600 * (1 + 4 * 2) * 10**15
    assert least == 10**18 // 2 + 60 * (1 + 4 * 2) * 10**15
    longer, _ = cover_wanted(pricing, {}, {"golem.com.payment.channel.cover-sec?": 1200})
    assert longer == 10**18 // 2 + 1200 * 3 * 10**15
    assert cover_wanted(None, {}, {}) == (0, 0)
    few = {"golem.com.payment.channel.cover-sec?": 5, "golem.com.payment.channel.least-sec?": 20}
    assert cover_wanted(pricing, {}, few) == (10**18 // 2 + 20 * 3 * 10**15,) * 2
    slow, _ = cover_wanted(pricing, {}, few, 960.0)
    assert slow == 10**18 // 2 + 4 * 960 * 3 * 10**15
    one, _ = cover_wanted(pricing, {"golem.!exp.shem.v1.require.cpu.threads": 0.5}, {"golem.inf.cpu.threads": 64})
    assert one == 10**18 // 2 + 600 * 3 * 10**15, "a job that needs one thread of many reserves for one"
    assert term_after({}) == PAY_S
    assert term_after({"golem.com.payment.channel.after-sec?": 7}) == 7
    assert term_after({"golem.com.payment.channel.after-sec?": 10**12}) == 86400


@given(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3))
def test_whatever_a_peer_says_makes_no_absurd_cover(said):
    pricing = LinearPricing(
        (Decimal(10) ** 9, Decimal(10) ** 9), Decimal(0), ("golem.usage.duration_sec", "golem.usage.cpu_sec")
    )
    demand = {"golem.!exp.shem.v1.require.cpu.threads": said}
    offer = {"golem.inf.cpu.threads": said, "golem.com.payment.channel.cover-sec?": said}
    wanted, least = cover_wanted(pricing, demand, offer)
    assert 0 < least <= wanted < 2**96
    assert NOW <= ends_at({"golem.srv.comp.expiration": said}, NOW) <= NOW + MAX_AHEAD_S


def test_a_channel_is_opened_filled_at_half_and_prolonged():
    opened = plan(None, [cover()], 10_000, NOW, MARGIN)
    assert (opened.add, opened.valid_until) == (600, NOW + 3600 + 2 * PAY_S + 2 * MARGIN)
    fresh = channel(reserved=600, valid_until=opened.valid_until)
    assert plan(fresh, [cover()], 10_000, NOW, MARGIN) is None
    half = msgspec.structs.replace(fresh, signed=300)
    assert plan(half, [cover()], 10_000, NOW, MARGIN) is None
    used = msgspec.structs.replace(fresh, signed=301)
    assert plan(used, [cover()], 10_000, NOW, MARGIN).add == 301
    assert plan(used, [cover()], 7, NOW, MARGIN) is None  # plenty, for what is left
    last = msgspec.structs.replace(fresh, signed=590)
    assert plan(last, [cover()], 7, NOW, MARGIN).add == 7
    assert plan(used, [cover()], 0, NOW, MARGIN) is None
    assert plan(used, [cover(live=False)], 10_000, NOW, MARGIN) is None
    assert plan(used, [cover(ends_at=NOW)], 10_000, NOW, MARGIN) is None  # nobody has ended it
    assert cover(ends_at=NOW).lives(NOW)
    assert not cover(ends_at=NOW - PAY_S).lives(NOW)
    longer = plan(fresh, [cover(), cover(ends_at=NOW + 9000, wanted=1)], 10_000, NOW, MARGIN)
    assert (longer.add, longer.valid_until) == (0, NOW + 9000 + 2 * PAY_S + 2 * MARGIN)
    assert plan(channel(state="closing"), [cover()], 10_000, NOW, MARGIN).add == 600


def test_what_an_agent_wants_to_accept_is_reserved_even_after_the_end():
    over = [cover(live=False)]
    held = channel(reserved=600, signed=590)
    assert plan(held, over, 10_000, NOW, MARGIN) is None
    assert plan(held, over, 10_000, NOW, MARGIN, asked=50).add == 40
    assert plan(held, over, 39, NOW, MARGIN, asked=50) is None  # it would not help
    assert plan(held, over, 10_000, NOW, MARGIN, asked=10) is None  # it is there
    fresh = plan(channel(state="closing"), over, 10_000, NOW, MARGIN, asked=50)
    assert (fresh.add, fresh.valid_until) == (50, NOW + 2 * MARGIN + PAY_S)
    assert plan(None, over, 49, NOW, MARGIN, asked=50) is None


def test_many_payees_share_a_small_budget():
    left, opened = 400, []
    for _ in range(4):
        grow = plan(None, [cover()], left, NOW, MARGIN)
        opened.append(grow.add)
        left -= grow.add
    assert opened == [200, 100, 60, 40]


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 700), st.integers(1, 600))
def test_what_is_reserved_is_there_and_asked_for_once(budget, wanted, signed, least):
    needs = [cover(wanted=wanted + least, least=least)]
    held = channel(reserved=700, signed=signed)
    grow = plan(held, needs, budget, NOW, MARGIN)
    if grow is not None:
        assert 0 < grow.add <= budget
        grown = msgspec.structs.replace(held, reserved=700 + grow.add)
        assert plan(grown, needs, budget - grow.add, NOW, MARGIN) is None or grown.room < least


def test_the_payee_starts_only_what_a_final_block_covers():
    bob = channel("Provider", reserved=100, signed=30)
    assert covers(bob, [cover(least=70)], NOW, MARGIN)
    assert not covers(bob, [cover(least=70), cover(least=1)], NOW, MARGIN)
    assert not covers(bob, [cover(least=1)], TERM - MARGIN, MARGIN)
    assert not covers(channel("Provider", state="closing"), [], NOW, MARGIN)
    assert covers(bob, [cover(least=75)], NOW, MARGIN, credit=5)
    assert not covers(bob, [cover(least=76)], NOW, MARGIN, credit=5)


def test_why_nothing_starts_is_said():
    need = cover(least=60, ends_at=NOW + 3600)
    said = {
        "has reserved no money": [],
        "no final block shows it": [channel("Provider", reserved=0, valid_until=0)],
        "10 are left|0.00000000000000001 are left": [channel("Provider", signed=990)],
        "ends 100 s too early": [channel("Provider", valid_until=NOW + 3600 + PAY_S + MARGIN // 2 - 100)],
    }
    for words, channels in said.items():
        assert re.search(words, lacking(channels, [need], NOW, MARGIN)), words
    assert lacking([channel("Provider", signed=990), channel("Provider")], [need], NOW, MARGIN) == ""
    assert lacking([channel("Provider", state="closing")], [need], NOW, MARGIN, credit=60) == ""


def test_the_reserve_must_outlive_the_agreement_by_what_was_agreed():
    bob = channel("Provider")
    last = TERM - PAY_S - MARGIN // 2
    assert covers(bob, [cover(ends_at=last)], NOW, MARGIN)
    assert not covers(bob, [cover(ends_at=last + 1)], NOW, MARGIN)
    assert covers(bob, [cover(ends_at=last + 1, after_s=0)], NOW, MARGIN)
    for_years = channel("Provider", valid_until=NOW + MAX_AHEAD_S)
    assert covers(for_years, [cover(ends_at=NOW + MAX_AHEAD_S)], NOW + 3600, MARGIN)


def test_what_is_planned_is_enough_to_start_also_by_a_clock_that_differs():
    for after_s in (0, PAY_S, 86400):
        need = cover(after_s=after_s)
        grow = plan(None, [need], 10_000, NOW, MARGIN)
        bob = channel("Provider", reserved=grow.add, valid_until=grow.valid_until)
        assert covers(bob, [cover(after_s=after_s, ends_at=need.ends_at + 60)], NOW, MARGIN)
        next_one = cover(after_s=after_s, ends_at=need.ends_at + 5000)
        longer = plan(channel(reserved=600, valid_until=grow.valid_until), [next_one], 10_000, NOW, MARGIN)
        assert covers(channel("Provider", valid_until=longer.valid_until), [next_one], NOW, MARGIN)


def test_what_may_still_be_signed_is_the_best_channels_room():
    small, large = channel("Provider", reserved=40, signed=30), channel("Provider", signed=900, valid_until=TERM + 50)
    assert may_be_signed([small, large], NOW, MARGIN) == (100, TERM + 50 - MARGIN)
    assert may_be_signed([small, large], TERM - MARGIN, MARGIN) == (100, TERM + 50 - MARGIN)
    assert may_be_signed([small], TERM - MARGIN, MARGIN) == (0, 0)
    assert may_be_signed([channel("Provider", state="closing")], NOW, MARGIN) == (0, 0)


# --- ending


def test_only_an_idle_channel_is_closed():
    idle = channel(signed=10)
    assert may_close(idle, live=False, unaccepted=False, allocated=False)
    assert not may_close(idle, live=True, unaccepted=False, allocated=False)
    assert not may_close(idle, live=False, unaccepted=True, allocated=False)
    assert not may_close(idle, live=False, unaccepted=False, allocated=True)
    assert not may_close(channel(state="closing"), live=False, unaccepted=False, allocated=False)


def test_the_payee_agrees_to_its_highest_voucher_only():
    bob = channel("Provider", signed=10, owed=10, signature=b"s")
    with pytest.raises(WrongSum):
        agree_to_close(bob, 9, live=False, unaccepted=False)
    with pytest.raises(StillOpen):
        agree_to_close(bob, 10, live=True, unaccepted=False)
    with pytest.raises(StillOpen):
        agree_to_close(bob, 10, live=False, unaccepted=True)
    closing = agree_to_close(bob, 10, live=False, unaccepted=False)
    assert agree_to_close(closing, 10, live=True, unaccepted=True) == closing  # the answer was lost
    with pytest.raises(VoucherLate):
        take_voucher(closing, voucher(11), 1, NOW, MARGIN)
    assert redeem_moment(closing, MARGIN) == TERM - MARGIN  # the payer may never send its close


def test_there_is_nothing_to_redeem_once_it_is_paid():
    bob = channel("Provider", signed=10, signature=b"s")
    assert redeem_moment(bob, MARGIN) == TERM - MARGIN
    assert redeem_moment(observe(bob, Seen(1000, 10, TERM)), MARGIN) is None


# --- both sides, the ledger and the chain


class TwoSides(RuleBasedStateMachine):
    """One channel, two agreements, letters that are repeated and delayed, restarts, and a payer with an old copy."""

    def __init__(self) -> None:
        super().__init__()
        self.alice, self.bob = channel(), channel("Provider")
        self.old = self.alice
        self.accounts = {
            side: {a: self._account(a, role) for a in ("a1", "a2")}
            for side, role in (("alice", "Requestor"), ("bob", "Provider"))
        }
        self.letters: list[tuple[str, int, Voucher | None]] = []
        self.delivered = 0
        self.on_chain = Seen(1000, 0, TERM)
        self.closing: int | None = None

    def _account(self, agreement: str, role: str) -> ledger.Account:
        return ledger.Account(
            owner="0x",
            agreement_id=agreement,
            role=role,
            peer_id="0x",
            platform="p",
            payer="0xa",
            payee="0xb",
            session=None,
        )

    @rule(agreement=st.sampled_from(["a1", "a2"]), grow=st.integers(0, 400))
    def accept(self, agreement: str, grow: int) -> None:
        account = self.accounts["alice"][agreement]
        result = ledger.accept_invoice(account, account.accepted + grow)
        try:
            self.alice = sign_up(self.alice, result.drawn, NOW, MARGIN)
        except ShemError:
            return
        assert self.alice.signed <= self.alice.reserved
        self.accounts["alice"][agreement] = result.account
        said = Voucher("0xc1", self.alice.signed, "0x51", b"s") if result.drawn else None
        self.letters.append((agreement, result.account.accepted, said))

    def _receive(self, place: int) -> None:
        agreement, total, said = self.letters[place]
        account = self.accounts["bob"][agreement]
        result = ledger.accept_invoice(account, total)
        self.bob = take_voucher(self.bob, said, result.drawn, NOW, MARGIN)
        self.accounts["bob"][agreement] = result.account

    @precondition(lambda self: self.delivered < len(self.letters))
    @rule()
    def deliver(self) -> None:
        try:
            self._receive(self.delivered)
        except (VoucherMissing, VoucherWrong, VoucherLate):
            # Only a payer that forgot what it signed, or signs after the end was agreed, is refused.
            assert self.alice_forgot or self.bob.state != "open"
        self.delivered += 1

    @precondition(lambda self: self.delivered)
    @rule(data=st.data())
    def deliver_again(self, data: st.DataObject) -> None:
        before = (self.bob.owed, self.bob.signed)
        try:
            self._receive(data.draw(st.integers(0, self.delivered - 1)))
        except ShemError:
            return
        assert (self.bob.owed, self.bob.signed) >= before

    @rule(sent=st.integers(-5, 1500), signer=st.sampled_from(["0x51", "0x52"]), more=st.integers(0, 50))
    def mallory_pays(self, sent: int, signer: str, more: int) -> None:
        """Whatever is accepted without a good voucher is not."""
        try:
            after = take_voucher(self.bob, Voucher("0xc1", sent, signer, b"m"), more, NOW, MARGIN)
        except ShemError:
            return
        assert after.signed >= after.owed
        assert after.signed in (self.bob.signed, self.bob.claimed) or signer == "0x51"

    @rule()
    def settle(self) -> None:
        """The payer's own transaction."""
        if self.on_chain.valid_until:
            self.on_chain = msgspec.structs.replace(
                self.on_chain, claimed=max(self.on_chain.claimed, min(self.alice.signed, 1000))
            )

    @rule()
    def redeem(self) -> None:
        """The payee's."""
        if self.on_chain.valid_until:
            self.on_chain = msgspec.structs.replace(self.on_chain, claimed=max(self.on_chain.claimed, self.bob.signed))

    @rule()
    def look(self) -> None:
        self.alice, self.bob = observe(self.alice, self.on_chain), observe(self.bob, self.on_chain)

    @rule()
    def back_up(self) -> None:
        self.old = self.alice

    alice_forgot = False

    @rule()
    def alice_restarts_from_her_copy(self) -> None:
        self.alice_forgot = self.alice_forgot or self.old.signed < self.alice.signed
        self.alice = observe(self.old, self.on_chain)

    @rule()
    def agree(self) -> None:
        try:
            self.bob = agree_to_close(self.bob, self.alice.signed, live=False, unaccepted=False)
        except ShemError:
            return
        self.closing = self.alice.signed
        self.alice = msgspec.structs.replace(self.alice, state="closing")

    @precondition(lambda self: self.closing is not None and self.on_chain.valid_until)
    @rule()
    def close(self) -> None:
        assert self.closing is not None
        self.on_chain = Seen(0, max(self.on_chain.claimed, self.closing), 0)

    @invariant()
    def money_holds(self) -> None:
        assert 0 <= self.alice.signed <= 1000
        assert self.bob.owed <= self.bob.signed <= 1000
        assert self.bob.owed == sum(a.accepted for a in self.accounts["bob"].values())
        assert self.on_chain.claimed <= max(self.alice.signed, self.bob.signed)
        if not self.alice_forgot:
            owed = sum(a.accepted for a in self.accounts["alice"].values())
            assert self.alice.signed == owed >= self.bob.signed >= self.bob.owed
        # What bob worked for is his to collect, now or from a channel that has paid him already.
        assert self.on_chain.valid_until or self.on_chain.claimed >= self.bob.owed


TestTwoSides = TwoSides.TestCase
TestTwoSides.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_acceptances_on_two_channels_may_come_in_any_order():
    """alice owes 10 by the first and 35 by the second, of which 20 are another agreement's; the first comes last."""
    first, second = channel("Provider"), channel("Provider", channel_id="0xc2", nonce=1)
    second = take_voucher(second, voucher(35, channel_id="0xc2"), 25, NOW, MARGIN)
    with pytest.raises(VoucherLow):
        take_voucher(second, voucher(35, channel_id="0xc2"), 20, NOW, MARGIN, spare_of(first))
    first = take_voucher(first, voucher(10), 0, NOW, MARGIN)
    after = take_voucher(second, voucher(35, channel_id="0xc2"), 20, NOW, MARGIN, spare_of(first))
    [lent] = lend([first], second.owed + 20 - after.owed)
    assert ((lent.signed, lent.owed), (after.signed, after.owed)) == ((10, 10), (35, 35))
    with pytest.raises(VoucherLow):
        take_voucher(after, voucher(35, channel_id="0xc2"), 1, NOW, MARGIN, spare_of(lent))
