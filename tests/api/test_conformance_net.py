"""The address book of virtual networks, asked the same of our nodes and of the original daemon."""

from __future__ import annotations

import pytest

from tests.api.conversation import ZERO_32, Conversation
from tests.api.shapes import NETWORK, NODE_ID

pytestmark = pytest.mark.asyncio(loop_scope="session")
NET = "/net-api/v1/net"


@pytest.mark.parametrize(
    ("asked", "ip", "gateway"),
    [
        ({"ip": "192.168.0.0/24"}, "192.168.0.0/24", "192.168.0.1"),
        ({"id": "", "ip": "192.168.7.1/24", "mask": None, "gateway": None}, "192.168.7.1/24", "192.168.7.1"),
        ({"ip": "10.0.0.0", "mask": "255.255.255.0", "gateway": "10.0.0.1"}, "10.0.0.0/24", "10.0.0.1"),
    ],
)
async def test_a_network(talk: Conversation, asked: dict[str, str], ip: str, gateway: str) -> None:
    made = await talk("R", "POST", NET, asked, gives=200, shape=NETWORK)
    assert made == {"id": made["id"], "ip": ip, "mask": "255.255.255.0", "gateway": gateway}
    at = f"{NET}/{made['id']}"
    assert await talk("R", "GET", at, gives=200, shape=NETWORK) == made
    assert made in await talk("R", "GET", NET, gives=200, shape=[NETWORK])
    await talk("R", "DELETE", at, gives=200, shape=None)
    await talk("R", "DELETE", at, gives=404)


async def test_who_is_in_it(talk: Conversation) -> None:
    made = await talk("R", "POST", NET, {"ip": "192.168.0.0/24"}, gives=200, shape=NETWORK)
    at = f"{NET}/{made['id']}"
    for _ in range(2):
        await talk("R", "POST", f"{at}/addresses", {"ip": "192.168.0.1"}, gives=200, shape=None)
        await talk(
            "R", "POST", f"{at}/nodes", {"id": talk.side("P").node_id, "ip": "192.168.0.2"}, gives=200, shape=None
        )
    await talk("R", "GET", f"{at}/addresses", gives=200, shape=[{"ip": "192.168.0.1/24"}])
    mine = {"id": talk.side("P").node_id, "ip": "192.168.0.2"}
    assert mine in await talk("R", "GET", f"{at}/nodes", gives=200, shape=[{"id": NODE_ID, "ip": str}])
    await talk("R", "POST", f"{at}/nodes", {"id": talk.side("P").node_id, "ip": "10.9.9.9"}, gives=400)
    for _ in range(2):
        await talk("R", "DELETE", f"{at}/nodes/{talk.side('P').node_id}", gives=200, shape=None)
    await talk("R", "DELETE", at, gives=200, shape=None)


async def test_networks_of_nobody(talk: Conversation) -> None:
    for wrong in (ZERO_32, "nope"):
        await talk("R", "GET", f"{NET}/{wrong}", gives=404)
        await talk("R", "DELETE", f"{NET}/{wrong}", gives=404)
    await talk("R", "GET", "/net-api/v2/net/status", gives=200, shape=dict)
