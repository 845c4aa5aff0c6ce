"""golem-js, unmodified: its programs get machines, results and bills as its documentation promises."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from shem.testing.devnet import Devnet
from shem.testing.small_image import make_small_gvmi
from tests.interop.registry import Image, Registry
from tests.interop.support import Books, Clients, until

pytestmark = [pytest.mark.interop, pytest.mark.asyncio(loop_scope="session")]

PLATFORM = "erc20-holesky-tglm"


def _ok(row: dict[str, Any], stdout: str | None) -> bool:
    return (row["result"], row["stdout"]) == ("Ok", stdout)


async def test_hello_world(clients: Clients, books: Books, registry: Registry) -> None:
    ran = await clients.run_node("golem_js/hello.mjs")
    assert ran.result["stdout"] == "Hello, Golem! 👋\n"
    assert ran.result["direct"] == "one two words $HOME\n"
    assert ran.result["state"] == "Terminated"
    assert ran.result["after"] == "GolemAbortError"
    assert any("tag=golem/alpine:latest" in asked for asked in registry.asked), registry.asked
    (deal,) = await books.settled()
    provider = ran.result["provider"]
    assert (provider["id"], provider["name"]) == (
        deal.provider_id,
        deal.agreement["offer"]["properties"]["golem.node.id.name"],
    )
    assert provider["walletAddress"] == deal.invoice["payeeAddr"]
    assert deal.invoice["paymentPlatform"] == PLATFORM
    assert 0 < deal.amount < Decimal("0.5")


async def test_disconnecting_ends_what_is_rented_and_waits_for_the_bill(clients: Clients, books: Books) -> None:
    ran = await clients.run_node("golem_js/disconnecting.mjs")
    assert ran.result == {"stdout": "still billed\n", "accepted": ["ACCEPTED"]}
    assert len(await books.settled()) == 1


async def test_many_tasks_on_several_providers(clients: Clients, books: Books, net: Devnet) -> None:
    ran = await clients.run_node("golem_js/pool.mjs")
    assert ran.result["size"] == 3
    assert [(row["number"], row["square"]) for row in ran.result["done"]] == [(n, n * n) for n in range(12)]
    assert {row["provider"] for row in ran.result["done"]} == {provider.name for provider in net.providers}
    deals = await books.settled()
    assert len({deal.provider_id for deal in deals}) == len(deals) == 3


async def test_commands_that_fail_are_results(clients: Clients, books: Books) -> None:
    told = (await clients.run_node("golem_js/failing.mjs")).result
    code = told["code"]
    assert (code["result"], code["stdout"], code["stderr"], code["isBatchFinished"]) == (
        "Error",
        "out\n",
        "err\n",
        True,
    )
    assert "7" in code["message"]
    assert told["missing"]["result"] == "Error"
    assert "/no/such/program" in told["missing"]["message"]
    for name in ("upload", "download", "nonsense"):
        assert told[name]["result"] == "Error", (name, told[name])
        assert told[name]["message"]
    assert told["still"] == "still here\n"
    assert told["malformed"]["name"] == "GolemWorkError"
    assert len(await books.settled()) == 1


async def test_a_service_with_several_batches(clients: Clients, books: Books) -> None:
    told = (await clients.run_node("golem_js/batches.mjs")).result
    assert told["marks"] == ["10\n", "12\n"]
    assert [row["stdout"] for row in told["first"][1:]] == ["11\n", "11\n"]
    assert [row["index"] for row in told["first"]] == [0, 1, 2]
    assert [row["isBatchFinished"] for row in told["first"]] == [False, False, True]
    assert _ok(told["second"][1], '{"from":"a batch"}')
    assert [row["stdout"] for row in told["streamed"]] == ["a\n", "b\n", "c\n"]
    assert "3" in str(told["broken"])
    assert "never" not in str(told["broken"])
    assert _ok(told["last"][1], "12\n")
    assert len(await books.settled()) == 1


async def test_output_comes_as_it_is_made_whole_and_in_order(clients: Clients, books: Books) -> None:
    told = (await clients.run_node("golem_js/streaming.mjs")).result
    assert told["slow"] == "line 1\nline 2\nline 3\n"
    assert told["spread"] > 300, "it all came at the end"
    assert told["errors"] == "oops\n"
    assert told["fast"] == "at once\n"
    assert told["silent"] == ["", "Ok", True]
    assert told["failed"][:2] == ["dying\n", "Error"]
    assert told["whole"], told["length"]
    assert len(await books.settled()) == 1


@pytest.mark.parametrize("way", ["ws", "gftp"])
async def test_files_and_data_travel_both_ways(clients: Clients, books: Books, tmp_path: Path, way: str) -> None:
    told = (await clients.run_node("golem_js/files.mjs", way, str(tmp_path))).result
    for name in ("empty", "small", "odd", "large"):
        assert {**told[name], "ms": 0} == {"results": ["Ok", "Ok"], "there": True, "back": True, "ms": 0}, (
            name,
            told[name],
        )
    assert told["data"]["result"] == "Ok"
    assert told["data"]["there"]
    json = {"list": [1, 2.5, "three"], "nested": {"null": None, "ключ": "значение"}}
    assert told["json"]["there"] == json
    if way == "ws":
        assert told["data"]["back"]
        assert told["json"]["back"] == json
        assert told["atOnce"] == [["Ok", "Ok", "Ok"], "123"]
    assert len(await books.settled()) == 1


async def test_events_tell_what_happens(clients: Clients, books: Books) -> None:
    told = (await clients.run_node("golem_js/events.mjs")).result
    seen: list[str] = told["seen"]
    assert [name for name in seen if name.startswith("error") or name == "rental.error"] == []
    for name in ("allocationCreated", "demandSubscriptionStarted", "agreementApproved", "resourceRentalCreated",
                 "demandSubscriptionStopped", "activityCreated", "exeUnitInitialized", "rental.exeUnitCreated",
                 "activityDestroyed", "agreementTerminated", "invoiceReceived", "invoiceAccepted", "rental.finalized",
                 "allocationReleased", "disconnected"):  # fmt: skip
        assert seen.count(name) == 1, (name, seen)
    for name in ("offerProposalReceived", "offerCounterProposalSent", "scriptSent", "scriptExecuted", "batchResultsReceived",
                 "activityStateChanged"):  # fmt: skip
        assert name in seen, seen
    order = [
        "agreementApproved",
        "exeUnitInitialized",
        "agreementTerminated",
        "invoiceReceived",
        "invoiceAccepted",
        "disconnected",
    ]
    assert [name for name in seen if name in order] == order
    assert told["details"]["terminated"] == {"reason": "Finished", "by": "Requestor", "state": "Terminated"}
    (deal,) = await books.settled()
    invoice = told["details"]["invoice"]
    assert (invoice["status"], Decimal(invoice["amount"])) == ("RECEIVED", deal.amount)


async def test_one_allocation_pays_two_rentals(clients: Clients, books: Books) -> None:
    told = (await clients.run_node("golem_js/allocation.mjs")).result
    assert told["outputs"] == ["paid from the same purse\n"] * 2
    deals = await books.settled()
    paid = sum((deal.amount for deal in deals), Decimal(0))
    assert len(deals) == len(told["amounts"]) == 2
    assert (Decimal(told["total"]), Decimal(told["spent"]), Decimal(told["left"])) == (1, paid, 1 - paid)
    assert told["platform"] == PLATFORM
    assert told["gone"]


async def test_filters_decide_about_payments(clients: Clients, books: Books) -> None:
    told = (await clients.run_node("golem_js/filters.mjs", "accept")).result
    assert len(told["notes"]) >= 2
    assert all(note[1:] == [True, "string"] for note in told["notes"])
    amounts = [note[0] for note in told["notes"]]
    assert amounts == sorted(amounts)
    assert [row[1] for row in told["invoices"]] == [True]
    assert told["refused"] == []
    assert told["accepted"].count("invoice") == 1
    assert told["accepted"].count("note") >= 2
    (deal,) = await books.settled()
    assert deal.amount >= Decimal(str(amounts[-1]))


async def test_a_filter_refuses_an_invoice(clients: Clients, books: Books) -> None:
    told = (await clients.run_node("golem_js/filters.mjs", "refuse")).result
    assert told["refused"] == ["invoice"]
    assert "invoice" not in told["accepted"]
    assert len(await books.settled(status="REJECTED")) == 1


async def test_patience_may_end_anywhere(clients: Clients, books: Books) -> None:
    told = (await clients.run_node("golem_js/aborting.mjs")).result
    assert told["nobody"]["name"] == "GolemTimeoutError"
    assert told["before"] is not None
    assert told["late"]["name"] == "GolemAbortError"
    assert 900 < told["waited"] < 20_000
    assert told["running"] is not None
    assert told["starting"] is not None
    assert len(await books.settled()) == 2


async def test_ctrl_c_gives_everything_back(clients: Clients, books: Books) -> None:
    program = await clients.start_node("golem_js/interrupted.mjs")
    await program.line("working")
    program.interrupt()
    ran = await program.finish()
    assert ran.result == {"ended": "in order"}
    assert len(await books.settled()) == 1


async def test_a_killed_program_is_billed_all_the_same(clients: Clients, books: Books) -> None:
    """Nobody accepts the bill any more; it comes when the provider sees the agreement ended."""
    program = await clients.start_node("golem_js/interrupted.mjs")
    await program.line("working")
    program.kill()
    await program.finish(expect=None)
    (agreement,) = [a for a in await books.agreements() if a["state"] == "Approved"]
    await books.call(
        "POST", f"/market-api/v1/agreements/{agreement['agreementId']}/terminate", json={"message": "gone"}
    )
    (invoice,) = await until(books.invoices, "the bill of a program that is gone")
    assert invoice["status"] == "RECEIVED"
    (allocation,) = [a for a in await books.get("/payment-api/v1/allocations") if a["timestamp"] > books.since]
    accepted = {"totalAmountAccepted": invoice["amount"], "allocationId": allocation["allocationId"]}
    await books.call("POST", f"/payment-api/v1/invoices/{invoice['invoiceId']}/accept", json=accepted)
    await books.call("DELETE", f"/payment-api/v1/allocations/{allocation['allocationId']}")
    assert len(await books.settled()) == 1


async def test_several_activities_in_one_agreement(clients: Clients, books: Books) -> None:
    told = (await clients.run_node("golem_js/activities.mjs")).result
    activities, agreements, outputs = zip(*told["seen"], strict=True)
    assert len(set(activities)) == 3
    assert len(set(agreements)) == 1
    assert set(outputs) <= {"", None}, "one activity saw the files of another"
    (deal,) = await books.settled()
    assert set(deal.invoice["activityIds"]) == set(activities)


async def test_a_second_process_takes_up_an_activity(clients: Clients, books: Books) -> None:
    first = await clients.start_node("golem_js/keeping.mjs")
    _, activity, demand = (await first.line("activity ")).split()
    told = (await clients.run_node("golem_js/attaching.mjs", activity, demand)).result
    assert (told["stdout"], told["state"], told["unknown"]) == ("from the first\n", "Ready", "not found")
    first.interrupt()
    ran = await first.finish()
    assert ran.result["stdout"] == "from the first\nfrom the second\n"
    (deal,) = await books.settled()
    assert told["provider"] == deal.provider_id


async def test_offers_can_be_looked_at(clients: Clients, books: Books, net: Devnet) -> None:
    told = (await clients.run_node("golem_js/scanning.mjs", str(len(net.providers)))).result
    assert {offer["provider"]["id"] for offer in told["offers"]} == {provider.node_id for provider in net.providers}
    for offer in told["offers"]:
        assert offer["runtime"][0] == "vm"
        assert "start-entrypoint" in offer["runtime"][2]
        assert offer["pricing"]["start"] == pytest.approx(0.0001)
        assert offer["pricing"]["envSec"] == pytest.approx(0.6 / 3600)
        assert offer["memory"] > 0
        assert offer["threads"] >= 1
        assert {"gftp", "http", "https"} <= set(offer["transfer"])
        assert offer["platforms"][PLATFORM].startswith("0x")
    assert told["none"] == 0
    assert await books.settled() == []


async def test_an_image_from_the_clients_own_disk(clients: Clients, books: Books, tmp_path: Path) -> None:
    path = tmp_path / "own.gvmi"
    make_small_gvmi(path, volumes=("/golem/work",), config={"Env": ["PATH=/bin", "MARK=of this disk"]})
    told = (await clients.run_node("golem_js/own_image.mjs", str(path))).result
    assert told["stdout"] == "of this disk\n"
    assert len(await books.settled()) == 1


async def test_progress_is_told(clients: Clients, books: Books, tmp_path: Path) -> None:
    size = 32 << 20
    source, back = tmp_path / "source", tmp_path / "back"
    await asyncio.to_thread(source.write_bytes, bytes(range(256)) * (size // 256))
    told = (await clients.run_node("golem_js/progress.mjs", str(source), str(back))).result
    kinds = [(event["index"], next(iter(event["kind"]))) for event in told["transfer"]]
    assert kinds[0] == (0, "started")
    assert kinds[-1] == (1, "finished")
    for index in (0, 1):
        steps = [e["kind"]["progress"] for e in told["transfer"] if e["index"] == index and "progress" in e["kind"]]
        assert len(steps) >= 2, kinds
        counted = [step["progress"][0] for step in steps]
        assert counted == sorted(counted)
        assert counted[-1] == size
        assert {step["progress"][1] for step in steps} <= {size, None}
        assert {step["unit"] for step in steps} == {"Bytes"}
    assert any("progress" in event["kind"] for event in told["deploy"]), told["deploy"]
    assert [e["kind"]["finished"]["return_code"] for e in told["deploy"] if "finished" in e["kind"]] == [0, 0]
    assert await asyncio.to_thread(lambda: source.read_bytes() == back.read_bytes())
    assert len(await books.settled()) == 1


async def test_volumes_variables_and_what_is_kept(clients: Clients, books: Books) -> None:
    told = (await clients.run_node("golem_js/places.mjs")).result
    assert told["written"] == "kept\n/data/other\n/golem/work\n"
    assert told["sent"] == ["Ok", "sent"]
    assert (told["head"], told["tail"]) == ("012", "789")
    assert told["binary"] == [1, 255]
    assert told["raw"] == [1, 255]
    assert told["env"] == "[]\n", "the client sends variables that its protocol has no place for"
    assert len(await books.settled()) == 1


async def test_the_images_own_program(clients: Clients, books: Books, registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "entry.gvmi"
    config = {
        "Env": ["PATH=/bin", "MOOD=fine"],
        "WorkingDir": "/golem/work",
        "User": "1000:1000",
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["echo began $MOOD > /golem/work/began; exec sleep 1000"],
    }
    own = Image(path, make_small_gvmi(path, volumes=("/golem/work",), config=config), "own/entry:1")
    registry.images.append(own)
    told = (await clients.run_node("golem_js/entrypoint.mjs", registry.image_url(own), own.sha3)).result
    assert [row["result"] for row in told["started"]] == ["Ok", "Ok"]
    assert told["found"] == ["began fine\n", "fine the deployment\n/golem/work\n1000\n"]
    assert len(await books.settled()) == 1


async def test_a_networks_address_book(clients: Clients, books: Books, net: Devnet) -> None:
    me = net.requestor.node_id
    members = [provider.node_id for provider in net.providers[:2]]
    program = await clients.start_node("golem_js/network.mjs", *members)
    network = (await program.line("filled ")).split()[1]
    nodes = await books.get(f"/net-api/v1/net/{network}/nodes")
    program.interrupt()
    told = (await program.finish()).result
    book = {
        "192.168.7.1": me,
        "192.168.7.2": members[0],
        "192.168.7.3": members[1],
        "192.168.7.77": "0x" + "ab" * 20,
    }
    assert (told["made"]["nodes"], told["made"]["mask"]) == ({"192.168.7.1": me}, "255.255.255.0")
    assert told["filled"]["nodes"] == book
    assert {node["ip"]: node["id"] for node in nodes} == book
    assert told["uri"].endswith(f"/net/{network}/tcp/192.168.7.77/80")
    assert (told["twice"]["name"], told["after"]["name"]) == ("GolemNetworkError", "GolemNetworkError")
    assert told["emptied"]["nodes"] == {"192.168.7.1": me}
    assert told["removed"]
    assert await books.get("/net-api/v1/net") == []
    assert await books.settled() == []
