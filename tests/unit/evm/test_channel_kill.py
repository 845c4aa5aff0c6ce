"""A payer by channel, really killed at random moments: each channel is opened, settled and closed once."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shem.node.payment.drivers.evm import erc20, vault
from shem.node.payment.drivers.evm.rpc import RpcPool
from shem.testing.devchain import places
from shem.testing.devchain.launch import start_devchain
from tests.unit.evm.channel_process import ME, payee

PAYER = Path(__file__).with_name("channel_process.py")
START = 10**24


@asynccontextmanager
async def payer(database: Path, url: str, count: int) -> AsyncIterator[asyncio.StreamReader]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PAYER), str(database), url, str(count), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        yield process.stdout
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def check(database: Path, pool: RpcPool, count: int) -> None:
    async def ask(to: str, data: bytes) -> str:
        return await pool.call("eth_call", [{"to": to, "data": "0x" + data.hex()}, "latest"], str)

    held = [int(await ask(places.TOKEN_ADDRESS, erc20.balance_of(payee(n).address)), 16) for n in range(count)]
    assert held == [500] * count
    free, opened = vault.read_account(await ask(places.VAULT_ADDRESS, vault.account(ME.address)))
    left = int(await ask(places.TOKEN_ADDRESS, erc20.balance_of(ME.address)), 16)
    assert (opened, left + free) == (count, START - 500 * count)
    rows = sqlite3.connect(database)
    kinds = dict(rows.execute("select kind, count(*) from told group by kind"))
    rows.close()
    assert kinds == {"Opened": count, "Ended": 2 * count}


async def kill_often(seed: int, kills: int, count: int, directory: Path) -> None:
    rng = random.Random(seed)
    database = directory / "node.sqlite"
    async with start_devchain(directory=directory / "chain", block_time_s=0.05) as chain:
        pool = RpcPool([chain.rpc_url], 1337)
        try:
            await pool.call("shem_fund", [ME.address, hex(10**18), hex(START)], dict)
            for _ in range(kills):
                async with payer(database, chain.rpc_url, count):
                    await asyncio.sleep(rng.uniform(0, 0.6))  # the moment of death is the point
            async with asyncio.timeout(80), payer(database, chain.rpc_url, count) as said:
                assert await said.readline() == b"done\n"
            await check(database, pool, count)
        finally:
            await pool.close()


async def test_killed_at_random_moments_each_channel_is_opened_and_closed_once(tmp_path: Path) -> None:
    await kill_often(1, 2, 12, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 16))
async def test_killed_often(seed: int, tmp_path: Path) -> None:
    await kill_often(seed, 10, 60, tmp_path)
