"""golem-core 0.7.8, unmodified, with programs as its documentation has them, on a network of ours."""

from __future__ import annotations

from decimal import Decimal

import pytest

from shem.testing.devnet import Devnet
from tests.interop.registry import Registry
from tests.interop.support import Books, Clients, needs

pytestmark = [
    needs("golem-core"),
    pytest.mark.interop,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),
]

CLIENT = "golem-core"


@pytest.mark.parametrize("how", ["hash", "url"])
async def test_hello_by_the_chain_of_managers(clients: Clients, books: Books, registry: Registry, how: str) -> None:
    if registry.blocked and how == "hash":
        pytest.skip(registry.blocked)
    registry.asked.clear()
    elsewhere = {"hosts": registry.hosts} if how == "hash" else {}
    told = (await clients.run_python(CLIENT, "golem_core/hello.py", how, **elsewhere)).result
    assert told["error"] is None
    out, err, name = told["result"]
    assert (out, err) == ("hello from /bin/sh\n", "aside\n")
    assert name.startswith("provider-")
    wanted = "/image." if how == "hash" else "HEAD"
    assert any(line.startswith(wanted) for line in registry.asked), registry.asked
    assert len(await books.settled()) == 1


async def test_works_on_a_pool_of_providers(net: Devnet, clients: Clients, books: Books) -> None:
    told = (await clients.run_python(CLIENT, "golem_core/tasks.py")).result
    assert told["squares"] == [n * n for n in range(9)]
    assert set(told["providers"]) == {p.node_id for p in net.providers}
    (error,) = told["errors"]
    assert "code 3" in error
    assert len(await books.settled()) == 3


async def test_two_activities_in_one_agreement_by_hand(clients: Clients, books: Books) -> None:
    told = (await clients.run_python(CLIENT, "golem_core/activity.py")).result
    assert told["first"] == told["second"] == ["", ""]
    assert told["state"] == "Ready"
    said, message, cancelled, success, stderr = told["failing"]
    assert (said, cancelled, success, stderr) == ("before\n", "cancelled", False, "out of luck\n")
    assert "code 4" in message
    assert told["after"] == "second\n"
    assert told["invoiced"]
    assert told["status"] in {"ACCEPTED", "SETTLED"}
    (deal,) = await books.settled()
    assert len(deal.invoice["activityIds"]) == 2


async def test_a_second_process_takes_up_the_activity(clients: Clients, books: Books) -> None:
    ids = (await clients.run_python(CLIENT, "golem_core/reattach.py", "leave")).result
    (agreement,) = await books.agreements()
    assert agreement["state"] == "Approved"
    told = (await clients.run_python(CLIENT, "golem_core/reattach.py", "join", *ids)).result
    assert told["away"] == "finished while away\n"
    assert told["note"] == "kept\n"
    assert told["state"] == "Ready"
    assert told["status"] in {"ACCEPTED", "SETTLED"}
    assert len(await books.settled()) == 1


async def test_files_go_there_and_back(clients: Clients, books: Books) -> None:
    told = (await clients.run_python(CLIENT, "golem_core/files.py")).result
    assert told == {"sum": True, "results": ["Ok", "Ok", "Ok"], "back": True}
    assert len(await books.settled()) == 1


async def test_the_event_bus_tells_the_whole_story(clients: Clients, books: Books) -> None:
    events = (await clients.run_python(CLIENT, "golem_core/events.py")).result["events"]
    story = [
        *("NewAllocation", "NewDemand", "NewProposal", "NewAgreement", "NewActivity"),
        *("NewPoolingBatch", "BatchFinished", "ActivityClosed", "AgreementClosed", "NewInvoice", "ResourceClosed"),
        *("ShutdownStarted", "ShutdownFinished"),
    ]
    missing = [name for name in story if name not in events]
    assert not missing, events
    assert len(await books.settled()) == 1


async def test_one_allocation_pays_three_rentals(clients: Clients, books: Books) -> None:
    told = (await clients.run_python(CLIENT, "golem_core/allocation.py")).result
    assert told["said"] == ["done\n"] * 3
    assert told["spent"]
    assert told["left"]
    assert told["listed"]
    assert len(await books.settled()) == 3


