"""``yagna service`` and ``yagna version``: the daemon."""

from __future__ import annotations

import logging
import logging.handlers
from pathlib import Path
from typing import Annotated, Any

import typer

from shem.cli.owner import ask, shut_down
from shem.cli.yagna_output import speech
from shem.errors import Misconfigured, NotImplementedHere

service = typer.Typer(help="The daemon.", no_args_is_help=True)
version = typer.Typer(help="Which version runs.", no_args_is_help=True)
APPS = {"service": service, "version": version}

LOG_BYTES, LOG_FILES = 10 << 20, 5


@service.command("run")
def run(
    ctx: typer.Context,
    api_url: Annotated[str | None, typer.Option("--api-url", "-a", help="Address of the REST API.")] = None,
    api_allow_origin: Annotated[
        list[str] | None, typer.Option(help="Web pages that may use the node from a browser.")
    ] = None,
    max_age: Annotated[int | None, typer.Option(help="Seconds that browsers remember that.")] = None,
    max_rest_timeout: Annotated[int | None, typer.Option(help="Longest wait of a call, in seconds.")] = None,
    debug: Annotated[bool, typer.Option(help="Log more.")] = False,
    log_dir: Annotated[
        str | None, typer.Option(envvar="YAGNA_LOG_DIR", help="Log to files here, as well as to stderr.")
    ] = None,
    disable_metrics_push: Annotated[bool, typer.Option(help="This node pushes none anyway.")] = False,
    metrics_push_url: Annotated[str | None, typer.Option(hidden=True)] = None,
    metrics_job_name: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run the node in the foreground, until Ctrl-C, SIGTERM or ``service shutdown``."""
    from shem.node.app import main, run_node
    from shem.node.config import address_of, load_config

    told: dict[str, Any] = {
        "api_allow_origin": tuple(api_allow_origin) if api_allow_origin else None,
        "api_max_age_s": max_age,
        "max_rest_timeout_s": max_rest_timeout,
        "log_level": "DEBUG" if debug else None,
    }
    if api_url is not None:
        try:
            told |= address_of(api_url)
        except ValueError as error:
            raise Misconfigured(f"--api-url: {error}", code="bad_config") from None
    config = load_config(speech(ctx).place.data_dir, told)
    if log_dir:
        _log_to(Path(log_dir))
    main(run_node(config, lambda facts: None))


def _log_to(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    file = logging.handlers.RotatingFileHandler(
        directory / "yagna.log", maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8"
    )
    logging.basicConfig(
        format="%(asctime)s %(levelname).1s %(name)s: %(message)s",
        level=logging.INFO,
        handlers=[file, logging.StreamHandler()],
    )


@service.command("shutdown")
def shutdown(
    ctx: typer.Context, gracefully: Annotated[bool, typer.Option(help="This node always ends in order.")] = False
) -> None:
    """End the node, and wait until it has."""
    say = speech(ctx)
    shut_down(say.place)
    say.value({"Ok": None})


@version.command("show")
def show_version(ctx: typer.Context) -> None:
    """Which version of the API the node speaks, and what it is."""
    say = speech(ctx)
    told = ask(say.place, lambda http: http.call("GET", "/version/get", timeout_s=10))
    current = told["current"]
    released = str(current["releaseTs"]).partition("T")[0]
    say.either(
        told,
        f"Your Yagna is up to date: Version {current['version']} '({current['name']})' released {released}",
    )


@version.command("check")
def check_version(ctx: typer.Context) -> None:
    """Not here: nobody is asked for newer ones."""
    raise NotImplementedHere(
        "this node looks for no newer versions", hint="your package manager does, under the name shem"
    )
