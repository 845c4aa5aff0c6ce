"""The linear pricing formula: start price + Σ coefficient × usage, in tokens.

Coefficients and usage counters travel as JSON numbers, which are binary floats; both sides turn them into decimals by
their shortest exact print (``repr``), so ``0.1`` means one tenth for both and they compute the same sum. From there on
all is exact, and the one rounding is the last step: down, to whole base units, of the price × the *cumulative* usage.
Never add up rounded parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from shem.errors import Refused
from shem.terms.amounts import DECIMALS, MAX_UNITS

MODEL = "golem.com.pricing.model"
COEFFS = "golem.com.pricing.model.linear.coeffs"
USAGE_VECTOR = "golem.com.usage.vector"

MAX_COUNTERS = 32
MAX_COEFF = Decimal(10) ** 9
"""Tokens per unit of usage; GLM's whole supply."""
MIN_COEFF = Decimal(10) ** -30
"""Smaller ones (but for zero) could not make a base unit in a lifetime of nanoseconds."""
MAX_USAGE = 1e15


class BadPricing(Refused):
    """Not a price that can be computed."""

    default_code = "bad_pricing"


class BadUsage(Refused):
    """Not usage counters of this pricing."""

    default_code = "bad_usage"


@dataclass(frozen=True)
class LinearPricing:
    """``coeffs`` in tokens per unit of each counter of ``usage_vector``, ``start`` in tokens once per activity."""

    coeffs: tuple[Decimal, ...]
    start: Decimal
    usage_vector: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.usage_vector) > MAX_COUNTERS or len(set(self.usage_vector)) != len(self.usage_vector):
            raise BadPricing(f"the usage vector must name at most {MAX_COUNTERS} counters, each once")
        if len(self.coeffs) != len(self.usage_vector):
            raise BadPricing(
                f"{len(self.usage_vector)} counters need as many coefficients and the start price, "
                f"not {len(self.coeffs)} and the start price"
            )
        for coeff in (*self.coeffs, self.start):
            _check(coeff)

    @classmethod
    def from_properties(cls, properties: Mapping[str, Any]) -> LinearPricing:
        """Read an offer's flat properties. Raises :class:`BadPricing`."""
        if properties.get(MODEL) != "linear":
            raise BadPricing(f'{MODEL} must be "linear", not {str(properties.get(MODEL))[:40]!r}')
        names, numbers = properties.get(USAGE_VECTOR), properties.get(COEFFS)
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise BadPricing(f"{USAGE_VECTOR} must be a list of names")
        if not isinstance(numbers, list | tuple) or not 0 < len(numbers) <= MAX_COUNTERS + 1:
            raise BadPricing(f"{COEFFS} must be a list of numbers, the start price last")
        *coeffs, start = (_coeff(number) for number in numbers)
        return cls(tuple(coeffs), start, tuple(names))

    def to_properties(self) -> dict[str, Any]:
        """An offer's flat properties; coefficients as floats, as existing clients insist."""
        return {
            MODEL: "linear",
            COEFFS: [float(coeff) for coeff in (*self.coeffs, self.start)],
            USAGE_VECTOR: list(self.usage_vector),
        }

    def cost(self, usage: Sequence[float]) -> int:
        """Base units owed for the cumulative counters of one activity, rounded down.

        Raises :class:`BadUsage` for another number of counters, for negative, infinite or absurd ones.
        """
        if len(usage) != len(self.coeffs):
            raise BadUsage(f"{len(self.coeffs)} usage counters are agreed, not {len(usage)}")
        total = Fraction(self.start)
        for coeff, counter in zip(self.coeffs, usage, strict=True):
            total += Fraction(coeff) * Fraction(usage_decimal(counter))
        units: int = math.floor(total * 10**DECIMALS)
        if units > MAX_UNITS:
            raise BadUsage("the cost of this usage is more than any token's supply")
        return units

    @property
    def is_free(self) -> bool:
        """True when no usage can cost anything."""
        return not any((*self.coeffs, self.start))


def usage_decimal(counter: float) -> Decimal:
    """A usage counter as the decimal it prints as. Raises :class:`BadUsage`."""
    if isinstance(counter, bool) or not 0 <= counter <= MAX_USAGE:  # a nan fails every comparison
        raise BadUsage(f"{counter!r} is not a usage counter (0 … {MAX_USAGE:g})")
    return Decimal(repr(counter))


def _coeff(number: object) -> Decimal:
    if isinstance(number, bool) or not isinstance(number, int | float | Decimal):
        raise BadPricing(f"a coefficient must be a number, not {str(number)[:40]!r}")
    return number if isinstance(number, Decimal) else Decimal(repr(number))


def _check(coeff: Decimal) -> None:
    if not coeff.is_finite() or coeff < 0 or coeff > MAX_COEFF or 0 < coeff < MIN_COEFF:
        raise BadPricing(f"{coeff} is not a price (0, or {MIN_COEFF} … {MAX_COEFF} tokens per unit)")
    if Decimal(repr(float(coeff))) != coeff:
        # An offer carries floats: a price that changes on the way would be computed differently by the other side.
        raise BadPricing(f"{coeff} has more digits than an offer can carry (about 15)")
