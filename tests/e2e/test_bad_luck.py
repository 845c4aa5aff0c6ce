"""Bad input and bad luck: a clear error with its code, or a try elsewhere, within seconds; nothing done is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from shem.client.http import ApiClient
from shem.client.market import MarketApi
from shem.errors import ShemError
from shem.sdk import CommandFailed, Golem, Rental, events
from shem.testing.devnet import Devnet
from shem.testing.small_image import make_small_image
from shem.wire.market import NewScan
from tests.e2e.conftest import Registry, network, session, until
from tests.network.provider.test_sdk_endings import REASON, WORDS, FickleProvider

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def net(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> AsyncIterator[Devnet]:
    """A network of its own: a dead provider's last bill comes when nobody is there to accept it, and stays."""
    async with network(tmp_path_factory.mktemp("unlucky"), registry) as made:
        yield made


async def _nothing(machine: Rental, _: int) -> None:
    await machine.run("true")


async def _once(golem: Golem, image: Path | str, *argv: str, **options: float) -> None:
    async with golem:
        await golem.run(image, argv, retries=0, **options)  # type: ignore[arg-type]


async def test_a_name_that_is_no_image(golem: Golem) -> None:
    with pytest.raises(ShemError) as caught:
        await _once(golem, "Not An Image!", "true")
    assert caught.value.code == "bad_image"


async def test_an_image_that_the_registry_does_not_have(golem: Golem, registry: Registry) -> None:
    begun = time.monotonic()
    with pytest.raises(ShemError) as caught:
        await _once(golem, f"{registry.host}/nobody/nothing:1", "true")
    assert caught.value.code == "image_not_found"
    assert time.monotonic() - begun < 30


async def test_a_registry_that_does_not_answer(golem: Golem) -> None:
    with pytest.raises(ShemError) as caught:
        await _once(golem, "no-such-host.invalid/some/thing:1", "true")
    assert caught.value.code == "registry_unreachable"


async def test_a_registry_inside_the_providers_own_network_is_not_asked(golem: Golem) -> None:
    with pytest.raises(ShemError) as caught:
        await _once(golem, "localhost:9/some/thing:1", "true")
    assert caught.value.code == "registry_not_allowed"


async def test_an_image_whose_content_is_not_what_its_digest_says(golem: Golem, tmp_path: Path) -> None:
    bad = make_small_image(tmp_path / "bad", {"Labels": {"this": "one nobody has yet"}})
    layer = max((bad / "blobs" / "sha256").iterdir(), key=lambda p: p.stat().st_size)
    content = bytearray(layer.read_bytes())
    content[5000] ^= 1
    layer.write_bytes(content)
    with pytest.raises(ShemError) as caught:
        await _once(golem, bad, "true")
    assert caught.value.code == "image_digest_mismatch"


async def test_an_input_that_does_not_exist(golem: Golem, image: Path) -> None:
    async with golem:
        with pytest.raises(ShemError) as caught:
            await golem.run(image, ["true"], inputs=[("/does/not/exist", "/work/x")])
    assert caught.value.code == "input_missing"


async def test_a_command_that_does_not_exist(golem: Golem, image: Path) -> None:
    with pytest.raises(CommandFailed) as caught:
        await _once(golem, image, "no-such-command")
    assert caught.value.code == "command_not_found"


async def test_an_exit_with_an_error_keeps_its_output(golem: Golem, image: Path) -> None:
    with pytest.raises(CommandFailed) as caught:
        await _once(golem, image, "sh", "-c", "echo before; echo why >&2; exit 3")
    error = caught.value
    assert (error.code, error.result.exit_code) == ("nonzero_exit", 3)
    assert (error.result.stdout, error.result.stderr) == (b"before\n", b"why\n")