async def test_nobody_is_hired_when_all_are_too_dear(clients: Clients, books: Books) -> None:
    told = (await clients.run_python(CLIENT, "golem_core/filters.py", "dear")).result
    assert told["result"] == "nobody"
    assert await books.settled() == []


async def test_blacklisted_providers_are_not_hired(net: Devnet, clients: Clients, books: Books) -> None:
    *black, white = (p.node_id for p in net.providers)
    told = (await clients.run_python(CLIENT, "golem_core/filters.py", "black", *black)).result
    assert told["result"] == white
    (deal,) = await books.settled()
    assert deal.provider_id == white


async def test_a_bill_that_nobody_accepts_stays_received(clients: Clients, books: Books) -> None:
    told = (await clients.run_python(CLIENT, "golem_core/filters.py", "unpaid")).result
    assert told["result"] == "RECEIVED"
    (deal,) = await books.settled(status="RECEIVED")
    assert deal.amount > 0


async def test_work_is_ended_in_the_middle(clients: Clients, books: Books) -> None:
    told = (await clients.run_python(CLIENT, "golem_core/middle.py")).result
    assert told == {what: ["still running", "failed", "Terminated"] for what in ("activity", "agreement")}
    assert len(await books.settled()) == 2


async def test_debit_notes_come_at_the_negotiated_interval_and_are_paid(clients: Clients, books: Books) -> None:
    told = (await clients.run_python(CLIENT, "golem_core/debit.py")).result
    assert told["negotiated"] == [2, 4]
    assert set(told["statuses"]) <= {"ACCEPTED", "SETTLED"}
    asked = [Decimal(amount) for amount in told["amounts"]]
    assert asked == sorted(asked)
    assert told["payable"] >= 1
    assert told["vectors"]
    assert len(await books.settled()) == 1
    paid = [n for n in await books.debit_notes() if n["status"] == "SETTLED" and "paymentDueDate" in n]
    assert paid, "no note was paid while the work went on"


async def test_terms_of_long_agreements_are_negotiated_in_turns(clients: Clients, books: Books) -> None:
    told = (await clients.run_python(CLIENT, "golem_core/negotiate.py")).result
    assert told["offered"] == told["demanded"] == {"interval": 180, "payment": 12 * 3600}
    assert told["counters"] >= 2
    assert told["said"] == "done\n"
    assert len(await books.settled()) == 1


async def test_a_networks_address_book(clients: Clients, books: Books) -> None:
    told = (await clients.run_python(CLIENT, "golem_core/network.py")).result
    assert told["address"] == "192.168.8.0"
    assert told["first"] == "192.168.8.1"
    assert told["listed"]
    assert not told["left"]
    assert told["args"] == {
        "id": True,
        "ip": "192.168.8.0",
        "mask": "255.255.255.0",
        "nodeIp": "192.168.8.9",
        "nodes": {"192.168.8.1": "0x" + "1" * 40, "192.168.8.9": "0x" + "2" * 40},
    }
    assert await books.settled() == []


async def test_an_image_from_the_programs_own_disk(clients: Clients, books: Books, registry: Registry) -> None:
    registry.asked.clear()
    told = (await clients.run_python(CLIENT, "golem_core/own_image.py")).result
    assert told == {"result": "root:x:0:0:root:/:/bin/sh\n", "scheme": "gftp"}
    assert registry.asked == []
    assert len(await books.settled()) == 1


async def test_ctrl_c_ends_in_order(clients: Clients, books: Books) -> None:
    program = await clients.start_python(CLIENT, "golem_core/interrupted.py")
    await program.line("at work")
    program.interrupt()
    ran = await program.finish(expect=None)
    assert "ended in order" in ran.out, ran.words
    assert len(await books.settled()) == 1


async def test_the_packages_own_command_line(net: Devnet, clients: Clients, books: Books) -> None:
    async def cli(*args: str) -> str:
        return (await clients.run_python(CLIENT, "-m", "golem", *args)).out

    found = await cli("find-node", "--runtime", "vm", "--timeout", "2s")
    assert all(p.node_id in found for p in net.providers), found
    assert f"{len(net.providers)} proposals found" in found
    made = await cli("allocation", "new", "0.25")
    assert "holesky" in made
    assert "0.25" in await cli("allocation", "list")
    assert "0.25" in await cli("status")
    await cli("allocation", "clean")
    assert "0.25" not in await cli("allocation", "list")
    assert await books.settled() == []
