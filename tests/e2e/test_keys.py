"""Keys of a whole network of real processes: what is secret shows nowhere, and a node that starts locked loses nobody's work."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from shem.client.http import ApiClient
from shem.client.identity import IdentityApi
from shem.cogs.places import owners_key
from shem.node.identity.keystore import KEYSTORE, PASSPHRASE, read_secret
from shem.node.identity.presence import PRESENCE
from shem.node.identity.vouchersigner import DIRECTORY
from shem.sdk import Rental
from shem.sdk.events import Event, TaskStarted
from shem.testing.devnet import Devnet, DevNode
from tests.e2e.conftest import session

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240), pytest.mark.slow]

WORDS = "correct horse battery"
READ = (
    "/me",
    "/version/get",
    "/shem-api/v1/node",
    "/shem-api/v1/identity",
    "/shem-api/v1/payment/status",
    "/shem-api/v1/payment/channels",
    "/shem-api/v1/payment/transactions",
    "/shem-api/v1/settlements",
    "/market-api/v1/offers",
    "/market-api/v1/demands",
    "/market-api/v1/agreements",
    "/payment-api/v1/requestorAccounts",
    "/payment-api/v1/providerAccounts",
    "/payment-api/v1/allocations",
    "/payment-api/v1/invoices",
    "/payment-api/v1/debitNotes",
    "/payment-api/v1/payments",
    "/net-api/v2/net/status",
    "/metrics-api/v1/expose",
    "/no/such/thing",
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def net(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Devnet]:
    network = Devnet(tmp_path_factory.mktemp("keys"), providers=1)
    for provider in network.providers:
        settings = provider.data_dir / "agent" / "provider.toml"
        settings.parent.mkdir(parents=True)
        settings.write_text("[rules]\nleast_cover_s = 1\ncover_spare_s = 0.0\n")
    async with network:
        yield network


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words"
    path.write_text(WORDS)
    path.chmod(0o600)
    return path


async def shem(*arguments: object) -> str:
    argv = [sys.executable, "-m", "shem", *map(str, arguments)]
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, complaints = await process.communicate()
    assert process.returncode == 0, complaints.decode()
    return out.decode()


def owner(node: DevNode) -> ApiClient:
    return ApiClient(node.api_url, owners_key(node.data_dir))


async def refused(http: ApiClient) -> None:
    """Until the node has told somebody no: its agent wanted a signature."""

    async def errors() -> int:
        async with http.session.get(http.url("/metrics-api/v1/expose")) as answer:
            return int(re.findall(r"^shem_rest_errors_total (\d+)$", await answer.text(), re.MULTILINE)[0])

    before = await errors()
    async with asyncio.timeout(60):
        while True:
            if await errors() > before:
                return
            await asyncio.sleep(0.05)


def secrets_of(node: DevNode, passphrase: str | None = None) -> dict[str, list[bytes]]:
    """By what it is, as it could be written."""
    found = {"identity": read_secret(node.data_dir, passphrase)}
    for place in (node.data_dir / DIRECTORY).glob("*"):
        found["voucher signer"] = read_secret(place)
    shown = {what: [secret, secret.hex().encode(), str(list(secret)).encode()] for what, secret in found.items()}
    for path in [*node.data_dir.glob(f"**/{PASSPHRASE}")]:
        shown[f"passphrase {path}"] = [path.read_bytes().strip()]
    if passphrase is not None:
        shown["the owner's passphrase"] = [passphrase.encode()]
    shown["the owner's app key"] = [owners_key(node.data_dir).encode()]
    shown["the app key"] = [node.app_key.encode()]
    return shown


def seen_in(secrets: dict[str, list[bytes]], content: bytes) -> list[str]:
    return [what for what, forms in secrets.items() if any(form in content for form in forms)]


def processes(net: Devnet) -> Iterator[tuple[str, bytes]]:
    """What programs of this user may see of any process: command line and environment; not the environments of the
    network's own, which its owner has given an app key there."""
    children = (net.chain, *(child for node in (net.requestor, *net.providers) for child in (node.node, node.agent)))
    told = {child.pid for child in children if child is not None}
    for place in Path("/proc").glob("[0-9]*"):
        for file in ("cmdline",) if int(place.name) in told else ("cmdline", "environ"):
            with contextlib.suppress(OSError):  # it has ended, or is somebody else's
                yield f"{place / file}", (place / file).read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_nothing_secret_shows_in_processes_logs_answers_or_the_database(net: Devnet, image: Path) -> None:
    nodes = [net.requestor, *net.providers]
    await shem("identity", "voucher-signer", "--new", "--data-dir", net.requestor.data_dir)
    secrets = {f"{node.name}: {what}": forms for node in nodes for what, forms in secrets_of(node).items()}
    leak = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "input()", env={"KEY": net.requestor.app_key}, stdin=asyncio.subprocess.PIPE
    )
    try:
        assert [what for _, content in processes(net) for what in seen_in(secrets, content)] == [
            "requestor: the app key"
        ]
    finally:
        leak.kill()
        await leak.wait()
    found: list[str] = []
    sandboxed = False

    async def task(machine: Rental, number: int) -> bytes:
        nonlocal sandboxed
        async with asyncio.TaskGroup() as group:
            running = group.create_task(machine.shell("sleep 1.5; echo done"))
            while not running.done():
                for file, content in processes(net):
                    found.extend(f"{file} ({content[:200]!r}): {what}" for what in seen_in(secrets, content))
                    sandboxed = sandboxed or b"sleep 1.5" in content
                await asyncio.sleep(0.05)
        return running.result().stdout

    golem = session(net, budget="2")
    async with golem:
        assert [r async for r in golem.map(task, [1], image=image)] == [b"done\n"]
    assert golem.report.settled
    assert found == []
    assert sandboxed, "the work was seen, too"

    keys = {what: forms for what, forms in secrets.items() if not what.endswith("app key")}
    for path in sorted(net.root.rglob("*")):
        told_by_name = path.name in (KEYSTORE, PASSPHRASE, PRESENCE, "app.key") or not path.is_file()
        if not told_by_name and "images" not in path.parts:
            assert seen_in(secrets, path.read_bytes()) == [], path
    async with aiohttp.ClientSession() as http:
        for node in nodes:
            for key in (node.app_key, owners_key(node.data_dir), "wrong-key"):
                for path in READ:
                    headers = {"Authorization": f"Bearer {key}"}
                    async with http.get(node.api_url + path, headers=headers) as answer:
                        assert seen_in(secrets, await answer.read()) == [], (path, answer.status)
            async with http.get(
                node.api_url + "/shem-api/v1/app-keys", headers={"Authorization": f"Bearer {key}"}
            ) as answer:
                assert seen_in(keys, await answer.read()) == []


