"""The command line against a whole network, as its user sees it: exit status, both streams, files, JSON, 80 columns."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from shem.client.http import ApiClient
from shem.node.identity import keystore
from shem.node.identity.keys import Identity
from shem.testing.devnet import Devnet, DevNode
from tests.e2e.conftest import Registry, until
from tests.e2e.test_cli_alone import SHEM, Done, inside

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]

HASH = re.compile(r"0x[0-9a-f]{64}")
ADDRESS = re.compile(r"0x[0-9a-f]{40}")
AMOUNT = re.compile(r"(0|[1-9][0-9]*)(\.[0-9]{0,17}[1-9])?")


async def start(net: Devnet, *argv: str, **env: str) -> asyncio.subprocess.Process:
    """A command with the requestor's variables, on a terminal of 80 columns that is none."""
    return await asyncio.create_subprocess_exec(
        *SHEM,
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **net.env, "COLUMNS": "80", **env},
    )


async def shem(net: Devnet, *argv: str, within_s: float = 90.0, **env: str) -> Done:
    """A command, to its end."""
    process = await start(net, *argv, **env)
    try:
        async with asyncio.timeout(within_s):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    return Done(process.returncode, out.decode(), err.decode())


async def here(net: Devnet, *argv: str, url: str = "", key: str = "") -> Done:
    """A command in this process, which saves the start of an interpreter."""
    where = ["--api-url", url or net.requestor.api_url, "--app-key", key or net.requestor.app_key]
    words = 1 if argv[0] == "run" else 2
    return await asyncio.to_thread(inside, *argv[:words], *where, *argv[words:])


def last_json(done: Done) -> Any:
    """Its one line of JSON: the last of stdout."""
    return json.loads(done.out.splitlines()[-1])


async def approved(net: Devnet) -> list[str]:
    """Agreements of the requestor that bind it now."""
    async with ApiClient(net.requestor.api_url, net.requestor.app_key) as http:
        found = await http.call("GET", "/market-api/v1/agreements", params={"state": "Approved"})
        return [one["id"] for one in found]


# --- run --------------------------------------------------------------------------------------------------------------


async def test_run_brings_files_and_directories_there_and_back(net: Devnet, image: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "b.bin").write_bytes(bytes(range(256)) * 500)
    (tree / "a name with spaces").write_text("a\n")
    (tmp_path / "one.txt").write_text("one\n")
    done = await shem(
        net,
        "run",
        str(image),
        *("--input", str(tree)),
        *("--input", f"{tmp_path}/one.txt:renamed/two.txt"),
        *("--output", f"copy/:{tmp_path}/back"),
        *("--output", f"two.txt:{tmp_path}/new/three.txt"),
        "--",
        "sh",
        "-c",
        "cp -r tree copy; cp renamed/two.txt two.txt; echo to stdout; echo to stderr >&2; pwd",
    )
    assert done.status == 0, done
    assert done.out == "to stdout\n/work\n"
    assert done.err.startswith("to stderr\n")
    assert (tmp_path / "back" / "deep" / "b.bin").read_bytes() == (tree / "deep" / "b.bin").read_bytes()
    assert (tmp_path / "back" / "a name with spaces").read_text() == "a\n"
    assert (tmp_path / "new" / "three.txt").read_text() == "one\n"
    # the bill: exact sums and whole hashes, on 80 columns, on stderr
    assert "…" not in done.err
    assert "tGLM" in done.err
    opened, closed = HASH.findall(done.err)
    receipts = [await net.rpc("eth_getTransactionReceipt", tx_hash) for tx_hash in (opened, closed)]
    assert [receipt["status"] for receipt in receipts] == ["0x1", "0x1"]
    assert f"block {int(receipts[1]['blockNumber'], 16)}: " in done.err
    assert max(len(line) for line in done.err.splitlines() if not HASH.search(line)) <= 80