async def test_a_command_that_takes_too_long(golem: Golem, image: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(CommandFailed) as caught:
        await _once(golem, image, "sleep", "60", timeout=1.0)
    assert caught.value.code == "timed_out"
    assert time.monotonic() - begun < 45


async def test_a_failed_task_goes_to_another_provider(net: Devnet, image: Path) -> None:
    failures: list[events.TaskFailed] = []
    first: list[str] = []

    async def task(machine: Rental, number: int) -> str:
        if number == 0 and not first:
            first.append(machine.provider_id)
            await machine.run("false")
        await machine.run("sleep", "0.3")
        return machine.provider_id

    def note(event: events.Event) -> None:
        if isinstance(event, events.TaskFailed):
            failures.append(event)

    golem = session(net, listener=note)
    async with golem:
        done = [p async for p in golem.map(task, range(6), image=image, workers=3, ordered=True)]
    assert len(failures) == 1
    assert failures[0].retried
    assert done[0] != first[0]


async def test_a_provider_killed_in_the_middle_of_a_task(net: Devnet, image: Path) -> None:
    """Its agent and its node die at once; the task ends on another machine and what was done before counts."""
    victim = net.providers[0]
    at_work = asyncio.Event()
    where: list[str] = []

    async def task(machine: Rental, number: int) -> int:
        if machine.provider_id == victim.node_id:
            at_work.set()
        where.append(machine.provider_id)
        await machine.run("sleep", "2")
        return number

    async def kill() -> None:
        await at_work.wait()
        assert victim.agent is not None
        assert victim.node is not None
        victim.agent.kill()
        victim.node.kill()

    golem = session(net)
    begun = time.monotonic()
    async with asyncio.TaskGroup() as group:
        group.create_task(kill())

        async def program() -> list[int]:
            async with golem:
                return [n async for n in golem.map(task, range(6), image=image, workers=3)]

        running = group.create_task(program())
    assert sorted(running.result()) == list(range(6))
    assert victim.node_id in where
    assert time.monotonic() - begun < 120
    await net.start_node(victim)
    await net.start_agent(victim)


async def test_the_requestor_node_restarted_in_the_middle_of_a_job(net: Devnet, image: Path) -> None:
    runs: list[int] = []

    async def task(machine: Rental, number: int) -> str:
        runs.append(number)
        return (await machine.shell(f"sleep 3; echo {number}")).text

    async def restart() -> None:
        await until(lambda: len(runs) >= 3, 60)
        node = net.requestor.node
        assert node is not None
        node.kill()
        await node.wait()
        await net.start_node(net.requestor)

    golem = session(net)
    async with asyncio.TaskGroup() as group:
        group.create_task(restart())

        async def program() -> list[str]:
            async with golem:
                return [t async for t in golem.map(task, range(6), image=image, workers=3, ordered=True)]

        running = group.create_task(program())
    assert running.result() == [f"{n}\n" for n in range(6)]
    assert golem.report.settled


async def test_a_provider_node_restarted_in_the_middle_of_a_job(net: Devnet, image: Path) -> None:
    victim = net.providers[1]
    runs: list[str] = []

    async def task(machine: Rental, number: int) -> str:
        runs.append(machine.provider_id)
        return (await machine.shell(f"sleep 3; echo {number}")).text

    async def restart() -> None:
        await until(lambda: victim.node_id in runs, 60)
        assert victim.node is not None
        victim.node.kill()
        await victim.node.wait()
        await net.start_node(victim)

    golem = session(net)
    async with asyncio.TaskGroup() as group:
        group.create_task(restart())

        async def program() -> list[str]:
            async with golem:
                return [t async for t in golem.map(task, range(6), image=image, workers=3, ordered=True)]

        running = group.create_task(program())
    assert running.result() == [f"{n}\n" for n in range(6)]


async def test_the_chain_is_down_while_bills_are_accepted(net: Devnet, image: Path) -> None:
    """Work goes on and is accepted; the payment waits, is reported, and is made once the chain is back."""
    golem = session(net)
    chain = net.chain
    assert chain is not None
    async with golem:
        async for _ in golem.map(_nothing, range(3), image=image, workers=1):
            if chain.running:
                chain.kill()
                await chain.wait()
        assert golem.report.paid == 0
        await net.start_chain()
    assert golem.report.settled
    assert golem.report.paid > 0


async def test_a_provider_that_approves_and_ends_its_agreements_at_once_is_left(net: Devnet, image: Path) -> None:
    """Its own words for it are told, and the others do the work."""
    victim, seen = net.providers[2], []
    assert victim.agent is not None
    async with (
        ApiClient(victim.api_url, victim.app_key) as provider,
        ApiClient(net.requestor.api_url, net.requestor.app_key) as requestor,
    ):
        offers = await MarketApi(provider).offers()
        like = next(offer for offer in offers if offer.properties["golem.runtime.name"] == "oci")
        await victim.agent.stop()
        try:
            async with FickleProvider(provider, like, REASON) as fickle:
                await until(lambda: _is_known(MarketApi(requestor), fickle.offer_id))
                # two others are there: the third worker hires this one, whoever comes first
                async with session(net, listener=seen.append) as golem:
                    results = golem.map(_number, range(6), image=image, workers=3, ordered=True)
                    done = [number async for number in results]
        finally:
            await net.start_agent(victim)
    assert done == list(range(6))
    assert fickle.agreements
    [left] = [event for event in seen if isinstance(event, events.ProviderLeft)]
    assert (left.provider_id, left.code) == (victim.node_id, "agreement_ended")
    assert left.reason == f"{victim.name} {WORDS}"
    assert not golem.report.providers[victim.node_id].tasks


async def _number(machine: Rental, number: int) -> int:
    await machine.run("true")
    return number


async def _is_known(market: MarketApi, offer_id: str) -> bool:
    scan = await market.begin_scan(NewScan(type="offer"))
    found = await market.scan_offers(scan, timeout_s=1.0, max_events=100)
    await market.end_scan(scan)
    return offer_id in {offer.offer_id for offer in found}
