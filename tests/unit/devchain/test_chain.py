"""The chain as its callers see it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shem.errors import Misconfigured
from shem.testing.devchain import places
from shem.testing.devchain.chain import Chain, faucet_address
from shem.testing.devchain.rpc import MAX_BATCH

GWEI = 10**9
TO = "0x" + "99" * 20
TRANSFER = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"


def transfer(units: int, to: str = TO) -> str:
    return f"0xa9059cbb{to[2:]:0>64}{units:064x}"


def test_who_it_is(call: Any) -> None:
    assert call("eth_chainId") == "0x539"
    assert call("net_version") == "1337"
    assert "devchain" in call("web3_clientVersion")
    assert call("eth_syncing") is False
    assert call("eth_accounts") == []


def test_genesis_places_the_contracts(call: Any) -> None:
    assert len(call("eth_getCode", places.TOKEN_ADDRESS, "earliest")) > 500
    assert len(call("eth_getCode", places.MULTI_TRANSFER_ADDRESS, "earliest")) > 500
    assert len(call("eth_getCode", places.VAULT_ADDRESS, "earliest")) > 500
    supply = call("eth_call", {"to": places.TOKEN_ADDRESS, "data": "0x18160ddd"}, "earliest")
    assert int(supply, 16) == places.FAUCET_TOKENS
    held = call("eth_call", {"to": places.TOKEN_ADDRESS, "data": f"0x70a08231{faucet_address()[2:]:0>64}"}, "earliest")
    assert int(held, 16) == places.FAUCET_TOKENS


def test_a_transfer_of_coins(call: Any) -> None:
    tx_hash = call.send(0, value=5)
    assert call("eth_getTransactionReceipt", tx_hash) is None
    waiting = call("eth_getTransactionByHash", tx_hash)
    assert (waiting["blockHash"], waiting["nonce"], waiting["value"]) == (None, "0x0", "0x5")
    assert call.number("eth_getTransactionCount", call.address, "latest") == 0
    assert call.number("eth_getTransactionCount", call.address, "pending") == 1
    call.chain.mine()
    receipt = call("eth_getTransactionReceipt", tx_hash)
    assert (receipt["status"], receipt["gasUsed"], receipt["from"]) == ("0x1", hex(21_000), call.address)
    block = call("eth_getBlockByNumber", receipt["blockNumber"], False)
    assert block["transactions"] == [tx_hash]
    assert block["hash"] == receipt["blockHash"]
    body = call("eth_getTransactionByHash", tx_hash)
    assert (body["blockHash"], body["transactionIndex"]) == (block["hash"], "0x0")
    assert call("eth_getBlockByHash", block["hash"], True)["transactions"] == [body]
    assert call("eth_getBlockReceipts", receipt["blockNumber"]) == [receipt]
    price = int(block["baseFeePerGas"], 16) + GWEI
    assert int(receipt["effectiveGasPrice"], 16) == price
    assert call.number("eth_getBalance", TO, "latest") == 5
    assert call.number("eth_getBalance", call.address, "latest") == 10 * 10**18 - 5 - 21_000 * price
    assert call.number("eth_getBalance", TO, "earliest") == 0


def test_older_kinds_of_transactions(call: Any) -> None:
    legacy = call.send(0, gasPrice=10 * GWEI)
    access = call.send(1, type=1, gasPrice=10 * GWEI, gas=50_000, accessList=[{"address": TO, "storageKeys": [1]}])
    call.chain.mine()
    assert call("eth_getTransactionReceipt", legacy)["type"] == "0x0"
    assert call("eth_getTransactionReceipt", access)["type"] == "0x1"
    listed = call("eth_getTransactionByHash", access)["accessList"]
    assert listed == [{"address": TO, "storageKeys": ["0x" + "00" * 31 + "01"]}]


def test_a_contract_is_created(call: Any) -> None:
    code = places.artifact("Token")["bytecode"] + f"{1000:064x}"
    tx_hash = call.send(0, to="", value=0, gas=2_000_000, data=code)
    call.chain.mine()
    receipt = call("eth_getTransactionReceipt", tx_hash)
    assert receipt["to"] is None
    deployed = call("eth_getCode", receipt["contractAddress"], "latest")
    assert deployed == call("eth_getCode", places.TOKEN_ADDRESS, "latest"), "genesis holds what a deployment would"
    held = call("eth_call", {"to": receipt["contractAddress"], "data": f"0x70a08231{call.address[2:]:0>64}"}, "latest")
    assert int(held, 16) == 1000


def test_logs(call: Any) -> None:
    for place in range(3):
        call.send(place, to=places.TOKEN_ADDRESS, value=0, gas=100_000, data=transfer(place + 1))
        call.chain.mine()
    everything = call("eth_getLogs", {"fromBlock": "0x0", "toBlock": "latest"})
    assert len(everything) == 4  # and the faucet's
    sender = f"0x{call.address[2:]:0>64}"
    receiver = f"0x{TO[2:]:0>64}"
    mine = {"fromBlock": "0x0", "address": places.TOKEN_ADDRESS, "topics": [TRANSFER, sender]}
    assert [int(log["data"], 16) for log in call("eth_getLogs", mine)] == [1, 2, 3]
    assert call("eth_getLogs", {**mine, "topics": [[TRANSFER, sender], None, [receiver, sender]]}) == everything
    assert call("eth_getLogs", {**mine, "topics": [TRANSFER, None, receiver]}) == everything[1:]
    assert call("eth_getLogs", {**mine, "address": [TO]}) == []
    assert call("eth_getLogs", {**mine, "topics": [sender]}) == []
    assert call("eth_getLogs", {**mine, "topics": [None, None, None, None]}) == []
    assert len(call("eth_getLogs", {**mine, "fromBlock": "0x3", "toBlock": "0x3"})) == 1
    (only,) = call("eth_getLogs", {"blockHash": everything[-1]["blockHash"]})
    assert only == everything[-1]
    assert call("eth_getTransactionReceipt", only["transactionHash"])["logs"] == [only]


def test_what_the_pool_refuses(call: Any) -> None:
    def refused(nonce: int, **fields: Any) -> str:
        error = call.error("eth_sendRawTransaction", call.sign(nonce, **fields))
        assert error["code"] == -32000
        return str(error["message"])

    call.send(0)
    assert refused(0) == "already known"
    assert refused(0, value=2) == "replacement transaction underpriced"
    assert refused(0, value=2, maxFeePerGas=20 * GWEI) == "replacement transaction underpriced", "both fees must rise"
    assert "nonce too high" in refused(5000)
    assert "insufficient funds" in refused(1, value=11 * 10**18)
    assert "intrinsic gas too low" in refused(1, gas=20_999)
    assert "gas limit too high" in refused(1, gas=(1 << 24) + 1)
    assert "priority fee" in refused(1, maxPriorityFeePerGas=11 * GWEI)
    assert "invalid chain id" in refused(1, chainId=1)
    call.chain.mine()
    assert "nonce too low" in refused(0, value=2)
    assert refused(0) == "already known"
    for nonsense in ("0x", "0x02", "0x02c0", "0xff", "0x" + "00" * 100, call.sign(1)[:-2], call.sign(1) + "00"):
        assert call.error("eth_sendRawTransaction", nonsense)["code"] == -32000
    assert len(call.chain.pool) == 0


def test_a_replacement_takes_the_place(call: Any) -> None:
    first = call.send(0, value=1)
    second = call.send(0, value=2, maxFeePerGas=11 * GWEI, maxPriorityFeePerGas=11 * GWEI // 10)
    assert call("eth_getTransactionByHash", first) is None
    call.chain.mine()
    assert call("eth_getTransactionReceipt", first) is None
    assert call("eth_getTransactionReceipt", second)["status"] == "0x1"


def test_nonces_wait_for_each_other(call: Any) -> None:
    later = [call.send(nonce) for nonce in (2, 1)]
    call.chain.mine()
    assert [call("eth_getTransactionReceipt", tx_hash) for tx_hash in later] == [None, None]
    assert call.number("eth_getTransactionCount", call.address, "pending") == 0
    call.send(0)
    assert call.number("eth_getTransactionCount", call.address, "pending") == 3
    call.chain.mine()
    assert all(call("eth_getTransactionReceipt", tx_hash) for tx_hash in later)


def test_a_low_offer_waits_for_the_price_to_fall(call: Any) -> None:
    tx_hash = call.send(0, maxFeePerGas=GWEI // 2, maxPriorityFeePerGas=0)
    call.chain.mine()
    assert call("eth_getTransactionReceipt", tx_hash) is None
    for _ in range(8):
        call.chain.mine()
    assert call("eth_getTransactionReceipt", tx_hash)["status"] == "0x1"


def test_full_blocks_raise_the_price(call: Any) -> None:
    largest = "0x6160006000f3"  # a contract of 24 kB of zeros: much gas, little work
    for nonce in range(4):
        call.send(nonce, to="", value=0, gas=6_000_000, data=largest)
    before = call.chain.base_fee
    call.chain.mine()
    assert call.chain.base_fee > before
    assert call("eth_feeHistory", "0x1", "latest", [])["gasUsedRatio"][0] > 0.6


def test_a_failed_transaction_costs_gas(call: Any) -> None:
    tx_hash = call.send(0, to=places.TOKEN_ADDRESS, value=0, gas=100_000, data=transfer(10**30))
    call.chain.mine()
    receipt = call("eth_getTransactionReceipt", tx_hash)
    assert (receipt["status"], receipt["logs"]) == ("0x0", [])
    assert call.number("eth_getTransactionCount", call.address, "latest") == 1


def test_one_that_cannot_be_paid_any_more_is_dropped(call: Any) -> None:
    call.send(0, value=6 * 10**18)
    late = call.send(1, value=6 * 10**18)
    call.chain.mine()
    assert call("eth_getTransactionReceipt", late) is None
    assert len(call.chain.pool) == 0


def test_calls(call: Any) -> None:
    token = {"from": call.address, "to": places.TOKEN_ADDRESS}
    assert int(call("eth_call", {**token, "data": transfer(1)}, "latest"), 16) == 1
    error = call.error("eth_call", {**token, "data": transfer(1, "0x" + "00" * 20)}, "latest")
    assert (error["code"], error["message"]) == (3, "execution reverted: bad receiver")
    assert error["data"].startswith("0x08c379a0")
    assert call.error("eth_call", {**token, "data": transfer(10**30)}, "latest")["code"] == 3
    assert call.error("eth_call", {**token, "data": transfer(1), "gas": hex(30_000)}, "latest")["code"] == -32000
    assert "insufficient" in call.error("eth_call", {**token, "value": hex(10**20)}, "latest")["message"].lower()
    assert call("eth_call", {"to": TO, "data": "0x1234"}, "latest") == "0x"
    assert call.number("eth_getBalance", call.address, "latest") == 10 * 10**18, "nothing stays of a call"


def test_estimates_are_the_least_that_works(call: Any) -> None:
    for to, data in [(TO, "0x"), (TO, "0x" + "ff" * 300), (places.TOKEN_ADDRESS, transfer(7))]:
        least = call.number("eth_estimateGas", {"from": call.address, "to": to, "data": data})
        short = {"from": call.address, "to": to, "data": data, "gas": hex(least - 1)}
        assert call.error("eth_call", short, "latest")["code"] in (-32000, 3)
        nonce = call.number("eth_getTransactionCount", call.address, "latest")
        tx_hash = call.send(nonce, to=to, data=data, value=0, gas=least)
        call.chain.mine()
        assert call("eth_getTransactionReceipt", tx_hash)["status"] == "0x1"
    failing = {"from": call.address, "to": places.TOKEN_ADDRESS, "data": transfer(10**30)}
    assert call.error("eth_estimateGas", failing)["code"] == 3


def test_fee_history(call: Any) -> None:
    for _ in range(5):
        call.chain.mine()
    history = call("eth_feeHistory", "0x3", "latest", [10, 50])
    assert int(history["oldestBlock"], 16) == call.chain.head - 2
    assert [len(history[name]) for name in ("baseFeePerGas", "gasUsedRatio", "reward")] == [4, 3, 3]
    assert int(history["baseFeePerGas"][-1], 16) == call.chain.base_fee
    assert call.number("eth_gasPrice") == call.chain.base_fee + GWEI


def test_finality_is_two_blocks_deep(call: Any) -> None:
    assert call("eth_getBlockByNumber", "finalized", False)["number"] == "0x0"
    call.chain.mine()
    assert call.chain.unfinished
    call.chain.mine()
    assert call("eth_getBlockByNumber", "finalized", False)["number"] == "0x1"
    assert not call.chain.unfinished


@pytest.mark.parametrize("requeue", [True, False])
def test_a_reorg(call: Any, requeue: bool) -> None:
    call.chain.mine()
    call.chain.mine()
    tx_hash = call.send(0)
    call.chain.mine()
    lost = call("eth_getTransactionReceipt", tx_hash)
    head = call.chain.head
    assert int(call("shem_reorg", 1, requeue), 16) == head + 1
    assert call("eth_getTransactionReceipt", tx_hash) is None
    assert call("eth_getBlockByHash", lost["blockHash"], False) is None
    assert call.number("eth_getTransactionCount", call.address, "latest") == 0
    assert call.number("eth_getBalance", TO, "latest") == 0
    assert len(call.chain.pool) == int(requeue)
    headers = [call("eth_getBlockByNumber", hex(number), False) for number in range(call.chain.head + 1)]
    for parent, child in itertools.pairwise(headers):
        assert child["parentHash"] == parent["hash"]
    if not requeue:
        assert call.send(0) == tx_hash, "the same bytes may come again"
    call.chain.mine()
    again = call("eth_getTransactionReceipt", tx_hash)
    assert again["blockHash"] != lost["blockHash"]


def test_what_is_final_cannot_go(call: Any) -> None:
    call.chain.mine()
    call.chain.mine()
    finalized = call.chain.finalized
    assert call.error("shem_reorg", 3)["code"] == -32001
    assert call.error("shem_reorg", 0)["code"] == -32001
    call("shem_reorg", 2)
    assert call.chain.finalized >= finalized
    assert call.error("shem_reorg", 3)["code"] == -32001


def test_the_mempool_can_be_lost(call: Any) -> None:
    tx_hash = call.send(0)
    call.send(1)
    assert call("shem_dropMempool") == 2
    assert call("eth_getTransactionByHash", tx_hash) is None
    assert call.send(0) == tx_hash


def test_blocks_do_not_run_ahead_of_the_clock(call: Any) -> None:
    for _ in range(30):
        call.chain.mine()
    stamp = int(call("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
    assert abs(stamp - time.time()) < 5
    call("shem_advanceTime", 3600)
    call.chain.mine()
    assert int(call("eth_getBlockByNumber", "latest", False)["timestamp"], 16) >= stamp + 3600


def test_the_faucet(call: Any) -> None:
    somebody = "0x" + "77" * 20
    given = call("shem_fund", somebody, hex(5), hex(6))
    assert len(given["transactions"]) == 2
    assert call.number("eth_getBalance", somebody, "latest") == 5
    held = call("eth_call", {"to": places.TOKEN_ADDRESS, "data": f"0x70a08231{somebody[2:]:0>64}"}, "latest")
    assert int(held, 16) == 6
    assert call("shem_fund", somebody, "0x0", "0x0")["transactions"] == []


def test_requests_that_are_wrong(call: Any) -> None:
    answer = call.rpc.answer
    assert answer({"id": 1})["error"]["code"] == -32600
    assert answer("text")["error"]["code"] == -32600
    assert answer([])["error"]["code"] == -32600
    assert answer([{"method": "eth_chainId", "id": 1}] * (MAX_BATCH + 1))["error"]["code"] == -32600
    batch = answer([{"method": "eth_chainId", "id": "x"}, 5, {"method": "nope", "id": None}])
    assert [one.get("result", one.get("error", {}).get("code")) for one in batch] == ["0x539", -32600, -32601]
    assert answer({"id": 1, "method": "eth_chainId", "params": {"a": 1}})["error"]["code"] == -32602
    for method, *params in [
        ("eth_getBalance", "0x12", "latest"),
        ("eth_getBalance", None, "latest"),
        ("eth_getBalance", TO, "newest"),
        ("eth_getBalance", TO, "0x"),
        ("eth_getTransactionReceipt", "0x12"),
        ("eth_getTransactionReceipt",),
        ("eth_call", "x", "latest"),
        ("eth_call", {"to": 5}, "latest"),
        ("eth_getBlockByNumber", "latest", "yes"),
        ("eth_getLogs", {"topics": ["0x12"]}),
        ("eth_sendRawTransaction", "0x" + "00" * (300 << 10)),
        ("shem_fund", TO, -1),
        ("shem_setAutomine", "off"),
    ]:
        assert call.error(method, *params)["code"] == -32602, (method, params)
    assert call.error("eth_getBalance", TO, "0xffff")["code"] == -32001
    assert call("eth_getBlockByNumber", "0xffff", False) is None


def test_a_restart_loses_nothing_that_was_mined(call: Any, tmp_path: Path, caller_of: Callable[[Chain], Any]) -> None:
    tx_hash = call.send(0, to=places.TOKEN_ADDRESS, value=0, gas=100_000, data=transfer(9))
    call.chain.mine()
    call("shem_advanceTime", 100)
    call.send(1)
    questions: list[tuple[Any, ...]] = [
        ("eth_getTransactionReceipt", tx_hash),
        ("eth_getTransactionByHash", tx_hash),
        ("eth_getBlockByNumber", "latest", True),
        ("eth_getBlockByNumber", "finalized", False),
        ("eth_getLogs", {"fromBlock": "0x0"}),
        ("eth_getBalance", call.address, "latest"),
        ("eth_getBalance", call.address, "0x1"),
        ("eth_getTransactionCount", call.address, "latest"),
        ("eth_call", {"to": places.TOKEN_ADDRESS, "data": f"0x70a08231{TO[2:]:0>64}"}, "latest"),
    ]
    before = [call(*question) for question in questions]
    call.chain.close()
    chain = Chain(tmp_path)
    again = caller_of(chain)
    assert [again(*question) for question in questions] == before
    assert chain.unfinished
    assert chain.time_shift_s == 100
    assert len(chain.pool) == 0, "as with any node: senders hold on to their bytes"
    again.send(1)
    chain.mine()
    assert again.number("eth_getTransactionCount", call.address, "latest") == 2
    chain.close()


def test_a_directory_is_one_chain_of_one_process(call: Any, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured) as in_use:
        Chain(tmp_path)
    assert in_use.value.code == "chain_in_use"
    call.chain.close()
    with pytest.raises(Misconfigured) as other:
        Chain(tmp_path, chain_id=5)
    assert other.value.code == "other_chain"
    Chain(tmp_path).close()
