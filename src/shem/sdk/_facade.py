"""Carry calls from plain threads to one event loop in a thread of its own, and results back.

The async SDK does all the work; the generated sync classes only hand each call over. Ctrl-C in the waiting thread cancels
the call on the loop and waits until it has cleaned up, so nothing stays rented behind the user's back.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, Generic, TypeVar

R = TypeVar("R")
T = TypeVar("T")
Inner = TypeVar("Inner")

MAX_THREADS = 1024
"""Plain task functions run in threads, one for each machine at work."""


class Portal:
    """One event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._pool = concurrent.futures.ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="shem-task")
        self._thread = threading.Thread(target=self._loop.run_forever, name="shem", daemon=True)
        self._thread.start()

    def call(self, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Run the coroutine on the loop and wait for it.

        When the wait is interrupted (Ctrl-C) the coroutine is cancelled and waited for once more, so that it has cleaned up;
        a second interrupt does not wait.
        """
        done: concurrent.futures.Future[R] = concurrent.futures.Future()
        tasks: list[asyncio.Task[R]] = []

        def finish(task: asyncio.Task[R]) -> None:
            if task.cancelled():
                done.set_exception(asyncio.CancelledError())
            elif (error := task.exception()) is not None:
                done.set_exception(error)
            else:
                done.set_result(task.result())

        def start() -> None:
            tasks.append(self._loop.create_task(work()))
            tasks[0].add_done_callback(finish)

        def cancel() -> None:
            tasks[0].cancel()

        self._loop.call_soon_threadsafe(start)
        try:
            return done.result()
        except BaseException:
            if not done.done():
                self._loop.call_soon_threadsafe(cancel)
                done.exception()
            raise

    def iterate(self, items: AsyncIterator[R]) -> Iterator[R]:
        """Draw an async iterator from a plain ``for``; leaving the loop early closes it."""

        async def step() -> tuple[bool, R | None]:
            try:
                return True, await anext(items)
            except StopAsyncIteration:
                return False, None

        async def close() -> None:
            aclose = getattr(items, "aclose", None)
            if aclose is not None:
                await aclose()

        try:
            while True:
                more, item = self.call(step)
                if not more:
                    return
                yield item  # type: ignore[misc]
        finally:
            self.call(close)

    async def in_thread(self, call: Callable[[], T]) -> T:
        """From the loop: run a plain function in a thread."""
        return await self._loop.run_in_executor(self._pool, call)

    def close(self) -> None:
        """End the loop, once its tasks have ended."""

        async def drain() -> None:
            current = asyncio.current_task()
            others = [t for t in asyncio.all_tasks() if t is not current]
            for task in others:
                task.cancel()
            if others:
                await asyncio.wait(others, timeout=10)
            await self._loop.shutdown_asyncgens()

        self.call(drain)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


class Facade(Generic[Inner]):
    """Base of the generated classes: an async object and the loop it lives on."""

    def __init__(self, inner: Inner, portal: Portal) -> None:
        self._inner = inner
        self._portal = portal

    def _wait(self, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
        return self._portal.call(work)

    def _iterate(self, items: AsyncIterator[R]) -> Iterator[R]:
        return self._portal.iterate(items)

    def _plain(self, function: Callable[..., R], wrap: Callable[[Any, Portal], Any]) -> Callable[..., Awaitable[R]]:
        """An async function that runs ``function`` in a thread, its first argument in sync clothes."""
        portal = self._portal

        async def call(first: Any, *rest: Any) -> R:
            return await portal.in_thread(lambda: function(wrap(first, portal), *rest))

        return call
