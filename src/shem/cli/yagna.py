"""``yagna``: the command of Golem's daemon, as its users type it and their tools parse it, for a node of ours.

``--json``, ``--datadir`` and ``--gsb-url`` may stand anywhere. Whatever goes wrong is said on stderr and ends with status 1.
What a node of ours cannot do is said so. ``docs/yagna.md`` lists the commands and what differs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from shem import errors
from shem.cli.owner import Place
from shem.cli.yagna_output import Speech

INTERRUPTED = 130
_WITH_VALUE = {"-d": "datadir", "--datadir": "datadir", "-g": "gsb", "--gsb-url": "gsb"}
_SEVERAL = ("--allow-origins", "--api-allow-origin")
"""Options that take every word up to the next option."""


def main(argv: list[str] | None = None) -> None:
    """Entry point; ``argv`` without the program's name. Always ends by ``SystemExit``."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """The exit status."""
    try:
        words, as_json, data_dir = arrange(argv)
        if words[:1] in (["--version"], ["-V"]):
            print(_version())
            return 0
        told = Speech(as_json=as_json, place=Place.of(data_dir))
        _tree()(words or ["--help"], prog_name="yagna", obj=told)
    except SystemExit as ended:  # the library has said what was wrong with the words, and counts that as 2
        return min(ended.code, 1) if isinstance(ended.code, int) and ended.code != INTERRUPTED else INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except errors.ShemError as error:
        return _failed(error.message + (f" ({error.hint})" if error.hint else ""))
    except ExceptionGroup as group:
        ours = group.subgroup(errors.ShemError)
        if ours is None:
            raise
        return _failed("; ".join(str(error) for error in ours.exceptions))
    except TimeoutError as error:
        return _failed(str(error) or "there was no answer in time")
    except OSError as error:
        return _failed(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return 0


def arrange(argv: Sequence[str]) -> tuple[list[str], bool, Path | None]:
    """The command without what may stand anywhere: (words, ``--json``, ``--datadir``)."""
    words: list[str] = []
    as_json, data_dir = False, None
    left = list(argv)
    several = ""
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if word == "--":
            return [*words, word, *left], as_json, data_dir
        if word == "--json":
            as_json = True
        elif name in _WITH_VALUE:
            if not equals and not left:
                raise errors.Refused(f"{name} needs a value", code="bad_usage")
            value = value if equals else left.pop(0)
            if _WITH_VALUE[name] == "datadir":
                data_dir = Path(value)
        elif several and not word.startswith("-"):
            words += [several, word]
        else:
            several = word if word in _SEVERAL else ""
            if not several:
                words.append(word)
    return words, as_json, data_dir


def _tree() -> typer.Typer:
    from shem.cli import yagna_identity, yagna_market, yagna_payment, yagna_service

    tree = typer.Typer(
        name="yagna",
        help="Golem's command for a node of ours. Options for every command: --json, --datadir DIR.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for module in (yagna_service, yagna_identity, yagna_payment, yagna_market):
        for name, app in module.APPS.items():
            tree.add_typer(app, name=name)
    return tree


def _failed(why: str) -> int:
    from shem.cli import MAX_LINES
    from shem.sdk.plain import plain

    lines = [plain(line, 1000) for line in why.splitlines()[:MAX_LINES]]
    print("Error: " + "\n".join(lines), file=sys.stderr)
    return 1


def _version() -> str:
    from shem.version import COMPATIBLE_WITH, VERSION

    return f"yagna {COMPATIBLE_WITH} (shem {VERSION})"
