"""Does a driver really work here? Make the smallest sandbox there can be and use it.

The image is one empty layer: the only program inside is our agent, which also serves as the command that is run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from shem.runtimes.base import ImageConfig, Limits, Rootfs, Sandbox, SandboxFailed
from shem.runtimes.host.furnish import AGENT

LIMITS = Limits(memory_bytes=64 << 20, cpus=1.0, pids=32, disk_bytes=32 << 20, tmp_bytes=1 << 20)

S = TypeVar("S", bound=Sandbox)
T = TypeVar("T")


async def run_canary(create: Callable[[Rootfs, Path], Awaitable[S]], look: Callable[[S], T]) -> T:
    """Make a sandbox, run a command and move a file in it, and return what ``look`` sees meanwhile.

    Raises a :class:`~shem.errors.WorkFailed` that says what does not work.
    """
    with tempfile.TemporaryDirectory(prefix="shem-canary-", dir="/var/tmp", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        layer = directory / "layer"
        layer.mkdir()
        layer.chmod(0o755)
        rootfs = Rootfs(layers=(layer,), config=ImageConfig(), digest="sha256:canary")
        sandbox = await create(rootfs, directory / "box")
        try:
            status = await sandbox.guest.run([AGENT], timeout_s=10)
            await sandbox.guest.put_file("/canary", b"sings")
            heard = b"".join([chunk async for chunk in sandbox.guest.get_file("/canary")])
            if status.code != 0 or heard != b"sings":
                raise SandboxFailed("A test sandbox started and did not work")
            return look(sandbox)
        finally:
            await sandbox.destroy()
