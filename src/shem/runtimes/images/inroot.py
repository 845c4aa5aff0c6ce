"""File work below a directory whose content a stranger wrote.

``openat2`` with ``RESOLVE_IN_ROOT`` (Linux 5.6) makes the kernel treat a directory as ``/``: ``..`` and symbolic links, also
absolute ones, cannot lead out of it, whatever happens at the same time. :class:`Stack` looks things up in several such
directories as overlayfs would show them, without mounting anything and without following any link.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

_SYS_OPENAT2 = 437  # the same number on every architecture
_NO_MAGICLINKS, _IN_ROOT = 0x02, 0x10
_TRIES = 100
OPAQUE = ("user.overlay.opaque", "trusted.overlay.opaque")

_libc = ctypes.CDLL(None, use_errno=True)


def open_in_root(root: int, path: bytes, flags: int) -> int:
    """Open an existing ``path`` with ``root`` (a directory's fd) as ``/``. Raises :class:`OSError`."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, _IN_ROOT | _NO_MAGICLINKS)
    for _ in range(_TRIES):
        result: int = _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(root),
            ctypes.c_char_p(path or b"."),
            ctypes.c_char_p(how),
            ctypes.c_size_t(len(how)),
        )
        if result >= 0:
            return result
        code = ctypes.get_errno()
        if code != errno.EAGAIN:  # EAGAIN: something was renamed meanwhile and the kernel could not be sure
            break
    raise OSError(code, os.strerror(code), path)


def sync_file_system(fd: int) -> None:
    """Wait until everything written to the file system of ``fd`` is on the disk."""
    if _libc.syncfs(ctypes.c_int(fd)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def is_whiteout(found: os.stat_result) -> bool:
    """Whether overlayfs reads this as "nothing is here"."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def is_opaque(directory: int) -> bool:
    """Whether a directory (an fd that is not O_PATH) hides the layers below it."""
    for name in OPAQUE:
        try:
            if os.getxattr(directory, name) == b"y":
                return True
        except OSError:
            continue
    return False


class Stack:
    """Layer directories, bottom first, seen as one tree. A context manager: it holds one fd for each layer."""

    def __init__(self, layers: Sequence[Path]) -> None:
        self._roots: list[int] = []
        try:
            for layer in reversed(layers):
                self._roots.append(os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError:
            self.close()
            raise

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        while self._roots:
            os.close(self._roots.pop())

    def find(self, path: bytes) -> int | None:
        """An ``O_PATH`` fd (the caller closes it) of what is at ``path``, not following links; None: nothing is."""
        for root in self._roots:
            fd, deeper = _descend(root, [part for part in path.split(b"/") if part])
            if fd is not None or not deeper:
                return fd
        return None


def _descend(root: int, parts: list[bytes]) -> tuple[int | None, bool]:
    """In one layer: the fd if it is there; else whether the layers below may still show it."""
    deeper = True
    at = os.dup(root)
    for number, part in enumerate(parts):
        try:
            below = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
        except FileNotFoundError:
            return None, deeper
        finally:
            os.close(at)
        at = below
        found = os.fstat(at)
        last = number == len(parts) - 1
        if is_whiteout(found) or not (last or stat.S_ISDIR(found.st_mode)):
            os.close(at)
            return None, False
        if not last:
            deeper = deeper and not _opaque_at(at)
    return at, deeper


def _opaque_at(directory: int) -> bool:
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return is_opaque(fd)
    finally:
        os.close(fd)
