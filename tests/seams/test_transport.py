"""Every transport behaves the same: the in-process one is worth as much as these tests say."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from shem.node.identity.keys import Identity
from shem.node.peer.iroh import iroh_transport
from shem.node.peer.loopback import Loopback
from shem.node.peer.transport import Connection, DialFailed, Stream, StreamReset, Transport, TransportLost

DEADLINE_S = 10.0

Bind = Callable[[Identity], Awaitable[Transport]]


@pytest.fixture(params=["loopback", "iroh"])
async def bind(request: pytest.FixtureRequest) -> AsyncIterator[Bind]:
    """Makes endpoints that can reach each other, and closes them."""
    world = Loopback()
    async with AsyncExitStack() as stack, asyncio.timeout(60):

        async def make(identity: Identity) -> Transport:
            factory = world.transport if request.param == "loopback" else iroh_transport("127.0.0.1:0")
            transport = await factory(identity.transport_seed, identity.transport_id)
            stack.push_async_callback(transport.close)
            return transport

        yield make


async def accept(transport: Transport) -> Connection:
    incoming = await transport.accept()
    assert incoming is not None
    return await incoming.handshake()


@asynccontextmanager
async def joined(bind: Bind) -> AsyncIterator[tuple[Connection, Connection]]:
    """A connection, as its dialler and as its acceptor see it."""
    alice, bob = Identity.generate(), Identity.generate()
    a, b = await bind(alice), await bind(bob)
    async with asyncio.TaskGroup() as group, asyncio.timeout(DEADLINE_S):
        accepting = group.create_task(accept(b))
        dialled = await a.dial(bob.transport_id, b.addresses(), 5)
    assert dialled.remote_id == bob.transport_id
    assert accepting.result().remote_id == alice.transport_id
    yield dialled, accepting.result()


async def stream_pair(dialled: Connection, accepted: Connection) -> tuple[Stream, Stream]:
    """A stream whose first byte has been exchanged."""
    ours = await dialled.open_stream()
    await ours.write(b"!")
    theirs = await accepted.accept_stream()
    assert await theirs.read(1) == b"!"
    return ours, theirs


async def read_all(stream: Stream) -> bytes:
    parts = []
    while data := await stream.read(65536):
        parts.append(data)
    return b"".join(parts)


async def write_for_ever(stream: Stream) -> None:
    while True:
        await stream.write(bytes(1000))


async def test_bytes_arrive_both_ways_and_end_clean(bind: Bind) -> None:
    async with joined(bind) as (dialled, accepted), asyncio.TaskGroup() as group:
        ours, theirs = await stream_pair(dialled, accepted)
        there, back = bytes(range(256)) * 20_000, bytes(reversed(range(256))) * 9_000

        async def send(stream: Stream, data: bytes) -> None:
            for start in range(0, len(data), 100_000):
                await stream.write(data[start : start + 100_000])
            await stream.finish()

        group.create_task(send(ours, there))
        group.create_task(send(theirs, back))
        arrived_there = group.create_task(read_all(theirs))
        assert await read_all(ours) == back
        assert await arrived_there == there
        assert await ours.read(10) == b""


async def test_the_acceptor_may_open_streams_too(bind: Bind) -> None:
    async with joined(bind) as (dialled, accepted):
        theirs, ours = await stream_pair(accepted, dialled)
        await ours.write(b"answer")
        assert await theirs.read(100) == b"answer"


async def test_a_read_gives_at_most_what_was_asked_for(bind: Bind) -> None:
    async with joined(bind) as (dialled, accepted):
        ours, theirs = await stream_pair(dialled, accepted)
        await ours.write(b"abcdef")
        got = b""
        while len(got) < 6:
            piece = await theirs.read(2)
            assert 1 <= len(piece) <= 2
            got += piece
        assert got == b"abcdef"


async def test_a_reset_is_not_an_end(bind: Bind) -> None:
    async with joined(bind) as (dialled, accepted):
        ours, theirs = await stream_pair(dialled, accepted)
        await ours.reset(7)
        with pytest.raises(StreamReset) as broken:
            await read_all(theirs)
        assert broken.value.reset_code == 7
        await ours.reset(7)  # again is harmless
        await theirs.write(b"still open")  # the other half
        assert await ours.read(100) == b"still open"


async def test_stopping_ends_the_writer(bind: Bind) -> None:
    async with joined(bind) as (dialled, accepted):
        ours, theirs = await stream_pair(dialled, accepted)
        await theirs.stop(9)
        with pytest.raises(StreamReset) as stopped:
            await write_for_ever(ours)
        assert stopped.value.reset_code == 9


async def test_writing_after_the_end_is_an_error(bind: Bind) -> None:
    async with joined(bind) as (dialled, accepted):
        ours, theirs = await stream_pair(dialled, accepted)
        await ours.finish()
        with pytest.raises(StreamReset):
            await ours.write(b"more")
        assert await theirs.read(10) == b""


async def test_a_writer_waits_for_its_reader(bind: Bind) -> None:
    async with joined(bind) as (dialled, accepted), asyncio.TaskGroup() as group:
        ours, theirs = await stream_pair(dialled, accepted)
        total = 0
        blocked = asyncio.Event()

        async def pour() -> None:
            nonlocal total
            for _ in range(200):
                await ours.write(bytes(65536))
                total += 65536
            await ours.finish()

        async def watch() -> None:
            seen = -1
            while seen != total or total == 0:  # no progress for a while: it waits
                seen = total
                await asyncio.sleep(0.2)  # the claim is that nothing moves in this time
            blocked.set()

        pouring = group.create_task(pour())
        group.create_task(watch())
        await blocked.wait()
        assert not pouring.done()
        assert total < 4 << 20
        assert len(await read_all(theirs)) == 200 * 65536
        await pouring


async def test_a_cancelled_read_loses_nothing(bind: Bind) -> None:
    async with joined(bind) as (dialled, accepted):
        ours, theirs = await stream_pair(dialled, accepted)
        got = b""
        for number in range(200):
            reading = asyncio.get_running_loop().create_task(theirs.read(100))
            await asyncio.sleep(0)
            await ours.write(bytes([number]))
            if number % 3:
                await asyncio.sleep(0)
            reading.cancel()
            done, _ = await asyncio.wait([reading])
            for task in done:
                got += b"" if task.cancelled() else task.result()
        await ours.finish()
        assert got + await read_all(theirs) == bytes(range(200))


async def test_a_close_ends_everything_with_its_code(bind: Bind) -> None:
    async with joined(bind) as (dialled, accepted):
        ours, theirs = await stream_pair(dialled, accepted)
        async with asyncio.TaskGroup() as group:
            waiting: list[asyncio.Task[object]] = [
                group.create_task(_error(theirs.read(10))),
                group.create_task(_error(accepted.accept_stream())),
            ]
            await asyncio.sleep(0)
            dialled.close(42, "enough")
            dialled.close(43, "said already")
        for task in waiting:
            error = task.result()
            assert isinstance(error, TransportLost)
            assert error.close_code == 42
        for operation in (accepted.open_stream, dialled.open_stream, dialled.accept_stream):
            assert isinstance(await _error(operation()), TransportLost)
        assert isinstance(await _error(ours.write(b"x")), TransportLost)


async def _error(operation: Awaitable[object]) -> BaseException:
    try:
        await operation
    except (TransportLost, StreamReset) as error:
        return error
    raise AssertionError("it did not fail")


async def test_streams_are_limited_and_given_back(bind: Bind) -> None:
    async with joined(bind) as (dialled, accepted), asyncio.TaskGroup() as group:
        accepted.limit_streams(2)
        opened = []
        while True:  # the limit reaches the other end some time later
            opening = group.create_task(dialled.open_stream())
            await asyncio.wait([opening], timeout=0.3)
            if not opening.done():
                break
            await opening.result().write(b"!")
            opened.append((opening.result(), await accepted.accept_stream()))
        assert 2 <= len(opened) <= 100
        for ours, theirs in opened:
            await ours.finish()
            await theirs.finish()
            assert await read_all(theirs) == b"!"
            assert await read_all(ours) == b""
        async with asyncio.timeout(5):
            await opening


async def test_wrong_keys_and_dead_addresses_fail_in_time(bind: Bind) -> None:
    alice, bob, carol = (Identity.generate() for _ in range(3))
    a, b = await bind(alice), await bind(bob)
    async with asyncio.TaskGroup() as group:
        answering = group.create_task(_answer(b))
        for endpoint_id, addresses in (
            (carol.transport_id, b.addresses()),  # somebody else lives there
            (bob.transport_id, ["127.0.0.1:9"]),  # nobody lives there
            (bob.transport_id, []),
            (alice.transport_id, a.addresses()),  # ourselves
        ):
            with pytest.raises(DialFailed) as failed:
                await a.dial(endpoint_id, addresses, 0.5)
            assert failed.value.message
        answering.cancel()


async def _answer(transport: Transport) -> None:
    while (incoming := await transport.accept()) is not None:
        with pytest.raises(DialFailed):
            await incoming.handshake()


async def test_a_refused_caller_is_told(bind: Bind) -> None:
    alice, bob = Identity.generate(), Identity.generate()
    a, b = await bind(alice), await bind(bob)

    async def refuse() -> None:
        incoming = await b.accept()
        assert incoming is not None
        await incoming.refuse()

    async with asyncio.TaskGroup() as group:
        group.create_task(refuse())
        with pytest.raises(DialFailed):
            await a.dial(bob.transport_id, b.addresses(), 5)


async def test_closing_an_endpoint_ends_its_connections_and_its_accepting(bind: Bind) -> None:
    alice, bob = Identity.generate(), Identity.generate()
    a, b = await bind(alice), await bind(bob)
    async with asyncio.TaskGroup() as group:
        accepting = group.create_task(accept(b))
        dialled = await a.dial(bob.transport_id, b.addresses(), 5)
        accepted = await accepting
        next_caller = group.create_task(b.accept())
        await asyncio.sleep(0)
        await b.close()
        assert await next_caller is None
        async with asyncio.timeout(5):
            error = await _error(dialled.accept_stream())
            assert isinstance(error, TransportLost)
            assert error.close_code == 0
            await _error(accepted.accept_stream())
        with pytest.raises(DialFailed):
            await a.dial(bob.transport_id, b.addresses(), 0.5)


async def test_the_same_key_can_listen_again(bind: Bind) -> None:
    alice, bob = Identity.generate(), Identity.generate()
    a = await bind(alice)
    for _ in range(2):
        b = await bind(bob)
        async with asyncio.TaskGroup() as group:
            accepting = group.create_task(accept(b))
            dialled = await a.dial(bob.transport_id, b.addresses(), 5)
            await accepting
        dialled.close(0, "")
        await b.close()


async def test_a_loopback_listener_opens_no_public_socket() -> None:
    """iroh alone: given one family it would open the other one on all interfaces."""
    alice = Identity.generate()
    for listen in ("127.0.0.1:0", "[::1]:0"):
        transport = await iroh_transport(listen)(alice.transport_seed, alice.transport_id)
        try:
            assert all(one.startswith(("127.0.0.1:", "[::1]:")) for one in transport.addresses())
            assert not any("0.0.0.0" in one or "[::]" in one for one in transport._endpoint.bound_sockets())
        finally:
            await transport.close()
