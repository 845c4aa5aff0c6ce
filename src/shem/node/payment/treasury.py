"""What an owner does with its own money: into a vault, out of it, and the record of what its accounts did on chain.

Everything asked for is a row when the call returns, and goes to the chain afterwards, exactly once. What cannot be done is
refused before it is written, by codes that stay: ``money_too_much``, ``money_promised``, ``money_no_gas``,
``nothing_there``, ``no_vault``, ``wrong_vault``, ``work_running``, ``exit_under_way``, ``identity_locked``; and where a vault is
to be put on a chain ``vault_there``, ``no_deployer``, ``vault_refused``.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

import msgspec

from shem.errors import KeyLocked, MoneyShort, NotFound, Refused
from shem.node.identity.signing import mistyped
from shem.node.payment.allocations import Allocations, BadPlatform
from shem.node.payment.books import Books
from shem.node.payment.channels import Channels
from shem.node.payment.drivers.base import Balance, PaymentDriver, Platform
from shem.node.payment.drivers.channel import ChannelDriver
from shem.node.payment.drivers.evm.driver import EvmDriver
from shem.node.payment.drivers.evm.history import Deed
from shem.node.payment.drivers.vaults import VaultChain
from shem.node.payment.exits import EXITED, Exit, Exits, ExitUnderWay, NothingThere
from shem.terms.amounts import BadAmount, format_amount, parse_amount
from shem.terms.ids import parse_node_id

T = TypeVar("T")

ALL = "all"
MOVED = "transactions"
"""The pulse of everybody's transactions."""


class NoVault(Refused):
    """Nobody pays by channel on this network, as far as this node is told."""

    default_code = "no_vault"


class TooMuch(MoneyShort):
    """There is less than that."""

    default_code = "money_too_much"


class Promised(MoneyShort):
    """There is that much, and others were promised it."""

    default_code = "money_promised"


class NoGas(MoneyShort):
    """The account has no coins for fees."""

    default_code = "money_no_gas"


class BadReceiver(Refused):
    """Money sent there would be lost."""

    default_code = "bad_receiver"


class NoTransaction(NotFound):
    """The caller's accounts did and mean to do no such thing."""

    default_code = "transaction_not_found"


class Holdings(msgspec.Struct, frozen=True):
    """An owner's money around one vault, in base units."""

    wallet: Balance
    free: int
    reserved: int
    """In its channels, as payer: not paid out yet."""
    signed: int
    """Of that, what its vouchers promise."""
    to_collect: int
    """What vouchers of others are worth to it, and not paid out yet."""
    channels: int


class VaultCall(msgspec.Struct, frozen=True):
    """What puts a vault on a chain."""

    id: str
    platform: str
    """Of transfers: whose account pays the fee."""
    vault: str
    """Where it will stand."""


