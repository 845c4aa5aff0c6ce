"""Volumes of a sandbox: directories that are empty at the start, whatever the image has there.

They lie on the sandbox's own disk, under the limit that was agreed for all of it, so any mix of volumes is within it; a
size that is asked for is checked against that limit. Where the image's files are in the way they are removed from the
sandbox's writable layer, and the image stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from shem.provider.exeunit.failures import CommandFailed
from shem.runtimes.base import GuestFileError
from shem.runtimes.guest.client import GuestAgent

MAX_VOLUMES = 128
KINDS = ("host", "ram", "storage")
_NO_PLACE = ("proc", "sys", "dev")
_SIZE = re.compile(r"\s*(\d{1,15})(?:\.(\d{1,9}))?\s*([kmgtp]?)(i?)b?\s*", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def plan_volumes(
    declared: Iterable[str], wanted: Iterable[str] | Mapping[str, Mapping[str, Any]], *, disk_bytes: int
) -> list[str]:
    """The paths of all volumes, parents before children: those of the image, and those of the deploy command.

    Raises :class:`CommandFailed` (``bad_volume``) for what cannot be one here.
    """
    found = {path for path in (_clean(text) for text in declared) if path != "/"}
    if isinstance(wanted, Mapping):
        for text, kind in wanted.items():
            path = _clean(text)
            _check_kind(path, kind, disk_bytes)
            found.add(path)
    else:
        for path in map(_clean, wanted):
            _check_root(path, "host")
            found.add(path)
    if len(found) > MAX_VOLUMES:
        raise _bad(f"{len(found)} volumes are more than {MAX_VOLUMES}")
    return sorted(found)


async def make_volumes(guest: GuestAgent, paths: Iterable[str], *, mode: int) -> None:
    """Make them, empty. Raises :class:`CommandFailed` (``bad_volume``)."""
    for path in paths:
        if path == "/":
            continue  # the whole root is writable already
        try:
            await guest.remove(path)
            await guest.make_dir(path, 0o1777 if path == "/tmp" else mode)  # noqa: S108
        except GuestFileError as error:
            raise _bad(f"{path} cannot be made: {error.message}") from None


def is_within(path: str, volumes: Iterable[str]) -> bool:
    """Whether an absolute path without ``..`` is a volume or below one."""
    whole = "/" + "/".join(part for part in path.split("/") if part not in ("", "."))
    return any(volume in ("/", whole) or whole.startswith(volume + "/") for volume in volumes)


def parse_size(text: object) -> int:
    """``512``, ``100k``, ``1.5GiB``, ``2 GB`` in bytes; letters without ``i`` count in thousands when a ``b`` follows, else in
    1024s. Raises :class:`CommandFailed` (``bad_volume``)."""
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    words = text if isinstance(text, str) else ""
    match = _SIZE.fullmatch(words)
    if match is None:
        raise _bad(f"{str(text)[:40]!r} is not a size")
    whole, part, letter, binary = match.groups()
    decimal = not binary and words.strip().lower().endswith("b")
    unit: int = (1000 if decimal else 1024) ** _POWERS[letter.lower()]
    fraction: int = 10 ** len(part or "")
    return int(whole) * unit + int(part or 0) * unit // fraction


def _check_kind(path: str, kind: Mapping[str, Any], disk_bytes: int) -> None:
    if len(kind) != 1 or next(iter(kind)) not in KINDS:
        raise _bad(f"{path}: the kind of a volume is one of {', '.join(KINDS)}")
    ((name, options),) = kind.items()
    _check_root(path, name)
    if name == "host":
        return
    if not isinstance(options, Mapping) or "size" not in options:
        raise _bad(f"{path}: a volume of kind {name} has a size")
    size = parse_size(options["size"])
    if size > disk_bytes:
        raise _bad(f"{path}: {size} bytes are more than the sandbox's disk has ({disk_bytes})")


def _check_root(path: str, kind: str) -> None:
    if path == "/" and kind == "host":
        raise _bad("a volume in place of the root is of kind ram or storage")


def _clean(text: str) -> str:
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if not text.startswith("/") or ".." in parts or "\0" in text or len(text) > 4000:
        raise _bad(f"{text[:200]!r} is not an absolute path")
    if parts and parts[0] in _NO_PLACE:
        raise _bad(f"{text[:200]!r}: nothing can be put there")
    return "/" + "/".join(parts)


def _bad(why: str) -> CommandFailed:
    return CommandFailed("bad_volume", why)
