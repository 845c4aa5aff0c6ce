"""Alice, Bob and Mallory: whatever Mallory sends, she loses her connection, and Bob notices nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shem.cogs.clock import ManualClock, SystemClock
from shem.node.identity.keys import Identity
from shem.node.identity.keystore import new_secret
from shem.node.peer.frames import HEADER, Kind, pack, pack_request
from shem.node.peer.hello import Hello, read_hello, send_hello
from shem.node.peer.iroh import iroh_transport
from shem.node.peer.limits import MAX_HELLO, PeerLimits
from shem.node.peer.loopback import Loopback
from shem.node.peer.network import PeerNetwork
from shem.node.peer.records import RECORD_PURPOSE, Record, SignedRecord, sign_record
from shem.node.peer.remote_errors import PeerUnreachable
from shem.node.peer.transport import CloseCode, Connection, DialFailed, Stream, StreamReset, Transport, TransportLost
from shem.terms.ids import NodeId


async def until(condition: Callable[[], object], deadline_s: float = 5.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110  conditions of several nodes have no common event
            await asyncio.sleep(0.005)


class Street:
    """Where the three live."""

    def __init__(self, kind: str, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.loopback = Loopback()
        self._kind = kind

    async def node(self, limits: PeerLimits | None = None, clock: ManualClock | None = None) -> PeerNetwork:
        identity = Identity.generate()
        node = PeerNetwork(identity, await self._factory(), limits=limits, clock=clock)
        node.serve("t.echo", _echo)
        return await self._stack.enter_async_context(node)

    async def mallory(self, identity: Identity | None = None) -> "Mallory":
        identity = identity or Identity.generate()
        transport = await (await self._factory())(identity.transport_seed, identity.transport_id)
        self._stack.push_async_callback(transport.close)
        return Mallory(identity, transport)

    async def _factory(self):  # type: ignore[no-untyped-def]
        return self.loopback.transport if self._kind == "loopback" else iroh_transport("127.0.0.1:0")


async def _echo(_peer: NodeId, payload: bytes) -> bytes:
    return payload


class Mallory:
    """A transport without manners."""

    def __init__(self, identity: Identity, transport: Transport) -> None:
        self.identity = identity
        self.transport = transport
        self.connection: Connection
        self.control: Stream

    def hello(self) -> Hello:
        """An honest one."""
        now = SystemClock().now()
        record = sign_record(self.identity, self.transport.addresses(), int(now.timestamp() * 1000))
        return Hello(self.identity.make_binding(now), record, 1, 100)

    async def knock(self, node: PeerNetwork) -> None:
        endpoint, _, addresses = node.address().partition("@")
        self.connection = await self.transport.dial(bytes.fromhex(endpoint), addresses.split(","), 5)
        self.control = await self.connection.open_stream()

    async def enter(self, node: PeerNetwork) -> None:
        """As far as an honest peer gets."""
        await self.knock(node)
        await send_hello(self.control, self.hello())
        await read_hello(self.control)
        await until(lambda: self.identity.node_id in node.connected())

    async def thrown_out(self) -> int | None:
        """Why, once the other end has closed; what it says until then is read and ignored."""
        try:
            async with asyncio.timeout(5):
                while await self.control.read(65536):
                    pass
        except TransportLost as error:
            return error.close_code
        except StreamReset:
            pass
        raise AssertionError("the stream ended and the connection did not")


@pytest.fixture(params=["loopback", "iroh"])
async def street(request: pytest.FixtureRequest) -> AsyncIterator[Street]:
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        yield Street(request.param, stack)


@pytest.fixture
async def quiet_street() -> AsyncIterator[Street]:
    """In one process, for what needs a clock or a look inside."""
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        yield Street("loopback", stack)


async def friends(street: Street, **limits: float) -> tuple[PeerNetwork, PeerNetwork]:
    alice, bob = await street.node(replace(PeerLimits(), **limits)), await street.node()
    bob.add_bootstrap(alice.address())
    await until(lambda: bob.connected() and alice.connected())
    return alice, bob


async def still_friends(alice: PeerNetwork, bob: PeerNetwork) -> None:
    assert alice.connected() == [bob.node_id]
    assert await alice.call(bob.node_id, "t.echo", b"there") == b"there"
    assert await bob.call(alice.node_id, "t.echo", b"back") == b"back"
    assert alice.counters["connected"] <= 2


# --- before the hello is believed -----------------------------------------------------------------------------------


def _garbage_binding(mallory: Mallory, _bob: Identity) -> Hello:
    return msgspec.structs.replace(mallory.hello(), binding=bytes(205))


def _replayed_binding(mallory: Mallory, bob: Identity) -> Hello:
    """Bob's own statement, from an endpoint that is not his."""
    return msgspec.structs.replace(mallory.hello(), binding=bob.make_binding(SystemClock().now()))


