"""The driver ``channel``: platforms on which what is owed is paid by vouchers over money reserved in a vault.

It makes no payments of its own accord. An order says that a sum is due; the payment service, which knows the channels and
what their vouchers promise, decides whether to settle, to close, or that the payee has collected already, and says when
the order is done (:meth:`ChannelDriver.finish`). What goes to the chain goes through :meth:`ChannelDriver.chain`.
Accounts, endpoints and the transaction manager are those of the driver ``erc20``, which is started first.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence

import msgspec

from shem.errors import Refused
from shem.node.payment.drivers.base import (
    Balance,
    DriverProblem,
    Failure,
    PaymentOrder,
    Platform,
    Settlement,
    VerifiedTransfer,
)
from shem.node.payment.drivers.evm.channels import ChannelChain
from shem.node.payment.drivers.evm.driver import EvmDriver
from shem.node.payment.drivers.networks import CHANNEL


class ChannelDriver:
    """A :class:`~shem.node.payment.drivers.base.PaymentDriver` over the vaults of an :class:`EvmDriver`."""

    name = CHANNEL

    def __init__(self, erc20: EvmDriver) -> None:
        """Serves those networks of ``erc20`` that have a vault."""
        networks = erc20.networks
        self._erc20 = erc20
        self._served = [platform for network in networks for platform in network.channel_platforms]
        self._ways = {
            channel.platform: (erc20.vaults[network.name], plain.platform)
            for network in networks
            for channel, plain in zip(network.channel_platforms, network.platforms, strict=False)
        }
        """Platform → its vault, and the platform of the same tokens in the wallet."""
        self._ordered: list[Callable[[PaymentOrder], None]] = []
        self._settled: list[Callable[[Settlement | Failure], None]] = []

    def platforms(self) -> Sequence[Platform]:
        """One for each name of each network that has a vault."""
        return self._served

    def chain(self, platform: str) -> ChannelChain:
        """The vault behind a platform; the same object for all names of a network. Raises :class:`Refused`."""
        return self._way(platform)[0]

    async def start(self) -> None:
        """Start the vaults. The chains need not be there."""
        for vault in self._erc20.vaults.values():
            await vault.start()

    async def stop(self) -> None:
        """Everything undone is in the database."""
        for vault in self._erc20.vaults.values():
            await vault.stop()

    async def balance(self, platform: str, address: str) -> Balance:
        """What is in the wallet and what is free in the vault. Raises as ``erc20`` does, and
        :class:`~shem.node.payment.drivers.vaults.WrongVault`."""
        held, free = await self.parts(platform, address)
        return msgspec.structs.replace(held, token_units=held.token_units + free)

    async def parts(self, platform: str, address: str) -> tuple[Balance, int]:
        """(what the wallet holds, what is free in the vault). Raises as :meth:`balance` does. What moves from one to the
        other meanwhile is counted once or not at all."""
        vault, plain = self._way(platform)
        before = await vault.free(address)
        wallet = await self._erc20.balance(plain, address)
        return wallet, min(before, await vault.free(address))

    async def fund(self, platform: str, address: str) -> str:
        """See the protocol: tokens come to the wallet."""
        return await self._erc20.fund(self._way(platform)[1], address)

    def pay(self, connection: sqlite3.Connection, order: PaymentOrder) -> None:
        """See the protocol: hands the order to whoever keeps the channels."""
        self._way(order.platform)
        if not order.amount_units > 0:
            raise Refused(f"{order.amount_units} cannot be paid", code="bad_amount")
        for callback in self._ordered:
            callback(order)

    def on_order(self, callback: Callable[[PaymentOrder], None]) -> None:
        """Call back for every order, inside the transaction of :meth:`pay`; again when the same order comes again."""
        self._ordered.append(callback)

    def finish(self, outcome: Settlement | Failure) -> None:
        """An order's end, to whoever waits for it; in the transaction in which it is noted."""
        for callback in self._settled:
            callback(outcome)

    def on_settled(self, callback: Callable[[Settlement | Failure], None]) -> None:
        """See the protocol."""
        self._settled.append(callback)

    async def verify(self, platform: str, tx_hash: str, payer: str, payee: str, amount_units: int) -> VerifiedTransfer:
        """Always raises :class:`Refused`: a channel is verified by what its payee got in all, never by a transaction."""
        self._way(platform)
        raise Refused(f"on {platform} claims are verified by channel", code="channel_platform")

    def problems(self) -> Sequence[DriverProblem]:
        """A vault that is not ours; what else holds up calls, ``erc20`` tells, whose accounts they are."""
        return [problem for vault in self._erc20.vaults.values() for problem in vault.problems()]

    def _way(self, platform: str) -> tuple[ChannelChain, str]:
        way = self._ways.get(platform)
        if way is None:
            raise Refused(f"this node does not pay on {platform[:80]!r}", code="unknown_platform")
        return way
