"""JSON-RPC 2.0 over a :class:`~shem.testing.devchain.chain.Chain`: the methods of ordinary nodes, and the controls.

Shapes and error codes are those of the public clients. Everything a caller sends is bounded and checked here; an error
of ours becomes ``-32603`` and is logged.

Controls of tests, which no public node has: ``shem_fund(address, wei, tokenUnits)``, ``shem_mine(count, limit)``,
``shem_reorg(depth, requeue)``, ``shem_dropMempool()``, ``shem_setAutomine(on)``, ``shem_advanceTime(seconds)``,
``shem_status()``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

from shem.testing.devchain.chain import Chain, UnknownBlock, data, quantity
from shem.testing.devchain.evm import BadTransaction, Call
from shem.testing.devchain.mempool import PoolError

log = logging.getLogger(__name__)

MAX_BATCH = 1_000
MAX_DATA_BYTES = 256 << 10
MAX_MINED_AT_ONCE = 1_000
TIP = 10**9
"""Suggested priority fee; what blocks actually take is anything."""

NOT_JSON = -32700
INVALID_REQUEST = -32600
NO_SUCH_METHOD = -32601
INVALID_PARAMS = -32602
INTERNAL = -32603
REFUSED = -32000
NO_SUCH_BLOCK = -32001
TOO_MUCH = -32005
REVERTED = 3

_HEX = re.compile(r"0x[0-9a-fA-F]*")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
_HASH = re.compile(r"0x[0-9a-fA-F]{64}")


class RpcError(Exception):
    """Becomes the ``error`` member of the answer."""

    def __init__(self, code: int, message: str, content: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.content = content


class Params:
    """Positional parameters, checked as they are read."""

    def __init__(self, values: Sequence[object]) -> None:
        self._values = values

    def get(self, place: int, default: object = None) -> object:
        return self._values[place] if place < len(self._values) else default

    def quantity(self, place: int, default: int | None = None) -> int:
        return as_quantity(self.get(place, default))

    def flag(self, place: int, default: bool = False) -> bool:
        value = self.get(place, default)
        if not isinstance(value, bool):
            raise RpcError(INVALID_PARAMS, f"parameter {place} must be a boolean")
        return value

    def address(self, place: int) -> bytes:
        return as_bytes(self.get(place), _ADDRESS, "an address")

    def hash(self, place: int) -> bytes:
        return as_bytes(self.get(place), _HASH, "a hash of 32 bytes")

    def data(self, place: int) -> bytes:
        return as_bytes(self.get(place), _HEX, "hex data")

    def table(self, place: int) -> dict[str, Any]:
        value = self.get(place)
        if not isinstance(value, dict):
            raise RpcError(INVALID_PARAMS, f"parameter {place} must be an object")
        return value


def as_quantity(value: object) -> int:
    """A JSON-RPC quantity; plain JSON numbers are taken too."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 256:
        return value
    if isinstance(value, str) and _HEX.fullmatch(value) and 3 <= len(value) <= 66:
        return int(value, 16)
    raise RpcError(INVALID_PARAMS, f"not a quantity: {str(value)[:80]}")


def as_bytes(value: object, shape: re.Pattern[str], name: str) -> bytes:
    """Hex of that shape as bytes."""
    if not isinstance(value, str) or not shape.fullmatch(value) or len(value) % 2:
        raise RpcError(INVALID_PARAMS, f"not {name}: {str(value)[:80]}")
    if len(value) > 2 * MAX_DATA_BYTES:
        raise RpcError(INVALID_PARAMS, f"more than {MAX_DATA_BYTES} bytes")
    return bytes.fromhex(value[2:])


