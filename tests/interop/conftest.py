"""One network with ``vm`` offers for all tests with Golem's clients, images for it, and a registry that has them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from shem.runtimes.images.gvmi import gvmi_available
from shem.testing.devnet import Devnet
from shem.testing.small_image import make_small_gvmi
from tests.interop.registry import Image, Registry
from tests.interop.support import Books, Clients

VOLUMES = ("/golem/work", "/golem/input", "/golem/output", "/golem/resource")


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """A small GVMI: busybox, with the volumes that Golem's images have."""
    if reason := gvmi_available():
        pytest.skip(f"GVMI images cannot be read here: {reason}")
    path = tmp_path_factory.mktemp("gvmi") / "small.gvmi"
    return Image(path, make_small_gvmi(path, volumes=VOLUMES), "golem/alpine:latest")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def registry(image: Image, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Registry]:
    """A registry with that image."""
    server = Registry([image], tmp_path_factory.mktemp("registry"))
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def net(image: Image, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Devnet]:
    """A chain, a requestor node and three providers."""
    async with Devnet(tmp_path_factory.mktemp("devnet"), providers=3) as network:
        yield network


@pytest_asyncio.fixture(loop_scope="session")
async def books(net: Devnet) -> AsyncIterator[Books]:
    """The requestor's books, opened at the start of the test."""
    async with aiohttp.ClientSession() as session:
        opened = Books(net, session)
        await opened.open()
        yield opened
        await opened.clear()


@pytest_asyncio.fixture(loop_scope="session")
async def clients(
    net: Devnet, books: Books, registry: Registry, image: Image, tmp_path: Path
) -> AsyncIterator[Clients]:
    """Starts programs that find the network, its image and the registry in their environment."""
    env = {
        **net.env,
        "YAGNA_SUBNET": "public",
        "GOLEM_REGISTRY_URL": registry.url,
        "IMAGE_HASH": image.sha3,
        "IMAGE_TAG": image.tag,
        "IMAGE_PATH": str(image.path),
        "IMAGE_URL": registry.image_url(image),
        "REGISTRY_URL": registry.url,
    }
    started = Clients(env, tmp_path)
    try:
        yield started
    finally:
        await started.close()
