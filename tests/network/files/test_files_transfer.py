"""Files between agents, their nodes, and the other node."""

from __future__ import annotations

import asyncio
import hashlib
import resource
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from shem.client.files import FilesApi, TransferBroken
from shem.errors import Conflict, NotAllowed, NotFound, PeerFailed, Refused
from shem.node.files import protocol
from shem.node.files.service import Limits
from shem.wire.files import parse_gftp_url


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def sha3(content: bytes) -> str:
    return hashlib.sha3_256(content).hexdigest()


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - conditions of several kinds, under a deadline
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("size", [0, 1, 131_072, 524_288, 3_000_001])
async def test_published_here_read_there(nodes: Any, tmp_path: Path, size: int) -> None:
    alice, bob = nodes
    content = secrets.token_bytes(size)
    source = tmp_path / "source"
    source.write_bytes(content)
    stored = await alice.api.upload(source)
    assert (stored.file_id, stored.size) == (sha3(content), size)
    assert parse_gftp_url(stored.url) == (alice.node_id, stored.file_id)
    for node in (alice, bob):
        target = tmp_path / f"from {node.node_id}"
        received = await node.api.download(alice.node_id, stored.file_id, target)
        assert target.read_bytes() == content
        assert (received.size, received.sha3) == (size, sha3(content))


@pytest.mark.parametrize("size", [0, 31, 32, 33, 131_072 + 5, 3_000_001])
async def test_an_inbox_is_filled_from_there(nodes: Any, tmp_path: Path, size: int) -> None:
    alice, bob = nodes
    content = secrets.token_bytes(size)
    inbox = await alice.api.create_inbox()
    assert (await alice.api.wait_inbox(inbox.file_id, timeout_s=0)).state == "empty"
    waiting = asyncio.gather(alice.api.wait_inbox(inbox.file_id, timeout_s=10))
    sent = await bob.api.send(alice.node_id, inbox.file_id, pieces(content[:10], content[10:]))
    assert (sent.size, sent.sha3) == (size, sha3(content))
    (state,) = await waiting
    assert (state.state, state.size, state.sha3) == ("complete", size, sha3(content))
    await alice.api.download(alice.node_id, inbox.file_id, tmp_path / "result")
    assert (tmp_path / "result").read_bytes() == content
    with pytest.raises(Conflict) as caught:
        await bob.api.send(alice.node_id, inbox.file_id, pieces(b"again"))
    assert caught.value.code == "inbox_busy"


async def test_an_own_inbox(nodes: Any, tmp_path: Path) -> None:
    alice, _ = nodes
    inbox = await alice.api.create_inbox()
    assert (await alice.api.send(alice.node_id, inbox.file_id, pieces(b"local"))).sha3 == sha3(b"local")
    assert (await alice.api.wait_inbox(inbox.file_id)).state == "complete"


async def test_references_are_counted(nodes: Any) -> None:
    alice, bob = nodes
    ids = {(await alice.api.upload(pieces(b"same"))).file_id for _ in range(2)}
    (file_id,) = ids
    with pytest.raises(NotAllowed):
        await bob.api.delete(alice.node_id, file_id)
    await alice.api.delete(alice.node_id, file_id)
    assert await read(bob.api, alice.node_id, file_id) == b"same"
    await alice.api.delete(alice.node_id, file_id)
    with pytest.raises(NotFound):
        await read(bob.api, alice.node_id, file_id)
    with pytest.raises(NotFound):
        await alice.api.delete(alice.node_id, file_id)
    assert alice.on_disk() == []


async def read(api: FilesApi, node_id: str, file_id: str) -> bytes:
    async with api.open(node_id, file_id) as source:
        return b"".join([chunk async for chunk in source.chunks()])


@pytest.mark.parametrize("who", [0, 1])
async def test_ranges(nodes: Any, who: int) -> None:
    alice, _ = nodes
    stored = await alice.api.upload(pieces(b"0123456789"))
    http = nodes[who].http
    url = http.url(f"/shem-api/v1/files/{alice.node_id}/{stored.file_id}")
    for asked, expected in (("bytes=4-", b"456789"), ("bytes=0-3", b"0123"), ("bytes=2-100", b"23456789")):
        async with http.session.get(url, headers={"Range": asked}) as answer:
            assert answer.status == 206
            assert await answer.read() == expected
            assert answer.headers["Content-Range"].endswith("/10")


