"""golem-js's own transfer of files and its FlexBuffers, against our node alone: no provider, no money."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shem.cogs.flexbuffers import dumps, loads, number
from shem.node.files.service import Limits
from shem.node.peer.loopback import Loopback
from shem.wire.files import parse_gftp_url
from shem.wire.gsb import Reply, Request, pack_reply, pack_request
from tests.interop.support import Clients, until
from tests.network.files.conftest import Node

pytestmark = [pytest.mark.interop, pytest.mark.timeout(180)]
MIB = 1 << 20


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[tuple[Node, Node]]:
    """Alice, whose program is golem-js, and bob, who fetches and fills."""
    world = Loopback()
    alice, bob = (Node(world, tmp_path / name, Limits()) for name in ("alice", "bob"))
    await alice.start()
    bob.bootstraps = [alice.peers.address()]
    await bob.start()
    try:
        await until(lambda: alice.peers.connected() and bob.peers.connected(), "the two nodes are connected")
        yield alice, bob
    finally:
        await bob.stop()
        await alice.stop()


@pytest.fixture
async def programs(nodes: tuple[Node, Node], tmp_path: Path) -> AsyncIterator[Clients]:
    clients = Clients({"YAGNA_API_URL": nodes[0].http.base_url, "YAGNA_APPKEY": nodes[0].key}, tmp_path)
    try:
        yield clients
    finally:
        await clients.close()


async def whole(node: Node, url: str) -> bytes:
    async with node.api.open(*parse_gftp_url(url)) as source:
        return b"".join([chunk async for chunk in source.chunks()])


async def parts(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 100_000):
        yield content[start : start + 100_000]


@pytest.mark.parametrize("size", [0, 1, 40_960, 3_000_017, 24 * MIB])
async def test_both_directions(
    nodes: tuple[Node, Node], programs: Clients, tmp_path: Path, size: int, capsys: Any
) -> None:
    """What golem-js gives and takes on its socket, from and to another node."""
    _, bob = nodes
    content = secrets.token_bytes(size)
    (tmp_path / "given").write_bytes(content)
    program = await programs.start_node("golem_js/storage.mjs", str(tmp_path))
    urls = json.loads(await program.line('"file"'))
    speeds: dict[str, float] = {}
    for kind in ("file", "data"):
        started = time.monotonic()
        assert await whole(bob, urls[kind]) == content
        speeds[kind] = size / (time.monotonic() - started) / 1e6
    for kind in ("into", "memory"):
        started = time.monotonic()
        await bob.api.send(*parse_gftp_url(urls[kind]), parts(content))
        speeds[kind] = size / (time.monotonic() - started) / 1e6
    ran = await program.finish(90)
    assert ran.result == {"size": size, "sha256": hashlib.sha256(content).hexdigest()}
    assert (tmp_path / "taken").read_bytes() == content
    with capsys.disabled():
        print(size, {kind: f"{speed:.0f} MB/s" for kind, speed in speeds.items()})


async def test_many_readers_of_one_file(nodes: tuple[Node, Node], programs: Clients, tmp_path: Path) -> None:
    """An image on the client's own disk, fetched by many providers at once."""
    _, bob = nodes
    content = secrets.token_bytes(4 * MIB)
    (tmp_path / "given").write_bytes(content)
    program = await programs.start_node("golem_js/storage.mjs", str(tmp_path))
    url = json.loads(await program.line('"file"'))["file"]
    async with asyncio.TaskGroup() as tasks:
        readers = [tasks.create_task(whole(bob, url)) for _ in range(10)]
    assert all(reader.result() == content for reader in readers)


BLOB = bytes(range(256)) * 5
MESSAGES: list[Any] = [
    {"id": "8c0f5eab-64a5-4f4e-9d2f-77b2bb4c0c6e", "component": "GetMetadata", "payload": {}},
    {"id": "1", "component": "GetChunk", "payload": {"offset": 0, "size": 262_144}},
    {"id": "1", "component": "GetChunk", "payload": {"offset": number(5 << 30), "size": 5}},
    {"id": "1", "component": "GetChunk", "payload": {"offset": number((5 << 30) + 12_345), "size": 262_144}},
    {"id": "1", "component": "UploadChunk", "payload": {"chunk": {"offset": 70_000, "content": BLOB}}},
    {"id": "1", "component": "UploadFinished", "payload": {"hash": "ab" * 32}},
    {"id": "1", "payload": None},
    {"id": "1", "error": {"ReadError": "boom"}},
    {"b": True, "l": [1, "żółć", None, -5, 1.5], "nested": {"empty": {}, "deep": {"er": []}}},
]


def shown(value: Any) -> Any:
    """As frames.mjs shows it."""
    match value:
        case bytes() | memoryview():
            return {"blob": bytes(value).hex()}
        case dict():
            return {key: shown(item) for key, item in value.items()}
        case list():
            return [shown(item) for item in value]
        case _:
            return value


async def test_the_library_of_golem_js_agrees_with_our_frames(programs: Clients, tmp_path: Path) -> None:
    frames = [dumps(message) for message in MESSAGES]
    assert pack_request(Request("1", "UploadFinished", {"hash": "ab" * 32})) == frames[5]
    assert pack_reply(Reply("1", error=("ReadError", "boom"))) == frames[7]
    (tmp_path / "frames").write_text(json.dumps([frame.hex() for frame in frames]))
    ran = await programs.run_node("golem_js/frames.mjs", str(tmp_path / "frames"))
    for message, told in zip(MESSAGES, ran.result, strict=True):
        assert told["holds"] == shown(message)  # no number is a BigInt
        assert shown(loads(bytes.fromhex(told["written"]))) == shown(message)
