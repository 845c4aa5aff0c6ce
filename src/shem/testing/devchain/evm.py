"""The door to py-evm: execute transactions on a parent block, read a state, simulate a call.

Only py-evm's virtual machine and state are used. Blocks, their order and their index are ours (:mod:`.chain`), which
makes a reorg a matter of rows and keeps the cost of a transaction independent of the block's size.

One rule is relaxed as on fast second layers: a block may have its parent's timestamp, so that many blocks in one second
do not run ahead of the clock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import rlp
from eth.consensus.context import ConsensusContext
from eth.constants import BLANK_ROOT_HASH, GENESIS_PARENT_HASH, POST_MERGE_DIFFICULTY, POST_MERGE_NONCE
from eth.db.account import AccountDB
from eth.db.atomic import AtomicDB
from eth.db.backends.base import BaseDB
from eth.db.chain import ChainDB
from eth.db.trie import make_trie_root_and_nodes
from eth.exceptions import Revert, UnrecognizedTransactionType
from eth.vm.chain_context import ChainContext
from eth.vm.forks import PragueVM
from eth.vm.forks.prague.blocks import PragueBlockHeader
from eth.vm.spoof import SpoofTransaction
from eth_keys.datatypes import PrivateKey
from eth_keys.exceptions import BadSignature
from eth_utils import ValidationError
from rlp.exceptions import RLPException

GAS_LIMIT = 30_000_000
BASE_FEE = 10**9
COINBASE = bytes.fromhex("5e11c01b00000000000000000000000000000000")
PREVIOUS_HASHES = 256


NO_TRANSACTION = (RLPException, UnrecognizedTransactionType, ValidationError, BadSignature, TypeError, ValueError)
"""What the library raises for bytes that are no signed transaction."""


class BadTransaction(Exception):
    """Bytes that are no transaction of this chain, or one that cannot be executed on this state."""


@dataclass(frozen=True, slots=True)
class Account:
    """One entry of the genesis allocation."""

    balance: int = 0
    code: bytes = b""
    storage: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Executed:
    """One transaction in its block. ``cumulative_gas`` is of the block up to and with it."""

    tx: Any
    gas_used: int
    cumulative_gas: int
    success: bool
    logs: tuple[Any, ...]
    bloom: int
    created: bytes | None


@dataclass(frozen=True, slots=True)
class Call:
    """An unsigned call to simulate; ``to`` empty creates a contract."""

    sender: bytes
    to: bytes
    data: bytes
    value: int
    gas: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulated call did. ``reverted`` tells ``revert`` (with data) from out-of-gas and the like."""

    success: bool
    reverted: bool
    output: bytes
    gas_used: int