class Rpc:
    """Answers requests. ``changed`` is called after whatever may call for a block; ``automine`` switches mining."""

    def __init__(self, chain: Chain, *, changed: Callable[[], None], automine: Callable[[bool], None]) -> None:
        self._chain = chain
        self._changed = changed
        self._automine = automine
        self._methods: dict[str, Callable[[Params], object]] = {
            "web3_clientVersion": lambda p: "shem-devchain/py-evm",
            "net_version": lambda p: str(chain.chain_id),
            "net_listening": lambda p: True,
            "eth_chainId": lambda p: quantity(chain.chain_id),
            "eth_syncing": lambda p: False,
            "eth_accounts": lambda p: [],
            "eth_blockNumber": lambda p: quantity(chain.head),
            "eth_gasPrice": lambda p: quantity(chain.base_fee + TIP),
            "eth_maxPriorityFeePerGas": lambda p: quantity(TIP),
            "eth_getBalance": lambda p: quantity(self._state(p, 1).get_balance(p.address(0))),
            "eth_getCode": lambda p: data(self._state(p, 1).get_code(p.address(0))),
            "eth_getStorageAt": lambda p: f"0x{self._state(p, 2).get_storage(p.address(0), p.quantity(1)):064x}",
            "eth_getTransactionCount": self._transaction_count,
            "eth_sendRawTransaction": self._send,
            "eth_getTransactionByHash": lambda p: chain.transaction(p.hash(0)),
            "eth_getTransactionReceipt": lambda p: chain.receipt(p.hash(0)),
            "eth_getBlockByNumber": lambda p: self._block(self._number_or_none(p.get(0)), p.flag(1)),
            "eth_getBlockByHash": lambda p: self._block(chain.number_of(p.hash(0)), p.flag(1)),
            "eth_getBlockReceipts": lambda p: chain.receipts_of(self._number(p.get(0))),
            "eth_call": self._call,
            "eth_estimateGas": self._estimate,
            "eth_feeHistory": self._fee_history,
            "eth_getLogs": self._logs,
            "txpool_status": lambda p: {"pending": quantity(len(chain.pool)), "queued": "0x0"},
            "shem_fund": self._fund,
            "shem_mine": self._mine,
            "shem_reorg": self._reorg,
            "shem_dropMempool": lambda p: chain.pool.clear(),
            "shem_setAutomine": self._set_automine,
            "shem_advanceTime": lambda p: chain.advance_time(p.quantity(0)),
            "shem_status": self._status,
        }

    def answer(self, request: object) -> object:
        """The answer to a request or a batch of them; always an answer."""
        if not isinstance(request, list):
            return self._answer_one(request)
        if not request or len(request) > MAX_BATCH:
            return _error(None, RpcError(INVALID_REQUEST, f"a batch has 1 to {MAX_BATCH} requests"))
        return [self._answer_one(one) for one in request]

    def _answer_one(self, request: object) -> dict[str, object]:
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            return _error(None, RpcError(INVALID_REQUEST, "not a JSON-RPC request"))
        name, values = request["method"], request.get("params") or []
        try:
            if not isinstance(values, list):
                raise RpcError(INVALID_PARAMS, "parameters are a list here")
            return {"jsonrpc": "2.0", "id": request.get("id"), "result": self.call(name, values)}
        except RpcError as error:
            return _error(request.get("id"), error)
        except Exception as error:  # the door of the chain: it answers, whatever it is asked
            log.exception("%s failed", name)
            return _error(request.get("id"), RpcError(INTERNAL, f"the chain made a mistake: {error!r}"))

    def call(self, name: str, values: Sequence[object]) -> object:
        """One method's result. Raises :class:`RpcError`."""
        method = self._methods.get(name)
        if method is None:
            raise RpcError(NO_SUCH_METHOD, f"the method {name[:80]} does not exist")
        try:
            return method(Params(values))
        except UnknownBlock as error:
            raise RpcError(NO_SUCH_BLOCK, str(error)) from None
        except (PoolError, BadTransaction) as error:
            raise RpcError(REFUSED, str(error)) from None

    # Blocks and accounts

    def _number(self, tag: object) -> int:
        """The number that a block parameter means."""
        chain = self._chain
        if tag in ("latest", "pending", None):
            return chain.head
        if tag in ("finalized", "safe"):
            return chain.finalized
        if tag == "earliest":
            return 0
        if isinstance(tag, dict):  # EIP-1898
            number = chain.number_of(as_bytes(tag["blockHash"], _HASH, "a hash")) if "blockHash" in tag else None
            if number is None and "blockNumber" in tag:
                number = as_quantity(tag["blockNumber"])
            if number is None:
                raise UnknownBlock("no block has that hash")
            return number
        number = as_quantity(tag)
        if number > chain.head:
            raise UnknownBlock(f"block {number} is not there yet: the head is {chain.head}")
        return number

    def _number_or_none(self, tag: object) -> int | None:
        try:
            return self._number(tag)
        except UnknownBlock:
            return None

    def _state(self, p: Params, place: int) -> Any:
        return self._chain.state(self._number(p.get(place)))

    def _transaction_count(self, p: Params) -> str:
        if p.get(1) == "pending":
            return quantity(self._chain.next_nonce(p.address(0)))
        return quantity(self._state(p, 1).get_nonce(p.address(0)))

    def _block(self, number: int | None, full: bool) -> dict[str, object] | None:
        if number is None:
            return None
        header = self._chain.header(number)
        transactions = self._chain.transactions_of(number)
        return {
            "number": quantity(number),
            "hash": data(header.hash),
            "parentHash": data(header.parent_hash),
            "nonce": data(header.nonce),
            "sha3Uncles": data(header.uncles_hash),
            "logsBloom": f"0x{header.bloom:0512x}",
            "transactionsRoot": data(header.transaction_root),
            "stateRoot": data(header.state_root),
            "receiptsRoot": data(header.receipt_root),
            "withdrawalsRoot": data(header.withdrawals_root),
            "parentBeaconBlockRoot": data(header.parent_beacon_block_root),
            "requestsHash": data(header.requests_hash),
            "miner": data(header.coinbase),
            "difficulty": "0x0",
            "extraData": data(header.extra_data),
            "size": quantity(600 + 150 * len(transactions)),
            "gasLimit": quantity(header.gas_limit),
            "gasUsed": quantity(header.gas_used),
            "blobGasUsed": quantity(header.blob_gas_used),
            "excessBlobGas": quantity(header.excess_blob_gas),
            "timestamp": quantity(header.timestamp),
            "baseFeePerGas": quantity(header.base_fee_per_gas),
            "mixHash": data(header.mix_hash),
            "uncles": [],
            "withdrawals": [],
            "transactions": [body if full else data(tx_hash) for tx_hash, body in transactions],
        }

    def _fee_history(self, p: Params) -> dict[str, object]:
        newest = self._number(p.get(1))
        count = min(p.quantity(0), newest + 1, 1024)
        headers = [self._chain.header(number) for number in range(newest - count + 1, newest + 1)]
        following = (
            self._chain.base_fee if newest == self._chain.head else self._chain.header(newest + 1).base_fee_per_gas
        )
        percentiles = p.get(2)
        history: dict[str, object] = {
            "oldestBlock": quantity(newest - count + 1),
            "baseFeePerGas": [quantity(h.base_fee_per_gas) for h in headers] + [quantity(following)],
            "gasUsedRatio": [h.gas_used / h.gas_limit for h in headers],
        }
        if isinstance(percentiles, list):
            history["reward"] = [[quantity(TIP)] * len(percentiles[:100]) for _ in headers]
        return history

    def _logs(self, p: Params) -> list[dict[str, Any]]:
        wanted = p.table(0)
        if "blockHash" in wanted:
            found = self._chain.number_of(as_bytes(wanted["blockHash"], _HASH, "a hash"))
            if found is None:
                raise UnknownBlock("no block has that hash")
            low = high = found
        else:
            low, high = self._number(wanted.get("fromBlock")), self._number(wanted.get("toBlock"))
        addresses = [data(as_bytes(a, _ADDRESS, "an address")) for a in _listed(wanted.get("address"))]
        topics: list[list[str] | None] = [
            None if choice is None else [data(as_bytes(t, _HASH, "a topic")) for t in _listed(choice)]
            for choice in _listed(wanted.get("topics"))[:4]
        ]
        logs = self._chain.logs(low, high, addresses, topics)
        if logs is None:
            raise RpcError(TOO_MUCH, "too many logs: ask for fewer blocks")
        return logs

    # Execution

    def _send(self, p: Params) -> str:
        tx_hash = self._chain.submit(p.data(0))
        self._changed()
        return data(tx_hash)

    def _parse_call(self, p: Params) -> Call:
        given = p.table(0)
        zero = "0x" + "00" * 20
        return Call(
            sender=as_bytes(given.get("from") or zero, _ADDRESS, "an address"),
            to=as_bytes(given["to"], _ADDRESS, "an address") if given.get("to") else b"",
            data=as_bytes(given.get("input") or given.get("data") or "0x", _HEX, "hex data"),
            value=as_quantity(given.get("value") or 0),
            gas=min(as_quantity(given.get("gas") or self._chain.gas_limit), self._chain.gas_limit),
        )

    def _call(self, p: Params) -> str:
        outcome = self._chain.simulate(self._number(p.get(1)), self._parse_call(p))
        if not outcome.success:
            raise _failed(outcome.reverted, outcome.output)
        return data(outcome.output)

    def _estimate(self, p: Params) -> str:
        """The gas with which the call succeeds, at most one in 64 above the least, found by halving: refunds and calls hold
        gas back. Ordinary nodes are as exact."""
        number, call = self._number(p.get(1)), self._parse_call(p)
        first = self._chain.simulate(number, call)
        if not first.success:
            raise _failed(first.reverted, first.output)
        low, high = first.gas_used - 1, call.gas
        while high - low > max(1, high // 64):
            # The gas used is nearly always enough: try it first, then what a nested call would hold back.
            middle = next(
                (g for g in (first.gas_used, first.gas_used * 64 // 63 + 2300) if low < g < high), (low + high) // 2
            )
            try:
                enough = self._chain.simulate(number, _with_gas(call, middle)).success
            except BadTransaction:
                enough = False
            low, high = (low, middle) if enough else (middle, high)
        return quantity(high)

    # Controls

    def _fund(self, p: Params) -> dict[str, object]:
        hashes = self._chain.fund(p.address(0), p.quantity(1, 0), p.quantity(2, 0))
        self._changed()
        return {"transactions": [data(h) for h in hashes], "blockNumber": quantity(self._chain.head)}

    def _mine(self, p: Params) -> str:
        for _ in range(min(p.quantity(0, 1), MAX_MINED_AT_ONCE)):
            self._chain.mine(p.quantity(1, MAX_BATCH))
        return quantity(self._chain.head)

    def _reorg(self, p: Params) -> str:
        head = self._chain.reorg(p.quantity(0), requeue=p.flag(1, True))
        self._changed()
        return quantity(head)

    def _set_automine(self, p: Params) -> bool:
        self._automine(p.flag(0))
        return True

    def _status(self, p: Params) -> dict[str, object]:
        return {
            "head": quantity(self._chain.head),
            "finalized": quantity(self._chain.finalized),
            "pending": quantity(len(self._chain.pool)),
        }


def _listed(value: object) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _with_gas(call: Call, gas: int) -> Call:
    return Call(call.sender, call.to, call.data, call.value, gas)


def _failed(reverted: bool, output: bytes) -> RpcError:
    """``Error(string)`` output is put into words; other revert data is given as it is."""
    if not reverted:
        return RpcError(REFUSED, "out of gas, or an invalid instruction")
    reason = ""
    if output[:4] == bytes.fromhex("08c379a0") and len(output) >= 68:
        length = int.from_bytes(output[36:68], "big")
        reason = ": " + output[68 : 68 + min(length, 1024)].decode("utf-8", "replace")
    return RpcError(REVERTED, f"execution reverted{reason}", data(output))


def _error(request_id: object, error: RpcError) -> dict[str, object]:
    body: dict[str, object] = {"code": error.code, "message": error.message}
    if error.content is not None:
        body["data"] = error.content
    return {"jsonrpc": "2.0", "id": request_id, "error": body}