async def test_what_is_not_there(nodes: Any) -> None:
    alice, bob = nodes
    inbox = await alice.api.create_inbox()
    for api in (alice.api, bob.api):
        for file_id in ("f" * 64, inbox.file_id):
            with pytest.raises(NotFound):
                await read(api, alice.node_id, file_id)
        with pytest.raises(NotFound):
            await api.send(alice.node_id, "f" * 48, pieces(b"x"))
        with pytest.raises(Refused):
            await read(api, "nobody", "f" * 64)
    with pytest.raises(NotFound):
        await bob.api.wait_inbox(inbox.file_id)
    with pytest.raises(PeerFailed):
        await read(alice.api, "0x" + "1" * 40, "f" * 64)
    published = await alice.api.upload(pieces(b"x"))
    with pytest.raises(NotFound):
        await bob.api.send(alice.node_id, published.file_id, pieces(b"y"))
    for name in ("..%2F..%2Fnode.db", "node.db", "a" * 200):
        with pytest.raises(Refused):
            await read(alice.api, alice.node_id, name)


async def test_only_those_who_may_read(nodes: Any) -> None:
    alice, bob = nodes
    stored = await alice.api.upload(pieces(b"secret"))
    alice.readers = set()
    with pytest.raises(NotFound):
        await read(bob.api, alice.node_id, stored.file_id)
    alice.readers = {bob.node_id}
    assert await read(bob.api, alice.node_id, stored.file_id) == b"secret"


async def test_a_broken_upload_leaves_nothing(nodes: Any) -> None:
    alice, bob = nodes
    inbox = await alice.api.create_inbox()

    async def breaks() -> AsyncIterator[bytes]:
        yield b"x" * 200_000
        raise OSError("the disk of the sender broke")

    for node, call in (
        (alice, lambda: alice.api.upload(breaks())),
        (alice, lambda: alice.api.send(alice.node_id, inbox.file_id, breaks())),
        (bob, lambda: bob.api.send(alice.node_id, inbox.file_id, breaks())),
    ):
        with pytest.raises((OSError, PeerFailed)):
            await call()
        await until(lambda n=node: n.on_disk() == [])
    await until(lambda: alice.on_disk() == [] and not alice.files._filling)
    assert (await alice.api.wait_inbox(inbox.file_id, timeout_s=0)).state == "empty"
    await bob.api.send(alice.node_id, inbox.file_id, pieces(b"whole"))  # and it may be tried again
    assert alice.files._reserved == 0


async def test_one_writer_at_a_time(nodes: Any) -> None:
    alice, bob = nodes
    inbox = await alice.api.create_inbox()
    go = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"first"
        await go.wait()
        yield b" wins"

    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(bob.api.send(alice.node_id, inbox.file_id, slowly()))
        await until(lambda: alice.files._filling)
        with pytest.raises(Conflict):
            await bob.api.send(alice.node_id, inbox.file_id, pieces(b"second"))
        go.set()
    assert first.result().sha3 == sha3(b"first wins")


async def test_a_peer_that_lies_about_the_content(nodes: Any) -> None:
    """Bob's agent gets a broken body, never a short or wrong one that looks whole."""
    alice, bob = nodes
    content = secrets.token_bytes(400_000)
    stored = await alice.api.upload(pieces(content))
    path = alice.directory / "spool" / "content" / stored.file_id
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    http = bob.http
    async with http.session.get(http.url(f"/shem-api/v1/files/{alice.node_id}/{stored.file_id}")) as answer:
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientError):
            await answer.read()
    with pytest.raises(TransferBroken):
        await read(alice.api, alice.node_id, stored.file_id)  # here the reader's own check sees it
    with pytest.raises(TransferBroken):
        await bob.api.download(alice.node_id, stored.file_id, bob.directory / "target")
    assert not (bob.directory / "target").exists()
    assert [p.name for p in bob.directory.iterdir() if p.name.endswith(".part")] == []


async def test_a_sender_that_lies_about_the_hash(nodes: Any) -> None:
    alice, bob = nodes
    inbox = await alice.api.create_inbox()
    header = protocol.pack(protocol.Put(inbox.file_id))
    for content in (b"", b"short", b"x" * 300_000 + b"0" * 32):
        with pytest.raises(Conflict) as caught:
            async with await bob.peers.open_stream(alice.node_id, protocol.PUT, header) as stream:
                await stream.write(content)
                await stream.finish()
                await protocol.read_head(stream)
        assert caught.value.code == "broken_content"
    assert (await alice.api.wait_inbox(inbox.file_id, timeout_s=0)).state == "empty"
    assert alice.on_disk() == []


async def test_garbage_headers(nodes: Any) -> None:
    alice, bob = nodes
    for kind in (protocol.GET, protocol.PUT):
        for header in (b"", b"\xc1", msgspec.msgpack.encode({"file_id": "../../etc/passwd"}), b"\x91" * 5000):
            with pytest.raises(Refused):
                async with await bob.peers.open_stream(alice.node_id, kind, header) as stream:
                    await stream.finish()
                    await stream.read()