def _replayed_binding_and_record(mallory: Mallory, bob: Identity) -> Hello:
    return msgspec.structs.replace(
        mallory.hello(), binding=bob.make_binding(SystemClock().now()), record=sign_record(bob, ["127.0.0.1:1"], 1)
    )


def _anothers_record(mallory: Mallory, bob: Identity) -> Hello:
    return msgspec.structs.replace(mallory.hello(), record=sign_record(bob, ["127.0.0.1:1"], 1))


def _forged_record(mallory: Mallory, bob: Identity) -> Hello:
    payload = mallory.hello().record.payload
    return msgspec.structs.replace(mallory.hello(), record=SignedRecord(payload, bob.sign(RECORD_PURPOSE, payload)))


def _record_of_another_endpoint(mallory: Mallory, bob: Identity) -> Hello:
    payload = msgspec.msgpack.encode(Record(mallory.identity.node_id, bob.transport_id, ("127.0.0.1:1",), 1))
    return msgspec.structs.replace(
        mallory.hello(), record=SignedRecord(payload, mallory.identity.sign(RECORD_PURPOSE, payload))
    )


@pytest.mark.parametrize(
    "lie",
    [
        _garbage_binding,
        _replayed_binding,
        _replayed_binding_and_record,
        _anothers_record,
        _forged_record,
        _record_of_another_endpoint,
    ],
)
async def test_a_false_hello(street: Street, lie: Callable[[Mallory, Identity], Hello]) -> None:
    alice, bob = await friends(street)
    mallory = await street.mallory()
    await mallory.knock(alice)
    await send_hello(mallory.control, lie(mallory, Identity.generate()))
    assert await mallory.thrown_out() == CloseCode.BAD_HELLO
    assert alice.counters["bad_hellos"] == 1
    await still_friends(alice, bob)


@pytest.mark.parametrize(
    "first",
    [
        pack_request(1, b"t.echo", b"before any hello"),
        HEADER.pack(MAX_HELLO + 1, Kind.HELLO, 0),
        pack(Kind.HELLO, 0, b"garbage"),
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(100),
    ],
)
async def test_something_else_than_a_hello(street: Street, first: bytes) -> None:
    alice, bob = await friends(street)
    asked: list[bytes] = []

    async def record(_peer: NodeId, payload: bytes) -> bytes:
        asked.append(payload)
        return b""

    alice.serve("t.record", record)
    mallory = await street.mallory()
    await mallory.knock(alice)
    await mallory.control.write(first)
    assert await mallory.thrown_out() == CloseCode.BAD_HELLO
    assert not asked
    await still_friends(alice, bob)


@pytest.mark.parametrize("said", [b"", HEADER.pack(300, Kind.HELLO, 0), HEADER.pack(300, Kind.HELLO, 0) + bytes(299)])
async def test_a_hello_that_does_not_come(street: Street, said: bytes) -> None:
    alice, bob = await friends(street, hello_timeout_s=0.1)
    mallory = await street.mallory()
    await mallory.knock(alice)
    if said:
        await mallory.control.write(said)
    assert await mallory.thrown_out() == CloseCode.HELLO_TIMEOUT
    await until(lambda: alice.counters["hello_timeouts"] == 1)
    await still_friends(alice, bob)


