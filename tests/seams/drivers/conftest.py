"""One suite over all drivers. The image is this machine's own ``/usr`` and Python, as layers: nothing to download."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from shem.cogs.tasks import TaskScope
from shem.runtimes.base import Capabilities, Driver, ExitStatus, ImageConfig, Limits, Rootfs, Sandbox
from shem.runtimes.bwrap.driver import BwrapDriver
from shem.runtimes.oci.driver import OciDriver

DRIVERS: dict[str, Callable[[], Driver]] = {
    "bwrap": BwrapDriver,
    "runc": lambda: OciDriver("runc"),
    "crun": lambda: OciDriver("crun"),
}
LIMITS = Limits(memory_bytes=256 << 20, cpus=1.0, pids=64, disk_bytes=128 << 20, tmp_bytes=16 << 20)
PASSWD = "root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1001::/home/worker:/bin/sh\n"
GROUP = "root:x:0:\nworkers:x:1001:\nextra:x:1002:worker\n"


@functools.cache
def capabilities(name: str) -> Capabilities:
    return asyncio.run(DRIVERS[name]().probe())


@pytest.fixture(
    params=[
        "bwrap",
        pytest.param("runc", marks=pytest.mark.root),
        pytest.param("crun", marks=[pytest.mark.root, pytest.mark.slow]),  # as runc, by another binary
    ]
)
def driver_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if not capabilities(name).available:
        pytest.skip(f"{name} does not work here: {capabilities(name).reason}")
    return name


@pytest.fixture
def caps(driver_name: str) -> Capabilities:
    return capabilities(driver_name)


@pytest.fixture
def driver(driver_name: str) -> Driver:
    return DRIVERS[driver_name]()


@pytest.fixture
def many_users(driver_name: str) -> bool:
    """Whether programs in the sandbox can be somebody else than root."""
    return os.geteuid() == 0


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rootfs]:
    top = tmp_path_factory.mktemp("image") / "top"
    for name in ("etc", "root", "tmp", "home/worker", "work", "var"):
        (top / name).mkdir(parents=True)
    (top / "usr").symlink_to(".")
    (top / "etc/passwd").write_text(PASSWD)
    (top / "etc/group").write_text(GROUP)
    (top / "etc/image").write_text("from the image\n")
    top.chmod(0o755)
    (top / "tmp").chmod(0o1777)
    layers = [Path("/usr"), top]
    if sys.base_prefix != "/usr":
        layers.insert(1, Path(sys.base_prefix))
    yield Rootfs(layers=tuple(layers), config=ImageConfig(), digest="sha256:test")
    # the layers are never written to
    assert (top / "etc/image").read_text() == "from the image\n"


@pytest.fixture
def limits() -> Limits:
    """Those of every box that is not made with others."""
    return LIMITS


@pytest.fixture
async def background() -> AsyncIterator[TaskScope]:
    async with TaskScope("test") as scope:
        yield scope


@dataclass
class Result:
    status: ExitStatus
    out: str
    err: str

    @property
    def code(self) -> int:
        return self.status.code


class Box:
    """A sandbox under test."""

    def __init__(self, sandbox: Sandbox, directory: Path) -> None:
        self.sandbox = sandbox
        self.guest = sandbox.guest
        self.directory = directory
        stage = getattr(sandbox, "_stage", None)
        self.slot: str = stage.slot.name if stage else ""

    async def run(self, *argv: str, **options: object) -> Result:
        said: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}

        async def keep(stream: int, data: bytes) -> None:
            said[stream] += data

        status = await self.guest.run(argv, on_output=keep, **options)  # type: ignore[arg-type]
        return Result(status, said[1].decode(errors="replace"), said[2].decode(errors="replace"))

    async def sh(self, script: str, **options: object) -> Result:
        return await self.run("sh", "-c", script, **options)

    async def python(self, script: str, *arguments: str, **options: object) -> Result:
        return await self.run("python3", "-I", "-S", "-c", script, *arguments, **options)


Make = Callable[..., Awaitable[Box]]


@pytest.fixture
async def make(driver: Driver, rootfs: Rootfs, tmp_path: Path) -> AsyncIterator[Make]:
    """Makes sandboxes, and destroys them at the end."""
    async with AsyncExitStack() as stack:
        made = 0

        async def one(
            limits: Limits = LIMITS, volumes: dict[str, Path] | None = None, image: Rootfs | None = None
        ) -> Box:
            nonlocal made
            made += 1
            directory = tmp_path / f"box{made}"
            sandbox = await driver.create(
                f"box{made}", image or rootfs, limits, directory=directory, volumes=volumes or {}
            )
            stack.push_async_callback(sandbox.destroy)
            return Box(sandbox, directory)

        yield one


@pytest.fixture
async def box(make: Make) -> Box:
    return await make()
