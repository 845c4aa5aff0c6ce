"""What the payment service asks of a vault on a chain: payment channels opened, filled, paid out and ended.

A request is a row: it is written in the caller's transaction under an id that names it for ever, sent afterwards, and
survives ``kill -9`` at any point. Requests that come close together go to the chain in one call. What became of one is
told inside the transaction in which the chain side notes it. Amounts are base units, times Unix seconds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from shem.errors import Refused
from shem.node.payment.drivers.base import DriverProblem
from shem.node.payment.drivers.evm.requests import Kind as RequestKind
from shem.node.payment.drivers.evm.vault import ChannelKey, Vault


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """A channel was opened or extended; told at least once with ``final`` true, and maybe before with false."""

    request_id: str
    key: ChannelKey
    reserved: int
    """In all."""
    valid_until: int
    tx_hash: str
    block_number: int
    block_hash: str
    final: bool


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """A settle, close, redeem, release, deposit or withdrawal is final."""

    request_id: str
    tx_hash: str
    block_number: int
    block_hash: str
    gas_used: int


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """It was not done and never will be under this id. What may still happen is no failure but a problem."""

    request_id: str
    code: str
    message: str


ChainWord = Opened | Ended | Failed


class VaultTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What the owner of a node decides about channels on one network."""

    finality_s: float
    """How long it usually takes until a block is final."""
    cover_timeout_s: float
    """How long a payee waits for money to be reserved for an agreement."""
    settle_after_s: float
    """What is due on a channel that goes on is paid on the chain after so long."""
    credit: int = 0
    """What a payee works for beyond what is reserved, for each payer."""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """A channel as the last final block has it."""

    reserved: int
    claimed: int
    """Paid to the payee in all, also once the channel is closed (from its ``Paid`` events)."""
    valid_until: int
    """Zero when the channel is not open."""
    opened: bool
    """False: this block knows of no such channel, now or ever."""
    block_number: int
    block_hash: str
    block_time: int
    paid_tx: str = ""
    """The last transaction that paid the payee; empty before the first."""

    @property
    def is_open(self) -> bool:
        """It still holds its money."""
        return self.valid_until != 0


class WrongVault(Refused):
    """What stands at the vault's address is not our contract, or it is another token's."""

    default_code = "wrong_vault"


class VaultChain(Protocol):
    """One vault. Methods without ``async`` never block, may be called inside a transaction, and are idempotent by
    ``request_id``: the same id again is the same request."""

    @property
    def vault(self) -> Vault:
        """Where it stands."""

    @property
    def margin_s(self) -> int:
        """How long before the end of a term everything must be over: room for blocks, fees and clocks."""

    @property
    def terms(self) -> VaultTerms:
        """What the owner has decided for this network."""

    def on_word(self, callback: Callable[[ChainWord], None]) -> None:
        """Tell of every request's fate, inside the transaction that notes it; maybe more than once."""

    def deposit(self, connection: sqlite3.Connection, request_id: str, payer: str, amount: int) -> None:
        """Move tokens of the wallet to the payer's free balance in the vault; the token's leave is seen to."""

    def withdraw(self, connection: sqlite3.Connection, request_id: str, payer: str, receiver: str, amount: int) -> None:
        """Take out what is free."""

    def reserve(
        self,
        connection: sqlite3.Connection,
        request_id: str,
        *,
        payer: str,
        payee: str,
        signer: str,
        amount: int,
        valid_until: int,
    ) -> None:
        """Open a channel: :class:`Opened` names it. What the free balance lacks is taken from the wallet."""

    def extend(
        self, connection: sqlite3.Connection, request_id: str, key: ChannelKey, add: int, valid_until: int
    ) -> None:
        """Reserve more, for longer, or both: :class:`Opened` again."""

    def settle(self, connection: sqlite3.Connection, request_id: str, key: ChannelKey, amount: int) -> None:
        """The payer pays up to ``amount`` in all."""

    def close(
        self, connection: sqlite3.Connection, request_id: str, key: ChannelKey, amount: int, signature: bytes
    ) -> None:
        """The payer pays up to ``amount`` in all and gets the rest, by the payee's signature."""

    def release(self, connection: sqlite3.Connection, request_id: str, key: ChannelKey) -> None:
        """The payer takes the rest back after the term."""

    def redeem(
        self,
        connection: sqlite3.Connection,
        request_id: str,
        key: ChannelKey,
        amount: int,
        signature: bytes,
        *,
        sender: str = "",
    ) -> None:
        """The payee collects a voucher by itself, or ``sender`` sends it for the payee: the money is the payee's."""

    def unmined(self, account: str, *kinds: RequestKind) -> int:
        """What is asked for in these kinds and in no block yet, in all."""

    async def look(self, key: ChannelKey) -> Look:
        """Raises :class:`~shem.node.payment.drivers.base.ChainUnreachable`, :class:`WrongVault`."""

    async def free(self, payer: str) -> int:
        """What the payer has in the vault and has not reserved. Raises as :meth:`look` does."""

    async def start(self) -> None:
        """Go on with what was left undone."""

    async def stop(self) -> None:
        """Leave everything so that :meth:`start` can go on."""

    def problems(self) -> Sequence[DriverProblem]:
        """What keeps requests waiting now."""
