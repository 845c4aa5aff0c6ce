"""No sequence of calls makes money, exceeds an allocation, or leaves anything reserved for ever."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shem.errors import Refused, ShemError
from shem.node.payment import ledger
from shem.node.payment.ledger import Account, Allocation, Chain
from shem.terms.pricing import LinearPricing

START = datetime(2026, 1, 1, tzinfo=UTC)
HELD = 1000
amounts = st.integers(min_value=0, max_value=400)
few = st.integers(min_value=0, max_value=2)


class Money(RuleBasedStateMachine):
    """One payer, up to three agreements of two activities each; the provider's books follow by messages in order."""

    @initialize()
    def begin(self) -> None:
        self.now = START
        self.balance = HELD
        self.allocations: dict[str, Allocation] = {}
        self.payer = [self._account(i, "Requestor") for i in range(3)]
        self.payee = [self._account(i, "Provider") for i in range(3)]
        self.chains: dict[tuple[str, int, int], Chain] = {
            (side, i, a): Chain(owner=side, activity_id=f"{i}.{a}", agreement_id=str(i))
            for side in ("payer", "payee")
            for i in range(3)
            for a in range(2)
        }
        self.notes: list[tuple[int, int, int]] = []
        self.orders: list[tuple[int, int]] = []
        self.scheduled = [0, 0, 0]
        self.received = [0, 0, 0]
        for total in (300, 200):  # something to spend from the start, or most runs would only be refused
            self.allocate(total, None)

    def _account(self, i: int, role: str) -> Account:
        return Account(
            owner=role, agreement_id=str(i), role=role, peer_id="", platform="p", payer="me", payee="you", session=None
        )

    # the provider asks

    @rule(i=few, a=st.integers(0, 1), total=amounts)
    def note(self, i: int, a: int, total: int) -> None:
        try:
            account, chain = ledger.add_note(self.payer[i], self.chains["payer", i, a], "n", total)
            other, other_chain = ledger.add_note(self.payee[i], self.chains["payee", i, a], "n", total)
        except Refused:
            return
        self.payer[i], self.payee[i] = account, other
        self.chains["payer", i, a], self.chains["payee", i, a] = chain, other_chain
        self.notes.append((i, a, total))

    @rule(i=few, a=st.integers(0, 1), keep=amounts)
    def note_fails(self, i: int, a: int, keep: int) -> None:
        """Only the provider's own books know a note that the other node refused."""
        chain = self.chains["payee", i, a]
        account, raised = (
            ledger.add_note(self.payee[i], chain, "x", chain.requested)
            if (self.payee[i].invoiced is None)
            else (self.payee[i], chain)
        )
        self.payee[i], self.chains["payee", i, a] = ledger.take_note_back(
            account, raised, chain.requested, chain.last_note_id
        )
        assert self.chains["payee", i, a].requested == chain.requested

    @rule(i=few, amount=amounts)
    def invoice(self, i: int, amount: int) -> None:
        try:
            account = ledger.add_invoice(self.payer[i], amount)
            other = ledger.add_invoice(self.payee[i], amount)
        except Refused:
            return
        self.payer[i], self.payee[i] = account, other

    @rule(data=st.data(), i=few, more=st.integers(min_value=-50, max_value=200), payable=st.booleans())
    def bill_and_accept(self, data: st.DataObject, i: int, more: int, payable: bool) -> None:
        """The usual way of an agreement: a grown note, accepted, and now and then the invoice after it."""
        a = more % 2
        self.note(i, a, max(self.chains["payer", i, a].requested + more, 0))
        self.accept_note(data, payable)
        if more % 5 == 0:
            self.invoice(i, max(self.payer[i].noted + more, 0))
            self.accept_invoice(data, i)

    @rule(i=few)
    def take_invoice_back(self, i: int) -> None:
        account = self.payer[i]
        if account.invoiced is not None and account.accepted < max(account.invoiced, 1):
            self.payer[i] = ledger.take_invoice_back(account)
            self.payee[i] = ledger.take_invoice_back(self.payee[i])

    # the payer answers

    @rule(data=st.data(), payable=st.booleans())
    def accept_note(self, data: st.DataObject, payable: bool) -> None:
        if not self.notes or not self.allocations:
            return
        i, a, total = data.draw(st.sampled_from(self.notes))
        self._accept(data, i, ledger.accept_note(self.payer[i], self.chains["payer", i, a], total), payable, (a, total))

    @rule(data=st.data(), i=few)
    def accept_invoice(self, data: st.DataObject, i: int) -> None:
        invoiced = self.payer[i].invoiced
        if invoiced is None or not self.allocations:
            return
        self._accept(data, i, ledger.accept_invoice(self.payer[i], invoiced), True, None)

    def _accept(
        self, data: st.DataObject, i: int, result: ledger.Accepted, payable: bool, note: tuple[int, int] | None
    ) -> None:
        allocation = self.allocations[data.draw(st.sampled_from(sorted(self.allocations)))]
        try:
            allocation, account = ledger.draw(allocation, result.account, result.drawn, self.now)
        except ShemError:
            return
        self.allocations[allocation.allocation_id] = allocation
        if payable:
            account, due = ledger.schedule(account)
            self._order(i, due)
        self.payer[i] = account
        if note is None:
            told = ledger.accept_invoice(self.payee[i], self.payer[i].invoiced or 0)
        else:
            self.chains["payer", i, note[0]] = result.chain or self.chains["payer", i, note[0]]
            told = ledger.accept_note(self.payee[i], self.chains["payee", i, note[0]], note[1])
            self.chains["payee", i, note[0]] = told.chain or self.chains["payee", i, note[0]]
        self.payee[i] = told.account

    def _order(self, i: int, due: int) -> None:
        assert due >= 0
        if due:
            self.orders.append((i, due))
            self.scheduled[i] += due

    # money moves

    @rule(data=st.data())
    def pay(self, data: st.DataObject) -> None:
        if self.orders:
            order = data.draw(st.sampled_from(self.orders))
            self.orders.remove(order)
            i, amount = order
            self.balance -= amount
            self.received[i] += amount
            self.payer[i] = ledger.settle(self.payer[i], amount)
            self.payee[i] = ledger.settle(self.payee[i], amount)

    # allocations

    @rule(total=st.integers(min_value=0, max_value=2 * HELD), minutes=st.none() | st.integers(1, 10))
    def allocate(self, total: int, minutes: int | None) -> None:
        try:
            ledger.check_funds(total, self.balance, self._reserved())
        except ledger.FundsShort:
            assert total > self.balance - self._reserved()
            return
        name = f"a{len(self.allocations)}"
        self.allocations[name] = Allocation(
            allocation_id=name,
            owner="me",
            platform="p",
            address="me",
            total=total,
            created_at=self.now,
            timeout=None if minutes is None else self.now + timedelta(minutes=minutes),
        )

    @rule(data=st.data(), total=st.integers(min_value=0, max_value=HELD))
    def amend(self, data: st.DataObject, total: int) -> None:
        active = sorted(name for name, a in self.allocations.items() if not a.released)
        if not active:
            return
        old = self.allocations[data.draw(st.sampled_from(active))]
        try:
            new = ledger.amend(old, total, None)
            if new.total > old.total:
                ledger.check_funds(new.total - old.total, self.balance, self._reserved())
        except ShemError:
            return
        self.allocations[old.allocation_id] = new

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.allocations:
            self._end(data.draw(st.sampled_from(sorted(self.allocations))))

    @rule(minutes=st.integers(0, 10))
    def time_passes(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)
        for name, allocation in list(self.allocations.items()):
            if allocation.expired(self.now):
                self._end(name)

    def _end(self, name: str) -> None:
        self.allocations[name] = ledger.release(self.allocations[name])
        for i, account in enumerate(self.payer):
            if account.allocation_id == name:
                self.payer[i], due = ledger.schedule(account)
                self._order(i, due)

    def _reserved(self) -> int:
        return ledger.reserved(self.allocations.values(), self.payer)

    # what always holds

    @invariant()
    def nothing_exceeds_its_allocation(self) -> None:
        for allocation in self.allocations.values():
            assert 0 <= allocation.spent <= allocation.total
            assert allocation.remaining >= 0

    @invariant()
    def every_debt_was_drawn_once(self) -> None:
        assert sum(a.spent for a in self.allocations.values()) == sum(a.accepted for a in self.payer)

    @invariant()
    def sums_are_in_order(self) -> None:
        for i, (mine, theirs) in enumerate(zip(self.payer, self.payee, strict=True)):
            assert 0 <= mine.settled <= mine.scheduled <= mine.accepted <= max(mine.requested, mine.noted)
            assert mine.scheduled == self.scheduled[i]
            assert mine.settled == theirs.settled == self.received[i]
            assert (mine.accepted, mine.requested) == (theirs.accepted, theirs.requested)
            assert mine.notes_accepted <= mine.noted
            assert mine.invoiced is None or mine.invoiced >= max(mine.noted, mine.accepted)

    @invariant()
    def the_account_covers_what_is_promised(self) -> None:
        assert 0 <= self._reserved() <= self.balance
        assert self.balance + sum(self.received) == HELD

    def teardown(self) -> None:
        """Everything is released and paid: nothing stays behind, and everything accepted has arrived."""
        for name in list(self.allocations):
            self._end(name)
        for i, amount in self.orders:
            self.balance -= amount
            self.payer[i] = ledger.settle(self.payer[i], amount)
            self.received[i] += amount
        assert self._reserved() == 0
        assert [a.accepted for a in self.payer] == self.received


