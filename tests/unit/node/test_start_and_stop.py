"""A node that cannot start leaves nothing running; one that stops says goodbye before it hangs up."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from shem.client.http import ApiClient
from shem.client.market import MarketApi
from shem.errors import Misconfigured
from shem.node.app import Node
from shem.node.config import NetworkConfig, NodeConfig
from shem.node.peer.loopback import Loopback
from shem.wire.market import NewScan

KEY = "sesame-sesame"
CHAIN = {"devnet": NetworkConfig(chain_id=1337, rpc_urls=("http://127.0.0.1:1",), token="0x" + "11" * 20)}


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


def tasks() -> set[str]:
    return {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()}


async def assert_stopped(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    assert tasks() == set()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        node.db.connection.execute("SELECT 1")
    gc.collect()  # an orphan would complain now, and warnings are errors
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_a_port_for_peers_that_is_taken_leaves_nothing_running(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        config = NodeConfig(data_dir=tmp_path, api_port=0, peer_bind=f"127.0.0.1:{port}", networks=CHAIN)
        node = Node(config)
        with pytest.raises(Misconfigured, match=f"127.0.0.1:{port}") as refused:
            await node.__aenter__()
    assert refused.value.code == "cannot_listen"
    await assert_stopped(node, caplog)
    async with Node(NodeConfig(data_dir=tmp_path, api_port=0, networks=CHAIN), transport=Loopback().transport):
        pass  # the directory is free again


async def test_a_port_for_rest_that_is_taken_leaves_nothing_running(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = NodeConfig(data_dir=tmp_path, api_port=taken.getsockname()[1], networks=CHAIN)
        node = Node(config, transport=Loopback().transport)
        with pytest.raises(Misconfigured, match="REST cannot listen"):
            await node.__aenter__()
    await assert_stopped(node, caplog)


async def test_a_node_that_stops_takes_its_offers_back_while_peers_still_hear_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    loopback = Loopback()
    async with Node(
        NodeConfig(data_dir=tmp_path / "a", api_port=0, app_key=KEY), transport=loopback.transport
    ) as alice:
        bootstrap = (alice.peers.address(),)
        config = NodeConfig(data_dir=tmp_path / "b", api_port=0, app_key=KEY, bootstrap=bootstrap)
        async with Node(config, transport=loopback.transport) as bob:
            await until(bob.peers.connected)
            async with ApiClient(bob.api_url, KEY) as to_bob, ApiClient(alice.api_url, KEY) as to_alice:
                await MarketApi(to_bob).subscribe_offer({"golem.runtime.name": "oci"}, "()")
                market = MarketApi(to_alice)
                scan = await market.begin_scan(NewScan(type="offer"))
                assert len(await market.scan_offers(scan, timeout_s=5)) == 1
        async with ApiClient(alice.api_url, KEY) as to_alice:
            market = MarketApi(to_alice)
            scan = await market.begin_scan(NewScan(type="offer"))
            assert await market.scan_offers(scan, timeout_s=0.5) == []
    # whoever goes without a word is looked after first, and that is said
    assert [r.getMessage() for r in caplog.records if "is away" in r.getMessage()] == []
    await assert_stopped(bob, caplog)
