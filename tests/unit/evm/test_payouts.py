"""Several orders in one transaction: when they go together, when they part, and that each is paid once."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shem.errors import Refused
from shem.node.db import Database
from shem.node.identity.keys import Identity
from shem.node.payment.drivers.base import Failure, PaymentNotFound, PaymentOrder, Settlement
from shem.node.payment.drivers.evm import erc20
from shem.node.payment.drivers.evm.payouts import MAX_GATHERED, MAX_PACKED
from shem.node.payment.drivers.evm.store import MIGRATIONS
from shem.node.payment.drivers.evm.transaction import Transaction
from shem.testing.devchain import places
from shem.testing.devchain.node import DevChain

PLATFORM = "erc20-devnet-tglm"
TOKEN = 10**18
MULTI = places.MULTI_TRANSFER_ADDRESS

Balance = Callable[[str], int]
Until = Callable[..., Awaitable[None]]


def payee(place: int) -> str:
    return f"0x{0xDD0000 + place:040x}"


def order_many(payer: Any, amounts: list[int]) -> None:
    """One transaction of the caller, as when many dues come at one moment."""
    with payer.db.transaction(durable=True) as connection:
        for place, amount in enumerate(amounts):
            order = PaymentOrder(f"o{place}", PLATFORM, payer.identity.address, payee(place), amount)
            payer.driver.pay(connection, order)


def keys(payer: Any) -> list[str]:
    """Kinds of what was signed, in the order of their nonces."""
    rows = payer.db.connection.execute("select key from evm_intent where nonce is not null order by nonce")
    return [str(row["key"]).partition(":")[0] for row in rows]


@pytest.fixture
async def many(new_payer: Callable[..., Any]) -> Any:
    """A payer on a network with a contract that pays many; the gathering is short."""
    made: list[Any] = []

    async def start(**changes: Any) -> Any:
        payer = new_payer(**({"multi_transfer": MULTI, "gather_s": 0.02} | changes))
        made.append(payer)
        await payer.open().start()
        return payer

    yield start
    for payer in made:
        await payer.close()


async def test_orders_that_come_together_are_one_transaction(many: Any, token_balance: Balance) -> None:
    payer = await many()
    amounts = [place + 1 for place in range(30)]
    order_many(payer, amounts)
    told = await payer.wait_told(30)
    assert all(isinstance(one, Settlement) for one in told)
    assert len({one.tx_hash for one in told}) == 1
    assert keys(payer) == ["leave", "multi"]
    assert [token_balance(payee(place)) for place in range(30)] == amounts
    for one in told:
        place = int(one.order_id[1:])
        seen = await payer.driver.verify(PLATFORM, one.tx_hash, payer.identity.address, payee(place), amounts[place])
        assert (seen.amount_units, seen.block_hash) == (amounts[place], one.block_hash)
    paid, leave = payer.driver.history(payer.identity.address, 10)
    assert (paid.kind, paid.entries, paid.amount, paid.state) == ("transfer", 30, sum(amounts), "final")
    assert (leave.kind, leave.state) == ("approve", "final")
    assert sum(one.gas_used for one in told) <= paid.gas_used < 30 * 30_000


async def test_leave_is_asked_once(many: Any) -> None:
    payer = await many()
    order_many(payer, [1, 2])
    await payer.wait_told(2)
    with payer.db.transaction(durable=True) as connection:
        for name in ("x", "y"):
            payer.driver.pay(connection, PaymentOrder(name, PLATFORM, payer.identity.address, payee(9), 5))
    await payer.wait_told(4)
    assert keys(payer) == ["leave", "multi", "multi"]


async def test_one_alone_is_a_plain_transfer(many: Any, token_balance: Balance) -> None:
    payer = await many()
    payer.order("a", payee(0), 7)
    await payer.wait_told(1)
    assert keys(payer) == ["order"]
    assert token_balance(payee(0)) == 7


@pytest.mark.parametrize(("count", "calls"), [(10, [10]), (11, [10, 1]), (23, [10, 10, 3])])
async def test_calls_are_of_limited_size(many: Any, count: int, calls: list[int], token_balance: Balance) -> None:
    payer = await many(multi_max=10)
    order_many(payer, [1] * count)
    await payer.wait_told(count)
    rows = payer.db.connection.execute("select count(*) as n from evm_order group by intent order by min(id)")
    assert [row["n"] for row in rows] == calls
    assert sorted(keys(payer)) == sorted(["leave", *("order" if size == 1 else "multi" for size in calls)])
    assert all(token_balance(payee(place)) == 1 for place in range(count))


async def test_what_does_not_fit_into_an_entry_goes_alone(many: Any, chain: DevChain, token_balance: Balance) -> None:
    payer = await many(token_units=0)
    for _ in range(80):  # the faucet gives a million tokens at a time; no faucet gives 2^96
        chain.fund(payer.identity.address, token_units=10**24)
    order_many(payer, [1, 2, MAX_PACKED + 1])
    await payer.wait_told(2)
    assert sorted(keys(payer)) == ["leave", "multi"]
    assert token_balance(payee(2)) == 0
    (problem,) = payer.driver.problems()
    assert problem.code == "InsufficientToken"


async def test_a_call_that_is_too_dear_is_divided(many: Any, chain: DevChain, until: Until) -> None:
    payer = await many(token_units=10 * TOKEN)
    order_many(payer, [4 * TOKEN, 3 * TOKEN, 11 * TOKEN, 2 * TOKEN])
    told = await payer.wait_told(3)
    assert {one.order_id for one in told} == {"o0", "o1", "o3"}
    await until(lambda: any(p.code == "InsufficientToken" for p in payer.driver.problems()))
    chain.fund(payer.identity.address, token_units=10 * TOKEN)
    await payer.wait_told(4)
    assert {type(one) for one in payer.told} == {Settlement}


async def test_nothing_that_fits_is_nothing_divided(many: Any, chain: DevChain, until: Until) -> None:
    payer = await many(token_units=1)
    order_many(payer, [2, 2, 2])
    await until(lambda: any(p.code == "InsufficientToken" for p in payer.driver.problems()))
    chain.fund(payer.identity.address, token_units=10)
    told = await payer.wait_told(3)
    assert len({one.tx_hash for one in told}) == 1


async def test_a_call_whose_gas_is_lacking_holds_up_nothing_cheaper(many: Any, chain: DevChain, until: Until) -> None:
    """Coins for a few transfers, not for a hundred of them."""
    payer = await many(wei=8 * 10**14)
    order_many(payer, [1] * 60)
    await until(lambda: keys(payer) == ["leave"])
    await until(lambda: any(p.code == "InsufficientGas" for p in payer.driver.problems()))
    payer.order("small", payee(99), 1)
    await payer.wait_told(1)
    chain.fund(payer.identity.address, wei=TOKEN)
    told = await payer.wait_told(61)
    assert {type(one) for one in told} == {Settlement}


async def test_an_order_is_the_same_order_in_company(many: Any, token_balance: Balance) -> None:
    payer = await many()
    order_many(payer, [1, 2, 3])
    order_many(payer, [1, 2, 3])
    await payer.wait_told(3)
    order_many(payer, [1, 2, 3])
    payer.order("last", payee(9), 1)
    await payer.wait_told(4)
    assert [token_balance(payee(place)) for place in range(3)] == [1, 2, 3]


async def test_orders_wait_on_disk_for_company(many: Any, token_balance: Balance) -> None:
    payer = await many(gather_s=3600.0)
    order_many(payer, [1, 2])
    assert keys(payer) == []
    waiting = payer.driver.history(payer.identity.address, 10)
    assert [(deed.kind, deed.state, deed.amount) for deed in waiting] == [
        ("transfer", "new", 2),
        ("transfer", "new", 1),
    ]
    await payer.close()
    payer.network = msgspec.structs.replace(payer.network, gather_s=0.01)
    await payer.open().start()
    await payer.wait_told(2)
    assert token_balance(payee(1)) == 2


async def test_orders_of_an_older_database_are_kept(new_payer: Callable[..., Any], token_balance: Balance) -> None:
    payer = new_payer(multi_transfer=MULTI, gather_s=0.02)
    me = payer.identity.address
    db = Database(payer.path)
    db.migrate("payment_evm", MIGRATIONS[:2])
    with db.transaction(durable=True) as connection:
        connection.execute(
            "insert into evm_intent (key, chain_id, sender, dst, data, value) values ('order:old', 1337, ?, ?, ?, '0')",
            (me, places.TOKEN_ADDRESS, erc20.transfer(payee(0), 7)),
        )
        connection.execute("insert into evm_order values ('old', 1, ?, ?, ?, '7')", (PLATFORM, me, payee(0)))
    db.close()
    await payer.open().start()
    payer.order("old", payee(0), 7)
    payer.order("new", payee(1), 8)
    told = await payer.wait_told(2)
    assert {one.order_id for one in told} == {"old", "new"}
    assert [token_balance(payee(place)) for place in range(2)] == [7, 8]
    await payer.close()


async def test_orders_of_an_account_that_is_gone_hold_up_no_other(many: Any, token_balance: Balance) -> None:
    nobody = "0x" + "00" * 19 + "01"  # sorts before everybody
    payer = await many()
    rows = [(f"gone{place}", 1337, PLATFORM, nobody, payee(1), "1") for place in range(MAX_GATHERED)]
    with payer.db.transaction(durable=True) as connection:
        connection.executemany(
            "insert into evm_order (order_id, chain_id, platform, payer, payee, amount) values (?, ?, ?, ?, ?, ?)", rows
        )
    payer.order("ours", payee(0), 7)
    await payer.wait_told(1)
    assert token_balance(payee(0)) == 7


async def test_a_call_that_needs_more_gas_than_a_transaction_may_use_is_divided(many: Any, chain: DevChain) -> None:
    ours = chain.rpc.answer

    def answer(request: Any) -> Any:
        if isinstance(request, list):
            return [answer(one) for one in request]
        told: Any = ours(request)
        if request["method"] == "eth_estimateGas" and len(request["params"][0]["data"]) > 500:
            told["result"] = hex(20_000_000)
        return told

    chain.rpc.answer = answer  # type: ignore[method-assign]
    payer = await many()
    order_many(payer, [1] * 8)
    told = await payer.wait_told(8)
    assert len({one.tx_hash for one in told}) == 2


async def test_a_full_disk_holds_up_orders_only_while_it_is_full(
    many: Any, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    payer = await many(gather_s=0.05, refused_s=0.05)
    order_many(payer, [1] * 190)
    (pages,) = payer.db.connection.execute("pragma page_count").fetchone()
    payer.db.connection.execute(f"pragma max_page_count = {pages}")
    await until(lambda: "cannot be gathered now" in caplog.text)
    payer.db.connection.execute("pragma max_page_count = 1000000")
    told = await payer.wait_told(190)
    assert {type(one) for one in told} == {Settlement}


async def test_a_network_that_lost_its_contract_pays_one_by_one(many: Any, chain: DevChain, until: Until) -> None:
    chain.rpc.call("shem_setAutomine", [False])
    payer = await many()
    order_many(payer, [1, 2])
    await until(lambda: keys(payer) == ["leave"])
    await payer.close()
    chain.rpc.call("shem_setAutomine", [True])
    payer.network = msgspec.structs.replace(payer.network, multi_transfer="")
    await payer.open().start()
    await payer.wait_told(2)
    assert keys(payer) == ["leave", "order", "order"]


async def test_the_contract_itself_cannot_be_paid(many: Any) -> None:
    payer = await many()
    with payer.db.transaction() as connection, pytest.raises(Refused, match="cannot be paid"):
        payer.driver.pay(connection, PaymentOrder("x", PLATFORM, payer.identity.address, MULTI, 1))


async def test_leave_that_is_taken_back_is_asked_again(many: Any, until: Until, token_balance: Balance) -> None:
    payer = await many()
    order_many(payer, [1, 2])
    await payer.wait_told(2)
    (manager,) = payer.driver.managers.values()
    with payer.db.transaction() as connection:
        manager.submit(connection, "other:leave", places.TOKEN_ADDRESS, erc20.approve(MULTI, 0))
    row = "select count(*) from evm_intent where key = 'other:leave' and state = 'final'"
    await until(lambda: payer.db.connection.execute(row).fetchone()[0] == 1)
    with payer.db.transaction(durable=True) as connection:
        for name in ("x", "y"):
            payer.driver.pay(connection, PaymentOrder(name, PLATFORM, payer.identity.address, payee(9), 5))
    await payer.wait_told(4)
    assert keys(payer) == ["leave", "multi", "other", "leave", "multi"]
    assert token_balance(payee(9)) == 10
    assert not any(isinstance(one, Failure) for one in payer.told)


# Contracts that refuse

BLOCKED = "0x" + "00" * 17 + "0b10cd"


@pytest.fixture
async def blocking(chain: DevChain, many: Any, new_payer: Any, until: Until) -> Any:
    """A payer on a token that does not serve one receiver, and a multi-transfer contract over it."""
    rich = Identity(b"\x0a" * 32)
    chain.fund(rich.address, wei=TOKEN)
    packed = json.loads((Path(__file__).parent / "tokens.json").read_text())["mutants"]["one receiver is blocked"]
    code = {
        0: zlib.decompress(base64.b64decode(packed)) + (1000 * TOKEN).to_bytes(32, "big"),
        1: bytes.fromhex(places.artifact("MultiTransfer")["bytecode"][2:]) + bytes(12),
    }
    made: list[str] = []
    for nonce, data in code.items():
        whole = data + (bytes.fromhex(made[0][2:]) if made else b"")
        deploy = Transaction(
            chain_id=1337, nonce=nonce, max_tip=1, max_fee=10**10, gas=3_000_000, to="", data=whole
        ).sign(rich)
        chain.chain.submit(deploy.raw)
        chain.chain.mine()
        receipt: Any = chain.rpc.call("eth_getTransactionReceipt", [deploy.tx_hash])
        assert receipt["status"] == "0x1"
        made.append(str(receipt["contractAddress"]).lower())
    token, multi = made
    payer = await many(token=token, multi_transfer=multi, token_units=0)
    give = erc20.transfer(payer.identity.address, 100 * TOKEN)
    gift = Transaction(chain_id=1337, nonce=2, max_tip=1, max_fee=10**10, gas=200_000, to=token, data=give).sign(rich)
    chain.chain.submit(gift.raw)
    chain.chain.mine()
    return payer


async def test_one_receiver_that_the_token_refuses_holds_up_no_other(blocking: Any, until: Until) -> None:
    payer = blocking
    with payer.db.transaction(durable=True) as connection:
        for place in range(8):
            to = BLOCKED if place == 5 else payee(place)
            payer.driver.pay(connection, PaymentOrder(f"o{place}", PLATFORM, payer.identity.address, to, place + 1))
    told = await payer.wait_told(7)
    assert {one.order_id for one in told} == {f"o{place}" for place in range(8)} - {"o5"}
    assert len({one.tx_hash for one in told}) == 3, "4 + 2 + 1"
    await until(lambda: any("would refuse order:o5" in p.message for p in payer.driver.problems()))
    for place in range(8):
        to = BLOCKED if place == 5 else payee(place)
        assert (await payer.driver.balance(PLATFORM, to)).token_units == (0 if place == 5 else place + 1)


async def test_a_refusal_in_other_words_divides_too(blocking: Any, chain: DevChain, until: Until) -> None:
    """Not every endpoint says that a contract reverted by that word."""
    ours = chain.rpc.answer

    def answer(request: Any) -> Any:
        if isinstance(request, list):
            return [answer(one) for one in request]
        told: Any = ours(request)
        if "revert" in told.get("error", {}).get("message", ""):
            told["error"] = {"code": -32015, "message": "VM execution error.", "data": "Reverted 0x"}
        return told

    chain.rpc.answer = answer  # type: ignore[method-assign]
    with blocking.db.transaction(durable=True) as connection:
        for place, to in enumerate((payee(0), BLOCKED)):
            order = PaymentOrder(f"o{place}", PLATFORM, blocking.identity.address, to, 1)
            blocking.driver.pay(connection, order)
    told = await blocking.wait_told(1)
    assert [one.order_id for one in told] == ["o0"]


async def test_the_right_sum_of_another_token_is_no_payment(
    blocking: Any, new_payer: Callable[..., Any], chain: DevChain
) -> None:
    payer = blocking
    order_many(payer, [5, 6])
    told = await payer.wait_told(2)
    (settled,) = {one.tx_hash for one in told}
    me = payer.identity.address
    assert (await payer.driver.verify(PLATFORM, settled, me, payee(0), 5)).amount_units == 5
    await payer.close()
    payer.network = new_payer().network
    await payer.open().start()
    with pytest.raises(PaymentNotFound):
        await payer.driver.verify(PLATFORM, settled, me, payee(0), 5)


async def test_a_call_that_reverts_is_divided_and_pays_once(
    many: Any, chain: DevChain, until: Until, token_balance: Balance
) -> None:
    """The tokens go elsewhere between signing and mining, and come back."""
    thief = Identity(b"\x09" * 32)
    payer = await many()
    (manager,) = payer.driver.managers.values()
    with payer.db.transaction() as connection:
        for name, spender in (("thief", thief.address), ("multi", MULTI)):
            manager.submit(connection, f"other:{name}", places.TOKEN_ADDRESS, erc20.approve(spender, 2**256 - 1))
    mine = bytes.fromhex(payer.identity.address[2:])
    await until(lambda: chain.chain.state(chain.chain.finalized).get_nonce(mine) == 2)
    chain.fund(thief.address, wei=TOKEN)
    chain.rpc.call("shem_setAutomine", [False])
    order_many(payer, [1, 2, 3, 4])
    await until(lambda: len(chain.chain.pool) == 1)
    (raw,) = payer.db.connection.execute("select raw from evm_attempt order by signed_at desc limit 1").fetchone()
    chain.chain.pool.clear()
    pull = f"23b872dd{payer.identity.address[2:]:0>64}{44:0>64}{1000 * TOKEN:064x}"
    fields: Any = {"chain_id": 1337, "max_tip": 1, "max_fee": 10**10, "gas": 200_000, "to": places.TOKEN_ADDRESS}
    chain.chain.submit(Transaction(**fields, nonce=0, data=bytes.fromhex(pull)).sign(thief).raw)
    chain.chain.mine()
    chain.chain.submit(raw)
    chain.rpc.call("shem_setAutomine", [True])
    failed = "select count(*) from evm_intent where key like 'multi:%' and state = 'failed'"
    await until(lambda: payer.db.connection.execute(failed).fetchone()[0] == 1)
    assert payer.told == []
    chain.fund(payer.identity.address, token_units=10)
    told = await payer.wait_told(4)
    assert {type(one) for one in told} == {Settlement}
    assert [token_balance(payee(place)) for place in range(4)] == [1, 2, 3, 4]


async def test_a_call_whose_place_was_taken_is_made_anew(
    many: Any, chain: DevChain, until: Until, token_balance: Balance
) -> None:
    payer = await many()
    order_many(payer, [1, 2])
    await payer.wait_told(2)
    chain.rpc.call("shem_setAutomine", [False])
    with payer.db.transaction(durable=True) as connection:
        for place in range(4):
            payer.driver.pay(connection, PaymentOrder(f"x{place}", PLATFORM, payer.identity.address, payee(place), 10))
    await until(lambda: len(chain.chain.pool) == 1)
    chain.chain.pool.clear()
    fields: Any = {"chain_id": 1337, "nonce": 2, "max_tip": 1, "max_fee": 10**10, "gas": 21_000}
    chain.chain.submit(Transaction(**fields, to=payee(0), value=1).sign(payer.identity).raw)
    chain.rpc.call("shem_setAutomine", [True])
    await until(lambda: any("shem payment retry" in p.message for p in payer.driver.problems()))
    (stuck,) = [d for d in payer.driver.history(payer.identity.address, 9) if d.state == "sent"]
    await until(
        lambda: chain.chain.state(chain.chain.finalized).get_nonce(bytes.fromhex(payer.identity.address[2:])) == 3
    )
    await payer.driver.retry(payer.identity.address, stuck.id)
    told = await payer.wait_told(6)
    assert {type(one) for one in told} == {Settlement}
    assert [token_balance(payee(place)) for place in range(4)] == [11, 12, 10, 10]


async def test_leave_that_the_token_refuses_means_one_by_one(
    many: Any, chain: DevChain, token_balance: Balance
) -> None:
    """What stands at the token's address pays, and knows no ``approve``: as far as the payer can tell."""
    ours = chain.rpc.answer

    def answer(request: Any) -> Any:
        told = ours(request)
        for asked, reply in zip(request if isinstance(request, list) else [], told, strict=False):
            if asked["method"] == "eth_estimateGas" and asked["params"][0]["data"].startswith("0x095ea7b3"):
                reply.pop("result", None)
                reply["error"] = {"code": 3, "message": "execution reverted: paused"}
        if isinstance(request, dict) and request["method"] == "eth_estimateGas":
            return answer([request])[0]
        return told

    chain.rpc.answer = answer  # type: ignore[method-assign]
    payer = await many()
    order_many(payer, [1, 2, 3])
    await payer.wait_told(3)
    assert keys(payer) == ["order"] * 3
    assert [token_balance(payee(place)) for place in range(3)] == [1, 2, 3]
