"""Transactions that wait for a block: per sender in nonce order, bounded, replaceable at a higher price.

Rules of acceptance are those of ordinary nodes, with their wording, because callers must cope with theirs. The pool is
memory only: as with any node, a restart may lose what was not mined, and senders must hold on to their bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MAX_TRANSACTIONS = 10_000
MAX_NONCE_GAP = 2_000
REPLACEMENT_PERCENT = 110
"""A replacement must offer 10 % more, in both fees, as everywhere."""


class PoolError(Exception):
    """The transaction is not taken; the text is what callers get."""


def fee_of(tx: Any) -> int:
    """The most it pays for one unit of gas."""
    return int(getattr(tx, "max_fee_per_gas", None) or tx.gas_price)


def tip_of(tx: Any) -> int:
    """The most of that which goes to whoever mines."""
    tip = getattr(tx, "max_priority_fee_per_gas", None)
    return int(tx.gas_price if tip is None else tip)


class Mempool:
    """Knows nonces and prices; the caller gives the account's next nonce."""

    def __init__(self) -> None:
        self._by_sender: dict[bytes, dict[int, Any]] = {}
        self._by_hash: dict[bytes, Any] = {}

    def __len__(self) -> int:
        return len(self._by_hash)

    def get(self, tx_hash: bytes) -> Any | None:
        return self._by_hash.get(tx_hash)

    def add(self, tx: Any, next_nonce: int) -> None:
        """Raises :class:`PoolError`; the pool is unchanged then."""
        if tx.hash in self._by_hash:
            raise PoolError("already known")
        if tx.nonce < next_nonce:
            raise PoolError(f"nonce too low: next nonce {next_nonce}, tx nonce {tx.nonce}")
        if tx.nonce > next_nonce + MAX_NONCE_GAP:
            raise PoolError(f"nonce too high: next nonce {next_nonce}, tx nonce {tx.nonce}")
        queue = self._by_sender.get(tx.sender, {})
        old = queue.get(tx.nonce)
        if old is not None:
            enough = all(of(tx) * 100 >= of(old) * REPLACEMENT_PERCENT for of in (fee_of, tip_of))
            if not enough:
                raise PoolError("replacement transaction underpriced")
            del self._by_hash[old.hash]
        elif len(self._by_hash) >= MAX_TRANSACTIONS:
            raise PoolError("txpool is full")
        self._by_sender.setdefault(tx.sender, {})[tx.nonce] = tx
        self._by_hash[tx.hash] = tx

    def put_back(self, tx: Any) -> None:
        """Take a transaction of an abandoned block again, unless its place was taken meanwhile."""
        queue = self._by_sender.setdefault(tx.sender, {})
        if tx.nonce not in queue:
            queue[tx.nonce] = tx
            self._by_hash[tx.hash] = tx

    def remove(self, tx: Any) -> None:
        """Forget it (mined, or refused by the machine)."""
        queue = self._by_sender.get(tx.sender, {})
        held = queue.pop(tx.nonce, None)
        if held is not None:
            self._by_hash.pop(held.hash, None)
        if not queue:
            self._by_sender.pop(tx.sender, None)

    def clear(self) -> int:
        """Lose everything; says how many there were."""
        count = len(self._by_hash)
        self._by_sender.clear()
        self._by_hash.clear()
        return count

    def next_nonce(self, sender: bytes, from_nonce: int) -> int:
        """The first nonce of ``sender`` that is neither mined nor waiting without a gap."""
        queue = self._by_sender.get(sender, {})
        while from_nonce in queue:
            from_nonce += 1
        return from_nonce

    def executable(self, nonce_of: Callable[[bytes], int], base_fee: int, gas_limit: int, max_count: int) -> list[Any]:
        """What fits into a block now, in nonce order of each sender. Forgets what its account has outgrown."""
        chosen: list[Any] = []
        gas = 0
        for sender in list(self._by_sender):
            queue = self._by_sender[sender]
            nonce = nonce_of(sender)
            for stale in [n for n in queue if n < nonce]:
                self._by_hash.pop(queue.pop(stale).hash, None)
            if not queue:
                del self._by_sender[sender]
            while (tx := queue.get(nonce)) is not None:
                if fee_of(tx) < base_fee or gas + tx.gas > gas_limit or len(chosen) >= max_count:
                    break
                chosen.append(tx)
                gas += tx.gas
                nonce += 1
        return chosen
