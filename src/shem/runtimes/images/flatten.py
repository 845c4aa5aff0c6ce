"""The layers of an image as one root file system, without a file system: ownership, devices and attributes that only root
could write to a disk are kept.

The layers are read twice. The first time their entries are applied, bottom first, to a tree in memory that remembers of each
file where its content is; the second time the content that is still wanted is copied as it comes by. What is written, and in
which order, follows from the layers alone.

A layer is applied as overlayfs would stack it: what it says is gone is gone in the layers below, not in itself, and a directory
that it has no entry for hides a link or file of that name below.
"""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from shem.cogs.ociformat import ImageUnusable
from shem.runtimes.images.errors import ImageDigestMismatch, ImageTooLarge
from shem.runtimes.images.extract import OPAQUE_MARK, PREFIX, RESERVED, path_parts
from shem.runtimes.images.layer import DAMAGES, Part, decompressed
from shem.runtimes.images.tarstream import (
    BLOCKDEV,
    CHAR,
    DIR,
    FIFO,
    FILE,
    HARDLINK,
    SYMLINK,
    Member,
    TarStream,
)
from shem.runtimes.images.tarwriter import TarWriter

_BUFFER = 1 << 18
_HOPS = 40
_MAX_PENDING = 5000
_MAX_DEPTH = 255
_XATTRS = (b"user.", b"trusted.", b"security.")
_OVERLAY = (b"user.overlay.", b"trusted.overlay.")
_KNOWN = (FILE, SYMLINK, DIR, FIFO, CHAR, BLOCKDEV)

Progress = Callable[[int], None]
"""Hears how many more compressed bytes were read."""


class LayerAt(msgspec.Struct, frozen=True, kw_only=True):
    """The blob of a layer in a file."""

    path: Path
    offset: int
    size: int
    digest: str
    """Of the blob."""
    diff_id: str
    """Of the tar in it."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What an image may be."""

    max_bytes: int = 20 << 30
    max_files: int = 1_000_000


class _Node:
    """A file, directory, link or device; several entries may lead to one file."""

    __slots__ = ("children", "depth", "member", "place")

    def __init__(self, member: Member, place: tuple[int, int], depth: int) -> None:
        self.member = member
        self.place = place
        self.depth = depth
        self.children: dict[bytes, _Entry] | None = {} if member.kind == DIR else None


class _Entry:
    """A name in a directory, and the number of the layer that put it there."""

    __slots__ = ("layer", "node")

    def __init__(self, node: _Node, layer: int) -> None:
        self.node = node
        self.layer = layer


