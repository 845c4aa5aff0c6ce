"""What only the owner of a node may do, and what anybody may see of it."""

from __future__ import annotations

import asyncio
import json
import re
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from eth_account import Account

from shem.client.admin import AdminApi
from shem.client.http import ApiClient
from shem.cogs.places import KEY_FILE, URL_FILE, owners_key
from shem.errors import Conflict, NotFound, Refused
from shem.node.app import Node
from shem.node.config import NodeConfig
from shem.node.identity.keystore import OtherIdentity
from shem.node.peer.loopback import Loopback
from tests.api.conftest import Door

pytestmark = pytest.mark.asyncio(loop_scope="session")

KEY = "a-key-for-tests"
OURS = "/shem-api/v1"


def config(data_dir: Path, **changes: object) -> NodeConfig:
    return NodeConfig(data_dir=data_dir, api_port=0, **({"app_key": KEY} | changes))  # type: ignore[arg-type]


def new_node(data_dir: Path, **changes: object) -> Node:
    return Node(config(data_dir, **changes), transport=Loopback().transport)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    async with new_node(tmp_path_factory.mktemp("node")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def door(node: Node) -> AsyncIterator[Door]:
    async with aiohttp.ClientSession() as session:
        yield Door(node, KEY, session)


@pytest_asyncio.fixture(loop_scope="session")
async def owner(node: Node) -> AsyncIterator[AdminApi]:
    async with ApiClient(node.api_url, owners_key(node.config.data_dir)) as http:
        yield AdminApi(http)


async def test_the_owners_key_and_the_address_lie_in_the_data_directory(node: Node) -> None:
    for name in (KEY_FILE, URL_FILE):
        assert stat.S_IMODE((node.config.data_dir / name).stat().st_mode) == 0o600
    assert (node.config.data_dir / URL_FILE).read_text().strip() == node.api_url
    assert node.keys.lookup(owners_key(node.config.data_dir)) == (node.identity.node_id, "local")


async def test_other_keys_manage_nothing(node: Node, door: Door) -> None:
    for method, path, body in (
        ("GET", f"{OURS}/app-keys", None),
        ("POST", f"{OURS}/app-keys", b'{"name": "x"}'),
        ("DELETE", f"{OURS}/app-keys/autoconfigured", None),
        ("POST", f"{OURS}/shutdown", None),
    ):
        answer = await door(method, path, body)
        assert (answer.status, answer.json["code"]) == (403, "not_the_owner")
    assert not node.stop.is_set()
    assert node.keys.find("x") is None


async def test_keys_are_made_told_again_and_dropped(node: Node, owner: AdminApi, door: Door) -> None:
    made = await owner.create_app_key("ray-on-golem", allow_origins=["https://a.example"])
    assert re.fullmatch(r"[0-9a-f]{32}", made.key or "")
    assert (made.id, made.role, made.allow_origins) == (node.identity.node_id, "manager", ["https://a.example"])
    assert await owner.create_app_key("ray-on-golem") == made  # again: the same, as tools expect
    assert made in await owner.app_keys()
    assert {key.name: key.key for key in await owner.app_keys()}["autoconfigured"] == KEY
    me = await door("GET", "/me", auth=f"Bearer {made.key}")
    assert me.json == {"identity": node.identity.node_id, "name": "ray-on-golem", "role": "manager"}
    await owner.drop_app_key("ray-on-golem")
    assert (await door("GET", "/me", auth=f"Bearer {made.key}")).status == 401
    with pytest.raises(NotFound):
        await owner.drop_app_key("ray-on-golem")


@pytest.mark.parametrize("name", ["a b/c?d#e", "ключ", "%2f..", "'; drop table app_key; --"])
async def test_names_of_any_letters(owner: AdminApi, name: str) -> None:
    await owner.create_app_key(name)
    assert name in [key.name for key in await owner.app_keys()]
    await owner.drop_app_key(name)


async def test_what_cannot_be_a_key_is_refused(owner: AdminApi) -> None:
    for name in ("", "x" * 101, "a\nb"):
        with pytest.raises(Refused):
            await owner.create_app_key(name)
    with pytest.raises(Refused):
        await owner.create_app_key("x", allow_origins=["https://a.example"] * 33)
    with pytest.raises(Refused, match="has no identity"):
        await owner.create_app_key("x", node_id="0x" + "1" * 40)
    with pytest.raises(Conflict):
        await owner.drop_app_key("local")
    assert "x" not in [key.name for key in await owner.app_keys()]


async def test_the_database_alone_holds_no_key(node: Node, owner: AdminApi) -> None:
    made = await owner.create_app_key("secret")
    assert made.key is not None
    rows = "\n".join(node.db.connection.iterdump())
    for known in (made.key, KEY, owners_key(node.config.data_dir)):
        assert known not in rows
        assert known.encode().hex() not in rows.lower()


async def test_free_money_is_not_given_away(node: Node) -> None:
    async with ApiClient(node.api_url, KEY) as http:
        with pytest.raises(Refused, match="nothing is ever paid"):
            await AdminApi(http).fund()
        with pytest.raises(Refused, match="Invalid payment platform"):
            await AdminApi(http).fund("nowhere")


async def test_counters_are_for_anybody(door: Door) -> None:
    for path in ("/metrics-api/v1/expose", "/metrics-api/v1/sorted"):
        answer = await door("GET", path, auth=None)
        assert (answer.status, answer.content_type) == (200, "text/plain")
        lines = answer.body.decode().splitlines()
        assert "shem_peers_connected 0" in lines
        assert all(re.fullmatch(r"# TYPE [a-z_]+ (counter|gauge)|[a-z_]+ \d+", line) for line in lines)
    assert (await door("GET", "/dashboard", auth=None)).status == 404
    assert (await door("GET", "/metrics-api", auth=None)).status == 401


async def test_keys_and_their_pages_survive_a_restart_and_the_owners_is_mended(tmp_path: Path) -> None:
    async with new_node(tmp_path) as node:
        made = node.keys.create("program", node.identity.node_id, origins=["https://a.example"])
        first = owners_key(tmp_path)
    assert not (tmp_path / URL_FILE).exists()
    (tmp_path / KEY_FILE).unlink()
    async with new_node(tmp_path, app_key=None) as node:
        assert node.keys.lookup(first) is None
        assert node.keys.lookup(owners_key(tmp_path)) == (node.identity.node_id, "local")
        assert {key.name: key.secret for key in node.keys.list()} == {
            "autoconfigured": KEY,
            "local": owners_key(tmp_path),
            "program": made,
        }
        assert node.keys.any_allows("https://a.example")
        second = owners_key(tmp_path)
    async with new_node(tmp_path):
        assert owners_key(tmp_path) == second


async def test_a_node_ends_when_its_owner_says_so(tmp_path: Path) -> None:
    async with new_node(tmp_path) as node:
        async with ApiClient(node.api_url, owners_key(tmp_path)) as http:
            await AdminApi(http).shutdown()
        async with asyncio.timeout(10):
            await node.stop.wait()


async def test_an_identity_that_is_given_is_kept_and_never_replaced(tmp_path: Path) -> None:
    secret = "0x" + "07" * 32
    async with new_node(tmp_path, id_secret=secret) as node:
        given = node.identity.node_id
    assert given == Account.from_key(secret).address.lower()  # another library's arithmetic
    async with new_node(tmp_path) as node:
        assert node.identity.node_id == given
    async with new_node(tmp_path, id_secret=secret[2:]) as node:
        assert node.identity.node_id == given
    with pytest.raises(OtherIdentity):
        await new_node(tmp_path, id_secret="08" * 32).__aenter__()
    async with new_node(tmp_path) as node:
        assert node.identity.node_id == given
        assert secret not in repr(node.config)
        assert KEY not in repr(node.config)
        assert "0707" not in json.dumps(node.facts())
