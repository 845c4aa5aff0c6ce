"""Several clients' programs on one network, and a network that changes under them."""

from __future__ import annotations

import asyncio

import pytest

from shem.testing.devnet import Devnet
from tests.interop.support import Books, Clients, needs, until

pytestmark = [
    *(needs("yapapi"), needs("golem-core")),
    *(pytest.mark.interop, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)),
]


async def test_two_clients_at_once(clients: Clients, books: Books) -> None:
    async with asyncio.TaskGroup() as group:
        ours = group.create_task(clients.run_python("yapapi", "yapapi/hello.py", "url"))
        theirs = group.create_task(clients.run_python("golem-core", "golem_core/hello.py", "url"))
    assert ours.result().result["results"][0][0] == "hello from golem\n"
    assert "PaymentFailed" not in ours.result().result["events"]
    assert theirs.result().result["result"][0] == "hello from /bin/sh\n"
    assert len(await books.settled()) == 2


@pytest.mark.parametrize("newcomer", [("yapapi", "yapapi/hello.py"), ("golem-core", "golem_core/hello.py")])
async def test_who_comes_while_all_are_busy_gets_a_turn(
    net: Devnet, clients: Clients, books: Books, newcomer: tuple[str, str]
) -> None:
    busy = []
    for _ in net.providers:  # one by one: golem-core waits for the invoice of an agreement that it lost to another
        busy.append(await clients.start_python("golem-core", "golem_core/interrupted.py"))
        await busy[-1].line("at work")
    later = await clients.start_python(*newcomer, "url")

    async def has_asked() -> bool:
        return len(await books.get("/market-api/v1/demands")) == len(busy) + 1

    await until(has_asked, "a demand of the newcomer")
    for program in busy:
        program.interrupt()
    for program in busy:
        await program.finish(expect=None)
    assert "hello from" in (await later.finish()).out
    assert len(await books.settled()) == len(busy) + 1


async def test_a_provider_that_leaves_in_the_middle_is_replaced(net: Devnet, clients: Clients, books: Books) -> None:
    program = await clients.start_python("yapapi", "yapapi/left.py")
    first = (await program.line("at work on")).split()[-1]
    leaving = next(p for p in net.providers if p.node_id == first)
    assert leaving.agent is not None
    try:
        await leaving.agent.stop()
        told = (await program.finish()).result
    finally:
        await net.start_agent(leaving)
    assert told["results"] == ["done\n"]
    assert told["tried"][0] == first
    assert told["tried"][1] != first
    assert len(told["ends"]) == 1
    deals = await books.settled()
    assert {deal.provider_id for deal in deals} == set(told["tried"])
