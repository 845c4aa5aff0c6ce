"""Budgets as users write them (``"5 GLM"``, ``"5"``, ``"2.50 USD"``) and as sessions keep them: whole base units of a token.

What is written in the session's own token is exact. What is written in dollars is turned into tokens once, at one price,
rounded down; the price itself is rounded up when it has more digits than it may. So a budget in dollars never buys more than
it says *at that price*, and everything behind this module knows tokens alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from shem.errors import Misconfigured, Refused
from shem.terms.amounts import DECIMALS, MAX_UNITS, BadAmount, format_amount, parse_amount

USD = "USD"
LOWEST_USD, HIGHEST_USD = 10**15, 100 * 10**18
"""What a token may cost, in 10**-18 USD: a tenth of a cent to a hundred dollars. Beyond, somebody mixed up units."""
CLOCK_SLACK = timedelta(minutes=10)
"""How far ahead of ours the clock of a price's source may be."""

_WRITTEN = re.compile(r"\s*(\S+)(?:\s+([A-Za-z][A-Za-z0-9]{0,11}))?\s*", re.ASCII)


class BadBudget(Refused):
    """A budget that this session cannot keep: in another currency, or more than there can be."""

    default_code = "bad_budget"


class BadPrice(Misconfigured):
    """A price that must not be used: old (``price_old``), absurd (``price_absurd``) or no number (``price_unreadable``)."""

    default_code = "price_unreadable"


@dataclass(frozen=True)
class Sum:
    """An amount as written: ``units`` are 10**-18 of ``currency``; ``""`` is the token that the session pays with."""

    units: int
    currency: str = ""

    @property
    def in_usd(self) -> bool:
        """Whether a price is needed to know what it comes to."""
        return self.currency.upper() == USD

    def __str__(self) -> str:
        return f"{format_amount(self.units)} {self.currency}".strip()


@dataclass(frozen=True)
class Price:
    """What one token costs: ``units`` are 10**-18 USD. ``source`` says in words where it is from; ``made_at`` when it was
    that, ``None`` for a price that is no quote but stands for any time."""

    token: str
    units: int
    source: str
    made_at: datetime | None = None

    def __str__(self) -> str:
        when = "" if self.made_at is None else f", made {self.made_at:%Y-%m-%d %H:%M} UTC"
        return f"1 {self.token} = {format_amount(self.units)} USD ({self.source}{when})"


@dataclass(frozen=True)
class Limits:
    """The most that some work may cost in all, in any sixty minutes, and at any one provider, in base units; ``None``:
    no limit of that kind."""

    total: int | None = None
    per_hour: int | None = None
    per_provider: int | None = None


@dataclass(frozen=True)
class Budget:
    """The limits as written."""

    total: Sum | None = None
    per_hour: Sum | None = None
    per_provider: Sum | None = None

    @classmethod
    def parse(cls, total: str | None, per_hour: str | None = None, per_provider: str | None = None) -> Budget:
        """Read what a user gave. Raises :class:`~shem.terms.amounts.BadAmount`."""
        return cls(*(None if text is None else parse_sum(text) for text in (total, per_hour, per_provider)))

    @property
    def is_empty(self) -> bool:
        """Whether it limits nothing."""
        return self.total is None and self.per_hour is None and self.per_provider is None

    @property
    def in_usd(self) -> bool:
        """Whether a price is needed to know what it comes to."""
        return any(part is not None and part.in_usd for part in (self.total, self.per_hour, self.per_provider))

    def limits(self, token: str, price: Price | None) -> Limits:
        """In base units of ``token``, rounded down. Raises :class:`BadBudget`."""
        parts = (self.total, self.per_hour, self.per_provider)
        return Limits(*(None if part is None else to_units(part, token, price) for part in parts))


def parse_sum(text: str) -> Sum:
    """``"5 GLM"``, ``"5"`` or ``"2.50 USD"``. Raises :class:`~shem.terms.amounts.BadAmount`."""
    if not isinstance(text, str):
        raise BadAmount('a budget is text, such as "5 GLM": a number with a point would not be exact')
    found = _WRITTEN.fullmatch(text) if len(text) <= 120 else None
    if found is None:
        raise BadAmount(f'{text[:60]!r} is not a budget; write it like "5 GLM" or "2.50 USD"')
    return Sum(parse_amount(found[1]), found[2] or "")


def to_units(written: Sum, token: str, price: Price | None) -> int:
    """Base units of ``token`` (rounded down where there is a price in between).

    ``GLM`` names the test token ``tGLM`` too; ``tGLM`` never names money that is worth something. Raises
    :class:`BadBudget`.
    """
    name = written.currency.casefold()
    if written.in_usd:
        if price is None:
            raise BadBudget(f"no price of {token} in USD is known", code="no_price")
        units: int = written.units * 10**DECIMALS // price.units
        if units > MAX_UNITS:
            raise BadBudget(f"{written} is more {token} than there can be")
        return units
    if name in ("", token.casefold()) or f"t{name}" == token.casefold():
        return written.units
    raise BadBudget(
        f"the budget is in {written.currency}, but this session pays in {token}",
        code="budget_currency",
        hint=f"write the budget in {token} or USD, or choose another platform",
    )


def parse_price(text: str) -> int:
    """10**-18 USD of a written price; more digits than that round up. Raises :class:`BadPrice`."""
    try:
        try:
            return parse_amount(text)
        except BadAmount:
            return parse_amount(text, round_down=True) + 1
    except BadAmount as error:
        raise BadPrice(f"{text[:60]!r} is not a price in USD", hint='write it like "0.21"') from error


def check_price(price: Price, now: datetime, max_age: timedelta) -> Price:
    """The same price, if it may be used. Raises :class:`BadPrice`."""
    if not LOWEST_USD <= price.units <= HIGHEST_USD:
        raise BadPrice(
            f"{price} is absurd: not within {format_amount(LOWEST_USD)} … {format_amount(HIGHEST_USD)} USD",
            code="price_absurd",
            hint="check the unit that the source counts in",
        )
    if price.made_at is None:
        return price
    if price.made_at > now + CLOCK_SLACK:
        raise BadPrice(f"{price} is of the future", code="price_absurd", hint="check the clocks")
    if now - price.made_at > max_age:
        hours = max_age // timedelta(hours=1)
        raise BadPrice(
            f"{price} is older than {hours} h",
            code="price_old",
            hint="bring it up to date, raise max_age_hours, or write the budget in tokens",
        )
    return price
