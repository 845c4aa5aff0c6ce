"""yapapi 0.13.1, unmodified, with programs as its documentation has them, on a network of ours."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from shem.testing.devnet import Devnet
from tests.interop.registry import Registry
from tests.interop.support import Books, Clients, needs

pytestmark = [needs("yapapi"), pytest.mark.interop, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]


async def test_offers_are_listed(net: Devnet, clients: Clients, books: Books) -> None:
    told = (await clients.run_python("yapapi", "yapapi/offers.py")).result
    assert told["ours"]
    assert set(told["offers"]) == {p.node_id for p in net.providers}
    for offer in told["offers"].values():
        assert offer["runtime"] == "vm"
        assert offer["scheme"] == "payu"
        assert Decimal(offer["fixed"]) == Decimal("0.0001")
        assert offer["counters"] == ["golem.usage.cpu_sec", "golem.usage.duration_sec"]
        assert {"gftp", "http", "https"} <= set(offer["transfers"])
    assert await books.settled() == []


@pytest.mark.parametrize("how", ["hash", "tag", "url"])
async def test_hello_with_the_registry_that_the_client_has_written_into_it(
    clients: Clients, books: Books, registry: Registry, how: str
) -> None:
    if registry.blocked and how != "url":
        pytest.skip(registry.blocked)
    registry.asked.clear()
    elsewhere = {} if how == "url" else {"hosts": registry.hosts, "env": {"SSL_CERT_FILE": str(registry.authority)}}
    told = (await clients.run_python("yapapi", "yapapi/hello.py", how, **elsewhere)).result
    ((out, err, name),) = told["results"]
    assert (out, err) == ("hello from golem\n", "aside\n")
    assert name.startswith("provider-")
    wanted = "HEAD" if how == "url" else f"/v1/image/info?{how}="
    assert any(line.startswith(wanted) for line in registry.asked), registry.asked
    (deal,) = await books.settled()
    assert deal.amount > 0
    for name in ("SubscriptionCreated", "ProposalConfirmed", "AgreementConfirmed", "TaskAccepted", "InvoiceAccepted"):
        assert name in told["events"]
    assert not {"ProposalFailed", "PaymentFailed", "AgreementRejected"} & set(told["events"])
    assert told["events"][-1] == "ShutdownFinished"


async def test_many_tasks_on_several_providers(net: Devnet, clients: Clients, books: Books) -> None:
    told = (await clients.run_python("yapapi", "yapapi/tasks.py")).result
    assert told["squares"] == [n * n for n in range(12)]
    assert told["rejected"] == 1
    deals = await books.settled()
    assert len(deals) == told["agreements"]
    assert set(told["providers"]) == {p.node_id for p in net.providers}


async def test_a_failing_command_says_why_and_the_work_goes_on(clients: Clients, books: Books) -> None:
    told = (await clients.run_python("yapapi", "yapapi/failing.py")).result
    assert told["results"] == ["still here\n"]
    for failed in told["failed"]:
        assert failed["stderr"] == "out of luck\n"
        assert "code 4" in failed["message"]
    assert len(told["failed"]) == 2
    assert len(await books.settled()) == told["agreements"] == 2


async def test_a_service_with_several_batches(clients: Clients, books: Books) -> None:
    told = (await clients.run_python("yapapi", "yapapi/service.py")).result
    assert told["answers"] == [[1, 1], [3, 3], [6, 6]]
    assert told["last"] == [6, 6]
    assert len(set(told["names"])) == 2
    assert ["running", "stopping"] in told["states"]
    assert ["stopping", "terminated"] in told["states"]
    assert len(await books.settled()) == 2


async def test_output_comes_while_the_command_runs(clients: Clients, books: Books) -> None:
    told = (await clients.run_python("yapapi", "yapapi/streaming.py")).result
    assert told["slow"] == "line 1\nline 2\nline 3\n"
    assert told["aside"] == "aside 1\naside 2\naside 3\n"
    assert told["ahead"] > 0.5
    assert told["fast"], "output was cut or reordered"
    assert told["started"] == 4
    assert len(await books.settled()) == 1


async def test_files_go_there_and_back(clients: Clients, books: Books) -> None:
    told = (await clients.run_python("yapapi", "yapapi/files.py")).result
    assert told == {
        "sums": True,
        "back": True,
        "bytes": True,
        "json": {"text": "grüße", "numbers": [1, 2.5, None]},
        "downloads": 3,
    }
    assert len(await books.settled()) == 1


async def test_one_allocation_pays_two_rentals(clients: Clients, books: Books) -> None:
    told = (await clients.run_python("yapapi", "yapapi/allocation.py")).result
    assert told["results"] == ["first", "second"]
    first, second = told["held"]
    assert first == second
    assert [(Decimal(amount), platform) for _, amount, platform in first] == [(Decimal("0.75"), "erc20-holesky-tglm")]
    assert len(await books.settled()) == told["agreements"] == 2


async def test_nobody_is_hired_when_all_are_too_dear(net: Devnet, clients: Clients, books: Books) -> None:
    told = (await clients.run_python("yapapi", "yapapi/filters.py", "dear")).result
    assert told["rejected"] == [[node, "Score too low"] for node in sorted(p.node_id for p in net.providers)]
    assert told["agreements"] == 0
    assert await books.settled() == []


async def test_only_the_chosen_provider_is_hired(net: Devnet, clients: Clients, books: Books) -> None:
    chosen = net.providers[1].node_id
    told = (await clients.run_python("yapapi", "yapapi/filters.py", "one", chosen)).result
    assert told["results"] == [chosen]
    (deal,) = await books.settled()
    assert deal.provider_id == chosen


async def test_a_bill_that_the_strategy_finds_too_high_is_not_paid(clients: Clients, books: Books) -> None:
    told = (await clients.run_python("yapapi", "yapapi/filters.py", "unpaid")).result
    assert told["accepted"] == 0
    (deal,) = await books.settled(status="RECEIVED")
    assert deal.amount > 0
    assert deal.agreement["state"] == "Terminated"


async def test_a_script_that_takes_too_long_is_given_up(clients: Clients, books: Books) -> None:
    told = (await clients.run_python("yapapi", "yapapi/timeout.py")).result
    assert told["results"] == ["done\n"]
    assert told["tried"] == 2
    assert len(await books.settled()) == 2


async def test_ctrl_c_ends_in_order(clients: Clients, books: Books) -> None:
    program = await clients.start_python("yapapi", "yapapi/interrupted.py")
    await program.line("at work")
    program.interrupt()
    ran = await program.finish()
    assert "InvoiceAccepted" in ran.out, ran.words
    assert "ended in order" in ran.out, ran.words
    assert await books.settled()


async def test_several_activities_in_one_agreement(clients: Clients, books: Books) -> None:
    told = (await clients.run_python("yapapi", "yapapi/reuse.py")).result
    assert told == {"counts": ["1", "1", "1"], "activities": 3, "agreements": 1}
    (deal,) = await books.settled()
    assert len(deal.invoice["activityIds"]) >= 3


async def test_an_instance_is_ended_and_deployed_again(clients: Clients, books: Books) -> None:
    told = (await clients.run_python("yapapi", "yapapi/restart.py")).result
    assert told == {"results": [["left-behind"], ["left-behind"]], "activities": 1}
    assert len(await books.settled()) == 1


async def test_debit_notes_come_at_the_agreed_interval_and_are_paid(clients: Clients, books: Books) -> None:
    told = (await clients.run_python("yapapi", "yapapi/debit.py")).result
    assert told["negotiated"] == [2, 4]
    asked = [Decimal(amount) for amount in told["asked"]]
    assert asked == sorted(asked)
    assert told["payable"] >= 1
    assert told["failed"] == 0
    assert [reason["golem.requestor.code"] for reason in told["reasons"]] == ["Cancelled"]
    (deal,) = await books.settled()
    assert deal.amount >= asked[-1]
    paid = [n for n in await books.debit_notes() if n["status"] == "SETTLED" and "paymentDueDate" in n]
    assert paid, "no note was paid while the work went on"


async def test_a_networks_address_book(clients: Clients, books: Books) -> None:
    told = (await clients.run_python("yapapi", "yapapi/network.py")).result
    assert (told["owner"], told["first"], told["second"]) == ("192.168.7.1", "192.168.7.2", "192.168.7.77")
    assert told["same"]
    assert told["args"]["nodeIp"] == "192.168.7.77"
    assert told["uri"].startswith("ws://")
    assert await books.get("/net-api/v1/net") == []
    assert await books.settled() == []


async def test_a_service_is_taken_up_by_a_second_process(clients: Clients, books: Books) -> None:
    left = (await clients.run_python("yapapi", "yapapi/detach.py", "leave")).result
    assert left["answer"] == "written\n"
    (agreement,) = await books.agreements()
    assert agreement["state"] == "Approved"
    joined = (await clients.run_python("yapapi", "yapapi/detach.py", "join")).result
    assert joined == {"answer": "kept\n", "activity": left["activity"]}
    (deal,) = await books.settled()
    assert deal.invoice["activityIds"] == [left["activity"]]


async def test_an_image_from_the_programs_own_disk(clients: Clients, books: Books, registry: Registry) -> None:
    registry.asked.clear()
    told = (await clients.run_python("yapapi", "yapapi/own_image.py")).result
    assert told == {"results": ["root:x:0:0:root:/:/bin/sh\n"], "scheme": "gftp"}
    assert registry.asked == []
    assert len(await books.settled()) == 1


async def test_progress_of_deploys_and_transfers(clients: Clients, books: Books) -> None:
    told = (await clients.run_python("yapapi", "yapapi/progress.py")).result
    assert set(told) == {"Deploy", "SendFile", "DownloadFileFromInternet", "DownloadFile"}
    for kind in ("SendFile", "DownloadFile"):
        assert told[kind][-1] == [5_000_000, 5_000_000], told[kind]
        assert told[kind] == sorted(told[kind])
    assert len(await books.settled()) == 1


async def test_the_package_says_its_version(clients: Clients) -> None:
    code = "import json, yapapi; print(json.dumps(yapapi.__version__))"
    ran = await clients.run_python("yapapi", "-c", code)
    assert json.loads(ran.out.splitlines()[-1]) == "0.13.1"
