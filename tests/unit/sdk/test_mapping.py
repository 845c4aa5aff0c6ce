"""Who does what next, what is tried again, when to stop: the scheduler with scripted machines.

A machine here is a bare ``Rental`` value that is never asked to run anything: the scheduler itself never does either.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from shem.errors import MoneyShort, PeerFailed
from shem.sdk import events
from shem.sdk.hiring import NoProviders
from shem.sdk.mapping import BAD_STREAK, MAX_LOSSES, Mapping
from shem.sdk.types import CommandFailed, Result, TaskFailed

Task = Callable[[Any, Any], Awaitable[Any]]


class World:
    """Machines of named providers; who was left is not rented again."""

    def __init__(self, *providers: str, capacity: int = 1) -> None:
        self.free = list(providers) * capacity
        self.left: dict[str, str] = {}
        self.open = 0
        self.rented: list[str] = []
        self.events: list[events.Event] = []
        self.changed = asyncio.Condition()
        self.numbers = itertools.count(1)

    @asynccontextmanager
    async def machine(self, avoid: frozenset[str]) -> AsyncIterator[Any]:
        fit = [p for p in self.free if p not in self.left]
        provider = min(fit, key=lambda p: p in avoid, default=None)
        if provider is None:
            raise NoProviders("nobody is left")
        self.free.remove(provider)
        self.open += 1
        self.rented.append(provider)
        try:
            yield SimpleNamespace(number=next(self.numbers), provider_id=provider, provider_name=provider)
        finally:
            self.open -= 1
            self.free.append(provider)

    def leave(self, provider: str, name: str, code: str, reason: str) -> None:
        self.left[provider] = code

    def map(self, task: Task, items: Iterable[Any] | AsyncIterator[Any], **options: Any) -> Mapping[Any, Any]:
        settings: dict[str, Any] = {
            "workers": 2,
            "timeout_s": 5.0,
            "retries": 2,
            "ordered": False,
            "broke": [asyncio.get_running_loop().create_future()],
        }
        return Mapping(
            task, items, open_rental=self.machine, leave=self.leave, emit=self.events.append, **(settings | options)
        )


async def collect(mapping: Mapping[Any, Any]) -> list[Any]:
    return [o async for o in mapping.results()]


async def double(machine: Any, item: int) -> int:
    await asyncio.sleep(0)
    return 2 * item


async def test_every_item_gives_one_result() -> None:
    world = World("a", "b")
    done = await collect(world.map(double, range(50)))
    assert sorted(o.result for o in done) == [2 * n for n in range(50)]
    assert world.open == 0


async def test_no_items_rent_nothing() -> None:
    world = World("a")
    assert await collect(world.map(double, [])) == []
    assert world.rented == []


async def test_ordered_results_follow_the_items_however_they_end() -> None:
    world = World("a", "b")
    turn = asyncio.Event()

    async def task(machine: Any, item: int) -> int:
        if item == 0:
            await turn.wait()
        elif item == 5:
            turn.set()
        return item

    done = await collect(world.map(task, range(10), ordered=True))
    assert [o.result for o in done] == list(range(10))


async def test_an_endless_source_is_drawn_only_as_far_as_needed() -> None:
    world = World("a", "b")
    drawn = itertools.count()
    source = (next(drawn) for _ in itertools.repeat(None))
    results = world.map(double, source).results()
    taken = [await anext(results) for _ in range(20)]
    await results.aclose()  # type: ignore[attr-defined]
    assert len(taken) == 20
    assert next(drawn) < 20 + 40
    assert world.open == 0


async def test_items_may_come_asynchronously() -> None:
    async def source() -> AsyncIterator[int]:
        for n in range(5):
            await asyncio.sleep(0)
            yield n

    done = await collect(World("a").map(double, source()))
    assert sorted(o.result for o in done) == [0, 2, 4, 6, 8]


async def test_a_source_that_fails_ends_the_map_with_its_error() -> None:
    def source() -> Iterable[int]:
        yield 1
        raise KeyError("no more")

    with pytest.raises(KeyError):
        await collect(World("a").map(double, source()))


def failing() -> CommandFailed:
    return CommandFailed("exit status 1", Result(1, b"", b""), code="nonzero_exit")


async def test_a_failed_task_is_tried_at_another_provider() -> None:
    world = World("a", "b")
    tried: list[str] = []

    async def task(machine: Any, item: int) -> int:
        await asyncio.sleep(0)
        if item == 0:
            tried.append(machine.provider_id)
            if len(tried) == 1:
                raise failing()
        return item

    done = await collect(world.map(task, range(20)))
    assert sorted(o.result for o in done) == list(range(20))
    assert len(set(tried)) == 2


async def test_a_task_that_fails_everywhere_gives_its_last_error() -> None:
    async def task(machine: Any, item: int) -> int:
        if item == 3:
            raise failing()
        return item

    world = World("a", "b")
    done = await collect(world.map(task, range(6)))
    bad = [o for o in done if o.error]
    assert [(o.index, type(o.error)) for o in bad] == [(3, CommandFailed)]
    assert len(done) == 6
    attempts = [e for e in world.events if isinstance(e, events.TaskFailed)]
    assert [e.retried for e in attempts] == [True, True, False]


async def test_one_provider_alone_gets_its_failed_task_back() -> None:
    count = itertools.count()

    async def task(machine: Any, item: int) -> int:
        if item == 0 and next(count) < 2:
            raise failing()
        return item

    done = await collect(World("a").map(task, range(3), workers=1))
    assert sorted(o.result for o in done) == [0, 1, 2]


async def test_a_lost_machine_is_replaced_and_its_provider_left() -> None:
    world = World("a", "b")

    async def task(machine: Any, item: int) -> int:
        await asyncio.sleep(0)
        if machine.provider_id == "a":
            raise PeerFailed("gone", code="peer_gone")
        return item

    done = await collect(world.map(task, range(8)))
    assert sorted(o.result for o in done) == list(range(8))
    assert world.left == {"a": "peer_gone"}


async def test_a_task_that_loses_every_machine_is_given_up() -> None:
    world = World(*"abcdefgh")

    async def task(machine: Any, item: int) -> int:
        raise PeerFailed("gone", code="peer_gone")

    done = await collect(world.map(task, [1], workers=1))
    assert [o.error.code for o in done] == ["peer_gone"]
    assert len(world.left) == MAX_LOSSES


async def test_a_machine_that_only_fails_is_given_back() -> None:
    world = World("good", "bad")

    async def task(machine: Any, item: int) -> int:
        await asyncio.sleep(0)
        if machine.provider_id == "bad":
            raise failing()
        await asyncio.sleep(0.01)
        return item

    done = await collect(world.map(task, range(30), retries=5))
    assert sorted(o.result for o in done) == list(range(30))
    assert world.left == {"bad": "bad_streak"}
    assert sum(isinstance(e, events.TaskFailed) for e in world.events) == BAD_STREAK


async def test_a_task_that_takes_too_long_costs_the_machine_and_is_tried_elsewhere() -> None:
    world = World("slow", "quick")

    async def task(machine: Any, item: int) -> int:
        if machine.provider_id == "slow":
            await asyncio.Event().wait()
        return item

    done = await collect(world.map(task, [7], workers=1, timeout_s=0.05))
    assert [o.result for o in done] == [7]
    assert world.left == {}
    assert world.rented == ["slow", "quick"]

    alone = World("slow")
    done = await collect(alone.map(task, [7], workers=1, timeout_s=0.05, retries=0))
    assert isinstance(done[0].error, TaskFailed)


async def test_the_users_own_error_comes_back_as_it_is() -> None:
    async def task(machine: Any, item: int) -> int:
        raise ZeroDivisionError("theirs")

    done = await collect(World("a", "b").map(task, [1]))
    assert isinstance(done[0].error, ZeroDivisionError)


async def test_fewer_machines_than_wanted_is_enough() -> None:
    world = World("a")
    done = await collect(world.map(double, range(10), workers=5))
    assert len(done) == 10


async def test_no_machine_at_all_is_an_error() -> None:
    with pytest.raises(NoProviders):
        await collect(World().map(double, range(3), workers=3))


async def test_running_out_of_money_stops_the_work_at_once() -> None:
    world = World("a", "b")
    broke: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def task(machine: Any, item: int) -> int:
        if item == 3:
            broke.set_exception(MoneyShort("no more", code="money_budget"))
            await asyncio.Event().wait()
        return item

    with pytest.raises(MoneyShort):
        await collect(world.map(task, range(100), broke=[broke]))
    assert world.open == 0


async def test_stopping_early_gives_machines_back() -> None:
    world = World("a", "b")
    results = world.map(double, itertools.count()).results()
    async for _ in results:
        break
    await results.aclose()  # type: ignore[attr-defined]
    assert world.open == 0


async def test_a_time_out_of_the_tasks_own_is_not_the_limit() -> None:
    world = World("a")

    async def task(machine: Any, item: int) -> int:
        raise TimeoutError("theirs")

    done = await collect(world.map(task, [1], retries=0))
    assert isinstance(done[0].error, TimeoutError)
    assert str(done[0].error) == "theirs"
    assert world.rented == ["a"]


async def test_what_setup_raises_ends_the_map_with_it() -> None:
    @asynccontextmanager
    async def broken(avoid: frozenset[str]) -> AsyncIterator[Any]:
        raise ValueError("setup failed")
        yield

    mapping = World().map(double, range(3))
    mapping._open_rental = broken
    with pytest.raises(ValueError, match="setup failed"):
        await asyncio.wait_for(collect(mapping), 5)


async def test_no_machine_in_time_is_an_error_also_without_a_code() -> None:
    @asynccontextmanager
    async def never(avoid: frozenset[str]) -> AsyncIterator[Any]:
        raise TimeoutError("no answer")
        yield

    mapping = World().map(double, range(3), workers=3)
    mapping._open_rental = never
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(collect(mapping), 5)


async def test_a_machine_given_up_by_its_user_is_not_its_providers_fault() -> None:
    from shem.errors import Gone

    world = World("a")
    spent: list[int] = []

    async def task(machine: Any, item: int) -> int:
        if not spent:
            spent.append(item)
            raise Gone("busy", code="rental_spent")
        return item

    done = await collect(world.map(task, [1]))
    assert [o.result for o in done] == [1]
    assert world.left == {}
    assert world.rented == ["a", "a"]
