"""Endpoints that disagree, lag, or serve another chain, and others who use the same key: no payment is made twice or lost."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shem.cogs.clock import ManualClock
from shem.node.payment.drivers.base import ChainUnreachable, NotFinalYet, PaymentNotFound, Settlement
from shem.node.payment.drivers.evm.manager import STRANGE_LOOKS, NotStuck
from shem.testing.devchain import places
from shem.testing.devchain.chain import Chain
from shem.testing.devchain.node import DevChain
from shem.testing.devchain.rpc import Rpc

PAYEE = "0x" + "22" * 20
PLATFORM = "erc20-devnet-tglm"

Line = Callable[[str, bytes], Awaitable[bytes]]


class Bench:
    """A payer whose manager is stepped by hand, over lines that the test lays: url → what answers a request there."""

    def __init__(self, payer: Any, chain: DevChain) -> None:
        self.payer = payer
        self.chain = chain
        self.clock = ManualClock()
        self.lines: dict[str, Callable[[Any], Any]] = dict.fromkeys(payer.network.rpc_urls, chain.rpc.answer)
        (self.manager,) = payer.open(clock=self.clock, transport=self.carry).managers.values()

    async def carry(self, url: str, body: bytes) -> bytes:
        return msgspec.json.encode(self.lines[url](msgspec.json.decode(body)))

    async def steps(self, count: int = 1, *, mine: bool = False) -> None:
        for _ in range(count):
            await self.manager.step()
            if mine:
                self.chain.chain.mine()

    @property
    def states(self) -> list[str]:
        return [row["state"] for row in self.payer.db.connection.execute("select state from evm_intent order by id")]

    @property
    def problems(self) -> dict[str, str]:
        return {problem.code: problem.message for problem in self.manager.problems()}


def down(request: Any) -> Any:
    raise ConnectionRefusedError("down")


@pytest.fixture
async def bench(chain: DevChain, new_payer: Callable[..., Any]) -> AsyncIterator[Bench]:
    """Nothing is mined unless the test says so. Two endpoints, the same chain."""
    chain.rpc.call("shem_setAutomine", [False])
    payer = new_payer(rpc_urls=("a", "b"), rebroadcast_s=0.0)
    made = Bench(payer, chain)
    yield made
    await payer.close()


def recall(answers: list[Any], honest: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """An endpoint that has not heard of the reorg: of receipts it knows the old ones only."""

    def answer(request: Any) -> Any:
        if isinstance(request, dict):
            return answer([request])[0]
        told = honest(request)
        for asked, reply in zip(request, told, strict=True):
            if asked["method"] == "eth_getTransactionReceipt":
                reply["result"] = answers[0]
        return told

    return answer


async def test_a_receipt_in_a_block_that_is_not_the_chains_is_not_believed(
    bench: Bench, token_balance: Callable[[str], int]
) -> None:
    chain = bench.chain.chain
    bench.payer.order("a", PAYEE, 7)
    await bench.steps()
    chain.mine()
    await bench.steps()
    assert bench.states == ["mined"]
    (tx_hash,) = [row[0] for row in bench.payer.db.connection.execute("select tx_hash from evm_attempt")]
    old = bench.chain.rpc.call("eth_getTransactionReceipt", [tx_hash])
    chain.reorg(1, requeue=False)
    for _ in range(4):
        chain.mine()
    assert int(str(old["blockNumber"]), 16) <= chain.finalized  # type: ignore[index, call-overload]
    bench.lines["a"] = recall([old], bench.chain.rpc.answer)
    await bench.steps(3)
    assert "endpoints disagree about block" in bench.problems["RpcError"]
    assert (bench.states, bench.payer.told) == (["mined"], [])
    with pytest.raises(NotFinalYet, match="endpoints disagree"):
        await bench.payer.driver.verify(PLATFORM, tx_hash, bench.payer.identity.address, PAYEE, 7)
    bench.lines["a"] = bench.chain.rpc.answer
    await bench.steps(5, mine=True)
    assert (bench.states, len(bench.payer.told), token_balance(PAYEE)) == (["final"], 1, 7)


async def test_a_second_endpoint_that_is_behind(
    bench: Bench, tmp_path: Path, token_balance: Callable[[str], int]
) -> None:
    """A copy of the chain from before the payment takes over while the first endpoint is away."""
    chain = bench.chain.chain
    shutil.copytree(tmp_path / "chain", tmp_path / "behind")
    behind = Chain(tmp_path / "behind")
    bench.payer.order("a", PAYEE, 7)
    await bench.steps()
    chain.mine()
    await bench.steps()
    assert bench.states == ["mined"]
    bench.lines |= {"a": down, "b": Rpc(behind, changed=lambda: None, automine=lambda on: None).answer}
    bench.payer.order("b", PAYEE, 8)
    await bench.steps(3)
    assert "final" not in bench.states
    assert bench.payer.told == []
    bench.lines["a"] = bench.chain.rpc.answer
    bench.lines["b"] = down
    for _ in range(5):
        await bench.clock.advance(1)
        await bench.steps(2, mine=True)
    assert bench.states == ["final", "final"]
    assert sorted(told.order_id for told in bench.payer.told) == ["a", "b"]
    assert token_balance(PAYEE) == 15
    behind.close()


def broken(bench: Bench, method: str, **reply: Any) -> Callable[[Any], Any]:
    """An endpoint that answers one of the questions like this, and all others truly."""

    def answer(request: Any) -> Any:
        if isinstance(request, list):
            return [answer(one) for one in request]
        return {"id": request["id"]} | reply if request["method"] == method else bench.chain.rpc.answer(request)

    return answer


LIMIT: dict[str, Any] = {"error": {"code": 429, "message": "compute units per second exceeded"}}
ASKED = ("eth_getTransactionCount", "eth_getBalance", "eth_call", "eth_getTransactionReceipt")


@pytest.mark.parametrize("reply", [LIMIT, {"result": {"no": "sense"}}], ids=["refuses", "nonsense"])
@pytest.mark.parametrize("method", ASKED)
async def test_payments_go_by_another_endpoint_when_the_first_is_of_no_use(
    bench: Bench, method: str, reply: dict[str, Any], token_balance: Callable[[str], int]
) -> None:
    bench.lines["a"] = broken(bench, method, **reply)
    bench.payer.order("a", PAYEE, 7)
    await bench.steps(4, mine=True)
    assert (bench.states, token_balance(PAYEE)) == (["final"], 7)


async def test_an_endpoint_that_tells_nobody_holds_up_nothing(
    bench: Bench, token_balance: Callable[[str], int]
) -> None:
    """It takes transactions, and keeps them."""
    bench.lines["a"] = broken(bench, "eth_sendRawTransaction", result="0x" + "00" * 32)
    bench.payer.order("a", PAYEE, 7)
    await bench.steps(5, mine=True)
    assert (bench.states, token_balance(PAYEE)) == (["final"], 7)


async def test_a_second_endpoint_that_takes_it_is_enough(bench: Bench) -> None:
    bench.lines["a"] = broken(bench, "eth_sendRawTransaction", error={"code": -32000, "message": "over the fee cap"})
    bench.payer.order("a", PAYEE, 7)
    await bench.steps()
    assert "over the fee cap" in bench.problems["RpcError"]
    await bench.steps()
    assert bench.problems == {}
    await bench.steps(4, mine=True)
    assert bench.states == ["final"]


@pytest.mark.parametrize("way", ["transfer", "channel"])
async def test_leave_that_nobody_sees_is_not_paid_for_again_and_again(
    chain: DevChain, new_payer: Callable[..., Any], way: str
) -> None:
    """By a token that forgets what it allows, or an endpoint that does."""
    chain.rpc.call("shem_setAutomine", [False])
    vault, multi = places.VAULT_ADDRESS, places.MULTI_TRANSFER_ADDRESS
    payer = new_payer(rpc_urls=("a",), vault=vault, multi_transfer=multi)
    bench = Bench(payer, chain)

    def forgets(request: Any) -> Any:
        if isinstance(request, list):
            return [forgets(one) for one in request]
        told: Any = chain.rpc.answer(request)
        if request["method"] == "eth_call" and request["params"][0]["data"].startswith("0xdd62ed3e"):
            told["result"] = "0x" + "00" * 32
        return told

    bench.lines["a"] = forgets
    if way == "transfer":
        for name in "ab":
            payer.order(name, PAYEE, 7)
        payer.driver.payouts["devnet"].gather()
    else:
        with payer.db.transaction() as connection:
            payer.driver.vaults["devnet"].deposit(connection, "d", payer.identity.address, 7)
        payer.driver.vaults["devnet"].gather()
    await bench.steps(40, mine=True)
    leaves = "select count(*) from evm_intent where key like '%leave:%' and state = 'final'"
    assert payer.db.connection.execute(leaves).fetchone()[0] == 2, "once more, in case it was taken back"
    if way == "transfer":
        assert len(payer.told) == 2, "one by one"
    else:
        assert "gives no leave" in bench.problems["TxStuck"]
        bench.lines["a"] = chain.rpc.answer
        await bench.steps(5, mine=True)
        assert await payer.driver.vaults["devnet"].free(payer.identity.address) == 7
    await payer.close()


async def test_a_nonce_is_not_taken_from_an_endpoint_that_stands_alone_with_it(bench: Bench) -> None:
    """It would be the payment's for ever, and nothing would be mined before somebody has used all that are before it."""
    bench.lines["a"] = broken(bench, "eth_getTransactionCount", result="0x500")
    bench.payer.order("a", PAYEE, 7)
    await bench.steps(2, mine=True)
    assert (bench.states, list(bench.problems)) == (["new"], ["RpcError"])
    assert "disagree" in bench.problems["RpcError"]
    bench.lines["a"] = bench.chain.rpc.answer
    await bench.steps(4, mine=True)
    assert (bench.states, bench.problems) == (["final"], {})


