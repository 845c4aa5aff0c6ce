"""Files that programs hand out and take in themselves, as another node's agent sees them."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from shem.client.files import TransferBroken
from shem.errors import Conflict, NotFound, PeerFailed, Refused, ShemError
from shem.node.files import protocol
from shem.node.files.service import Limits
from shem.node.gsb.service import Limits as BusLimits
from shem.wire.gsb import CHUNK_BYTES
from tests.network.files.programs import GIVES, TAKES, Program, Taker, gives, program, sha3

SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3_000_001]


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def read(node: Any, owner: Any, file_id: str, offset: int = 0) -> bytes:
    async with node.api.open(owner.node_id, file_id, offset=offset) as source:
        return b"".join([chunk async for chunk in source.raw()])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("named", ["by its hash", "at random"])
async def test_given_here_read_there(nodes: Any, tmp_path: Path, size: int, named: str) -> None:
    alice, bob = nodes
    content = secrets.token_bytes(size)
    name = sha3(content) if named == "by its hash" else "8c0f5eab-64a5-4f4e-9d2f-77b2bb4c0c6e"
    async with program(alice.http, GIVES, gives(content), name=name):
        for node in (alice, bob):
            target = tmp_path / node.node_id
            received = await node.api.download(alice.node_id, name, target)
            assert target.read_bytes() == content
            assert (received.size, received.sha3) == (size, sha3(content))
    assert alice.on_disk() == []  # nothing stays on the node


@pytest.mark.parametrize("size", SIZES)
async def test_taken_here_sent_there(nodes: Any, size: int) -> None:
    alice, bob = nodes
    content = secrets.token_bytes(size)
    for node in (alice, bob):
        taker = Taker()
        async with program(alice.http, TAKES, taker) as made:
            sent = await node.api.send(alice.node_id, made.name, pieces(content[:10], content[10:]))
        assert (sent.size, sent.sha3) == (size, sha3(content))
        assert taker.content == content
        assert taker.hash == sha3(content)
        assert taker.offsets == sorted(taker.offsets)
    assert alice.on_disk() == []


async def test_ranges(nodes: Any) -> None:
    alice, bob = nodes
    content = secrets.token_bytes(700_000)
    for name in (sha3(content), "random-name-of-a-file"):
        async with program(alice.http, GIVES, gives(content), name=name):
            for node in (alice, bob):
                assert await read(node, alice, name, 699_990) == content[-10:]
                assert await read(node, alice, name, 300_000) == content[300_000:]
                url = node.http.url(f"/shem-api/v1/files/{alice.node_id}/{name}")
                async with node.http.session.get(url, headers={"Range": "bytes=5-600004"}) as answer:
                    assert answer.status == 206
                    assert answer.headers["Content-Range"] == "bytes 5-600004/700000"
                    assert await answer.read() == content[5:600_005]
                async with node.http.session.get(url, headers={"Range": "bytes=700001-"}) as answer:
                    assert answer.status == 400


async def test_answers_out_of_order_and_in_small_pieces(nodes: Any) -> None:
    alice, bob = nodes
    content = secrets.token_bytes(5 * CHUNK_BYTES + 17)
    held: list[Any] = []

    async with program(alice.http, GIVES) as made, asyncio.TaskGroup() as tasks:

        async def serve() -> None:
            while True:
                request = await made.asked()
                if request["component"] == "GetMetadata":
                    await made.reply(request, {"fileSize": float(len(content))})
                    continue
                held.append(request)
                last = request["payload"]["offset"] + request["payload"]["size"] >= len(content)
                if len(held) < 3 and not last:
                    continue
                for waiting in reversed(held):
                    start, size = waiting["payload"]["offset"], waiting["payload"]["size"]
                    await made.reply(waiting, {"offset": start, "content": content[start : start + min(size, 200_000)]})
                held.clear()

        async def unblock() -> None:
            """What is asked for again comes one at a time: answer it when nothing else comes."""
            while True:
                await asyncio.sleep(0.01)
                for waiting in held:
                    start, size = waiting["payload"]["offset"], waiting["payload"]["size"]
                    await made.reply(waiting, {"offset": start, "content": content[start : start + size]})
                held.clear()

        serving = [tasks.create_task(serve()), tasks.create_task(unblock())]
        assert await read(bob, alice, made.name) == content
        for task in serving:
            task.cancel()


async def test_only_those_who_work_for_the_owner(nodes: Any) -> None:
    alice, bob = nodes
    taker = Taker()
    async with program(alice.http, GIVES, gives(b"secret")) as giving, program(alice.http, TAKES, taker) as taking:
        alice.readers = set()
        with pytest.raises(NotFound):
            await read(bob, alice, giving.name)
        with pytest.raises(NotFound):
            await bob.api.send(alice.node_id, taking.name, pieces(b"unwanted"))
        assert not giving.seen
        assert not taking.seen
        alice.readers = {bob.node_id}
        assert await read(bob, alice, giving.name) == b"secret"
        await bob.api.send(alice.node_id, taking.name, pieces(b"wanted"))
    assert taker.content == b"wanted"


async def test_the_wrong_direction_and_names_of_nobody(nodes: Any) -> None:
    alice, bob = nodes
    async with program(alice.http, GIVES, gives(b"x")) as giving, program(alice.http, TAKES, Taker()) as taking:
        for node in (alice, bob):
            with pytest.raises(NotFound):
                await node.api.send(alice.node_id, giving.name, pieces(b"y"))
            with pytest.raises(NotFound):
                await read(node, alice, taking.name)
            with pytest.raises(NotFound):
                await read(node, alice, "nobody-has-this-name")
            with pytest.raises(NotFound):
                await node.api.send(alice.node_id, "nobody-has-this-name", pieces(b"y"))
    with pytest.raises(NotFound):
        await read(bob, bob, giving.name)  # it is alice's


async def test_the_spool_comes_first(nodes: Any) -> None:
    alice, bob = nodes
    stored = await alice.api.upload(pieces(b"kept"))
    async with program(alice.http, GIVES, name=stored.file_id) as made:
        assert await read(bob, alice, stored.file_id) == b"kept"
        assert made.seen == []


CONTENT = secrets.token_bytes(2 * CHUNK_BYTES)
LIES: dict[str, Any] = {
    "another content": {"content": bytes(CHUNK_BYTES)},
    "too much": {"content": CONTENT[: CHUNK_BYTES + 1]},
    "nothing": {"content": b""},
    "text": {"content": "x" * CHUNK_BYTES},
    "a list": {"content": [1, 2, 3]},
    "another place": {"offset": 1, "content": CONTENT[:CHUNK_BYTES]},
    "no place": {"offset": "here", "content": CONTENT[:CHUNK_BYTES]},
    "null": None,
    "a number": 7,
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_program_that_gives_something_else(nodes: Any, lie: str, tmp_path: Path) -> None:
    """The reader gets an error, never wrong content, and the next one is not harmed."""
    alice, bob = nodes
    name = sha3(CONTENT)

    async def answer(request: Any) -> Any:
        if request["component"] == "GetMetadata":
            return {"fileSize": len(CONTENT)}
        given = LIES[lie]
        return {"offset": request["payload"]["offset"], **given} if isinstance(given, dict) else given

    async with program(alice.http, GIVES, answer, name=name):
        for node in (alice, bob):
            with pytest.raises(PeerFailed):
                await node.api.download(alice.node_id, name, tmp_path / "target")
            assert list(tmp_path.iterdir()) == [p for p in tmp_path.iterdir() if p.is_dir()]
        async with program(alice.http, GIVES, gives(CONTENT)) as honest:
            assert await read(bob, alice, honest.name) == CONTENT


async def test_a_program_that_gives_all_of_it_each_time(nodes: Any) -> None:
    """golem-js does, for a Buffer."""
    alice, bob = nodes

    async def answer(request: Any) -> Any:
        if request["component"] == "GetMetadata":
            return {"fileSize": len(CONTENT) - 5}
        return {"offset": request["payload"]["offset"], "content": CONTENT[:-5]}

    async with program(alice.http, GIVES, answer) as made:
        assert await read(bob, alice, made.name) == CONTENT[:-5]
        assert await read(alice, alice, made.name, 1000) == CONTENT[1000:-5]


@pytest.mark.parametrize("size", [None, -1, 0.5, "5", True, float("inf"), [5], (1 << 53) + 2])
async def test_a_program_that_does_not_know_its_size(nodes: Any, size: Any) -> None:
    alice, bob = nodes
    said = size if size != (1 << 53) + 2 else float(1 << 54)

    async def answer(request: Any) -> Any:
        return {"fileSize": said} if request["component"] == "GetMetadata" and said is not None else None

    async with program(alice.http, GIVES, answer) as made:
        for node in (alice, bob):
            with pytest.raises(PeerFailed, match="how large"):
                await read(node, alice, made.name)


async def test_errors_of_a_program_reach_the_reader(nodes: Any) -> None:
    alice, bob = nodes
    async with program(alice.http, GIVES) as giving, program(alice.http, TAKES) as taking, asyncio.TaskGroup() as tasks:

        async def fails(made: Program, error: Any) -> None:
            while True:
                await made.fail(await made.asked(), error)

        failing = [
            tasks.create_task(fails(giving, {"ReadError": "the disk\x1b[31m is gone"})),
            tasks.create_task(fails(taking, {"WriteError": "full"})),
        ]
        for node in (alice, bob):
            with pytest.raises(ShemError, match=r"ReadError: the disk.*is gone"):
                await read(node, alice, giving.name)
            with pytest.raises(ShemError, match="WriteError: full"):
                await node.api.send(alice.node_id, taking.name, pieces(b"x"))
        for task in failing:
            task.cancel()


async def test_a_socket_that_vanishes_in_the_middle(nodes: Any) -> None:
    alice, bob = nodes
    content = secrets.token_bytes(8 * CHUNK_BYTES)
    for components in (GIVES, TAKES):
        async with program(alice.http, components) as made, asyncio.TaskGroup() as tasks:

            async def vanish(made: Program = made) -> None:
                for _ in range(3):
                    request = await made.asked()
                    first = request["component"] == "GetMetadata"
                    given = {"fileSize": len(content)} if first else {"content": content[:CHUNK_BYTES], "offset": 0}
                    await made.reply(request, given if first or len(made.seen) == 2 else None)
                transport = made.socket._response.connection
                assert transport is not None
                transport.transport.abort()  # type: ignore[union-attr]

            tasks.create_task(vanish())
            with pytest.raises(PeerFailed):
                if components is GIVES:
                    await read(bob, alice, made.name)
                else:
                    await bob.api.send(alice.node_id, made.name, pieces(*[content] * 4))
    assert alice.bus.find("/public/gftp/nothing") is None
    assert alice.files._served == 0
    assert not alice.files._filling


async def test_a_program_that_comes_back_goes_on(nodes: Any) -> None:
    alice, bob = nodes
    made = Program(alice.http, "", GIVES)
    await made.bind()
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(read(bob, alice, made.name))  # asked before there is a socket
        await made.connect()
        serving = tasks.create_task(made.serve(gives(b"content")))
        assert await reading == b"content"
        serving.cancel()
    await made.socket.close()
    await made.connect()
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(made.serve(gives(b"another")))
        assert await read(bob, alice, made.name) == b"another"
        serving.cancel()
    await made.socket.close()


async def test_one_upload_at_a_time_and_one_chunk_at_a_time(nodes: Any) -> None:
    alice, bob = nodes
    async with program(alice.http, TAKES) as made, asyncio.TaskGroup() as tasks:
        content = secrets.token_bytes(3 * CHUNK_BYTES)
        sending = tasks.create_task(bob.api.send(alice.node_id, made.name, pieces(content)))
        request = await made.asked()
        with pytest.raises(Conflict):
            await bob.api.send(alice.node_id, made.name, pieces(b"second"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(made.socket.receive(), 0.05)
        for offset in (0, CHUNK_BYTES, 2 * CHUNK_BYTES):
            assert request["payload"]["chunk"]["offset"] == offset
            await made.reply(request, None)
            request = await made.asked()
        assert request["component"] == "UploadFinished"
        assert not sending.done()
        await made.reply(request, None)
        assert (await sending).sha3 == sha3(content)
        # and again, for a second attempt
        again = tasks.create_task(bob.api.send(alice.node_id, made.name, pieces(b"")))
        await made.reply(await made.asked(), None)
        assert (await again).size == 0


async def test_a_sender_that_lies_about_the_hash(nodes: Any) -> None:
    alice, bob = nodes
    taker = Taker()
    async with program(alice.http, TAKES, taker) as made:
        header = protocol.pack(protocol.Put(made.name))
        for content in (b"", b"short", b"x" * 300_000 + b"0" * 32):
            with pytest.raises(Conflict) as caught:
                async with await bob.peers.open_stream(alice.node_id, protocol.PUT, header) as stream:
                    await stream.write(content)
                    await stream.finish()
                    await protocol.read_head(stream)
            assert caught.value.code == "broken_content"
    assert taker.hash is None  # it was never told that it had it all


async def test_a_peer_that_sends_a_wrong_trailer(nodes: Any) -> None:
    """Bob's node checks what Alice's says last; wrong words are a broken transfer for bob's agent."""
    alice, bob = nodes

    def serve(head: protocol.Head, content: bytes, trailer: bytes) -> None:
        async def handler(_peer: str, _header: bytes, stream: Any) -> None:
            await stream.write(protocol.frame(head) + content)
            await stream.write(trailer)
            await stream.finish()

        alice.peers._stream_handlers[protocol.GET] = handler

    content = secrets.token_bytes(200_000)
    digest = bytes.fromhex(sha3(content))
    head = protocol.Head(len(content), "")
    serve(head, content, digest)
    assert await read(bob, alice, "some-random-name") == content
    for trailer in (b"", digest[:-1], digest + b"\0", bytes(32), digest * 100):
        serve(head, content, trailer)
        with pytest.raises(PeerFailed):
            await read(bob, alice, "some-random-name")
    serve(protocol.Head(len(content) + 1, ""), content, digest)
    with pytest.raises(PeerFailed):
        await read(bob, alice, "some-random-name")
    serve(head, content, digest)
    with pytest.raises(PeerFailed):  # a name that is a hash promises it beforehand
        await read(bob, alice, "f" * 64)


