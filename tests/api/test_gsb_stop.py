"""A node that stops tells the programs on its service bus, and doesn't wait for them."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from shem.client.gsb import GsbService
from shem.client.http import ApiClient
from shem.node.app import Node
from shem.node.config import NodeConfig
from shem.node.peer.loopback import Loopback

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def started(stack: AsyncExitStack, directory: Path) -> tuple[Node, ApiClient, AsyncExitStack]:
    """A node, a client that outlives it, and what ends the node."""
    key, life = secrets.token_hex(16), AsyncExitStack()
    config = NodeConfig(data_dir=directory, api_port=0, app_key=key)
    node = Node(config, transport=Loopback().transport)
    await life.enter_async_context(node)
    stack.push_async_callback(life.aclose)
    return node, await stack.enter_async_context(ApiClient(node.api_url, key)), life


async def test_sockets_end_with_the_node(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        _, http, life = await started(stack, tmp_path)
        listen = {"on": "/public/gftp/x", "components": ["GetChunk"]}
        made = await http.call("POST", "/gsb-api/v1/services", json={"listen": listen})
        line = await http.session.ws_connect(http.url(f"/gsb-api/v1/services/{made['servicesId']}"))
        message, _ = await asyncio.gather(line.receive(), life.aclose())
    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)


async def test_a_program_ends_in_order_although_the_node_is_gone(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        node, http, life = await started(stack, tmp_path)
        service = GsbService(http, "/public/gftp/x", {})
        await service.__aenter__()
        assert node.bus.find("/public/gftp/x") is not None
        await life.aclose()
        async with asyncio.timeout(30):
            await service.__aexit__(None, None, None)
