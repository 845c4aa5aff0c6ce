"""Money: whole base units (10**-18 of a token) as ``int`` inside, plain decimal strings outside.

Nothing here rounds unless asked to, and no ``float`` comes near: text goes to digits and an exponent, digits to an
``int``. Written numbers may use an exponent (``1E-7`` is how some programs print a small decimal); what they may not do
is carry a sign, more decimals than the token has, or more value than any token was ever issued.
"""

from __future__ import annotations

import re

from shem.errors import Refused

DECIMALS = 18
"""Decimals of GLM and of every token this network pays with."""
MAX_UNITS = (1 << 96) - 1
"""The largest amount a deal may name: 79 billion tokens, what fits the 96 bits that payment contracts pack it in."""

_MAX_TEXT = 96
_NUMBER = re.compile(r"(\d*)(?:\.(\d*))?(?:[eE]([+-]?\d{1,2}))?", re.ASCII)


class BadAmount(Refused):
    """Not an amount of money."""

    default_code = "bad_amount"


def parse_amount(text: str, decimals: int = DECIMALS, *, round_down: bool = False) -> int:
    """Base units of a decimal string such as ``"1.5"``.

    Exact: digits beyond ``decimals`` raise :class:`BadAmount` unless they are zeros, or ``round_down`` drops them
    (right for a limit that the owner sets, never for a sum that somebody owes). Signs, blanks, ``nan`` and amounts
    above :data:`MAX_UNITS` are refused.
    """
    match = _NUMBER.fullmatch(text) if len(text) <= _MAX_TEXT else None
    if match is None or not (match[1] or match[2]):
        raise BadAmount(f'{text[:60]!r} is not an amount; write it like "1.5"')
    whole, fraction = match[1] or "", match[2] or ""
    digits, shift = whole + fraction, decimals - len(fraction) + int(match[3] or 0)
    scale: int = 10 ** abs(shift)
    if shift >= 0:
        units = int(digits) * scale
    else:
        units, lost = divmod(int(digits), scale)
        if lost and not round_down:
            raise BadAmount(f"{text!r} has more than {decimals} decimals")
    if units > MAX_UNITS:
        raise BadAmount(f"{text!r} is more than {format_amount(MAX_UNITS, decimals)}")
    return units


def format_amount(units: int, decimals: int = DECIMALS) -> str:
    """The plain decimal string of base units: no exponent, no trailing zeros, ``"0"`` for nothing."""
    sign = "-" if units < 0 else ""
    whole, fraction = divmod(abs(units), 10**decimals)
    if not fraction:
        return f"{sign}{whole}"
    return f"{sign}{whole}.{str(fraction).zfill(decimals).rstrip('0')}"