class Treasury:
    """One per node. Methods are for the node's own accounts."""

    def __init__(
        self, books: Books, allocations: Allocations, channels: Channels, drivers: Sequence[PaymentDriver]
    ) -> None:
        self._books = books
        self._allocations = allocations
        self._channels = channels
        self._vaults = next((driver for driver in drivers if isinstance(driver, ChannelDriver)), None)
        self._evm = next((driver for driver in drivers if isinstance(driver, EvmDriver)), None)
        if self._evm is not None:
            self._evm.on_moved(lambda: books.pulses.beat(("", MOVED)))

    # --- where ---

    def platform(self, platform: str | None, network: str | None) -> Platform:
        """The channel platform that is meant: by any platform of its network, by its network, or the first there is.

        Raises :class:`BadPlatform`, :class:`NoVault`.
        """
        meant = self._meant(platform, network)
        served = self._allocations.platforms()
        by_channel = [p for p in served if p.platform in self._channels.platforms]
        same = [p for p in by_channel if (p.network, p.token) == (meant.network, meant.token)]
        if not same and platform is network is None:
            same = by_channel
        if not same:
            raise NoVault(
                f"there is no vault on {meant.network}: nobody is paid by channel there",
                hint=f"name another network; or put the standard vault there (shem payment deploy-vault --network "
                f'{meant.network}) and set networks.{meant.network}.vault = "standard" in the configuration',
            )
        return same[0]

    def _meant(self, platform: str | None, network: str | None) -> Platform:
        """By its name, any of its network, or the first there is. Raises :class:`BadPlatform`."""
        if platform is not None:
            meant = self._allocations.platform(platform)
            if network not in (None, meant.network):
                raise BadPlatform(f"{platform[:60]} is not on {str(network)[:60]}")
        elif network is not None:
            served = self._allocations.platforms()
            found = next((p for p in served if p.network == network and p.moves_money), None)
            if found is None:
                known = ", ".join(dict.fromkeys(p.network for p in served if p.moves_money)) or "none"
                raise BadPlatform(f"this node serves no network {network[:60]!r} (it has: {known})")
            meant = found
        else:
            meant = self._allocations.platform(None)
        return meant

    def vault_of(self, platform: Platform) -> str | None:
        """The address of the vault that a platform pays from; ``None`` for one that does not."""
        chain = self._channels.shared.chains.get(platform.platform)
        return None if chain is None else chain.vault.address

    async def holdings(self, owner: str, platform: str) -> Holdings:
        """As of the last block. Raises :class:`~shem.node.payment.drivers.base.ChainUnreachable`,
        :class:`~shem.node.payment.drivers.vaults.WrongVault`."""
        assert self._vaults is not None
        wallet, free = await self._vaults.parts(platform, owner)
        chain = self._chain(platform)
        live = [
            c
            for c in self._channels.shared.store.live_channels()
            if c.owner == owner and self._channels.shared.chains.get(c.platform) is chain
        ]
        ours = [c for c in live if c.role == "Requestor"]
        return Holdings(
            wallet=wallet,
            free=free,
            reserved=sum(c.reserved - c.claimed for c in ours),
            signed=sum(max(c.signed - c.claimed, 0) for c in ours),
            to_collect=sum(max(c.signed - c.claimed, 0) for c in live if c.role == "Provider"),
            channels=len(ours),
        )

    # --- the vault itself ---

    async def deploy_vault(self, owner: str, platform: str | None, network: str | None) -> VaultCall:
        """Put the standard vault on a network, which need not have one in the configuration; once, however often it is
        asked. Errors as the module says."""
        meant = self._meant(platform, network)
        evm = self._evm
        chain = None if evm is None else next((n for n in evm.networks if n.chain_id == meant.chain_id), None)
        if evm is None or chain is None:
            raise BadPlatform(f"{meant.platform} is on no chain", hint="configure a network, or name another")
        place = evm.deployments[chain.name]
        asked = place.under_way(owner)
        if asked is None:
            await place.check(owner)
            self._check_signer(await evm.balance(chain.platform.platform, owner), chain.platform, owner)
            with self._books.write():
                asked = place.ask(self._books.db.connection, owner)
        return VaultCall(asked, chain.platform.platform, place.vault.address)

    # --- moving ---

    async def deposit(self, owner: str, platform: Platform, amount: str) -> str:
        """From the wallet into the vault; the id of what was asked. ``amount``: a decimal string, or ``all`` that the
        wallet can spare. Errors as the module says."""
        units = _units(amount, platform)
        self._refuse_while_leaving(owner, platform)
        held = await self.holdings(owner, platform.platform)
        self._refuse_while_leaving(owner, platform)
        chain = self._chain(platform.platform)
        _, promised = self._allocations.promised(owner, platform.platform)
        with self._books.write():
            there = held.wallet.token_units - chain.unmined(owner, "deposit")
            units = self._fitting(units, there, there - promised, "the wallet", platform)
            self._check_signer(held.wallet, platform, owner)
            request_id = str(uuid.uuid4())
            chain.deposit(self._books.db.connection, request_id, owner, units)
        return request_id

    def _refuse_while_leaving(self, owner: str, platform: Platform) -> None:
        leaving = self._exits().open_one(owner, platform.platform)
        if leaving is not None:
            raise ExitUnderWay(
                "an exit from this vault is under way: it would take this out again",
                hint="wait until it is over",
                id=leaving.exit_id,
            )

    async def withdraw(self, owner: str, platform: Platform, amount: str, receiver: str | None) -> str:
        """What is free in the vault, to the wallet or somebody else; the id of what was asked."""
        units = _units(amount, platform)
        to = self._receiver(owner, platform, receiver)
        held = await self.holdings(owner, platform.platform)
        chain = self._chain(platform.platform)
        with self._books.write():
            there = held.free - chain.unmined(owner, "reserve", "extend", "withdraw")
            spare = there
            if to != owner:  # it is not ours any more then
                promised = sum(self._allocations.promised(owner, platform.platform))
                spare = held.wallet.token_units + held.free + held.reserved - promised
            units = self._fitting(units, there, spare, "the vault", platform)
            self._check_signer(held.wallet, platform, owner)
            request_id = str(uuid.uuid4())
            chain.withdraw(self._books.db.connection, request_id, owner, to, units)
        return request_id

    async def exit(self, owner: str, platform: Platform, receiver: str | None, *, force: bool) -> Exit:
        """See :mod:`~shem.node.payment.exits`."""
        to = self._receiver(owner, platform, receiver)
        held = await self.holdings(owner, platform.platform)
        exits = self._exits()
        if held.free <= 0 and not exits.anything(owner, platform.platform):
            raise NothingThere(f"nothing of yours is in the vault on {platform.network}")
        self._check_signer(held.wallet, platform, owner)
        return exits.begin(owner, platform.platform, to, force=force)

    def _fitting(self, asked: int | None, there: int, spare: int, where: str, platform: Platform) -> int:
        """``asked``, or all that can be spared. Raises :class:`TooMuch`, :class:`Promised`, :class:`NothingThere`."""
        there = max(there, 0)
        spare = min(max(spare, 0), there)
        if asked is None:
            if spare == 0:
                more = f"; {_text(there, platform)} are promised to others" if there else ""
                raise NothingThere(f"{where} has no {platform.token} to spare{more}")
            return spare
        if asked > there:
            raise TooMuch(
                f"{where} holds {_text(there, platform)}, not {_text(asked, platform)}",
                hint="ask for less, or for 'all'",
                available=format_amount(spare, platform.decimals),
            )
        if asked > spare:
            raise Promised(
                f"{where} holds {_text(there, platform)}, of which {_text(there - spare, platform)} are promised "
                f"to others: what allocations hold, or what is owed",
                hint="ask for less, or for 'all' that is left; or release allocations",
                available=format_amount(spare, platform.decimals),
            )
        return asked

    def _check_signer(self, wallet: Balance, platform: Platform, owner: str) -> None:
        """Raises :class:`~shem.errors.KeyLocked`, :class:`NoGas`."""
        if self._books.signer.locked:
            raise KeyLocked(f"the key of {owner} is locked: it moves no money", hint="unlock it: shem identity unlock")
        if wallet.gas_wei <= 0:
            raise NoGas(
                f"{owner} has no {platform.gas_token} on {platform.network} for the fee of a transaction",
                hint=f"send it some {platform.gas_token}; on a test network: shem payment fund",
            )

    def _receiver(self, owner: str, platform: Platform, receiver: str | None) -> str:
        if receiver is None:
            return owner
        to = _address(receiver)
        chain = self._chain(platform.platform)
        if to in (chain.vault.address, self._token(platform)) or int(to, 16) == 0:
            raise BadReceiver(f"{receiver} is a contract that could not give it back, or nobody")
        return to

    def _token(self, platform: Platform) -> str:
        networks = self._evm.networks if self._evm is not None else ()
        return next((n.token for n in networks if n.chain_id == platform.chain_id), "")

    def _chain(self, platform: str) -> VaultChain:
        return self._channels.shared.chains[platform]

    def _exits(self) -> Exits:
        assert self._channels.exits is not None
        return self._channels.exits

    # --- looking ---

    async def transactions(
        self, owner: str, *, after: datetime | None, limit: int, timeout_s: float
    ) -> list[tuple[Deed, Platform | None]]:
        """What the owner's account did on its chains or means to, the newest first, asked for strictly after ``after``;
        waits up to ``timeout_s`` for the first."""
        evm = self._evm
        if evm is None:
            return []
        since = None if after is None else after.timestamp()

        def read() -> list[Deed] | None:
            found = evm.history(owner, limit)
            return [deed for deed in found if since is None or deed.at is None or deed.at > since] or None

        deeds = await self._books.pulses.wait_for(("", MOVED), read, timeout_s) or []
        return [(deed, self._books.platforms.get(deed.platform)) for deed in deeds]

    async def transaction(
        self, owner: str, name: str, *, unless: str | None, timeout_s: float
    ) -> tuple[Deed, Platform | None]:
        """One of them, by its id or that of what was asked; waits until its state is another than ``unless``.

        Raises :class:`NoTransaction`.
        """

        def look() -> Deed:
            found = None if self._evm is None else self._evm.deed(owner, name)
            if found is None:
                raise NoTransaction(f"there is no transaction {name[:60]!r} of yours")
            return found

        deed = await self._changed(("", MOVED), look, lambda found: found.state != unless, timeout_s)
        return deed, self._books.platforms.get(deed.platform)

    async def retry(self, owner: str, name: str) -> None:
        """Do anew what a transaction was for whose place another program's took. Raises :class:`NoTransaction`,
        ``not_stuck`` while it may still be mined, ``ChainUnreachable``."""
        if self._evm is None or self._evm.deed(owner, name) is None:
            raise NoTransaction(f"there is no transaction {name[:60]!r} of yours")
        await self._evm.retry(owner, name)

    async def exit_state(self, owner: str, exit_id: str, *, unless: str | None, timeout_s: float) -> Exit:
        """An exit; waits until its state is another than ``unless``. Raises :class:`NoTransaction`."""

        def look() -> Exit:
            found = None if self._channels.exits is None else self._channels.exits.get(owner, exit_id)
            if found is None:
                raise NoTransaction(f"there is no exit {exit_id[:60]!r} of yours")
            return found

        return await self._changed((owner, EXITED), look, lambda found: found.state != unless, timeout_s)

    async def _changed(
        self, key: tuple[str, str], look: Callable[[], T], changed: Callable[[T], bool], timeout_s: float
    ) -> T:
        def read() -> T | None:
            found = look()
            return found if changed(found) else None

        return await self._books.pulses.wait_for(key, read, timeout_s) or look()

    @property
    def exits(self) -> Exits | None:
        """For what is left in channels; ``None`` without vaults."""
        return self._channels.exits


def _units(amount: str, platform: Platform) -> int | None:
    """``None`` for all. Raises :class:`~shem.terms.amounts.BadAmount`."""
    if amount == ALL:
        return None
    if "e" in amount.lower():  # programs write 1e-7 for what work costs; a person who writes 1e3 may mean anything
        raise BadAmount(f'{amount[:60]!r} is not an amount; write it like "1.5"')
    units = parse_amount(amount, platform.decimals)
    if units == 0:
        raise Refused("nothing cannot be moved", code="bad_amount")
    return units


def _text(units: int, platform: Platform) -> str:
    return f"{format_amount(units, platform.decimals)} {platform.token}"


def _address(text: str) -> str:
    address = parse_node_id(text)
    if mistyped(text):
        raise BadReceiver(
            f"{text} is not right: its capital letters are a checksum, and it fails",
            hint="copy the address again; or write it in small letters, if you are sure",
        )
    return address