async def test_an_exit_status_passes_through_and_the_report_is_one_line(net: Devnet, image: Path) -> None:
    script = "echo out; echo why >&2; exit 7"
    done = await shem(net, "run", str(image), "--json", "--", "sh", "-c", script)
    assert done.status == 7, done
    assert done.out.splitlines()[0] == "out"
    assert len(done.out.splitlines()) == 2
    assert done.err == "why\n"
    told = last_json(done)
    assert told["exit_code"] == 7
    assert "code 7" in told["message"]
    assert (told["tasks"], told["failed"], told["settled"]) == (0, 1, True)
    assert AMOUNT.fullmatch(told["cost"])
    assert told["cost"] == told["paid"] != "0"
    (provider,) = told["by_provider"]
    assert provider["provider_id"] in [p.node_id for p in net.providers]
    (payment,) = provider["payments"]
    assert HASH.fullmatch(payment["tx_hash"])
    assert payment["amount"] == told["paid"]
    receipt = await net.rpc("eth_getTransactionReceipt", payment["tx_hash"])
    assert int(receipt["blockNumber"], 16) == payment["block"]


BAD: dict[str, tuple[list[str], int, str]] = {
    "not an image name": (["Not An Image!"], 2, "bad_image"),
    "no such path": (["./nothing/here"], 2, "bad_image"),
    "a short name, and nobody says where it comes from": (["python:3.12"], 2, "no_default_registry"),
    "an image that is not there": (["{registry}/nobody/nothing:1"], 2, "image_not_found"),
    "no such input": (["{image}", "--input", "/does/not/exist"], 2, "input_missing"),
    "no such output": (["{image}", "--output", "nothing"], 5, "path_not_found"),
    "a budget that is no amount": (["{image}", "--budget", "lots"], 2, "bad_amount"),
    "a budget that buys nothing": (["{image}", "--budget", "0.000001"], 4, "money_budget"),
    "a budget that nobody has": (["{image}", "--budget", "1000000"], 4, "money_short_funds"),
    "no such platform": (["{image}", "--platform", "erc20-nowhere-x"], 2, "no_platform"),
    "a wrong app key": (["{image}", "--app-key", "0" * 32], 2, "not_authenticated"),
    "an address that is none": (["{image}", "--api-url", "my node"], 6, "bad_api_url"),
    "a node that is away": (["{image}", "--api-url", "http://127.0.0.1:9"], 3, "node_unreachable"),
}


@pytest.mark.parametrize("case", BAD)
async def test_what_goes_wrong_is_said_in_a_sentence_with_a_code(
    net: Devnet, image: Path, registry: Registry, case: str
) -> None:
    argv, status, code = BAD[case]
    filled = [word.format(image=image, registry=registry.host) for word in argv]
    done = await asyncio.wait_for(here(net, "run", *filled, "--", "true"), 30)
    assert done.status == status, done
    lines = done.err.splitlines()
    assert lines[0].startswith("error: "), done
    assert lines[-1] == f"  code: {code}", done
    assert done.out == ""


async def test_without_an_app_key_it_says_how_to_get_one(net: Devnet, image: Path, tmp_path: Path) -> None:
    # a node of the user's own would have left one in its data directory
    done = await shem(net, "run", str(image), "--", "true", YAGNA_APPKEY="", SHEM_DATA_DIR=str(tmp_path))
    assert (done.status, done.out) == (6, ""), done
    assert "YAGNA_APPKEY" in done.err
    assert done.err.splitlines()[-1] == "  code: no_app_key"


async def test_a_failure_is_reported_in_json_as_well(net: Devnet, image: Path) -> None:
    done = await here(net, "run", str(image), "--json", "--", "no-such-command")
    assert done.status == 5, done
    told = last_json(done)
    assert told["exit_code"] is None
    assert told["error"]["code"] == "command_not_found"
    assert "no-such-command" in told["error"]["message"]
    assert told["settled"] is True
    assert told["cost"] == told["paid"] != "0"


async def test_ctrl_c_gives_the_machine_back_and_pays_for_it(net: Devnet, image: Path) -> None:
    running = await start(net, "run", str(image), "--", "sh", "-c", "echo begun; sleep 60")
    assert running.stdout is not None
    assert await asyncio.wait_for(running.stdout.readline(), 60) == b"begun\n"
    running.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(running.communicate(), 60)
    assert running.returncode == 130
    assert b"Traceback" not in err
    assert await approved(net) == []
    told = last_json(await here(net, "payment", "status", "--json"))["platforms"]
    assert all(one["outgoing"]["accepted"] == one["outgoing"]["confirmed"] for one in told)
    assert any(one["paid"] != "0" for one in told)


