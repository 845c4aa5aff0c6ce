"""Price lists an owner can choose between.

A preset states prices as people say them (tokens for starting, per hour of rental, per hour of one busy CPU) as decimal
strings. On the market prices are per second of the usage counters, so an hour's price is divided by 3600 once, here;
the quotient is what both sides compute with from then on.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Literal

import msgspec

from shem.errors import Misconfigured
from shem.terms.pricing import BadPricing, LinearPricing

DURATION = "golem.usage.duration_sec"
CPU = "golem.usage.cpu_sec"
USAGE_VECTOR = (DURATION, CPU)
"""The counters every offer of ours is priced by, in the order of its coefficients."""

_MAX_PRICE = Decimal(10) ** 9


class Preset(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One price list. Prices are decimal strings of whole tokens, zero or more, at most 18 decimals."""

    name: str
    start: str = "0"
    env_per_hour: str = "0"
    """Per hour from the activity's start to its end."""
    cpu_per_hour: str = "0"
    """Per hour of CPU time really used."""
    driver: str = ""
    """Only with this sandbox driver; empty = any."""
    runtimes: tuple[Literal["oci", "vm"], ...] = ()
    """Only for these; empty = all that the agent offers."""

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 64:
            raise Misconfigured("a preset needs a name of at most 64 characters", code="bad_preset")
        for label in ("start", "env_per_hour", "cpu_per_hour"):
            _price(self.name, label, getattr(self, label))

    def is_for(self, runtime: str, driver: str) -> bool:
        """Whether an offer of this runtime, with this driver, has these prices."""
        return self.driver in ("", driver) and (not self.runtimes or runtime in self.runtimes)

    @property
    def is_free(self) -> bool:
        """Whether nothing is ever owed."""
        return not any(map(Decimal, (self.start, self.env_per_hour, self.cpu_per_hour)))

    def pricing(self) -> LinearPricing:
        """The same prices per second of :data:`USAGE_VECTOR`. Raises ``Misconfigured``."""
        env = _per_second(_price(self.name, "env_per_hour", self.env_per_hour))
        cpu = _per_second(_price(self.name, "cpu_per_hour", self.cpu_per_hour))
        start = _price(self.name, "start", self.start)
        try:
            return LinearPricing(coeffs=(env, cpu), start=start, usage_vector=USAGE_VECTOR)
        except BadPricing as error:
            raise Misconfigured(f"preset {self.name!r}: {error.message}", code="bad_price") from None


def _price(preset: str, label: str, text: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal("NaN")
    exponent = value.as_tuple().exponent
    fits = isinstance(exponent, int) and exponent >= -18
    if not (value.is_finite() and 0 <= value <= _MAX_PRICE and fits):
        raise Misconfigured(
            f"{label} of preset {preset!r} is not a price: {text!r}",
            code="bad_price",
            hint="write a decimal such as 0.025, zero or more, with at most 18 decimals",
        )
    return value


def _per_second(hourly: Decimal) -> Decimal:
    """Rounded to what an offer's floating-point coefficient carries exactly: both sides compute with the same."""
    return Decimal(repr(float(hourly / 3600)))


DEFAULT_PRESET = Preset(name="default", start="0", env_per_hour="0.005", cpu_per_hour="0.025")
"""The usual prices on the network: 0.025 tokens per CPU hour and 0.005 per hour of rental."""
FREE_PRESET = Preset(name="free")
"""Work for nothing: no chain is needed."""
