"""The few words of ERC-20 that payments need, and what a receipt says about transfers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from shem.node.identity.signing import keccak256
from shem.node.payment.drivers.base import ChainUnreachable
from shem.node.payment.drivers.evm.rpc import RpcRefused, contract_refused, number, read

if TYPE_CHECKING:
    from shem.node.payment.drivers.networks import Network

_TRANSFER = keccak256(b"transfer(address,uint256)")[:4]
_TRANSFER_MANY = keccak256(b"golemTransferDirectPacked(bytes32[])")[:4]
_BALANCE_OF = keccak256(b"balanceOf(address)")[:4]
_ALLOWANCE = keccak256(b"allowance(address,address)")[:4]
_APPROVE = keccak256(b"approve(address,uint256)")[:4]
FAUCET_CREATE = keccak256(b"create()")[:4]
"""Call data for the faucets of test networks: tokens for the sender."""
_AMOUNT = re.compile("0x[0-9a-fA-F]{64}")
MAX_LEAVES, LEAVE_PERIOD_S = 2, 86400.0
"""A contract's leave to take tokens is asked for so often within such a time: a token, or an endpoint, that forgets it would
take gas for ever."""
TRANSFER_TOPIC = "0x" + keccak256(b"Transfer(address,address,uint256)").hex()


class WrongToken(ChainUnreachable):
    """What stands at the token's address is none; as far as this endpoint shows: another one may know more blocks."""

    default_code = "wrong_token"


class Log(Protocol):
    """An event as the chain reports it."""

    address: str
    topics: list[str]
    data: str


def _word(address: str) -> bytes:
    return bytes.fromhex(address.removeprefix("0x")).rjust(32, b"\0")


def units(answer: msgspec.Raw | RpcRefused, network: Network) -> int:
    """What the network's token answered to :func:`balance_of` or :func:`allowance`. Raises :class:`WrongToken`, and as
    :func:`~shem.node.payment.drivers.evm.rpc.quantity` does."""
    if contract_refused(answer) if isinstance(answer, RpcRefused) else bytes(answer) == b'"0x"':
        raise WrongToken(
            f"there is no such token at {network.token} on {network.name}",
            hint=f"correct networks.{network.name}.token",
        )
    return number(read(answer, str))


def transfer(receiver: str, amount_units: int) -> bytes:
    """Call data of ``transfer``."""
    return _TRANSFER + _word(receiver) + amount_units.to_bytes(32, "big")


def parse_transfer(data: bytes) -> tuple[str, int]:
    """(receiver, amount) of call data that :func:`transfer` made."""
    assert data[:4] == _TRANSFER
    assert len(data) == 68
    return "0x" + data[16:36].hex(), int.from_bytes(data[36:68], "big")


def transfer_many(payments: Sequence[tuple[str, int]]) -> bytes:
    """Call data for the multi-transfer contract: (receiver, amount below 2^96) of each payment. One ``transferFrom`` for
    each, so that the events name the caller as sender."""
    entries = [bytes.fromhex(receiver[2:]) + amount.to_bytes(12, "big") for receiver, amount in payments]
    return _TRANSFER_MANY + b"".join(number.to_bytes(32, "big") for number in (32, len(entries))) + b"".join(entries)


def parse_transfer_many(data: bytes) -> list[tuple[str, int]]:
    """What :func:`transfer_many` was given."""
    assert data[:4] == _TRANSFER_MANY
    entries = (data[at : at + 32] for at in range(68, len(data), 32))
    return [("0x" + entry[:20].hex(), int.from_bytes(entry[20:], "big")) for entry in entries]


def balance_of(owner: str) -> bytes:
    """Call data of ``balanceOf``."""
    return _BALANCE_OF + _word(owner)


def allowance(owner: str, spender: str) -> bytes:
    """Call data of ``allowance``."""
    return _ALLOWANCE + _word(owner) + _word(spender)


def approve(spender: str, amount_units: int) -> bytes:
    """Call data of ``approve``."""
    return _APPROVE + _word(spender) + amount_units.to_bytes(32, "big")


def moved(logs: Iterable[Log], token: str, senders: Iterable[str], receiver: str) -> int:
    """Base units of ``token`` that went from any of ``senders`` to ``receiver``, by its own ``Transfer`` events."""
    froms = {"0x" + _word(sender).hex() for sender in senders}
    to = "0x" + _word(receiver).hex()
    total = 0
    for log in logs:
        topics = [topic.lower() for topic in log.topics]
        if (
            log.address.lower() == token.lower()
            and len(topics) == 3
            and topics[0] == TRANSFER_TOPIC
            and topics[1] in froms
            and topics[2] == to
            and _AMOUNT.fullmatch(log.data)
        ):
            total += int(log.data, 16)
    return total
