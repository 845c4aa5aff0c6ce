"""What the payment service asks of whoever moves the money.

A driver owns one way to pay (ERC-20 transfers, nothing at all, later channels) on any number of platforms. The service
decides *what* is owed and hands a driver :class:`PaymentOrder`; the driver decides *how* and says when it is done.
The hand-over is a row: :meth:`PaymentDriver.pay` only writes the order into the caller's transaction, so that an order
exists exactly when the acceptance it pays for does. The driver sends it afterwards, survives ``kill -9`` at any point,
and calls back once, inside a transaction, when the transfer is final on its chain or can never happen.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Literal, Protocol

import msgspec

from shem.errors import NotFound, PeerFailed, Refused, ShemError


class Platform(msgspec.Struct, frozen=True):
    """One token on one network, as deals name it: ``erc20-holesky-tglm``."""

    platform: str
    driver: str
    network: str
    token: str
    """The token's symbol as people write it, e.g. ``tGLM``."""
    decimals: int = 18
    chain_id: int | None = None
    moves_money: bool = True
    """False for a platform where only what costs nothing can be "paid"."""
    gas_token: str = ""
    """Symbol of the coin that pays fees; empty where there are none."""
    finality_s: float = 0.0
    """How long it usually takes until a payment is final."""
    pay_ahead_s: float | None = None
    """What is to be paid at a date waits until so long before it, and goes together with what else waits; ``None``: it is
    ordered at once."""
    alias_of: str = ""
    """The platform whose money this is, under another network's name; empty: its own."""

    @property
    def money(self) -> str:
        """Platforms with the same answer share one balance."""
        return self.alias_of or self.platform


class Balance(msgspec.Struct, frozen=True):
    """What an address holds. ``block_time`` is ``None`` where there is no chain."""

    token_units: int
    gas_wei: int
    block_number: int
    block_time: datetime | None


class PaymentOrder(msgspec.Struct, frozen=True):
    """Pay ``amount_units`` once. ``order_id`` names it for ever: a second order with the same id is the same order."""

    order_id: str
    platform: str
    payer: str
    payee: str
    amount_units: int


class Settlement(msgspec.Struct, frozen=True):
    """The order was paid, and the chain will not take it back."""

    order_id: str
    tx_hash: str
    block_number: int
    block_hash: str
    gas_used: int
    final: Literal[True] = True


class Failure(msgspec.Struct, frozen=True):
    """The order was not paid **and never will be** under this id: its transaction is finally reverted, say.

    What may still happen (no gas, no tokens, no endpoint) is no failure but a :class:`DriverProblem`, and the driver
    goes on trying.
    """

    order_id: str
    code: str
    message: str


class VerifiedTransfer(msgspec.Struct, frozen=True):
    """What a final transaction moved from ``payer`` to ``payee``, summed over all its transfers between the two."""

    platform: str
    tx_hash: str
    payer: str
    payee: str
    amount_units: int
    block_number: int
    block_hash: str
    pot: str = ""
    """What claims are counted on, together never more than it moved: empty for the transaction itself; else something
    that goes on growing, as what the channels between two addresses have paid."""


class DriverProblem(msgspec.Struct, frozen=True):
    """Why payments wait. ``code`` is one of the API's names, of which Golem's programs know no others."""

    code: Literal["InsufficientGas", "InsufficientToken", "InvalidChainId", "CantSign", "TxStuck", "RpcError"]
    message: str
    driver: str
    network: str
    address: str = ""
    platform: str = ""
    needed: str = ""
    """How much gas or token is missing, as a decimal string; empty where it does not apply."""
    more: str = ""
    """A code of ours that says more than ``code``: ``wrong_vault``, ``wrong_token``. Empty where there is none."""


class PaymentNotFound(NotFound):
    """The chain knows no such transaction, or it did not move that much between these two."""

    default_code = "payment_not_found"


class NotFinalYet(ShemError):
    """The transaction is there, and may still vanish: ask again later."""

    default_code = "not_final_yet"


class NoFaucet(Refused):
    """Nobody gives tokens of this platform away."""

    default_code = "no_faucet"


class ChainUnreachable(PeerFailed):
    """No endpoint of the network answers usefully."""

    default_code = "chain_unreachable"


class PaymentDriver(Protocol):
    """One way to pay. Methods without ``async`` never block and may be called inside a transaction."""

    name: str
    """``erc20``, ``free``."""

    def platforms(self) -> Sequence[Platform]:
        """What this driver serves; fixed from construction."""

    async def start(self) -> None:
        """Go on with what was left undone."""

    async def stop(self) -> None:
        """Leave everything so that :meth:`start` can go on."""

    async def balance(self, platform: str, address: str) -> Balance:
        """Raises :class:`ChainUnreachable`."""

    async def fund(self, platform: str, address: str) -> str:
        """Get test tokens for one of this node's accounts; says in a sentence what was done or is under way.

        Raises :class:`NoFaucet`, :class:`ChainUnreachable`, :class:`~shem.errors.MoneyShort` for want of coins for fees.
        """

    def pay(self, connection: sqlite3.Connection, order: PaymentOrder) -> None:
        """Record the intent in the caller's open transaction; send after it commits.

        Idempotent by ``order_id``. Raises :class:`~shem.errors.Refused` for an order that can never be paid
        (unknown platform, wrong payer, a price on the free platform).
        """

    def on_settled(self, callback: Callable[[Settlement | Failure], None]) -> None:
        """Call back for every order at least once, inside the transaction in which the driver notes its end."""

    async def verify(self, platform: str, tx_hash: str, payer: str, payee: str, amount_units: int) -> VerifiedTransfer:
        """Our own look at the chain: did ``tx_hash`` finally move at least ``amount_units``?

        Raises :class:`PaymentNotFound` (it did not), :class:`NotFinalYet`, :class:`ChainUnreachable`.
        Which claims a transfer may cover is the caller's business.
        """

    def problems(self) -> Sequence[DriverProblem]:
        """What keeps orders waiting now; empty when all is well."""