async def test_a_reader_that_goes_away_ends_the_job_quietly(net: Devnet, image: Path) -> None:
    """As in ``shem run … | head -1``: what nobody reads is not paid for."""
    running = await start(net, "run", str(image), "--", "yes")
    assert running.stdout is not None
    assert await asyncio.wait_for(running.stdout.readline(), 60) == b"y\n"
    running._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
    assert running.stderr is not None
    err = await asyncio.wait_for(running.stderr.read(), 60)
    assert await running.wait() == 141
    assert err == b""
    assert await approved(net) == []


# --- market -----------------------------------------------------------------------------------------------------------


async def test_scan_lists_every_offer_with_its_price_in_80_columns(net: Devnet) -> None:
    done = await shem(net, "market", "scan")
    assert done.status == 0, done
    offers = last_json(await here(net, "market", "scan", "--json"))
    assert done.out.startswith(f"{len(offers)} offers")
    assert max(len(line.rstrip()) for line in done.out.splitlines()) <= 80
    assert "…" not in done.out
    for provider in net.providers:
        lines = [one for one in done.out.splitlines() if provider.name in one]
        assert len(lines) == sum(offer["providerId"] == provider.node_id for offer in offers) > 0
        for line in lines:
            assert provider.node_id[:10] in line
            assert line.split()[-3:] == ["0.0001", "0.6", "1.2"]


async def test_scan_for_programs_and_with_constraints(net: Devnet) -> None:
    found = last_json(await here(net, "market", "scan", "(golem.runtime.name=oci)", "--json"))
    assert sorted(offer["providerId"] for offer in found) == sorted(p.node_id for p in net.providers)
    for offer in found:
        assert offer["properties"]["golem.runtime.name"] == "oci"
        assert offer["offerId"]
        assert offer["constraints"]
    few = await here(net, "market", "scan", "(&(golem.node.id.name=provider-2)(golem.runtime.name=oci))", "--json")
    assert [offer["properties"]["golem.node.id.name"] for offer in last_json(few)] == ["provider-2"]
    none = await here(net, "market", "scan", "(golem.inf.mem.gib>=100000)")
    assert (none.status, none.out.splitlines()[0].strip()) == (0, "0 offers")


@pytest.mark.parametrize("constraint", ["(golem.inf.mem.gib>=1", "mem > 4", "(&(a=1)", ")"])
async def test_a_bad_constraint_is_refused_with_its_place(net: Devnet, constraint: str) -> None:
    done = await here(net, "market", "scan", constraint)
    assert done.status == 2, done
    assert re.match(r"error: bad constraint at character \d+: ", done.err), done
    assert done.err.splitlines()[-1] == "  code: bad_constraint"
    assert done.out == ""


async def test_strangers_cannot_draw_on_the_terminal(net: Devnet) -> None:
    """Offers come from anybody: their words are shown, and never obeyed."""
    names = [
        "[/red]",
        "[bold",
        "\x1b[2J\x1b]0;owned\x07",
        "a\r\nprovider-9  forged",
        "\u202egnp.exe",
        "n" * 500,
        7,
        None,
    ]
    evil = net.providers[0]
    async with ApiClient(evil.api_url, evil.app_key) as http:
        offers = []
        for name in names:
            properties = {"golem.node.id.name": name, "golem.inf.mem.gib": "much", "golem.runtime.name": ["x"]}
            body = {"properties": properties, "constraints": "(never=1)"}
            offers.append(await http.call("POST", "/market-api/v1/offers", json=body))
        try:
            done = Done(-1, "", "")

            async def all_there() -> bool:
                nonlocal done
                done = await here(net, "market", "scan", "(golem.inf.mem.gib=much)")
                return done.out.startswith(f"{len(names)} offers")

            await until(all_there)
        finally:
            for offer in offers:
                await http.call("DELETE", f"/market-api/v1/offers/{offer}")
    assert (done.status, done.err) == (0, "")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", done.out), done
    assert "[/red]" in done.out
    assert not [line for line in done.out.splitlines() if line.startswith("provider-9")]


