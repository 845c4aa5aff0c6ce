"""The agent lives in the sandbox, so what it says may be anything: we stay bounded, end clearly, and never hang."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from shem.cogs.tasks import TaskScope
from shem.runtimes.base import CommandNotStarted, GuestBroken, GuestFileError
from shem.runtimes.guest import frames
from shem.runtimes.guest.client import GuestAgent

HELLO = frames.pack_u32(frames.HELLO, 0, frames.VERSION)
EXITED = struct.pack("<iqqq", 0, 0, 0, 0)


class Agent:
    """The test's end of the channel."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock

    async def say(self, *parts: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, b"".join(parts))

    async def hear(self) -> tuple[int, int, bytes]:
        header = await self._exactly(frames.HEADER.size)
        length, kind, job = frames.HEADER.unpack(header)
        return kind, job, await self._exactly(length)

    async def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = await asyncio.get_running_loop().sock_recv(self.sock, size - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return data


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Agent, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield Agent(theirs), ours
    theirs.close()


@pytest.fixture
async def scope() -> AsyncIterator[TaskScope]:
    async with TaskScope("test") as made:
        yield made


@pytest.fixture
async def met(pair) -> AsyncIterator[tuple[Agent, GuestAgent]]:
    agent, ours = pair
    await agent.say(HELLO)
    guest = await GuestAgent.attach(ours)
    yield agent, guest
    await guest.close()


@pytest.mark.parametrize(
    "greeting",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n\r\n",
        frames.pack_u32(frames.HELLO, 0, 99),
        frames.pack(frames.HELLO, 0, b"x"),
        frames.pack(frames.EXIT, 1, EXITED),
        struct.pack("<IBI", 0xFFFFFFFF, frames.HELLO, 0),
    ],
)
async def test_a_wrong_greeting_is_refused(pair, greeting) -> None:
    agent, ours = pair
    await agent.say(greeting)
    agent.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(GuestBroken):
        await GuestAgent.attach(ours)


async def test_silence_is_refused_in_time(pair) -> None:
    _, ours = pair
    with pytest.raises(GuestBroken, match="hello"):
        await GuestAgent.attach(ours, hello_timeout_s=0.05)


@pytest.mark.parametrize(
    "answer",
    [
        HELLO,
        frames.pack(frames.EXIT, 77, EXITED),
        frames.pack(frames.OUT, 77, b"x"),
        frames.pack(200, 1, b""),
        frames.pack(0, 1, b""),
        frames.pack_u32(frames.CREDIT, 1, 1 << 31),
        frames.pack(frames.OUT, 1, bytes(frames.MAX_ANSWER)) * 6,
        frames.pack(frames.OUT, 1, b"") * 6000,
        struct.pack("<IBI", frames.MAX_ANSWER + 1, frames.OUT, 1),
        b"\xff" * 64,
    ],
)
async def test_nonsense_ends_the_channel(met, scope, answer) -> None:
    agent, guest = met
    resume = asyncio.Event()

    async def stall(*_: object) -> None:
        await resume.wait()

    running = scope.start(guest.run(["x"], on_output=stall), "run")
    await agent.hear()
    with suppress(ConnectionError):
        await agent.say(answer)
    async with asyncio.timeout(5):
        assert "guest agent" in await guest.wait_gone()
        resume.set()
        with pytest.raises(GuestBroken):
            await running
    with pytest.raises(GuestBroken):
        await guest.run(["y"])


@pytest.mark.parametrize(
    "answer",
    [
        frames.pack(frames.EXIT, 1, b"short"),
        frames.pack(frames.EXIT, 1, struct.pack("<iqqq", 0x137F, 0, 0, 0)),
        frames.pack(frames.FAILED, 1, b""),
    ],
)
async def test_an_end_that_makes_no_sense_fails_the_command(met, scope, answer) -> None:
    agent, guest = met
    running = scope.start(guest.run(["x"]), "run")
    await agent.hear()
    await agent.say(answer)
    with pytest.raises(GuestBroken):
        await running


async def test_exit_twice(met, scope) -> None:
    agent, guest = met
    running = scope.start(guest.run(["x"]), "run")
    await agent.hear()
    await agent.say(frames.pack(frames.EXIT, 1, EXITED), frames.pack(frames.EXIT, 1, EXITED))
    assert (await running).code == 0
    async with asyncio.timeout(5):
        assert "does not run" in await guest.wait_gone()


