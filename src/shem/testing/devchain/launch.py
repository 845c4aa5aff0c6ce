"""The chain as a child process, for devnets and for tests that kill it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from shem.errors import Misconfigured
from shem.testing.devchain import places

READY_S = 30.0
"""Far more than the chain needs (under a second) for machines that are very busy."""
STOP_S = 5.0


class RunningChain(msgspec.Struct, frozen=True):
    """Where it is reached. ``pid`` is for tests that kill it."""

    rpc_url: str
    chain_id: int
    token: str
    pid: int = 0


@asynccontextmanager
async def start_devchain(
    *,
    port: int = 0,
    directory: Path | None = None,
    block_time_s: float = 0.25,
    chain_id: int = places.CHAIN_ID,
) -> AsyncIterator[RunningChain]:
    """Run ``python -m shem.testing.devchain`` until the block ends.

    Raises :class:`Misconfigured` when it does not come up (the port is taken, another chain's directory).
    """
    command = [sys.executable, "-m", "shem.testing.devchain", "--port", str(port)]
    command += ["--block-time", str(block_time_s), "--chain-id", str(chain_id)]
    if directory is not None:
        command += ["--data", str(directory)]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        yield await _ready(process)
    finally:
        await _stop(process)


async def _ready(process: asyncio.subprocess.Process) -> RunningChain:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(READY_S):
            line = await process.stdout.readline()
        told = msgspec.json.decode(line, type=RunningChain)
    except (TimeoutError, msgspec.MsgspecError):
        raise Misconfigured(
            "the devnet's chain did not start",
            code="devchain_failed",
            hint="its reason is on standard error; a taken port or directory is the usual one",
        ) from None
    return msgspec.structs.replace(told, pid=process.pid)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    try:
        process.terminate()
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
    except ProcessLookupError:
        pass  # killed by a test meanwhile
