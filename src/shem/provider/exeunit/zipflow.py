"""Zip archives as streams: written as the files are read, read from a file of our own.

A zip is understood from its end, so one that comes in lies in an unnamed file on the provider's disk first, no larger than
the sandbox's disk. It comes from a stranger: the directory at its end is measured before it is read, only the two common ways
to store a file are known, and no member gives more than its entry says.
"""

from __future__ import annotations

import asyncio
import io
import os
import stat
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from shem.provider.exeunit.failures import DISK_FULL, CommandFailed
from shem.provider.exeunit.tarflow import Member, bad_archive, clean

MAX_MEMBERS = 65_535
MAX_DIRECTORY = 8 << 20
_MAX_LINK = 4095
_PIECE = 128 << 10
_BATCH = 1 << 20
_END = struct.Struct("<4s4H2LH")
_END_SIGNATURE = b"PK\x05\x06"
_WIDE_LOCATOR = b"PK\x06\x07"
_WIDE_END = struct.Struct("<4sQ2H2L4Q")
_WIDE_SIGNATURE = b"PK\x06\x06"
_LOCATOR_BYTES = 20
_FIRST_YEAR, _LAST_YEAR = 1980, 2107
_WIDE_BYTES = (1 << 31) - 1
_MODES = {"file": stat.S_IFREG, "dir": stat.S_IFDIR, "link": stat.S_IFLNK}

Read = Callable[[Member], AsyncIterator[bytes]]


async def spool(content: AsyncIterator[bytes], directory: Path, max_bytes: int) -> IO[bytes]:
    """All of ``content`` in a file without a name; the caller closes it. Raises :class:`CommandFailed` (``disk_full``)."""
    file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
    try:
        waiting, size = bytearray(), 0
        async for piece in content:
            waiting += piece
            size += len(piece)
            if size > max_bytes:
                raise CommandFailed(DISK_FULL, "the archive does not fit into the sandbox's disk")
            if len(waiting) >= _BATCH:
                data, waiting = waiting, bytearray()
                await asyncio.to_thread(file.write, data)
        await asyncio.to_thread(file.write, waiting)
    except OSError as error:
        file.close()
        raise CommandFailed(DISK_FULL, f"the archive cannot be kept: {error.strerror}") from None
    except BaseException:
        file.close()
        raise
    return file


class ZipReader:
    """Members of a zip in a file, in the order of its directory. Read each one's content before asking for the next."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._entries: Iterator[zipfile.ZipInfo] = iter(archive.infolist())
        self._current: zipfile.ZipInfo | None = None

    @classmethod
    async def open(cls, file: IO[bytes]) -> ZipReader:
        """Read the directory. Raises :class:`CommandFailed` for what is no zip, or a monstrous one."""
        return cls(await asyncio.to_thread(_open, file))

    async def next(self) -> Member | None:
        """The next member; ``None`` at the end."""
        self._current = info = next(self._entries, None)
        if info is None:
            return None
        if info.flag_bits & 1:
            raise bad_archive("it is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise bad_archive("it is compressed in a way that is not known here; use deflate, or none")
        path, mode = clean(info.filename), info.external_attr >> 16
        if info.is_dir() or stat.S_ISDIR(mode):
            return Member(path=path, kind="dir", mode=mode & 0o777 or 0o755)
        if stat.S_ISLNK(mode):
            return Member(path=path, kind="link", link=await self._link(info))
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise bad_archive(f"{info.filename[:200]!r} is neither a file, a directory nor a link")
        return Member(path=path, kind="file", size=info.file_size, mode=mode & 0o777 or 0o644)

    async def content(self) -> AsyncIterator[bytes]:
        """The bytes of the current member."""
        assert self._current is not None
        with _sound():
            member = await asyncio.to_thread(self._archive.open, self._current)
            with member:
                while piece := await asyncio.to_thread(member.read, _PIECE):
                    yield piece

    async def drain(self) -> None:
        """Nothing follows: all of it is here."""

    async def _link(self, info: zipfile.ZipInfo) -> str:
        if info.file_size > _MAX_LINK:
            raise bad_archive("the target of a link is too long")
        target = b"".join([piece async for piece in self.content()])
        if b"\0" in target or not target:
            raise bad_archive("the target of a link is no path")
        return target.decode("utf-8", "surrogateescape")


async def pack_zip(members: Iterable[Member], read: Read, *, store: bool) -> AsyncIterator[bytes]:
    """A zip of these members; ``read`` gives the bytes of each file. ``store``: as they are, not compressed."""
    sink = _Sink()
    with zipfile.ZipFile(cast("IO[bytes]", sink), "w") as made:
        for count, member in enumerate(members):
            if count >= MAX_MEMBERS:
                raise bad_archive(f"a zip takes at most {MAX_MEMBERS} members; use tar.gz")
            if not member.path:
                continue
            info = _info(member, store=store)
            if member.kind == "file":
                with made.open(info, "w", force_zip64=member.size > _WIDE_BYTES) as out:
                    async for piece in read(member):
                        out.write(piece)
                        if data := sink.take():
                            yield data
            else:
                made.writestr(info, member.link.encode("utf-8", "surrogateescape") if member.kind == "link" else b"")
            if data := sink.take():
                yield data
    yield sink.take()


class _Sink(io.RawIOBase):
    """What a zip is written to: hands on what came, and cannot go back."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        before = len(self._waiting)
        self._waiting += data
        return len(self._waiting) - before

    def take(self) -> bytes:
        data = bytes(self._waiting)
        self._waiting.clear()
        return data


