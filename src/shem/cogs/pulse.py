"""Wake whoever waits for a change. The change itself is in the store; a pulse only says *look again*."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Pulses(Generic[K]):
    """Keyed wake-ups. Costs nothing for keys that nobody waits for."""

    def __init__(self) -> None:
        self._waiting: dict[K, set[asyncio.Future[None]]] = {}

    def beat(self, key: K) -> None:
        """Wake all that wait on ``key`` now. Safe to call when nobody does."""
        for waiter in self._waiting.pop(key, ()):
            if not waiter.done():
                waiter.set_result(None)

    def beat_all(self) -> None:
        """Wake everybody (shutting down)."""
        for key in list(self._waiting):
            self.beat(key)

    async def wait_for(self, key: K, read: Callable[[], T | None], timeout_s: float) -> T | None:
        """Call ``read`` now and after every beat until it gives something; ``None`` when the time is up.

        The waiter is registered *before* ``read`` runs, so a change between the two is never missed.
        An error that ``read`` raises (the subscription is gone, say) ends the wait.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            waiter: asyncio.Future[None] = loop.create_future()
            self._waiting.setdefault(key, set()).add(waiter)
            try:
                found = read()
                if found:
                    return found
                left = deadline - loop.time()
                if left <= 0:
                    return None
                try:
                    async with asyncio.timeout(left):
                        await waiter
                except TimeoutError:
                    return read()
            finally:
                waiters = self._waiting.get(key)
                if waiters is not None:
                    waiters.discard(waiter)
                    if not waiters:
                        self._waiting.pop(key, None)
