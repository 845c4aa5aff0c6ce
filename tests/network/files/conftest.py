"""Two nodes that keep files, over the loopback transport, with their REST servers."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from shem.client.files import FilesApi
from shem.client.http import ApiClient
from shem.cogs.clock import ManualClock
from shem.node.db import Database
from shem.node.files.service import Files, Limits
from shem.node.gsb.gftp import GftpServices
from shem.node.gsb.service import Bus
from shem.node.gsb.service import Limits as BusLimits
from shem.node.identity.keys import Identity
from shem.node.peer.loopback import Loopback
from shem.node.peer.network import PeerNetwork
from shem.node.rest import files as rest_files
from shem.node.rest import gsb as rest_gsb
from shem.node.rest import status as rest_status
from shem.node.rest.server import build_app


class Node:
    """A node with nothing but files, its own and those of programs."""

    def __init__(self, world: Loopback, directory: Path, limits: Limits) -> None:
        self.world, self.directory, self.limits = world, directory, limits
        self.identity = Identity.generate()
        self.node_id = self.identity.node_id
        self.key = secrets.token_hex(8)
        self.clock = ManualClock()
        self.bootstraps: list[str] = []
        self.readers: set[str] | None = None  # None: everybody
        self.bus_limits = BusLimits(open_s=5, reply_s=5)
        self.port = 0

    async def start(self) -> None:
        self.directory.mkdir(exist_ok=True)
        self.db = Database(self.directory / "node.db")
        self.peers = PeerNetwork(self.identity, self.world.transport)
        self.bus = Bus(self.bus_limits)
        self.files = Files(
            self.db,
            self.peers,
            self.directory / "spool",
            self.clock,
            self.limits,
            may_read=lambda peer, _: self.readers is None or peer in self.readers,
            live=GftpServices(self.bus),
        )
        self.files.start()
        for address in self.bootstraps:
            self.peers.add_bootstrap(address)
        await self.peers.__aenter__()
        routes = [*rest_files.routes(self.files), *rest_gsb.routes(self.bus), *rest_status.routes(dict)]
        app = build_app(routes, keys=lambda key: (self.node_id, "test") if key == self.key else None)
        self.runner = web.AppRunner(app, shutdown_timeout=0.02, handler_cancellation=True)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port).start()
        self.port = self.runner.addresses[0][1]  # the same after a restart
        self.http = ApiClient(f"http://127.0.0.1:{self.port}", self.key)
        await self.http.__aenter__()
        self.api = FilesApi(self.http)

    async def stop(self) -> None:
        self.files.stop()
        self.bus.stop()
        await self.http.__aexit__(None, None, None)
        await self.runner.cleanup()
        await self.peers.__aexit__(None, None, None)
        self.db.close()

    def on_disk(self) -> list[str]:
        """Names of everything in the spool, unfinished things too."""
        spool = self.directory / "spool"
        return sorted(p.name for place in ("content", "incoming") for p in (spool / place).iterdir())


@pytest.fixture
def limits() -> Limits:
    return Limits()


@pytest.fixture
async def nodes(tmp_path: Path, limits: Limits) -> AsyncIterator[Any]:
    world = Loopback()
    alice, bob = Node(world, tmp_path / "alice", limits), Node(world, tmp_path / "bob", limits)
    await alice.start()
    bob.bootstraps = [alice.peers.address()]
    await bob.start()
    async with asyncio.timeout(5):
        while not (alice.peers.connected() and bob.peers.connected()):  # noqa: ASYNC110 - under a deadline
            await asyncio.sleep(0.002)
    yield alice, bob
    await alice.stop()
    await bob.stop()
