"""Names that a sandbox is given: its own, and those of other machines."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from contextlib import aclosing

from shem.provider.exeunit.failures import CommandFailed
from shem.runtimes.base import GuestFileError
from shem.runtimes.guest.client import GuestAgent

HOSTS = "/etc/hosts"
MAX_HOSTS = 1024
_MAX_FILE = 256 << 10
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")


def check_hostname(name: str) -> str:
    """A name that a machine may have. Raises :class:`CommandFailed` (``bad_hostname``)."""
    if len(name) > 64 or not _NAME.fullmatch(name):
        raise CommandFailed("bad_hostname", f"{name[:80]!r} is not the name of a machine")
    return name


def check_hosts(hosts: Mapping[str, str]) -> dict[str, str]:
    """Names and their addresses. Raises :class:`CommandFailed` (``bad_hosts``)."""
    if len(hosts) > MAX_HOSTS:
        raise CommandFailed("bad_hosts", f"{len(hosts)} names are more than {MAX_HOSTS}")
    for name, address in hosts.items():
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise CommandFailed("bad_hosts", f"{address[:80]!r} is not an address") from None
        if len(name) > 253 or not _NAME.fullmatch(name):
            raise CommandFailed("bad_hosts", f"{name[:80]!r} is not the name of a machine")
    return dict(hosts)


async def add_hosts(guest: GuestAgent, hosts: Mapping[str, str]) -> None:
    """Add names to ``/etc/hosts``. Raises :class:`CommandFailed` (``bad_hosts``)."""
    if not hosts:
        return
    lines = bytearray()
    try:
        try:
            async with aclosing(guest.get_file(HOSTS)) as pieces:
                async for piece in pieces:
                    lines += piece
                    if len(lines) > _MAX_FILE:
                        raise CommandFailed("bad_hosts", f"the image's {HOSTS} is too large")
        except GuestFileError:
            lines.clear()
        if lines and not lines.endswith(b"\n"):
            lines += b"\n"
        lines += "".join(f"{address} {name}\n" for name, address in hosts.items()).encode()
        await guest.put_file(HOSTS, bytes(lines))
    except GuestFileError as error:
        raise CommandFailed("bad_hosts", f"{HOSTS} cannot be written: {error.message}") from None