async def test_silent_callers_take_all_places_only_for_a_while(street: Street) -> None:
    alice, _ = await friends(street, hello_timeout_s=0.3, max_handshakes=3)
    silent = [await street.mallory() for _ in range(6)]

    async def knock(one: Mallory) -> None:
        with contextlib.suppress(DialFailed):
            await one.knock(alice)

    await asyncio.gather(*(knock(one) for one in silent))
    await until(lambda: alice.counters["turned_away"] >= 3)
    await until(lambda: alice.counters["hello_timeouts"] >= 3)
    carol = await street.node()
    carol.add_bootstrap(alice.address())
    await until(carol.connected)


async def test_a_full_house(street: Street) -> None:
    alice, bob = await friends(street, max_peers=1)
    carol = await street.node()
    carol.add_bootstrap(alice.address())
    await until(lambda: alice.counters["turned_away"])
    assert carol.connected() == []
    await still_friends(alice, bob)


async def test_a_bootstrap_that_lies(street: Street) -> None:
    alice = await street.node()
    mallory, bob = await street.mallory(), Identity.generate()
    alice.add_bootstrap(f"{mallory.identity.transport_id.hex()}@{','.join(mallory.transport.addresses())}")
    incoming = await mallory.transport.accept()
    assert incoming is not None
    mallory.connection = await incoming.handshake()
    mallory.control = await mallory.connection.accept_stream()
    await send_hello(mallory.control, _replayed_binding_and_record(mallory, bob))
    assert await mallory.thrown_out() == CloseCode.BAD_HELLO
    assert alice.connected() == []


# --- after an honest hello ------------------------------------------------------------------------------------------


def _forged_gossip() -> bytes:
    payload = msgspec.msgpack.encode(Record(Identity.generate().node_id, bytes(32), ("127.0.0.1:1",), 1))
    forged = SignedRecord(payload, Identity.generate().sign(RECORD_PURPOSE, payload))
    return pack(Kind.RECORDS, 0, msgspec.msgpack.encode([forged]))


def _too_many_records() -> bytes:
    signed = sign_record(Identity.generate(), [], 1)
    return pack(Kind.RECORDS, 0, msgspec.msgpack.encode([signed] * 65))


@pytest.mark.parametrize(
    "sent",
    [
        HEADER.pack((1 << 20) + 5000, Kind.REQUEST, 1),
        HEADER.pack(0xFFFFFFFF, Kind.ANSWER, 1),
        pack(99, 0, b""),
        pack(Kind.HELLO, 0, b""),
        pack(Kind.REQUEST, 1, b""),
        pack(Kind.REQUEST, 1, b"\x30short"),
        pack(Kind.RECORDS, 0, b"garbage"),
        pack(Kind.RECORDS, 0, msgspec.msgpack.encode([[b"x", bytes(65)]])),
        _forged_gossip(),
        _too_many_records(),
        b"\x00\x00\x00\x01garbage, garbage, garbage",
    ],
)
async def test_a_violation_ends_the_link(street: Street, sent: bytes) -> None:
    alice, bob = await friends(street)
    mallory = await street.mallory()
    await mallory.enter(alice)
    await mallory.control.write(sent)
    assert await mallory.thrown_out() == CloseCode.VIOLATION
    await until(lambda: alice.counters["violations"] == 1)
    await until(lambda: mallory.identity.node_id not in alice.connected())
    await still_friends(alice, bob)


async def test_two_requests_with_one_id(street: Street) -> None:
    alice, bob = await friends(street)

    async def slow(_peer: NodeId, _payload: bytes) -> bytes:
        return await asyncio.Event().wait() and b""

    alice.serve("t.slow", slow)
    mallory = await street.mallory()
    await mallory.enter(alice)
    await mallory.control.write(pack_request(5, b"t.slow", b"") * 2)
    assert await mallory.thrown_out() == CloseCode.VIOLATION
    await still_friends(alice, bob)


