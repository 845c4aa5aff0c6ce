"""``shem payment``: the money."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from shem.cli.common import ApiUrl, AppKey, Json, credentials

if TYPE_CHECKING:
    from shem.client.http import ApiClient

T = TypeVar("T")

app = typer.Typer(help="The money: what is there, what is owed, what was paid.", no_args_is_help=True)


@app.command()
def status(api_url: ApiUrl = None, app_key: AppKey = None, as_json: Json = False) -> None:
    """Balances, and what came in and went out, on each platform."""
    url, key = credentials(api_url, app_key)

    async def ask() -> tuple[Any, Any]:
        from shem.client.http import ApiClient

        async with ApiClient(url, key) as http:
            platforms = await http.call("GET", "/shem-api/v1/payment/status", timeout_s=20)
            problems = await http.call("GET", "/payment-api/v1/payments/status", timeout_s=20)
            return platforms, problems

    platforms, problems = asyncio.run(ask())
    if as_json:
        print(json.dumps({"platforms": platforms, "problems": problems}))
        return
    from rich.console import Console
    from rich.table import Table

    from shem.sdk.progress import LEAN

    table = Table(title="Payment", **LEAN)
    table.add_column("", no_wrap=True)
    for p in platforms:
        table.add_column(p["platform"], justify="right", overflow="fold")  # a sum may be broken, and is never cut
    lines: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("balance", lambda p: f"{p.get('amount', '?')} {p['token']}"),
        ("reserved", lambda p: p["reserved"]),
        ("to pay", lambda p: _open(p["outgoing"])),
        ("paid", lambda p: p["outgoing"]["confirmed"]["totalAmount"]),
        ("to receive", lambda p: _open(p["incoming"])),
        ("received", lambda p: p["incoming"]["confirmed"]["totalAmount"]),
        ("gas", lambda p: (p.get("gas") or {}).get("balance", "–")),
        ("block", lambda p: str(p.get("blockNumber", "–"))),
    ]
    for title, show in lines:
        table.add_row(title, *(show(p) for p in platforms))
    console = Console()
    console.print(table)
    for p in platforms:
        if p.get("error"):
            console.print(f"{p['platform']}: {p['error']}", style="yellow", markup=False)
    for problem in problems:
        console.print(f"{problem.get('kind')}: {problem.get('message')}", style="yellow", markup=False)


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


@app.command("release-allocations")
def release_allocations(api_url: ApiUrl = None, app_key: AppKey = None, as_json: Json = False) -> None:
    """Set nothing aside any more: for what programs that ended badly have left."""
    from shem.cli import owner

    released = _ask(api_url, app_key, owner.release_allocations)
    if as_json:
        print(json.dumps({"released": released}))
    else:
        typer.echo(f"{released} allocations released")


def _ask(api_url: str | None, app_key: str | None, question: Callable[[ApiClient], Awaitable[T]]) -> T:
    url, key = credentials(api_url, app_key)

    async def talk() -> T:
        from shem.client.http import ApiClient

        async with ApiClient(url, key) as http:
            return await question(http)

    return asyncio.run(talk())


def _open(flow: dict[str, Any]) -> str:
    from shem.terms.amounts import format_amount, parse_amount

    return format_amount(parse_amount(flow["accepted"]["totalAmount"]) - parse_amount(flow["confirmed"]["totalAmount"]))