TestMoney = Money.TestCase
TestMoney.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


def account(**changes: int) -> Account:
    base = Account(
        owner="me", agreement_id="g", role="Requestor", peer_id="", platform="p", payer="me", payee="you", session=None
    )
    return msgspec.structs.replace(base, **changes)


def test_claims_against_the_own_usage():
    pricing = LinearPricing((Decimal("0.1"),), Decimal("0.5"), ("u",))
    ledger.check_claim(pricing, [10.0], 15 * 10**17)
    ledger.check_claim(pricing, [10.0], 15 * 10**17 + ledger.TOLERANCE_UNITS)
    with pytest.raises(ledger.OverBilled) as caught:
        ledger.check_claim(pricing, [10.0], 15 * 10**17 + ledger.TOLERANCE_UNITS + 1)
    assert caught.value.details["price"] == "1.5"


def test_released_allocation_reserves_nothing_and_keeps_its_debt():
    allocation = Allocation(
        allocation_id="a", owner="me", platform="p", address="me", total=10, spent=4, created_at=START
    )
    assert ledger.release(allocation).remaining == 0
    assert ledger.reserved([ledger.release(allocation)], [account(accepted=4, settled=1)]) == 3


def test_notes_have_a_number():
    chain = Chain(owner="me", activity_id="x", agreement_id="g", notes=ledger.MAX_NOTES)
    with pytest.raises(ledger.TooManyNotes):
        ledger.add_note(account(), chain, "n", 1)