class Evm:
    """Executes; remembers nothing but state nodes in the given store."""

    def __init__(self, nodes: BaseDB, chain_id: int, hashes_below: Callable[[int, int], Iterator[bytes]]) -> None:
        """``hashes_below(number, count)`` gives earlier block hashes, newest first (for ``BLOCKHASH``)."""
        self._db = AtomicDB(nodes)
        self._chaindb = ChainDB(self._db)
        self._context = ChainContext(chain_id)
        self._consensus = ConsensusContext(self._db)
        self.chain_id = chain_id

        class Machine(PragueVM):  # type: ignore[misc]
            @property
            def previous_hashes(self) -> Iterable[bytes]:
                return hashes_below(self.get_header().block_number, PREVIOUS_HASHES)

        self._machine = Machine

    def genesis(self, accounts: dict[bytes, Account], timestamp: int) -> Any:
        """Write the first state and give the first header."""
        state = AccountDB(self._db)
        for address, account in accounts.items():
            state.set_balance(address, account.balance)
            if account.code:
                state.set_code(address, account.code)
                state.set_nonce(address, 1)  # as a created contract has (EIP-161)
            for slot, content in account.storage:
                state.set_storage(address, slot, content)
        state.persist()
        return PragueBlockHeader(
            difficulty=POST_MERGE_DIFFICULTY,
            block_number=0,
            gas_limit=GAS_LIMIT,
            timestamp=timestamp,
            coinbase=COINBASE,
            parent_hash=GENESIS_PARENT_HASH,
            state_root=state.state_root,
            mix_hash=os.urandom(32),
            nonce=POST_MERGE_NONCE,
            base_fee_per_gas=BASE_FEE,
        )

    @staticmethod
    def encode_header(header: Any) -> bytes:
        encoded: bytes = rlp.encode(header)
        return encoded

    @staticmethod
    def decode_header(encoded: bytes) -> Any:
        return rlp.decode(encoded, sedes=PragueBlockHeader)

    @staticmethod
    def decode_transaction(raw: bytes) -> Any:
        """A signed legacy, access-list or fee-market transaction. Raises :class:`BadTransaction`."""
        try:
            tx = PragueVM.get_transaction_builder().decode(raw)
            tx.validate()
            _ = tx.sender
            kind = getattr(tx, "type_id", None) or 0
        except NO_TRANSACTION as error:
            raise BadTransaction(f"not a signed transaction: {error}") from error
        if kind > 2:
            raise BadTransaction(f"transactions of type {kind} are not taken here")
        return tx

    @staticmethod
    def encode_transaction(tx: Any) -> bytes:
        """The signed bytes again."""
        return bytes(tx.encode())

    def sign(
        self, key: bytes, nonce: int, to: bytes, value: int, data: bytes, *, max_fee: int, gas: int = 100_000
    ) -> Any:
        """A signed fee-market transaction of an account whose key is at hand (the faucet's)."""
        unsigned = PragueVM.get_transaction_builder().new_unsigned_dynamic_fee_transaction(
            chain_id=self.chain_id,
            nonce=nonce,
            max_priority_fee_per_gas=0,
            max_fee_per_gas=max_fee,
            gas=gas,
            to=to,
            value=value,
            data=data,
            access_list=(),
        )
        return unsigned.as_signed_transaction(PrivateKey(key), self.chain_id)

    def child_of(self, parent: Any, timestamp: int) -> Any:
        """The header a block on top of ``parent`` starts from."""
        return self._machine.create_header_from_parent(
            parent,
            timestamp=max(timestamp, parent.timestamp),
            gas_limit=parent.gas_limit,
            coinbase=COINBASE,
            # Random, as the beacon's would be; also makes the blocks after a reorg differ from those before it.
            mix_hash=os.urandom(32),
        )

    def _vm(self, header: Any) -> Any:
        return self._machine(header, self._chaindb, self._context, self._consensus)

    def state(self, header: Any) -> Any:
        """The state after ``header``'s block, to read from."""
        return self._vm(header).state

    def execute(self, header: Any, transactions: Iterable[Any]) -> tuple[Any, list[Executed], list[tuple[Any, str]]]:
        """Fill a block: (sealed header, executed, refused with reasons). Writes the new state."""
        vm = self._vm(header)
        executed: list[Executed] = []
        refused: list[tuple[Any, str]] = []
        receipts = []
        for tx in transactions:
            try:
                receipt, computation = vm.apply_transaction(header, tx)
            except ValidationError as error:  # raised before the state is touched
                refused.append((tx, str(error)))
                continue
            used = receipt.gas_used - header.gas_used
            header = vm.add_receipt_to_header(header, receipt)
            receipts.append(receipt)
            created = computation.msg.storage_address if not tx.to and computation.is_success else None
            executed.append(
                Executed(
                    tx,
                    used,
                    receipt.gas_used,
                    bool(computation.is_success),
                    tuple(receipt.logs),
                    receipt.bloom,
                    created,
                )
            )
        vm.state.persist()
        return (
            header.copy(
                state_root=vm.state.state_root,
                transaction_root=_root([entry.tx for entry in executed]),
                receipt_root=_root(receipts),
            ),
            executed,
            refused,
        )

    def simulate(self, parent: Any, call: Call, timestamp: int) -> Outcome:
        """Run ``call`` on top of ``parent`` without fees; nothing is kept. Raises :class:`BadTransaction`."""
        vm = self._vm(self.child_of(parent, timestamp).copy(base_fee_per_gas=0))
        held = vm.state.get_balance(call.sender)
        if call.value > held:
            raise BadTransaction(f"insufficient funds for gas * price + value: balance {held}, value {call.value}")
        unsigned = vm.get_transaction_builder().new_unsigned_dynamic_fee_transaction(
            chain_id=self.chain_id,
            nonce=vm.state.get_nonce(call.sender),
            max_priority_fee_per_gas=0,
            max_fee_per_gas=0,
            gas=call.gas,
            to=call.to,
            value=call.value,
            data=call.data,
            access_list=(),
        )
        try:
            computation = vm.state.apply_transaction(SpoofTransaction(unsigned, from_=call.sender))
        except ValidationError as error:
            raise BadTransaction(str(error)) from error
        return Outcome(
            success=bool(computation.is_success),
            reverted=computation.is_error and isinstance(computation.error, Revert),
            output=bytes(computation.output),
            gas_used=call.gas - computation.get_gas_remaining(),
        )


def _root(items: list[Any]) -> bytes:
    if not items:
        return bytes(BLANK_ROOT_HASH)
    root, _ = make_trie_root_and_nodes(tuple(items))
    return bytes(root)
