"""The command line: one noun for each file, loaded when it is used.

Exit status: 0 done; 1 something failed that has no number of its own; 2 the request is wrong; 3 another node (or ours) did not
answer; 4 money is short; 5 the work itself failed; 6 the configuration is wrong; 7 the node's key is locked; 130 interrupted.
"""

from __future__ import annotations

import sys

from shem import errors

EXIT = [
    (errors.MoneyShort, 4),
    (errors.WorkFailed, 5),
    (errors.KeyLocked, 7),
    (errors.Misconfigured, 6),
    (errors.PeerFailed, 3),
    (errors.Refused, 2),
    (TimeoutError, 3),
]

MAX_LINES = 40
WRONG_IMAGE = {"bad_image", "image_not_found", "image_digest_mismatch", "registry_not_allowed", "no_default_registry"}
"""Failures of a start that only another image mends."""


def main(argv: list[str] | None = None) -> None:
    """Entry point of ``shem``; ``argv`` without the program's name. Always ends by ``SystemExit``."""
    from shem.cli.app import app

    try:
        app(argv, prog_name="shem", standalone_mode=True)
    except (errors.ShemError, TimeoutError) as error:
        sys.exit(report(error))
    except ExceptionGroup as group:
        ours, late = group.subgroup(errors.ShemError), group.subgroup(TimeoutError)
        found = ours or late
        if found is None:
            raise
        sys.exit(report(_first(found)))
    except KeyboardInterrupt:
        sys.exit(130)


def report(error: BaseException) -> int:
    """Say what happened and what to do now; the exit status for it."""
    from rich.console import Console
    from rich.text import Text

    from shem.sdk.plain import plain

    # lines are left to the terminal to break: what is copied from them, or read by a program, stays whole
    console = Console(stderr=True, soft_wrap=True)
    if isinstance(error, errors.ShemError):
        message = error.message
    else:
        message = str(error) or ("there was no answer in time" if isinstance(error, TimeoutError) else "")
    lines = message.splitlines()[:MAX_LINES] or [type(error).__name__]  # the tail of a child's log has several
    console.print(Text("error: ", style="bold red") + Text("\n".join(plain(line, 1000) for line in lines)))
    if isinstance(error, errors.ShemError) and error.hint:
        console.print(Text("  → ", style="bold") + Text(plain(error.hint)))
    code = error.code if isinstance(error, errors.ShemError) else "timeout" if isinstance(error, TimeoutError) else ""
    if code:
        console.print(Text(f"  code: {plain(code)}", style="dim"))
    return exit_status(error)


def exit_status(error: BaseException) -> int:
    """Which number an error ends the program with."""
    from shem.sdk.types import CommandFailed

    if isinstance(error, CommandFailed):
        return 2 if error.code in WRONG_IMAGE else 5
    return next((status for kind, status in EXIT if isinstance(error, kind)), 1)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
