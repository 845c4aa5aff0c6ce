"""``yagna payment``: the money, in the shapes that Golem's tools parse."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shem.cli.owner import ask, merged_accounts, release_allocations
from shem.cli.yagna_output import speech
from shem.errors import NotFound, NotImplementedHere, Refused

if TYPE_CHECKING:
    from shem.client.http import ApiClient
    from shem.wire.payment import Account, DebitNote, Invoice, PlatformStatus

payment = typer.Typer(help="The money: what is there, what is owed, what was paid.", no_args_is_help=True)
driver_app = typer.Typer(help="Who moves it.", no_args_is_help=True)
invoice_app = typer.Typer(help="Who was billed.", no_args_is_help=True)
process_app = typer.Typer(help="When payments are sent.", no_args_is_help=True)
payment.add_typer(driver_app, name="driver")
payment.add_typer(invoice_app, name="invoice")
payment.add_typer(process_app, name="process")
APPS = {"payment": payment}

DEFAULT_NETWORK = "holesky"
"""What the original means by no network, and Golem's clients too. A node that does not serve it has a default of its own."""
DRIVER = "erc20"
STATES = ("issued", "received", "accepted", "rejected", "failed", "settled", "cancelled")
MAX_PAGES = 1000

NetworkOption = Annotated[str | None, typer.Option("--network", help="Default: holesky, where the node serves it.")]
DriverOption = Annotated[str | None, typer.Option("--driver", help="Default: erc20.")]
AccountOption = Annotated[str | None, typer.Option("--account", envvar="YA_ACCOUNT", help="The node has one.")]
LastOption = Annotated[str | None, typer.Option("--last", help="Only the last such as 1d or 2h.")]


async def chosen(http: ApiClient, network: str | None, driver: str | None, account: str | None) -> Account:
    """The platform that is meant. Raises :class:`~shem.errors.NotFound` for one that the node does not serve."""
    accounts = await merged_accounts(http)
    if not accounts:
        raise NotFound("this node serves no payment platform", hint="configure a network")
    if account is not None and account.lower() != accounts[0].address:
        raise NotFound(f"this node has no account {account!r}", hint=f"its only one is {accounts[0].address}")
    of_driver = [a for a in accounts if driver in (None, a.driver)]
    if network is None:
        of_default = [a for a in of_driver if a.network == DEFAULT_NETWORK]
        of_driver = of_default or of_driver
    found = next((a for a in of_driver if network in (None, a.network)), None)
    if found is None:
        served = ", ".join(sorted({f"{a.driver}/{a.network}" for a in accounts}))
        raise NotFound(
            f"this node does not serve network {network or 'any'!r} with driver {driver or 'any'!r}",
            hint=f"it serves {served}",
        )
    return found


# --- what there is ---


@payment.command("accounts")
def accounts(ctx: typer.Context) -> None:
    """Where the node pays and is paid."""
    say = speech(ctx)
    found = ask(say.place, merged_accounts)
    columns = ("address", "driver", "network", "token", "send", "recv")
    rows = [
        {
            "address": a.address,
            "driver": a.driver,
            "network": a.network,
            "token": a.token,
            "send": a.send,
            "recv": a.receive,
        }
        for a in found
    ]
    value = [
        {
            "platform": a.platform,
            "address": a.address,
            "driver": a.driver,
            "network": a.network,
            "token": a.token,
            "send": a.send,
            "receive": a.receive,
        }
        for a in found
    ]
    say.table(columns, rows, value=value)


@payment.command("status")
def status(
    ctx: typer.Context,
    network: NetworkOption = None,
    driver: DriverOption = None,
    account: AccountOption = None,
    precise: Annotated[bool, typer.Option(help="All digits.")] = False,
    last: Annotated[str | None, typer.Option("--last", hidden=True)] = None,
) -> None:
    """The account's balance, and what came in and went out."""
    if last is not None:
        raise NotImplementedHere("this node sums payments up over all time", hint="yagna payment invoice status --last")
    say = speech(ctx)

    async def question(http: ApiClient) -> PlatformStatus:
        from shem.client.payment import PaymentApi

        platform = (await chosen(http, network, driver, account)).platform
        return next(one for one in await PaymentApi(http).status() if one.platform == platform)

    found = ask(say.place, question)
    if found.error is not None:
        raise Refused(f"Error getting balance for account: {found.address} - {found.error}", code="no_balance")
    value = _status_value(found)
    row = {
        "platform": found.platform,
        "total amount": _amount(found.amount, found.token, precise),
        "reserved": _amount(found.reserved, found.token, precise),
        "amount": "accepted\nconfirmed\nrequested",
        "incoming": _flow(value["incoming"], found.token, precise),
        "outgoing": _flow(value["outgoing"], found.token, precise),
        "gas": "" if found.gas is None else _amount(found.gas.balance, found.gas.currency_short_name, precise),
    }
    title = f"\nStatus for account: {found.address}\n"
    say.table(tuple(row), [row], title=title, value=value)


