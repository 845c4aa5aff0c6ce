"""The tree of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from shem.cli import appkey, demo, devnet, identity, image, market, node, payment, provider, run
from shem.version import VERSION

app = typer.Typer(
    name="shem",
    help="Rent compute, or earn with yours: a marketplace without a middleman.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"shem {VERSION}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    pass


app.command("demo")(demo.demo)
app.command("run")(run.run)
app.add_typer(devnet.app, name="devnet")
app.add_typer(node.app, name="node")
app.add_typer(provider.app, name="provider")
app.add_typer(market.app, name="market")
app.add_typer(payment.app, name="payment")
app.add_typer(identity.app, name="identity")
app.add_typer(appkey.app, name="app-key")
app.add_typer(image.app, name="image")
