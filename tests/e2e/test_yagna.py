"""``yagna`` against a node that it has started itself: the shapes that Golem's tools parse, and the calls of one of them in
their order."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import coincurve
import pytest
import pytest_asyncio

from shem.cli.yagna import run
from shem.cogs.process import Child, start_child
from shem.node.identity.signing import address_of
from tests.e2e.conftest import processes_of, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

YAGNA = [sys.executable, "-c", "from shem.cli.yagna import main; main()"]
ADDRESS = re.compile(r"0x[0-9a-f]{40}")
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("YAGNA_", "SHEM_", "YA_"))}


@dataclass
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Machine:
    """Somebody's machine: a chain, a place for a node, and the environment that they have set."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)
    daemon: Child | None = None

    @property
    def data_dir(self) -> Path:
        return self.root / "data"

    async def __call__(self, *argv: str) -> Done:
        """A command about this node, in this process."""

        def inside() -> Done:
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
                status = run([*argv, "--datadir", str(self.data_dir)])
            return Done(status, out.getvalue(), err.getvalue())

        return await asyncio.to_thread(inside)

    async def really(self, *argv: str, **env: str) -> Done:
        """A command as a process that knows of the node what the environment says."""
        process = await asyncio.create_subprocess_exec(
            *YAGNA,
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=CLEAN | self.env | env,
        )
        try:
            async with asyncio.timeout(60):
                out, err = await process.communicate()
        except BaseException:
            process.kill()
            raise
        return Done(process.returncode or 0, out.decode(), err.decode())

    async def start(self, *options: str, **env: str) -> None:
        """``yagna service run``, as a tool would: nobody tells when it is ready, REST is asked until it answers."""
        # a shell that becomes the daemon says the first word, which the daemon never does
        argv = ["/bin/sh", "-c", 'echo up; exec "$@" >&2', "sh", *YAGNA, "service", "run", *options]
        self.daemon, _ = await start_child("yagna", argv, log_path=self.root / "log", env=CLEAN | self.env | env)

        async def up() -> bool:
            assert self.daemon is not None
            assert self.daemon.running, (self.root / "log").read_text()
            return await self.answers()

        await until(up)

    async def answers(self) -> bool:
        try:
            async with aiohttp.ClientSession() as session, session.get(self.env["YAGNA_API_URL"]) as answer:
                return answer.status == 401
        except aiohttp.ClientError:
            return False


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chain(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, Any]]:
    """A test chain in a process of its own."""
    root = tmp_path_factory.mktemp("chain")
    argv = [sys.executable, "-m", "shem.testing.devchain", "--port", "0", "--data", str(root / "data")]
    child, line = await start_child("chain", argv, log_path=root / "log")
    yield json.loads(line)
    await child.stop()


def machine_of(root: Path, chain: dict[str, Any], port: int) -> Machine:
    machine = Machine(root)
    machine.data_dir.mkdir()
    (machine.data_dir / "config.toml").write_text(
        f"[networks.devnet]\nchain_id = {chain['chain_id']}\nrpc_urls = [{chain['rpc_url']!r}]\n"
        f'token = "{chain["token"]}"\ntoken_symbol = "tGLM"\naliases = ["holesky"]\n'
    )
    machine.env = {
        "YAGNA_DATADIR": str(machine.data_dir),
        "YAGNA_API_URL": f"http://127.0.0.1:{port}",
        "GSB_URL": f"unix:{root}/gsb.sock",
        "YA_NET_BIND_URL": "udp://127.0.0.1:0",
        "YA_NET_TYPE": "hybrid",
    }
    return machine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def machine(
    tmp_path_factory: pytest.TempPathFactory, chain: dict[str, Any], unused_tcp_port_factory: Any
) -> AsyncIterator[Machine]:
    """A machine whose daemon runs."""
    found = machine_of(tmp_path_factory.mktemp("machine"), chain, unused_tcp_port_factory())
    try:
        await found.start("--api-allow-origin", "https://a.example", "https://b.example", "--debug")
        yield found
    finally:
        if found.daemon is not None:
            await found.daemon.stop()