def _info(member: Member, *, store: bool) -> zipfile.ZipInfo:
    moment = time.gmtime(min(max(member.mtime, 0), 1 << 33))
    year = min(max(moment.tm_year, _FIRST_YEAR), _LAST_YEAR)
    when = (year, moment.tm_mon, moment.tm_mday, moment.tm_hour, moment.tm_min, moment.tm_sec)
    name = member.path.encode("utf-8", "replace").decode() + ("/" if member.kind == "dir" else "")
    info = zipfile.ZipInfo(name, when)
    info.create_system = 3  # unix: the mode counts
    info.external_attr = (_MODES[member.kind] | member.mode) << 16
    if not store and member.kind == "file":
        info.compress_type = zipfile.ZIP_DEFLATED
        info._compresslevel = 1  # type: ignore[attr-defined]
    return info


def _open(file: IO[bytes]) -> zipfile.ZipFile:
    with _sound():
        _measure(file)
        return zipfile.ZipFile(file)


def _measure(file: IO[bytes]) -> None:
    """Refuse a directory that is too large to be read, before it is: the library reads all of it at once."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - _END.size - 0xFFFF)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(_END_SIGNATURE)
    if at < 0 or len(tail) - at < _END.size:
        raise bad_archive("it is not a zip, or it is cut")
    directory: int = _END.unpack_from(tail, at)[5]
    locator = start + at - _LOCATOR_BYTES
    if locator >= 0:
        file.seek(locator)
        if file.read(4) == _WIDE_LOCATOR:
            directory = _wide_directory(file, locator)
    if directory > MAX_DIRECTORY:
        raise bad_archive(f"its directory is larger than {MAX_DIRECTORY >> 20} MiB; use tar.gz")


def _wide_directory(file: IO[bytes], locator: int) -> int:
    """The size of the directory where 32 bits may not hold it. Nothing stands between the record and its locator."""
    file.seek(max(0, locator - _WIDE_END.size))
    record = file.read(_WIDE_END.size)
    if len(record) < _WIDE_END.size or not record.startswith(_WIDE_SIGNATURE):
        raise bad_archive("the end of the zip is not what it should be")
    return int(_WIDE_END.unpack(record)[8])


@contextmanager
def _sound() -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise bad_archive(f"it is not a sound zip: {error}") from None
    except (struct.error, UnicodeDecodeError, OverflowError) as error:
        raise bad_archive(f"it is not a sound zip: {type(error).__name__}") from None