async def test_endpoints_that_refuse_are_named(bench: Bench) -> None:
    bench.lines = dict.fromkeys(bench.lines, broken(bench, "eth_getTransactionCount", **LIMIT))
    bench.payer.order("a", PAYEE, 7)
    with pytest.raises(ChainUnreachable):
        await bench.steps()
    assert "compute units per second exceeded" in bench.problems["RpcError"]


async def test_an_endpoint_without_final_blocks_is_left_for_one_that_has_them(bench: Bench) -> None:
    def refuses(request: Any) -> Any:
        told = bench.chain.rpc.answer(request)
        for asked, reply in zip(request if isinstance(request, list) else [], told, strict=False):
            if asked["params"][:1] == ["finalized"]:
                reply.pop("result", None)
                reply.update(LIMIT)
        return told

    bench.lines["a"] = refuses
    bench.payer.order("a", PAYEE, 7)
    await bench.steps(4, mine=True)
    assert bench.states == ["final"]


async def test_a_receipt_of_another_transaction_is_no_proof(bench: Bench) -> None:
    me = bench.payer.identity.address
    bench.payer.order("a", PAYEE, 7)
    await bench.steps(4, mine=True)
    (settled,) = bench.payer.told
    other = bench.chain.rpc.call("eth_getTransactionReceipt", [settled.tx_hash])
    bench.lines = dict.fromkeys(bench.lines, broken(bench, "eth_getTransactionReceipt", result=other))
    assert (await bench.payer.driver.verify(PLATFORM, settled.tx_hash, me, PAYEE, 7)).amount_units == 7
    with pytest.raises(ChainUnreachable, match="another transaction's"):
        await bench.payer.driver.verify(PLATFORM, "0x" + "ab" * 32, me, PAYEE, 7)


