"""``shem identity``: who this node is."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import typer

from shem.cli.common import ApiUrl, AppKey, Json, credentials

app = typer.Typer(help="Who this node is.", no_args_is_help=True)


@app.command()
def show(api_url: ApiUrl = None, app_key: AppKey = None, as_json: Json = False) -> None:
    """The node's id and the address that other nodes reach it at."""
    from shem.client.http import ApiClient

    url, key = credentials(api_url, app_key)

    async def ask() -> dict[str, Any]:
        async with ApiClient(url, key) as http:
            me = await http.call("GET", "/me", timeout_s=10)
            place = await http.call("GET", "/shem-api/v1/node", timeout_s=10)
            return {
                "node_id": me["identity"],
                "app_key_name": me["name"],
                **{name: place[name] for name in ("name", "version", "address", "peers")},
            }

    facts = asyncio.run(ask())
    if as_json:
        print(json.dumps(facts))
        return
    typer.echo(f"node id   {facts['node_id']}")
    typer.echo(f"app key   {facts['app_key_name']}")
    typer.echo(f"address   {facts['address']}   (for --bootstrap of others)")
    typer.echo(f"peers     {len(facts['peers'])} connected")