async def test_the_reader_goes_away(nodes: Any) -> None:
    alice, bob = nodes
    content = secrets.token_bytes(1 << 20)

    async def answer(request: Any) -> Any:
        if request["component"] == "GetMetadata":
            return {"fileSize": 1 << 30}
        return {"offset": request["payload"]["offset"], "content": content[: request["payload"]["size"]]}

    async with program(alice.http, GIVES, answer) as made:
        for node in (alice, bob):
            async with node.api.open(alice.node_id, made.name) as source:
                async for _ in source.raw():
                    break
        async with asyncio.timeout(10):
            service = alice.bus.find(f"/public/gftp/{made.name}")
            while service._open or alice.files._served:  # noqa: ASYNC110 - conditions of two parts
                await asyncio.sleep(0.005)
        asked = len(made.seen)
        assert asked < 100  # it did not read on for nobody


class TestSmall:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(file_bytes=600_000)

    async def test_nobody_fills_a_disk(self, nodes: Any) -> None:
        alice, bob = nodes
        taker = Taker()
        async with program(alice.http, TAKES, taker) as made:
            for node in (alice, bob):
                with pytest.raises(Refused) as caught:
                    await node.api.send(alice.node_id, made.name, pieces(bytes(600_000), b"x"))
                assert caught.value.code == "file_too_large"
                assert taker.hash is None
            await bob.api.send(alice.node_id, made.name, pieces(bytes(600_000)))
        assert taker.hash == sha3(bytes(600_000))