async def test_answers_that_nobody_waits_for_are_nothing(street: Street) -> None:
    alice, _bob = await friends(street)
    mallory = await street.mallory()
    await mallory.enter(alice)
    for kind in (Kind.ANSWER, Kind.ERROR, Kind.CANCEL, Kind.PONG):
        await mallory.control.write(pack(kind, 77, b"whatever"))
    await mallory.control.write(pack_request(1, b"t.echo", b"still here"))
    got = b""
    while b"still here" not in got:
        got += await mallory.control.read(65536)


async def test_an_unreadable_error_ends_the_link(street: Street) -> None:
    alice, bob = await friends(street)
    mallory = await street.mallory()
    await mallory.enter(alice)
    async with asyncio.TaskGroup() as group:
        calling = group.create_task(_unreachable(alice, mallory.identity.node_id))
        got = b""
        while b"t.echo" not in got:
            got += await mallory.control.read(65536)
        start = got.index(b"t.echo") - 1 - HEADER.size
        _, _, frame_id = HEADER.unpack_from(got, start)
        await mallory.control.write(pack(Kind.ERROR, frame_id, b"garbage"))
        assert await mallory.thrown_out() == CloseCode.VIOLATION
        assert (await calling).code == "peer_lost"
    await still_friends(alice, bob)


async def _unreachable(node: PeerNetwork, peer: NodeId) -> PeerUnreachable:
    with pytest.raises(PeerUnreachable) as lost:
        await node.call(peer, "t.echo", b"")
    return lost.value


async def test_a_flood_of_requests(street: Street) -> None:
    alice, bob = await friends(street, max_in_flight=20)
    started = stopped = 0

    async def slow(_peer: NodeId, _payload: bytes) -> bytes:
        nonlocal started, stopped
        started += 1
        try:
            await asyncio.Event().wait()
        finally:
            stopped += 1
        return b""

    alice.serve("t.slow", slow)
    mallory = await street.mallory()
    await mallory.enter(alice)
    for number in range(20):
        await mallory.control.write(pack_request(number, b"t.slow", b""))
    await until(lambda: started == 20)
    await mallory.control.write(pack_request(20, b"t.slow", b""))
    assert await mallory.thrown_out() == CloseCode.FLOOD
    await until(lambda: stopped == 20)
    assert started == 20
    await still_friends(alice, bob)


async def test_requests_cancelled_as_fast_as_they_are_made(street: Street) -> None:
    """Handlers that take their time to wind up cannot be piled up by cancelling their requests."""
    alice, bob = await friends(street, max_in_flight=10)
    gate, running, peak = asyncio.Event(), 0, 0

    async def stubborn(_peer: NodeId, _payload: bytes) -> bytes:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        try:
            await asyncio.Event().wait()
        finally:
            await gate.wait()
            running -= 1
        return b""

    alice.serve("t.stubborn", stubborn)
    mallory = await street.mallory()
    await mallory.enter(alice)
    for number in range(60):
        await mallory.control.write(pack_request(number, b"t.stubborn", b""))
        await until(lambda number=number: running == number + 1 or alice.counters["dropped_requests"])
        await mallory.control.write(pack(Kind.CANCEL, number))
    await until(lambda: alice.counters["dropped_requests"] == 40)
    assert peak == 20
    gate.set()
    assert await alice.call(bob.node_id, "t.echo", b"there") == b"there"


async def test_answers_pile_up_for_who_does_not_read(street: Street) -> None:
    alice, bob = await friends(street, max_in_flight=50, max_queued_bytes=1 << 20)
    mallory = await street.mallory()
    await mallory.enter(alice)
    link = alice._links.get(mallory.identity.node_id)
    assert link is not None
    heaviest = 0
    with pytest.raises(TransportLost) as thrown_out:
        async with asyncio.timeout(10):
            for number in range(10_000):
                await mallory.control.write(pack_request(number, b"t.echo", bytes(100_000)))
                heaviest = max(heaviest, link._queued_bytes)
    assert thrown_out.value.close_code == CloseCode.FLOOD
    assert heaviest <= (1 << 20) + 200_000
    await still_friends(alice, bob)


