"""Places for root's sandboxes: each a range of user ids, a directory for mounts and a name, locked while in use.

A slot is ``/run/shem/<n>``: the uids ``FIRST_UID + n * UIDS`` up, the control group ``/shem/<n>``, the container
``shem-<n>``. The lock is a ``flock`` and dies with its process, and with the children that the lock was lent to. So a slot
that has remains but no lock was left by a crash, and whoever takes the lock may sweep it: nothing comes up behind the broom.
Only root and the slot's own first group can enter the directory.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from shem.runtimes.base import SandboxFailed

RUN = Path("/run/shem")
FIRST_UID = 10_000_000
UIDS = 65536
SLOTS = 1024


class Slot:
    """A locked slot."""

    def __init__(self, number: int, lock_fd: int) -> None:
        self.number = number
        self._lock_fd = lock_fd

    @property
    def uid(self) -> int:
        """The host's uid (and gid) of root inside."""
        return FIRST_UID + self.number * UIDS

    @property
    def name(self) -> str:
        return str(self.number)

    @property
    def directory(self) -> Path:
        return RUN / self.name

    @property
    def lock_fd(self) -> int:
        """For a child that still works on the slot when we are killed: inherited, it holds the lock until the child ends."""
        return self._lock_fd

    def make_directory(self) -> None:
        self.directory.mkdir(mode=0o710)
        os.chown(self.directory, 0, self.uid)
        self.directory.chmod(0o710)

    def release(self) -> None:
        """Give the slot back. Idempotent."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def take_slot() -> Slot:
    """A free slot; it may hold the remains of a crash. Raises :class:`SandboxFailed` when all are in use."""
    for number in range(SLOTS):
        slot = _try_lock(number)
        if slot is not None:
            return slot
    raise SandboxFailed(f"All {SLOTS} sandbox slots of this machine are in use", code="no_slot")


def abandoned_slots() -> Iterator[Slot]:
    """Slots with remains that nobody holds; each is locked for the caller, who releases it."""
    if os.geteuid() != 0 or not RUN.is_dir():
        return  # slots are root's; another user's sandboxes have none, and may not even look
    for entry in sorted(RUN.iterdir()):
        if entry.name.isdecimal() and entry.is_dir() and (slot := _try_lock(int(entry.name))) is not None:
            yield slot


def _try_lock(number: int) -> Slot | None:
    RUN.mkdir(mode=0o711, exist_ok=True)
    fd = os.open(RUN / f"{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return Slot(number, fd)
