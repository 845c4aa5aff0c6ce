"""A network of the original daemon on this machine, without internet: to hold ours against it.

Two nodes, a requestor and a provider, and a third that only lends them its bus as a router. Their chain is a stub
(:mod:`shem.testing.chainstub`) on which every account is rich. The program is somebody else's and does not come with
this package: give its path.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

from shem.cogs.process import Child, start_child
from shem.errors import ShemError
from shem.testing.chainstub import ChainStub

READY_S = 60.0
MEET_S = 120.0
_ASK_AGAIN_S = 0.05
_REPUBLISH_S = 10
_QUICK = {"OFFER_BROADCAST_DELAY": "50ms", "UNSUB_BROADCAST_DELAY": "50ms", "MEAN_CYCLIC_BCAST_INTERVAL": "5s"}
"""The original collects news before it spreads them, which suits a large network."""


class OriginalFailed(ShemError):
    """The network of original daemons did not come up."""

    default_code = "original_failed"


@dataclass
class OriginalNode:
    """One original daemon."""

    name: str
    data_dir: Path
    bus: str
    """``GSB_URL``: where its command line finds it."""
    app_key: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    api_url: str = ""
    node_id: str = ""
    child: Child | None = None


class OriginalNetwork:
    """An async context manager: up when both nodes see each other's offers; leaves no process and no file behind.

    ``quick``: spread offers at once instead of some seconds later, for tests that do not measure that. ``env``: more for
    the daemons' environments.
    """

    def __init__(self, program: Path, *, quick: bool = True, env: Mapping[str, str] | None = None) -> None:
        self.program = program
        self._more = (_QUICK if quick else {}) | dict(env or {})
        self._stack = AsyncExitStack()
        # short: the path of a unix socket has at most 107 bytes
        self.root = Path(tempfile.mkdtemp(prefix="shem-orig-"))
        self._stack.callback(shutil.rmtree, self.root, ignore_errors=True)
        self.chain = ChainStub()
        self.requestor = self._node("requestor")
        self.provider = self._node("provider")
        self._router = OriginalNode("router", self.root / "router", "")

    def _node(self, name: str) -> OriginalNode:
        return OriginalNode(name, self.root / name, f"unix:{self.root / name}.sock")

    async def __aenter__(self) -> OriginalNetwork:
        """Raises :class:`OriginalFailed`, or :class:`~shem.cogs.process.ProcessFailed`."""
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        await self._stack.enter_async_context(self.chain)
        port = _short_port()
        self._router.bus = f"tcp://127.0.0.1:{port}"
        hybrid = {"YA_NET_TYPE": "hybrid", "YA_NET_RELAY_HOST": "127.0.0.1:1"}
        central = {"YA_NET_TYPE": "central", "CENTRAL_NET_HOST": f"127.0.0.1:{port}"}
        # the others look for the router once, at their start; it listens long before its REST answers
        await self._launch(self._router, hybrid)
        await _listening(port)
        for node in (self.requestor, self.provider):
            await self._launch(node, central)
        async with asyncio.TaskGroup() as group:
            for node in (self.requestor, self.provider):
                group.create_task(self._ready(node))
        await self._meet()

    async def _launch(self, node: OriginalNode, env: dict[str, str]) -> None:
        node.data_dir.mkdir()
        node.api_url = f"http://127.0.0.1:{_free_port()}"
        # a shell that becomes the daemon: it says the first word, which the daemon never does
        argv = ["/bin/sh", "-c", 'echo up; exec "$@" >&2', "sh", str(self.program), "service", "run"]
        argv += ["--disable-metrics-push", "--log-dir", str(node.data_dir)]
        child, _ = await start_child(
            f"original {node.name}", argv, log_path=self.root / f"{node.name}.log", env=self.env(node) | env
        )
        node.child = child
        self._stack.push_async_callback(_end, child)

    def env(self, node: OriginalNode) -> dict[str, str]:
        """For the daemon and for its command line."""
        return {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self.root),
            "YAGNA_DATADIR": str(node.data_dir),
            "GSB_URL": node.bus,
            "YAGNA_API_URL": node.api_url,
            "YAGNA_AUTOCONF_APPKEY": node.app_key,
            "YA_NET_BIND_URL": "udp://127.0.0.1:0",
            "HOLESKY_GETH_ADDR": self.chain.url,
            **self._more,
        }

    async def _ready(self, node: OriginalNode) -> None:
        async with asyncio.timeout(READY_S):
            while True:
                if node.child is not None and not node.child.running:
                    raise OriginalFailed(f"the {node.name} ended: {_tail(self.root / f'{node.name}.log')}")
                try:
                    node.node_id = (await self.call(node, "GET", "/me"))["identity"]
                    return
                except aiohttp.ClientError:
                    await asyncio.sleep(_ASK_AGAIN_S)

    async def command(self, node: OriginalNode, *words: str) -> str:
        """Run its command line; what it prints. Raises :class:`OriginalFailed`."""
        process = await asyncio.create_subprocess_exec(
            str(self.program),
            *words,
            env=self.env(node),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(READY_S):
                out, err = await process.communicate()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        if process.returncode != 0:
            raise OriginalFailed(f"{' '.join(words)}: {err.decode(errors='replace')[-500:]}")
        return out.decode()

    async def call(self, node: OriginalNode, method: str, path: str, json: Any = None) -> Any:
        """One REST call that must succeed."""
        headers = {"Authorization": f"Bearer {node.app_key}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.request(method, node.api_url + path, json=json) as answer,
        ):
            answer.raise_for_status()
            return await answer.json() if answer.content_type == "application/json" else None

    async def _meet(self) -> None:
        """Publish until the other side has heard of it: news sent before both stood at the router are lost."""
        market = "/market-api/v1"
        mark = secrets.token_hex(8)
        end = (datetime.now(UTC) + timedelta(hours=1)).timestamp()
        wanted = {
            "properties": {"golem.srv.comp.expiration": int(end * 1000)},
            "constraints": f"(meeting={mark})",
        }
        demand = await self.call(self.requestor, "POST", f"{market}/demands", wanted)
        try:
            async with asyncio.timeout(MEET_S):
                while True:
                    offered = {"properties": {"meeting": mark}, "constraints": "()"}
                    offer = await self.call(self.provider, "POST", f"{market}/offers", offered)
                    path = f"{market}/demands/{demand}/events?timeout={_REPUBLISH_S}&maxEvents=10"
                    met = await self.call(self.requestor, "GET", path)
                    await self.call(self.provider, "DELETE", f"{market}/offers/{offer}")
                    if met:
                        break
        except TimeoutError:
            raise OriginalFailed("the two original nodes did not find each other") from None
        await self.call(self.requestor, "DELETE", f"{market}/demands/{demand}")


async def _end(child: Child) -> None:
    """Its data are thrown away, so there is nothing that it would have to do in its last 15 seconds."""
    child.kill()
    await child.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _short_port() -> int:
    """The original takes a router's port of at most four digits."""
    for _ in range(200):
        port = 2000 + secrets.randbelow(8000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OriginalFailed("there is no free port of four digits")


async def _listening(port: int) -> None:
    async with asyncio.timeout(READY_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(_ASK_AGAIN_S)
                continue
            writer.close()
            await writer.wait_closed()
            return


def _tail(path: Path) -> str:
    return path.read_text(errors="replace")[-1500:]
