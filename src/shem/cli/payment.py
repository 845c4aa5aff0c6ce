"""``shem payment``: the money, as it stands and as it went."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from shem.cli import payment_move
from shem.cli.common import ApiUrl, AppKey, Json, credentials

if TYPE_CHECKING:
    from rich.table import Table

    from shem.client.http import ApiClient
    from shem.wire.payment import ChannelStatus, ExitStatus, PlatformStatus, Settlement, Transaction

T = TypeVar("T")

app = typer.Typer(help="The money: what is there, what is owed, what was paid.", no_args_is_help=True)


@app.command()
def status(api_url: ApiUrl = None, app_key: AppKey = None, as_json: Json = False) -> None:
    """What is in the wallet, in the vault and in channels, and what is owed and paid."""

    async def question(http: ApiClient) -> tuple[Any, Any]:
        platforms = await http.call("GET", "/shem-api/v1/payment/status", timeout_s=20)
        return platforms, await http.call("GET", "/payment-api/v1/payments/status", timeout_s=20)

    platforms, problems = _ask(api_url, app_key, question)
    if as_json:
        print(json.dumps({"platforms": platforms, "problems": problems}))
        return
    import msgspec
    from rich.console import Console
    from rich.text import Text

    from shem.client.http import BadAnswer
    from shem.sdk.plain import plain
    from shem.wire.payment import PlatformStatus

    try:
        found = msgspec.convert(platforms, list[PlatformStatus])
    except msgspec.ValidationError as error:
        raise BadAnswer(f"what answers there is no node of ours: {error}") from None
    console = Console()
    for group in _by_network(found):
        # above the table, not its title: that would be broken to the table's width, in the middle of the address
        title = f"{group[0].network}, {group[0].token}, {group[0].address}"
        console.print(Text(title, style="italic"), soft_wrap=True)
        console.print(_status_table(group))
    for one in found:
        if one.error and one.alias_of is None:  # another name of the same money has the same to tell
            code = f" ({plain(one.error_code)})" if one.error_code else ""
            hint = f" — {plain(one.error_hint)}" if one.error_hint else ""
            console.print(Text(f"{one.platform}: {plain(one.error)}{code}{hint}", style="yellow"))
    for problem in problems:
        name = plain(problem.get("code") or problem.get("kind"))
        console.print(Text(f"{name}: {plain(problem.get('message'))}", style="yellow"))


def _by_network(found: Sequence[PlatformStatus]) -> Iterator[list[PlatformStatus]]:
    """Those that draw on one wallet; other names of theirs, and the free platform, where there is something to tell."""
    moved = [p for p in found if p.alias_of is None and p.driver != "free"]
    for network in dict.fromkeys(p.network for p in moved):
        names = {p.platform for p in moved if p.network == network}
        yield [p for p in found if p.platform in names or (p.alias_of in names and _busy(p))]
    free = [p for p in found if p.driver == "free" and (_busy(p) or not moved)]
    if free:
        yield free


def _busy(p: PlatformStatus) -> bool:
    sums = (p.incoming.requested, p.outgoing.requested)
    return p.allocated != "0" or any(one.agreements_count for one in sums)


def _status_table(group: Sequence[PlatformStatus]) -> Table:
    from rich.table import Table

    from shem.sdk.progress import LEAN

    table = Table(**LEAN)
    table.add_column("", no_wrap=True)
    for p in group:
        table.add_column(p.platform, justify="right", overflow="fold")  # a sum may be broken, and is never cut
    lines: list[tuple[str, Callable[[PlatformStatus], str | None]]] = [
        ("in the wallet", lambda p: p.wallet or (None if p.amount == "0" else "?")),
        ("free in the vault", lambda p: p.vault.free if p.vault else None),
        ("reserved in channels", lambda p: p.vault.reserved if p.vault else None),
        ("  of it by vouchers", lambda p: p.vault.signed if p.vault else None),
        ("vouchers of others", lambda p: p.vault.to_collect if p.vault else None),
        ("allocated", lambda p: p.allocated),
        ("owed", lambda p: p.owed),
        ("paid", lambda p: p.paid),
        ("to receive", _open),
        ("received", lambda p: p.incoming.confirmed.total_amount),
        ("for fees", lambda p: f"{p.gas.balance} {p.gas.currency_short_name}" if p.gas else None),
        ("block", lambda p: None if p.block_number is None else str(p.block_number)),
    ]
    for title, show in lines:
        values = [show(p) for p in group]
        if any(value is not None for value in values):
            table.add_row(title, *("–" if value is None else value for value in values))
    return table


def _open(p: PlatformStatus) -> str:
    from shem.terms.amounts import format_amount, parse_amount

    flow = p.incoming
    return format_amount(parse_amount(flow.accepted.total_amount) - parse_amount(flow.confirmed.total_amount))


@app.command()
def channels(
    closed: Annotated[bool, typer.Option("--all", help="Closed ones, too.")] = False,
    api_url: ApiUrl = None,
    app_key: AppKey = None,
    as_json: Json = False,
) -> None:
    """Payment channels: with whom, how much is reserved, promised by vouchers, and paid out."""
    from shem.client.payment import PaymentApi
    from shem.wire.base import encode

    found = _ask(api_url, app_key, lambda http: PaymentApi(http).channels())
    shown = [one for one in found if closed or one.state != "closed"]
    if as_json:
        print(encode(shown).decode())
        return
    from rich.console import Console

    console = Console(soft_wrap=True)
    if not shown:
        more = f"; closed ones: {len(found)}, see --all" if found else ""
        console.print(f"no channels are open{more}", markup=False)
    for one in shown:
        for line in _channel_lines(one):
            console.print(line, markup=False, highlight=False)


def _channel_lines(one: ChannelStatus) -> list[str]:
    way = "to" if one.role == "Requestor" else "from"
    ends = f", until {_time(one.valid_until)}" if one.state != "closed" else ""
    work = len(one.agreements)
    goes_on = [f"    {work} agreement{'s go' if work != 1 else ' goes'} on"] if work else []
    return [
        f"{one.state:8}{way:>4} {one.peer}  {one.platform}",
        f"    {one.channel_id}",
        f"    reserved {one.reserved}, by vouchers {one.signed},",
        f"    paid out {one.claimed}{ends}",
        *goes_on,
    ]


@app.command()
def history(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="This one alone: a transaction, or what a command said it asked for."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, the newest first.")] = 20,
    after: Annotated[datetime | None, typer.Option(help="Only what was asked for later (UTC).")] = None,
    api_url: ApiUrl = None,
    app_key: AppKey = None,
    as_json: Json = False,
) -> None:
    """What the node's account did on its chains, what is on its way there, and what came to it."""
    from datetime import UTC

    from shem.client.payment import PaymentApi
    from shem.wire.base import encode

    if name is not None:
        _show_one(name, api_url, app_key, as_json)
        return
    since = None if after is None else after.replace(tzinfo=after.tzinfo or UTC)

    async def question(http: ApiClient) -> tuple[list[Transaction], list[Settlement]]:
        api = PaymentApi(http)
        received = await api.received(limit=limit)
        wanted = [one for one in received if since is None or one.timestamp > since]
        return await api.transactions(after=since, limit=limit), wanted

    sent, received = _ask(api_url, app_key, question)
    if as_json:
        print(encode({"transactions": sent, "received": received}).decode())
        return
    from rich.console import Console

    console = Console(soft_wrap=True)
    now = datetime.now(UTC)  # what has no time yet is about to happen
    entries = [(one.at or now, _transaction_lines(one)) for one in sent]
    entries += [(one.timestamp, _received_lines(one)) for one in received]
    if not entries:
        console.print("nothing was sent, and nothing came", markup=False)
    for _, lines in sorted(entries, key=lambda entry: entry[0], reverse=True)[:limit]:
        for line in lines:
            console.print(line, markup=False, highlight=False)


