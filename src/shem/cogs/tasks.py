"""Background tasks with an owner: named, cancelled with their scope, and never failing in silence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

log = logging.getLogger(__name__)

R = TypeVar("R")


class TaskScope:
    """Owns tasks of a long-running service.

    Unlike ``asyncio.TaskGroup``, one failing task does not take its siblings down: a peer's bad message must not stop
    the node. A failure is logged and counted in :attr:`failures`. Leaving the scope cancels what still runs and
    waits for it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self.failures = 0

    async def __aenter__(self) -> TaskScope:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run ``work`` until it ends or the scope does. ``name`` appears in logs."""
        if self._closed:
            work.close()
            raise RuntimeError(f"{self._name} is closed")
        task = asyncio.get_running_loop().create_task(work, name=f"{self._name}:{name}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures += 1
            log.error("task %s failed: %r", task.get_name(), error, exc_info=error)

    def __len__(self) -> int:
        return len(self._tasks)

    async def close(self) -> None:
        """Cancel all tasks and wait until each has ended."""
        self._closed = True
        current = asyncio.current_task()
        while others := [t for t in self._tasks if t is not current]:
            for task in others:
                task.cancel()
            await asyncio.wait(others)


async def finish(work: Coroutine[Any, Any, R]) -> R:
    """Await ``work`` to its end although we are being cancelled; the cancellation goes on afterwards.

    For what must not stop half-way, such as giving back what was rented.
    """
    task = asyncio.get_running_loop().create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # seen; the cancellation is what the caller must hear of
        raise cancelled
    return task.result()
