"""Settle what a layer left to the layers below it, in a small layer of its own that goes right above it.

Only layers that some build tools make need this: those with a file in ``/tmp`` but no entry for ``/tmp`` (whose mode 1777
would then become 0755), or with a hard link to a file of an earlier layer. The patch holds such directories with the owner,
mode and time they have below, and copies of such files. It depends on all layers below, so it is named after them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from shem.runtimes.images.errors import ImageTooLarge
from shem.runtimes.images.extract import Unpacked
from shem.runtimes.images.inroot import Stack

_DEFAULT_MODE = 0o755
_CHUNK = 1 << 20


def make_patch(lower: Sequence[Path], layer: Path, report: Unpacked, into: Path, *, max_bytes: int) -> Unpacked:
    """Fill ``into`` (an empty directory) with what ``layer`` needs from ``lower`` (bottom first); no files: nothing.

    Raises :class:`ImageTooLarge` when the copies exceed ``max_bytes``, and :class:`OSError`.
    """
    with Stack(lower) as below, Stack([*lower, layer]) as here:
        work = _Patch(below, here, {path.encode("latin-1") for path in report.implicit}, into)
        for path in report.implicit:
            work.directory_if_different(path.encode("latin-1"))
        copied = 0
        for name, target in report.dangling:
            copied += work.copy(name.encode("latin-1"), target.encode("latin-1"), max_bytes - copied)
        work.finish()
        return Unpacked(files=work.made, bytes=copied)


class _Patch:
    def __init__(self, below: Stack, here: Stack, implicit: set[bytes], into: Path) -> None:
        self._below = below
        self._here = here
        self._implicit = implicit
        self._into = os.fsencode(into)
        self._as_root = os.geteuid() == 0
        self._made: dict[bytes, os.stat_result | None] = {b"": None}
        self.made = 0

    def directory_if_different(self, path: bytes) -> None:
        found = _stat(self._below, path)
        if found is None or not stat.S_ISDIR(found.st_mode):
            return
        if (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) != (_DEFAULT_MODE, os.geteuid(), os.getegid()):
            self._directory(path)

    def copy(self, name: bytes, target: bytes, max_bytes: int) -> int:
        source = self._here.find(target)
        if source is None:
            return 0  # as in docker, a link to nothing is no reason to refuse the image; whoever needs it will miss it
        try:
            found = os.fstat(source)
            if not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
                return 0
            if found.st_size > max_bytes:
                raise ImageTooLarge("an image has links to more data than it may have")
            self._directory(name.rpartition(b"/")[0])
            self.made += 1
            place = os.path.join(self._into, name)  # noqa: PTH118 (bytes)
            if stat.S_ISLNK(found.st_mode):
                os.symlink(os.readlink(b"", dir_fd=source), place)  # noqa: PTH211
                if self._as_root:
                    os.chown(place, found.st_uid, found.st_gid, follow_symlinks=False)
            else:
                _copy(source, place)
                self._attributes(place, found)
            return found.st_size
        finally:
            os.close(source)

    def finish(self) -> None:
        """Times last: making entries changes them."""
        for path, found in reversed(self._made.items()):
            if found is not None:
                self._attributes(os.path.join(self._into, path), found)  # noqa: PTH118

    def _directory(self, path: bytes) -> None:
        """``path`` and what is above it, as they are below (where the layer says nothing) or here."""
        if path in self._made:
            return
        self._directory(path.rpartition(b"/")[0])
        found = (_stat(self._below, path) if path in self._implicit else None) or _stat(self._here, path)
        os.mkdir(os.path.join(self._into, path), 0o755)  # noqa: PTH118, PTH102
        self._made[path] = found if found is not None and stat.S_ISDIR(found.st_mode) else None
        self.made += 1

    def _attributes(self, path: bytes, found: os.stat_result) -> None:
        if self._as_root:
            os.chown(path, found.st_uid, found.st_gid)
        os.chmod(path, stat.S_IMODE(found.st_mode))  # noqa: PTH101
        os.utime(path, ns=(found.st_mtime_ns, found.st_mtime_ns))


def _stat(stack: Stack, path: bytes) -> os.stat_result | None:
    fd = stack.find(path)
    if fd is None:
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _copy(source: int, place: bytes) -> None:
    with (
        open(f"/proc/self/fd/{source}", "rb") as file,  # noqa: PTH123 (an O_PATH fd of a regular file)
        open(place, "xb") as out,  # noqa: PTH123
    ):
        while piece := file.read(_CHUNK):
            out.write(piece)