async def test_an_agent_that_goes_away_fails_all_commands(met, scope) -> None:
    agent, guest = met
    running = [scope.start(guest.run([str(n)]), "run") for n in range(5)]
    for _ in running:
        await agent.hear()
    agent.sock.close()
    for task in running:
        with pytest.raises(GuestBroken):
            await task


async def test_absurd_numbers_of_usage_are_tamed(met, scope) -> None:
    agent, guest = met
    running = scope.start(guest.run(["x"]), "run")
    await agent.hear()
    await agent.say(frames.pack(frames.EXIT, 1, struct.pack("<iqqq", 9, -(1 << 62), 5, -1)))
    status = await running
    assert (status.code, status.signal, status.max_rss) == (137, 9, 0)
    assert 0 <= status.cpu_s < 1


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../b"])
async def test_a_listing_that_leads_elsewhere_is_refused(met, scope, path) -> None:
    agent, guest = met
    walking = scope.start(guest.walk("/work"), "walk")
    await agent.hear()
    record = struct.pack("<BIQqHH", ord("f"), 0o644, 1, 0, len(path), 0) + path.encode()
    await agent.say(frames.pack(frames.OUT, 1, record))
    with pytest.raises(GuestBroken, match="leads out"):
        await walking


async def test_a_listing_cut_short_is_refused(met, scope) -> None:
    agent, guest = met
    walking = scope.start(guest.walk("/work"), "walk")
    await agent.hear()
    record = struct.pack("<BIQqHH", ord("f"), 0o644, 1, 0, 200, 0) + b"x"
    await agent.say(frames.pack(frames.OUT, 1, record), frames.pack(frames.EXIT, 1, EXITED))
    with pytest.raises(GuestBroken, match="short"):
        await walking


async def test_a_failed_file_operation_without_a_reason(met, scope) -> None:
    agent, guest = met
    removing = scope.start(guest.remove("/x"), "remove")
    await agent.hear()
    await agent.say(
        frames.pack(frames.ERR, 1, b"x" * 1000), frames.pack(frames.EXIT, 1, struct.pack("<iqqq", 256, 0, 0, 0))
    )
    with pytest.raises(GuestFileError):
        await removing


async def test_a_reader_that_takes_nothing_bounds_what_is_kept(met, scope) -> None:
    """The agent may send its window and no more; the window is what a stalled reader can cost us."""
    agent, guest = met
    taken = asyncio.Event()

    async def stall(*_: object) -> None:
        taken.set()
        await asyncio.Event().wait()

    scope.start(guest.run(["x"], on_output=stall), "run")
    await agent.hear()
    piece = 1000
    fits = frames.OUTPUT_WINDOW // (piece + frames.FRAME_COST)
    await agent.say(frames.pack(frames.OUT, 1, bytes(piece)) * fits)
    await taken.wait()
    other = scope.start(guest.run(["y"]), "other")
    kind, job, _ = await agent.hear()
    assert (kind, job) == (frames.EXEC, 2)
    await agent.say(frames.pack(frames.EXIT, 2, EXITED))
    assert (await other).code == 0


@pytest.mark.parametrize("argv", [[], ["a\0b"], ["x" * (1 << 20)], ["x"] * 70_000])
async def test_requests_that_cannot_be_sent_are_refused(met, argv) -> None:
    _, guest = met
    with pytest.raises(CommandNotStarted) as caught:
        await guest.run(argv)
    assert caught.value.code == "bad_command"


async def test_an_agent_that_will_not_end_a_killed_command_is_given_up(pair, scope) -> None:
    agent, ours = pair
    await agent.say(HELLO)
    guest = await GuestAgent.attach(ours, kill_grace_s=0.05)
    running = scope.start(guest.run(["x"], timeout_s=0.01), "run")
    await agent.hear()
    kind, _, payload = await agent.hear()
    assert (kind, payload) == (frames.SIGNAL, struct.pack("<iB", 9, 1))
    with pytest.raises(GuestBroken, match="kill"):
        await running
    await guest.close()
