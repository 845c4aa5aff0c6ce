"""One network of real processes for the whole suite, and images made of the machine's own busybox."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from shem.sdk import Golem
from shem.testing.devnet import Devnet
from shem.testing.small_image import make_small_image


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image that every provider can start."""
    return make_small_image(tmp_path_factory.mktemp("images") / "busybox")


class Registry:
    """A registry on loopback that has one image, ``test/small:1``."""

    def __init__(self, layout: Path) -> None:
        self.blobs = layout / "blobs" / "sha256"
        self.manifest = json.loads((layout / "index.json").read_bytes())["manifests"][0]["digest"]
        self.host = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        kind, name = request.match_info["kind"], request.match_info["name"]
        digest = self.manifest if (kind, name) == ("manifests", "1") else name
        path = self.blobs / digest.removeprefix("sha256:")
        if request.match_info["repository"] != "test/small" or "/" in name or not path.is_file():
            return web.json_response({"errors": [{"code": "MANIFEST_UNKNOWN"}]}, status=404)
        media = "application/vnd.oci.image.manifest.v1+json" if kind == "manifests" else "application/octet-stream"
        return web.Response(body=path.read_bytes(), content_type=media, headers={"Docker-Content-Digest": digest})


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def registry(image: Path) -> AsyncIterator[Registry]:
    """A registry that providers of the network are told to trust without TLS."""
    server = Registry(image)
    app = web.Application()
    app.router.add_get("/v2/{repository:.+}/{kind:manifests|blobs}/{name}", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.host = f"127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def net(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> AsyncIterator[Devnet]:
    """The network that most share. Nothing may be left on it that outlives its test: an agreement, a bill, a dead node."""
    async with network(tmp_path_factory.mktemp("devnet"), registry) as made:
        yield made


def network(root: Path, registry: Registry) -> Devnet:
    """A chain, a requestor node and three providers, who start for a reserve that suits the small budgets of tests."""
    made = Devnet(root, providers=3, provider_options=("--insecure-registry", registry.host))
    for provider in made.providers:
        settings = provider.data_dir / "agent" / "provider.toml"
        settings.parent.mkdir(parents=True)
        settings.write_text("[rules]\nleast_cover_s = 1\ncover_spare_s = 0.0\n")
    return made


@pytest.fixture
def golem(net: Devnet) -> Golem:
    """A session with the network's requestor; enter it with ``async with``."""
    return session(net)


def session(net: Devnet, **options: object) -> Golem:
    """A session with chosen options."""
    return Golem(api_url=net.requestor.api_url, app_key=net.requestor.app_key, progress=False, **options)  # type: ignore[arg-type]


async def until(condition: object, timeout_s: float = 30.0) -> None:
    """Wait for ``condition()`` (plain or async) to hold, under a deadline."""
    async with asyncio.timeout(timeout_s):
        while True:
            found = condition()  # type: ignore[operator]
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.05)


def processes_of(root: Path) -> list[int]:
    """Live processes whose command line names ``root``."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if str(root).encode() in Path(f"/proc/{entry}/cmdline").read_bytes():
                    found.append(int(entry))
            except OSError:
                continue
    return found
