"""Nodes that we always want to be connected with: dialled at start and again whenever the link ends.

Failures are followed by growing pauses (doubled each time up to a limit, and shortened at random, so that a thousand
nodes do not knock in step); :meth:`Bootstraps.nudge` ends all pauses at once.
"""

from __future__ import annotations

import asyncio
import random

from shem.cogs.clock import Clock
from shem.cogs.tasks import TaskScope
from shem.errors import PeerFailed
from shem.node.peer.addresses import parse_bootstrap
from shem.node.peer.door import Door
from shem.node.peer.limits import PeerLimits
from shem.node.peer.links import Links

MAX_BOOTSTRAPS = 64
SHORT_LIFE_S = 5.0
"""A link that ends sooner counts as a failure: who admits us and hangs up is not dialled in a tight loop."""


class Bootstraps:
    """Keeps links with the given nodes."""

    def __init__(self, door: Door, links: Links, clock: Clock, limits: PeerLimits, own_endpoint: bytes) -> None:
        self._door = door
        self._links = links
        self._clock = clock
        self._limits = limits
        self._own = own_endpoint
        self._scope = TaskScope("bootstrap")
        self._kept: set[bytes] = set()
        self._pausing: set[asyncio.Future[None]] = set()

    def add(self, address: str) -> None:
        """Keep a link with ``<endpoint id>@ip:port``. Raises :class:`~shem.node.peer.addresses.BadAddress`."""
        endpoint_id, addresses = parse_bootstrap(address)
        if endpoint_id == self._own or endpoint_id in self._kept or len(self._kept) >= MAX_BOOTSTRAPS:
            return
        self._kept.add(endpoint_id)
        self._scope.start(self._keep(endpoint_id, addresses), endpoint_id.hex()[:16])

    def nudge(self) -> None:
        """Try again now (the network is back, say)."""
        for pause in self._pausing:
            if not pause.done():
                pause.set_result(None)

    async def close(self) -> None:
        await self._scope.close()

    async def _keep(self, endpoint_id: bytes, addresses: list[str]) -> None:
        failures = 0
        while True:
            try:
                link = await self._door.dial(endpoint_id, addresses)
                since = self._clock.monotonic()
                await link.wait_ended()
                if self._clock.monotonic() - since >= SHORT_LIFE_S:
                    failures = 0
                    continue
            except PeerFailed:
                pass
            failures += 1
            longest = min(self._limits.max_backoff_s, self._limits.first_backoff_s * 2 ** min(failures - 1, 16))
            await self._pause(longest * random.uniform(0.5, 1.0))  # noqa: S311

    async def _pause(self, seconds: float) -> None:
        pause: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pausing.add(pause)
        timer = self._scope.start(self._end_after(pause, seconds), "pause")
        try:
            await pause
        finally:
            self._pausing.discard(pause)
            timer.cancel()

    async def _end_after(self, pause: asyncio.Future[None], seconds: float) -> None:
        await self._clock.sleep(seconds)
        if not pause.done():
            pause.set_result(None)