def _show_one(name: str, api_url: str | None, app_key: str | None, as_json: bool) -> None:
    from shem.client.payment import PaymentApi
    from shem.errors import NotFound
    from shem.wire.base import encode

    async def question(http: ApiClient) -> tuple[Transaction | None, ExitStatus | None]:
        api = PaymentApi(http)
        try:
            return await api.transaction(name), None
        except NotFound as unknown:
            try:
                found = await api.exit_status(name)
            except NotFound:
                unknown.hint = "shem payment history lists what there is"
                raise unknown from None
        return None if found.withdrawal is None else await api.transaction(found.withdrawal), found

    moved, left = _ask(api_url, app_key, question)
    if as_json:
        print(encode(moved if left is None else left).decode())
    elif left is not None:
        payment_move.tell_exit(left, moved)
    elif moved is not None:
        print("\n".join(_transaction_lines(moved)))


def _received_lines(one: Settlement) -> list[str]:
    deals = f"{len(one.agreement_ids)} agreements" if len(one.agreement_ids) != 1 else "an agreement"
    return [
        _heading(_time(one.timestamp), "final", "received", one.amount),
        f"    {one.platform}  block {one.block_number}",
        f"    {one.tx_hash}",
        f"    from {one.payer} for {deals}",
    ]


def _heading(when: str, state: str, what: str, amount: str) -> str:
    return f"{when:19}  {state:6}  {what:14} {amount:>24}".rstrip()


