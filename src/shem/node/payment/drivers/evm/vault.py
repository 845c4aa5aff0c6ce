"""The vault contract in words: what is called, what is signed, what its events say.

A channel is named by payer, payee, signer and a nonce that the contract gives. A *voucher* is the signer's word that the
payee may collect ``amount`` in all from the channel; the payee's *close* is its word that ``amount`` in all is enough
and the rest may go back at once. Both are EIP-712 structures in the contract's own domain, so they count in one vault
on one chain only. ``contracts/Vault.vy`` is the other half of this module; the tests run each against the other.

Everything in the contract's arguments is of fixed size, so encoding is padding and counting.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import msgspec

from shem.node.identity.signing import keccak256, recover, typed_digest
from shem.node.payment.drivers.evm.erc20 import Log
from shem.terms.ids import NodeId

MAX_BATCH = 128
"""Entries of one call; the contract refuses more."""
MAX_TERM_S = 366 * 86400
"""How far ahead a channel may end; the contract refuses more."""
MAX_UNITS = 2**96 - 1
"""The most that a channel or a free balance holds, in base units."""

CODE_HASH = bytes.fromhex("65e61247865989cd3447705f5f0938d28f4ecf1637638421ffc87ec47e90ddc9")
"""Keccak-256 of the contract's code without what its constructor appends: whoever pays or is paid by channel looks for
exactly this code. A test holds it to the artifact."""

_DOMAIN_TYPE = keccak256(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
_NAME, _VERSION = keccak256(b"Shem vault"), keccak256(b"1")
_VOUCHER_TYPE = keccak256(b"Voucher(bytes32 channel,uint96 amount)")
_CLOSE_TYPE = keccak256(b"Close(bytes32 channel,uint96 amount)")


class ChannelKey(msgspec.Struct, frozen=True):
    """What names a channel for ever. Addresses are ``0x`` and 40 lower-case hex digits."""

    payer: str
    payee: str
    signer: str
    nonce: int

    @property
    def id(self) -> bytes:
        """The contract's 32-byte name for it."""
        return _channel_id(self)


class Vault(msgspec.Struct, frozen=True):
    """One contract on one chain."""

    chain_id: int
    address: str


class OnChain(msgspec.Struct, frozen=True):
    """A channel as the contract has it; all zero when it is not open. Base units, Unix seconds."""

    reserved: int = 0
    claimed: int = 0
    valid_until: int = 0

    @property
    def is_open(self) -> bool:
        """A channel that exists has a term."""
        return self.valid_until != 0


class Reserved(msgspec.Struct, frozen=True):
    """Event: a channel was opened."""

    key: ChannelKey
    amount: int
    valid_until: int


class Extended(msgspec.Struct, frozen=True):
    """Event: it holds ``reserved`` in all now, until ``valid_until``."""

    channel: bytes
    reserved: int
    valid_until: int


class Paid(msgspec.Struct, frozen=True):
    """Event: ``amount`` went to the payee, which makes ``cumulative`` in all."""

    channel: bytes
    payee: str
    cumulative: int
    amount: int


class Released(msgspec.Struct, frozen=True):
    """Event: the channel is closed and ``amount`` is the payer's again."""

    channel: bytes
    amount: int


Event = Reserved | Extended | Paid | Released


# Words


def _word(number: int) -> bytes:
    return number.to_bytes(32, "big")


def _place(address: str) -> bytes:
    return bytes.fromhex(address.removeprefix("0x")).rjust(32, b"\0")


def _selector(signature: str) -> bytes:
    return keccak256(signature.encode())[:4]


def _list(entries: Sequence[bytes]) -> bytes:
    """A dynamic array of entries of fixed size."""
    if not 0 < len(entries) <= MAX_BATCH:
        raise ValueError(f"a call takes 1 to {MAX_BATCH} entries, not {len(entries)}")
    return _word(len(entries)) + b"".join(entries)


def _tail(key: ChannelKey) -> bytes:
    return _place(key.payee) + _place(key.signer) + _word(key.nonce)


def _compact(signature: bytes) -> bytes:
    """r and vs (EIP-2098) of a 65-byte signature whose v is 27 or 28."""
    s = int.from_bytes(signature[32:64], "big") | (signature[64] - 27) << 255
    return signature[:32] + _word(s)


