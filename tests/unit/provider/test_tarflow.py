"""Tar streams against the standard library, and archives that mean harm."""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncIterator, Iterable

import pytest

from shem.provider.exeunit.failures import CommandFailed
from shem.provider.exeunit.tarflow import Member, TarReader, clean, pack_tar


async def pieces(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def read(data: bytes, size: int = 1000) -> list[tuple[Member, bytes]]:
    reader = TarReader(pieces(data, size))
    found = []
    while (member := await reader.next()) is not None:
        found.append((member, b"".join([piece async for piece in reader.content()])))
    return found


def archive(members: Iterable[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as made:
        for info, content in members:
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return out.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


LONG = "/".join(["a-name-of-some-length"] * 20)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("size", [1, 511, 4096, 1 << 20])
async def test_reads_what_the_library_writes(form: int, size: int) -> None:
    data = archive(
        [
            (entry("./", tarfile.DIRTYPE, mode=0o755), b""),
            (entry("./empty"), b""),
            (entry("dir/ünïcode €", mode=0o755), b"x" * 1500),
            (entry(LONG), b"y" * 512),
            (entry("link", tarfile.SYMTYPE, "../" + LONG), b""),
            (entry("hard", tarfile.LNKTYPE, "./dir/ünïcode €"), b""),
        ],
        form,
    )
    found = await read(data, size)
    assert [(member.path, member.kind, len(content)) for member, content in found] == [
        ("", "dir", 0),
        ("empty", "file", 0),
        ("dir/ünïcode €", "file", 1500),
        (LONG, "file", 512),
        ("link", "link", 0),
        ("hard", "hardlink", 0),
    ]
    assert found[2][0].mode == 0o755
    assert found[4][0].link == "../" + LONG
    assert found[5][0].link == "dir/ünïcode €"


async def test_the_library_reads_what_we_write() -> None:
    members = [
        Member(path=path, kind=kind, size=size, mode=0o640, mtime=1_700_000_000, link=link)  # type: ignore[arg-type]
        for path, kind, size, link in (
            ("", "dir", 0, ""),
            ("a", "dir", 0, ""),
            ("a/" + LONG, "file", 700, ""),
            ("s", "link", 0, "a"),
        )
    ]
    out = b"".join([piece async for piece in pack_tar(members, lambda member: pieces(b"z" * member.size, 99))])
    with tarfile.open(fileobj=io.BytesIO(out)) as made:
        assert made.getnames() == [".", "a", "a/" + LONG, "s"]
        file = made.extractfile("a/" + LONG)
        assert file is not None
        assert file.read() == b"z" * 700
        assert made.getmember("s").linkname == "a"
        assert made.getmember("a/" + LONG).mode == 0o640


async def test_members_may_be_skipped() -> None:
    data = archive([(entry("a"), b"1" * 3000), (entry("b"), b"2")])
    reader = TarReader(pieces(data, 100))
    assert (await reader.next()).path == "a"  # type: ignore[union-attr]
    assert (await reader.next()).path == "b"  # type: ignore[union-attr]
    assert [piece async for piece in reader.content()] == [b"2"]


def damaged() -> dict[str, bytes]:
    good = archive([(entry("a"), b"1" * 3000)])
    return {
        "cut in a header": good[:300],
        "cut in a file": good[:2000],
        "no end": good[: 512 + 3072],
        "not a tar": b"hello" * 200,
        "wrong checksum": b"b" + good[1:],
        "climbs out": archive([(entry("../x"), b"1")]),
        "climbs out inside": archive([(entry("a/../../x"), b"1")]),
        "hard link out": archive([(entry("h", tarfile.LNKTYPE, "../../etc/passwd"), b"")]),
        "a device": archive([(entry("d", tarfile.CHRTYPE), b"")]),
        "a pipe": archive([(entry("p", tarfile.FIFOTYPE), b"")]),
        "a huge extended header": entry_of_size(tarfile.XHDTYPE, 2 << 20),
        "extended headers for ever": entry_of_size(tarfile.XHDTYPE, 0) * 20,
        "a malformed extended header": entry_of_size(tarfile.XHDTYPE, 10) + b"999 path=x".ljust(512, b"\0"),
        "an extended header of digits": entry_of_size(tarfile.XHDTYPE, 10) + b"0123456789".ljust(512, b"\0"),
        "a name of 5000": archive([(entry("x" * 5000), b"1")]),
    }


def entry_of_size(kind: bytes, size: int) -> bytes:
    info = entry("x", kind)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize("name", sorted(damaged()))
async def test_damaged_and_hostile_archives(name: str) -> None:
    with pytest.raises(CommandFailed) as failure:
        await read(damaged()[name])
    assert failure.value.line.startswith("transfer_failed: the archive is not sound")


@pytest.mark.parametrize(("name", "expected"), [("./a//b/./c", "a/b/c"), ("/abs", "abs"), (".", ""), ("a/", "a")])
def test_clean(name: str, expected: str) -> None:
    assert clean(name) == expected