async def test_more_pings_than_anybody_needs(street: Street) -> None:
    alice, bob = await friends(street)
    mallory = await street.mallory()
    await mallory.enter(alice)
    await mallory.control.write(pack(Kind.PING, 0) * 5000)
    assert await mallory.thrown_out() == CloseCode.VIOLATION
    await still_friends(alice, bob)


async def test_bad_streams(street: Street) -> None:
    alice, bob = await friends(street, hello_timeout_s=0.2)
    mallory = await street.mallory()
    await mallory.enter(alice)
    openings = [b"\x04kind\xff\xff\xff\xff", b"\x64never", b"\x04kind\x00\x00\x00\x05abc"]
    for opening in openings:
        stream = await mallory.connection.open_stream()
        await stream.write(opening)
        if opening.endswith(b"abc"):
            await stream.finish()
    await until(lambda: alice.counters["bad_streams"] == len(openings))
    await until(lambda: mallory.identity.node_id in alice.connected())
    assert await alice.call(bob.node_id, "t.echo", b"there") == b"there"


async def test_a_record_that_points_at_somebody_else(street: Street) -> None:
    """Mallory says that she lives where Bob does: calls for her do not reach Bob under her name."""
    alice, bob = await friends(street)
    mallory, carol = await street.mallory(), Identity.generate()
    await mallory.enter(alice)
    endpoint, _, addresses = bob.address().partition("@")
    payload = msgspec.msgpack.encode(Record(carol.node_id, bytes.fromhex(endpoint), tuple(addresses.split(",")), 1))
    claim = SignedRecord(payload, carol.sign(RECORD_PURPOSE, payload))
    await mallory.control.write(pack(Kind.RECORDS, 0, msgspec.msgpack.encode([claim])))
    await until(lambda: alice.known() == 3)
    mallory.connection.close(0, "")
    await until(lambda: alice.connected() == [bob.node_id])
    with pytest.raises(PeerUnreachable):
        await alice.call(carol.node_id, "t.echo", b"")
    assert await alice.call(bob.node_id, "t.echo", b"there") == b"there"


async def test_endless_strangers_are_told_of(street: Street) -> None:
    """Well-signed records of nodes made up by the hundred: a peer's share of our time is bounded."""
    alice, bob = await friends(street)
    mallory = await street.mallory()
    await mallory.enter(alice)
    link = alice._links.get(mallory.identity.node_id)
    assert link is not None
    alice._gossip._budgets[link] = 10
    for _ in range(3):
        strangers = [sign_record(Identity.generate(), [], 1) for _ in range(10)]
        await mallory.control.write(pack(Kind.RECORDS, 0, msgspec.msgpack.encode(strangers)))
    await until(lambda: alice.counters["records_dropped"] == 20)
    assert alice.known() == 12
    assert await alice.call(bob.node_id, "t.echo", b"there") == b"there"


# --- silence --------------------------------------------------------------------------------------------------------


async def test_a_power_cut_is_noticed(quiet_street: Street) -> None:
    clock, identity = ManualClock(SystemClock().now()), Identity.generate()
    alice = await quiet_street.node(clock=clock)
    mallory = await quiet_street.mallory(identity)
    await mallory.enter(alice)
    went: list[NodeId] = []
    alice.on_disconnected(went.append)
    quiet_street.loopback.vanish(identity.transport_id)
    async with asyncio.TaskGroup() as group:
        call = group.create_task(_unreachable(alice, identity.node_id))
        for _ in range(4):  # 4 s: not long enough to be sure
            await clock.advance(1)
        assert alice.connected() == [identity.node_id]
        for _ in range(6):
            await clock.advance(1)
        assert (await call).code == "peer_lost"
    await until(lambda: went == [identity.node_id])
    assert alice.connected() == []
    assert alice.counters["closed_dead"] == 1


async def test_who_answers_pings_lives(quiet_street: Street) -> None:
    clock = ManualClock(SystemClock().now())
    alice, bob = await quiet_street.node(clock=clock), await quiet_street.node()
    bob.add_bootstrap(alice.address())
    await until(alice.connected)
    link = alice._links.get(bob.node_id)
    assert link is not None
    for _ in range(60):
        await clock.advance(1)
        await until(lambda: link._pinged_at is None)
    assert alice.connected() == [bob.node_id]
    assert alice.counters["connected"] == 1