def _transaction_lines(one: Transaction) -> list[str]:
    from shem.sdk.plain import plain

    when = "–" if one.at is None else _time(one.at)
    many = f" ({one.entries})" if one.entries > 1 else ""
    made = one.kind == "deploy"  # moves nothing
    what = "deploy vault" if made else f"{one.kind}{many}"
    lines = [_heading(when, one.state, what, "" if made else one.amount)]
    block = f"  block {one.block}" if one.block is not None else ""
    gas = f"  gas {one.gas_used}" if one.gas_used is not None else ""
    lines.append(f"    {one.platform}{block}{gas}")
    if one.tx_hash:
        lines.append(f"    {one.tx_hash}")
    if one.receiver:
        lines.append(f"    to {one.receiver}")
    if one.detail:
        lines.append(f"    {plain(one.detail)}")
    return lines


def _time(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


@app.command()
def fund(
    network: Annotated[str | None, typer.Option(help="Default: the node's first.")] = None,
    api_url: ApiUrl = None,
    app_key: AppKey = None,
    as_json: Json = False,
) -> None:
    """Get test tokens for the node's account, on a network where they are only that."""
    from shem.client.admin import AdminApi

    told = _ask(api_url, app_key, lambda http: AdminApi(http).fund(network))
    if as_json:
        print(json.dumps({"platform": told.platform, "address": told.address, "message": told.message}))
    else:
        typer.echo(f"{told.platform}: {told.message}")


@app.command()
def retry(
    transaction: Annotated[str, typer.Argument(metavar="ID", help="As `shem payment status` names it.")],
    api_url: ApiUrl = None,
    app_key: AppKey = None,
    as_json: Json = False,
) -> None:
    """Do anew what was displaced: when another program, with the node's key, used a payment's place on the chain."""
    from shem.client.payment import PaymentApi

    _ask(api_url, app_key, lambda http: PaymentApi(http).retry(transaction))
    told = f"{transaction} is made anew; see shem payment history {transaction}"
    print(json.dumps({"retried": transaction}) if as_json else told)


app.command("deposit")(payment_move.deposit)
app.command("withdraw")(payment_move.withdraw)
app.command("exit")(payment_move.leave)
app.command("deploy-vault")(payment_move.deploy_vault)


@app.command("release-allocations")
def release_allocations(api_url: ApiUrl = None, app_key: AppKey = None, as_json: Json = False) -> None:
    """Set nothing aside any more: for what programs that ended badly have left."""
    from shem.cli import owner

    released = _ask(api_url, app_key, owner.release_allocations)
    if as_json:
        print(json.dumps({"released": released}))
    else:
        typer.echo(f"{released} allocation{'' if released == 1 else 's'} released")


def _ask(api_url: str | None, app_key: str | None, question: Callable[[ApiClient], Awaitable[T]]) -> T:
    url, key = credentials(api_url, app_key)

    async def talk() -> T:
        from shem.client.http import ApiClient

        async with ApiClient(url, key) as http:
            return await question(http)

    return asyncio.run(talk())
