"""The real agent, as an ordinary process: its own promises, without any sandbox around it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from shem.cogs.tasks import TaskScope
from shem.runtimes.base import CommandNotStarted, GuestBroken
from shem.runtimes.guest import frames
from shem.runtimes.guest.binary import agent_binary
from shem.runtimes.guest.client import GuestAgent
from shem.runtimes.host.process import Watched


async def start(*settings: str) -> tuple[GuestAgent, asyncio.subprocess.Process]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            str(agent_binary()), "one_user=1", *settings, stdin=theirs.fileno(), stdout=theirs.fileno()
        )
    return await GuestAgent.attach(ours), process


@pytest.fixture
async def guest() -> AsyncIterator[GuestAgent]:
    agent, process = await start()
    yield agent
    await agent.close()
    async with asyncio.timeout(10):
        assert await process.wait() == 0


@pytest.fixture
async def scope() -> AsyncIterator[TaskScope]:
    async with TaskScope("test") as made:
        yield made


class Said:
    def __init__(self) -> None:
        self.out = b""
        self.err = b""
        self.ready = asyncio.Event()

    async def __call__(self, stream: int, data: bytes) -> None:
        if stream == 1:
            self.out += data
        else:
            self.err += data
        self.ready.set()


async def test_more_commands_than_the_agent_takes_are_refused(guest, scope) -> None:
    running = [scope.start(guest.run(["sleep", "100"]), "run") for _ in range(250)]
    await asyncio.sleep(0)
    with pytest.raises(GuestBroken, match="More than 250"):
        await guest.run(["true"])
    await guest.kill()
    for task in running:
        assert (await task).signal == 9
    assert (await guest.run(["true"])).code == 0


async def test_input_for_a_program_that_reads_late_blocks_nobody(guest, scope) -> None:
    said = Said()
    data = os.urandom(2_000_000)
    release = f"/tmp/shem-test-{os.getpid()}-{id(said)}"
    os.mkfifo(release)
    try:
        slow = scope.start(guest.run(["sh", "-c", f"read _ < {release}; cat"], stdin=data, on_output=said), "slow")
        for n in range(20):
            quick = Said()
            await guest.run(["echo", str(n)], on_output=quick)
            assert quick.out == f"{n}\n".encode()
        with open(release, "w") as file:
            file.write("go\n")
        assert (await slow).code == 0
        assert said.out == data
    finally:
        os.unlink(release)


async def test_input_streams_with_backpressure(guest, scope) -> None:
    """A program that takes nothing stops the source after the window, not at the end of the source."""
    taken = 0

    async def source():
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield bytes(65536)

    running = scope.start(guest.run(["sleep", "100"], stdin=source()), "run")
    said = Said()
    await guest.run(["sleep", "0.2"], on_output=said)
    assert taken <= (frames.STDIN_WINDOW + 65536) // 65536 + 2  # the window and what the pipe itself holds
    await guest.kill()
    assert (await running).signal == 9


async def test_output_that_is_not_read_stops_only_its_program(guest, scope) -> None:
    stall = asyncio.Event()
    total = 0

    async def slow(_: int, data: bytes) -> None:
        nonlocal total
        await stall.wait()
        total += len(data)

    flood = scope.start(guest.run(["head", "-c", "30000000", "/dev/zero"], on_output=slow), "flood")
    for _ in range(50):
        assert (await guest.run(["true"])).code == 0
    stall.set()
    assert (await flood).code == 0
    assert total == 30_000_000


async def test_output_written_just_before_death_is_all_there(guest) -> None:
    """Also when a background child keeps the pipe open: what was in it at the end is delivered."""
    for _ in range(5):
        said = Said()
        await guest.run(["sh", "-c", "sleep 50 & head -c 60000 /dev/zero"], on_output=said)
        assert len(said.out) == 60_000
    await guest.kill()


async def test_a_killed_shepherd_is_reported_and_its_program_swept(guest, scope) -> None:
    """A hostile program may kill the process that guards it; its time limit still ends everything."""
    said = Said()
    script = "setsid sleep 987654 & kill -9 $PPID; echo killed; sleep 987654"
    status = await guest.run(["sh", "-c", script], on_output=said, timeout_s=5)
    assert status.signal == 9
    await guest.kill()
    listing = Said()
    await guest.run(["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"], on_output=listing)
    assert b"sleep 987654 " not in listing.out.replace(script.encode(), b"")


async def test_a_stopped_shepherd_does_not_save_its_program(guest) -> None:
    status = await guest.run(["sh", "-c", "kill -STOP $PPID; setsid sleep 876543 & sleep 876543"], timeout_s=0.2)
    assert status.timed_out
    listing = Said()
    await guest.run(["sh", "-c", "cat /proc/[0-9]*/comm"], on_output=listing)


async def test_settings_bind_programs_only() -> None:
    guest, process = await start("nofile=99", "fsize=4096")
    said = Said()
    await guest.run(
        ["sh", "-c", "ulimit -n; ulimit -f; head -c 10000 /dev/zero > /tmp/shem-fsize-test"], on_output=said
    )
    assert said.out.split() == [b"99", b"8"]
    assert os.path.getsize("/tmp/shem-fsize-test") == 4096
    os.unlink("/tmp/shem-fsize-test")
    await guest.close()
    await process.wait()


async def test_missing_programs_and_directories_are_told_apart(guest) -> None:
    with pytest.raises(CommandNotStarted) as caught:
        await guest.run(["/bin/no-such"], cwd="/")
    assert caught.value.details["stage"] == "run"
    with pytest.raises(CommandNotStarted) as caught:
        await guest.run(["true"], cwd="/no/such")
    assert caught.value.details["stage"] == "enter the directory"


async def test_no_descriptor_is_inherited(guest) -> None:
    said = Said()
    await guest.run(["ls", "/proc/self/fd"], on_output=said)
    assert said.out.split() == [b"0", b"1", b"2", b"3"]  # the last is ls reading that directory


async def test_closing_the_channel_ends_agent_and_programs() -> None:
    guest, process = await start()
    said = Said()
    async with TaskScope("test") as scope:
        scope.start(_quiet(guest.run(["sh", "-c", "echo $$; setsid sleep 100 & sleep 100"], on_output=said)), "run")
        await said.ready.wait()
        shell = Watched(int(said.out))
        await guest.close()
        async with asyncio.timeout(10):
            await process.wait()
            await shell.wait()
        shell.close()


async def _quiet(work) -> None:
    with suppress(GuestBroken):  # the channel closes under it
        await work