async def node_id(machine: Machine) -> str:
    return str((await machine("id", "list", "--json")).json[0]["address"])


# --- shapes -----------------------------------------------------------------------------------------------------------


async def test_who_the_node_is(machine: Machine) -> None:
    (row,) = (await machine("id", "list", "--json")).json
    assert ADDRESS.fullmatch(row.pop("address"))
    assert row == {"default": True, "locked": False, "delete in progress": False, "alias": None}
    me = await node_id(machine)
    shown = {"Ok": {"alias": None, "deleted": False, "isDefault": True, "isLocked": False, "nodeId": me}}
    for argv in (["id", "show"], ["id", "show", me], ["id", "update", me, "--set-default"]):
        assert (await machine(*argv, "--json")).json == shown
    assert (await machine("id", "show", "nobody", "--json")).json == {"Ok": None}
    assert me in (await machine("id", "list")).out
    assert (await machine("id", "update", me, "--alias", "x")).status == 1


async def test_the_key_signs_as_the_original_does_and_is_exported(machine: Machine, tmp_path: Path) -> None:
    me = await node_id(machine)
    public = coincurve.PublicKey(b"\x04" + bytes.fromhex((await machine("id", "pub-key", "--json")).json["pubKey"]))
    assert address_of(public) == me
    (tmp_path / "file").write_bytes(b"what I mean\n")
    signature = bytes.fromhex((await machine("id", "sign", str(tmp_path / "file"), "--json")).json["sig"])
    assert len(signature) == 65
    signer = coincurve.PublicKey.from_signature_and_message(signature[1:] + signature[:1], b"what I mean\n")
    assert signer == public  # recoverable over sha-256, the recovery id first
    exported = await machine("id", "export")
    assert json.loads(exported.out)["address"] == me.removeprefix("0x")
    assert str(machine.data_dir) in exported.err
    plain = tmp_path / "secret"
    assert (await machine("id", "export", "--plain", "--file-path", str(plain), "--json")).out == "null\n"
    assert stat.S_IMODE(plain.stat().st_mode) == 0o600
    assert address_of(coincurve.PrivateKey(bytes.fromhex(plain.read_text())).public_key) == me
    assert (await machine("id", "sign", str(tmp_path / "none"))).status == 1


async def test_keys_of_programs(machine: Machine) -> None:
    made = await machine("app-key", "create", "program", "--allow-origins", "https://x", "https://y", "--json")
    key = made.json
    assert re.fullmatch(r"[0-9a-f]{32}", key)
    assert (await machine("app-key", "create", "program")).out == f"{key}\n"
    rows = {row["name"]: row for row in (await machine("app-key", "list", "--json")).json}
    row = rows["program"]
    assert (set(row), row["key"], row["role"]) == ({"name", "key", "id", "role", "created"}, key, "manager")
    assert row["id"] == await node_id(machine)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+", row["created"])
    assert len((await machine("app-key", "list", "--per-page", "1", "--json")).json) == 1
    shown = (await machine("app-key", "show", "program", "--json")).json
    assert set(shown) == {"allowOrigins", "createdDate", "identity", "key", "name", "role"}
    assert shown["allowOrigins"] == ["https://x", "https://y"]
    assert key in (await machine("app-key", "list")).out
    dropped = await machine("app-key", "drop", "program")
    assert (dropped.status, dropped.out) == (0, "")
    for argv in (["drop", "program"], ["show", "program"], ["create", "x", "--id", "0x" + "1" * 40]):
        failed = await machine("app-key", *argv)
        assert (failed.status, failed.out) == (1, "")
        assert failed.err.startswith("Error: ")


