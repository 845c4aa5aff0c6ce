"""Following a list of events that is not consumed by reading: ask for what is newer than the newest seen, for ever."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

from shem.cogs.clock import Clock
from shem.errors import PeerFailed, Refused

log = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.5
_LAST_RETRY_S = 10.0


class Dated(Protocol):
    """Any event of the API."""

    @property
    def event_date(self) -> datetime: ...


E = TypeVar("E", bound=Dated)


async def news(
    clock: Clock, since: datetime, ask: Callable[[datetime], Awaitable[Sequence[E]]]
) -> AsyncIterator[Sequence[E]]:
    """Yield what comes after ``since``, never an empty list. ``ask`` is a long poll; a node that is away is asked again.

    An event may come twice where the API says that it is repeated.
    """
    after, pause = since, _FIRST_RETRY_S
    while True:
        try:
            events = await ask(after)
        except (PeerFailed, TimeoutError, Refused) as error:
            log.warning("the node does not answer: %s", error)
            await clock.sleep(pause)
            pause = min(_LAST_RETRY_S, pause * 2)
            continue
        pause = _FIRST_RETRY_S
        if events:
            yield events
            after = max([after, *(event.event_date for event in events)])
