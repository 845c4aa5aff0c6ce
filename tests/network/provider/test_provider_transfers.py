"""Transfers on a real sandbox: archives in every format, and web servers."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import logging
import stat
import tarfile
import zipfile
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from shem.wire.activity import CommandResult
from tests.network.provider.conftest import Rental, World

pytestmark = pytest.mark.asyncio(loop_scope="module")

FORMATS = ["tar", "tar.gz", "tar.bz2", "tar.xz", "zip", "zip.0"]
LOGIN = "Basic " + base64.b64encode(b"me:p:w").decode()
RUN = b"#!/bin/sh\necho hi\n"
DATA = hashlib.shake_128(b"seed").digest(2_000_001)


class Server:
    """A web server: what it holds, what it was given, and tricks."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.got: dict[str, bytes] = {}
        self.lengths: dict[str, str | None] = {}
        self.url = ""

    async def get(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        match name:
            case "moved":
                raise web.HTTPFound("/file")
            case "round":
                raise web.HTTPFound("/round")
            case "away":
                raise web.HTTPFound("ftp://127.0.0.1/x")
            case "cut":
                response = web.StreamResponse(headers={"Content-Length": "1000"})
                await response.prepare(request)
                await response.write(b"too little")
                assert request.transport is not None
                request.transport.close()
                return response
            case "endless":
                response = web.StreamResponse()
                await response.prepare(request)
                while True:
                    await response.write(bytes(1 << 20))
            case "private" if request.headers.get("Authorization") != LOGIN:
                raise web.HTTPUnauthorized
        if name not in self.files:
            raise web.HTTPNotFound
        return web.Response(body=self.files[name])

    async def put(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name == "full":
            raise web.HTTPInsufficientStorage
        if name == "moved":
            raise web.HTTPTemporaryRedirect("/file")
        self.lengths[name] = request.headers.get("Content-Length")
        self.got[name] = await request.read()
        return web.Response(status=201)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A provider that may speak to web servers of this machine."""
    async with World(tmp_path_factory.mktemp("shop")) as made, made.agent(web_private_addresses=True):
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    made = Server()
    app = web.Application(client_max_size=1 << 26)
    app.add_routes([web.get("/{name}", made.get), web.put("/{name}", made.put)])
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    made.files.update(file=DATA, private=b"for me")
    yield made
    await runner.cleanup()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rental(shop: World) -> AsyncIterator[Rental]:
    rented = await shop.requestor.rent(shop.package)
    await rented.open()
    yield rented
    await shop.requestor.end(rented)


async def transfer(rental: Rental, source: str, target: str, **more: Any) -> CommandResult:
    return (await rental.script({"transfer": {"from": source, "to": target, **more}}, timeout_s=60))[-1]


async def said(rental: Rental, text: str) -> str:
    result = await rental.shell(text)
    assert result.result == "Ok", result
    assert isinstance(result.stdout, str)
    return result.stdout


# --- archives ---------------------------------------------------------------------------------------------------------


def packed(form: str) -> bytes:
    """A directory with a file, a program and a link below it."""
    out = io.BytesIO()
    if form.startswith("zip"):
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED if form == "zip.0" else zipfile.ZIP_DEFLATED) as made:
            for name, content, mode in (
                ("a.txt", b"a" * 700, stat.S_IFREG | 0o644),
                ("sub/run", RUN, stat.S_IFREG | 0o755),
                ("sub/link", b"../a.txt", stat.S_IFLNK | 0o777),
            ):
                info = zipfile.ZipInfo(name)
                info.external_attr = mode << 16
                made.writestr(info, content)
        return out.getvalue()
    with tarfile.open(fileobj=out, mode="w:" + form.removeprefix("tar").removeprefix(".")) as archive:
        for name, content, mode in (("./a.txt", b"a" * 700, 0o644), ("./sub/run", RUN, 0o755)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("./sub/link")
        link.type, link.linkname = tarfile.SYMTYPE, "../a.txt"
        archive.addfile(link)
    return out.getvalue()


def unpacked(form: str, data: bytes) -> dict[str, tuple[int, bytes]]:
    """Path → (permissions, content or target)."""
    if form.startswith("zip"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {
                info.filename.rstrip("/"): (info.external_attr >> 16 & 0o777, archive.read(info))
                for info in archive.infolist()
            }
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {
            member.name: (
                member.mode & 0o777,
                (tar.extractfile(member) or io.BytesIO()).read() if member.isfile() else member.linkname.encode(),
            )
            for member in tar.getmembers()
        }


@pytest.mark.parametrize("form", FORMATS)
async def test_a_directory_there_and_back(server: Server, rental: Rental, form: str) -> None:
    server.files["packed"] = packed(form)
    place = f"/work/tree-{form}"
    result = await transfer(rental, f"{server.url}/packed", f"container:{place}", format=form)
    assert result.result == "Ok", result.message
    assert await said(rental, f"{place}/sub/run; cat {place}/sub/link | wc -c") == "hi\n700\n"
    result = await transfer(rental, f"container:{place}", f"{server.url}/{form}", format=form)
    assert result.result == "Ok", result.message
    assert unpacked(form, server.got[form]) == {
        "a.txt": (0o644, b"a" * 700),
        "sub": (0o755, b""),
        "sub/run": (0o755, RUN),
        "sub/link": (0o777, b"../a.txt"),
    }


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({"depth": 0}, "a.txt"),
        ({"depth": 1}, "a.txt sub sub/link sub/run"),
        ({"fileset": "**/r*"}, "sub/run"),
        ({"fileset": ["*.txt", "**/link"], "depth": None}, "a.txt sub/link"),
        ({"fileset": {"desc": "most", "includes": None, "excludes": ["sub/l*"]}}, "a.txt sub sub/run"),
        ({"fileset": "nothing"}, ""),
    ],
)
@pytest.mark.parametrize("form", ["tar", "zip"])
async def test_a_part_of_a_directory(
    server: Server, rental: Rental, form: str, more: dict[str, Any], names: str
) -> None:
    server.files["part"] = packed(form)
    await said(rental, "rm -rf /work/part /work/whole")
    assert (await transfer(rental, f"{server.url}/part", "container:/work/whole", format=form)).result == "Ok"
    assert (await transfer(rental, "container:/work/whole", f"{server.url}/part", format=form, **more)).result == "Ok"
    assert sorted(set(unpacked(form, server.got["part"])) - {"."}) == names.split()
    assert (await transfer(rental, f"{server.url}/part", "container:/work/part", format=form, **more)).result == "Ok"
    kept = (await said(rental, "cd /work/part; ls a.txt sub/link sub/run 2>/dev/null || true")).split()
    assert kept == [name for name in names.split() if name != "sub"]


async def test_one_file_as_an_archive(server: Server, rental: Rental) -> None:
    await said(rental, "echo alone > /work/alone")
    assert (await transfer(rental, "container:/work/alone", f"{server.url}/one", format="tar.gz")).result == "Ok"
    assert unpacked("tar.gz", server.got["one"]) == {"alone": (0o644, b"alone\n")}


@pytest.mark.parametrize("form", FORMATS)
async def test_what_is_no_archive(server: Server, rental: Rental, form: str) -> None:
    server.files["none"] = b"no archive" * 100
    result = await transfer(rental, f"{server.url}/none", "container:/work/none", format=form)
    assert (result.message or "").startswith("transfer_failed: the archive is not sound")


@pytest.mark.parametrize("form", ["tar.gz", "zip"])
async def test_an_archive_that_grows(server: Server, rental: Rental, form: str) -> None:
    """Little to fetch, and more than the disk (256 MiB) to unpack."""
    out, size = io.BytesIO(), 400 << 20
    if form == "zip":
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made, made.open("bomb", "w") as member:
            for _ in range(size >> 20):
                member.write(bytes(1 << 20))
    else:
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            entry = tarfile.TarInfo("bomb")
            entry.size = size
            archive.addfile(entry, _Zeros())  # type: ignore[arg-type]
    server.files["bomb"] = out.getvalue()
    assert len(server.files["bomb"]) < 1 << 20
    result = await transfer(rental, f"{server.url}/bomb", "container:/work/bomb", format=form)
    assert (result.message or "").startswith("disk_full: ")


class _Zeros:
    def read(self, size: int) -> bytes:
        return bytes(size)


async def test_an_archive_that_climbs_out_by_a_link(server: Server, rental: Rental) -> None:
    """The link leads out of the directory and stays within the sandbox, where its owner may write anyway."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, "/"
        archive.addfile(link)
        entry = tarfile.TarInfo("out/here")
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    server.files["climb"] = out.getvalue()
    assert (await transfer(rental, f"{server.url}/climb", "container:/work/climb", format="tar")).result == "Ok"
    assert await said(rental, "cat /here") == "x"


# --- web servers ------------------------------------------------------------------------------------------------------


async def test_a_file_there_and_back(server: Server, rental: Rental) -> None:
    for name in ("file", "moved"):
        assert (await transfer(rental, f"{server.url}/{name}", f"container:/work/{name}")).result == "Ok"
        assert (await transfer(rental, f"container:/work/{name}", f"{server.url}/back")).result == "Ok"
        assert server.got.pop("back") == DATA
        assert server.lengths["back"] == str(len(DATA))


async def test_a_login_is_sent_and_not_told(server: Server, rental: Rental, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    place = server.url.removeprefix("http://")
    result = await transfer(rental, f"http://me:p%3Aw@{place}/private?sig=s3cr3t", "container:/work/mine")
    assert result.result == "Ok", result.message
    result = await transfer(rental, f"http://me:wr0ng@{place}/private?sig=s3cr3t", "container:/work/mine")
    assert result.message == "transfer_failed: 127.0.0.1 does not allow it (status 401)"
    for secret in ("p%3Aw", "p:w", "wr0ng", "s3cr3t"):
        assert secret not in caplog.text


async def test_a_hash_is_checked(server: Server, rental: Rental) -> None:
    right = hashlib.sha3_256(DATA).hexdigest()
    source = f"hash:sha3:{right.upper()}:{server.url}/file"
    assert (await transfer(rental, source, "container:/work/checked")).result == "Ok"
    wrong = f"hash:sha3:{hashlib.sha3_256(b'other').hexdigest()}:{server.url}/file"
    result = await transfer(rental, wrong, "container:/work/checked")
    assert (result.message or "").startswith("transfer_failed: the content's hash is ")
    assert await said(rental, "ls /work/checked 2>&1 || true") == "ls: /work/checked: No such file or directory\n"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "transfer_failed: there is no such file: 127.0.0.1 has no such file (status 404)"),
        ("round", "transfer_failed: 127.0.0.1 redirects more than 5 times"),
        ("away", "transfer_failed: that is not an http or https URL"),
        ("cut", "transfer_failed: the connection to 127.0.0.1 broke (ClientPayloadError)"),
        # the kernel says so, or our own count of the bytes, whichever comes first
        (
            "endless",
            "disk_full: (the sandbox's disk is full (writing /work/f)|the content does not fit into the sandbox's disk)",
        ),
    ],
)
async def test_servers_that_fail(server: Server, rental: Rental, name: str, words: str) -> None:
    result = await transfer(rental, f"{server.url}/{name}", "container:/work/f")
    assert result.result == "Error"
    code, _, said = words.partition(": ")
    either = said[1:-1].split("|") if said.startswith("(") else [said]
    assert result.message in [f"{code}: {one}" for one in either]


