"""The end of a sandbox: it comes once, for one reason, and is cleaned up after once, however many ask for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from shem.cogs.tasks import TaskScope


class Lifetime:
    """Watches a sandbox through its tasks and ends it through ``clean_up``."""

    def __init__(self, name: str, clean_up: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._clean_up = clean_up
        self._dead: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._scope = TaskScope(name)
        self._closing = TaskScope(f"{name}-end")
        self._end: asyncio.Task[None] | None = None

    def watch(self, ending: Awaitable[object], reason: str, name: str) -> None:
        """When ``ending`` resolves, the sandbox is dead: of ``reason``, or of what ``ending`` said."""

        async def wait() -> None:
            said = await ending
            self.dead(said if isinstance(said, str) else reason)

        self._scope.start(wait(), name)

    def dead(self, reason: str) -> None:
        """The sandbox is dead; the first reason is kept."""
        if not self._dead.done():
            self._dead.set_result(reason)

    async def wait_dead(self) -> str:
        return await asyncio.shield(self._dead)

    async def destroy(self) -> None:
        """End it. Callers share one clean-up, which no cancellation of theirs interrupts."""
        if self._end is None:
            self._end = self._closing.start(self._finish(), "destroy")
        await asyncio.shield(self._end)

    async def _finish(self) -> None:
        self.dead("The sandbox was destroyed")
        await self._scope.close()
        await self._clean_up()
