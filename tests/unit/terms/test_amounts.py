"""Money as text and as base units."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shem.terms.amounts import DECIMALS, MAX_UNITS, BadAmount, format_amount, parse_amount

units = st.integers(min_value=0, max_value=MAX_UNITS)


@given(units)
@example(0)
@example(1)
@example(MAX_UNITS)
def test_every_amount_survives_the_way_out_and_back(amount):
    text = format_amount(amount)
    assert parse_amount(text) == amount
    assert "e" not in text.lower()
    assert text == "0" or not text.startswith("00")
    assert "." not in text or not text.endswith("0")


@given(units, st.integers(min_value=0, max_value=18))
def test_decimals_of_other_tokens(amount, decimals):
    assert parse_amount(format_amount(amount, decimals), decimals) == amount


@given(units)
def test_equal_to_exact_decimals_in_any_notation(amount):
    with localcontext(prec=40):
        value = Decimal(amount).scaleb(-DECIMALS)
        for text in (f"{value:f}", f"{value:E}"):
            assert parse_amount(text) == amount


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("1", 10**18),
        ("1.", 10**18),
        (".5", 5 * 10**17),
        ("001.50", 15 * 10**17),
        ("1E-7", 10**11),
        ("1e+2", 10**20),
        ("0E-18", 0),
        ("0.1000000000000000000000", 10**17),
        ("0.000000000000000001", 1),
    ],
)
def test_notations(text, amount):
    assert parse_amount(text) == amount


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ".", "-1", "+1", "- 1", " 1", "1 ", "1\n", "1,5", "1_000", "0x10", "nan", "NaN", "inf", "1e", "e1"),
        *("1.2.3", "1e1.5", "--1", "١", "1e100", "0.0000000000000000001", "1e-19", "79228162515", "9" * 200),
    ],
)
def test_refused(text):
    with pytest.raises(BadAmount):
        parse_amount(text)


@given(st.text(max_size=40))
def test_garbage_is_refused_or_exact(text):
    try:
        amount = parse_amount(text)
    except BadAmount:
        return
    assert 0 <= amount <= MAX_UNITS
    with localcontext(prec=200):
        assert Decimal(text).scaleb(DECIMALS) == amount


def test_a_limit_may_be_rounded_down_a_debt_may_not():
    assert parse_amount("0.0033333333333333335", round_down=True) == 3333333333333333
    with pytest.raises(BadAmount):
        parse_amount("0.0033333333333333335")
