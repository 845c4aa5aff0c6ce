"""The chain proper: blocks on top of each other, what waits, what is final; and how it goes wrong when a test asks.

Finality is a depth: a block with :data:`FINALITY` blocks on top is final and no reorg touches it. Nothing here knows of
time-tables or of HTTP: :mod:`.node` decides when to mine and :mod:`.rpc` how it is asked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from coincurve import PrivateKey
from eth_utils import keccak

from shem.errors import Misconfigured
from shem.node.payment.drivers.evm import standard, vault
from shem.testing.devchain import places
from shem.testing.devchain.evm import GAS_LIMIT, Account, BadTransaction, Call, Evm, Executed, Outcome
from shem.testing.devchain.mempool import Mempool, PoolError, fee_of, tip_of
from shem.testing.devchain.store import Store

log = logging.getLogger(__name__)

FINALITY = 2
MAX_BLOCK_TRANSACTIONS = 200
"""Keeps one block's execution below about half a second, so that questions are answered in between."""
MAX_TX_GAS = 1 << 24
"""What one transaction may use on public chains since Osaka (EIP-7825); py-evm does not know it yet."""
MAX_LOGS = 10_000


def quantity(number: int) -> str:
    """A number as JSON-RPC writes it."""
    return hex(number)


def data(content: bytes) -> str:
    """Bytes as JSON-RPC writes them."""
    return "0x" + content.hex()


def address_bytes(text: str) -> bytes:
    """The 20 bytes of a (checked) address."""
    return bytes.fromhex(text.removeprefix("0x"))


def genesis_accounts(chain_id: int) -> dict[bytes, Account]:
    """The faucet with all coins and tokens; the token, the multi-transfer and the vault at their fixed places; and the
    deployment proxy, which puts what others want at places of their own."""
    faucet = address_bytes(faucet_address())
    layout = places.artifact("Token")["storageLayout"]
    balances = int(layout["balanceOf"]).to_bytes(32, "big")
    slot_of_faucet = int.from_bytes(keccak(balances + faucet.rjust(32, b"\0")), "big")
    token = address_bytes(places.TOKEN_ADDRESS)
    return {
        faucet: Account(balance=places.FAUCET_WEI),
        token: Account(
            code=places.runtime_code("Token"),
            storage=((slot_of_faucet, places.FAUCET_TOKENS), (int(layout["totalSupply"]), places.FAUCET_TOKENS)),
        ),
        # An immutable is one word after the code.
        address_bytes(places.MULTI_TRANSFER_ADDRESS): Account(
            code=places.runtime_code("MultiTransfer") + token.rjust(32, b"\0")
        ),
        address_bytes(places.VAULT_ADDRESS): Account(code=_vault_code(chain_id)),
        address_bytes(standard.DEPLOYER): Account(code=places.DEPLOYER_CODE),
    }


def _vault_code(chain_id: int) -> bytes:
    """As the constructor would leave it: the code, then what it writes behind it."""
    place = vault.Vault(chain_id, places.VAULT_ADDRESS)
    return places.runtime_code("Vault") + vault.constructed(place, places.TOKEN_ADDRESS)


def faucet_address() -> str:
    """The address of :data:`~shem.testing.devchain.places.FAUCET_KEY`."""
    public = PrivateKey(places.FAUCET_KEY).public_key.format(compressed=False)
    return data(bytes(keccak(public[1:]))[-20:])


class UnknownBlock(Exception):
    """No block has that number or name."""