class TestImpatient:
    @pytest.fixture
    async def impatient(self, nodes: Any) -> Any:
        alice, bob = nodes
        alice.bus._limits = BusLimits(open_s=0.02, reply_s=0.06)
        return alice, bob

    async def test_nobody_connects_and_nobody_answers(self, impatient: Any) -> None:
        alice, bob = impatient
        made = Program(alice.http, "", GIVES)
        await made.bind()
        for node in (alice, bob):
            with pytest.raises(PeerFailed, match="not connected"):
                await read(node, alice, made.name)
        await made.connect()
        for node in (alice, bob):
            with pytest.raises(PeerFailed, match="does not answer"):
                await read(node, alice, made.name)
        await made.socket.close()


async def test_a_download_of_an_unhashed_file_is_not_pieced_together(nodes: Any, tmp_path: Path) -> None:
    alice, bob = nodes
    content = secrets.token_bytes(4 * CHUNK_BYTES)
    attempts = 0

    async with program(alice.http, GIVES) as made, asyncio.TaskGroup() as tasks:

        async def serve() -> None:
            nonlocal attempts
            while True:
                request = await made.asked()
                if request["component"] == "GetMetadata":
                    attempts += 1
                    await made.reply(request, {"fileSize": len(content)})
                elif request["payload"]["offset"] < 2 * CHUNK_BYTES:
                    start = request["payload"]["offset"]
                    await made.reply(request, {"offset": start, "content": content[start : start + CHUNK_BYTES]})
                else:
                    await made.fail(request, {"ReadError": "no more"})

        serving = tasks.create_task(serve())
        with pytest.raises(TransferBroken):
            await bob.api.download(alice.node_id, made.name, tmp_path / "target")
        assert attempts == 1
        serving.cancel()
    assert not (tmp_path / "target").exists()


async def test_frames_that_nobody_can_read_end_their_socket_alone(nodes: Any) -> None:
    alice, bob = nodes
    async with program(alice.http, GIVES, gives(b"fine")) as honest:
        for noise in ("text", b"", b"\xff" * 40, b"\x00" * 3, bytes(5 << 20)):
            made = Program(alice.http, "", GIVES)
            await made.bind()
            socket = await made.connect()
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(refused(bob, alice, made.name))
                await made.asked()
                with contextlib.suppress(ConnectionError):  # the largest is not even read to its end
                    await (socket.send_str(noise) if isinstance(noise, str) else socket.send_bytes(noise))
                end = await socket.receive()
                await reading
            if len(noise) < 1 << 20:
                assert (end.type, end.data) == (aiohttp.WSMsgType.CLOSE, 1003 if isinstance(noise, str) else 1008)
            await socket.close()
        assert await read(bob, alice, honest.name) == b"fine"


async def refused(node: Any, owner: Any, file_id: str) -> None:
    with pytest.raises(PeerFailed):
        await read(node, owner, file_id)
