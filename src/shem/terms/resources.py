"""What of a machine a deal is about: names that its two sides use, and what follows from both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

THREADS = "golem.inf.cpu.threads"
"""Of an offer: how many the machine has, or an agreement gets (see :mod:`shem.provider.capacity`)."""
REQUIRE = "golem.!exp.shem.v1.require."
"""Before ``cpu.threads``, ``mem.gib`` and so on: what a demand of ours needs, and its sandboxes are held to."""
MAX_THREADS = 4096
"""More than any machine has."""


def busy_threads(demand: Mapping[str, Any], offer: Mapping[str, Any]) -> int:
    """How many threads one activity of an agreement keeps busy at the most: all that its offer names, or only what its demand
    requires, begun ones counted whole. What is no positive number says nothing.

    Both sides reckon full use with it, so both must come to the same.
    """
    offered = _threads(offer.get(THREADS)) or 1
    return min(_threads(demand.get(f"{REQUIRE}cpu.threads")) or offered, offered)


def _threads(said: Any) -> int | None:
    if isinstance(said, bool) or not isinstance(said, int | float) or math.isnan(said) or said <= 0:
        return None
    return math.ceil(min(said, MAX_THREADS))