async def test_a_transfer_of_no_amount_is_no_crash(bench: Bench) -> None:
    bench.payer.order("a", PAYEE, 7)
    await bench.steps(4, mine=True)
    (settled,) = bench.payer.told
    receipt: Any = bench.chain.rpc.call("eth_getTransactionReceipt", [settled.tx_hash])
    receipt["logs"][0]["data"] = "0x" + "no amount".ljust(64)
    bench.lines = dict.fromkeys(bench.lines, broken(bench, "eth_getTransactionReceipt", result=receipt))
    with pytest.raises(PaymentNotFound):
        await bench.payer.driver.verify(PLATFORM, settled.tx_hash, bench.payer.identity.address, PAYEE, 7)


async def test_what_is_final_at_one_endpoint_proves_nothing_of_another(bench: Bench, tmp_path: Path) -> None:
    """The second stands on a branch that the chain has left, and takes over between two questions."""
    chain = bench.chain.chain
    bench.payer.order("a", PAYEE, 7)
    await bench.steps()
    chain.mine()
    (tmp_path / "left").mkdir()
    shutil.copytree(tmp_path / "chain", tmp_path / "left", dirs_exist_ok=True)
    left = Chain(tmp_path / "left")
    (tx_hash,) = [row[0] for row in bench.payer.db.connection.execute("select tx_hash from evm_attempt")]
    chain.reorg(1, requeue=False)
    for _ in range(4):
        chain.mine()

    def once(request: Any) -> Any:
        if "eth_chainId" not in str(request):
            bench.lines["a"] = down
        return bench.chain.rpc.answer(request)

    bench.lines |= {"a": once, "b": Rpc(left, changed=lambda: None, automine=lambda on: None).answer}
    with pytest.raises((NotFinalYet, PaymentNotFound)):
        await bench.payer.driver.verify(PLATFORM, tx_hash, bench.payer.identity.address, PAYEE, 7)
    left.close()