class FlatImage:
    """Make one of an image's layers, bottom first; then :meth:`write` it."""

    def __init__(self, layers: Sequence[LayerAt], limits: Limits, progress: Progress) -> None:
        """Reads all layers. Raises :class:`ImageUnusable`, :class:`ImageTooLarge`, :class:`ImageDigestMismatch`,
        :class:`OSError`."""
        self._layers = layers
        self._limits = limits
        self._progress = progress
        self._root = _Node(_directory(), (-1, -1), 0)
        self._layer = -1
        self._files = 0
        self.left_out: dict[str, int] = {}
        """What could not be kept, and how often."""
        for number, layer in enumerate(layers):
            self._layer = number
            with _reading(layer, limits, progress, verified=True) as stream:
                for ordinal, member in enumerate(stream):
                    self._apply(member, (number, ordinal))

    # -- reading -------------------------------------------------------------------------------------------------

    def read(self, path: bytes, limit: int) -> bytes | None:
        """The content of a file; None when there is none of at most ``limit`` bytes at ``path``."""
        node = self._resolve(path_parts(path))
        if node is None or node.member.kind != FILE or node.member.size > limit:
            return None
        number, wanted = node.place
        with _reading(self._layers[number], self._limits, lambda _: None, verified=False) as stream:
            for ordinal, _ in enumerate(stream):
                if ordinal == wanted:
                    return b"".join(iter(lambda: stream.read(_BUFFER), b""))
        return None

    def write(self, tar: TarWriter) -> None:
        """Write the tree: directories, then what has no content, then files as their layers have them, then further names
        of files. Raises as the constructor."""
        files: dict[tuple[int, int], tuple[bytes, _Node]] = {}
        plain: list[tuple[bytes, _Node]] = []
        links: list[tuple[bytes, bytes]] = []
        for path, node in self._walk():
            if node.member.kind == DIR:
                tar.add(b"./" + path, node.member)
            elif node.member.kind != FILE:
                plain.append((path, node))
            elif (first := files.setdefault(node.place, (path, node)))[0] != path:
                links.append((path, first[0]))
        for path, node in plain:
            tar.add(b"./" + path, node.member)
        self._write_files(tar, files)
        for path, target in links:
            tar.add(b"./" + path, Member(path, HARDLINK, 0o644, 0, 0, 0, 0.0, b"./" + target))
        tar.close()

    def _write_files(self, tar: TarWriter, files: dict[tuple[int, int], tuple[bytes, _Node]]) -> None:
        used = {number for number, _ in files}
        for number, layer in enumerate(self._layers):
            if number not in used:
                self._progress(layer.size)
                continue
            with _reading(layer, self._limits, self._progress, verified=False) as stream:
                for ordinal, _ in enumerate(stream):
                    if (found := files.get((number, ordinal))) is not None:
                        tar.add(b"./" + found[0], found[1].member, stream.read)

    def _walk(self) -> Iterator[tuple[bytes, _Node]]:
        """Everything, sorted, a directory before what is in it."""
        waiting = [(b"", self._root)]
        while waiting:
            path, node = waiting.pop()
            yield path, node
            if node.children is not None:
                for name in sorted(node.children, reverse=True):
                    waiting.append((path + b"/" + name if path else name, node.children[name].node))

    # -- applying ------------------------------------------------------------------------------------------------

    def _apply(self, member: Member, place: tuple[int, int]) -> None:
        parts = path_parts(member.name)
        if not parts:
            if member.kind == DIR:
                self._keep_storable(member)
                self._root.member = member
            return
        name, parent = parts[-1], self._parent(parts[:-1])
        if name.startswith(PREFIX):
            self._hide(name, parent)
        elif member.kind == HARDLINK:
            self._link(name, parent, member)
        elif member.kind not in _KNOWN:
            self._leave_out("entries of unknown kind")
        else:
            self._keep_storable(member)
            if member.kind == SYMLINK and (not member.link or b"\0" in member.link):
                raise ImageUnusable(f"a layer has a malformed link {member.name[:80]!r}")
            self._put(name, parent, member, place)

    def _keep_storable(self, member: Member) -> None:
        """A squashfs has room for these attributes only; those of overlayfs are about a stack, not about an image."""
        for key in [key for key in member.xattrs if not key.startswith(_XATTRS) or key.startswith(_OVERLAY)]:
            del member.xattrs[key]
            self._leave_out("extended attributes")

    def _put(self, name: bytes, parent: _Node, member: Member, place: tuple[int, int]) -> None:
        children = _children(parent)
        found = children.get(name)
        if found is not None and member.kind == DIR and found.node.children is not None:
            found.node.member, found.layer = member, self._layer
            return
        self._count()
        children[name] = _Entry(_Node(member, place, parent.depth + 1), self._layer)

    def _link(self, name: bytes, parent: _Node, member: Member) -> None:
        target = path_parts(member.link)
        if not target:
            raise ImageUnusable(f"a layer has a malformed link {member.name[:80]!r}")
        found = self._target(target)
        if found is None:
            self._leave_out("hard links to nothing")
            return
        if found.node.children is not None:
            raise ImageUnusable(f"a layer has a hard link to a directory: {member.name[:80]!r}")
        self._count()
        _children(parent)[name] = _Entry(found.node, self._layer)

    def _target(self, target: list[bytes]) -> _Entry | None:
        """Of a hard link: in this layer, or just there in those below."""
        holder = self._resolve(target[:-1], layer=self._layer)
        found = (holder.children or {}).get(target[-1]) if holder is not None else None
        if found is not None and found.layer == self._layer:
            return found
        found, at = None, self._root
        for part in target:
            found = (at.children or {}).get(part)
            if found is None:
                return None
            at = found.node
        return found

    def _hide(self, name: bytes, parent: _Node) -> None:
        if name == OPAQUE_MARK:
            self._prune(parent)
        elif name.startswith(RESERVED):
            self._leave_out("marks of aufs")
        else:
            self._prune(parent, name[len(PREFIX) :])

    def _prune(self, directory: _Node, only: bytes | None = None) -> bool:
        """Remove what lower layers put there (at ``only`` one name). Returns whether anything is left."""
        children = _children(directory)
        for name in [only] if only is not None else list(children):
            entry = children.get(name)
            if entry is None:
                continue
            left = entry.node.children is not None and self._prune(entry.node)
            if not left and entry.layer < self._layer:
                del children[name]
        return bool(children)

    def _parent(self, parts: list[bytes]) -> _Node:
        """The directory of an entry, made (with all above it) where it doesn't exist."""
        at = self._root
        for depth, part in enumerate(parts, 1):
            children = _children(at)
            found = children.get(part)
            if found is not None and found.node.member.kind == SYMLINK and found.layer == self._layer:
                there = self._resolve(parts[:depth], layer=self._layer)
                if there is not None and there.children is not None:
                    at = there
                    continue
            if found is None or found.node.children is None:
                self._count()
                if at.depth >= _MAX_DEPTH:
                    raise ImageUnusable(f"a layer has a path that is too long: {b'/'.join(parts)[:80]!r}")
                found = children[part] = _Entry(_Node(_directory(), (-1, -1), at.depth + 1), self._layer)
            found.layer = self._layer
            at = found.node
        return at

    def _resolve(self, parts: Sequence[bytes], *, layer: int = -1) -> _Node | None:
        """What is at a path when all links are followed, inside the tree; only in ``layer``, if one is given."""
        trail = [self._root]
        pending = deque(parts)
        hops = 0
        while pending:
            part = pending.popleft()
            if part in (b"", b"."):
                continue
            if part == b"..":
                trail = trail[:-1] or trail
                continue
            entry = (trail[-1].children or {}).get(part)
            if entry is None or layer not in (-1, entry.layer):
                return None
            if entry.node.member.kind != SYMLINK:
                trail.append(entry.node)
                continue
            hops += 1
            link = entry.node.member.link
            pending.extendleft(reversed(link.split(b"/")))
            if hops > _HOPS or len(pending) > _MAX_PENDING:
                return None
            if link.startswith(b"/"):
                trail = trail[:1]
        return trail[-1]

    def _count(self) -> None:
        self._files += 1
        if self._files > self._limits.max_files:
            raise ImageTooLarge(f"the image has more than {self._limits.max_files} files")

    def _leave_out(self, what: str) -> None:
        self.left_out[what] = self.left_out.get(what, 0) + 1