async def test_which_platforms_there_are(machine: Machine) -> None:
    drivers = (await machine("payment", "driver", "list", "--json")).json
    assert drivers["erc20"]["default_network"] == "holesky"
    assert drivers["erc20"]["recv_init_required"] is False
    networks = drivers["erc20"]["networks"]
    assert networks["holesky"] == {"default_token": "tGLM", "tokens": {"tGLM": "erc20-holesky-tglm"}}
    assert set(networks) == {"devnet", "holesky"}
    accounts = {one.pop("platform"): one for one in (await machine("payment", "accounts", "--json")).json}
    assert accounts["erc20-holesky-tglm"] == {
        "address": await node_id(machine),
        "driver": "erc20",
        "network": "holesky",
        "token": "tGLM",
        "send": True,
        "receive": True,
    }
    for argv in (["init"], ["init", "--sender"], ["init", "--receiver", "--network", "devnet"], ["process", "now"]):
        done = await machine("payment", *argv)
        assert (done.status, done.out) == (0, "")
    assert (await machine("payment", "release-allocations", "--json")).out == "null\n"
    assert (await machine("payment", "driver", "status", "--json")).json == []
    assert "Driver Status: Ok" in (await machine("payment", "driver", "status")).out


async def test_money_comes_and_is_shown(machine: Machine) -> None:
    before = (await machine("payment", "status", "--json")).json
    assert "came from the chain" in (await machine("payment", "fund")).out
    after = (await machine("payment", "status", "--json")).json
    assert float(after["amount"]) == float(before["amount"]) + 1000
    nothing = {"agreementsCount": 0, "totalAmount": "0"}
    flow = {"accepted": nothing, "confirmed": nothing, "requested": nothing}
    assert (after["incoming"], after["outgoing"]) == (flow, flow)
    assert (after["token"], after["driver"], after["network"], after["reserved"]) == ("tGLM", "erc20", "holesky", "0")
    assert set(after["gas"]) == {"balance", "currency_short_name", "currency_long_name"}
    assert after["block_number"] > 0
    text = (await machine("payment", "status")).out
    for head in ("platform", "total amount", "reserved", "amount", "incoming", "outgoing", "gas"):
        assert head in text
    assert f"{float(after['amount']):.4f} tGLM" in text
    own = await machine("payment", "status", "--network", "devnet", "--account", await node_id(machine), "--precise")
    assert f" {after['amount']} tGLM" in own.out
    for wrong in (["--network", "nope"], ["--driver", "nope"], ["--account", "0x" + "1" * 40]):
        assert (await machine("payment", "status", *wrong)).status == 1
    assert (await machine("payment", "fund", "--network", "free")).status == 1


async def test_bills_deals_and_work(machine: Machine) -> None:
    bills = (await machine("payment", "invoice", "status", "--last", "1d 2h", "--json")).json
    states = {"issued", "received", "accepted", "rejected", "failed", "settled", "cancelled"}
    assert set(bills) == {"provider", "requestor"}
    assert all(set(bills[role]) == states for role in bills)
    assert bills["provider"]["issued"] == {"agreementsCount": 0, "totalAmount": "0"}
    assert (await machine("payment", "invoice", "status", "--last", "soon")).status == 1
    assert (await machine("market", "agreements", "list", "--json")).json == []
    assert (await machine("market", "agreements", "list", "--state", "nonsense")).status == 1
    assert (await machine("market", "agreements", "get", "--id", "1", "--role", "Requestor")).status == 1
    assert (await machine("activity", "status", "--json")).json == {"last1h": {}, "lastActivityTs": None, "total": {}}
    for argv in (["net", "sessions"], ["net", "sockets"], ["extension", "list"]):
        assert (await machine(*argv, "--json")).json == []


async def test_the_network_and_the_version(machine: Machine) -> None:
    status = (await machine("net", "status", "--json")).json
    assert set(status) == {"nodeId", "listenAddress", "publicAddress", "sessions", "bandwidth"}
    assert (status["nodeId"], status["publicAddress"], status["sessions"]) == (await node_id(machine), None, 0)
    assert status["listenAddress"].startswith("127.0.0.1:")
    version = (await machine("version", "show", "--json")).json
    assert version["current"]["version"] == "0.16.0"
    assert version["pending"] is None
    assert "Version 0.16.0" in (await machine("version", "show")).out


