"""Read a tar from a stream, one entry after the other, in constant memory.

The standard library's ``tarfile`` reads extended headers of any size into memory and keeps what it has seen, which a
stranger's layer must not be able to make us do. This reader knows the formats that image tools write (ustar, pax, GNU) and
bounds everything. Names are bytes, as the file system wants them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from shem.cogs.ociformat import ImageUnusable

BLOCK = 512
MAX_EXTENDED = 1 << 20
"""Bytes of one extended header: long names and extended attributes."""
_MAX_EXTENDED_IN_A_ROW = 8
_ZERO = bytes(BLOCK)
_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12x")
_WITHOUT_DATA = frozenset(b"123456")
_XATTR = b"SCHILY.xattr."

FILE, HARDLINK, SYMLINK, CHAR, BLOCKDEV, DIR, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"


class Member:
    """One entry. ``kind`` is one of the constants above, or the letter of a kind nobody needs. ``device``: major and minor
    number, of ``CHAR`` and ``BLOCKDEV``."""

    __slots__ = ("device", "gid", "kind", "link", "mode", "mtime", "name", "size", "uid", "xattrs")

    def __init__(
        self, name: bytes, kind: bytes, mode: int, uid: int, gid: int, size: int, mtime: float, link: bytes
    ) -> None:
        self.name = name
        self.kind = kind
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.mtime = mtime
        self.link = link
        self.xattrs: dict[bytes, bytes] = {}
        self.device = (0, 0)


class TarStream:
    """Iterate over the members; :meth:`read` gives the content of the current one (what isn't read is skipped)."""

    def __init__(self, source: Callable[[int], bytes]) -> None:
        """``source(n)`` returns 1 to ``n`` bytes, or none at the end."""
        self._source = source
        self._left = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Member]:
        while (member := self._next()) is not None:
            yield member

    def read(self, limit: int) -> bytes:
        """At most ``limit`` bytes of the current member; none at its end."""
        if not self._left:
            return b""
        piece = self._source(min(limit, self._left))
        if not piece:
            raise ImageUnusable("a layer ends in the middle of a file")
        self._left -= len(piece)
        return piece

    def _next(self) -> Member | None:
        extended: dict[bytes, bytes] = {}
        xattrs: dict[bytes, bytes] = {}
        for _ in range(_MAX_EXTENDED_IN_A_ROW):
            self._skip()
            block = self._exactly(BLOCK, at_end_ok=True)
            if not block or block == _ZERO:
                return None
            member = _parse(block)
            self._left = member.size
            self._padding = -member.size % BLOCK
            if member.kind == b"x":
                _pax(self._extended(), extended, xattrs)
            elif member.kind == b"L":
                extended[b"path"] = self._extended().rstrip(b"\0")
            elif member.kind == b"K":
                extended[b"linkpath"] = self._extended().rstrip(b"\0")
            elif member.kind == b"g":
                continue  # comments of the archive as a whole
            else:
                if extended:
                    self._override(member, extended)
                member.xattrs = xattrs
                if member.kind == b"0" and member.name.endswith(b"/"):
                    member.kind = DIR
                    self._left, self._padding = member.size, -member.size % BLOCK
                elif member.kind[0] in _WITHOUT_DATA:
                    member.size = self._left = self._padding = 0
                return member
        raise ImageUnusable("a layer has too many extended headers in a row")

    def _override(self, member: Member, extended: dict[bytes, bytes]) -> None:
        member.name = extended.get(b"path", member.name)
        member.link = extended.get(b"linkpath", member.link)
        try:
            member.uid = int(extended.get(b"uid", member.uid))
            member.gid = int(extended.get(b"gid", member.gid))
            member.mtime = float(extended.get(b"mtime", member.mtime))
            member.size = int(extended.get(b"size", member.size))
        except ValueError:
            raise ImageUnusable("a layer has a malformed extended header") from None
        if member.size < 0:
            raise ImageUnusable("a layer has a file of negative size")
        self._left, self._padding = member.size, -member.size % BLOCK

    def _extended(self) -> bytes:
        if self._left > MAX_EXTENDED:
            raise ImageUnusable("a layer has an extended header larger than 1 MiB")
        data = self._exactly(self._left)
        self._left = 0
        return data

    def _skip(self) -> None:
        while self._left:
            self.read(1 << 18)
        if self._padding:
            self._exactly(self._padding)
            self._padding = 0

    def _exactly(self, size: int, *, at_end_ok: bool = False) -> bytes:
        data = self._source(size) if size else b""
        while len(data) < size:
            more = self._source(size - len(data))
            if not more:
                if at_end_ok and not data:
                    return b""
                raise ImageUnusable("a layer ends in the middle of an entry")
            data += more
        return data


def _parse(block: bytes) -> Member:
    name, mode, uid, gid, size, mtime, checksum, kind, link, magic, _, _, _, major, minor, prefix = _HEADER.unpack(
        block
    )
    total = sum(block) - sum(checksum) + 256
    if _number(checksum) != total:
        # Some old programs added the bytes up as if they were signed.
        signed = sum(b - 256 if b > 127 else b for b in block[:148] + block[156:]) + 256
        if _number(checksum) != signed:
            raise ImageUnusable("a layer is not a tar, or it is damaged")
    name = name.partition(b"\0")[0]
    if magic == b"ustar\0" and prefix[0]:
        name = prefix.partition(b"\0")[0] + b"/" + name
    if kind in (b"\0", b"7"):
        kind = FILE
    if kind == b"S":
        raise ImageUnusable("a layer has a sparse file in the GNU format, which images should not use")
    length = _number(size)
    if length < 0:
        raise ImageUnusable("a layer has a file of negative size")
    member = Member(
        name, kind, _number(mode), _number(uid), _number(gid), length, float(_number(mtime)), link.partition(b"\0")[0]
    )
    if kind in (CHAR, BLOCKDEV):
        member.device = (_number(major), _number(minor))
    return member


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: binary, for what octal digits cannot hold
        return int.from_bytes(field, "big", signed=True) if field[0] == 0xFF else int.from_bytes(field[1:], "big")
    text = field.partition(b"\0")[0].strip()
    try:
        return int(text, 8) if text else 0
    except ValueError:
        raise ImageUnusable("a layer is not a tar, or it is damaged") from None


def _pax(data: bytes, fields: dict[bytes, bytes], xattrs: dict[bytes, bytes]) -> None:
    """Records of the form ``LENGTH KEY=VALUE\\n``, where LENGTH counts all of it."""
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 10)
        digits = data[at:space] if space > 0 else b""
        end = at + int(digits) if digits.isdigit() else 0
        equals = data.find(b"=", space, end)
        if equals < 0 or end > len(data) or data[end - 1 : end] != b"\n":
            raise ImageUnusable("a layer has a malformed extended header")
        key, value = data[space + 1 : equals], data[equals + 1 : end - 1]
        if key.startswith(_XATTR):
            xattrs[key[len(_XATTR) :]] = value
        elif key.startswith(b"GNU.sparse"):
            raise ImageUnusable("a layer has a sparse file in the GNU format, which images should not use")
        elif key in (b"path", b"linkpath", b"uid", b"gid", b"mtime", b"size"):
            fields[key] = value
        at = end