async def test_the_serving_node_disappears(nodes: Any) -> None:
    alice, bob = nodes
    stored = await alice.api.upload(pieces(secrets.token_bytes(16 << 20)))
    with pytest.raises(TransferBroken):
        async with bob.api.open(alice.node_id, stored.file_id) as source:
            async for _ in source.chunks():
                await bob.peers.disconnect(alice.node_id)


async def test_a_download_goes_on_where_it_broke(nodes: Any) -> None:
    alice, bob = nodes
    content = secrets.token_bytes(24 << 20)
    stored = await alice.api.upload(pieces(content))

    async def cut() -> None:
        """The link breaks as soon as something of the file has arrived."""
        part = bob.directory / ".target.part"
        await until(lambda: part.exists() and part.stat().st_size > 0)
        await bob.peers.disconnect(alice.node_id)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(cut())
        await bob.api.download(alice.node_id, stored.file_id, bob.directory / "target")
    assert (bob.directory / "target").read_bytes() == content
    assert bob.peers.counters["connected"] >= 2  # it did break


class TestSmallSpool:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(total_bytes=1_000_000, file_bytes=600_000, max_inboxes=2, keep_s=100.0)

    async def test_bounds(self, nodes: Any) -> None:
        alice, bob = nodes
        with pytest.raises(Refused) as caught:
            await alice.api.upload(pieces(b"x" * 600_001))
        assert caught.value.code == "file_too_large"
        await alice.api.upload(pieces(b"a" * 600_000))
        with pytest.raises(Conflict) as caught:
            await alice.api.upload(pieces(b"b" * 400_001))
        assert caught.value.code == "spool_full"
        inbox = await alice.api.create_inbox()
        with pytest.raises(Conflict) as caught:
            await bob.api.send(alice.node_id, inbox.file_id, pieces(b"b" * 400_001))
        assert caught.value.code == "spool_full"
        await bob.api.send(alice.node_id, inbox.file_id, pieces(b"b" * 400_000))
        await alice.api.create_inbox()
        with pytest.raises(Conflict):
            await alice.api.create_inbox()

    async def test_what_nobody_uses_makes_room(self, nodes: Any) -> None:
        alice, _ = nodes
        old = await alice.api.upload(pieces(b"a" * 600_000))
        await alice.clock.advance(101)
        await alice.api.upload(pieces(b"b" * 600_000))
        with pytest.raises(NotFound):
            await read(alice.api, alice.node_id, old.file_id)


async def test_a_restart_keeps_what_is_whole_and_sweeps_the_rest(nodes: Any) -> None:
    alice, _ = nodes
    kept, cut, gone = [(await alice.api.upload(pieces(c))).file_id for c in (b"kept", b"cut", b"gone")]
    inbox = await alice.api.create_inbox()
    await alice.stop()
    spool = alice.directory / "spool"
    (spool / "incoming" / "half").write_bytes(b"half")
    (spool / "content" / ("e" * 64)).write_bytes(b"nobody knows it")
    (spool / "content" / cut).write_bytes(b"c")
    (spool / "content" / gone).unlink()
    await alice.start()
    assert alice.on_disk() == [kept]
    assert await read(alice.api, alice.node_id, kept) == b"kept"
    for lost in (cut, gone):
        with pytest.raises(NotFound):
            await read(alice.api, alice.node_id, lost)
    assert (await alice.api.wait_inbox(inbox.file_id, timeout_s=0)).state == "empty"


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_gibibyte_in_constant_memory(nodes: Any, capsys: Any) -> None:
    alice, bob = nodes
    size = 1 << 30
    block = secrets.token_bytes(1 << 20)

    async def source() -> AsyncIterator[bytes]:
        for _ in range(size >> 20):
            yield block

    async def discard(node_id: str, file_id: str) -> None:
        async with bob.api.open(node_id, file_id) as incoming:
            async for _ in incoming.chunks():
                pass

    await alice.api.upload(pieces(block))  # warm
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    inbox = await alice.api.create_inbox()
    speeds: dict[str, float] = {}
    started = time.monotonic()
    stored = await alice.api.upload(source())
    speeds["publish"] = size / (time.monotonic() - started) / 1e6
    started = time.monotonic()
    await discard(alice.node_id, stored.file_id)
    speeds["fetch through two nodes"] = size / (time.monotonic() - started) / 1e6
    started = time.monotonic()
    await bob.api.send(alice.node_id, inbox.file_id, source())
    speeds["send through two nodes"] = size / (time.monotonic() - started) / 1e6
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
    with capsys.disabled():
        print({name: f"{speed:.0f} MB/s" for name, speed in speeds.items()}, f"memory grew {grown_mib:.1f} MiB")
    assert grown_mib < 32
