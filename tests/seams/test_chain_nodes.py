"""The devnet's chain answers as a real node does: the same payments, the same refusals, the same gas on both.

The real node is anvil, which ``tools/interop.sh`` installs; its tests are run by ``make interop``.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from shem.node.config import NetworkConfig
from shem.node.db import Database
from shem.node.identity.keys import Identity
from shem.node.identity.signing import keccak256
from shem.node.payment.drivers.base import ChainUnreachable, Failure, PaymentOrder, Settlement
from shem.node.payment.drivers.evm import erc20
from shem.node.payment.drivers.evm.driver import EvmDriver
from shem.node.payment.drivers.evm.rpc import Receipt, RpcPool, RpcRefused, read_or_none
from shem.node.payment.drivers.evm.transaction import Transaction, encode_rlp
from shem.node.payment.drivers.networks import networks_from
from shem.testing.devchain import places
from shem.testing.devchain.launch import start_devchain
from tests.anvil import anvil_path

GWEI = 10**9
TOKEN = 10**18
ANVIL_KEY = bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")
"""The first account that anvil gives coins to on every start."""


NOT_OURS = {"blobGasPrice", "baseFeePerBlobGas", "blobGasUsedRatio", "blockTimestamp", "totalDifficulty"}
"""Blob fees, which a devnet has no use for; what only anvil has; what ended with mining."""


class Node:
    """A chain, a token on it, and an account that has both kinds of money."""

    def __init__(self, url: str, token: str, payer: Identity) -> None:
        self.url = url
        self.token = token
        self.payer = payer
        self.pool = RpcPool([url], 1337)
        self.nonce = 0

    def sign(self, **fields: Any) -> Transaction:
        defaults = {"chain_id": 1337, "nonce": self.nonce, "max_tip": GWEI, "max_fee": 20 * GWEI, "gas": 200_000}
        return Transaction(**(defaults | {"to": self.token} | fields))

    async def send(self, **fields: Any) -> Receipt:
        """Gives the receipt."""
        signed = self.sign(**fields).sign(self.payer)
        self.nonce += 1
        return await self.send_raw(signed.raw)

    async def send_raw(self, raw: bytes) -> Receipt:
        tx_hash = await self.pool.call("eth_sendRawTransaction", ["0x" + raw.hex()], str)
        async with asyncio.timeout(10):
            while True:
                (answer,) = await self.pool.batch([("eth_getTransactionReceipt", [tx_hash])])
                receipt = read_or_none(answer, Receipt)
                if receipt is not None:
                    return receipt
                await asyncio.sleep(0.01)


def created_by(account: str) -> str:
    """Address of the contract that the account's first transaction creates."""
    return "0x" + keccak256(encode_rlp([bytes.fromhex(account[2:]), b""]))[-20:].hex()


async def anvil(stack: AsyncExitStack) -> Node:
    path = anvil_path()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [path, "--port", str(port), "--silent", "--chain-id", "1337", "--block-time", "0.1"]
    process = await asyncio.create_subprocess_exec(*command, "--hardfork", "prague", "--gas-limit", "30000000")

    async def stop() -> None:
        process.kill()
        await process.wait()

    stack.push_async_callback(stop)
    code = places.artifact("Token")["bytecode"] + f"{places.FAUCET_TOKENS:064x}"
    account = Account.from_key(ANVIL_KEY)
    node = Node(f"http://127.0.0.1:{port}", "", Identity(ANVIL_KEY))
    async with asyncio.timeout(10):
        while True:
            try:
                await node.pool.call("eth_chainId", [], str)
                break
            except ChainUnreachable:
                await asyncio.sleep(0.02)
    fields = {"type": 2, "chainId": 1337, "nonce": 0, "to": b"", "value": 0, "gas": 3_000_000, "data": code}
    fields |= {"maxFeePerGas": 20 * GWEI, "maxPriorityFeePerGas": GWEI}
    await node.send_raw(bytes(account.sign_transaction(fields).raw_transaction))
    node.token = created_by(node.payer.address)
    node.nonce = 1
    return node


async def devchain(stack: AsyncExitStack) -> Node:
    running = await stack.enter_async_context(start_devchain(block_time_s=0.1))
    node = Node(running.rpc_url, running.token, Identity(b"\3" * 32))
    await node.pool.call("shem_fund", [node.payer.address, hex(100 * TOKEN), hex(10**6 * TOKEN)], dict)
    return node


NODES = {"devchain": devchain, "anvil": anvil}


