"""What several commands share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from shem.cogs.places import local_api_url, local_app_key
from shem.errors import Misconfigured

ApiUrl = Annotated[str | None, typer.Option("--api-url", envvar="YAGNA_API_URL", help="REST address of the node.")]
AppKey = Annotated[
    str | None, typer.Option("--app-key", envvar="YAGNA_APPKEY", help="Key for the node.", show_envvar=True)
]
Driver = Annotated[Literal["auto", "bwrap", "oci"], typer.Option(help="Sandbox technology.")]
Json = Annotated[bool, typer.Option("--json", help="For programs: JSON on stdout.")]


def credentials(api_url: str | None, app_key: str | None) -> tuple[str, str]:
    """Where the node is and how to prove that we may use it."""
    url = api_url or local_api_url()
    key = app_key or local_app_key()
    if not key:
        raise Misconfigured("there is no app key", code="no_app_key", hint="set YAGNA_APPKEY or pass --app-key")
    return url, key


def write_secret(path: Path, text: str) -> None:
    """Write a file for its owner's eyes only (0600), whatever stood there before; a reader sees the old or the new, whole.

    What is no ordinary file (a pipe, a terminal) is written to as it is. Raises :class:`~shem.errors.Misconfigured`.
    """
    try:
        path = path.resolve()
        if path.exists() and not path.is_file():
            path.write_text(text)
            return
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # made 0600
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
            Path(draft).replace(path)
        except BaseException:
            Path(draft).unlink()
            raise
    except OSError as error:
        raise Misconfigured(f"{path} cannot be written: {error.strerror}", code="cannot_write") from error
