"""The chain over HTTP and as a process. Over HTTP nobody tells when a block came: these tests ask again and again."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from shem.errors import Misconfigured
from shem.testing.devchain import places
from shem.testing.devchain.launch import start_devchain
from shem.testing.devchain.node import DevChain

TO = "0x" + "99" * 20


async def ask(url: str, method: str, *params: object) -> Any:
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
        assert response.status == 200
        answer = await response.json()
        return answer.get("result", answer.get("error"))


async def wait_final(url: str, number: int) -> float:
    """Seconds until that block is final."""
    start = time.monotonic()
    async with asyncio.timeout(10):
        while int((await ask(url, "shem_status"))["finalized"], 16) < number:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return time.monotonic() - start


async def test_what_is_mined_becomes_final_and_then_the_chain_is_still() -> None:
    async with DevChain(block_time_s=0.05) as chain:
        given = await ask(chain.rpc_url, "shem_fund", TO, "0x1", "0x1")
        number = int(given["blockNumber"], 16)
        assert await wait_final(chain.rpc_url, number) < 5
        await asyncio.sleep(0.3)  # the claim is that nothing happens in this time
        assert chain.chain.head == number + 2


async def test_a_burst_becomes_few_blocks() -> None:
    from eth_account import Account

    account = Account.from_key(b"\x05" * 32)
    async with DevChain(block_time_s=0.05) as chain:
        chain.fund(account.address.lower(), wei=10**18)
        fields = {"type": 2, "chainId": 1337, "to": bytes.fromhex(TO[2:]), "value": 1, "gas": 21_000}
        fields |= {"maxFeePerGas": 10**10, "maxPriorityFeePerGas": 1}
        before = chain.chain.head
        batch = []
        for nonce in range(300):
            raw = bytes(account.sign_transaction(fields | {"nonce": nonce}).raw_transaction).hex()
            call = {"jsonrpc": "2.0", "id": nonce, "method": "eth_sendRawTransaction", "params": ["0x" + raw]}
            batch.append(call)
        async with aiohttp.ClientSession() as session, session.post(chain.rpc_url, json=batch) as response:
            assert all("result" in answer for answer in await response.json())
        async with asyncio.timeout(20):
            while int(await ask(chain.rpc_url, "eth_getBalance", TO, "latest"), 16) < 300:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert chain.chain.head - before < 20


async def test_automine_can_be_switched_off() -> None:
    async with DevChain(block_time_s=0.02) as chain:
        assert await ask(chain.rpc_url, "shem_setAutomine", False) is True
        number = int((await ask(chain.rpc_url, "shem_fund", TO, "0x1"))["blockNumber"], 16)
        await asyncio.sleep(0.1)  # five block times
        assert chain.chain.head == number
        assert await ask(chain.rpc_url, "shem_mine", 1) == hex(number + 1)
        await ask(chain.rpc_url, "shem_setAutomine", True)
        await wait_final(chain.rpc_url, number)


async def test_bad_requests_over_http() -> None:
    async with DevChain() as chain, aiohttp.ClientSession() as session:
        bad = (b"{", b"", b"\xff", b'"\xff"', b"[" * 100_000)
        for body, status in (*((body, 200) for body in bad), (b" " * (5 << 20), 413)):
            async with session.post(chain.rpc_url, data=io.BytesIO(body)) as response:
                assert response.status == status
                if status == 200:
                    assert (await response.json(content_type=None))["error"]["code"] == -32700
        async with session.get(chain.rpc_url) as response:
            assert response.status == 405
        assert await ask(chain.rpc_url, "eth_chainId") == "0x539"


async def test_it_listens_on_loopback_only() -> None:
    async with DevChain() as chain:
        assert chain.rpc_url.startswith("http://127.0.0.1:")
        with pytest.raises(aiohttp.ClientError):
            await ask(chain.rpc_url.replace("127.0.0.1", "127.0.0.2"), "eth_chainId")


async def test_a_killed_process_goes_on_where_it_was(tmp_path: Path) -> None:
    async with start_devchain(directory=tmp_path, block_time_s=0.05, chain_id=4242) as first:
        assert (first.chain_id, first.token) == (4242, places.TOKEN_ADDRESS)
        await ask(first.rpc_url, "shem_fund", TO, "0x5", "0x6")
        with pytest.raises(Misconfigured):
            async with start_devchain(directory=tmp_path, chain_id=4242):
                pass
        os.kill(first.pid, signal.SIGKILL)
        async with start_devchain(directory=tmp_path, block_time_s=0.05, chain_id=4242) as second:
            assert await ask(second.rpc_url, "eth_getBalance", TO, "latest") == "0x5"
            assert await wait_final(second.rpc_url, 1) < 5
