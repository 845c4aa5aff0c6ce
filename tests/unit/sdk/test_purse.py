"""Limits in all, per hour and per provider: whatever is rented, when and at what price, none is exceeded."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shem.sdk.bookkeeping import SHORTEST_WAIT_S
from shem.sdk.golem import Golem
from shem.sdk.hiring import Hired
from shem.sdk.purse import GIVE_BACK_S, HOUR_S, Account, BudgetExceeded, ProviderSpent, Purse, ReserveShort
from shem.terms.amounts import BadAmount
from shem.terms.budgets import Limits
from shem.terms.pricing import LinearPricing
from shem.wire.market import Agreement, Demand, Offer

NOW = datetime(2026, 11, 24, tzinfo=UTC)
TOKEN = 10**18


def hired(number: int, provider: str = "0xp", *, hourly: str = "3.6", start: str = "0") -> Hired:
    demand = Demand(properties={}, constraints="()", demand_id="d", requestor_id="0xr", timestamp=NOW)
    offer = Offer(properties={}, constraints="()", offer_id="o", provider_id=provider, timestamp=NOW)
    agreement = Agreement(
        agreement_id=f"a{number}", demand=demand, offer=offer, valid_to=NOW, state="Approved", timestamp=NOW
    )
    second = Decimal(repr(float(Decimal(hourly) / 3600)))
    pricing = LinearPricing((second,), Decimal(start), ("golem.usage.duration_sec",))
    return Hired(agreement, provider, provider, pricing)


def account(number: int, opened: float, provider: str = "0xp", **price: str) -> Account:
    return Account(hired(number, provider, **price), 1, opened)


def owed(a: Account, moment: float) -> int:
    """What it truly costs by then, fully used."""
    if moment < a.opened:
        return 0
    end = moment if a.closed is None else min(moment, a.closed)
    return a.hired.pricing.cost([end - a.opened])


# -- whatever happens

amounts = st.none() | st.integers(TOKEN // 100, 4 * TOKEN)
plans = st.lists(
    st.tuples(
        st.sampled_from([0.0, 1.0, 700.5, 3599.0, 5000.0]),  # after the one before
        st.sampled_from(["0xa", "0xb", "0xc"]),
        st.sampled_from(["0.1", "0.3333", "1.7", "36"]),  # an hour
        st.sampled_from(["0", "0.001", "0.05"]),  # to start
        st.sampled_from([None, 0.5, 60.0, 4000.0]),  # given back by its user after
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(amounts, amounts, amounts, plans)
# the hour is full, and its first seconds leave it just when a second machine comes
@example(None, TOKEN // 100, None, [(0.0, "0xa", "0.1", "0.001", None), (3599.0, "0xa", "0.1", "0", 0.5)])
def test_no_limit_is_exceeded_whatever_is_rented(total, per_hour, per_provider, plan):
    """The bookkeeper's guard in small: it looks when something changes or a limit may be near, and gives back in time."""
    purse = Purse(Limits(total, per_hour, per_provider))
    openings: list[tuple[float, Account]] = []
    backs: list[tuple[float, Account]] = []
    begin = 0.0
    for number, (delay, provider, hourly, start, back) in enumerate(plan):
        begin += delay
        openings.append((begin, account(number, begin, provider, hourly=hourly, start=start)))
        backs += [] if back is None else [(begin + back, openings[-1][1])]
    moments, now, end = [0.0], 0.0, begin + 3 * HOUR_S
    while now <= end and len(moments) < 3000:
        for _, a in [b for b in backs if b[0] <= now and b[1].closed is None]:
            a.closed = now
        for _, a in [o for o in openings if o[0] <= now]:
            openings.pop(0)
            try:
                if a.hired.provider_id not in purse.spent_providers:
                    purse.open(a, now)
            except BudgetExceeded:
                del purse.accounts[a.hired.agreement.agreement_id]  # its agreement ends before it begins
        waits = []
        for line in list(purse.lines(now)):
            left = line.seconds_left
            if left == 0:
                for a in purse.accounts.values():
                    if line.provider_id in ("", a.hired.provider_id) and a.closed is None:
                        a.closed = now + GIVE_BACK_S - SHORTEST_WAIT_S
                if line.provider_id:
                    purse.spent_providers.add(line.provider_id)
            elif left is not None:
                waits.append(now + max(left, SHORTEST_WAIT_S))
        moments.append(now)
        later = waits + [m for m, a in openings + backs if m > now]
        if not later:
            break
        now = min(later)
    moments += [a.closed for a in purse.accounts.values() if a.closed is not None] + [end]
    accounts = list(purse.accounts.values())
    for moment in moments:
        if total is not None:
            assert sum(owed(a, moment) for a in accounts) <= total
        if per_hour is not None:
            assert sum(owed(a, moment) - owed(a, moment - HOUR_S) for a in accounts) <= per_hour
        if per_provider is not None:
            for provider in ("0xa", "0xb", "0xc"):
                assert sum(owed(a, moment) for a in accounts if a.hired.provider_id == provider) <= per_provider


