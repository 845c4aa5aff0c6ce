"""The bus without sockets: who is bound, who is asked, and what becomes of requests when those who should answer go."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shem.errors import Conflict, NotFound, Refused
from shem.node.gsb.service import AddressTaken, Bus, Limits, Line, LineEnded, Service, ServiceFailed, ServiceSilent
from shem.wire.gsb import GFTP, Listen, Reply

OWNER, OTHER = "0x" + "a" * 40, "0x" + "b" * 40


def bind(bus: Bus, on: str = GFTP + "x", *, owner: str = OWNER, shared: bool = False) -> Service:
    return bus.of(owner, bus.bind(owner, Listen(on=on, components=["GetChunk", "UploadChunk"]), shared=shared))


async def answer(line: Line, payload: Any = None, error: tuple[str, str] | None = None) -> Any:
    request = await line.next()
    line.answered(Reply(request.id, payload, error))
    return request.payload


async def test_asked_and_answered_out_of_order() -> None:
    service = bind(Bus())
    line = service.attach()
    futures = [service.request("GetChunk", {"offset": n}) for n in range(3)]
    requests = [await line.next() for _ in range(3)]
    assert [r.payload["offset"] for r in requests] == [0, 1, 2]
    for request in reversed(requests):
        line.answered(Reply(request.id, request.payload["offset"] * 10))
    line.answered(Reply(requests[0].id, "again"))
    line.answered(Reply("nobody asked this", "?"))
    assert await asyncio.gather(*futures) == [0, 10, 20]
    assert not line.asked


async def test_requests_before_the_socket_wait_in_their_order() -> None:
    service = bind(Bus())
    futures = [service.request("GetChunk", n) for n in range(3)]
    line = service.attach()
    assert [await answer(line, "done") for _ in range(3)] == [0, 1, 2]
    assert await asyncio.gather(*futures) == ["done"] * 3


async def test_waiting_has_its_end() -> None:
    service = bind(Bus(Limits(open_s=0.01, reply_s=0.02)))
    with pytest.raises(ServiceSilent, match="not connected"):
        await service.request("GetChunk", {})
    line = service.attach()
    future = service.request("GetChunk", {})
    request = await line.next()
    with pytest.raises(ServiceSilent, match="does not answer"):
        await future
    line.answered(Reply(request.id, "too late"))
    late = service.request("GetChunk", {})  # never even taken
    with pytest.raises(ServiceSilent):
        await late
    assert service.take(line) is None


async def test_errors_of_a_program() -> None:
    service = bind(Bus())
    line = service.attach()
    future = service.request("GetChunk", {})
    await answer(line, error=("ReadError", "boom"))
    with pytest.raises(ServiceFailed) as caught:
        await future
    assert (caught.value.variant, caught.value.text, caught.value.message) == ("ReadError", "boom", "ReadError: boom")


async def test_a_socket_that_goes_fails_what_it_was_asked_and_no_more() -> None:
    service = bind(Bus())
    line = service.attach()
    asked = service.request("UploadChunk", 1)
    await line.next()
    waiting = service.request("UploadChunk", 2)
    service.detach(line)
    service.detach(line)
    with pytest.raises(ServiceSilent, match="left"):
        await asked
    assert await answer(service.attach(), "done") == 2
    assert await waiting == "done"


async def test_a_second_socket_takes_the_place_of_the_first() -> None:
    service = bind(Bus())
    first = service.attach()
    listening = asyncio.gather(first.next())
    asked = service.request("UploadChunk", 1)
    await asyncio.sleep(0)
    second = service.attach()
    assert len(await listening) == 1
    with pytest.raises(ServiceSilent):
        await asked
    with pytest.raises(LineEnded) as caught:
        await first.next()
    assert caught.value.code == 1008
    after = service.request("UploadChunk", 2)
    assert await answer(second, "second") == 2
    assert await after == "second"
    service.detach(first)  # its socket closes at last
    assert service.lineless_since is None


async def test_givers_up_leave_nothing() -> None:
    service = bind(Bus(Limits(max_requests=2)))
    line = service.attach()
    sent, unsent = service.request("GetChunk", 1), service.request("GetChunk", 2)
    with pytest.raises(Conflict):
        service.request("GetChunk", 3)
    await line.next()
    sent.cancel()
    unsent.cancel()
    await asyncio.sleep(0)
    assert service.take(line) is None
    assert not line.asked
    assert await asyncio.gather(*[service.request("GetChunk", 4), answer(line, "fine")]) == ["fine", 4]


async def test_components_that_were_not_offered() -> None:
    with pytest.raises(NotFound):
        bind(Bus()).request("GetMetadata", {})


async def test_addresses_are_taken_once_and_belong_to_somebody() -> None:
    bus = Bus()
    service = bind(bus)
    id_ = "L3B1YmxpYy9nZnRwL3g"
    for owner, shared in ((OWNER, False), (OTHER, False), (OWNER, True), (OTHER, True)):
        with pytest.raises(AddressTaken):
            bus.bind(owner, Listen(on=service.on, components=["GetChunk", "UploadChunk"]), shared=shared)
    with pytest.raises(NotFound):
        bus.of(OTHER, id_)
    with pytest.raises(NotFound):
        bus.unbind(OTHER, id_)
    with pytest.raises(Refused):
        bus.bind(OWNER, Listen(on="", components=[]))
    assert bus.find(service.on) is service
    line, asked = service.attach(), service.request("GetChunk", {})
    await line.next()
    unasked = service.request("GetChunk", {})
    bus.unbind(OWNER, id_)
    for future in (asked, unasked):
        with pytest.raises(ServiceSilent):
            await future
    with pytest.raises(LineEnded) as caught:
        await line.next()
    assert caught.value.code == 1000
    assert bus.find(service.on) is None
    with pytest.raises(NotFound):
        bus.unbind(OWNER, id_)


async def test_too_many_services_and_those_that_nobody_needs() -> None:
    bus = Bus(Limits(max_services=2, idle_s=0.0))
    used = bind(bus, "/a")
    used.attach()
    bind(bus, "/b")
    bind(bus, "/c")  # /b has no socket
    assert bus.find("/b") is None
    bus.find("/c").attach()  # type: ignore[union-attr]
    with pytest.raises(Conflict) as caught:
        bind(bus, "/d")
    assert caught.value.code == "too_many_services"


class TestShared:
    async def test_it_lives_as_long_as_one_socket(self) -> None:
        bus = Bus()
        first = bind(bus, shared=True)
        one = first.attach()
        assert bind(bus, shared=True) is first
        two = first.attach()
        bus.unbind(OWNER, "L3B1YmxpYy9nZnRwL3g")
        assert bus.find(first.on) is first
        asked = first.request("GetChunk", {"offset": 5})
        await two.next()
        first.detach(two)  # and what it was asked goes to the other
        assert await answer(one, "one") == {"offset": 5}
        assert await asked == "one"
        first.detach(one)
        assert bus.find(first.on) is None

    async def test_only_for_the_same_owner_and_components(self) -> None:
        bus = Bus(Limits(max_lines=1))
        service = bind(bus, shared=True)
        for owner, components in ((OTHER, ["GetChunk", "UploadChunk"]), (OWNER, ["GetChunk"])):
            with pytest.raises(AddressTaken):
                bus.bind(owner, Listen(on=service.on, components=components), shared=True)
        service.attach()
        with pytest.raises(Conflict):
            service.attach()

    async def test_a_new_one_is_not_dropped_by_the_old(self) -> None:
        bus = Bus()
        old = bind(bus, shared=True)
        line = old.attach()
        bus.stop()
        new = bind(bus, shared=True)
        old.detach(line)
        assert bus.find(new.on) is new