async def test_who_talks_and_does_not_listen_is_dead_too(quiet_street: Street) -> None:
    clock = ManualClock(SystemClock().now())
    alice, mallory = await quiet_street.node(clock=clock), await quiet_street.mallory()
    await mallory.enter(alice)
    link = alice._links.get(mallory.identity.node_id)
    assert link is not None
    seconds = 0
    while alice.connected():
        heard = link._heard_at
        await mallory.control.write(pack(Kind.CANCEL, 1))
        await until(lambda heard=heard: link._heard_at != heard or heard == clock.monotonic() or not link.live)
        await clock.advance(1)
        seconds += 1
        assert seconds < 60
    assert PeerLimits().stalled_s <= seconds <= PeerLimits().stalled_s + 5


async def test_our_own_standstill_is_nobodys_death(quiet_street: Street) -> None:
    """After a suspended laptop wakes up, peers get the time to answer."""
    clock = ManualClock(SystemClock().now())
    alice, mallory = await quiet_street.node(clock=clock), await quiet_street.mallory()
    await mallory.enter(alice)
    link = alice._links.get(mallory.identity.node_id)
    assert link is not None
    await clock.advance(2)
    assert link._pinged_at is not None
    link.beat(late=False)
    clock._step(clock.monotonic() + 3600)  # no heartbeat ran in this hour
    link.beat(late=True)
    assert link.live
    await clock.advance(4)
    assert link.live
    await clock.advance(6)
    assert not link.live


# --- one connection per pair ----------------------------------------------------------------------------------------


async def _answer_pings(control: Stream) -> None:
    with contextlib.suppress(TransportLost):
        while data := await control.read(65536):
            if HEADER.pack(0, Kind.PING, 0) in data:
                await control.write(pack(Kind.PONG, 0))


async def test_a_second_connection_beside_a_living_one_is_a_duplicate(street: Street) -> None:
    alice = await street.node()
    mallory = await street.mallory()
    await mallory.enter(alice)
    first = mallory.control
    async with asyncio.TaskGroup() as group:
        answering = group.create_task(_answer_pings(first))
        await mallory.knock(alice)
        await send_hello(mallory.control, mallory.hello())
        assert await mallory.thrown_out() == CloseCode.DUPLICATE
        answering.cancel()
    assert alice.counters["connected"] == 1


async def test_a_second_connection_replaces_a_dead_one(street: Street) -> None:
    alice, told = await street.node(), []

    async def came(_peer: NodeId) -> None:
        told.append("came")

    alice.on_connected(came)
    alice.on_disconnected(lambda _peer: told.append("went"))
    mallory = await street.mallory()
    await mallory.enter(alice)
    first, _control = mallory.connection, mallory.control  # both kept: dropping a stream ends it
    await mallory.enter(alice)  # the first does not answer pings
    await until(lambda: told == ["came", "went", "came"])
    with pytest.raises(TransportLost) as replaced:
        await first.accept_stream()
    assert replaced.value.close_code == CloseCode.REPLACED


class _Rotated(Identity):
    """The same node id with another transport key."""

    def __init__(self, secret: bytes) -> None:
        super().__init__(secret)
        self._transport = Ed25519PrivateKey.generate()
        self._transport_seed = self._transport.private_bytes_raw()
        self.transport_id = self._transport.public_key().public_bytes_raw()


async def test_a_replaced_transport_key_is_worth_nothing(street: Street) -> None:
    alice = await street.node()
    secret = new_secret()
    stolen, fresh = await street.mallory(_Rotated(secret)), await street.mallory(_Rotated(secret))
    old_hello = stolen.hello()
    await asyncio.sleep(0.002)  # sequence numbers are milliseconds
    await fresh.enter(alice)
    fresh.connection.close(0, "")
    await until(lambda: not alice.connected())
    await stolen.knock(alice)
    await send_hello(stolen.control, old_hello)
    assert await stolen.thrown_out() == CloseCode.BAD_HELLO
