"""Zips against the standard library, and zips that mean harm."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shem.provider.exeunit.failures import CommandFailed
from shem.provider.exeunit.tarflow import Member
from shem.provider.exeunit.zipflow import MAX_DIRECTORY, ZipReader, pack_zip, spool


async def pieces(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def entry(name: str, mode: int = stat.S_IFREG | 0o644, method: int = zipfile.ZIP_DEFLATED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr, info.compress_type, info.create_system = mode << 16 | 0x20, method, 3
    return info


def archive(*members: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for info, content in members:
            made.writestr(info, content)
    return out.getvalue()


async def read(data: bytes, where: Path, max_bytes: int = 1 << 20) -> list[tuple[Member, bytes]]:
    with await spool(pieces(data), where, max_bytes) as file:
        reader = await ZipReader.open(file)
        found = []
        while (member := await reader.next()) is not None:
            content = [piece async for piece in reader.content()] if member.kind == "file" else []
            found.append((member, b"".join(content)))
        return found


async def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    data = archive(
        (entry("dir/", stat.S_IFDIR | 0o750), b""),
        (entry("dir/run", stat.S_IFREG | 0o755), b"#!/bin/sh\n" * 50_000),
        (entry("./stored ünïcode", method=zipfile.ZIP_STORED), b"as it is"),
        (entry("link", stat.S_IFLNK | 0o777), b"dir/run"),
        (entry("modeless", 0), b""),
    )
    found = await read(data, tmp_path)
    assert [(member.path, member.kind, member.mode, member.link, len(content)) for member, content in found] == [
        ("dir", "dir", 0o750, "", 0),
        ("dir/run", "file", 0o755, "", 500_000),
        ("stored ünïcode", "file", 0o644, "", 8),
        ("link", "link", 0o644, "dir/run", 0),
        ("modeless", "file", 0o644, "", 0),
    ]
    assert list(tmp_path.iterdir()) == [], "nothing is left, and nothing had a name"


@pytest.mark.parametrize("store", [False, True])
async def test_the_library_reads_what_we_write(store: bool, tmp_path: Path) -> None:
    members = [
        Member(path="", kind="dir", mode=0o755),
        Member(path="a", kind="dir", mode=0o700),
        Member(path="a/file", kind="file", size=300_000, mode=0o640, mtime=1_700_000_000),
        Member(path="ancient", kind="file", size=0, mtime=-5),
        Member(path="link", kind="link", mode=0o777, link="a/file"),
    ]
    made = pack_zip(members, lambda member: pieces(b"z" * member.size, 70_000), store=store)
    out = b"".join([piece async for piece in made])
    assert (len(out) > 300_000) is store
    with zipfile.ZipFile(io.BytesIO(out)) as archived:
        assert archived.testzip() is None
        assert archived.namelist() == ["a/", "a/file", "ancient", "link"]
        assert archived.read("a/file") == b"z" * 300_000
        assert archived.getinfo("a/file").external_attr >> 16 == stat.S_IFREG | 0o640
        assert archived.read("link") == b"a/file"
    assert [member.path for member, _ in await read(out, tmp_path)] == ["a", "a/file", "ancient", "link"]


async def test_a_large_member_has_wide_numbers() -> None:
    size = (1 << 31) + 1

    async def said(member: Member) -> AsyncIterator[bytes]:
        yield b"only the form counts"

    out = b"".join([piece async for piece in pack_zip([Member(path="big", kind="file", size=size)], said, store=False)])
    assert zipfile.ZipFile(io.BytesIO(out)).read("big") == b"only the form counts"


def damaged() -> dict[str, bytes]:
    good = archive((entry("a", method=zipfile.ZIP_STORED), b"1" * 3000))
    encrypted = bytearray(good)
    encrypted[6] |= 1
    encrypted[good.index(b"PK\x01\x02") + 8] |= 1
    return {
        "empty": b"",
        "not a zip": b"hello" * 200,
        "cut": good[:-30],
        "a wrong byte": good.replace(b"111", b"121", 1),
        "encrypted": bytes(encrypted),
        "climbs out": archive((entry("../x"), b"1")),
        "climbs out inside": archive((entry("a/../../x"), b"1")),
        "a device": archive((entry("d", stat.S_IFCHR | 0o600), b"")),
        "lzma": archive((entry("l", method=zipfile.ZIP_LZMA), b"1")),
        "an empty link": archive((entry("l", stat.S_IFLNK | 0o777), b"")),
        "a long link": archive((entry("l", stat.S_IFLNK | 0o777), b"x" * 5000)),
        "a directory without end": directory_of(MAX_DIRECTORY + 1),
        "a wide directory": good[:-22] + bytes(56) + b"PK\x06\x07" + bytes(16) + good[-22:],
    }


def directory_of(size: int) -> bytes:
    return struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, size, 0, 0)


@pytest.mark.parametrize("name", sorted(damaged()))
async def test_damaged_and_hostile_archives(name: str, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed) as failure:
        await read(damaged()[name], tmp_path)
    assert failure.value.line.startswith("transfer_failed: the archive is not sound"), failure.value.line


async def test_a_member_gives_no_more_than_its_entry_says(tmp_path: Path) -> None:
    data = bytearray(archive((entry("bomb"), bytes(1 << 20))))
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<L", 10)  # the size that its entry claims
    with pytest.raises(CommandFailed):
        await read(bytes(data), tmp_path)


async def test_an_archive_larger_than_the_disk(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed) as failure:
        await read(bytes(5000), tmp_path, max_bytes=4096)
    assert failure.value.code == "disk_full"
    assert list(tmp_path.iterdir()) == []