# Signed structures


@lru_cache(maxsize=4096)
def _channel_id(key: ChannelKey) -> bytes:
    return keccak256(_place(key.payer) + _tail(key))


@lru_cache(maxsize=4096)
def separator(vault: Vault) -> bytes:
    """The EIP-712 domain of one vault."""
    return keccak256(_DOMAIN_TYPE + _NAME + _VERSION + _word(vault.chain_id) + _place(vault.address))


def constructed(vault: Vault, token: str) -> bytes:
    """What the constructor writes behind the code: the token, the chain, the domain."""
    return _place(token) + _word(vault.chain_id) + separator(vault)


def is_our_code(code: bytes, vault: Vault, token: str) -> bool:
    """Whether ``code`` is this contract over ``token`` at ``vault``: its text is pinned, and what its constructor wrote
    behind it is known."""
    written = constructed(vault, token)
    return code.endswith(written) and keccak256(code[: -len(written)]) == CODE_HASH


def voucher_digest(vault: Vault, channel: bytes, amount: int) -> bytes:
    """What the signer signs: the payee may collect ``amount`` in all."""
    return typed_digest(separator(vault), _VOUCHER_TYPE + channel + _word(amount))


def close_digest(vault: Vault, channel: bytes, amount: int) -> bytes:
    """What the payee signs: ``amount`` in all is the end of it."""
    return typed_digest(separator(vault), _CLOSE_TYPE + channel + _word(amount))


def voucher_signer(vault: Vault, channel: bytes, amount: int, signature: bytes) -> NodeId:
    """Who signed a voucher. Raises :class:`~shem.node.identity.signing.BadSignature`."""
    return recover(voucher_digest(vault, channel, amount), signature)


def close_signer(vault: Vault, channel: bytes, amount: int, signature: bytes) -> NodeId:
    """Who signed a close. Raises :class:`~shem.node.identity.signing.BadSignature`."""
    return recover(close_digest(vault, channel, amount), signature)


# Calls

_DEPOSIT = _selector("deposit(address,uint256)")
_WITHDRAW = _selector("withdraw(address,uint256)")
_RESERVE = _selector("reserve((address,address,uint96,uint64)[])")
_DEPOSIT_AND_RESERVE = _selector("deposit_and_reserve(uint256,(address,address,uint96,uint64)[])")
_EXTEND = _selector("extend(address,address,uint64,uint96,uint64)")
_SETTLE = _selector("settle((address,address,uint64,uint96)[])")
_CLOSE = _selector("cooperative_close((address,address,uint64,uint96,bytes32,bytes32)[])")
_RELEASE = _selector("release((address,address,uint64)[])")
_REDEEM = _selector("redeem(address,(address,address,uint64,uint96,bool,bytes32,bytes32)[])")
_ACCOUNT = _selector("account(address)")
_CHANNEL = _selector("channel(bytes32)")


class Reservation(msgspec.Struct, frozen=True):
    """One channel to open."""

    payee: str
    signer: str
    amount: int
    valid_until: int

    def encoded(self) -> bytes:
        """Four words."""
        return _place(self.payee) + _place(self.signer) + _word(self.amount) + _word(self.valid_until)


class Claim(msgspec.Struct, frozen=True):
    """A voucher to redeem; ``close`` counts only when the payee itself sends it."""

    key: ChannelKey
    amount: int
    signature: bytes
    close: bool = False

    def encoded(self) -> bytes:
        """Seven words."""
        key = self.key
        start = _place(key.payer) + _place(key.signer) + _word(key.nonce)
        return start + _word(self.amount) + _word(int(self.close)) + _compact(self.signature)


def deposit(payer: str, amount: int) -> bytes:
    """Move the caller's tokens to ``payer``'s free balance."""
    return _DEPOSIT + _place(payer) + _word(amount)


def withdraw(receiver: str, amount: int) -> bytes:
    """Take out what is free."""
    return _WITHDRAW + _place(receiver) + _word(amount)


def reserve(items: Sequence[Reservation]) -> bytes:
    """Open channels."""
    return _RESERVE + _word(32) + _list([item.encoded() for item in items])


