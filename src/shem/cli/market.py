"""``shem market``: who offers what."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Annotated, Any

import typer

from shem.cli.common import ApiUrl, AppKey, Json, credentials

app = typer.Typer(help="The market: who offers what, for how much.", no_args_is_help=True)

DURATION, CPU = "golem.usage.duration_sec", "golem.usage.cpu_sec"


@app.command()
def scan(
    constraints: Annotated[
        str | None, typer.Argument(help="Only offers that pass, such as '(golem.inf.mem.gib>=4)'.")
    ] = None,
    api_url: ApiUrl = None,
    app_key: AppKey = None,
    as_json: Json = False,
) -> None:
    """List the offers this node knows now."""
    offers = asyncio.run(_offers(*credentials(api_url, app_key), constraints))
    if as_json:
        print(json.dumps(offers))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from shem.sdk.progress import LEAN

    table = Table(title=_count(offers), **LEAN)
    table.add_column("provider", overflow="fold")
    for heading in ("id", "runtime", "threads", "GiB", "disk"):
        table.add_column(heading, justify="left" if heading in ("id", "runtime") else "right", no_wrap=True)
    for heading in ("start", "hour", "CPU hour"):
        table.add_column(heading, justify="right", overflow="fold")  # a price may be broken, and is never cut
    for offer in offers:
        table.add_row(*(Text(cell) for cell in _row(offer)))
    Console().print(table)


def _count(offers: list[dict[str, Any]]) -> str:
    return "1 offer" if len(offers) == 1 else f"{len(offers)} offers"


def _row(offer: dict[str, Any]) -> list[str]:
    """What strangers published: of any type, of any length."""
    from shem.sdk.plain import plain

    p = offer["properties"]
    runtime = f"{p.get('golem.runtime.name', '?')}/{p.get('golem.!exp.shem.v1.runtime.driver', '?')}"
    return [
        plain(p.get("golem.node.id.name", ""), 24),
        offer["providerId"][:10],
        plain(runtime, 12),
        _size(p.get("golem.inf.cpu.threads"), 0),
        _size(p.get("golem.inf.mem.gib"), 1),
        _size(p.get("golem.inf.storage.gib"), 0),
        *_price(p),
    ]


def _size(value: object, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) and abs(value) < 1e6 else "?"


def _price(properties: dict[str, Any]) -> tuple[str, str, str]:
    """Tokens to start, for an hour, and for an hour of a busy thread. Offers carry prices for a second as binary fractions,
    so an hour is shown to nine decimals."""
    from shem.errors import Refused
    from shem.terms.pricing import LinearPricing

    try:
        pricing = LinearPricing.from_properties(properties)
    except Refused:
        return "?", "?", "?"
    hourly = {name: coeff * 3600 for name, coeff in zip(pricing.usage_vector, pricing.coeffs, strict=True)}
    return _tokens(pricing.start), _tokens(hourly.pop(DURATION, Decimal(0))), _tokens(hourly.pop(CPU, Decimal(0)))


def _tokens(amount: Decimal) -> str:
    return f"{round(amount, 9):f}".rstrip("0").rstrip(".") or "0" if amount else "0"


async def _offers(url: str, key: str, constraints: str | None) -> list[dict[str, Any]]:
    from shem.client.http import ApiClient

    async with ApiClient(url, key) as http:
        body = {"type": "offer", "timeout": 10} | ({"constraints": constraints} if constraints else {})
        scan_id = await http.call("POST", "/market-api/v1/scan", json=body)
        found: list[dict[str, Any]] = []
        while batch := await http.call(
            "GET", f"/market-api/v1/scan/{scan_id}/events", params={"timeout": 0.2, "maxEvents": 100}
        ):
            found += batch
        await http.call("DELETE", f"/market-api/v1/scan/{scan_id}")
        return found
