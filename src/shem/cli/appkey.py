"""``shem app-key``: what programs show to use the node. For its owner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from shem.cli.common import Json
from shem.cli.owner import Place, ask

app = typer.Typer(help="Keys that programs show to use your node.", no_args_is_help=True)

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Of the node.", show_default="~/.local/share/shem")]


@app.command("list")
def list_keys(data_dir: DataDir = None, as_json: Json = False) -> None:
    """All keys."""
    from shem.client.admin import AdminApi

    found = ask(Place.of(data_dir), lambda http: AdminApi(http).app_keys(), as_owner=True)
    if as_json:
        print(json.dumps([_told(key) for key in found]))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from shem.sdk.plain import plain
    from shem.sdk.progress import LEAN

    table = Table(title="App keys", **LEAN)
    for title in ("name", "key", "made", "web pages"):
        table.add_column(title, overflow="fold")
    for key in found:
        made = key.created.partition(".")[0]
        table.add_row(*(Text(plain(cell)) for cell in (key.name, key.key or "?", made, " ".join(key.allow_origins))))
    Console().print(table)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="The same name again gives the same key.")],
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A web page that may use the node with it, from a browser; repeatable.")
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """A key for a program; prints it."""
    from shem.client.admin import AdminApi

    made = ask(
        Place.of(data_dir),
        lambda http: AdminApi(http).create_app_key(name, allow_origins=allow_origin or ()),
        as_owner=True,
    )
    print(json.dumps(_told(made)) if as_json else made.key)


@app.command()
def drop(name: str, data_dir: DataDir = None) -> None:
    """Turn away who shows it from now on."""
    from shem.client.admin import AdminApi

    ask(Place.of(data_dir), lambda http: AdminApi(http).drop_app_key(name), as_owner=True)


def _told(key: Any) -> Any:
    return msgspec.to_builtins(key)
