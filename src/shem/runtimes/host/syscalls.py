"""The few system calls that Python does not have: moving mounts, mapping their owners, unmounting."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # the same numbers on every architecture
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_IDMAP = 1, 2, 4, 0x100000
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8


def _call(number: int, *arguments: int | bytes) -> int:
    values = [ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *values))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def bind_mount(source: Path, target: Path, *, userns_fd: int | None = None, read_only: bool) -> None:
    """Mount ``source`` (a directory or a file) on ``target``, without setuid and devices.

    With ``userns_fd`` the owners are mapped: uid 0 on disk is uid 0 of that user namespace. Raises :class:`OSError`.
    """
    tree = _call(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | os.O_CLOEXEC)
    try:
        flags = _ATTR_NODEV | _ATTR_NOSUID | (_ATTR_RDONLY if read_only else 0)
        flags |= _ATTR_IDMAP if userns_fd is not None else 0
        attributes = struct.pack("QQQQ", flags, 0, 0, userns_fd if userns_fd is not None else 0)
        _call(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, attributes, len(attributes))
        _call(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(tree)


def unmount(target: Path) -> bool:
    """Detach one mount from a path; ``False`` when there is none."""
    return int(_libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW)) == 0


def mounts_below(root: Path) -> list[Path]:
    """Mount points under a directory, deepest and latest first."""
    found = []
    with Path("/proc/self/mountinfo").open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            point = line.split(" ")[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
            if point.startswith(f"{root}/"):
                found.append(Path(point))
    return found[::-1]


def unmount_below(root: Path) -> None:
    """Detach everything mounted under a directory."""
    for point in mounts_below(root):
        unmount(point)