class Chain:
    """One chain in one directory. Not thread-safe: one event loop owns it."""

    def __init__(
        self, directory: Path, *, chain_id: int = places.CHAIN_ID, others: Mapping[str, Account] | None = None
    ) -> None:
        """Goes on with the chain in ``directory`` or starts one there, with ``others`` in its first block beside what is
        usual, or in its place.

        Raises :class:`Misconfigured` when it is another chain's, or in use.
        """
        self.chain_id = chain_id
        self._store = Store(directory / "chain.sqlite")
        self._evm = Evm(self._store.nodes, chain_id, self._store.hashes_below)
        self.pool = Mempool()
        head = self._store.head()
        if head is None:
            accounts = genesis_accounts(chain_id) | {address_bytes(at): a for at, a in (others or {}).items()}
            header = self._evm.genesis(accounts, int(time.time()))
            with self._store.transaction():
                self._store.set_meta("chain_id", str(chain_id))
                self._append(header, [])
            self._head = header
        else:
            self._head = self._evm.decode_header(head[1])
        if self._store.meta("chain_id") != str(chain_id):
            stored = self._store.meta("chain_id")
            self._store.close()
            raise Misconfigured(
                f"the chain in {directory} has id {stored}, not {chain_id}",
                code="other_chain",
                hint="choose another directory, or that id",
            )
        self.time_shift_s = int(self._store.meta("time_shift_s") or 0)
        self._finalized = int(self._store.meta("finalized") or 0)
        self._last_work = self._store.last_block_with_transactions()
        self._state: Any = None

    # What is there

    @property
    def head(self) -> int:
        """Number of the last block."""
        return int(self._head.block_number)

    @property
    def finalized(self) -> int:
        """Number of the last block that no reorg touches."""
        return self._finalized

    @property
    def unfinished(self) -> bool:
        """Whether a transaction is in a block that is not final yet."""
        return self._last_work > self._finalized

    @property
    def base_fee(self) -> int:
        """What one unit of gas costs at least in the next block."""
        return int(self._evm.child_of(self._head, self._now()).base_fee_per_gas)

    @property
    def gas_limit(self) -> int:
        return int(self._head.gas_limit)

    def header(self, number: int) -> Any:
        """Raises :class:`UnknownBlock`."""
        if number == self.head:
            return self._head
        encoded = self._store.header(number) if number >= 0 else None
        if encoded is None:
            raise UnknownBlock(f"no block has number {number}")
        return self._evm.decode_header(encoded)

    def number_of(self, block_hash: bytes) -> int | None:
        return self._store.number_of(block_hash)

    def state(self, number: int) -> Any:
        """The accounts after that block, to read from."""
        if number != self.head:
            return self._evm.state(self.header(number))
        if self._state is None:
            self._state = self._evm.state(self._head)
        return self._state

    def next_nonce(self, address: bytes) -> int:
        """The nonce of the account's next transaction, counting those that wait."""
        return self.pool.next_nonce(address, self.state(self.head).get_nonce(address))

    def transaction(self, tx_hash: bytes) -> dict[str, Any] | None:
        waiting = self.pool.get(tx_hash)
        return self._body(waiting) if waiting is not None else self._store.body(tx_hash)

    def receipt(self, tx_hash: bytes) -> dict[str, Any] | None:
        return self._store.receipt(tx_hash)

    def transactions_of(self, number: int) -> list[tuple[bytes, dict[str, Any]]]:
        return self._store.transactions_of(number)

    def receipts_of(self, number: int) -> list[dict[str, Any]]:
        return self._store.receipts_of(number)

    def logs(
        self, low: int, high: int, addresses: list[str], topics: list[list[str] | None]
    ) -> list[dict[str, Any]] | None:
        """``None`` when there are more than :data:`MAX_LOGS`."""
        found = self._store.logs(low, high, addresses, topics, MAX_LOGS + 1)
        return None if len(found) > MAX_LOGS else found

    def simulate(self, number: int, call: Call) -> Outcome:
        """Run a call on that block's state. Raises :class:`BadTransaction`."""
        return self._evm.simulate(self.header(number), call, self._now())

    # What happens

    def submit(self, raw: bytes) -> bytes:
        """Take a signed transaction; gives its hash. Raises :class:`BadTransaction` or :class:`PoolError`."""
        tx = self._evm.decode_transaction(raw)
        if getattr(tx, "chain_id", self.chain_id) != self.chain_id:
            raise BadTransaction("invalid chain id for signer")
        if self._store.has_transaction(tx.hash):
            raise PoolError("already known")
        if tx.gas > MAX_TX_GAS:
            raise PoolError(f"transaction gas limit too high (cap: {MAX_TX_GAS}, tx: {tx.gas})")
        if tx.gas < tx.intrinsic_gas:
            raise PoolError(f"intrinsic gas too low: gas {tx.gas}, minimum needed {tx.intrinsic_gas}")
        if tip_of(tx) > fee_of(tx):
            raise PoolError("max priority fee per gas higher than max fee per gas")
        state = self.state(self.head)
        next_nonce = state.get_nonce(tx.sender)
        needed = tx.value + tx.gas * fee_of(tx)
        if tx.nonce >= next_nonce and state.get_balance(tx.sender) < needed:
            raise PoolError(
                f"insufficient funds for gas * price + value: balance {state.get_balance(tx.sender)}, tx cost {needed}"
            )
        self.pool.add(tx, next_nonce)
        return bytes(tx.hash)

    def executable(self, limit: int = MAX_BLOCK_TRANSACTIONS) -> list[Any]:
        """The waiting transactions that the next block would take."""
        state = self.state(self.head)
        nonce_of: Callable[[bytes], int] = state.get_nonce
        return self.pool.executable(nonce_of, self.base_fee, GAS_LIMIT, min(limit, MAX_BLOCK_TRANSACTIONS))

    def mine(self, limit: int = MAX_BLOCK_TRANSACTIONS) -> int:
        """Put a block on top, with at most ``limit`` of the waiting transactions; gives its number."""
        return self._mine(self.executable(limit) if limit else [])

    def _mine(self, transactions: list[Any]) -> int:
        with self._store.transaction():
            header, executed, refused = self._evm.execute(self._evm.child_of(self._head, self._now()), transactions)
            self._append(header, executed)
            self._finalized = max(self._finalized, header.block_number - FINALITY)
            self._store.set_meta("finalized", str(self._finalized))
        self._head, self._state = header, None
        if executed:
            self._last_work = self.head
        for tx in transactions:
            self.pool.remove(tx)
        for tx, reason in refused:
            log.warning("dropped transaction %s: %s", data(tx.hash), reason)
        return self.head

    def fund(self, receiver: bytes, wei: int, token_units: int) -> list[bytes]:
        """Give coins and tokens from the faucet in a block of their own; hashes of the transactions."""
        nonce = self.state(self.head).get_nonce(address_bytes(faucet_address()))
        transfers = []
        if wei:
            transfers.append((receiver, wei, b""))
        if token_units:
            arguments = receiver.rjust(32, b"\0") + token_units.to_bytes(32, "big")
            transfers.append(
                (address_bytes(places.TOKEN_ADDRESS), 0, keccak(b"transfer(address,uint256)")[:4] + arguments)
            )
        signed = [
            self._evm.sign(places.FAUCET_KEY, nonce + place, to, wei, content, max_fee=self.base_fee * 2)
            for place, (to, wei, content) in enumerate(transfers)
        ]
        self._mine(signed)
        return [bytes(tx.hash) for tx in signed]

    # How it goes wrong

    def reorg(self, depth: int, *, requeue: bool) -> int:
        """Replace the last ``depth`` blocks by ``depth + 1`` empty ones; gives the new head.

        Their transactions wait again (``requeue``) or are lost. Raises :class:`UnknownBlock` when a final block would
        go.
        """
        fork = self.head - depth
        if depth < 1 or fork < self._finalized:
            raise UnknownBlock(f"block {self._finalized} is final: at most {self.head - self._finalized} can go")
        lost = self._store.raw_above(fork)
        parent = self.header(fork)
        with self._store.transaction():
            self._store.cut_above(fork)
        self._head, self._state = parent, None
        self._last_work = self._store.last_block_with_transactions()
        if requeue:
            for raw in lost:
                self.pool.put_back(self._evm.decode_transaction(raw))
        for _ in range(depth + 1):
            self._mine([])
        return self.head

    def advance_time(self, seconds: int) -> int:
        """Blocks from now on are that much later; gives the whole shift."""
        self.time_shift_s += seconds
        with self._store.transaction():
            self._store.set_meta("time_shift_s", str(self.time_shift_s))
        return self.time_shift_s

    def close(self) -> None:
        """Everything is on disk already."""
        self._store.close()

    def _now(self) -> int:
        return int(time.time()) + self.time_shift_s

    # Shapes, kept as callers get them

    def _append(self, header: Any, executed: list[Executed]) -> None:
        number = header.block_number
        self._store.add_block(number, header.hash, self._evm.encode_header(header), header.timestamp)
        first_log = 0
        for position, entry in enumerate(executed):
            place = {
                "blockHash": data(header.hash),
                "blockNumber": quantity(number),
                "transactionIndex": quantity(position),
            }
            body = self._body(entry.tx) | place | {"gasPrice": quantity(self._price(entry.tx, header))}
            receipt = self._receipt(entry, header, place, first_log)
            first_log += len(entry.logs)
            raw = self._evm.encode_transaction(entry.tx)
            self._store.add_transaction(number, position, entry.tx.hash, raw, body, receipt)

    @staticmethod
    def _price(tx: Any, header: Any) -> int:
        return min(fee_of(tx), int(header.base_fee_per_gas) + tip_of(tx))

    def _body(self, tx: Any) -> dict[str, Any]:
        kind = getattr(tx, "type_id", None) or 0
        body: dict[str, Any] = {
            "hash": data(tx.hash),
            "type": quantity(kind),
            "chainId": quantity(self.chain_id),
            "nonce": quantity(tx.nonce),
            "from": data(tx.sender),
            "to": data(tx.to) if tx.to else None,
            "value": quantity(tx.value),
            "gas": quantity(tx.gas),
            "input": data(tx.data),
            "blockHash": None,
            "blockNumber": None,
            "transactionIndex": None,
            "gasPrice": quantity(fee_of(tx)),
            "r": quantity(tx.r),
            "s": quantity(tx.s),
            "v": quantity(tx.v if kind == 0 else tx.y_parity),
        }
        if kind:
            body["yParity"] = body["v"]
            body["accessList"] = [
                {"address": data(address), "storageKeys": [f"0x{key:064x}" for key in keys]}
                for address, keys in tx.access_list
            ]
        if kind == 2:
            body["maxFeePerGas"] = quantity(tx.max_fee_per_gas)
            body["maxPriorityFeePerGas"] = quantity(tx.max_priority_fee_per_gas)
        return body

    def _receipt(self, entry: Executed, header: Any, place: dict[str, Any], first_log: int) -> dict[str, Any]:
        tx = entry.tx
        logs = [
            place
            | {
                "address": data(event.address),
                "topics": [f"0x{topic:064x}" for topic in event.topics],
                "data": data(event.data),
                "transactionHash": data(tx.hash),
                "logIndex": quantity(first_log + index),
                "removed": False,
            }
            for index, event in enumerate(entry.logs)
        ]
        return place | {
            "transactionHash": data(tx.hash),
            "type": quantity(getattr(tx, "type_id", None) or 0),
            "status": quantity(int(entry.success)),
            "from": data(tx.sender),
            "to": data(tx.to) if tx.to else None,
            "contractAddress": data(entry.created) if entry.created else None,
            "gasUsed": quantity(entry.gas_used),
            "cumulativeGasUsed": quantity(entry.cumulative_gas),
            "effectiveGasPrice": quantity(self._price(tx, header)),
            "logs": logs,
            "logsBloom": f"0x{entry.bloom:0512x}",
        }
