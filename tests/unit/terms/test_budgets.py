"""Budgets as written, and what a dollar is in tokens: exact, and never more than was said."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shem.terms.amounts import DECIMALS, MAX_UNITS, BadAmount, parse_amount
from shem.terms.budgets import (
    HIGHEST_USD,
    LOWEST_USD,
    BadBudget,
    BadPrice,
    Budget,
    Price,
    Sum,
    check_price,
    parse_price,
    parse_sum,
    to_units,
)

ONE = 10**DECIMALS
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
DAY = timedelta(hours=24)


@pytest.mark.parametrize(
    ("text", "units", "currency"),
    [
        ("5", 5 * ONE, ""),
        ("5 GLM", 5 * ONE, "GLM"),
        ("  0.5   tGLM ", ONE // 2, "tGLM"),
        ("2.50 USD", 25 * ONE // 10, "USD"),
        ("1e-18 glm", 1, "glm"),
    ],
)
def test_what_users_write(text, units, currency):
    assert parse_sum(text) == Sum(units, currency)
    assert parse_sum(str(parse_sum(text))) == Sum(units, currency)


@pytest.mark.parametrize(
    "text",
    ["", " ", "GLM", "GLM 5", "5GLM", "$5", "5 €", "5,0 GLM", "-1 GLM", "5 GLM USD", "nan", "5 " + "A" * 200, 5.0],
)
def test_what_is_no_budget(text):
    with pytest.raises(BadAmount) as caught:
        parse_sum(text)
    assert caught.value.code == "bad_amount"


@pytest.mark.parametrize(
    ("written", "token"), [("5", "GLM"), ("5 GLM", "GLM"), ("5 glm", "GLM"), ("5 GLM", "tGLM"), ("5 tGLM", "tGLM")]
)
def test_a_token_by_its_names(written, token):
    assert to_units(parse_sum(written), token, None) == 5 * ONE


@pytest.mark.parametrize(
    ("written", "code"), [("5 tGLM", "budget_currency"), ("5 EUR", "budget_currency"), ("5 USD", "no_price")]
)
def test_what_a_session_in_glm_cannot_keep(written, code):
    with pytest.raises(BadBudget) as caught:
        to_units(parse_sum(written), "GLM", None)
    assert caught.value.code == code


@given(st.integers(0, MAX_UNITS), st.integers(LOWEST_USD, HIGHEST_USD))
def test_a_budget_in_dollars_never_buys_more_and_wastes_less_than_a_base_unit(usd, price):
    try:
        units = to_units(Sum(usd, "USD"), "GLM", Price("GLM", price, "test"))
    except BadBudget:
        assert usd * ONE // price > MAX_UNITS
        return
    assert Fraction(units * price, ONE) <= usd < Fraction((units + 1) * price, ONE)


@given(st.integers(1, 10**30), st.integers(0, 30))
def test_a_price_with_more_digits_than_it_may_have_rounds_up(digits, places):
    text = f"{digits // 10**places}.{digits % 10**places:0{places}}" if places else str(digits)
    try:
        units = parse_price(text)
    except BadPrice:
        assert digits // 10**places >= MAX_UNITS // ONE
        return
    assert 0 <= units - Fraction(digits, 10**places) * ONE < 1


@pytest.mark.parametrize("text", ["", "0,2", "-1", "nan", "inf", "cheap", "0x1"])
def test_what_is_no_price(text):
    with pytest.raises(BadPrice) as caught:
        parse_price(text)
    assert caught.value.code == "price_unreadable"


@pytest.mark.parametrize(
    ("usd", "at", "code"),
    [
        ("0.2", NOW, None),
        ("0.2", None, None),
        ("0.2", NOW - DAY, None),
        ("0.2", NOW - DAY - timedelta(seconds=1), "price_old"),
        ("0.2", NOW + timedelta(minutes=11), "price_absurd"),
        ("0", NOW, "price_absurd"),
        ("0.0009", NOW, "price_absurd"),
        ("101", NOW, "price_absurd"),
        ("101", None, "price_absurd"),
    ],
)
def test_old_and_absurd_prices_are_refused(usd, at, code):
    price = Price("GLM", parse_amount(usd), "test", at)
    if code is None:
        assert check_price(price, NOW, DAY) is price
        return
    with pytest.raises(BadPrice) as caught:
        check_price(price, NOW, DAY)
    assert caught.value.code == code
    assert "test" in caught.value.message


def test_limits_of_each_kind_in_their_own_currency():
    budget = Budget.parse("5 GLM", "1 USD", None)
    assert budget.in_usd
    assert not budget.is_empty
    limits = budget.limits("tGLM", Price("GLM", 3 * ONE, "test"))
    assert (limits.total, limits.per_hour, limits.per_provider) == (5 * ONE, ONE // 3, None)
    assert Budget.parse(None).is_empty
    assert not Budget.parse("5").in_usd
