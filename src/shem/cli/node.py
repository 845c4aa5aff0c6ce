"""``shem node``: the daemon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from shem.cli.passphrases import PassphraseFd, PassphraseFile, given_passphrase
from shem.cogs.places import default_data_dir, forget_secrets
from shem.node.config import load_config

app = typer.Typer(help="The node: your place in the network.", no_args_is_help=True)

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", help="Where the node keeps its key, database and files.", show_default="~/.local/share/shem"
    ),
]


@app.command()
def run(
    data_dir: DataDir = None,
    api_host: Annotated[str | None, typer.Option(help="Address of the REST API.")] = None,
    api_port: Annotated[int | None, typer.Option(help="Port of the REST API; 0 takes a free one.")] = None,
    peer_bind: Annotated[str | None, typer.Option(help="ip:port for other nodes (UDP).")] = None,
    bootstrap: Annotated[
        list[str] | None, typer.Option(help="Address of a peer to find others through; repeatable.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What others see.")] = None,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line when ready.")] = False,
) -> None:
    """Run the node in the foreground, until Ctrl-C or SIGTERM.

    A key that has a passphrase of yours is locked until that is told, here or by shem identity unlock.
    """
    from shem.node.app import main, run_node

    passphrase = given_passphrase(passphrase_file, passphrase_fd)

    config = load_config(
        data_dir or default_data_dir(),
        {
            "api_host": api_host,
            "api_port": api_port,
            "peer_bind": peer_bind,
            "bootstrap": tuple(bootstrap) if bootstrap else None,
            "name": name,
        },
    )

    forget_secrets()

    def ready(facts: dict[str, str]) -> None:
        if as_json:
            print(json.dumps(facts), flush=True)
        else:
            typer.echo(f"node {facts['node_id']} is ready: REST at {facts['api_url']}, peers at {facts['address']}")

    main(run_node(config, ready, passphrase))


@app.command()
def stop(data_dir: DataDir = None) -> None:
    """End the node in this directory, and wait until it has."""
    from shem.cli.owner import Place, shut_down

    shut_down(Place.of(data_dir))
