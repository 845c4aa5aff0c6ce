"""Tasks of this domain. Peers may still call and leave while the node stops: what would start then starts never, and
whatever it was for is in the store and taken up at the next start."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from shem.cogs.tasks import TaskScope


class Background:
    """A :class:`TaskScope` that can be asked after its end."""

    def __init__(self) -> None:
        self._scope = TaskScope("activity")
        self.stopped = False

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None] | None:
        """Run ``work``, unless the node is stopping."""
        if self.stopped:
            work.close()
            return None
        return self._scope.start(work, name)

    async def stop(self) -> None:
        """Cancel everything and start nothing any more."""
        self.stopped = True
        await self._scope.close()