@settings(deadline=None)
@given(
    amounts,
    amounts,
    amounts,
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2 * TOKEN), st.floats(0, 5000)), max_size=30),
)
def test_no_bills_in_any_order_are_accepted_past_a_limit(total, per_hour, per_provider, bills):
    purse = Purse(Limits(total, per_hour, per_provider))
    for number in range(5):
        a = account(number, 10.0 * number, f"0x{number % 2}")
        purse.accounts[f"a{number}"] = a
    now = 0.0
    for number, asked, pause in bills:
        now += pause
        a = purse.accounts[f"a{number}"]
        if asked > a.cost and purse.refuses(a, asked, now) is None:
            a.billed["x"] = asked
        everyone = list(purse.accounts.values())
        assert total is None or sum(a.cost for a in everyone) <= total
        for provider in ("0x0", "0x1"):
            theirs = sum(a.cost for a in everyone if a.hired.provider_id == provider)
            assert per_provider is None or theirs <= per_provider
        assert per_hour is None or sum(a.since(now - HOUR_S, now, a.cost) for a in everyone) <= per_hour


# -- examples


def test_what_left_the_hour_counts_no_more():
    purse = Purse(Limits(per_hour=4 * TOKEN))
    first = account(1, 0.0)  # a thousandth of a token a second
    purse.open(first, 0.0)
    first.closed, first.invoiced = 1000.0, TOKEN
    assert purse.owed_between(1000.0 - HOUR_S, 1000.0) == TOKEN
    assert purse.owed_between(500.0, 500.0 + HOUR_S) in (TOKEN // 2, TOKEN // 2 + 1)
    assert purse.owed_between(1001.0, 1001.0 + HOUR_S) == 0
    assert purse.owed_by(10_000.0) == TOKEN


def test_what_a_bill_asks_beyond_the_time_counts_as_of_now():
    """Nobody knows when in the deal it came up: it is taken to be fresh."""
    a = account(1, 0.0)
    a.closed = 2 * HOUR_S
    full = a.owed_by(2 * HOUR_S)
    hour = a.since(HOUR_S, 2 * HOUR_S, full)
    assert full // 2 <= hour <= full // 2 + 1
    assert a.since(HOUR_S, 2 * HOUR_S, full + 5000) == hour + 5000
    assert a.since(HOUR_S, 2 * HOUR_S, 7) == 7
    # both ends of an hour may fall between two base units
    pricing = LinearPricing((Decimal("1.5E-18"),), Decimal(0), ("golem.usage.duration_sec",))
    tiny = Account(replace(hired(2), pricing=pricing), 1, 0.0)
    assert tiny.owed_by(2.0) - tiny.owed_by(1.0) == 2 == tiny.since(1.0, 2.0, 3)


@pytest.mark.parametrize("which", ["total", "per_hour", "per_provider"])
def test_bills_are_held_to_the_last_unit(which):
    purse = Purse(Limits(**{which: TOKEN}))
    a = account(1, 0.0)
    purse.accounts["a1"] = a
    assert purse.refuses(a, TOKEN, 100.0) is None
    assert purse.refuses(a, TOKEN + 1, 100.0) == ("budget" if which == "total" else f"budget_{which}")


def test_a_machine_that_the_hour_can_always_pay_is_never_given_back():
    """The bound is on what any sixty minutes cost: 3.6 tokens an hour fit into 3.7 for ever."""
    purse = Purse(Limits(per_hour=37 * TOKEN // 10))
    purse.open(account(1, 0.0), 0.0)
    for moment in range(0, 100_000, 500):
        (line,) = purse.lines(float(moment))
        assert line.seconds_left


def test_each_limit_is_named_by_its_own_error():
    for limits, code in (
        (Limits(total=TOKEN // 1000), "money_budget"),
        (Limits(per_hour=TOKEN // 1000), "money_budget_per_hour"),
        (Limits(per_provider=TOKEN // 1000), "money_budget_per_provider"),
    ):
        with pytest.raises(BudgetExceeded) as caught:
            Purse(limits).open(account(1, 0.0), 0.0)
        error = caught.value
        assert error.code == code
        assert error.details == {"limit": code.removeprefix("money_"), "amount": "0.001"}
        assert error.details["limit"] + "=" in error.hint
        assert isinstance(error, ProviderSpent) == (code == "money_budget_per_provider")


def test_one_providers_limit_stops_no_other():
    purse = Purse(Limits(per_provider=TOKEN // 100))
    purse.open(account(1, 0.0, "0xa"), 0.0)
    purse.accounts["a1"].closed = 9.0
    with pytest.raises(ProviderSpent):
        purse.open(account(2, 10.0, "0xa"), 10.0)
    assert purse.spent_providers == {"0xa"}
    purse.open(account(3, 10.0, "0xb"), 10.0)
    assert purse.spent_providers == {"0xa"}


def test_what_costs_nothing_runs_for_ever():
    purse = Purse(Limits(0, 0, 0))
    free = replace(hired(1), pricing=LinearPricing((Decimal(0),), Decimal(0), ("golem.usage.duration_sec",)))
    purse.open(Account(free, 1, 0.0), 0.0)
    assert [line.seconds_left for line in purse.lines(1e6)] == [None, None, None]


# -- reserved by channel


def test_a_reserve_that_the_budget_does_not_hold_is_said_before_it_starts() -> None:
    purse = Purse(Limits(TOKEN, None, None))
    first, second = account(1, 0.0, "0xa"), account(2, 0.0, "0xb")
    first.reserve = second.reserve = 6 * TOKEN // 10
    purse.open(first, 0.0)
    with pytest.raises(ReserveShort) as caught:
        purse.open(second, 0.0)
    assert caught.value.code == "money_reserve"
    assert "beside what others have" in caught.value.message
    second.closed = first.closed = 1.0  # given back: what the first has earned is all that is taken
    third = account(3, 1.0, "0xb")
    third.reserve = 6 * TOKEN // 10
    purse.open(third, 1.0)


def test_time_counts_from_when_the_reserve_was_there() -> None:
    waiting = account(1, 0.0, hourly="3600", start="0.5")
    waiting.awaited = True
    assert waiting.owed_by(500.0) == TOKEN // 2
    assert waiting.hourly == 0
    waiting.awaited, waiting.started = False, 500.0
    assert waiting.owed_by(501.0) == 3 * TOKEN // 2
    assert waiting.since(400.0, 501.0, waiting.owed_by(501.0)) == 3 * TOKEN // 2
    assert waiting.hourly == 3600 * TOKEN
    # a bill may still be for all the time since the approval: the provider's clock is not ours
    assert waiting.most(1, 501.0) >= 501 * TOKEN


def test_a_session_has_a_budget() -> None:
    """None would set no money aside, and be found out by every provider that waits for its reserve."""
    for wrong in (None, 1, 0.5):
        with pytest.raises(BadAmount, match="a budget is text"):
            Golem(budget=wrong, app_key="k" * 32, api_url="http://127.0.0.1:1")  # type: ignore[arg-type]
