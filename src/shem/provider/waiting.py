"""Waiting for a fact or for a moment, whichever comes first, on a clock that tests can move."""

from __future__ import annotations

import asyncio
from datetime import datetime

from shem.cogs.clock import Clock
from shem.cogs.tasks import TaskScope

_LONGEST_S = 3600.0


async def wait_until(clock: Clock, fact: asyncio.Event, moment: datetime) -> None:
    """Return once ``fact`` is set (it is cleared), at ``moment``, or after an hour: the caller looks again anyway."""
    seconds = min(_LONGEST_S, (moment - clock.now()).total_seconds())
    if seconds > 0 and not fact.is_set():
        async with TaskScope("wait") as scope:
            told = scope.start(fact.wait(), "fact")
            late = scope.start(clock.sleep(seconds), "moment")
            await asyncio.wait({told, late}, return_when=asyncio.FIRST_COMPLETED)
    fact.clear()
