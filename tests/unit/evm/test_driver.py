"""The driver on a running chain: paying, checking, and saying what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shem.errors import Refused
from shem.node.identity.keys import Identity
from shem.node.identity.signing import keccak256
from shem.node.payment.drivers.base import (
    ChainUnreachable,
    Failure,
    NotFinalYet,
    PaymentNotFound,
    PaymentOrder,
    Settlement,
)
from shem.node.payment.drivers.evm.erc20 import WrongToken
from shem.node.payment.drivers.evm.rpc import WrongChain
from shem.node.payment.drivers.evm.transaction import Transaction
from shem.testing.devchain import places
from shem.testing.devchain.node import DevChain

PLATFORM = "erc20-devnet-tglm"
TOKEN = 10**18
PAYEE = "0x" + "22" * 20
OTHER = "0x" + "33" * 20


async def test_a_payment_is_settled_once(payer: Any, chain: DevChain, token_balance: Callable[[str], int]) -> None:
    payer.order("a", PAYEE, 3 * TOKEN)
    (settled,) = await payer.wait_told(1)
    assert isinstance(settled, Settlement)
    assert settled.order_id == "a"
    assert settled.block_number <= chain.chain.finalized
    assert token_balance(PAYEE) == 3 * TOKEN
    payer.order("a", PAYEE, 3 * TOKEN)
    payer.order("b", PAYEE, 1)
    await payer.wait_told(2)
    assert [told.order_id for told in payer.told] == ["a", "b"]
    assert token_balance(PAYEE) == 3 * TOKEN + 1


async def test_an_order_of_a_rolled_back_transaction_is_never_paid(
    payer: Any, token_balance: Callable[[str], int]
) -> None:
    order = PaymentOrder("gone", PLATFORM, payer.identity.address, PAYEE, TOKEN)

    def fail_after_ordering() -> None:
        with payer.db.transaction() as connection:
            payer.driver.pay(connection, order)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_ordering()
    payer.order("next", OTHER, 1)
    await payer.wait_told(1)
    assert token_balance(PAYEE) == 0


async def test_a_hundred_at_once(payer: Any, token_balance: Callable[[str], int]) -> None:
    with payer.db.transaction() as connection:
        for place in range(100):
            order = PaymentOrder(f"o{place}", PLATFORM, payer.identity.address, f"0x{place + 4096:040x}", place + 1)
            payer.driver.pay(connection, order)
    await payer.wait_told(100)
    assert all(isinstance(told, Settlement) for told in payer.told)
    assert [token_balance(f"0x{place + 4096:040x}") for place in range(100)] == list(range(1, 101))
    assert payer.driver.problems() == []


@pytest.mark.parametrize(
    ("platform", "payer_address", "payee", "units", "code"),
    [
        ("erc20-mars-glm", None, PAYEE, 1, "unknown_platform"),
        (PLATFORM, OTHER, PAYEE, 1, "not_our_account"),
        (PLATFORM, None, "0x" + "00" * 20, 1, "bad_payee"),
        (PLATFORM, None, places.TOKEN_ADDRESS, 1, "bad_payee"),
        (PLATFORM, None, "0x12", 1, "bad_node_id"),
        (PLATFORM, None, PAYEE, 0, "bad_amount"),
        (PLATFORM, None, PAYEE, -1, "bad_amount"),
        (PLATFORM, None, PAYEE, 1 << 256, "bad_amount"),
    ],
)
async def test_orders_that_can_never_be_paid_are_refused(
    payer: Any, platform: str, payer_address: str | None, payee: str, units: int, code: str
) -> None:
    order = PaymentOrder("x", platform, payer_address or payer.identity.address, payee, units)
    with payer.db.transaction() as connection, pytest.raises(Refused) as caught:
        payer.driver.pay(connection, order)
    assert caught.value.code == code


async def test_balance(payer: Any, chain: DevChain) -> None:
    balance = await payer.driver.balance(PLATFORM, payer.identity.address)
    assert (balance.token_units, balance.gas_wei) == (1000 * TOKEN, TOKEN)
    assert balance.block_number == chain.chain.head
    with pytest.raises(Refused):
        await payer.driver.balance("erc20-mars-glm", PAYEE)


async def test_verify_believes_the_chain_alone(payer: Any, chain: DevChain) -> None:
    payer.order("a", PAYEE, 5 * TOKEN)
    ((settled),) = await payer.wait_told(1)
    verify, me = payer.driver.verify, payer.identity.address
    seen = await verify(PLATFORM, settled.tx_hash, me, PAYEE, 5 * TOKEN)
    assert (seen.amount_units, seen.block_hash) == (5 * TOKEN, settled.block_hash)
    assert (await verify(PLATFORM, settled.tx_hash.upper().replace("X", "x"), me, PAYEE, 1)).amount_units == 5 * TOKEN
    coins = chain.chain.fund(bytes.fromhex(PAYEE[2:]), 5 * TOKEN, 0)[0]  # the right sum of the wrong money
    for tx_hash, sender, receiver, units in [
        (settled.tx_hash, me, PAYEE, 5 * TOKEN + 1),
        (settled.tx_hash, me, OTHER, 1),
        (settled.tx_hash, OTHER, PAYEE, 1),
        ("0x" + "ab" * 32, me, PAYEE, 1),
        ("0x" + coins.hex(), me, PAYEE, 1),
        ("nonsense", me, PAYEE, 1),
    ]:
        with pytest.raises(PaymentNotFound):
            await verify(PLATFORM, tx_hash, sender, receiver, units)


async def test_verify_waits_for_finality(payer: Any, chain: DevChain, until: Callable[..., Awaitable[None]]) -> None:
    chain.rpc.call("shem_setAutomine", [False])
    payer.order("a", PAYEE, 7)
    await until(lambda: len(chain.chain.pool) == 1)
    (tx_hash,) = [row[0] for row in payer.db.connection.execute("select tx_hash from evm_attempt")]
    for _ in range(3):  # in the pool; in a block; in a block with one on top
        with pytest.raises(NotFinalYet):
            await payer.driver.verify(PLATFORM, tx_hash, payer.identity.address, PAYEE, 7)
        chain.chain.mine()
    assert (await payer.driver.verify(PLATFORM, tx_hash, payer.identity.address, PAYEE, 7)).amount_units == 7


async def test_verify_counts_what_the_multi_transfer_contract_passed_on(
    new_payer: Callable[..., Any], chain: DevChain, until: Callable[..., Awaitable[None]]
) -> None:
    payer = new_payer(multi_transfer=places.MULTI_TRANSFER_ADDRESS)
    await payer.open().start()
    (manager,) = payer.driver.managers.values()
    approve = bytes.fromhex(f"095ea7b3{places.MULTI_TRANSFER_ADDRESS[2:]:0>64}" + "ff" * 32)
    packed = f"{PAYEE[2:]}{5:024x}{OTHER[2:]}{6:024x}{PAYEE[2:]}{7:024x}"
    selector = keccak256(b"golemTransferIndirectPacked(bytes32[],uint256)")[:4]
    words = selector + bytes.fromhex(f"{64:064x}{18:064x}{3:064x}{packed}")
    sender = bytes.fromhex(payer.identity.address[2:])
    for nonce, (place, data) in enumerate([(places.TOKEN_ADDRESS, approve), (places.MULTI_TRANSFER_ADDRESS, words)]):
        with payer.db.transaction() as connection:
            manager.submit(connection, f"other:{nonce}", place, data)
        await until(lambda n=nonce: chain.chain.state(chain.chain.finalized).get_nonce(sender) == n + 1)
    (tx_hash,) = payer.db.connection.execute("select tx_hash from evm_attempt order by signed_at desc").fetchone()
    assert (await payer.driver.verify(PLATFORM, tx_hash, payer.identity.address, PAYEE, 12)).amount_units == 12
    with pytest.raises(PaymentNotFound):  # others' tokens may pass through the contract: they are not the caller's
        await payer.driver.verify(PLATFORM, tx_hash, OTHER, PAYEE, 12)
    await payer.close()


async def test_missing_gas_is_told_and_cured(
    new_payer: Callable[..., Any], chain: DevChain, until: Callable[..., Awaitable[None]]
) -> None:
    payer = new_payer(wei=0)
    await payer.open().start()
    payer.order("a", PAYEE, TOKEN)
    await until(lambda: any(p.code == "InsufficientGas" for p in payer.driver.problems()))
    (problem,) = payer.driver.problems()
    assert problem.address == payer.identity.address
    assert float(problem.needed) > 0
    chain.fund(payer.identity.address, wei=TOKEN)
    await payer.wait_told(1)
    assert payer.driver.problems() == []
    await payer.close()


async def test_missing_tokens_hold_back_only_what_they_must(
    new_payer: Callable[..., Any], chain: DevChain, until: Callable[..., Awaitable[None]]
) -> None:
    payer = new_payer(token_units=10 * TOKEN)
    await payer.open().start()
    payer.order("large", PAYEE, 11 * TOKEN)
    payer.order("small", OTHER, 4 * TOKEN)
    await payer.wait_told(1)
    await until(lambda: bool(payer.driver.problems()))
    assert [told.order_id for told in payer.told] == ["small"]
    (problem,) = payer.driver.problems()
    assert (problem.code, problem.needed) == ("InsufficientToken", "5")
    chain.fund(payer.identity.address, token_units=5 * TOKEN)
    await payer.wait_told(2)
    await payer.close()


async def test_payments_wait_for_a_chain_that_is_down(
    tmp_path: Path, new_payer: Callable[..., Any], chain: DevChain, until: Callable[..., Awaitable[None]]
) -> None:
    payer = new_payer(rpc_urls=("http://127.0.0.1:1",))
    await payer.open().start()
    payer.order("a", PAYEE, TOKEN)
    await until(lambda: any(p.code == "RpcError" for p in payer.driver.problems()))
    with pytest.raises(ChainUnreachable):
        await payer.driver.balance(PLATFORM, PAYEE)
    await payer.close()
    directory = tmp_path / "second"
    async with DevChain(directory=directory, block_time_s=0.02) as first:
        port = int(first.rpc_url.rsplit(":", 1)[1])
        first.fund(payer.identity.address, wei=TOKEN, token_units=TOKEN)
    payer.network = new_payer(wei=0, token_units=0, rpc_urls=(f"http://127.0.0.1:{port}",)).network
    await payer.open().start()
    await until(lambda: any(p.code == "RpcError" for p in payer.driver.problems()))
    async with DevChain(directory=directory, port=port, block_time_s=0.02):
        await payer.wait_told(1)  # by itself
        assert payer.driver.problems() == []
        await payer.close()


async def test_another_chain_is_never_paid_on(
    tmp_path: Path, new_payer: Callable[..., Any], until: Callable[..., Awaitable[None]]
) -> None:
    payer = new_payer(chain_id=5)
    await payer.open().start()
    payer.order("a", PAYEE, TOKEN)
    await until(lambda: any(p.code == "InvalidChainId" for p in payer.driver.problems()))
    with pytest.raises(WrongChain) as refused:
        await payer.driver.balance(PLATFORM, PAYEE)
    assert "serves chain 1337, not 5" in refused.value.message
    assert "rpc_urls" in refused.value.hint
    await payer.close()


@pytest.mark.parametrize("token", ["0x" + "12" * 20, places.MULTI_TRANSFER_ADDRESS], ids=["nothing", "no token"])
async def test_a_token_that_is_not_there_is_told(
    new_payer: Callable[..., Any], until: Callable[..., Awaitable[None]], token: str
) -> None:
    payer = new_payer(token=token)
    await payer.open().start()
    with pytest.raises(WrongToken) as refused:
        await payer.driver.balance(PLATFORM, PAYEE)
    assert f"there is no such token at {token} on devnet" in refused.value.message
    assert (refused.value.code, refused.value.hint) == ("wrong_token", "correct networks.devnet.token")
    payer.order("a", PAYEE, TOKEN)
    await until(lambda: [(p.code, p.more) for p in payer.driver.problems()] == [("RpcError", "wrong_token")])
    await payer.close()


async def test_a_chain_that_was_started_afresh_is_another_chain(
    new_payer: Callable[..., Any], until: Callable[..., Awaitable[None]]
) -> None:
    payer = new_payer()
    await payer.open().start()
    payer.order("a", PAYEE, TOKEN)
    await payer.wait_told(1)
    await payer.close()
    async with DevChain(block_time_s=0.02) as fresh:
        payer.network = new_payer(wei=0, token_units=0, rpc_urls=(fresh.rpc_url,)).network
        fresh.fund(payer.identity.address, wei=TOKEN, token_units=TOKEN)
        await payer.open().start()
        payer.order("b", PAYEE, TOKEN)
        await until(lambda: any("not the chain it was" in p.message for p in payer.driver.problems()))
        assert fresh.chain.head <= 3
        await payer.close()


async def test_a_key_that_cannot_sign_is_told(
    new_payer: Callable[..., Any], until: Callable[..., Awaitable[None]]
) -> None:
    class Locked(Identity):
        def sign_digest(self, digest: bytes) -> bytes:
            raise Refused("the key is locked", code="locked")

    payer = new_payer()
    payer.identity = Locked(bytes([7]) * 32)
    await payer.open().start()
    payer.order("a", PAYEE, TOKEN)
    await until(lambda: any(p.code == "CantSign" for p in payer.driver.problems()))
    await payer.close()


async def test_finality_by_depth(new_payer: Callable[..., Any], chain: DevChain) -> None:
    payer = new_payer(depth=1)
    await payer.open().start()
    payer.order("a", PAYEE, TOKEN)
    ((settled),) = await payer.wait_told(1)
    assert settled.block_number + 1 <= chain.chain.head
    await payer.driver.verify(PLATFORM, settled.tx_hash, payer.identity.address, PAYEE, TOKEN)
    await payer.close()


async def test_an_idle_driver_asks_nothing(new_payer: Callable[..., Any], chain: DevChain) -> None:
    asked = 0

    async def count(url: str, body: bytes) -> bytes:
        nonlocal asked
        asked += 1
        return msgspec.json.encode(chain.rpc.answer(msgspec.json.decode(body)))

    payer = new_payer()
    await payer.open(transport=count).start()
    payer.order("a", PAYEE, TOKEN)
    async with asyncio.timeout(10):
        while not payer.told:  # over our own transport, sending wakes no miner
            chain.chain.mine()
            await asyncio.sleep(0.005)
    before = asked
    await asyncio.sleep(0.2)  # the claim is about time that passes
    assert asked == before > 0
    await payer.close()


async def test_a_reverted_transfer_is_a_failure(
    payer: Any, chain: DevChain, until: Callable[..., Awaitable[None]], token_balance: Callable[[str], int]
) -> None:
    """The tokens go elsewhere between signing and mining."""
    thief = Identity(b"\x09" * 32)
    approve = bytes.fromhex("095ea7b3" + thief.address[2:].rjust(64, "0") + "ff" * 32)
    (manager,) = payer.driver.managers.values()
    with payer.db.transaction() as connection:
        manager.submit(connection, "other:approve", places.TOKEN_ADDRESS, approve)
    await until(lambda: chain.chain.state(chain.chain.head).get_nonce(bytes.fromhex(payer.identity.address[2:])) == 1)
    chain.fund(thief.address, wei=TOKEN)
    chain.rpc.call("shem_setAutomine", [False])
    payer.order("a", PAYEE, TOKEN)
    await until(lambda: len(chain.chain.pool) == 1)
    (raw,) = payer.db.connection.execute("select raw from evm_attempt order by signed_at desc limit 1").fetchone()
    chain.chain.pool.clear()
    pull = f"23b872dd{payer.identity.address[2:]:0>64}{44:0>64}{1000 * TOKEN:064x}"
    theft = Transaction(
        chain_id=1337,
        nonce=0,
        max_tip=1,
        max_fee=10**10,
        gas=200_000,
        to=places.TOKEN_ADDRESS,
        data=bytes.fromhex(pull),
    ).sign(thief)
    chain.chain.submit(theft.raw)
    chain.chain.mine()
    chain.chain.submit(raw)
    chain.rpc.call("shem_setAutomine", [True])
    (failed,) = await payer.wait_told(1)
    assert isinstance(failed, Failure)
    assert (failed.order_id, failed.code) == ("a", "reverted")
    assert token_balance(PAYEE) == 0