async def test_an_endpoint_without_final_blocks_is_named(bench: Bench) -> None:
    def refuses(request: Any) -> Any:
        told = bench.chain.rpc.answer(request)
        for asked, reply in zip(request if isinstance(request, list) else [], told, strict=False):
            if asked["params"][:1] == ["finalized"] or asked["method"] == "eth_maxPriorityFeePerGas":
                reply.pop("result", None)
                reply["error"] = {"code": -32000, "message": "no such block tag"}
        return told

    bench.lines |= {"a": refuses, "b": refuses}
    bench.payer.order("a", PAYEE, 7)
    with pytest.raises(ChainUnreachable) as caught:
        await bench.steps()
    assert "networks.devnet.depth" in (caught.value.hint or "")
    assert "no such block tag" in bench.problems["RpcError"]


@pytest.mark.parametrize(
    "reply",
    [{"error": {"code": -32601, "message": "the method does not exist"}}, {"result": None}],
    ids=["refused", "null"],
)
async def test_an_endpoint_that_names_no_tip_is_offered_the_usual(bench: Bench, reply: dict[str, Any]) -> None:
    bench.lines = dict.fromkeys(bench.lines, broken(bench, "eth_maxPriorityFeePerGas", **reply))
    bench.payer.order("a", PAYEE, 7)
    await bench.steps(4, mine=True)
    assert bench.states == ["final"]
    (tip,) = bench.payer.db.connection.execute("select max_tip from evm_attempt").fetchone()
    assert tip == bench.payer.network.usual_tip_wei


async def test_another_chain_with_the_same_id_takes_over_nothing(bench: Bench, tmp_path: Path) -> None:
    """The first endpoint dies; the second has been of a chain that was started afresh all along."""
    bench.payer.order("a", PAYEE, 7)
    await bench.steps(4, mine=True)
    assert bench.states == ["final"]
    (tmp_path / "fresh").mkdir()
    fresh = Chain(tmp_path / "fresh")
    bench.lines |= {"a": down, "b": Rpc(fresh, changed=lambda: None, automine=lambda on: None).answer}
    bench.payer.order("b", PAYEE, 8)
    for _ in range(3):
        with pytest.raises(ChainUnreachable):
            await bench.steps()
    assert "not the chain it was" in bench.problems["RpcError"]
    assert len(fresh.pool) == 0
    with pytest.raises(ChainUnreachable):
        await bench.payer.driver.verify(PLATFORM, "0x" + "ab" * 32, bench.payer.identity.address, PAYEE, 7)
    bench.lines["a"] = bench.chain.rpc.answer
    await bench.steps(4, mine=True)
    assert bench.states == ["final", "final"]
    fresh.close()