def _directory() -> Member:
    return Member(b"", DIR, 0o755, 0, 0, 0, 0.0, b"")


def _children(node: _Node) -> dict[bytes, _Entry]:
    if node.children is None:
        raise ImageUnusable("a layer uses a file as a directory")
    return node.children


@contextmanager
def _reading(layer: LayerAt, limits: Limits, progress: Progress, *, verified: bool) -> Iterator[TarStream]:
    """A layer's tar; all of it is read and checked before this ends, if it is to be ``verified``."""
    told = 0

    def tell(done: int) -> None:
        nonlocal told
        progress(done - told)
        told = done

    with layer.path.open("rb") as file:
        file.seek(layer.offset)
        part = Part(file, layer.size, tell, hashing=verified)
        tar = decompressed(io.BufferedReader(part, _BUFFER))
        sha = hashlib.sha256()
        most = limits.max_bytes + limits.max_files * 2048
        count = 0

        def read(size: int) -> bytes:
            nonlocal count
            piece = tar.read(size)
            count += len(piece)
            if count > most:
                raise ImageTooLarge(f"a layer unpacks to more than {limits.max_bytes >> 20} MiB")
            if verified:
                sha.update(piece)
            return piece

        try:
            yield TarStream(read)
            while read(_BUFFER):
                pass
        except DAMAGES as error:
            raise ImageUnusable(f"a layer cannot be decompressed: {error}") from None
        part.drain()
    tell(layer.size)
    if verified and part.digest() != layer.digest:
        raise ImageDigestMismatch(f"a layer is {part.digest()}, not {layer.digest} as its name says")
    if verified and (found := f"sha256:{sha.hexdigest()}") != layer.diff_id:
        raise ImageDigestMismatch(f"a layer unpacks to {found}, and the image's configuration says {layer.diff_id}")
