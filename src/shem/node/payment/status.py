"""An owner's money at a glance, one platform after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from shem.errors import ShemError
from shem.node.payment.allocations import Allocations
from shem.node.payment.books import Books
from shem.node.payment.drivers.base import Balance, Platform
from shem.node.payment.ledger import Account
from shem.terms.amounts import format_amount
from shem.wire import payment as wire

BALANCE_TIMEOUT_S = 10.0
GAS_DECIMALS = 18


async def platform_status(
    books: Books, allocations: Allocations, owner: str, platforms: Iterable[Platform]
) -> list[wire.PlatformStatus]:
    """Balances are asked of the chains at the same time; one that does not answer gives ``error`` in its place."""
    asked = list(platforms)
    balances = await asyncio.gather(*(_balance(books, platform, owner) for platform in asked))
    return [_status(books, allocations, owner, *pair) for pair in zip(asked, balances, strict=True)]


async def _balance(books: Books, platform: Platform, owner: str) -> Balance | str:
    try:
        async with asyncio.timeout(BALANCE_TIMEOUT_S):
            return await books.drivers[platform.platform].balance(platform.platform, owner)
    except TimeoutError:
        return "the chain does not answer"
    except ShemError as error:
        return error.message


def _status(
    books: Books, allocations: Allocations, owner: str, platform: Platform, balance: Balance | str
) -> wire.PlatformStatus:
    accounts = books.store.accounts(owner, platform.platform)
    status = wire.PlatformStatus(
        platform=platform.platform,
        driver=platform.driver,
        network=platform.network,
        token=platform.token,
        address=owner,
        reserved=format_amount(allocations.reserved(owner, platform.platform), platform.decimals),
        incoming=_flow([account for account in accounts if account.role == "Provider"]),
        outgoing=_flow([account for account in accounts if account.role == "Requestor"]),
    )
    if isinstance(balance, str):
        status.error = balance
        return status
    status.amount = format_amount(balance.token_units, platform.decimals)
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
