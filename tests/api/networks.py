"""Two networks of two nodes each that are asked the same: ours, in this process, and the original daemon's."""

from __future__ import annotations

import asyncio
import io
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aiohttp
from yarl import URL

from shem.node.app import Node
from shem.node.config import NetworkConfig, NodeConfig
from shem.node.peer.loopback import Loopback
from shem.testing.chainstub import CHAIN_ID, ChainStub
from shem.testing.original import OriginalNetwork
from tests.api.answers import Answer

PROGRAM = Path(__file__).parents[2] / ".interop" / "golem-node" / "bin" / "yagna"
PLATFORM = "erc20-holesky-tglm"
TOKEN = "0x8888888815bf4db87e57b609a50f938311eed068"
CALL_S = 60.0
"""No call may take longer, on a machine that is busy with others as well."""

Kind = Literal["ours", "original"]


@dataclass(frozen=True)
class Side:
    """One identity at one node."""

    name: str
    api_url: str
    app_key: str = field(repr=False)
    node_id: str


@dataclass
class Network:
    """Who may be asked. ``stranger`` is another identity at the requestor's node."""

    kind: Kind
    requestor: Side
    provider: Side
    stranger: Side
    session: aiohttp.ClientSession

    async def ask(
        self,
        side: Side,
        method: str,
        path: str,
        body: Any = ...,
        *,
        headers: dict[str, str] | None = None,
        auth: bool = True,
    ) -> Answer:
        """One call. ``body``: JSON, or bytes as they are."""
        sent = {"Authorization": f"Bearer {side.app_key}"} if auth else {}
        data: io.BytesIO | None = None
        if body is not ...:
            sent["Content-Type"] = "application/json"
            data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
        sent |= headers or {}
        async with (
            asyncio.timeout(CALL_S),
            self.session.request(
                method, URL(side.api_url + path, encoded=True), data=data, headers=sent, allow_redirects=False
            ) as answer,
        ):
            text = answer.headers.get("Content-Type", "").split(";")[0].strip()
            return Answer(answer.status, text, await answer.read(), answer.headers)


def original_is_missing() -> str | None:
    """Why the original cannot be asked; ``None`` when it can."""
    return None if PROGRAM.exists() else "the original daemon is not installed (tools/interop.sh installs it)"


@asynccontextmanager
async def ours(root: Path) -> AsyncIterator[Network]:
    """Two of our nodes, joined by the loopback transport, with a stub for a chain."""
    loopback = Loopback()
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(_session())
        chain = await stack.enter_async_context(ChainStub())
        holesky = NetworkConfig(chain_id=CHAIN_ID, rpc_urls=(chain.url,), token=TOKEN, token_symbol="tGLM")
        nodes: list[Node] = []
        sides: list[Side] = []
        for name in ("provider", "requestor"):
            key = secrets.token_hex(16)
            config = NodeConfig(
                data_dir=root / name,
                api_port=0,
                app_key=key,
                name=name,
                bootstrap=tuple(node.peers.address() for node in nodes),
                networks={"holesky": holesky},
            )
            node = await stack.enter_async_context(Node(config, transport=loopback.transport))
            nodes.append(node)
            sides.append(Side(name, node.api_url, key, node.identity.node_id))
        other = "0x" + secrets.token_hex(20)
        key = nodes[1].keys.create("stranger", other, secrets.token_hex(16))
        await until(nodes[1].peers.connected, CALL_S)
        yield Network("ours", sides[1], sides[0], Side("stranger", sides[1].api_url, key, other), session)


@asynccontextmanager
async def original() -> AsyncIterator[Network]:
    """Two original daemons, with the same stub for a chain. Only where :func:`original_is_missing` says nothing."""
    async with _session() as session, OriginalNetwork(PROGRAM) as network:
        requestor, provider = network.requestor, network.provider
        made = await network.command(requestor, "id", "create", "stranger", "--no-password", "--json")
        key = await network.command(requestor, "app-key", "create", "stranger", "--id", "stranger", "--json")
        for node, role in ((requestor, "--sender"), (provider, "--receiver")):
            await network.command(node, "payment", "init", role)
        sides = [Side(n.name, n.api_url, n.app_key, n.node_id) for n in (requestor, provider)]
        stranger = Side("stranger", requestor.api_url, json.loads(key), json.loads(made)["Ok"]["nodeId"])
        yield Network("original", sides[0], sides[1], stranger, session)


async def until(condition: Callable[[], object], within_s: float) -> None:
    """Wait for a condition under a deadline."""
    async with asyncio.timeout(within_s):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True), cookie_jar=aiohttp.DummyCookieJar()
    )