async def test_a_node_that_starts_locked_in_the_middle_of_a_job_loses_nothing(
    net: Devnet, image: Path, words: Path
) -> None:
    """Its provider's node is killed, starts without its passphrase, and signs the bills once it is unlocked."""
    [provider] = net.providers
    ready = asyncio.Event()

    def note(event: Event) -> None:
        if isinstance(event, TaskStarted):
            ready.set()

    async def lock_out() -> None:
        await ready.wait()
        told = await shem(
            "identity", "passphrase", "--data-dir", provider.data_dir, "--passphrase-file", words, "--json"
        )
        assert json.loads(told)["own_passphrase"]
        assert provider.node is not None
        provider.node.kill()
        await provider.node.wait()
        await net.start_node(provider)
        async with owner(provider) as http:
            assert (await IdentityApi(http).keys()).locked
            async with http.session.get(f"{provider.api_url}/market-api/v1/offers") as answer:
                assert answer.status == 200
            await refused(http)
        await shem("identity", "unlock", "--data-dir", provider.data_dir, "--passphrase-file", words)

    async def task(machine: Rental, number: int) -> bytes:
        return (await machine.shell("sleep 6; echo done")).stdout

    golem = session(net, budget="2", listener=note)
    async with golem, asyncio.TaskGroup() as group:
        group.create_task(lock_out())
        assert [r async for r in golem.map(task, [1], image=image)] == [b"done\n"]
    report = golem.report
    assert report.settled
    assert sum(p.cost for p in report.providers.values()) == sum(
        payment.amount for p in report.providers.values() for payment in p.payments
    )
    secrets = secrets_of(provider, WORDS)
    for log in ("node.log", "agent.log"):
        assert seen_in(secrets, (provider.data_dir / log).read_bytes()) == []
    assert os.stat(provider.data_dir / PRESENCE).st_mode & 0o777 == 0o600


async def test_a_requestor_that_is_locked_for_a_while_in_the_middle_of_a_job_pays_in_the_end(
    net: Devnet, image: Path
) -> None:
    started = asyncio.Event()

    def note(event: Event) -> None:
        if isinstance(event, TaskStarted):
            started.set()

    async def lock_out() -> None:
        await started.wait()
        async with owner(net.requestor) as http:
            assert (await IdentityApi(http).lock()).locked
            await refused(http)
            assert not (await IdentityApi(http).unlock()).locked

    async def task(machine: Rental, number: int) -> bytes:
        return (await machine.shell("sleep 5; echo done")).stdout

    golem = session(net, budget="2", listener=note)
    async with golem, asyncio.TaskGroup() as group:
        group.create_task(lock_out())
        assert [r async for r in golem.map(task, [1], image=image)] == [b"done\n"]
    assert golem.report.settled
    assert golem.report.cost == sum(p.amount for each in golem.report.providers.values() for p in each.payments)
