"""Payment channels as a session sees them: what was reserved for whom, the vouchers as they grow, and how it ended.

The node does all of it (it reserves when an agreement is approved, signs a voucher with each bill that is accepted, and
closes when nothing goes on any more). Here it is only looked at: whenever a machine has started, a bill was accepted or a
payment became final, and once more in the end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from shem.client.payment import PaymentApi
from shem.errors import ShemError
from shem.sdk import events
from shem.sdk.hiring import Hired
from shem.terms.amounts import parse_amount
from shem.terms.resources import busy_threads
from shem.wire.payment import ChannelStatus

log = logging.getLogger(__name__)

LEAST_PROPERTY = "golem.com.payment.channel.least-sec?"
LEAST_S = 60.0
"""What a provider wants reserved that does not say: the price of so many seconds, fully used."""
MAX_NUMBER = 86400.0
LAST_LOOK_S = 5.0
_DURATION, _CPU = "golem.usage.duration_sec", "golem.usage.cpu_sec"


def reserve_wanted(hired: Hired) -> int:
    """What must be reserved for this agreement before its provider starts anything, in base units."""
    demand, offer = hired.agreement.demand.properties, hired.agreement.offer.properties
    seconds = _number(offer.get(LEAST_PROPERTY), LEAST_S)
    full = {_DURATION: seconds, _CPU: seconds * busy_threads(demand, offer)}
    return hired.pricing.cost([full.get(counter, 0.0) for counter in hired.pricing.usage_vector])


def _number(value: object, default: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MAX_NUMBER:
        return default
    return value


class ChannelWatch:
    """Tells :class:`~shem.sdk.events.ChannelChanged` of the channels with this session's providers."""

    def __init__(self, payment: PaymentApi, platform: str, emit: Callable[[events.Event], None]) -> None:
        self._payment = payment
        self._platform = platform
        self._emit = emit
        self._providers: set[str] = set()
        self._known: dict[str, events.ChannelChanged] = {}
        self._wanted = asyncio.Event()

    @property
    def serves(self) -> bool:
        """Whether the session pays by channel at all."""
        return self._platform.startswith("channel-")

    def look(self, provider_id: str) -> None:
        """Something happened between us and this provider."""
        if self.serves:
            self._providers.add(provider_id)
            self._wanted.set()

    async def run(self) -> None:
        """Look whenever there is a reason; many at once are one."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._see()

    async def finish(self) -> None:
        """The last look, at what became of all of them."""
        if not self._providers:
            return
        try:
            async with asyncio.timeout(LAST_LOOK_S):
                await self._see()
        except TimeoutError:
            log.info("the node does not tell how its channels ended")

    async def _see(self) -> None:
        try:
            found = await self._payment.channels()
        except (ShemError, TimeoutError) as error:
            log.info("channels are not seen: %s", error)
            return
        for channel in found:
            if channel.role == "Requestor" and channel.platform == self._platform and channel.peer in self._providers:
                self._compare(channel)

    def _compare(self, channel: ChannelStatus) -> None:
        key = f"{channel.vault}/{channel.channel_id}"
        before = self._known.get(key)
        if before is None and channel.state == "closed":
            return  # it ended before this session began
        now = events.ChannelChanged(
            provider_id=channel.peer,
            channel_id=channel.channel_id,
            platform=channel.platform,
            state=channel.state,
            reserved=parse_amount(channel.reserved),
            signed=parse_amount(channel.signed),
            claimed=parse_amount(channel.claimed),
            opened_tx=channel.opened_tx,
            valid_until=channel.valid_until,
        )
        if now != before:
            self._known[key] = now
            self._emit(now)