@pytest.fixture(params=["devchain", pytest.param("anvil", marks=pytest.mark.interop)])
async def node(request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    async with AsyncExitStack() as stack:
        made = await NODES[request.param](stack)
        stack.push_async_callback(made.pool.close)
        yield made


async def test_payments(node: Node, tmp_path: Path) -> None:
    config = NetworkConfig(chain_id=1337, rpc_urls=(node.url,), token=node.token, token_symbol="tGLM", depth=2)
    db = Database(tmp_path / "node.sqlite")
    driver = EvmDriver(db, networks_from({"devnet": config}), [node.payer])
    told: asyncio.Queue[Settlement | Failure] = asyncio.Queue()
    driver.on_settled(told.put_nowait)
    await driver.start()
    payer, platform = node.payer.address, "erc20-devnet-tglm"
    with db.transaction(durable=True) as connection:
        for place in range(30):
            payee = f"0x{0xCC0000 + place:040x}"
            driver.pay(connection, PaymentOrder(f"o{place}", platform, payer, payee, place + 1))
    async with asyncio.timeout(30):
        outcomes = {outcome.order_id: outcome for outcome in [await told.get() for _ in range(30)]}
    for place in range(30):
        settled, payee = outcomes[f"o{place}"], f"0x{0xCC0000 + place:040x}"
        assert isinstance(settled, Settlement)
        assert (await driver.balance(platform, payee)).token_units == place + 1
        seen = await driver.verify(platform, settled.tx_hash, payer, payee, place + 1)
        assert seen.block_hash == settled.block_hash
    assert driver.problems() == []
    await driver.stop()
    db.close()


async def refusal(node: Node, transaction: Transaction) -> str:
    with pytest.raises(RpcRefused) as caught:
        await node.pool.call("eth_sendRawTransaction", ["0x" + transaction.sign(node.payer).raw.hex()], str)
    return caught.value.message.lower()


async def test_refusals_have_the_same_words(node: Node) -> None:
    transfer = erc20.transfer("0x" + "dd" * 20, 1)
    gap = node.sign(nonce=node.nonce + 1, data=transfer)
    await node.pool.call("eth_sendRawTransaction", ["0x" + gap.sign(node.payer).raw.hex()], str)
    assert "already" in await refusal(node, gap)
    assert "underpriced" in await refusal(node, node.sign(nonce=gap.nonce, data=transfer, gas=199_999))
    assert "insufficient funds" in await refusal(node, node.sign(nonce=gap.nonce + 1, value=10**30))
    await node.send(data=transfer)
    assert "nonce too low" in await refusal(node, node.sign(nonce=node.nonce - 1, data=transfer, gas=199_999))
    call = {"from": node.payer.address, "to": node.token, "data": "0x" + erc20.transfer("0x" + "00" * 20, 1).hex()}
    for method in ("eth_call", "eth_estimateGas"):
        with pytest.raises(RpcRefused) as caught:
            await node.pool.call(method, [call, "latest"], str)
        assert caught.value.rpc_code == 3
        assert "bad receiver" in caught.value.message


async def measure(node: Node) -> dict[str, int]:
    payee = "0x" + "ee" * 20
    approve = bytes.fromhex(f"095ea7b3{payee[2:]:0>64}" + "ff" * 32)
    used = {
        "first transfer": await node.send(data=erc20.transfer(payee, 1)),
        "next transfer": await node.send(data=erc20.transfer(payee, 2)),
        "approve": await node.send(data=approve),
        "coins": await node.send(to=payee, value=1),
        "refused": await node.send(data=erc20.transfer(payee, 10**30)),
    }
    gas = {name: int(receipt.gas_used, 16) for name, receipt in used.items()}
    call = {"from": node.payer.address, "to": node.token, "data": "0x" + erc20.transfer("0x" + "ef" * 20, 1).hex()}
    gas["estimate"] = int(await node.pool.call("eth_estimateGas", [call, "latest"], str), 16)
    return gas


async def shapes(node: Node) -> dict[str, set[str]]:
    receipt = await node.send(data=erc20.transfer("0x" + "ee" * 20, 1))
    asked = {
        "block": ("eth_getBlockByNumber", [receipt.block_number, True]),
        "receipt": ("eth_getTransactionReceipt", [receipt.transaction_hash]),
        "transaction": ("eth_getTransactionByHash", [receipt.transaction_hash]),
        "history": ("eth_feeHistory", ["0x1", "latest", [50]]),
    }
    answers = {name: await node.pool.call(method, params, dict) for name, (method, params) in asked.items()}
    answers["log"] = answers["receipt"]["logs"][0]
    return {name: set(answer) for name, answer in answers.items()}


@pytest.mark.interop
async def test_gas_and_shapes_are_equal() -> None:
    async with AsyncExitStack() as stack:
        real, ours = await anvil(stack), await devchain(stack)
        assert await measure(ours) == await measure(real)
        theirs, mine = await shapes(real), await shapes(ours)
        for name, fields in theirs.items():
            missing = fields - mine[name] - NOT_OURS
            assert not missing, f"{name} lacks {missing}"
        await real.pool.close()
        await ours.pool.close()
