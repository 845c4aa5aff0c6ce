"""Words of strangers, made safe for a terminal.

Providers choose their names and the reasons they give; a name may hold the sequences that clear a screen or write a
forged line, and a table that reads markup would take its brackets for orders.
"""

from __future__ import annotations

import re

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
MOST = 300


def plain(words: object, most: int = MOST) -> str:
    """One line of at most ``most`` characters in which nothing moves the cursor or turns the text around."""
    text = _UNPRINTABLE.sub(" ", str(words)).strip()
    return text if len(text) <= most else text[: most - 1] + "…"
