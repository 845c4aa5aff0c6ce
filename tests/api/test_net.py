"""The address book of virtual networks over REST: the shapes and statuses that clients were seen to rely on."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from shem.client.net import NetApi
from shem.errors import NotFound, Refused
from tests.api.conftest import NET, Answer, World

pytestmark = pytest.mark.asyncio(loop_scope="session")

V2 = "/net-api/v2"
PROVIDER = "0x" + "d7" * 20


async def post(world: World, path: str, body: Any) -> Answer:
    return await world.alice("POST", path, json.dumps(body).encode())


async def make(world: World, body: Any = None, root: str = NET) -> str:
    answer = await post(world, f"{root}/net", body or {"ip": "192.168.0.0/24"})
    return str(answer.json["id"])


async def test_a_network_as_the_original_daemon_tells_it(world: World) -> None:
    answer = await post(world, f"{NET}/net", {"id": "", "ip": "192.168.7.1/24", "mask": None, "gateway": None})
    made = answer.json
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert made == {"id": made["id"], "ip": "192.168.7.1/24", "mask": "255.255.255.0", "gateway": "192.168.7.1"}
    assert len(bytes.fromhex(made["id"])) == 16
    one = f"{NET}/net/{made['id']}"
    assert (await world.alice("GET", one)).json == made
    assert made in (await world.alice("GET", f"{NET}/net")).json
    assert (await world.alice("GET", f"{one}/nodes")).json == []
    assert (await world.alice("GET", f"{one}/tcp")).json == []
    gone = await world.alice("DELETE", one)
    assert (gone.status, gone.body) == (200, b"null")
    again = await world.alice("DELETE", one)
    assert again.status == 404
    assert again.json["message"]


async def test_addresses_and_nodes_may_be_said_twice(world: World) -> None:
    one = f"{NET}/net/{await make(world)}"
    for _ in range(2):
        answer = await post(world, f"{one}/addresses", {"ip": "192.168.0.5"})
        assert (answer.status, answer.body) == (200, b"null")
        for node, ip in ((PROVIDER, "192.168.0.2"), (PROVIDER, "192.168.0.3"), ("0x" + "12" * 20, "192.168.0.2")):
            answer = await post(world, f"{one}/nodes", {"id": node, "ip": ip})
            assert (answer.status, answer.body) == (200, b"null")
    assert (await world.alice("GET", f"{one}/addresses")).json == [{"ip": "192.168.0.1/24"}, {"ip": "192.168.0.5/24"}]
    nodes = [{"id": PROVIDER, "ip": "192.168.0.2"}, {"id": PROVIDER, "ip": "192.168.0.3"}]
    assert (await world.alice("GET", f"{one}/nodes")).json == nodes
    outside = await post(world, f"{one}/nodes", {"id": PROVIDER, "ip": "10.9.9.9"})
    assert (outside.status, outside.json["message"]) == (400, "Invalid network IP address: 10.9.9.9")
    for _ in range(2):
        answer = await world.alice("DELETE", f"{one}/nodes/{PROVIDER}")
        assert (answer.status, answer.body) == (200, b"null")
    assert (await world.alice("GET", f"{one}/nodes")).json == []


async def test_the_second_version_is_the_same_book(world: World) -> None:
    network = await make(world, root=f"{V2}/vpn")
    assert (await world.alice("GET", f"{NET}/net/{network}")).json["ip"] == "192.168.0.0/24"
    answer = await post(world, f"{V2}/vpn/net/{network}/addresses", {"ip": "192.168.0.9"})
    assert answer.status == 200
    assert {"ip": "192.168.0.9/24"} in (await world.alice("GET", f"{NET}/net/{network}/addresses")).json


async def test_another_identitys_network_is_not_there(world: World) -> None:
    network = await make(world)
    assert (await world.bob("GET", f"{NET}/net/{network}")).status == 404
    assert (await world.bob("DELETE", f"{NET}/net/{network}")).status == 404
    assert network not in [one["id"] for one in (await world.bob("GET", f"{NET}/net")).json]
    assert (await world.alice("GET", f"{NET}/net/{network}")).status == 200


@pytest.mark.parametrize("body", [{}, {"ip": 5}, {"ip": ""}, {"ip": "x"}, {"ip": "10.0.0.0", "mask": "24"}])
async def test_what_is_no_network_is_refused(world: World, body: Any) -> None:
    answer = await post(world, f"{NET}/net", body)
    assert answer.status == 400
    assert answer.json["message"]


async def test_the_data_path_says_that_it_is_not_there(world: World) -> None:
    one = f"{NET}/net/{await make(world)}"
    for path in (f"{one}/tcp/192.168.0.2/22", f"{one}/raw/from/192.168.0.1/to/192.168.0.2"):
        answer = await world.alice("GET", path)
        assert (answer.status, answer.json["code"]) == (501, "no_data_path")
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await world.alice.session.ws_connect(
                world.alice.node.api_url + path, headers={"Authorization": f"Bearer {world.alice.key}"}
            )
        assert refused.value.status == 501
    for wrong in ("tcp/x/22", "tcp/10.0.0.1/22", "tcp/192.168.0.2/99999", "tcp/192.168.0.2/-1", "raw/from/x/to/y"):
        assert (await world.alice("GET", f"{one}/{wrong}")).status == 400
    assert (await world.alice("GET", f"{NET}/net/nope/tcp/192.168.0.2/22")).status == 404


async def test_the_node_says_how_it_is_connected(world: World) -> None:
    status = (await world.alice("GET", f"{V2}/net/status")).json
    assert set(status) == {"nodeId", "listenIp", "publicIp", "sessions"}
    assert (status["nodeId"], status["publicIp"], status["sessions"]) == (world.alice.node.identity.node_id, None, 1)


async def test_our_own_client_speaks_it(world: World) -> None:
    api = NetApi(world.rent)
    network = await api.create("10.0.0.0", mask="255.255.255.0")
    assert (network.ip, network.gateway) == ("10.0.0.0/24", "10.0.0.1")
    await api.add_address(network.id, "10.0.0.7")
    await api.add_node(network.id, PROVIDER, "10.0.0.2")
    assert await api.addresses(network.id) == ["10.0.0.1/24", "10.0.0.7/24"]
    assert [(node.id, node.ip) for node in await api.nodes(network.id)] == [(PROVIDER, "10.0.0.2")]
    await api.remove_node(network.id, PROVIDER)
    assert await api.nodes(network.id) == []
    assert network in await api.networks()
    assert await api.get(network.id) == network
    with pytest.raises(Refused):
        await api.add_address(network.id, "11.0.0.1")
    await api.remove(network.id)
    with pytest.raises(NotFound):
        await api.get(network.id)
    assert (await api.status()).sessions == 1
