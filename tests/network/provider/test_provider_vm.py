"""Golem images on runtime ``vm``: from either kind of place, with the volumes, names and rules that programs know."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from shem.runtimes.images.gvmi import gvmi_available
from shem.testing.small_image import make_small_gvmi
from shem.wire.activity import CommandResult
from tests.network.provider.conftest import Rental, World, run

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(gvmi_available() is not None, reason=f"no Golem images here: {gvmi_available()}"),
]

VOLUMES = ("/golem/work", "/golem/input", "/work")


class Shelf:
    """Golem images and where they are."""

    def __init__(self, shop: World, directory: Path, url: str) -> None:
        self._shop = shop
        self._directory = directory
        self.url = url

    def make(self, name: str, volumes: tuple[str, ...] = VOLUMES, **config: object) -> tuple[str, Path]:
        path = self._directory / name
        return make_small_gvmi(path, volumes=volumes, config=config), path

    async def by_http(self, name: str, volumes: tuple[str, ...] = VOLUMES, **config: object) -> str:
        """The package string of a new image that a web server holds."""
        sha3, _ = self.make(name, volumes, **config)
        return f"hash:sha3:{sha3}:{self.url}/{name}"

    async def by_gftp(self, name: str) -> str:
        """… that the requestor's node holds."""
        sha3, path = self.make(name)
        stored = await self._shop.requestor.files.upload(path)
        return f"hash:sha3:{sha3}:{stored.url}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A provider that may speak to web servers of this machine."""
    async with (
        World(tmp_path_factory.mktemp("shop")) as made,
        made.agent(web_private_addresses=True, runtimes=("oci", "vm")),
    ):
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shelf(shop: World, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shelf]:
    directory = tmp_path_factory.mktemp("shelf")
    app = web.Application()
    app.router.add_static("/", directory)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield Shelf(shop, directory, f"http://127.0.0.1:{runner.addresses[0][1]}")
    await runner.cleanup()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rental(shop: World, shelf: Shelf) -> AsyncIterator[Rental]:
    """A ready activity that tests share."""
    rented = await shop.requestor.rent(await shelf.by_http("shared.gvmi", Env=["PATH=/bin", "FROM=image", "KEPT=yes"]))
    await rented.open(env={"FROM": "deploy"})
    yield rented
    await shop.requestor.end(rented)


async def deployed(shop: World, package: str, **deploy: Any) -> tuple[Rental, CommandResult]:
    rented = await shop.requestor.rent(package)
    await rented.create()
    results = await rented.script({"deploy": deploy}, {"start": {}})
    return rented, results[0]


async def test_an_image_of_the_requestors_own_node(shop: World, shelf: Shelf) -> None:
    rented, _ = await deployed(shop, await shelf.by_gftp("own.gvmi"))
    assert (await rented.shell("echo here")).stdout == "here\n"
    await shop.requestor.end(rented)


async def test_the_answer_of_deploy(shop: World, shelf: Shelf) -> None:
    rented, result = await deployed(shop, await shelf.by_http("answer.gvmi"), volumes={"/x": {"host": {}}}, net=[])
    assert isinstance(result.stdout, str)
    answer = json.loads(result.stdout)
    assert (answer["valid"], answer["startMode"]) == ({"Ok": ""}, "blocking")
    assert [vol["path"] for vol in answer["vols"]] == sorted([*VOLUMES, "/x"])
    assert all(re.fullmatch(r"vol-[0-9a-f-]{36}", vol["name"]) for vol in answer["vols"])
    await shop.requestor.end(rented)


async def test_names_and_variables(rental: Rental) -> None:
    assert (
        await rental.shell("echo $FROM $KEPT; cat /proc/sys/kernel/hostname; pwd")
    ).stdout == "deploy yes\ngolem\n/work\n"


async def test_a_name_of_ones_own_and_other_machines(shop: World, shelf: Shelf) -> None:
    package = await shelf.by_http("named.gvmi")
    rented, _ = await deployed(shop, package, hostname="node-1", hosts={"other": "10.0.0.7", "six.net": "fd00::1"})
    result = await rented.shell("cat /proc/sys/kernel/hostname /etc/hosts")
    assert isinstance(result.stdout, str)
    assert result.stdout.startswith("node-1\n127.0.0.1 localhost\n")
    assert result.stdout.endswith("10.0.0.7 other\nfd00::1 six.net\n")
    await shop.requestor.end(rented)


async def test_volumes_are_empty_and_writable(shop: World, shelf: Shelf) -> None:
    rented, result = await deployed(
        shop,
        await shelf.by_http("volumes.gvmi"),
        volumes={"/usr": {"host": {}}, "/fast": {"ram": {"size": "10 MiB"}}, "/": {"storage": {"size": "100m"}}},
    )
    assert result.result == "Ok", result.message
    listed = await rented.shell(
        "ls -A /usr /fast /work | cat; echo x > /usr/x && echo y > /fast/y && cat /usr/x /fast/y"
    )
    assert listed.stdout == "/fast:\n\n/usr:\n\n/work:\nx\ny\n"
    await shop.requestor.end(rented)