def _status_value(found: PlatformStatus) -> dict[str, Any]:
    gas = found.gas
    return {
        "amount": found.amount,
        "reserved": found.reserved,
        "token": found.token,
        "driver": found.driver,
        "network": found.network,
        "incoming": _sums(found.incoming),
        "outgoing": _sums(found.outgoing),
        "gas": None
        if gas is None
        else {
            "balance": gas.balance,
            "currency_short_name": gas.currency_short_name,
            "currency_long_name": gas.currency_short_name,
        },
        "block_number": found.block_number,
        "block_datetime": None if found.block_datetime is None else found.block_datetime.isoformat(),
    }


def _sums(flow: Any) -> dict[str, Any]:
    return {
        name: {"agreementsCount": one.agreements_count, "totalAmount": one.total_amount}
        for name, one in (("accepted", flow.accepted), ("confirmed", flow.confirmed), ("requested", flow.requested))
    }


def _amount(amount: str | None, symbol: str, precise: bool) -> str:
    from decimal import ROUND_DOWN, Decimal

    if amount is None:
        return "?"
    shown = amount if precise else format(Decimal(amount).quantize(Decimal("0.0001"), ROUND_DOWN), "f")
    return f"{shown} {symbol}"


def _flow(flow: dict[str, Any], symbol: str, precise: bool) -> str:
    return "\n".join(
        _amount(flow[name]["totalAmount"], symbol, precise) for name in ("accepted", "confirmed", "requested")
    )


@driver_app.command("list")
def list_drivers(ctx: typer.Context) -> None:
    """Which platforms the node serves."""
    say = speech(ctx)
    found = ask(say.place, merged_accounts)
    value: dict[str, Any] = {}
    rows = []
    for a in found:
        named = value.setdefault(
            a.driver,
            {"default_network": _default_network(found, a.driver), "recv_init_required": False, "networks": {}},
        )
        network = named["networks"].setdefault(a.network, {"default_token": a.token, "tokens": {}})
        network["tokens"][a.token] = a.platform
        default = named["default_network"] == a.network
        rows.append(
            {
                "driver": a.driver,
                "network": a.network,
                "default?": default,
                "token": a.token,
                "platform": a.platform,
            }
        )
    say.table(("driver", "network", "default?", "token", "platform"), rows, value=value)


def _default_network(accounts: Sequence[Account], driver: str) -> str:
    networks = [a.network for a in accounts if a.driver == driver]
    return DEFAULT_NETWORK if DEFAULT_NETWORK in networks else networks[0]


@driver_app.command("status")
def driver_status(
    ctx: typer.Context, network: NetworkOption = None, driver: DriverOption = None, account: AccountOption = None
) -> None:
    """Why payments wait."""
    say = speech(ctx)
    problems = ask(say.place, lambda http: http.call("GET", "/payment-api/v1/payments/status", timeout_s=20))
    found = [p for p in problems if network in (None, p["network"]) and driver in (None, p["driver"])]
    title = f"Status of the {driver or DRIVER} payment driver\nDriver Status: {'Error' if found else 'Ok'}"
    rows = [{"issues": f"{p['kind']}: {p['message']}"} for p in found]
    say.table(("issues",), rows, title=title, value=found)


@driver_app.command("rpc")
def driver_rpc(ctx: typer.Context) -> None:
    """Not here: see ``driver status``."""
    raise NotImplementedHere("this node shows no statistics of its endpoints", hint="yagna payment driver status")


# --- what the owner does ---


