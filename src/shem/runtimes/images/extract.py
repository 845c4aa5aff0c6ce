"""Unpack one layer into a directory, for use as an overlayfs layer, believing nothing it says.

All path work goes through the kernel's ``RESOLVE_IN_ROOT``; nothing is ever opened through a link that the layer brought,
and what is in the way of an entry is removed before the entry is made. Of attributes, setuid and setgid bits, devices and
all extended attributes but harmless ``user.*`` ones are dropped. A layer's *whiteouts* become overlayfs's: a ``c 0 0``
device for "this is gone", an ``opaque`` attribute for "nothing below shows through". The attribute is written as
``user.overlay.opaque`` (for mounts with ``userxattr``) and, by root, also as ``trusted.overlay.opaque`` (for mounts
without).

A layer directory depends on the layer alone, so layers can be unpacked in any order and shared. Two things cannot be known
without the layers below: the owner and mode of a directory that has no entry of its own, and the content of a hard link
whose target is further down. Both are listed in the :class:`Unpacked` report, and :mod:`.patch` settles them.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
from pathlib import Path

import msgspec

from shem.cogs.ociformat import ImageUnusable
from shem.runtimes.images.errors import ImageTooLarge
from shem.runtimes.images.inroot import OPAQUE, is_whiteout, open_in_root
from shem.runtimes.images.tarstream import DIR, FIFO, FILE, HARDLINK, SYMLINK, Member, TarStream

PREFIX, OPAQUE_MARK, RESERVED = b".wh.", b".wh..wh..opq", b".wh..wh."
_MAX_DEPTH = 255
_MAX_CACHED = 200  # directory fds; the soft limit of open files is often 1024
_MAX_LISTED = 100_000
_MAX_LISTED_BYTES = 16 << 20
_MAX_ID = 0xFFFF_FFFE
_MAX_TIME = 1 << 34
_SETID = 0o6000
_CHUNK = 1 << 20


class Unpacked(msgspec.Struct, kw_only=True):
    """What came out of a layer. Paths are Latin-1 texts of their bytes, so that any of them fits into JSON."""

    files: int = 0
    bytes: int = 0
    implicit: list[str] = []
    """Directories that exist only because something in them does."""
    dangling: list[tuple[str, str]] = []
    """Hard links ``(name, target)`` whose target is not in this layer."""
    skipped: dict[str, int] = {}
    """What was left out, and how often."""


class Extractor:
    """Unpacks members into ``root``, an empty directory. Use: :meth:`add` each, then :meth:`finish`, then
    :meth:`close`."""

    def __init__(
        self, root: Path, *, max_bytes: int, max_files: int, as_root: bool | None = None, whiteouts: bool = True
    ) -> None:
        """``whiteouts``: whether names that say what disappears below have that meaning; else they are files like others."""
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._as_root = os.geteuid() == 0 if as_root is None else as_root
        self._whiteouts = whiteouts
        self._opaque = OPAQUE if self._as_root else OPAQUE[:1]
        self._parents: dict[bytes, int] = {}
        self._dirs: dict[bytes, tuple[int, int, int, float]] = {}
        self._implicit: set[bytes] = set()
        self._stale = False  # a directory or link that cached fds may have gone through was removed
        self.report = Unpacked()

    def add(self, tar: TarStream, member: Member) -> None:
        """Make one entry. Raises :class:`ImageUnusable`, :class:`ImageTooLarge`, :class:`OSError`."""
        self.report.files += 1
        self.report.bytes += member.size
        if self.report.files > self._max_files:
            raise ImageTooLarge(f"a layer has more than {self._max_files} files")
        if self.report.bytes > self._max_bytes:
            raise ImageTooLarge(f"a layer has more than {self._max_bytes >> 20} MiB")
        if self._stale:
            self._forget_parents()
        parts = path_parts(member.name)
        if not parts:
            if member.kind == DIR:
                self._remember(b"", member)
            return
        try:
            self._place(tar, member, parts)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.EMLINK, errno.ENOTDIR, errno.ENOENT):
                raise ImageUnusable(f"a layer has an impossible path {member.name[:80]!r}: {error.strerror}") from None
            raise

    def finish(self) -> Unpacked:
        """Give directories their owners, modes and times: last, because making entries needs and changes them."""
        for path, (mode, uid, gid, mtime) in reversed(self._dirs.items()):
            try:
                fd = open_in_root(self._root, path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except OSError:
                continue  # replaced by something else later in the layer
            try:
                self._attributes(fd, mode if self._as_root else mode | 0o700, uid, gid, mtime)
            finally:
                os.close(fd)
        listed = [path for path in sorted(self._implicit) if self._is_directory(path)]
        size = sum(map(len, listed)) + sum(len(name) + len(to) for name, to in self.report.dangling)
        if len(listed) > _MAX_LISTED or size > _MAX_LISTED_BYTES:
            raise ImageUnusable("a layer leaves too much to the layers below it")
        self.report.implicit = [_text(path) for path in listed]
        return self.report

    def _is_directory(self, path: bytes) -> bool:
        try:
            os.close(open_in_root(self._root, path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW))
        except OSError:
            return False  # removed again later in the layer
        return True

    def close(self) -> None:
        """Let go of the directory."""
        self._forget_parents()
        os.close(self._root)

    def _place(self, tar: TarStream, member: Member, parts: list[bytes]) -> None:
        name, parent = parts[-1], self._parent(parts[:-1])
        if self._whiteouts and name.startswith(PREFIX):
            self._hide(name, parent)
            return
        path = b"/".join(parts)
        if member.kind == DIR:
            self._directory(path, name, parent, member)
            return
        if member.kind not in (FILE, SYMLINK, HARDLINK, FIFO):
            self._skip("device" if member.kind in b"34" else "other")
            return
        self._implicit.discard(path)
        if member.kind == HARDLINK:
            self._hardlink(path, name, parent, member)
            return
        self._clear(name, parent)
        if member.kind == FILE:
            self._file(tar, name, parent, member)
        elif member.kind == SYMLINK:
            if not member.link or b"\0" in member.link:
                raise ImageUnusable(f"a layer has a malformed link {member.name[:80]!r}")
            os.symlink(member.link, name, dir_fd=parent)
            if self._as_root:
                os.chown(name, *_owner(member.uid, member.gid), dir_fd=parent, follow_symlinks=False)
        else:
            os.mkfifo(name, member.mode & 0o777, dir_fd=parent)
            if self._as_root:
                os.chown(name, *_owner(member.uid, member.gid), dir_fd=parent, follow_symlinks=False)

    def _directory(self, path: bytes, name: bytes, parent: int, member: Member) -> None:
        found = _lstat(name, parent)
        if found is None or not stat.S_ISDIR(found.st_mode):
            self._make_directory(name, parent, found)
        self._implicit.discard(path)
        self._remember(path, member)

    def _make_directory(self, name: bytes, parent: int, found: os.stat_result | None) -> None:
        if found is not None:
            self._clear(name, parent)
        os.mkdir(name, 0o755, dir_fd=parent)
        if found is not None and is_whiteout(found):
            # The layer removes what was here and makes it anew: what was in it must stay hidden.
            self._make_opaque(name, parent)

    def _remember(self, path: bytes, member: Member) -> None:
        self._dirs[path] = (member.mode, *_owner(member.uid, member.gid), member.mtime)  # the last word counts

    def _file(self, tar: TarStream, name: bytes, parent: int, member: Member) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            while piece := tar.read(_CHUNK):
                view = memoryview(piece)
                while view:
                    view = view[os.write(fd, view) :]
            for key, value in member.xattrs.items():
                if key.startswith(b"user.") and not key.startswith(b"user.overlay."):
                    try:
                        os.setxattr(fd, key, value)
                    except OSError:
                        self._skip("xattr")
                else:
                    self._skip("xattr")
            mode = member.mode if self._as_root else member.mode | 0o400
            self._attributes(fd, mode, *_owner(member.uid, member.gid), member.mtime)
        finally:
            os.close(fd)

    def _hardlink(self, path: bytes, name: bytes, parent: int, member: Member) -> None:
        target = path_parts(member.link)
        if not target:
            raise ImageUnusable(f"a layer has a malformed link {member.name[:80]!r}")
        if target == path_parts(member.name):
            return
        found, holder = None, -1
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            holder = open_in_root(self._root, b"/".join(target[:-1]), os.O_PATH | os.O_DIRECTORY)
        try:
            if holder >= 0:
                found = _lstat(target[-1], holder)
            if found is None or is_whiteout(found):
                self._clear(name, parent)
                self.report.dangling.append((_text(path), _text(b"/".join(target))))
                if len(self.report.dangling) > _MAX_LISTED:
                    raise ImageUnusable("a layer leaves too much to the layers below it")
                return
            if stat.S_ISDIR(found.st_mode):
                raise ImageUnusable(f"a layer has a hard link to a directory: {member.name[:80]!r}")
            there = _lstat(name, parent)
            if there is not None and (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino):
                return
            self._clear(name, parent)
            os.link(target[-1], name, src_dir_fd=holder, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            if holder >= 0:
                os.close(holder)

    def _hide(self, name: bytes, parent: int) -> None:
        if name == OPAQUE_MARK:
            self._make_opaque(b".", parent)
        elif name.startswith(RESERVED):
            self._skip("aufs")
        else:
            self._whiteout(name[len(PREFIX) :], parent)

    def _whiteout(self, name: bytes, parent: int) -> None:
        if name in (b"", b".", b".."):
            raise ImageUnusable("a layer has a malformed whiteout")
        found = _lstat(name, parent)
        if found is None:
            try:
                os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)
            except PermissionError as error:
                raise OSError(errno.EPERM, "this kernel does not let us make whiteouts (Linux 5.8 does)") from error
        elif stat.S_ISDIR(found.st_mode):
            # A whiteout speaks of the layers below only; what this layer itself put here stays.
            self._make_opaque(name, parent)

    def _make_opaque(self, name: bytes, parent: int) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            for attribute in self._opaque:
                os.setxattr(fd, attribute, b"y")
        finally:
            os.close(fd)

    def _attributes(self, fd: int, mode: int, uid: int, gid: int, mtime: float) -> None:
        if self._as_root:
            os.fchown(fd, uid, gid)
        os.fchmod(fd, mode & 0o7777 & ~_SETID)
        when = min(max(mtime, 0.0), _MAX_TIME) if not math.isnan(mtime) else 0.0
        os.utime(fd, (when, when))

    def _parent(self, parts: list[bytes]) -> int:
        """The fd of a directory, made (with all above it) where it doesn't exist."""
        if not parts:
            return self._root
        path = b"/".join(parts)
        fd = self._parents.get(path)
        if fd is not None:
            return fd
        try:
            fd = open_in_root(self._root, path, os.O_PATH | os.O_DIRECTORY)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            above = self._parent(parts[:-1])
            self._make_directory(parts[-1], above, _lstat(parts[-1], above))
            self._implicit.add(path)
            fd = os.open(parts[-1], os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        if len(self._parents) >= _MAX_CACHED:
            self._forget_parents()
        self._parents[path] = fd
        return fd

    def _forget_parents(self) -> None:
        self._stale = False
        while self._parents:
            os.close(self._parents.popitem()[1])

    def _clear(self, name: bytes, parent: int) -> None:
        """Remove what is at ``name``, so that what is made next is new."""
        found = _lstat(name, parent)
        if found is None:
            return
        if stat.S_ISDIR(found.st_mode):
            _remove_tree(name, parent)
        else:
            os.unlink(name, dir_fd=parent)
        self._stale = self._stale or not stat.S_ISREG(found.st_mode)

    def _skip(self, why: str) -> None:
        self.report.skipped[why] = self.report.skipped.get(why, 0) + 1


def path_parts(name: bytes) -> list[bytes]:
    """The components of an entry's name; none for the root. Raises :class:`ImageUnusable` for what leads out, or is too long."""
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts or b"\0" in name:
        raise ImageUnusable(f"a layer has a path that leads out of it: {name[:80]!r}")
    if len(name) > 4096 or len(parts) > _MAX_DEPTH or any(len(part) > 255 for part in parts):
        raise ImageUnusable(f"a layer has a path that is too long: {name[:80]!r}")
    return parts


def _owner(uid: int, gid: int) -> tuple[int, int]:
    if not (0 <= uid <= _MAX_ID and 0 <= gid <= _MAX_ID):
        raise ImageUnusable(f"a layer has a file of the impossible owner {uid}:{gid}")
    return uid, gid


def _lstat(name: bytes, parent: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _remove_tree(name: bytes, parent: int) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        with os.scandir(fd) as entries:
            names = [os.fsencode(entry.name) for entry in entries]
        for below in names:
            found = _lstat(below, fd)
            if found is not None and stat.S_ISDIR(found.st_mode):
                _remove_tree(below, fd)
            else:
                os.unlink(below, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)


def _text(path: bytes) -> str:
    return path.decode("latin-1")
