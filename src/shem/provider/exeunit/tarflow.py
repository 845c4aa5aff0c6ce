"""Tar archives as asynchronous streams of bytes: directories in and out of a sandbox in constant memory.

Writing makes one header after the other as the files are read; reading gives members in order, each with its content as
a stream. Archives come from strangers: extended headers, names and the number of members are bounded, and a name that
climbs out of the directory it is unpacked into is refused (all of it happens inside the sandbox, so this protects the
requestor from a broken archive, not the machine).
"""

from __future__ import annotations

import tarfile
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Literal

import msgspec

from shem.provider.exeunit.failures import TRANSFER_FAILED, CommandFailed

BLOCK = 512
MAX_MEMBERS = 1_000_000
MAX_EXTENDED = 1 << 20
_MAX_EXTENDED_IN_A_ROW = 8
_PIECE = 128 << 10
_END = bytes(2 * BLOCK)

Kind = Literal["file", "dir", "link", "hardlink"]
_KINDS: dict[bytes, Kind] = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.DIRTYPE: "dir",
    tarfile.SYMTYPE: "link",
    tarfile.LNKTYPE: "hardlink",
}


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of an archive. ``path`` is relative and clean; ``""`` is the directory itself."""

    path: str
    kind: Kind
    size: int = 0
    mode: int = 0o644
    mtime: int = 0
    link: str = ""


def bad_archive(why: str) -> CommandFailed:
    """What is wrong with an archive."""
    return CommandFailed(TRANSFER_FAILED, f"the archive is not sound: {why}")


def header(member: Member) -> bytes:
    """The blocks that announce a member, extended ones for long names and large files included."""
    info = tarfile.TarInfo(member.path + ("/" if member.kind == "dir" and member.path else ""))
    info.type = {"file": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "link": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE}[
        member.kind
    ]
    info.size = member.size if member.kind == "file" else 0
    info.mode = member.mode
    info.mtime = member.mtime
    info.linkname = member.link
    if not member.path:
        info.name = "."
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def padding(size: int) -> bytes:
    """The zeros that fill the last block of a member of ``size`` bytes."""
    return bytes(-size % BLOCK)


class TarReader:
    """Members of an archive that arrives in pieces. Read the content of each before asking for the next."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._buffer = bytearray()
        self._left = 0
        self._padding = 0

    async def next(self) -> Member | None:
        """The next member; ``None`` at the end. What was not read of the one before is skipped."""
        extended: dict[str, str] = {}
        for _ in range(_MAX_EXTENDED_IN_A_ROW):
            await self._skip()
            block = await self._exactly(BLOCK)
            if block == bytes(BLOCK):
                return None
            info = _parse(block)
            self._left, self._padding = info.size, -info.size % BLOCK
            if info.type == tarfile.XHDTYPE:
                extended.update(_pax(await self._extended()))
            elif info.type == tarfile.GNUTYPE_LONGNAME:
                extended["path"] = _text((await self._extended()).rstrip(b"\0"))
            elif info.type == tarfile.GNUTYPE_LONGLINK:
                extended["linkpath"] = _text((await self._extended()).rstrip(b"\0"))
            elif info.type != tarfile.XGLTYPE:
                return await self._member(info, extended)
        raise bad_archive("too many extended headers in a row")

    async def content(self) -> AsyncIterator[bytes]:
        """The bytes of the current member."""
        while self._left:
            if not self._buffer:
                if not await self._more():
                    raise bad_archive("it ends in the middle of a file")
                continue
            size = min(self._left, len(self._buffer), _PIECE)
            piece = bytes(self._buffer[:size])
            del self._buffer[:size]
            self._left -= size
            yield piece

    async def drain(self) -> None:
        """Read what follows the archive, so that the sender's check of the whole is made."""
        self._buffer.clear()
        async for _ in self._pieces:
            pass

    async def _member(self, info: tarfile.TarInfo, extended: dict[str, str]) -> Member | None:
        name = extended.get("path", info.name)
        kind = _KINDS.get(info.type)
        if kind is None:  # devices and pipes have no place in a transfer
            raise bad_archive(f"{name[:200]!r} is neither a file, a directory nor a link")
        if kind == "file" and name.endswith("/"):
            kind = "dir"
        size = info.size
        if "size" in extended:
            if not extended["size"].isdigit():
                raise bad_archive("a size is not a number")
            size = int(extended["size"])
        if kind != "file":
            size = 0
        self._left, self._padding = size, -size % BLOCK
        link = extended.get("linkpath", info.linkname)
        return Member(
            path=clean(name),
            kind=kind,
            size=size,
            mode=info.mode & 0o7777,
            mtime=max(0, int(info.mtime)),
            link=clean(link) if kind == "hardlink" else link,
        )

    async def _extended(self) -> bytes:
        if self._left > MAX_EXTENDED:
            raise bad_archive("an extended header is larger than 1 MiB")
        data = await self._exactly(self._left)
        self._left = 0
        return data

    async def _skip(self) -> None:
        async for _ in self.content():
            pass
        if self._padding:
            size, self._padding = self._padding, 0
            await self._exactly(size)

    async def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            if not await self._more():
                raise bad_archive("it ends too early")
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def _more(self) -> bool:
        piece = await anext(self._pieces, None)
        if piece is None:
            return False
        self._buffer += piece
        return True


async def pack_tar(members: Iterable[Member], read: Callable[[Member], AsyncIterator[bytes]]) -> AsyncIterator[bytes]:
    """A tar of these members; ``read`` gives the bytes of each file, exactly as many as its size says."""
    for member in members:
        yield header(member)
        if member.kind == "file":
            async for piece in read(member):
                yield piece
            yield padding(member.size)
    yield _END


def clean(name: str) -> str:
    """A member's name as a relative path without ``.`` parts. Raises :class:`CommandFailed` for one that climbs out."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise bad_archive(f"{name[:200]!r} leads out of the directory")
    if len(name) > 4096:
        raise bad_archive("a name is longer than 4096 characters")
    return "/".join(parts)


def _parse(block: bytes) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise bad_archive(f"it is not a tar, or it is damaged ({error})") from None
    if info.size < 0:
        raise bad_archive("a file has a negative size")
    return info


def _pax(data: bytes) -> dict[str, str]:
    """Records of the form ``LENGTH KEY=VALUE\\n``, where LENGTH counts all of it."""
    found: dict[str, str] = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 10)
        digits = data[at:space] if space > 0 else b""
        stop = at + int(digits) if digits.isdigit() else 0
        equals = data.find(b"=", space, stop)
        if equals < 0 or stop > len(data) or data[stop - 1 : stop] != b"\n":
            raise bad_archive("an extended header is malformed")
        key = data[space + 1 : equals]
        if key in (b"path", b"linkpath", b"size"):
            found[key.decode()] = _text(data[equals + 1 : stop - 1])
        at = stop
    return found


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