@payment.command("init")
def init(
    ctx: typer.Context,
    sender: Annotated[bool, typer.Option(help="Ours always is.")] = False,
    receiver: Annotated[bool, typer.Option(help="Ours always is.")] = False,
    network: NetworkOption = None,
    driver: DriverOption = None,
    account: AccountOption = None,
) -> None:
    """Nothing to do: every platform that the node serves is ready to pay and to be paid."""
    say = speech(ctx)
    ask(say.place, lambda http: chosen(http, network, driver, account))
    say.nothing()


@payment.command("fund")
def fund(
    ctx: typer.Context,
    network: NetworkOption = None,
    driver: DriverOption = None,
    account: AccountOption = None,
    mint_only: Annotated[bool, typer.Option(help="Ours never asks anybody for coins.")] = False,
) -> None:
    """Test tokens for the account."""
    say = speech(ctx)

    async def question(http: ApiClient) -> str:
        from shem.client.admin import AdminApi

        meant = await chosen(http, network, driver, account)
        return (await AdminApi(http).fund(meant.network, meant.driver)).message

    say.text(ask(say.place, question))


@payment.command("release-allocations")
def release(ctx: typer.Context) -> None:
    """Set nothing aside any more."""
    say = speech(ctx)
    ask(say.place, release_allocations)
    say.nothing()


# --- bills ---


@invoice_app.command("status")
def invoice_status(ctx: typer.Context, last: LastOption = None) -> None:
    """How many agreements were billed, for how much, and what became of it."""
    say = speech(ctx)
    since = None if last is None else datetime.now(UTC) - _span(last)

    async def question(http: ApiClient) -> dict[str, Any]:
        from shem.client.payment import PaymentApi

        me, api = (await http.call("GET", "/me"))["identity"], PaymentApi(http)
        return _bills(me, await _all(api.invoices, since))

    say.value(ask(say.place, question))


async def _all(page: Any, after: datetime | None) -> list[Any]:
    """Every document, page by page."""
    found: list[Any] = []
    for _ in range(MAX_PAGES):
        batch: list[Invoice] | list[DebitNote] = await page(after=after)
        if not batch:
            break
        found += batch
        after = batch[-1].timestamp
    return found


def _bills(me: str, invoices: Sequence[Invoice]) -> dict[str, Any]:
    from shem.terms.amounts import format_amount, parse_amount

    sums: dict[str, dict[str, tuple[set[str], int]]] = {
        role: {state: (set(), 0) for state in STATES} for role in ("provider", "requestor")
    }
    for invoice in invoices:
        of_role = sums["provider" if invoice.issuer_id == me else "requestor"]
        state = invoice.status.lower()
        agreements, total = of_role.get(state, (set(), 0))
        of_role[state] = (agreements | {invoice.agreement_id}, total + parse_amount(invoice.amount))
    return {
        role: {
            state: {"agreementsCount": len(agreements), "totalAmount": format_amount(total)}
            for state, (agreements, total) in of_role.items()
        }
        for role, of_role in sums.items()
    }


def _span(text: str) -> timedelta:
    from shem.node.config import seconds_of

    try:
        return timedelta(seconds=seconds_of(text))
    except (ValueError, OverflowError):
        raise Refused("--last: expected a duration such as 1d or 2h", code="bad_duration") from None


# --- what ours does by itself, or not at all ---


@process_app.command("now")
def process_now(ctx: typer.Context) -> None:
    """Nothing to do: payments are sent the moment they are due."""
    speech(ctx).nothing()


@process_app.command("info")
def process_info(ctx: typer.Context) -> None:
    """Not here."""
    raise NotImplementedHere("this node has no schedule: payments are sent the moment they are due")


@process_app.command("set", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def process_set(ctx: typer.Context) -> None:
    """Not here."""
    raise NotImplementedHere("this node has no schedule: payments are sent the moment they are due")


@payment.command("transfer", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def transfer(ctx: typer.Context) -> None:
    """Not here: a node pays for work only."""
    raise NotImplementedHere(
        "this node pays for work only", hint="open its key in a wallet: yagna id export; and stop the node meanwhile"
    )


@payment.command("enter", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def enter(ctx: typer.Context) -> None:
    """Not here: there is no second layer."""
    raise NotImplementedHere("this node pays on its networks directly: there is no second layer to enter")


@payment.command("exit", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def leave(ctx: typer.Context) -> None:
    """Not here: there is no second layer."""
    raise NotImplementedHere(
        "this node pays on its networks directly: there is no second layer to leave",
        hint="for what lies in a vault of payment channels: shem payment exit",
    )