def deposit_and_reserve(amount: int, items: Sequence[Reservation]) -> bytes:
    """Both at once."""
    return _DEPOSIT_AND_RESERVE + _word(amount) + _word(64) + _list([item.encoded() for item in items])


def extend(key: ChannelKey, add: int, valid_until: int) -> bytes:
    """Reserve more, for longer, or both."""
    return _EXTEND + _tail(key) + _word(add) + _word(valid_until)


def settle(items: Sequence[tuple[ChannelKey, int]]) -> bytes:
    """The payer pays each channel's sum so far."""
    return _SETTLE + _word(32) + _list([_tail(key) + _word(amount) for key, amount in items])


def cooperative_close(items: Sequence[tuple[ChannelKey, int, bytes]]) -> bytes:
    """End channels with the payees' signatures over their final sums."""
    return _CLOSE + _word(32) + _list([_tail(key) + _word(amount) + _compact(said) for key, amount, said in items])


def release(keys: Sequence[ChannelKey]) -> bytes:
    """Take back what is left after the term."""
    return _RELEASE + _word(32) + _list([_tail(key) for key in keys])


def redeem(payee: str, claims: Sequence[Claim]) -> bytes:
    """Collect vouchers."""
    return _REDEEM + _place(payee) + _word(64) + _list([claim.encoded() for claim in claims])


def account(payer: str) -> bytes:
    """View: see :func:`read_account`."""
    return _ACCOUNT + _place(payer)


def channel(channel_id: bytes) -> bytes:
    """View: see :func:`read_channel`."""
    return _CHANNEL + channel_id


# Answers


def _words(text: str, count: int) -> list[int]:
    """``count`` numbers of hex data from a node that may say anything. Raises ``ValueError``."""
    data = bytes.fromhex(text.removeprefix("0x"))
    if len(data) != 32 * count:
        raise ValueError(f"{len(data)} bytes where {32 * count} belong")
    return [int.from_bytes(data[place : place + 32], "big") for place in range(0, len(data), 32)]


def read_account(answer: str) -> tuple[int, int]:
    """(free base units, nonce of the next channel)."""
    free, nonce = _words(answer, 2)
    return free, nonce


def read_channel(answer: str) -> OnChain:
    """The answer of :func:`channel`."""
    return OnChain(*_words(answer, 3))


RESERVED_TOPIC, _TOPIC_EXTENDED, PAID_TOPIC, _TOPIC_RELEASED = (
    "0x" + keccak256(signature).hex()
    for signature in (
        b"Reserved(address,address,bytes32,address,uint64,uint96,uint64)",
        b"Extended(bytes32,uint256,uint256)",
        b"Paid(bytes32,address,uint256,uint256)",
        b"Released(bytes32,uint256)",
    )
)


def events(logs: Iterable[Log], vault: Vault) -> list[Event]:
    """What the vault said in a receipt; other contracts' events, and ones of another shape, are passed over."""
    found = []
    for log in logs:
        if log.address.lower() == vault.address and log.topics:
            try:
                event = _event([topic.lower() for topic in log.topics], log.data)
            except ValueError:
                continue
            if event is not None:
                found.append(event)
    return found


def _event(topics: Sequence[str], data: str) -> Event | None:
    kind = topics[0]
    if kind == RESERVED_TOPIC and len(topics) == 4:
        signer, nonce, amount, valid_until = _words(data, 4)
        key = ChannelKey(_address(topics[1]), _address(topics[2]), f"0x{signer:040x}", nonce)
        return Reserved(key, amount, valid_until) if key.id == bytes.fromhex(topics[3][2:]) else None
    if kind == _TOPIC_EXTENDED and len(topics) == 2:
        reserved, valid_until = _words(data, 2)
        return Extended(bytes.fromhex(topics[1][2:]), reserved, valid_until)
    if kind == PAID_TOPIC and len(topics) == 3:
        cumulative, amount = _words(data, 2)
        return Paid(bytes.fromhex(topics[1][2:]), _address(topics[2]), cumulative, amount)
    if kind == _TOPIC_RELEASED and len(topics) == 2:
        (left,) = _words(data, 1)
        return Released(bytes.fromhex(topics[1][2:]), left)
    return None


def _address(topic: str) -> str:
    return "0x" + topic[-40:]