@pytest.mark.parametrize(("name", "words"), [("full", "status 507"), ("moved", "redirects an upload")])
async def test_servers_that_take_nothing(server: Server, rental: Rental, name: str, words: str) -> None:
    result = await transfer(rental, "container:/etc/passwd", f"{server.url}/{name}")
    assert words in (result.message or "")


async def test_nobody_listens_there(rental: Rental) -> None:
    result = await transfer(rental, "http://127.0.0.1:9/x", "container:/work/f")
    assert result.message == "transfer_failed: 127.0.0.1 cannot be reached"


async def test_within_the_container(rental: Rental) -> None:
    assert (await transfer(rental, "container:/etc/passwd", "container:/work/copy/passwd")).result == "Ok"
    assert await said(rental, "cat /work/copy/passwd") == await said(rental, "cat /etc/passwd")


# --- progress ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option", [{"updateInterval": "50ms"}, {"updateStep": 1 << 20}, {"updateInterval": None, "updateStep": None}, {}]
)
async def test_progress(server: Server, shop: World, rental: Rental, option: dict[str, Any]) -> None:
    activities = shop.requestor.activities
    command = {"transfer": {"from": f"{server.url}/file", "to": "container:/work/p", "progress": option}}
    batch = await activities.exec(rental.activity_id, [command])
    path = f"/activity-api/v1/activity/{rental.activity_id}/exec/{batch}"
    async with asyncio.timeout(20):
        events = [data async for event, _, data in shop.requestor.http.events(path) if event == "runtime"]
    seen = [text.decode() for text in events if b'"progress"' in text and b'"started"' not in text]
    assert seen
    size = len(DATA)
    assert (
        f'"kind":{{"progress":{{"step":[0,1],"message":null,"progress":[{size},{size}],"unit":"Bytes"}}}}' in seen[-1]
    )


async def test_progress_of_a_deploy(shop: World) -> None:
    package = await shop.publish("fresh", Env=["A=progress"])
    rented = await shop.requestor.rent(package)
    await rented.create()
    deploy = {"deploy": {"progress": {}}}
    batch = await shop.requestor.activities.exec(rented.activity_id, [deploy, {"terminate": {}}, deploy, {"start": {}}])
    told = [
        (event.index, event.kind.progress)
        async for event in shop.requestor.activities.stream(rented.activity_id, batch)
        if event.kind.progress is not None
    ]
    assert {index for index, _ in told} == {0, 2}
    seen = [progress for _, progress in told]
    assert (seen[-1].unit, seen[-1].step, seen[-1].message) == ("Bytes", (0, 1), "preparing the image")  # it was here
    await shop.requestor.end(rented)
