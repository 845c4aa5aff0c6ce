"""How a passphrase comes to a command: from a file, an open descriptor, or the terminal. Never as an argument or in the
environment, which other programs of this machine may see."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from shem.errors import Misconfigured, Refused

MIN_CHARS = 8
MAX_BYTES = 8192

PassphraseFile = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="Its first line is the passphrase; only you may be able to read it."),
]
PassphraseFd = Annotated[
    int | None, typer.Option("--passphrase-fd", help="Read the passphrase from this open descriptor; 0 is stdin.")
]
CurrentFile = Annotated[
    Path | None, typer.Option("--current-passphrase-file", help="The same for the passphrase that opens the key now.")
]
CurrentFd = Annotated[int | None, typer.Option("--current-passphrase-fd", help="The same, from a descriptor.")]


def told_passphrase(what: str, file: Path | None, fd: int | None, option: str = "passphrase") -> str:
    """The passphrase that ``what`` asks for. Raises :class:`~shem.errors.Misconfigured`, :class:`~shem.errors.Refused`."""
    given = given_passphrase(file, fd, option)
    return _ask(what, option) if given is None else given


def new_passphrase(what: str, file: Path | None, fd: int | None) -> str:
    """The same for one that is made now: it has :data:`MIN_CHARS` characters, and at the terminal is said twice."""
    chosen = given_passphrase(file, fd)
    if chosen is None:
        chosen = _ask(what, "passphrase")
        if chosen != _ask("The same again", "passphrase"):
            raise Refused("the two passphrases differ", code="passphrases_differ", hint="try again")
    if len(chosen) < MIN_CHARS:
        raise Refused(
            f"a passphrase has at least {MIN_CHARS} characters",
            code="weak_passphrase",
            hint="four or five random words are easy to keep and hard to guess",
        )
    return chosen


def given_passphrase(file: Path | None, fd: int | None, option: str = "passphrase") -> str | None:
    """What an option leads to; ``None`` when there is none."""
    from shem.node.identity.keystore import passphrase_in, read_passphrase

    if file is not None and fd is not None:
        raise Refused(f"give --{option}-file or --{option}-fd, not both", code="bad_request")
    if file is not None:
        return read_passphrase(file)
    if fd is None:
        return None
    try:
        with os.fdopen(fd, "rb", closefd=False) as source:
            return passphrase_in(source.readline(MAX_BYTES), f"descriptor {fd}")
    except OSError as error:
        raise Misconfigured(f"descriptor {fd} cannot be read: {error.strerror}", code="bad_descriptor") from None


def _ask(what: str, option: str) -> str:
    if not sys.stdin.isatty():
        raise Misconfigured(
            "a passphrase is needed, and there is no terminal to ask at",
            code="no_passphrase",
            hint=f"--{option}-file FILE, or --{option}-fd 0 to read it from stdin",
        )
    said = getpass.getpass(f"{what}: ")
    if not said:
        raise Refused("no passphrase was said", code="no_passphrase")
    return said
