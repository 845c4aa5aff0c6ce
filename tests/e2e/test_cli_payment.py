"""``shem payment`` against a network: money into the vault and out of it, and what is told of it."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from decimal import Decimal
from pathlib import Path

import pytest

from shem.client.http import ApiClient
from shem.client.payment import PaymentApi
from shem.testing.devnet import Devnet
from tests.e2e.conftest import until
from tests.e2e.test_cli import HASH, here, last_json, shem, start

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]

PLATFORM = "channel-devnet-tglm"
STRANGER = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
WRONG = "0x5AAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"


async def vault(net: Devnet) -> dict[str, str]:
    told = last_json(await here(net, "payment", "status", "--json"))
    found: dict[str, str] = next(one["vault"] for one in told["platforms"] if one["platform"] == PLATFORM)
    return found


async def test_money_goes_into_the_vault_and_out_of_it(net: Devnet) -> None:
    before = Decimal((await vault(net))["free"])
    done = await shem(net, "payment", "deposit", "3.000000000000000001")
    assert done.status == 0, done
    (tx_hash,) = HASH.findall(done.out)
    assert done.out.startswith("deposit of 3.000000000000000001 on channel-devnet-tglm is done: ")
    assert "the deposit is asked for" in done.err
    assert "Traceback" not in done.err
    receipt = await net.rpc("eth_getTransactionReceipt", tx_hash)
    assert f"in block {int(receipt['blockNumber'], 16)}\n" in done.out
    assert Decimal((await vault(net))["free"]) == before + Decimal("3.000000000000000001")

    owner = ("--data-dir", str(net.requestor.data_dir), "--json")
    away = last_json(await here(net, "payment", "withdraw", "0.125", "--to", STRANGER, *owner))
    assert (away["state"], away["amount"]) == ("final", "0.125")
    asked = last_json(await here(net, "payment", "withdraw", "1", "--no-wait", "--json"))
    assert set(asked) == {"id", "platform"}
    plain = await here(net, "payment", "deposit", "0.5", "--no-wait")
    (hint,) = re.findall(r"; see shem (payment history \S+)\n", plain.out)
    one = await here(net, *hint.split())
    assert (one.status, one.err) == (0, "")
    assert re.search(r"  deposit +0\.5\n    channel-devnet-tglm", one.out)
    back = last_json(await here(net, "payment", "withdraw", "0.5", "--json"))
    assert (back["kind"], back["state"], back["amount"]) == ("withdraw", "final", "0.5")
    assert HASH.fullmatch(back["txHash"])

    told = last_json(await here(net, "payment", "history", "--json", "--limit", "4"))["transactions"]
    moved = [(one["kind"], one["amount"], one["receiver"]) for one in told if one["kind"] == "withdraw"]
    assert moved[:2] == [("withdraw", "0.5", net.requestor.node_id), ("withdraw", "1", net.requestor.node_id)]
    plain = await here(net, "payment", "history", "--limit", "1")
    assert plain.status == 0
    assert back["txHash"] in plain.out
    assert f"gas {back['gasUsed']}" in plain.out
    told = last_json(await here(net, "payment", "history", asked["id"], "--json"))
    assert (told["id"], told["kind"], told["amount"]) == (asked["id"], "withdraw", "1")
    nothing = await here(net, "payment", "history", "nothing")
    assert (nothing.status, nothing.out) == (2, "")
    assert "code: transaction_not_found" in nothing.err
    later = last_json(await here(net, "payment", "history", "--json", "--after", "2990-01-01"))
    assert later == {"transactions": [], "received": []}


async def test_what_is_refused_says_why_and_ends_with_its_number(net: Devnet) -> None:
    for argv, status, code in (
        (("deposit", "100000"), 4, "money_too_much"),
        (("withdraw", "100000"), 4, "money_too_much"),
        (("deposit", "1.0000000000000000001"), 2, "bad_amount"),
        (("deposit", "one"), 2, "bad_amount"),
        (("deposit", "5 GLM"), 2, "bad_amount"),
        (("withdraw", "ALL"), 2, "bad_amount"),
        (("deposit", "1", "--network", "mainnet"), 2, "bad_payment_platform"),
        (("withdraw", "1", "--to", STRANGER), 2, "not_the_owner"),
        (("exit", "--to", STRANGER), 2, "not_the_owner"),
        (("withdraw", "1", "--to", STRANGER[:-1]), 2, "bad_receiver"),
        (("exit", "--to", "provider.eth"), 2, "bad_receiver"),
        (("withdraw", "1", "--data-dir", str(net.requestor.data_dir), "--to", WRONG), 2, "bad_receiver"),
    ):
        done = await here(net, "payment", *argv)
        assert (done.status, done.out) == (status, ""), (argv, done)
        assert f"code: {code}" in done.err
        assert ("--data-dir" in done.err) == (code == "not_the_owner")
        assert ("or 'all'" in done.err) == (code in ("bad_amount", "money_too_much"))


async def test_who_stops_waiting_stops_nothing(net: Devnet) -> None:
    late = await shem(net, "payment", "deposit", "0.25", "--timeout", "0")
    assert late.status == 3
    assert "the deposit is asked for, and is not done yet" in late.err
    assert "the node goes on with it; see shem payment history " in late.err
    assert "code: timeout" in late.err
    told = await shem(net, "payment", "deposit", "0.03125", "--timeout", "0", "--json")
    assert told.status == 3
    (name,) = json.loads(told.out).values()  # one line: a program that waits no longer can still look for it
    async with ApiClient(net.requestor.api_url, net.requestor.app_key) as http:
        assert (await PaymentApi(http).transaction(name)).amount == "0.03125"
    running = await start(net, "payment", "deposit", "0.125")
    assert running.stderr is not None
    assert b"deposit" in await running.stderr.readline()
    running.send_signal(signal.SIGINT)
    await running.communicate()
    assert running.returncode in (0, 130)  # it may have been done by then
    last = last_json(await here(net, "payment", "deposit", "0.0625", "--json"))
    assert last["state"] == "final"
    told = last_json(await here(net, "payment", "history", "--json", "--limit", "5"))["transactions"]
    amounts = [one["amount"] for one in told if one["kind"] == "deposit" and one["state"] == "final"]
    assert amounts[:4] == ["0.0625", "0.125", "0.03125", "0.25"]


@pytest.mark.slow
async def test_a_node_killed_meanwhile_does_what_it_was_asked_once(net: Devnet) -> None:
    """The command waits for the node as the node waits for the chain."""
    before = Decimal((await vault(net))["free"])
    running = await start(net, "payment", "deposit", "1.5", "--json")
    node = net.requestor.node
    assert node is not None

    async def asked() -> bool:
        told = last_json(await here(net, "payment", "history", "--json", "--limit", "1"))["transactions"]
        return bool(told) and told[0]["amount"] == "1.5"

    await until(asked)
    node.kill()
    await node.wait()
    await net.start_node(net.requestor)
    out, err = await asyncio.wait_for(running.communicate(), 90)
    assert running.returncode == 0, err
    assert json.loads(out)["state"] == "final"
    assert Decimal((await vault(net))["free"]) == before + Decimal("1.5")


async def test_a_job_leaves_a_channel_in_the_list_and_an_exit_takes_everything_out(net: Devnet, image: Path) -> None:
    report = last_json(await here(net, "run", str(image), "--platform", PLATFORM, "--json", "--", "true"))
    paid = Decimal(report["paid"])
    found = last_json(await here(net, "payment", "channels", "--all", "--json"))
    assert found[-1]["platform"] == PLATFORM
    assert sum(Decimal(one["signed"]) for one in found) >= paid > 0
    plain = await here(net, "payment", "channels", "--all")
    assert found[-1]["channelId"] in plain.out
    assert found[-1]["peer"] in plain.out

    earner = next(p for p in net.providers if p.node_id == found[-1]["peer"])
    where = {"url": earner.api_url, "key": earner.app_key}

    async def earned() -> bool:
        told = last_json(await here(net, "payment", "history", "--json", **where))["received"]
        return bool(told) and told[0]["payer"] == net.requestor.node_id

    await until(earned)  # by its own look at the chain
    (received, *_) = last_json(await here(net, "payment", "history", "--json", **where))["received"]
    assert received["role"] == "Provider"
    plain = await here(net, "payment", "history", **where)
    assert f"from {net.requestor.node_id} for " in plain.out
    assert received["txHash"] in plain.out

    assert (await here(net, "payment", "deposit", "2", "--json")).status == 0
    done = last_json(await here(net, "payment", "exit", "--force", "--json"))
    assert (done["state"], done["locked"], done["detail"]) == ("done", [], "")
    assert Decimal(done["withdrawn"]) >= 2
    assert last_json(await here(net, "payment", "history", done["id"], "--json")) == done
    plain = await here(net, "payment", "history", done["id"])
    assert plain.out.startswith(f"{done['withdrawn']} were taken out of the vault of {PLATFORM} to ")
    left = await vault(net)
    assert (left["free"], left["reserved"]) == ("0", "0")
    again = await here(net, "payment", "exit")
    assert again.status == 2
    assert "code: nothing_there" in again.err
