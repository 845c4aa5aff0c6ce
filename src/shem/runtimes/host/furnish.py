"""What programs expect to find and an image may lack: a place for temporary files, and the name of this machine."""

from __future__ import annotations

from contextlib import suppress

from shem.runtimes.base import HOSTNAME, GuestFileError
from shem.runtimes.guest.client import GuestAgent

AGENT = "/.shem-agent"
"""Where every driver puts the agent inside."""


async def furnish(guest: GuestAgent, hostname: str = HOSTNAME) -> None:
    """Make ``/tmp`` and ``/etc/hosts`` where there are none; an image that refuses goes without."""
    with suppress(GuestFileError):
        if not await _there(guest, "/tmp"):  # noqa: S108
            await guest.make_dir("/tmp", 0o1777)  # noqa: S108
        if not await _there(guest, "/etc/hosts"):
            hosts = f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {hostname}\n"
            await guest.put_file("/etc/hosts", hosts.encode())


async def _there(guest: GuestAgent, path: str) -> bool:
    try:
        entry = await guest.stat(path)
    except GuestFileError:
        return False
    return entry.kind != "file" or entry.size > 0