# --- payment and identity ---------------------------------------------------------------------------------------------


async def _token_units(net: Devnet, owner: str) -> int:
    data = "0x70a08231" + owner.removeprefix("0x").rjust(64, "0")
    return int(await net.rpc("eth_call", {"to": net.token, "data": data}, "latest"), 16)


async def _at_rest(net: Devnet) -> Any:
    """The status when nothing is under way: what an earlier test has accepted may still be on its way to the chain. What it has
    left in a channel stays there for long, and so does a bill of a provider that was dead while its program ran: nobody is there
    to accept it. Both do not count."""
    same, last = 0, None
    async with asyncio.timeout(60):
        while True:
            told = last_json(await here(net, "payment", "status", "--json"))
            flows = [one["outgoing"] for one in told["platforms"]]
            vaults = [one["vault"] for one in told["platforms"] if "vault" in one]
            same, last = same + 1 if (flows, vaults) == last else 0, (flows, vaults)
            resting = same >= 20 or {vault["reserved"] for vault in vaults} == {"0"}
            if resting and all(f["accepted"] == f["confirmed"] for f in flows):
                return told
            await asyncio.sleep(0.05)


def _grown(told: Any, before: Any, platform: str, flow: str) -> tuple[int, Decimal]:
    """By how many agreements, and how much money, one sum of a platform has grown."""
    now, then = (next(o for o in one["platforms"] if o["platform"] == platform)["outgoing"] for one in (told, before))
    counts = now[flow]["agreementsCount"] - then[flow]["agreementsCount"]
    return counts, Decimal(now[flow]["totalAmount"]) - Decimal(then[flow]["totalAmount"])


def _all_money(told: Any) -> Decimal:
    """What there is, and what was paid of it."""
    by_name = {one["platform"]: one for one in told["platforms"]}
    vault = by_name["channel-devnet-tglm"]["vault"]
    here = Decimal(by_name["erc20-devnet-tglm"]["wallet"]) + Decimal(vault["free"]) + Decimal(vault["reserved"])
    return here + sum(Decimal(one["paid"]) for one in told["platforms"])


@pytest.mark.parametrize("platform", ["erc20-devnet-tglm", "channel-devnet-tglm"])
async def test_payment_status_is_exact_to_the_last_digit(net: Devnet, image: Path, platform: str) -> None:
    before = await _at_rest(net)
    assert (await here(net, "run", str(image), "--platform", platform, "--", "true")).status == 0
    told = await _at_rest(net)
    by_name = {one["platform"]: one for one in told["platforms"]}
    channels = by_name["channel-devnet-tglm"]
    assert told["problems"] == []
    names = ["erc20-devnet-tglm", "erc20-holesky-tglm", "channel-devnet-tglm", "channel-holesky-tglm", "free"]
    assert list(by_name) == names
    assert [by_name[name].get("aliasOf") for name in names[:4]] == [None, names[0], None, names[2]]
    chain, vault = by_name["erc20-devnet-tglm"], channels["vault"]
    assert by_name["erc20-holesky-tglm"]["amount"] == chain["amount"] == chain["wallet"] == channels["wallet"]
    assert by_name["free"]["amount"] == "0"
    assert chain["address"] == net.requestor.node_id
    units = await _token_units(net, net.requestor.node_id)
    assert isinstance(chain["amount"], str)
    assert AMOUNT.fullmatch(chain["amount"])
    assert Decimal(chain["amount"]) * 10**18 == units
    assert Decimal(channels["amount"]) == Decimal(chain["wallet"]) + Decimal(vault["free"])
    out = by_name[platform]["outgoing"]
    asked, accepted, confirmed = (
        _grown(told, before, platform, flow) for flow in ("requested", "accepted", "confirmed")
    )
    assert asked == accepted == confirmed
    assert (asked[0], asked[1] > 0) == (1, True)
    assert (by_name[platform]["paid"], by_name[platform]["owed"]) == (out["confirmed"]["totalAmount"], "0")
    assert by_name[platform]["paid"] != "0"
    assert _all_money(told) == _all_money(before)
    assert (chain["reserved"], channels["allocated"]) == ("0", "0")

    plain = await shem(net, "payment", "status", COLUMNS="240")
    assert plain.status == 0
    assert "…" not in plain.out
    rows = {line.split("  ")[0].strip(): line.split() for line in plain.out.splitlines() if line.strip()}
    assert rows["in the wallet"][3:5] == [chain["wallet"], channels["wallet"]]
    assert rows["free in the vault"][4:6] == ["–", vault["free"]]
    assert rows["paid"][1:3] == [chain["paid"], channels["paid"]]


