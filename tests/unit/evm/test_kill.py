"""Real processes, really killed: the payer at random moments, and the chain under it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shem.node.identity.keys import Identity
from shem.node.payment.drivers.evm.rpc import RpcPool
from shem.testing.devchain import places
from shem.testing.devchain.launch import start_devchain

PAYER = Path(__file__).with_name("payer_process.py")


@asynccontextmanager
async def payer(database: Path, url: str, count: int, multi: str = "") -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PAYER), str(database), url, str(count), multi, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def fund(url: str) -> None:
    pool = RpcPool([url], 1337)
    await pool.call("shem_fund", [Identity(b"\7" * 32).address, hex(10**18), hex(10**24)], dict)
    await pool.close()


async def check(database: Path, url: str, count: int) -> None:
    pool = RpcPool([url], 1337)
    calls = []
    for place in range(count):
        data = f"0x70a08231{0xABC0000 + place:064x}"
        calls.append(("eth_call", [{"to": places.TOKEN_ADDRESS, "data": data}, "latest"]))
    held = [int(str(bytes(result), "ascii").strip('"'), 16) for result in await pool.batch(calls)]  # type: ignore[arg-type]
    await pool.close()
    assert held == [1000 + place for place in range(count)]
    rows = sqlite3.connect(database)
    assert rows.execute("select count(*), count(distinct kind) from told").fetchone() == (count, 1)
    rows.close()


async def finish(database: Path, url: str, count: int, multi: str) -> None:
    async with asyncio.timeout(60), payer(database, url, count, multi) as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"done\n"


async def kill_payer_often(seed: int, kills: int, count: int, directory: Path, multi: str = "") -> None:
    rng = random.Random(seed)
    database = directory / "node.sqlite"
    async with start_devchain(directory=directory / "chain", block_time_s=0.05) as chain:
        await fund(chain.rpc_url)
        for _ in range(kills):
            async with payer(database, chain.rpc_url, count, multi):
                await asyncio.sleep(rng.uniform(0, 0.35))  # the moment of death is the point
        await finish(database, chain.rpc_url, count, multi)
        await check(database, chain.rpc_url, count)
    rows = sqlite3.connect(database)
    together = rows.execute("select count(*) from evm_intent where key like 'multi:%'").fetchone()[0]
    rows.close()
    assert bool(together) == bool(multi)


async def test_a_payer_killed_at_random_moments_pays_once(tmp_path: Path) -> None:
    await kill_payer_often(1, 3, 40, tmp_path, places.MULTI_TRANSFER_ADDRESS)


@pytest.mark.slow
@pytest.mark.parametrize("multi", ["", places.MULTI_TRANSFER_ADDRESS])
@pytest.mark.parametrize("seed", range(10, 16))
async def test_a_payer_killed_often_pays_once(seed: int, multi: str, tmp_path: Path) -> None:
    await kill_payer_often(seed, 10, 150, tmp_path, multi)


async def test_the_chain_killed_under_a_payer(tmp_path: Path) -> None:
    """What the chain had not mined is gone with it; the payer goes on by itself when it is back."""
    database, directory = tmp_path / "node.sqlite", tmp_path / "chain"
    async with start_devchain(directory=directory, block_time_s=0.05) as first:
        await fund(first.rpc_url)
        port = int(first.rpc_url.rsplit(":", 1)[1])
        async with payer(database, first.rpc_url, 60) as process:
            await asyncio.sleep(0.05)
            os.kill(first.pid, signal.SIGKILL)
            async with start_devchain(directory=directory, port=port, block_time_s=0.05) as second:
                assert process.stdout is not None
                async with asyncio.timeout(60):
                    assert await process.stdout.readline() == b"done\n"
                await check(database, second.rpc_url, 60)
