"""What several commands share."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import typer

from shem.cogs.places import local_app_key
from shem.errors import Misconfigured

ApiUrl = Annotated[str | None, typer.Option("--api-url", envvar="YAGNA_API_URL", help="REST address of the node.")]
AppKey = Annotated[
    str | None, typer.Option("--app-key", envvar="YAGNA_APPKEY", help="Key for the node.", show_envvar=True)
]
Driver = Annotated[Literal["auto", "bwrap", "oci"], typer.Option(help="Sandbox technology.")]
Json = Annotated[bool, typer.Option("--json", help="For programs: JSON on stdout.")]


def credentials(api_url: str | None, app_key: str | None) -> tuple[str, str]:
    """Where the node is and how to prove that we may use it."""
    url = api_url or os.environ.get("YAGNA_API_URL") or "http://127.0.0.1:7465"
    key = app_key or local_app_key()
    if not key:
        raise Misconfigured("there is no app key", code="no_app_key", hint="set YAGNA_APPKEY or pass --app-key")
    return url, key
