"""An owner's money at a glance, one platform after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import msgspec

from shem.errors import ShemError
from shem.node.payment.allocations import Allocations
from shem.node.payment.books import Books
from shem.node.payment.drivers.base import Balance, ChainUnreachable, Platform
from shem.node.payment.ledger import Account
from shem.node.payment.treasury import Holdings, Treasury
from shem.terms.amounts import format_amount
from shem.wire import payment as wire

BALANCE_TIMEOUT_S = 10.0
GAS_DECIMALS = 18


class _Held(msgspec.Struct, frozen=True):
    """What a chain says. ``around`` where the platform pays from a vault."""

    balance: Balance
    around: Holdings | None = None


async def platform_status(
    books: Books, allocations: Allocations, treasury: Treasury, owner: str, platforms: Iterable[Platform]
) -> list[wire.PlatformStatus]:
    """Balances are asked of the chains at the same time; one that does not answer gives ``error`` in its place."""
    asked = list(platforms)
    found = await asyncio.gather(*(_held(books, treasury, platform, owner) for platform in asked))
    return [_status(books, allocations, treasury, owner, *pair) for pair in zip(asked, found, strict=True)]


async def _held(books: Books, treasury: Treasury, platform: Platform, owner: str) -> _Held | ShemError:
    try:
        async with asyncio.timeout(BALANCE_TIMEOUT_S):
            if treasury.vault_of(platform) is None:
                return _Held(await books.drivers[platform.platform].balance(platform.platform, owner))
            around = await treasury.holdings(owner, platform.platform)
            both = around.wallet.token_units + around.free
            return _Held(msgspec.structs.replace(around.wallet, token_units=both), around)
    except TimeoutError:
        return ChainUnreachable("the chain does not answer")
    except ShemError as error:
        return error


def _status(
    books: Books, allocations: Allocations, treasury: Treasury, owner: str, platform: Platform, held: _Held | ShemError
) -> wire.PlatformStatus:
    accounts = books.store.accounts(owner, platform.platform)
    ours = [account for account in accounts if account.role == "Requestor"]
    accepted, owed = (
        sum(account.accepted for account in ours),
        sum(account.accepted - account.settled for account in ours),
    )
    if isinstance(held, _Held) and held.around is not None:
        owed = min(owed, held.around.signed)  # a channel may have paid what no order asks for yet
    decimals = platform.decimals
    status = wire.PlatformStatus(
        platform=platform.platform,
        driver=platform.driver,
        network=platform.network,
        token=platform.token,
        address=owner,
        reserved=format_amount(allocations.reserved(owner, platform.platform), decimals),
        incoming=_flow([account for account in accounts if account.role == "Provider"]),
        outgoing=_flow(ours),
        allocated=format_amount(allocations.allocated(owner, platform.platform), decimals),
        owed=format_amount(owed, decimals),
        paid=format_amount(accepted - owed, decimals),
        alias_of=platform.alias_of or None,
    )
    if isinstance(held, ShemError):
        status.error, status.error_code, status.error_hint = held.message, held.code, held.hint or None
        return status
    balance, around = held.balance, held.around
    status.amount = format_amount(balance.token_units, decimals)
    if around is not None:
        status.wallet = format_amount(around.wallet.token_units, decimals)
        status.vault = wire.VaultStatus(
            address=treasury.vault_of(platform) or "",
            free=format_amount(around.free, decimals),
            reserved=format_amount(around.reserved, decimals),
            signed=format_amount(around.signed, decimals),
            to_collect=format_amount(around.to_collect, decimals),
            channels=around.channels,
        )
    elif platform.moves_money:
        status.wallet = status.amount
    if platform.gas_token:
        gas = format_amount(balance.gas_wei, GAS_DECIMALS)
        status.gas = wire.GasStatus(balance=gas, currency_short_name=platform.gas_token)
    if balance.block_time is not None:
        status.block_number, status.block_datetime = balance.block_number, balance.block_time
    return status


def _flow(accounts: list[Account]) -> wire.FlowStatus:
    return wire.FlowStatus(
        requested=_sum(accounts, lambda account: account.requested),
        accepted=_sum(accounts, lambda account: account.accepted),
        confirmed=_sum(accounts, lambda account: account.settled),
    )


def _sum(accounts: list[Account], read: Callable[[Account], int]) -> wire.AgreementSum:
    amounts = [amount for account in accounts if (amount := read(account))]
    return wire.AgreementSum(agreements_count=len(amounts), total_amount=format_amount(sum(amounts)))