async def test_nothing_is_made_anew_on_the_word_of_an_endpoint_that_is_behind(bench: Bench, tmp_path: Path) -> None:
    """The one that knows the end of it dies when it has said that the nonce is used; the other has seen no receipt yet."""
    shutil.copytree(tmp_path / "chain", tmp_path / "behind")
    behind = Chain(tmp_path / "behind")
    bench.payer.order("a", PAYEE, 7)
    await bench.steps()
    for _ in range(4):
        bench.chain.chain.mine()

    def once(request: Any) -> Any:
        if isinstance(request, dict) and request["method"] == "eth_getTransactionCount":
            bench.lines["a"] = down
        return bench.chain.rpc.answer(request)

    bench.lines |= {"a": once, "b": Rpc(behind, changed=lambda: None, automine=lambda on: None).answer}
    with pytest.raises((NotStuck, ChainUnreachable)):
        await bench.payer.driver.retry(bench.payer.identity.address, "1")
    assert (bench.states, bench.payer.told) == (["sent"], [])
    behind.close()


async def test_two_daemons_with_one_key(
    bench: Bench, payer_type: type[Any], tmp_path: Path, token_balance: Callable[[str], int]
) -> None:
    """Both take the same nonce; one of them wins, the other holds its payment back and says so. Nobody pays twice."""
    other = Bench(payer_type(tmp_path / "other.sqlite", bench.payer.identity, bench.payer.network), bench.chain)
    sides = {"ours": bench, "theirs": other}
    payees = {name: f"0x{0xEE0000 + place:040x}" for place, name in enumerate(sides)}
    for _ in range(2):
        for name, side in sides.items():
            side.payer.order(f"{name}{len(side.states)}", payees[name], 100)
    for _ in range(STRANGE_LOOKS + 4):
        for side in sides.values():
            await side.steps()
        bench.chain.chain.mine()
    for name, side in sides.items():
        settled = [told for told in side.payer.told if isinstance(told, Settlement)]
        assert token_balance(payees[name]) == 100 * len(settled), "what was told is what was paid"
        held_back = [state for state in side.states if state != "final"]
        assert len(settled) + len(held_back) == 2
        assert ("TxStuck" in side.problems) == bool(held_back)
    assert sum(len(side.payer.told) for side in sides.values()) >= 2
    for name, side in sides.items():  # once they take turns, both go on
        side.payer.order(f"{name}, later", payees[name], 1)
        await side.steps(4, mine=True)
        assert side.states[-1] == "final"
    await other.payer.close()


@pytest.mark.parametrize("requeue", [True, False])
async def test_a_reorg_of_what_was_final_pays_nobody_twice(
    chain: DevChain, new_payer: Callable[..., Any], requeue: bool, token_balance: Callable[[str], int]
) -> None:
    """Only where an operator calls too young a block final. What was told stays told, and the same nonce stays used."""
    chain.rpc.call("shem_setAutomine", [False])
    payer = new_payer(depth=0, rpc_urls=("a",))
    bench = Bench(payer, chain)
    payer.order("a", PAYEE, 7)
    await bench.steps(2, mine=True)
    assert (bench.states, len(payer.told)) == (["final"], 1)
    chain.chain.reorg(2, requeue=requeue)
    payer.order("b", PAYEE, 8)
    await bench.steps(6, mine=True)
    assert [told.order_id for told in payer.told if told.order_id == "a"] == ["a"]
    assert token_balance(PAYEE) in ((15,) if requeue else (0, 8))
    await payer.close()


async def test_the_chain_takes_back_nothing_that_it_called_final(bench: Bench) -> None:
    bench.payer.order("a", PAYEE, 7)
    await bench.steps(4, mine=True)
    assert bench.states == ["final"]
    chain = bench.chain.chain
    with pytest.raises(Exception, match="final"):
        chain.reorg(chain.head - chain.finalized + 1, requeue=False)
