"""Fee-market (EIP-1559) transactions: encode, sign, hash.

Twelve lines of RLP and one digest, because the libraries that do it cost half a second of start-up and a tenth of the
speed; tests compare the bytes with theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import msgspec

from shem.node.identity.signing import keccak256

Rlp: TypeAlias = "bytes | Sequence[Rlp]"

_TYPE = b"\x02"


class Signer(Protocol):
    """Whoever holds the key. The key itself never comes here."""

    @property
    def address(self) -> str:
        """``0x`` and 40 lower-case hex digits."""

    def sign_digest(self, digest: bytes) -> bytes:
        """65 bytes r | s | v with low s; v is 0 or 1 (27 and 28 are understood)."""


def encode_rlp(item: Rlp) -> bytes:
    """Recursive length prefix of bytes and lists of them."""
    if isinstance(item, bytes):
        if len(item) == 1 and item[0] < 0x80:
            return item
        return _prefix(len(item), 0x80) + item
    body = b"".join(encode_rlp(part) for part in item)
    return _prefix(len(body), 0xC0) + body


def _prefix(length: int, offset: int) -> bytes:
    if length < 56:
        return bytes([offset + length])
    size = _integer(length)
    return bytes([offset + 55 + len(size)]) + size


def _integer(number: int) -> bytes:
    """Big-endian without leading zeros; zero is empty."""
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


class SignedTransaction(msgspec.Struct, frozen=True):
    """What is stored and sent. ``tx_hash`` is its name on the chain."""

    tx_hash: str
    raw: bytes


class Transaction(msgspec.Struct, frozen=True, kw_only=True):
    """Amounts in wei; ``to`` as ``0x`` hex; no access list."""

    chain_id: int
    nonce: int
    max_tip: int
    max_fee: int
    gas: int
    to: str
    value: int = 0
    data: bytes = b""

    def _fields(self) -> list[Rlp]:
        return [
            _integer(self.chain_id),
            _integer(self.nonce),
            _integer(self.max_tip),
            _integer(self.max_fee),
            _integer(self.gas),
            bytes.fromhex(self.to.removeprefix("0x")),
            _integer(self.value),
            self.data,
            [],
        ]

    def sign(self, signer: Signer) -> SignedTransaction:
        """Deterministic: the same transaction gives the same bytes."""
        fields = self._fields()
        signature = signer.sign_digest(keccak256(_TYPE + encode_rlp(fields)))
        assert len(signature) == 65
        parity = signature[64] % 27  # 0, 1 or the older 27, 28
        r, s = (int.from_bytes(signature[at : at + 32], "big") for at in (0, 32))
        raw = _TYPE + encode_rlp([*fields, _integer(parity), _integer(r), _integer(s)])
        return SignedTransaction(tx_hash="0x" + keccak256(raw).hex(), raw=raw)
