"""Mallory has a node of her own and speaks the peer protocol; she gets nothing and breaks nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shem.client.activity import ActivityApi, ProviderActivityApi
from shem.client.exeunit import ExeUnitLink
from shem.errors import Conflict, NotAllowed, NotAuthenticated, NotFound, Refused
from shem.node.activity import events, protocol
from shem.node.activity.settings import Settings
from shem.wire.exeunit import Destroy

A32 = "a" * 32


@pytest.fixture
async def mallory(pair: Any, tmp_path: Path, settings: Settings) -> AsyncIterator[Any]:
    node = type(pair.alice)("mallory", pair.world, tmp_path, settings)
    node.bootstraps = [pair.alice.peers.address(), pair.bob.peers.address()]
    await node.start()
    yield node
    await node.stop()


async def call(node: Any, to: Any, method: str, message: Any) -> bytes:
    payload = message if isinstance(message, bytes) else protocol.pack(message)
    return await node.peers.call(to.node_id, method, payload, timeout_s=5)


async def test_she_cannot_use_what_is_not_hers(pair: Any, tools: Any, mallory: Any) -> None:
    activity_id, unit = await pair.activity()
    agreement = await pair.rent.agreement(activity_id)
    script = msgspec.json.encode([tools.run("echo", "mine")]).decode()
    with pytest.raises(NotAllowed):
        await call(mallory, pair.bob, protocol.CREATE, protocol.Create(A32, agreement))
    with pytest.raises(NotFound):
        await call(mallory, pair.bob, protocol.CREATE, protocol.Create(A32, "f" * 64))
    with pytest.raises(NotAllowed):
        await call(mallory, pair.bob, protocol.EXEC, protocol.Exec(activity_id, A32, script))
    with pytest.raises(NotAllowed):
        await call(mallory, pair.bob, protocol.DESTROY, protocol.Destroy(activity_id))
    answer = await call(mallory, pair.bob, protocol.SYNC, protocol.Sync([protocol.Have(activity_id, 99)]))
    assert protocol.unpack(answer, protocol.Unknown).unknown == [activity_id]
    finished = events.Event(99, "", 0, 0, events.encode_kind(events.StateChanged("Terminated", None, None, None)))
    with pytest.raises(NotAllowed):
        await call(mallory, pair.alice, protocol.PUSH, protocol.Push(activity_id, [finished]))
    with pytest.raises(NotFound):
        await call(mallory, pair.alice, protocol.PUSH, protocol.Push(A32, [finished]))
    assert (await pair.rent.state(activity_id)).state[0] == "Ready"
    assert len(unit.begun) == 2


async def test_garbage_is_refused(pair: Any, mallory: Any) -> None:
    activity_id, _ = await pair.activity()
    for to, method in [
        (pair.bob, protocol.CREATE),
        (pair.bob, protocol.EXEC),
        (pair.bob, protocol.DESTROY),
        (pair.bob, protocol.SYNC),
        (pair.alice, protocol.PUSH),
    ]:
        for payload in (b"", b"\xc1", b"\x80", msgspec.msgpack.encode({"activity_id": "../x"}), b"\x91" * 5000):
            with pytest.raises(Refused) as caught:
                await call(mallory, to, method, payload)
            assert caught.value.code == "bad_message"
    assert (await pair.rent.state(activity_id)).state[0] == "Ready"


def state_event(no: int, state: str) -> events.Event:
    return events.Event(no, "", 0, 0, events.encode_kind(events.StateChanged(state, None, None, None)))


async def test_a_lying_provider(pair: Any, tools: Any) -> None:
    """Bob's node itself pushes what cannot be."""
    activity_id, _ = await pair.activity()
    have = pair.alice.db.connection.execute("select have_no from rented").fetchone()[0]
    push = protocol.Push
    bad = [
        push(activity_id, [events.Event(have + 1, "", 0, 0, b"\xc1")]),
        push(activity_id, [state_event(have + 1, "Flying")]),
        push(activity_id, [], protocol.Usage((float("nan"),), 1.0)),
        push(activity_id, [], protocol.Usage((-1.0,), 1.0)),
    ]
    for message in bad:
        with pytest.raises(Refused):
            await call(pair.bob, pair.alice, protocol.PUSH, message)
    for ignored in (
        push(activity_id, [state_event(have + 5, "Terminated")]),  # a gap
        push(activity_id, [state_event(1, "Terminated")]),  # old news
    ):
        answer = await call(pair.bob, pair.alice, protocol.PUSH, ignored)
        assert protocol.unpack(answer, protocol.Got).no == have
    odd = [
        events.Event(have + 1, "b" * 32, 0, 0, events.encode_kind(events.Finished(0, None))),  # no such batch
        state_event(have + 2, "New"),  # no such step
    ]
    answer = await call(pair.bob, pair.alice, protocol.PUSH, push(activity_id, odd))
    assert protocol.unpack(answer, protocol.Got).no == have + 2
    assert (await pair.rent.state(activity_id)).state[0] == "Ready"


async def test_repeating_is_harmless_and_contradicting_refused(pair: Any, tools: Any) -> None:
    activity_id, unit = await pair.activity()
    agreement = await pair.rent.agreement(activity_id)
    script = msgspec.json.encode([tools.run("echo", "once")]).decode()
    for _ in range(3):
        await call(pair.alice, pair.bob, protocol.CREATE, protocol.Create(activity_id, agreement))
        await call(pair.alice, pair.bob, protocol.EXEC, protocol.Exec(activity_id, A32, script))
    other = msgspec.json.encode([tools.run("echo", "twice")]).decode()
    with pytest.raises(Conflict):
        await call(pair.alice, pair.bob, protocol.EXEC, protocol.Exec(activity_id, A32, other))
    with pytest.raises(Conflict):
        await call(pair.alice, pair.bob, protocol.CREATE, protocol.Create(activity_id, pair.agree()))
    await tools.until(lambda: (A32, 0) in unit.begun)
    assert unit.begun.count((A32, 0)) == 1


async def test_rest_belongs_to_the_key(pair: Any, tools: Any, mallory: Any) -> None:
    activity_id, _ = await pair.activity()
    async with mallory.http() as http:
        api = ActivityApi(http)
        for attempt in (
            api.state(activity_id),
            api.destroy(activity_id),
            api.exec(activity_id, [tools.run("echo", "x")]),
            api.create(await pair.rent.agreement(activity_id)),
        ):
            with pytest.raises(NotFound):
                await attempt
    mallory.port, mallory.key = pair.bob.port, "wrong"
    async with mallory.http() as http:
        with pytest.raises(NotAuthenticated):
            await ProviderActivityApi(http).state(activity_id)
    row_owner = "update hosted set owner = '0x" + "0" * 40 + "'"
    pair.bob.db.connection.execute(row_owner)  # an activity of another identity of the same daemon
    async with pair.bob.http() as http:
        for attempt in (
            ProviderActivityApi(http).state(activity_id),
            ProviderActivityApi(http).set_state(activity_id, "Terminated"),
        ):
            with pytest.raises(NotAllowed):
                await attempt
        async with ExeUnitLink(http, activity_id) as link:
            assert [i async for i in link.instructions()] == [Destroy()]
        assert await ProviderActivityApi(http).events(after=datetime(2020, 1, 1, tzinfo=UTC), timeout_s=0) == []
