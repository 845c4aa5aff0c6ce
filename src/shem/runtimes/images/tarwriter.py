"""Write a tar, one entry after the other: the counterpart of :mod:`.tarstream`.

The same members give the same bytes: headers hold nothing but what a member says, and an extended header (pax) stands only
where the plain one is too narrow. Names are bytes, as file systems have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import BinaryIO

from shem.cogs.ociformat import ImageUnusable
from shem.runtimes.images.tarstream import BLOCK, BLOCKDEV, CHAR, FILE, MAX_EXTENDED, Member

_CHUNK = 1 << 20
_MAX_ID = 0o7777777
_MAX_SIZE = 0o77777777777
_MAX_TIME = 0xFFFF_FFFF  # what a squashfs can hold
_NARROW = 100


class TarWriter:
    """Writes members to ``out``; :meth:`close` ends the tar, not ``out``."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def add(self, name: bytes, member: Member, read: Callable[[int], bytes] | None = None) -> None:
        """Write ``member`` as ``name``; ``read(n)`` gives 1 to ``n`` bytes of a file's content, of which there must be
        ``member.size``."""
        size = member.size if member.kind == FILE else 0
        records: dict[bytes, bytes] = {b"SCHILY.xattr." + key: value for key, value in member.xattrs.items()}
        if len(name) > _NARROW:
            records[b"path"] = name
        if len(member.link) > _NARROW:
            records[b"linkpath"] = member.link
        for key, number, most in (
            (b"uid", member.uid, _MAX_ID),
            (b"gid", member.gid, _MAX_ID),
            (b"size", size, _MAX_SIZE),
        ):
            if number > most:
                records[key] = b"%d" % number
        if records:
            body = _pax(records)
            self._out.write(_header(b"././@PaxHeader", Member(b"", b"x", 0o644, 0, 0, len(body), 0, b""), len(body)))
            self._padded(body)
        self._out.write(_header(name, member, size))
        left = size
        while left:
            piece = read(min(left, _CHUNK)) if read is not None else b""
            if not piece:
                raise ImageUnusable("a file of the image is shorter than it should be")
            left -= len(piece)
            self._out.write(piece)
        self._out.write(bytes(-size % BLOCK))

    def close(self) -> None:
        """Write the end."""
        self._out.write(bytes(2 * BLOCK))

    def _padded(self, data: bytes) -> None:
        self._out.write(data + bytes(-len(data) % BLOCK))


def _header(name: bytes, member: Member, size: int) -> bytes:
    major, minor = member.device if member.kind in (CHAR, BLOCKDEV) else (0, 0)
    block = b"".join(
        (
            name[:_NARROW].ljust(100, b"\0"),
            _octal(member.mode & 0o7777, 8),
            _octal(member.uid, 8),
            _octal(member.gid, 8),
            _octal(size, 12),
            _octal(int(min(max(member.mtime, 0), _MAX_TIME)), 12),
            b" " * 8,
            member.kind,
            member.link[:_NARROW].ljust(100, b"\0"),
            b"ustar\00000".ljust(72, b"\0"),
            _octal(major, 8),
            _octal(minor, 8),
            bytes(167),
        )
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _octal(number: int, width: int) -> bytes:
    text = b"%0*o\0" % (width - 1, number)
    return text if len(text) == width else b"0" * (width - 1) + b"\0"  # an extended header says it


def _pax(records: Mapping[bytes, bytes]) -> bytes:
    body = bytearray()
    for key in sorted(records):
        rest = b" " + key + b"=" + records[key] + b"\n"
        length = len(rest) + 1
        while len(b"%d" % length) + len(rest) != length:
            length = len(b"%d" % length) + len(rest)
        body += b"%d" % length + rest
    if len(body) > MAX_EXTENDED:
        raise ImageUnusable("a file of the image has too many extended attributes")
    return bytes(body)
