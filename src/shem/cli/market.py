"""``shem market``: who offers what."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import typer

from shem.cli.common import ApiUrl, AppKey, Json, credentials

app = typer.Typer(help="The market: who offers what, for how much.", no_args_is_help=True)

COUNTERS = {"golem.usage.duration_sec": "hour", "golem.usage.cpu_sec": "busy thread hour"}


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

    table = Table(title=f"{len(offers)} offers", title_justify="left")
    for heading in ("provider", "id", "runtime", "threads", "memory", "disk", "price"):
        table.add_column(heading)
    for offer in offers:
        p = offer["properties"]
        table.add_row(
            str(p.get("golem.node.id.name", "")),
            offer["providerId"][:12] + "…",
            f"{p.get('golem.runtime.name', '')} ({p.get('golem.!exp.shem.v1.runtime.driver', '?')})",
            str(p.get("golem.inf.cpu.threads", "")),
            f"{p.get('golem.inf.mem.gib', 0):g} GiB",
            f"{p.get('golem.inf.storage.gib', 0):g} GiB",
            _price(p),
        )
    Console().print(table)


def _price(properties: dict[str, Any]) -> str:
    from shem.errors import Refused
    from shem.terms.amounts import format_amount
    from shem.terms.pricing import LinearPricing

    try:
        pricing = LinearPricing.from_properties(properties)
    except Refused:
        return "?"
    start = pricing.cost([0.0] * len(pricing.usage_vector))
    parts = [f"{format_amount(start)} to start"] if start else []
    for place, counter in enumerate(pricing.usage_vector):
        hour = [3600.0 if i == place else 0.0 for i in range(len(pricing.usage_vector))]
        cost = pricing.cost(hour) - start
        if cost:
            parts.append(f"{format_amount(cost)} per {COUNTERS.get(counter, counter)}")
    return " + ".join(parts) or "free"


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
