"""One rounding, down, at the end: cost = floor(price × cumulative usage), the same for whoever computes it, and in integers."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shem.node.payment.ledger import TOLERANCE_UNITS, OverBilled, check_claim
from shem.terms.amounts import format_amount, parse_amount
from shem.terms.pricing import LinearPricing, usage_decimal

numbers = st.floats(0, 1e-3).filter(lambda c: c == 0 or c > 1e-25)
counters = st.lists(st.floats(0, 1e6), min_size=1, max_size=20).map(sorted)
VECTOR = ("golem.usage.duration_sec", "golem.usage.cpu_sec")


def priced(duration: float, cpu: float, start: float) -> LinearPricing:
    return LinearPricing((Decimal(repr(duration)), Decimal(repr(cpu))), Decimal(repr(start)), VECTOR)


@given(numbers, numbers, numbers, counters, counters)
def test_the_last_note_of_a_deal_is_the_floor_of_all_of_it(duration, cpu, start, seconds, cpu_seconds):
    """However many notes there were: each is the floor of the whole, so nothing is lost or made on the way."""
    pricing = priced(duration, cpu, start)
    notes = [pricing.cost(usage) for usage in zip(seconds, cpu_seconds, strict=False)]
    assert all(type(note) is int for note in notes)
    steps = [after - before for before, after in zip([0, *notes], notes, strict=False)]
    assert all(step >= 0 for step in steps)
    assert sum(steps) == notes[-1]
    last = min(len(seconds), len(cpu_seconds)) - 1
    exact = Fraction(repr(duration)) * Fraction(repr(seconds[last]))
    exact += Fraction(repr(cpu)) * Fraction(repr(cpu_seconds[last])) + Fraction(repr(start))
    assert notes[-1] == math.floor(exact * 10**18)


@given(numbers, st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_rounding_each_part_would_lose_money_and_rounding_once_does_not(price, parts):
    """Why usage is cumulative: a sum of rounded parts is short by up to a base unit for each part."""
    pricing = LinearPricing((Decimal(repr(price)),), Decimal(0), ("u",))
    whole, rounded = pricing.cost([sum(parts)]), sum(pricing.cost([part]) for part in parts)
    assert 0 <= whole - rounded < len(parts)


@given(st.floats(0, 1e15))
def test_a_counter_is_the_decimal_that_it_prints_as(counter):
    """Its shortest print, which the other side reads from JSON and prints the same."""
    assert usage_decimal(counter) == Decimal(repr(counter)) == Decimal(json.dumps(counter))
    assert usage_decimal(json.loads(json.dumps(counter))) == usage_decimal(counter)


@given(numbers, numbers, numbers, st.floats(0, 1e6), st.floats(0, 1e6))
def test_both_sides_come_to_the_same_unit(duration, cpu, start, seconds, cpu_seconds):
    """The provider bills from its own numbers; the requestor checks with what came over the wire, as text."""
    offered = priced(duration, cpu, start)
    seen = LinearPricing.from_properties(json.loads(json.dumps(offered.to_properties())))
    told = json.loads(json.dumps([seconds, cpu_seconds]))
    billed = parse_amount(format_amount(offered.cost([seconds, cpu_seconds])))
    assert billed == seen.cost(told)
    check_claim(seen, told, billed)
    with pytest.raises(OverBilled):
        check_claim(seen, told, billed + TOLERANCE_UNITS + 1)
