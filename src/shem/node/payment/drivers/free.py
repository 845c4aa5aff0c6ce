"""The driver for what costs nothing: no chain, no token, no waiting.

On its one platform, ``free``, only sums of zero can be agreed, billed and accepted; they are settled the moment they are
accepted. An order of zero settles inside the transaction that makes it, any other is refused.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence

from shem.errors import Refused
from shem.node.payment.drivers.base import (
    Balance,
    DriverProblem,
    Failure,
    NoFaucet,
    PaymentNotFound,
    PaymentOrder,
    Platform,
    Settlement,
    VerifiedTransfer,
)

PLATFORM = Platform(platform="free", driver="free", network="free", token="free", moves_money=False)  # noqa: S106
NO_TRANSACTION = ""


class FreeDriver:
    """A :class:`~shem.node.payment.drivers.base.PaymentDriver` that moves nothing."""

    name = "free"

    def __init__(self) -> None:
        self._callback: Callable[[Settlement | Failure], None] = lambda outcome: None

    def platforms(self) -> Sequence[Platform]:
        return [PLATFORM]

    async def start(self) -> None:
        """Nothing is ever left undone."""

    async def stop(self) -> None:
        """Nothing runs."""

    async def balance(self, platform: str, address: str) -> Balance:
        _check(platform)
        return Balance(token_units=0, gas_wei=0, block_number=0, block_time=None)

    async def fund(self, platform: str, address: str) -> str:
        _check(platform)
        raise NoFaucet("nothing is ever paid on the free platform", hint="name the network of another one")

    def pay(self, connection: sqlite3.Connection, order: PaymentOrder) -> None:
        _check(order.platform)
        if order.amount_units:
            raise Refused("the free platform moves no money", code="platform_is_free")
        self._callback(
            Settlement(order_id=order.order_id, tx_hash=NO_TRANSACTION, block_number=0, block_hash="", gas_used=0)
        )

    def on_settled(self, callback: Callable[[Settlement | Failure], None]) -> None:
        self._callback = callback

    async def verify(self, platform: str, tx_hash: str, payer: str, payee: str, amount_units: int) -> VerifiedTransfer:
        _check(platform)
        if amount_units or tx_hash != NO_TRANSACTION:
            raise PaymentNotFound("nothing is ever paid on the free platform")
        return VerifiedTransfer(platform, tx_hash, payer, payee, 0, 0, "")

    def problems(self) -> Sequence[DriverProblem]:
        return []


def _check(platform: str) -> None:
    if platform != PLATFORM.platform:
        raise Refused(f"the free driver does not serve {platform[:60]!r}", code="unknown_platform")