# --- the daemon -------------------------------------------------------------------------------------------------------


async def test_the_daemon_takes_the_options_and_the_environment_of_the_original(machine: Machine) -> None:
    headers = {"Origin": "https://b.example", "Access-Control-Request-Method": "GET"}
    async with (
        aiohttp.ClientSession() as session,
        session.options(f"{machine.env['YAGNA_API_URL']}/me", headers=headers) as answer,
    ):
        assert answer.status == 200


async def test_a_tools_whole_sequence(tmp_path: Path, chain: dict[str, Any], unused_tcp_port_factory: Any) -> None:
    """As ray-on-golem goes about it on a machine where nothing runs, with nothing but the environment to go by."""
    machine = machine_of(tmp_path, chain, unused_tcp_port_factory())
    assert not await machine.answers()
    try:
        await machine.start()
        keys = (await machine.really("app-key", "list", "--json")).json
        assert "ray-on-golem" not in [one["name"] for one in keys]
        key = (await machine.really("app-key", "create", "ray-on-golem", "--json")).json
        keys = (await machine.really("app-key", "list", "--json")).json
        assert [one["key"] for one in keys if one["name"] == "ray-on-golem"] == [key]

        assert (await machine.really("payment", "fund", "--network", "holesky", "--driver", "erc20")).status == 0
        status = (await machine.really("payment", "status", "--network", "holesky", "--driver", "erc20", "--json")).json
        assert (float(status["amount"]), status["token"]) == (1000, "tGLM")
        assert "tGLM" in (await machine.really("payment", "status", "--network", "holesky")).out
        (identity,) = [one for one in (await machine.really("id", "list", "--json")).json if one["default"]]
        drivers = (await machine.really("payment", "driver", "list", "--json")).json
        network = drivers["erc20"]["networks"]["holesky"]
        platform = network["tokens"][network["default_token"]]

        await _rest_of_the_sequence(machine, key, identity["address"], platform)
        done = await machine.really("service", "shutdown")
        assert (done.status, done.out.strip()) == (0, "Ok: null")
        assert machine.daemon is not None
        async with asyncio.timeout(30):
            assert await machine.daemon.wait() == 0
        assert not await machine.answers()
        assert (await machine.really("id", "list", "--json")).json[0]["address"] == identity["address"]
        assert (await machine.really("payment", "status")).status == 1
    finally:
        if machine.daemon is not None:
            await machine.daemon.stop()
    assert processes_of(machine.data_dir) == []


async def _rest_of_the_sequence(machine: Machine, key: str, address: str, platform: str) -> None:
    root = machine.env["YAGNA_API_URL"]
    async with aiohttp.ClientSession(root, headers={"authorization": f"Bearer {key}"}) as session:

        async def post(path: str, body: Any) -> Any:
            async with session.post(path, json=body) as answer:
                assert answer.status in (200, 201), await answer.text()
                return await answer.json()

        wanted = {"totalAmount": "10", "makeDeposit": False, "address": address, "paymentPlatform": platform}
        allocation = await post("/payment-api/v1/allocations", wanted)
        assert (allocation["paymentPlatform"], allocation["remainingAmount"]) == (platform, "10")
        network = await post("/net-api/v1/net", {"id": "", "ip": "192.168.0.1/16", "mask": None, "gateway": None})
        assert (network["ip"], network["mask"]) == ("192.168.0.1/16", "255.255.0.0")
        await post(f"/net-api/v1/net/{network['id']}/addresses", {"ip": "192.168.0.1"})
        params = {"allocationIds": allocation["allocationId"]}
        async with session.get("/payment-api/v1/demandDecorations", params=params) as answer:
            properties = {one["key"]: one["value"] for one in (await answer.json())["properties"]}
        assert properties[f"golem.com.payment.platform.{platform}.address"] == address
        demand = {"properties": properties, "constraints": "(golem.runtime.name=vm)"}
        assert await post("/market-api/v1/demands", demand)
