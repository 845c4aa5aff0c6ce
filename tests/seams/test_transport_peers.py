"""Peers over every transport: calls, errors, streams, finding each other, simultaneous dials, restarts, silence."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from shem.cogs.clock import Clock
from shem.errors import Conflict, Gone, NotFound, PeerFailed, Refused
from shem.node.identity.keys import Identity
from shem.node.peer.bulk import BulkStream, StreamBroken
from shem.node.peer.iroh import iroh_transport
from shem.node.peer.limits import PeerLimits
from shem.node.peer.link import PeerBusy
from shem.node.peer.loopback import Loopback
from shem.node.peer.network import PeerNetwork
from shem.node.peer.remote_errors import PeerRefused, PeerUnreachable
from shem.terms.ids import NodeId


class World:
    """Nodes over one transport."""

    def __init__(self, kind: str, stack: AsyncExitStack) -> None:
        self.kind = kind
        self._stack = stack
        self._loopback = Loopback()

    def make(
        self, identity: Identity | None = None, limits: PeerLimits | None = None, clock: Clock | None = None
    ) -> PeerNetwork:
        """A node that is not up yet, with an ``echo`` of calls."""
        factory = self._loopback.transport if self.kind == "loopback" else iroh_transport("127.0.0.1:0")
        node = PeerNetwork(identity or Identity.generate(), factory, limits=limits, clock=clock)
        node.serve("t.echo", echo)
        return node

    async def up(self, node: PeerNetwork | None = None, *bootstraps: PeerNetwork) -> PeerNetwork:
        """Bring it up, connected with the bootstraps."""
        node = await self._stack.enter_async_context(node or self.make())
        for other in bootstraps:
            node.add_bootstrap(other.address())
            await until(lambda other=other: other.node_id in node.connected() and node.node_id in other.connected())
        return node


async def echo(_peer: NodeId, payload: bytes) -> bytes:
    return payload


async def until(condition: Callable[[], object], deadline_s: float = 5.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110  conditions of several nodes have no common event
            await asyncio.sleep(0.005)


@pytest.fixture(params=["loopback", "iroh"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        yield World(request.param, stack)


# --- calls ----------------------------------------------------------------------------------------------------------


async def test_calls_go_both_ways_and_name_their_caller(world: World) -> None:
    alice, bob = world.make(), world.make()

    async def who(peer: NodeId, payload: bytes) -> bytes:
        return peer.encode() + payload

    for node in (alice, bob):
        node.serve("t.who", who)
    await world.up(alice)
    await world.up(bob, alice)
    assert await bob.call(alice.node_id, "t.who", b"?") == bob.node_id.encode() + b"?"
    assert await alice.call(bob.node_id, "t.who", b"") == alice.node_id.encode()
    big = bytes(range(256)) * 4096
    assert await bob.call(alice.node_id, "t.echo", big) == big


async def test_many_calls_at_once_do_not_mix(world: World) -> None:
    alice = await world.up()
    bob = await world.up(world.make(limits=PeerLimits(max_in_flight=16)), alice)
    answers = await asyncio.gather(*(alice.call(bob.node_id, "t.echo", b"%d" % n) for n in range(500)))
    assert answers == [b"%d" % n for n in range(500)]
    assert not bob.counters["floods"]


async def test_errors_keep_their_family(world: World) -> None:
    alice, bob = world.make(), world.make()
    raised: list[Exception] = [
        NotFound("no such offer", code="no_offer", hint="look again"),
        Conflict("not now"),
        Gone("too late"),
        Refused("nonsense"),
        ValueError("secret"),
        TimeoutError(),
    ]

    async def fail(_peer: NodeId, payload: bytes) -> bytes:
        raise raised[payload[0]]

    bob.serve("t.fail", fail)
    bob.serve("t.small", echo, max_request=3)
    await world.up(alice)
    await world.up(bob, alice)
    for number, family in enumerate((NotFound, Conflict, Gone, Refused)):
        with pytest.raises(family) as told:
            await alice.call(bob.node_id, "t.fail", bytes([number]))
        assert isinstance(told.value, PeerRefused)
        assert told.value.message == raised[number].args[0]
    for number, code in ((4, "internal"), (5, "timeout")):
        with pytest.raises(PeerRefused) as told_less:
            await alice.call(bob.node_id, "t.fail", bytes([number]))
        assert told_less.value.code == code
        assert "secret" not in str(told_less.value)
    assert bob.counters["internal_errors"] == 1
    with pytest.raises(NotFound) as unknown:
        await alice.call(bob.node_id, "t.nothing", b"")
    assert unknown.value.code == "unknown_method"
    with pytest.raises(Refused) as too_big:
        await alice.call(bob.node_id, "t.small", b"1234")
    assert too_big.value.code == "too_big"
    with pytest.raises(Refused):
        await alice.call(bob.node_id, "t.echo", bytes((1 << 20) + 1))
    assert await alice.call(bob.node_id, "t.echo", b"still friends") == b"still friends"


async def test_a_caller_that_gives_up_stops_the_handler(world: World) -> None:
    alice, bob = world.make(), world.make()
    started, stopped = asyncio.Event(), asyncio.Event()

    async def slow(_peer: NodeId, _payload: bytes) -> bytes:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return b""

    bob.serve("t.slow", slow)
    await world.up(alice)
    await world.up(bob, alice)
    with pytest.raises(TimeoutError):
        await alice.call(bob.node_id, "t.slow", b"", timeout_s=0.05)
    await asyncio.wait_for(stopped.wait(), 5)
    started.clear()
    stopped.clear()
    async with asyncio.TaskGroup() as group:
        call = group.create_task(alice.call(bob.node_id, "t.slow", b""))
        await asyncio.wait_for(started.wait(), 5)
        call.cancel()
        await asyncio.wait_for(stopped.wait(), 5)


async def test_our_own_callers_wait_in_a_bounded_line(world: World) -> None:
    alice = world.make(limits=PeerLimits(max_waiting=3))
    bob = world.make(limits=PeerLimits(max_in_flight=2))
    gate = asyncio.Event()
    running = peak = 0

    async def gated(_peer: NodeId, payload: bytes) -> bytes:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await gate.wait()
        running -= 1
        return payload

    bob.serve("t.gated", gated)
    await world.up(alice)
    await world.up(bob, alice)
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(alice.call(bob.node_id, "t.gated", b"%d" % n)) for n in range(5)]
        await until(lambda: running == 2)
        with pytest.raises(PeerBusy):
            await alice.call(bob.node_id, "t.gated", b"one too many")
        calls[4].cancel()
        await asyncio.wait([calls[4]])
        with pytest.raises(TimeoutError):
            await alice.call(bob.node_id, "t.gated", b"", timeout_s=0.05)
        gate.set()
    assert [call.result() for call in calls[:4]] == [b"0", b"1", b"2", b"3"]
    assert peak == 2


async def test_who_cannot_be_reached(world: World) -> None:
    alice = world.make()
    with pytest.raises(PeerUnreachable):
        await alice.call(Identity.generate().node_id, "t.echo", b"")
    await world.up(alice)
    for stranger in (Identity.generate().node_id, alice.node_id):
        with pytest.raises(PeerUnreachable):
            await alice.call(stranger, "t.echo", b"")
        with pytest.raises(PeerUnreachable):
            await alice.open_stream(stranger, "x", b"")


# --- finding each other ---------------------------------------------------------------------------------------------


async def test_two_nodes_with_a_common_bootstrap_find_each_other(world: World) -> None:
    hub = await world.up()
    first = await world.up(None, hub)
    second = await world.up(None, hub)
    assert second.node_id not in first.connected()
    assert await first.call(second.node_id, "t.echo", b"early to late") == b"early to late"
    assert second.node_id in first.connected()
    third = await world.up(None, hub)
    assert await third.call(first.node_id, "t.echo", b"late to early") == b"late to early"


async def test_a_node_unknown_here_is_asked_for(world: World) -> None:
    hub = await world.up()
    first = await world.up(None, hub)
    second = await world.up(None, hub)
    first._gossip.book._hearsay.clear()  # as a book does that had to make room
    assert await first.call(second.node_id, "t.echo", b"found") == b"found"


async def test_concurrent_callers_share_a_dial(world: World) -> None:
    hub = await world.up()
    first, second = await world.up(None, hub), await world.up(None, hub)
    await until(lambda: first.known() == 2)
    answers = await asyncio.gather(*(first.call(second.node_id, "t.echo", b"%d" % n) for n in range(20)))
    assert answers == [b"%d" % n for n in range(20)]
    assert second.counters["connected"] == first.counters["connected"] == 2


async def test_simultaneous_dials_leave_one_connection(world: World) -> None:
    for _ in range(10):
        hub = await world.up()
        first, second = await world.up(None, hub), await world.up(None, hub)
        await until(lambda first=first, second=second: first.known() == second.known() == 2)
        met: list[NodeId] = []

        async def note(peer: NodeId, met: list[NodeId] = met) -> None:
            met.append(peer)

        first.on_connected(note)
        second.on_connected(note)
        answers = await asyncio.gather(
            first.call(second.node_id, "t.echo", b"a"), second.call(first.node_id, "t.echo", b"b")
        )
        assert answers == [b"a", b"b"]
        await until(lambda met=met: len(met) == 2)
        assert sorted(met) == sorted([first.node_id, second.node_id])
        assert first.counters["connected"] == second.counters["connected"] == 2
        assert first.connected().count(second.node_id) == second.connected().count(first.node_id) == 1


async def test_both_bootstrap_each_other(world: World) -> None:
    alice, bob = await world.up(), await world.up()
    alice.add_bootstrap(bob.address())
    bob.add_bootstrap(alice.address())
    await until(lambda: alice.connected() and bob.connected())
    assert await alice.call(bob.node_id, "t.echo", b"1") == b"1"
    assert await bob.call(alice.node_id, "t.echo", b"2") == b"2"
    assert alice.counters["connected"] == bob.counters["connected"] == 1


# --- coming and going -----------------------------------------------------------------------------------------------


async def test_callbacks_tell_who_comes_and_goes(world: World) -> None:
    alice, told = world.make(limits=PeerLimits(dial_timeout_s=0.5)), []

    async def came(peer: NodeId) -> None:
        told.append(("came", peer, await alice.call(peer, "t.echo", b"hello")))

    async def broken(_peer: NodeId) -> None:
        raise PeerUnreachable("gone again")

    alice.on_connected(came)
    alice.on_connected(broken)
    alice.on_disconnected(lambda peer: told.append(("went", peer)))
    await world.up(alice)
    bob = world.make()
    async with bob:
        bob.add_bootstrap(alice.address())
        await until(lambda: told)
    await until(lambda: len(told) == 2)
    assert told == [("came", bob.node_id, b"hello"), ("went", bob.node_id)]
    assert alice.connected() == []
    with pytest.raises(PeerUnreachable):
        await alice.call(bob.node_id, "t.echo", b"", timeout_s=8)


async def test_pending_calls_fail_when_the_peer_leaves(world: World) -> None:
    alice, bob = world.make(), world.make()
    started = asyncio.Event()

    async def slow(_peer: NodeId, _payload: bytes) -> bytes:
        started.set()
        await asyncio.Event().wait()
        return b""

    bob.serve("t.slow", slow)
    await world.up(alice)
    async with asyncio.TaskGroup() as group:
        async with bob:
            alice.add_bootstrap(bob.address())
            await until(alice.connected)
            call = group.create_task(_unreachable(alice, bob.node_id, "t.slow"))
            await started.wait()
        assert (await call).code == "peer_lost"


async def _unreachable(node: PeerNetwork, peer: NodeId, method: str) -> PeerUnreachable:
    with pytest.raises(PeerUnreachable) as lost:
        await node.call(peer, method, b"")
    return lost.value


async def test_a_bootstrap_that_comes_back_is_dialled_again(world: World) -> None:
    """With the same key; over iroh also at another port, so the address comes from its own dial."""
    alice, identity = await world.up(), Identity.generate()
    comings: list[NodeId] = []

    async def came(peer: NodeId) -> None:
        comings.append(peer)

    alice.on_connected(came)
    for life in range(3):
        async with world.make(identity) as bob:
            bob.add_bootstrap(alice.address())
            await until(lambda life=life: len(comings) == life + 1)
            await until(bob.connected)
            assert await alice.call(identity.node_id, "t.echo", b"%d" % life) == b"%d" % life
            assert await bob.call(alice.node_id, "t.echo", b"x") == b"x"


async def test_a_link_that_ends_is_dialled_again(world: World) -> None:
    limits = PeerLimits(first_backoff_s=0.02)
    alice, bob = await world.up(), world.make(limits=limits)
    await world.up(bob, alice)
    for _ in range(3):
        await alice.disconnect(bob.node_id)
        await until(lambda: not bob.connected())
        await until(lambda: bob.connected() and alice.connected())
        assert await bob.call(alice.node_id, "t.echo", b"x") == b"x"


async def test_told_to_reconnect_it_does_so_at_once(world: World) -> None:
    alice, bob = await world.up(), world.make(limits=PeerLimits(first_backoff_s=3600, max_backoff_s=3600))
    await world.up(bob, alice)
    await alice.disconnect(bob.node_id)
    await until(lambda: not bob.connected() and bob._bootstraps._pausing)
    bob.reconnect_now()
    await until(bob.connected)


# --- bulk -----------------------------------------------------------------------------------------------------------


class Files:
    """A stream handler: takes bytes in, gives them back on request."""

    def __init__(self, node: PeerNetwork) -> None:
        self.node = node
        self.received: list[bytes] = []
        self.failures: list[Exception] = []
        self.gate = asyncio.Event()

    async def put(self, _peer: NodeId, header: bytes, stream: BulkStream) -> None:
        parts = []
        try:
            while data := await stream.read():
                parts.append(data)
        except PeerFailed as error:
            self.failures.append(error)
            raise
        self.received.append(header + b"|" + b"".join(parts))

    async def get(self, _peer: NodeId, header: bytes, stream: BulkStream) -> None:
        if header == b"missing":
            raise NotFound("no such file", code="no_file")
        await stream.write(bytes(300_000))
        if header == b"crash":
            raise ValueError("secret")
        if header == b"forget":
            return
        await stream.finish()

    async def refuse(self, _peer: NodeId, _header: bytes, stream: BulkStream) -> None:
        await stream.read(10)
        raise Conflict("no room for it")

    async def chat(self, _peer: NodeId, _header: bytes, stream: BulkStream) -> None:
        while line := await stream.read():
            await stream.write(line.upper())
        await stream.finish()

    async def ignore(self, _peer: NodeId, _header: bytes, _stream: BulkStream) -> None:
        await self.gate.wait()


async def with_files(world: World) -> tuple[PeerNetwork, NodeId, Files]:
    alice, bob = world.make(), world.make(limits=PeerLimits(max_streams=8))
    files = Files(bob)
    for kind in ("put", "get", "refuse", "chat", "ignore"):
        bob.serve_stream(kind, getattr(files, kind))
    await world.up(alice)
    await world.up(bob, alice)
    return alice, bob.node_id, files


async def test_a_finished_transfer_has_been_read(world: World) -> None:
    alice, bob, files = await with_files(world)
    data = bytes(range(256)) * 5000
    async with await alice.open_stream(bob, "put", b"name") as stream:
        await stream.write(data[:10])
        await stream.write(memoryview(data)[10:])
        await stream.finish()
    await until(lambda: files.received)
    assert files.received == [b"name|" + data]
    async with await alice.open_stream(bob, "put", b"") as stream:
        await stream.finish()
    await until(lambda: len(files.received) == 2)
    assert files.received[1] == b"|"
    with pytest.raises(StreamBroken):
        await stream.write(b"after the end")


async def test_reading_ends_only_at_the_end(world: World) -> None:
    alice, bob, _ = await with_files(world)
    async with await alice.open_stream(bob, "get", b"whole") as stream:
        sizes = []
        while data := await stream.read(1000):
            sizes.append(len(data))
        assert sum(sizes) == 300_000
        assert max(sizes) <= 1000
        assert await stream.read() == b""
    for header, family, code in (
        (b"missing", NotFound, "no_file"),
        (b"crash", PeerRefused, "internal"),
        (b"forget", StreamBroken, "stream_broken"),
    ):
        async with await alice.open_stream(bob, "get", header) as stream:
            with pytest.raises(family) as broken:
                await read_to_end(stream)
            assert broken.value.code == code


async def read_to_end(stream: BulkStream) -> bytes:
    parts = []
    while data := await stream.read():
        parts.append(data)
    return b"".join(parts)


async def write_for_ever(stream: BulkStream) -> None:
    while True:
        await stream.write(bytes(100_000))


async def write_and_raise(stream: BulkStream, data: bytes) -> None:
    async with stream:
        await stream.write(data)
        raise ZeroDivisionError


async def test_a_writer_learns_why_the_reader_gave_up(world: World) -> None:
    alice, bob, _ = await with_files(world)
    async with await alice.open_stream(bob, "refuse", b"") as stream:
        with pytest.raises(Conflict) as refused:
            await write_for_ever(stream)
        assert refused.value.message == "no room for it"
    async with await alice.open_stream(bob, "nothing of the kind", b"") as stream:
        with pytest.raises(NotFound):
            await stream.finish()


async def test_a_sender_that_gives_up_never_looks_complete(world: World) -> None:
    alice, bob, files = await with_files(world)
    data = bytes(200_000)
    aborted = await alice.open_stream(bob, "put", b"")
    await aborted.write(data)
    await aborted.abort(5)
    closed = await alice.open_stream(bob, "put", b"")
    await closed.write(data)
    await closed.close()
    dropped = await alice.open_stream(bob, "put", b"")
    await dropped.write(data)
    del dropped
    with pytest.raises(ZeroDivisionError):
        await write_and_raise(await alice.open_stream(bob, "put", b""), data)
    failed = await alice.open_stream(bob, "put", b"")
    await failed.write(data)
    await failed.fail(ValueError("secret"))
    # The dropped one shows when it is collected, or the link ends; an early reset may overtake the stream's opening.
    await until(lambda: len(files.failures) + files.node.counters["bad_streams"] >= 4)
    await alice.disconnect(bob)
    await until(lambda: not files.node.connected())
    assert files.received == []


async def test_both_directions_at_once(world: World) -> None:
    alice, bob, _ = await with_files(world)
    async with await alice.open_stream(bob, "chat", b"") as stream, asyncio.TaskGroup() as group:
        reading = group.create_task(read_to_end(stream))
        for _ in range(300):
            await stream.write(b"abc" * 1000)
        await stream.finish()
        assert await reading == b"ABC" * 300_000


async def test_finishing_while_the_answer_is_unread(world: World) -> None:
    alice, bob, _ = await with_files(world)
    async with await alice.open_stream(bob, "chat", b"") as stream:
        await stream.write(b"abc")
        await stream.finish()
        assert await read_to_end(stream) == b"ABC"


async def test_a_cancelled_bulk_read_loses_nothing(world: World) -> None:
    alice, bob, _ = await with_files(world)
    total = 0
    async with await alice.open_stream(bob, "get", b"whole") as stream:
        while True:
            try:
                async with asyncio.timeout(0.0002):
                    data = await stream.read(20_000)
            except TimeoutError:
                continue
            if not data:
                break
            total += len(data)
    assert total == 300_000


async def test_a_reader_that_does_not_read_holds_up_the_writer_alone(world: World) -> None:
    alice, bob, files = await with_files(world)
    async with await alice.open_stream(bob, "ignore", b"") as stream:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await write_for_ever(stream)
        assert stream._sent < 4 << 20
        assert await alice.call(bob, "t.echo", b"calls still pass") == b"calls still pass"
        with pytest.raises(StreamBroken):
            await stream.write(b"after a cancelled write")
    files.gate.set()


async def test_streams_are_given_back(world: World) -> None:
    alice, bob, files = await with_files(world)
    for number in range(100):  # far more than the limit at once
        async with await alice.open_stream(bob, "put", b"", timeout_s=5) as stream:
            await stream.write(b"%d" % number)
            if number % 4:
                await stream.finish()
    await until(lambda: len(files.received) == 75)


async def open_for_ever(node: PeerNetwork, peer: NodeId, held: list[BulkStream]) -> None:
    while True:
        held.append(await node.open_stream(peer, "ignore", b"", timeout_s=0.3))
        assert len(held) < 200


async def test_streams_beyond_the_limit_wait(world: World) -> None:
    alice, bob, files = await with_files(world)
    held = [await alice.open_stream(bob, "ignore", b"") for _ in range(8)]
    with pytest.raises(TimeoutError):
        await open_for_ever(alice, bob, held)  # the transport may admit some more before it has heard of the limit
    files.gate.set()
    for stream in held:
        await stream.abort()
    async with await alice.open_stream(bob, "get", b"whole", timeout_s=5) as stream:
        assert len(await read_to_end(stream)) == 300_000


async def test_a_lost_connection_breaks_the_stream(world: World) -> None:
    alice, bob, _ = await with_files(world)
    async with await alice.open_stream(bob, "ignore", b"") as stream:
        await alice.disconnect(bob)
        with pytest.raises(StreamBroken) as broken:
            await stream.read()
        assert broken.value.code == "peer_lost"
        with pytest.raises(StreamBroken):
            await write_for_ever(stream)
