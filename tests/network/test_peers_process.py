"""Real processes over iroh: a killed or frozen peer is noticed by heartbeat, and found again with the same key."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shem.node.identity.keys import Identity
from shem.node.peer.iroh import iroh_transport
from shem.node.peer.limits import PeerLimits
from shem.node.peer.network import PeerNetwork
from shem.node.peer.remote_errors import PeerUnreachable
from shem.terms.ids import NodeId

CHILD = """
import asyncio, sys
from pathlib import Path
from shem.node.identity.keys import Identity
from shem.node.peer.iroh import iroh_transport
from shem.node.peer.network import PeerNetwork

async def main():
    async def echo(peer, payload):
        return payload
    async def slow(peer, payload):
        await asyncio.Event().wait()
    node = PeerNetwork(Identity.open_or_create(Path(sys.argv[1])), iroh_transport("127.0.0.1:0"))
    node.serve("t.echo", echo)
    node.serve("t.slow", slow)
    async with node:
        node.add_bootstrap(sys.argv[2])
        print(node.node_id, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)

if sys.argv[3] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""

QUICK = PeerLimits(beat_s=0.2, dead_s=0.6, dial_timeout_s=1.0)


@asynccontextmanager
async def child(keys: Path, bootstrap: str, loop: str = "asyncio") -> AsyncIterator[tuple[Process, NodeId]]:
    """A node in a process of its own; killed at the end if it still lives."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, str(keys), bootstrap, loop, stdin=PIPE, stdout=PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            yield process, NodeId((await process.stdout.readline()).decode().strip())
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def until(condition: Callable[[], object], deadline_s: float = 10.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110  conditions of several processes have no common event
            await asyncio.sleep(0.005)


@pytest.fixture
async def alice() -> AsyncIterator[PeerNetwork]:
    async with PeerNetwork(Identity.generate(), iroh_transport("127.0.0.1:0"), limits=QUICK) as node:
        yield node


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_peer_that_falls_silent_is_noticed(alice: PeerNetwork, tmp_path: Path, how: signal.Signals) -> None:
    went: list[NodeId] = []
    alice.on_disconnected(went.append)
    async with child(tmp_path, alice.address()) as (process, bob):
        await until(alice.connected)
        assert await alice.call(bob, "t.echo", b"there") == b"there"
        async with asyncio.TaskGroup() as group:
            call = group.create_task(_lost(alice, bob))
            await asyncio.sleep(0)
            began = asyncio.get_running_loop().time()
            process.send_signal(how)
            error = await call
        assert asyncio.get_running_loop().time() - began < 3
        assert error.code == "peer_lost"
        await until(lambda: went == [bob])
        assert alice.counters["closed_dead"] == 1


async def _lost(node: PeerNetwork, peer: NodeId) -> PeerUnreachable:
    with pytest.raises(PeerUnreachable) as lost:
        await node.call(peer, "t.slow", b"", timeout_s=30)
    return lost.value


async def test_after_a_kill_and_a_restart_the_same_node_is_back_at_once(alice: PeerNetwork, tmp_path: Path) -> None:
    """Sooner than the heartbeat could tell that the old process is dead: the new one says that it started anew."""
    told: list[str] = []

    async def came(_peer: NodeId) -> None:
        told.append("came")

    alice.on_connected(came)
    alice.on_disconnected(lambda _peer: told.append("went"))
    lives = []
    for loop in ("asyncio", "uvloop"):
        async with child(tmp_path, alice.address(), loop) as (process, bob):
            lives.append(bob)
            await until(lambda: told.count("came") == len(lives))
            assert await alice.call(bob, "t.echo", loop.encode()) == loop.encode()
            process.kill()
            await process.wait()
    assert lives[0] == lives[1]
    assert told[:3] == ["came", "went", "came"]


async def test_a_peer_that_stops_in_order_says_goodbye(alice: PeerNetwork, tmp_path: Path) -> None:
    async with child(tmp_path, alice.address()) as (process, bob):
        await until(alice.connected)
        process.stdin.write(b"\n")  # type: ignore[union-attr]
        assert await process.wait() == 0
        await until(lambda: bob not in alice.connected())
        assert alice.counters["closed_leaving"] == 1
        assert alice.counters["closed_dead"] == 0
