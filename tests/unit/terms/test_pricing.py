"""The pricing formula is exact, monotonous, and the same on both sides."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shem.terms.pricing import COEFFS, MODEL, USAGE_VECTOR, BadPricing, BadUsage, LinearPricing

VECTOR = ("golem.usage.duration_sec", "golem.usage.cpu_sec")
coeffs = st.floats(min_value=0, max_value=1000).filter(lambda c: c == 0 or c > 1e-25)
usages = st.floats(min_value=0, max_value=1e7)


def make(*numbers: float) -> LinearPricing:
    return LinearPricing.from_properties(
        {MODEL: "linear", COEFFS: list(numbers), USAGE_VECTOR: [f"u{i}" for i in range(len(numbers) - 1)]}
    )


@given(coeffs, coeffs, coeffs, usages, usages)
def test_exact_to_the_base_unit(duration, cpu, start, seconds, cpu_seconds):
    pricing = make(duration, cpu, start)
    exact = (
        Fraction(repr(duration)) * Fraction(repr(seconds))
        + Fraction(repr(cpu)) * Fraction(repr(cpu_seconds))
        + Fraction(repr(start))
    )
    assert pricing.cost([seconds, cpu_seconds]) == math.floor(exact * 10**18)


@given(coeffs, coeffs, st.lists(usages, min_size=1, max_size=20))
def test_more_usage_never_costs_less(price, start, counters):
    pricing = make(price, start)
    costs = [pricing.cost([seconds]) for seconds in sorted(counters)]
    assert costs == sorted(costs)


@given(coeffs, coeffs, coeffs)
def test_properties_survive_json(duration, cpu, start):
    pricing = LinearPricing((Decimal(repr(duration)), Decimal(repr(cpu))), Decimal(repr(start)), VECTOR)
    sent = json.loads(json.dumps(pricing.to_properties()))
    assert LinearPricing.from_properties(sent) == pricing
    assert all(isinstance(coeff, float) for coeff in pricing.to_properties()[COEFFS])


def test_rounding_happens_once():
    """A third of a base unit 36 000 times is 12 000 base units, not nothing."""
    tiny = LinearPricing((Decimal("3E-19"),), Decimal(0), ("u",))
    assert tiny.cost([1]) == 0
    assert tiny.cost([40_000]) == 12_000


def test_tenths_are_tenths():
    assert make(0.1, 0.2, 0.0).cost([1, 1]) == 300_000_000_000_000_000  # a float sum is 64 base units off


def test_integers_count():
    assert make(1, 0).cost([3]) == 3 * 10**18


def test_free():
    assert make(0.0, 0.0, 0.0).is_free
    assert make(0.0, 0.0).cost([1e12]) == 0
    assert not make(0.0, 1.0).is_free


@pytest.mark.parametrize(
    "numbers",
    [[], [-0.1, 0.0], [float("nan"), 0.0], [float("inf"), 0.0], [1e10, 0.0], [1e-40, 0.0], ["0.1", 0.0], [True, 0.0]],
)
def test_bad_coefficients(numbers):
    with pytest.raises(BadPricing):
        LinearPricing.from_properties(
            {MODEL: "linear", COEFFS: numbers, USAGE_VECTOR: [f"u{i}" for i in range(len(numbers) - 1)]}
        )


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {MODEL: "flat", COEFFS: [0.0], USAGE_VECTOR: []},
        {MODEL: "linear", COEFFS: [0.1, 0.0], USAGE_VECTOR: []},
        {MODEL: "linear", COEFFS: [0.1, 0.1, 0.0], USAGE_VECTOR: ["a", "a"]},
        {MODEL: "linear", COEFFS: 1.0, USAGE_VECTOR: []},
        {MODEL: "linear", COEFFS: [0.0], USAGE_VECTOR: "duration"},
        {MODEL: "linear", COEFFS: [0.0] * 34, USAGE_VECTOR: [f"u{i}" for i in range(33)]},
    ],
)
def test_bad_properties(properties):
    with pytest.raises(BadPricing):
        LinearPricing.from_properties(properties)


def test_more_digits_than_a_float_has_are_refused():
    with pytest.raises(BadPricing):
        LinearPricing((Decimal("0.12345678901234567891"),), Decimal(0), ("u",))


@pytest.mark.parametrize("usage", [[], [1.0, 2.0], [-1.0], [float("nan")], [float("inf")], [1e16], [True]])
def test_bad_usage(usage):
    with pytest.raises(BadUsage):
        make(0.1, 0.0).cost(usage)


def test_absurd_cost():
    with pytest.raises(BadUsage):
        make(1e9, 0.0).cost([1e15])