async def test_a_user_of_the_image_may_write_to_its_volumes(shop: World, shelf: Shelf) -> None:
    rented, _ = await deployed(shop, await shelf.by_http("user.gvmi", User="1000:1000"))
    assert (await rented.shell("id -u; echo mine > /golem/work/f; cat /golem/work/f")).stdout == "1000\nmine\n"
    await shop.requestor.end(rented)


@pytest.mark.parametrize(
    ("deploy", "code"),
    [
        ({"volumes": ["relative"]}, "bad_volume"),
        ({"volumes": ["/a/../b"]}, "bad_volume"),
        ({"volumes": ["/proc/x"]}, "bad_volume"),
        ({"volumes": ["/"]}, "bad_volume"),
        ({"volumes": {"/": {"host": {}}}}, "bad_volume"),
        ({"volumes": {"/a": {"tape": {}}}}, "bad_volume"),
        ({"volumes": {"/a": {"ram": {}}}}, "bad_volume"),
        ({"volumes": {"/a": {"ram": {"size": "much"}}}}, "bad_volume"),
        ({"volumes": {"/a": {"storage": {"size": "1000 TiB"}}}}, "bad_volume"),
        ({"hosts": {"a b": "10.0.0.1"}}, "bad_hosts"),
        ({"hosts": {"a": "10.0.0.1\n10.0.0.2 b"}}, "bad_hosts"),
        ({"hostname": "-x-"}, "bad_hostname"),
        (
            {"net": [{"id": "n", "ip": "10.0.0.0/24", "mask": None, "gateway": None, "nodeIp": "10.0.0.2"}]},
            "unsupported",
        ),
    ],
)
async def test_deploys_that_cannot_be(shop: World, shelf: Shelf, deploy: dict[str, Any], code: str) -> None:
    rented = await shop.requestor.rent(await shelf.by_http("bad.gvmi"))
    await rented.create()
    (result,) = await rented.script({"deploy": deploy}, {"start": {}})
    assert (result.result, (result.message or "").partition(":")[0]) == ("Error", code)
    assert await rented.state() == "Initialized"
    await shop.requestor.end(rented)


async def test_files_travel_to_and_from_volumes_only(shop: World, rental: Rental) -> None:
    stored = await shop.requestor.files.upload(_bytes(b"content"))
    inbox = await shop.requestor.files.create_inbox()
    for path in ("/etc/x", "/golem/workx", "/golem", "/"):
        for transfer in (
            {"from": stored.url, "to": f"container:{path}"},
            {"from": f"container:{path}", "to": inbox.url},
        ):
            (result,) = await rental.script({"transfer": transfer})
            assert (result.result, result.message) == ("Error", f"path not found in container: {path}")
    (result,) = await rental.script({"transfer": {"from": stored.url, "to": "container:/golem/input/a/b"}})
    assert result.result == "Ok", result.message
    (result,) = await rental.script({"transfer": {"from": "container:/golem/input/a/b", "to": inbox.url}})
    assert result.result == "Ok", result.message


async def test_the_images_own_program(shop: World, shelf: Shelf) -> None:
    package = await shelf.by_http(
        "service.gvmi", Entrypoint=["/bin/sh", "-c"], Cmd=["echo up > /golem/work/up; exec sleep 5000"]
    )
    rented = await shop.requestor.rent(package)
    await rented.create()
    results = await rented.script({"deploy": {}}, {"start": {"args": ["start-entrypoint"]}}, run("/bin/true"))
    assert [result.result for result in results] == ["Ok"] * 3
    waiting = "until cat /golem/work/up 2>/dev/null; do sleep 0.05; done"
    assert (await rented.shell(waiting, timeout_s=20)).stdout == "up\n"
    await shop.requestor.end(rented)


async def test_a_working_directory_that_the_image_lacks(shop: World, shelf: Shelf) -> None:
    rented, _ = await deployed(shop, await shelf.by_http("bare.gvmi", volumes=(), WorkingDir="/golem/work"))
    assert (await rented.shell("pwd")).stdout == "/golem/work\n"
    await shop.requestor.end(rented)


@pytest.mark.parametrize("place", ["/missing.gvmi", "/lie.gvmi"])
async def test_images_that_cannot_be_had(shop: World, shelf: Shelf, place: str) -> None:
    shelf.make("lie.gvmi")
    rented = await shop.requestor.rent(f"hash:sha3:{'ab' * 28}:{shelf.url}{place}")
    await rented.create()
    (result,) = await rented.script({"deploy": {}})
    code = "image_not_found" if place == "/missing.gvmi" else "image_digest_mismatch"
    assert (result.message or "").partition(":")[0] == code
    await shop.requestor.end(rented)


async def _bytes(data: bytes) -> AsyncIterator[bytes]:
    yield data
