"""Carry calls from plain threads to one event loop in a thread of its own, and results back.

The async SDK does all the work; the generated sync classes only hand each call over. Ctrl-C in the waiting thread cancels
the call on the loop and waits until it has cleaned up, so nothing stays rented behind the user's back.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sized
from typing import Any, Generic, TypeVar

from shem.errors import ShemError

R = TypeVar("R")
T = TypeVar("T")
Inner = TypeVar("Inner")

_END = object()


class TaskExited(ShemError):
    """A plain function did what only a program may do: it ended itself, or its iteration, instead of returning."""

    default_code = "task_exited"


class Portal:
    """One event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._waiting: set[concurrent.futures.Future[Any]] = set()
        self._over = False
        self._thread = threading.Thread(target=self._serve, name="shem", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            # Whatever ended the loop: nothing is left half-way, and nobody may wait for it for ever.
            self._over = True
            self._loop.run_until_complete(_cancel_others())
            self._loop.close()
            for waiting in list(self._waiting):
                if not waiting.done():
                    waiting.set_exception(RuntimeError("the event loop of this session has ended"))

    @property
    def closed(self) -> bool:
        """Whether nothing can be called any more."""
        return self._over

    def call(self, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Run the coroutine on the loop and wait for it.

        When the wait is interrupted (Ctrl-C) the coroutine is cancelled and waited for once more, so that it has cleaned up;
        a second interrupt does not wait.
        """
        if self.closed:
            raise RuntimeError("this session is over")
        done: concurrent.futures.Future[R] = concurrent.futures.Future()
        self._waiting.add(done)
        done.add_done_callback(self._waiting.discard)
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
                try:
                    await aclose()
                except RuntimeError:
                    pass  # a second interrupt: the first one's step is in it still, and cleans up

        try:
            while True:
                more, item = self.call(step)
                if not more:
                    return
                yield item  # type: ignore[misc]
        finally:
            if not self.closed:
                self.call(close)

    async def in_thread(self, call: Callable[[], T], name: str = "shem-task") -> T:
        """From the loop: run a plain function in a thread of its own.

        A daemon thread: a function that does not come back must not keep the program from ending. What it raises comes
        back; ``sys.exit()`` and ``StopIteration``, which no loop can carry, as :class:`TaskExited`.
        """
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[T] = loop.create_future()

        def deliver(result: T | None, error: BaseException | None) -> None:
            if waiting.done():
                return
            if error is not None:
                waiting.set_exception(error)
            else:
                waiting.set_result(result)  # type: ignore[arg-type]

        def run() -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = call()
            except StopIteration as stop:
                error = _exited("it let a StopIteration out", stop)
            except Exception as found:  # noqa: BLE001 - carried over to whoever waits
                error = found
            except BaseException as stop:  # noqa: BLE001 - would end this thread, and nobody would hear of it
                error = _exited(f"it raised {type(stop).__name__}({stop})", stop)
            if not loop.is_closed():
                loop.call_soon_threadsafe(deliver, result, error)

        threading.Thread(target=run, name=name, daemon=True).start()
        return await waiting

    def close(self) -> None:
        """End the loop, once its tasks have ended."""
        if not self.closed:
            self.call(_cancel_others)
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


async def _cancel_others() -> None:
    loop = asyncio.get_running_loop()
    current = asyncio.current_task()
    others = [t for t in asyncio.all_tasks() if t is not current]
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=10)
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()


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

    def _drawn(self, items: Iterable[T] | AsyncIterable[T]) -> AsyncIterable[T]:
        """``items`` for the loop: drawn in threads, as a user's iterator may block, or call us."""
        return items if isinstance(items, AsyncIterable) else _Drawn(items, self._portal)


class _Drawn(AsyncIterable[T]):
    def __init__(self, items: Iterable[T], portal: Portal) -> None:
        self._items = items
        self._portal = portal

    @property
    def total(self) -> int | None:
        """How many there are, where that is known."""
        return len(self._items) if isinstance(self._items, Sized) else None

    async def __aiter__(self) -> AsyncIterator[T]:
        if isinstance(self._items, list | tuple | range | dict | set | str):
            for item in self._items:  # these never block; a thread for each item would only cost
                yield item
            return
        source = iter(self._items)
        while (item := await self._portal.in_thread(lambda: next(source, _END), "shem-items")) is not _END:
            yield item


def _exited(how: str, error: BaseException) -> TaskExited:
    exited = TaskExited(f"the function did not return: {how}", hint="return a value, or raise an error")
    exited.__cause__ = error
    return exited
