"""Our additions to the payment API, under ``/shem-api/v1``: money at a glance, channels, transactions, and what an
owner does with its own money. Amounts are exact decimal strings.

What is asked for is written down when the call returns; ``GET`` of its id with ``unless=<the state you know>`` is a long
poll that answers when the state is another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from aiohttp import web

from shem.node.payment.drivers.base import Platform
from shem.node.payment.drivers.evm.history import MAX_DEEDS, Deed
from shem.node.payment.exits import Exit
from shem.node.payment.service import Payments
from shem.node.payment.status import platform_status
from shem.node.payment.store import Transfer
from shem.node.rest.admin import owner_only
from shem.node.rest.server import caller, names, query_limit, query_seconds, query_time, read_json, respond
from shem.terms.amounts import DECIMALS, format_amount
from shem.wire import payment as wire

OURS = "/shem-api/v1"
MAX_EVENTS = 1000
DEFAULT_EVENTS = 100

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def routes(payments: Payments) -> list[web.RouteDef]:
    """For :func:`shem.node.rest.payment.routes`."""
    door = _Door(payments)
    table: list[tuple[str, str, Handler]] = [
        ("GET", "settlements", door.settlements),
        ("GET", "payment/status", door.status),
        ("GET", "payment/channels", door.channels),
        ("GET", "payment/received", door.received),
        ("GET", "payment/transactions", door.transactions),
        ("GET", "payment/transactions/{id}", door.transaction),
        ("POST", "payment/transactions/{id}/retry", door.retry),
        ("POST", "payment/deposit", door.deposit),
        ("POST", "payment/withdraw", door.withdraw),
        ("POST", "payment/exit", door.exit),
        ("GET", "payment/exits/{id}", door.exit_status),
        ("POST", "payment/vault", door.vault),
    ]
    return [web.route(method, f"{OURS}/{path}", handler) for method, path, handler in table]


class _Door:
    def __init__(self, payments: Payments) -> None:
        self._payments = payments
        self._treasury = payments.treasury

    # --- looking ---

    async def status(self, request: web.Request) -> web.Response:
        payments = self._payments
        payments.allocations.release_expired()
        found = await platform_status(
            payments.books, payments.allocations, self._treasury, caller(request), payments.allocations.platforms()
        )
        return respond(found)

    async def channels(self, request: web.Request) -> web.Response:
        return respond(
            [
                wire.ChannelStatus(
                    channel_id=channel.channel_id,
                    platform=channel.platform,
                    role=channel.role,
                    peer=channel.peer_id,
                    payer=channel.payer,
                    payee=channel.payee,
                    signer=channel.signer,
                    nonce=channel.nonce,
                    vault=channel.vault,
                    reserved=format_amount(channel.reserved),
                    claimed=format_amount(channel.claimed),
                    signed=format_amount(channel.signed),
                    valid_until=_moment(channel.valid_until),
                    state=channel.state,
                    opened_tx=channel.opened_tx,
                    agreements=agreements,
                )
                for channel, agreements in self._payments.channels.listed(caller(request))
            ]
        )

    async def settlements(self, request: web.Request) -> web.Response:
        transfers = await self._payments.transfers(
            caller(request),
            after=query_time(request, "afterTimestamp"),
            limit=query_limit(request, "maxEvents", DEFAULT_EVENTS, most=MAX_EVENTS),
            session=request.query.get("appSessionId") or None,
            timeout_s=query_seconds(request, default=0.0),
        )
        return respond([self._settlement(transfer) for transfer in transfers])

    async def received(self, request: web.Request) -> web.Response:
        limit = query_limit(request, "limit", DEFAULT_EVENTS, most=MAX_EVENTS)
        found = self._payments.books.store.received(caller(request), limit)
        return respond([self._settlement(transfer) for transfer in found])

    def _settlement(self, transfer: Transfer) -> wire.Settlement:
        platform = self._payments.books.platforms.get(transfer.platform)
        amounts: dict[str, int] = {}
        for part in transfer.parts:
            amounts[part.agreement_id] = amounts.get(part.agreement_id, 0) + int(part.amount)
        return wire.Settlement(
            payment_id=transfer.payment_id,
            platform=transfer.platform,
            payer=transfer.payer,
            payee=transfer.payee,
            amount=format_amount(transfer.amount),
            tx_hash=transfer.tx_hash,
            block_number=transfer.block_number,
            block_hash=transfer.block_hash,
            timestamp=transfer.at,
            agreement_ids=list(amounts),
            role="Requestor" if transfer.role == "Requestor" else "Provider",
            chain_id=None if platform is None else platform.chain_id,
            amounts={agreement: format_amount(amount) for agreement, amount in amounts.items()},
        )

    async def transactions(self, request: web.Request) -> web.Response:
        found = await self._treasury.transactions(
            caller(request),
            after=query_time(request, "after"),
            limit=query_limit(request, "limit", DEFAULT_EVENTS, most=MAX_DEEDS),
            timeout_s=query_seconds(request, default=0.0),
        )
        return respond([_transaction(*pair) for pair in found])

    async def transaction(self, request: web.Request) -> web.Response:
        found = await self._treasury.transaction(
            caller(request),
            names(request)["id"],
            unless=request.query.get("unless") or None,
            timeout_s=query_seconds(request, default=0.0),
        )
        return respond(_transaction(*found))

    async def exit_status(self, request: web.Request) -> web.Response:
        found = await self._treasury.exit_state(
            caller(request),
            names(request)["id"],
            unless=request.query.get("unless") or None,
            timeout_s=query_seconds(request, default=0.0),
        )
        return respond(self._exit(found))

    # --- moving ---

    async def retry(self, request: web.Request) -> web.Response:
        await self._treasury.retry(caller(request), names(request)["id"])
        return web.Response(status=204)

    async def deposit(self, request: web.Request) -> web.Response:
        body = await read_json(request, wire.MoneyMove)
        platform = self._treasury.platform(body.platform, body.network)
        asked = await self._treasury.deposit(caller(request), platform, body.amount)
        return respond(wire.Asked(id=asked, platform=platform.platform), 201)

    async def withdraw(self, request: web.Request) -> web.Response:
        body = await read_json(request, wire.MoneyMove)
        platform = self._treasury.platform(body.platform, body.network)
        _owner_to_others(request, body.receiver)
        asked = await self._treasury.withdraw(caller(request), platform, body.amount, body.receiver)
        return respond(wire.Asked(id=asked, platform=platform.platform), 201)

    async def exit(self, request: web.Request) -> web.Response:
        body = await read_json(request, wire.ExitOrder)
        platform = self._treasury.platform(body.platform, body.network)
        _owner_to_others(request, body.receiver)
        begun = await self._treasury.exit(caller(request), platform, body.receiver, force=body.force)
        return respond(wire.Asked(id=begun.exit_id, platform=begun.platform), 201)

    async def vault(self, request: web.Request) -> web.Response:
        owner_only(request)
        body = await read_json(request, wire.VaultOrder)
        asked = await self._treasury.deploy_vault(caller(request), body.platform, body.network)
        return respond(wire.VaultAsked(id=asked.id, platform=asked.platform, vault=asked.vault), 201)

    def _exit(self, found: Exit) -> wire.ExitStatus:
        exits = self._treasury.exits
        assert exits is not None
        closing, collecting = exits.under_way(found) if found.state == "open" else (0, 0)
        decimals = self._decimals(found.platform)
        return wire.ExitStatus(
            id=found.exit_id,
            platform=found.platform,
            receiver=found.receiver,
            state=found.state,
            closing=closing,
            collecting=collecting,
            withdrawal=found.withdrawal or None,
            withdrawn=format_amount(found.withdrawn, decimals),
            locked=[
                wire.LockedMoney(
                    channel_id=locked.channel.channel_id,
                    peer=locked.channel.peer_id,
                    amount=format_amount(locked.amount, decimals),
                    until=_moment(locked.channel.valid_until),
                )
                for locked in exits.locked(found.owner, found.platform)
            ],
            detail=found.detail,
        )

    def _decimals(self, platform: str) -> int:
        known = self._payments.books.platforms.get(platform)
        return DECIMALS if known is None else known.decimals


def _owner_to_others(request: web.Request, receiver: str | None) -> None:
    """Programs have keys so that they can pay for work. Where else the money goes is the owner's word alone."""
    if receiver is not None and receiver.lower() != caller(request):
        owner_only(request)


def _transaction(deed: Deed, platform: Platform | None) -> wire.Transaction:
    return wire.Transaction(
        id=deed.id,
        kind=deed.kind,
        platform=deed.platform,
        state=deed.state,
        amount=format_amount(deed.amount, DECIMALS if platform is None else platform.decimals),
        tx_hash=deed.tx_hash or None,
        block=deed.block_number,
        gas_used=deed.gas_used,
        at=None if deed.at is None else datetime.fromtimestamp(deed.at, UTC),
        entries=deed.entries,
        detail=deed.detail,
        receiver=deed.receiver or None,
    )


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
