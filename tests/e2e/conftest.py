"""One network of real processes for the whole suite, and images made of the machine's own busybox."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from shem.cogs.ociarchive import host_architecture, write_layout
from shem.sdk import Golem
from shem.testing.devnet import Devnet

LAYER = "application/vnd.oci.image.layer.v1.tar"
TOOLS = (
    "sh",
    "cat",
    "echo",
    "sleep",
    "true",
    "false",
    "ls",
    "cp",
    "mkdir",
    "head",
    "tr",
    "env",
    "id",
    "dd",
    "wc",
    "seq",
    "sha256sum",
)


def make_image(where: Path, config: dict[str, object] | None = None) -> Path:
    """An OCI layout with busybox and its usual names, and ``/work`` as working directory."""
    busybox = shutil.which("busybox")
    assert busybox is not None, "the tests need busybox-static: run make system"
    where.mkdir(parents=True)
    layer = where.parent / f"{where.name}.tar"
    with tarfile.open(layer, "w") as tar:
        for name in ("bin", "usr", "usr/bin", "work", "tmp", "etc", "proc", "dev", "sys"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o777 if name in ("tmp", "work") else 0o755
            tar.addfile(entry)
        tar.add(busybox, "bin/busybox", filter=_root)
        for name in TOOLS:
            for place in ("bin", "usr/bin"):
                link = tarfile.TarInfo(f"{place}/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, "/bin/busybox"
                tar.addfile(link)
        passwd = b"root:x:0:0:root:/:/bin/sh\n"
        entry = tarfile.TarInfo("etc/passwd")
        entry.size = len(passwd)
        tar.addfile(entry, io.BytesIO(passwd))
    body = {
        "architecture": host_architecture(),
        "os": "linux",
        "config": {"Env": ["PATH=/bin:/usr/bin", "GREETING=hello"], "WorkingDir": "/work", **(config or {})},
        "rootfs": {"type": "layers", "diff_ids": [_diff_id(layer)]},
    }
    write_layout(where, json.dumps(body).encode(), [(layer, LAYER)], name="test")
    return where


def _root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.mtime = 0
    return entry


def _diff_id(layer: Path) -> str:
    import hashlib

    return "sha256:" + hashlib.sha256(layer.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image that every provider can start."""
    return make_image(tmp_path_factory.mktemp("images") / "busybox")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def net(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Devnet]:
    """A chain, a requestor node and three providers."""
    async with Devnet(tmp_path_factory.mktemp("devnet"), providers=3) as network:
        yield network


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
