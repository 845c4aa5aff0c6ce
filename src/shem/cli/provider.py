"""``shem provider``: earn with this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from shem.cli.common import ApiUrl, AppKey, credentials
from shem.cogs.places import default_data_dir, forget_secrets

app = typer.Typer(help="The provider agent: offer this machine and be paid for its work.", no_args_is_help=True)


@app.command()
def run(
    data_dir: Annotated[
        Path | None, typer.Option(help="Where the agent keeps its presets, images and sandboxes.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What requestors see.")] = None,
    driver: Annotated[str | None, typer.Option(help="Sandbox technology: auto, bwrap or oci.")] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(help="What to offer: oci (docker images), vm (GVMI files); repeatable. Default both."),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Where images are unpacked.")] = None,
    price_start: Annotated[str | None, typer.Option(help="Tokens for each agreement.")] = None,
    price_hourly: Annotated[str | None, typer.Option(help="Tokens for each hour.")] = None,
    price_cpu_hourly: Annotated[str | None, typer.Option(help="Tokens for each hour of a busy thread.")] = None,
    platform: Annotated[
        list[str] | None,
        typer.Option(help="Payment platforms to take, best first, such as 'channel-*'; repeatable. Default all."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads to offer; default all.")] = None,
    memory_gib: Annotated[float | None, typer.Option(help="Memory to offer; default most of it.")] = None,
    storage_gib: Annotated[float | None, typer.Option(help="Disk to offer.")] = None,
    share: Annotated[
        int, typer.Option(help="This machine is shared by so many agents: offer that part of it.", hidden=True)
    ] = 1,
    default_registry: Annotated[str | None, typer.Option(help="Registry for short image names.")] = None,
    insecure_registry: Annotated[
        list[str] | None, typer.Option(help="Registry spoken to without TLS; repeatable.")
    ] = None,
    web_private_addresses: Annotated[
        bool, typer.Option(help="Let requestors' http(s) URLs lead to private addresses; only for test networks.")
    ] = False,
    api_url: ApiUrl = None,
    app_key: AppKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line when the offer is published.")] = False,
) -> None:
    """Offer this machine, until Ctrl-C or SIGTERM: then running agreements are ended and billed."""
    from shem.node.app import main
    from shem.provider.agent import run_provider
    from shem.provider.config import load_provider_config

    url, key = credentials(api_url, app_key)
    config = load_provider_config(
        (data_dir or Path(os.environ.get("SHEM_PROVIDER_DIR") or default_data_dir() / "provider")).absolute(),
        {
            "name": name,
            "driver": driver,
            "runtimes": tuple(runtime) if runtime else None,
            "images_dir": images.absolute() if images else None,
            "price_start": price_start,
            "price_hourly": price_hourly,
            "price_cpu_hourly": price_cpu_hourly,
            "platforms": tuple(platform) if platform else None,
            "threads": threads,
            "memory_gib": memory_gib,
            "storage_gib": storage_gib,
            "share": share,
            "default_registry": default_registry,
            "insecure_registries": tuple(insecure_registry) if insecure_registry else None,
            "web_private_addresses": web_private_addresses or None,
        },
    )

    forget_secrets()  # sandboxes' helpers need not know the key

    def ready(facts: dict[str, object]) -> None:
        if as_json:
            print(json.dumps(facts), flush=True)
        else:
            typer.echo(offering(facts))

    main(run_provider(config, url, key, ready))


def offering(facts: Mapping[str, Any]) -> str:
    """What is offered, for people. How it is paid is most of it: a node without a network is paid nothing."""
    from shem.sdk.plain import plain

    most = facts["max_agreements"]
    lines = [
        f"offering as {plain(facts['name'])} ({facts['node_id']}), {most} agreement{'s' * (most != 1)} at once at most:",
        f"  offers     {', '.join(facts['offers'])} (in the subnet {plain(facts['subnet'])}, sandboxes by {facts['driver']})",
        f"  paid by    {', '.join(facts['platforms'])}",
    ]
    if facts["platforms"] == ["free"]:
        lines.append("             nothing: the node has no network to be paid on, see docs/payments.md")
    return "\n".join([*lines, "Ctrl-C ends it, and bills what runs."])
