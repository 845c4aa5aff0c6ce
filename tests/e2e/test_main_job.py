"""The main job on real parts: rent, run, bring back, pay."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shem.errors import Gone, MoneyShort
from shem.sdk import CommandFailed, Golem, Need, Rental, events
from shem.terms.amounts import parse_amount
from shem.testing.devchain import places
from shem.testing.devnet import Devnet
from shem.testing.small_image import make_small_image
from tests.e2e.conftest import Registry, session, until

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]


async def test_tasks_run_on_three_providers_and_every_one_is_paid_on_the_chain(net: Devnet, image: Path) -> None:
    here: set[str] = set()

    async def task(machine: Rental, number: int) -> tuple[str, str]:
        here.add(machine.provider_id)
        await until(lambda: len(here) == 3)  # no machine is so fast that it leaves another nothing
        return machine.provider_id, (await machine.run("echo", f"task {number}")).text

    golem = session(net)
    async with golem:
        done = [r async for r in golem.map(task, range(12), image=image, workers=3)]

    assert sorted(text for _, text in done) == sorted(f"task {n}\n" for n in range(12))
    report = golem.report
    assert len([p for p in report.providers.values() if p.rentals]) == 3
    assert report.settled
    assert report.cost > 0
    assert report.paid == report.cost
    for provider in report.providers.values():
        for payment in provider.payments:
            receipt = await net.rpc("eth_getTransactionReceipt", payment.tx_hash)
            assert receipt["status"] == "0x1"
            assert int(receipt["blockNumber"], 16) == payment.block_number
            assert receipt["to"].lower() == places.VAULT_ADDRESS


async def test_an_image_comes_from_a_registry(golem: Golem, registry: Registry) -> None:
    async with golem:
        result = await golem.run(f"{registry.host}/test/small:1", ["echo", "pulled"])
    assert result.text == "pulled\n"


async def test_files_and_directories_travel_both_ways(golem: Golem, image: Path, tmp_path: Path) -> None:
    tree = tmp_path / "in"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "b.bin").write_bytes(bytes(range(256)) * 1000)
    (tree / "a.txt").write_text("a\n")
    (tree / "empty").mkdir()
    async with golem, golem.rent(image) as machine:
        await machine.upload(tree, "/work/tree")
        await machine.run("cp", "-r", "/work/tree", "/work/copy")
        await machine.download("/work/copy/", tmp_path / "out")
        await machine.write("/work/note", b"\x00\xffbytes")
        assert await machine.read("/work/note") == b"\x00\xffbytes"

    back = tmp_path / "out"
    assert (back / "deep" / "b.bin").read_bytes() == (tree / "deep" / "b.bin").read_bytes()
    assert (back / "a.txt").read_text() == "a\n"
    assert (back / "empty").is_dir()


async def test_image_settings_hold_and_the_sandbox_has_no_network(golem: Golem, image: Path) -> None:
    async with golem, golem.rent(image) as machine:
        assert (await machine.shell("echo $GREETING; pwd")).text == "hello\n/work\n"
        assert (await machine.run("env", env={"X": "1"}, cwd="/tmp")).text.count("X=1\n") == 1
        assert (await machine.shell("cat /proc/net/dev | wc -l")).text.strip() == "3"


async def test_the_images_own_program_runs_with_its_own_or_other_arguments(golem: Golem, tmp_path: Path) -> None:
    settings = {"Entrypoint": ["echo", "entry"], "Cmd": ["cmd"], "User": "worker", "WorkingDir": "/tmp"}
    made = make_small_image(tmp_path / "made", settings)
    async with golem, golem.rent(made) as machine:
        assert (await machine.run_image()).text == "entry cmd\n"
        assert (await machine.run_image("other", "words")).text == "entry other words\n"
        assert (await machine.shell("id -u; pwd")).text == "1000\n/tmp\n"


async def test_output_is_complete_ordered_and_binary_safe(golem: Golem, image: Path) -> None:
    async with golem, golem.rent(image) as machine:
        numbers = await machine.run("seq", "1", "200000")
        assert numbers.stdout == b"".join(b"%d\n" % n for n in range(1, 200001))
        noise = await machine.shell("head -c 300000 /dev/urandom > /work/n; cat /work/n")
        assert noise.stdout == await machine.read("/work/n")


async def test_results_come_in_order_on_request(golem: Golem, image: Path) -> None:
    async def task(machine: Rental, number: int) -> int:
        await machine.run("true")
        return number

    async with golem:
        assert [n async for n in golem.map(task, range(10), image=image, workers=3, ordered=True)] == list(range(10))


async def test_leaving_early_gives_every_machine_back(net: Devnet, image: Path) -> None:
    ended: list[events.Event] = []
    started: list[events.Event] = []

    def note(event: events.Event) -> None:
        if isinstance(event, events.RentalEnded):
            ended.append(event)
        if isinstance(event, events.RentalStarted):
            started.append(event)

    async def task(machine: Rental, number: int) -> int:
        await machine.run("true")
        return number

    golem = session(net, listener=note)
    async with golem:
        async for _ in golem.map(task, iter(int, 1), image=image, workers=2):
            break
    assert started
    assert len(ended) == len(started)
    assert golem.report.settled


async def test_a_cancelled_program_leaves_nothing_rented_and_nothing_unpaid(net: Devnet, image: Path) -> None:
    busy = asyncio.Event()

    async def task(machine: Rental, _: int) -> None:
        busy.set()
        await machine.run("sleep", "60")

    golem = session(net)

    async def program() -> None:
        async with golem:
            async for _ in golem.map(task, range(3), image=image, workers=3):
                pass

    running = asyncio.get_running_loop().create_task(program())
    await asyncio.wait_for(busy.wait(), 60)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert golem.report.settled
    assert golem.report.cost > 0


async def test_a_budget_that_buys_nothing_is_said_before_anything_is_spent(net: Devnet, image: Path) -> None:
    golem = session(net, budget="0.0001")
    with pytest.raises(MoneyShort) as caught:
        async with golem:
            await golem.run(image, ["true"])
    assert caught.value.code == "money_budget"
    assert golem.report.cost == 0


async def test_a_budget_that_runs_out_stops_the_work_and_pays_for_what_was_done(net: Devnet, image: Path) -> None:
    done: list[int] = []

    async def task(machine: Rental, number: int) -> int:
        await machine.shell("sleep 0.2")
        return number

    golem = session(net, budget="0.004")
    with pytest.raises(MoneyShort) as caught:
        async with golem:
            async for number in golem.map(task, range(10_000), image=image, workers=1):
                done.append(number)
    assert caught.value.code == "money_budget"
    assert done
    assert golem.report.settled
    assert 0 < golem.report.paid <= parse_amount("0.004")


async def test_a_map_has_a_budget_of_its_own(net: Devnet, image: Path) -> None:
    async def task(machine: Rental, number: int) -> int:
        await machine.shell("sleep 0.2")
        return number

    golem = session(net, budget="1")
    async with golem:
        with pytest.raises(MoneyShort) as caught:
            async for _ in golem.map(task, range(10_000), image=image, workers=1, budget="0.004"):
                pass
        assert caught.value.code == "money_budget"
        assert [n async for n in golem.map(task, range(2), image=image, workers=1)] == [0, 1]
    assert golem.report.settled


async def test_a_command_that_was_given_up_spends_the_machine(golem: Golem, image: Path) -> None:
    async with golem, golem.rent(image) as machine:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await machine.run("sleep", "20")
        with pytest.raises(Gone) as caught:
            await machine.run("true")
        assert caught.value.code == "rental_spent"


async def test_many_directories_at_once(golem: Golem, image: Path, tmp_path: Path) -> None:
    for n in range(12):
        (tmp_path / str(n)).mkdir()
        (tmp_path / str(n) / "big").write_bytes(bytes([n]) * 500_000)

    async def task(machine: Rental, number: int) -> bytes:
        await machine.upload(tmp_path / str(number), "/work/d")
        return (await machine.run("head", "-c", "1", "/work/d/big")).stdout

    async with golem:
        async with (
            asyncio.TaskGroup() as group
        ):  # beside the machines' own uploads: more at once than there are threads
            more = [group.create_task(golem._courier.offer(tmp_path / str(n)).__aenter__()) for n in range(12)]
        assert len({m.result()[0] for m in more}) == 12
        results = [r async for r in golem.map(task, range(12), image=image, workers=3, ordered=True)]
    assert results == [bytes([n]) for n in range(12)]


async def test_memory_above_the_agreed_limit_ends_the_command(golem: Golem, image: Path) -> None:
    async with golem, golem.rent(image, need=Need(memory_gib=0.125)) as machine:
        with pytest.raises(CommandFailed) as caught:
            await machine.run("dd", "if=/dev/zero", "of=/dev/null", "bs=400M", "count=1")
        assert caught.value.code == "out_of_memory"


async def _nothing(machine: Rental, _: int) -> None:
    await machine.run("true")
