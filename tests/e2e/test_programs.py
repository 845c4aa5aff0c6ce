"""Programs as users start them: plain Python with ``with Golem()``, interrupted and not; the demo."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shem.client.http import ApiClient
from shem.client.market import MarketApi
from shem.client.payment import PaymentApi
from shem.testing.devnet import Devnet

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

PLAIN = """
import sys
from shem import CommandFailed, Golem

def prepare(machine):
    machine.write("/work/greeting", b"hello")

def task(machine, number):
    if number == 3:
        machine.run("false", check=False)
    return machine.shell(f"cat greeting; echo {number}").text

with Golem(budget="1") as golem:
    for text in golem.map(task, range(6), image=sys.argv[1], workers=2, setup=prepare, ordered=True):
        print(text, end="", flush=True)
    with golem.rent(sys.argv[1]) as machine:
        try:
            machine.run("sh", "-c", "exit 4")
        except CommandFailed as error:
            print("exit", error.result.exit_code)
print("settled", golem.report.settled, golem.report.cost > 0)
"""

ENDLESS = """
import sys
from shem import Golem

def task(machine, number):
    sys.stdout.write("working\\n")  # one write: print's two would mix with those of the other tasks' threads
    sys.stdout.flush()
    machine.run("sleep", "1000")

with Golem(budget="1") as golem:
    for _ in golem.map(task, range(9), image=sys.argv[1], workers=3):
        pass
"""


@asynccontextmanager
async def start(net: Devnet, code: str, image: Path, **env: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The program, running; it doesn't outlive the test, whatever that finds: it would keep the providers."""
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        str(image),
        env={**os.environ, **net.env, **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield program
    finally:
        if program.returncode is None:
            program.send_signal(signal.SIGINT)
            try:
                await asyncio.wait_for(program.communicate(), 30)
            except TimeoutError:
                program.kill()
                await program.wait()


async def test_a_plain_program_needs_no_async(net: Devnet, image: Path) -> None:
    async with start(net, PLAIN, image) as program:
        out, err = await program.communicate()
    wanted = "".join(f"hello{n}\n" for n in range(6)) + "exit 4\nsettled True True\n"
    assert out.decode() == wanted, err.decode()


async def test_ctrl_c_leaves_nothing_rented_and_nothing_unpaid(net: Devnet, image: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    async with start(net, ENDLESS, image, SHEM_REPORT=str(report)) as program:
        assert program.stdout is not None
        for _ in range(3):
            assert await asyncio.wait_for(program.stdout.readline(), 60) == b"working\n"
        program.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(program.communicate(), 60)
    assert b"KeyboardInterrupt" in err
    told = json.loads(report.read_text())
    assert told["settled"]
    assert told["cost"] != "0"
    async with ApiClient(net.requestor.api_url, net.requestor.app_key) as http:
        assert await MarketApi(http).list_agreements(state="Approved") == []
        assert await MarketApi(http).demands() == []
        assert await PaymentApi(http).allocations() == []


HELD = """
import sys
from shem import Golem

def task(machine, number):
    return machine.shell("echo hello").text

with Golem(budget="1") as golem:
    held = golem.map(task, range(50), image=sys.argv[1], workers=2)
    print(next(held), end="")
    rented = golem.rent(sys.argv[1])
    machine = rented.__enter__()
    print(machine.shell("echo too").text, end="", flush=True)
print("settled", golem.report.settled, golem.report.cost > 0)
"""


async def test_leaving_the_session_takes_back_what_the_program_still_holds(net: Devnet, image: Path) -> None:
    async with start(net, HELD, image) as program:
        out, err = await asyncio.wait_for(program.communicate(), 60)
    assert out.decode() == "hello\ntoo\nsettled True True\n", err.decode()
    async with ApiClient(net.requestor.api_url, net.requestor.app_key) as http:
        assert await MarketApi(http).list_agreements(state="Approved") == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("sys.exit(3)", "task_exited"),
        ("next(iter([]))", "task_exited"),
        ("raise ValueError('mine')", "ValueError: mine"),
    ],
)
async def test_a_task_that_ends_badly_ends_the_program_not_the_machine(
    net: Devnet, image: Path, body: str, said: str
) -> None:
    code = (
        "import sys\nfrom shem import Golem\n"
        f"def task(machine, number):\n    {body}\n"
        "with Golem(budget='1') as golem:\n    list(golem.map(task, [1], image=sys.argv[1], retries=0, workers=1))\n"
    )
    async with start(net, code, image) as program:
        _, err = await asyncio.wait_for(program.communicate(), 60)
    assert program.returncode == 1
    assert said in err.decode()


async def test_what_setup_raises_ends_the_program(net: Devnet, image: Path) -> None:
    code = (
        "import sys\nfrom shem import Golem\n"
        "def setup(machine):\n    raise ValueError('from setup')\n"
        "with Golem(budget='1') as golem:\n"
        "    list(golem.map(lambda m, n: n, [1, 2], image=sys.argv[1], setup=setup, workers=2))\n"
    )
    async with start(net, code, image) as program:
        _, err = await asyncio.wait_for(program.communicate(), 60)
    assert program.returncode == 1
    assert "ValueError: from setup" in err.decode()


@pytest.mark.slow
async def test_the_demo_twice(tmp_path: Path) -> None:
    for _ in range(2):
        demo = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "shem",
            "demo",
            "--json",
            "--out",
            str(tmp_path / "out"),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await demo.communicate()
        assert demo.returncode == 0
        (line,) = out.decode().splitlines()
        told = json.loads(line)
        assert told["tasks"] == 24
        assert told["providers"] == 3
        assert told["settled"]
        assert told["paid"] == told["cost"] != "0"
        assert Path(told["output"]).read_bytes().startswith(b"\x89PNG")
        assert [c["state"] for c in told["channels"]] == ["closed"] * 3
        [closing] = [t for t in told["chain"]["transactions"] if t["kind"] == "close"]
        assert (closing["channels"], closing["amount"], closing["ok"]) == (3, told["paid"], True)
        assert told["chain"]["vault"]["reserved"] == "0"