async def test_identity_show(net: Devnet) -> None:
    told = last_json(await here(net, "identity", "show", "--json"))
    assert set(told) == {"node_id", "app_key_name", "name", "version", "address", "peers"}
    assert told["node_id"] == net.requestor.node_id
    assert told["address"] == net.requestor.address
    assert (told["name"], told["app_key_name"]) == ("requestor", "autoconfigured")
    assert sorted(told["peers"]) == sorted(p.node_id for p in net.providers)
    plain = await here(net, "identity", "show")
    assert plain.out.splitlines()[0].split() == ["node", "id", net.requestor.node_id]
    assert net.requestor.address in plain.out
    # a program's key, as in the environment here, is not told the state of the owner's; the data directory proves who asks
    owners = last_json(await shem(net, "identity", "show", "--data-dir", str(net.requestor.data_dir), "--json"))
    assert (owners["node_id"], owners["app_key_name"]) == (net.requestor.node_id, "local")
    assert (owners["keys"]["locked"], owners["keys"]["voucher_signer"]) == (False, net.requestor.node_id)


# --- the node beside --------------------------------------------------------------------------------------------------


async def test_a_second_node_on_the_same_data_is_refused(net: Devnet) -> None:
    argv = ["node", "run", "--data-dir", str(net.requestor.data_dir), "--api-port", "0"]
    done = await shem(net, *argv)
    assert done.status == 6, done
    assert f"another node runs on {net.requestor.data_dir}" in done.err
    assert (await here(net, "identity", "show", "--json")).status == 0


# --- secrets ----------------------------------------------------------------------------------------------------------


def _secrets_of(node: DevNode) -> list[str]:
    assert (node.data_dir / "identity.json").exists()
    secret = keystore.load_or_create_secret(node.data_dir, None)
    assert Identity(secret).node_id == node.node_id
    passphrase = (node.data_dir / "identity.pass").read_text().strip()
    return [node.app_key, secret.hex(), Identity(secret).transport_seed.hex(), passphrase]


async def test_no_secret_is_in_a_log_or_a_command_line(net: Devnet, image: Path) -> None:
    secrets = {secret for node in (net.requestor, *net.providers) for secret in _secrets_of(node)}
    assert len(secrets) >= 4 * (1 + len(net.providers))
    running = await start(net, "run", str(image), "--", "sh", "-c", "echo begun; sleep 60")
    assert running.stdout is not None
    assert await asyncio.wait_for(running.stdout.readline(), 60) == b"begun\n"
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _readable(path)]
    running.send_signal(signal.SIGINT)
    await asyncio.wait_for(running.communicate(), 60)
    assert any(str(net.root).encode() in line for line in lines)
    logs = sorted(net.root.rglob("*.log"))
    assert len(logs) >= 2 + 2 * len(net.providers)
    for secret in secrets:
        for form in (secret, secret.upper(), "0x" + secret):
            assert not [line for line in lines if form.encode() in line]
            assert not [log for log in logs if form.encode() in log.read_bytes()]
    for node in (net.requestor, *net.providers):
        for name in ("identity.json", "identity.pass", "node.db"):
            assert (node.data_dir / name).stat().st_mode & 0o077 == 0, name


def _readable(path: Path) -> bool:
    try:
        return bool(path.read_bytes())
    except OSError:
        return False
