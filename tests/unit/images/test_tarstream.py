"""The tar reader reads what the standard library writes, and refuses what would cost it memory."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shem.cogs.ociformat import ImageUnusable
from shem.runtimes.images.tarstream import DIR, Member, TarStream

FORMATS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}


def read(tar: bytes, step: int = 1 << 20) -> list[tuple[Member, bytes]]:
    file = io.BytesIO(tar)
    stream = TarStream(lambda size: file.read(min(size, step)))
    found = []
    for member in stream:
        data = b""
        while piece := stream.read(100_000):
            data += piece
        found.append((member, data))
    return found


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("step", [1, 511, 1 << 20])
def test_what_tarfile_writes(kit: Any, fmt: str, step: int) -> None:
    long = "d/" * 45 + "name" if fmt == "ustar" else "d" * 150 + "/" + "n" * 200
    tar = kit.layer(
        {"n": "dir", "t": tarfile.DIRTYPE, "m": 0o711},
        {"n": long, "d": b"x" * 1000, "uid": 1000, "gid": 7},
        {"n": "link", "t": tarfile.SYMTYPE, "l": "target" if fmt == "ustar" else "t" * 180},
        {"n": "empty"},
        {"n": "exact", "d": b"y" * 512},
        fmt=FORMATS[fmt],
    )
    found = read(tar, step)
    with tarfile.open(fileobj=io.BytesIO(tar)) as same:
        expected = same.getmembers()
    assert [m.name.rstrip(b"/").decode() for m, _ in found] == [e.name for e in expected]
    for (member, data), entry in zip(found, expected, strict=True):
        assert (member.mode, member.uid, member.gid) == (entry.mode, entry.uid, entry.gid)
        assert (member.size, member.link.decode(), member.mtime) == (entry.size, entry.linkname, entry.mtime)
        assert member.kind == entry.type
        assert len(data) == entry.size
    assert found[1][1] == b"x" * 1000
    assert found[4][1] == b"y" * 512


def test_numbers_too_large_for_octal_digits(kit: Any) -> None:
    for fmt in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        [(member, _)] = read(kit.layer({"n": "f", "uid": 2**31, "gid": 2**30, "mtime": 2**34}, fmt=fmt))
        assert (member.uid, member.gid, member.mtime) == (2**31, 2**30, 2**34)


def test_attributes_and_times_from_pax(kit: Any) -> None:
    tar = kit.layer({"n": "f", "p": {"SCHILY.xattr.user.a": "1", "SCHILY.xattr.user.b": "ü\n=", "mtime": "12.5"}})
    [(member, _)] = read(tar)
    assert member.xattrs == {b"user.a": b"1", b"user.b": "ü\n=".encode()}
    assert member.mtime == 12.5


def test_unread_content_is_skipped(kit: Any) -> None:
    file = io.BytesIO(kit.layer({"n": "a", "d": b"1" * 5000}, {"n": "b", "d": b"2"}))
    assert [member.name for member in TarStream(file.read)] == [b"a", b"b"]


def test_global_headers_and_old_directories() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", pax_headers={"comment": "a commit"}) as tar:
        tar.addfile(tarfile.TarInfo("old/"))
    [(member, _)] = read(out.getvalue())
    assert member.kind == DIR


def test_no_end_marker_is_fine_and_an_empty_stream_too(kit: Any) -> None:
    tar = kit.layer({"n": "a", "d": b"1"})
    assert len(read(tar[:1024])) == 1
    assert read(b"") == []


def block(**fields: bytes) -> bytes:
    raw = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    for name, (at, length) in {"name": (0, 100), "size": (124, 12), "kind": (156, 1), "uid": (108, 8)}.items():
        if name in fields:
            raw[at : at + length] = fields[name].ljust(length, b"\0")
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


@pytest.mark.parametrize(
    ("tar", "words"),
    [
        (b"not a tar, but long enough for a block".ljust(512, b"."), "not a tar"),
        (block(kind=b"x", size=b"77777777777") + b"\0" * 512, "larger than 1 MiB"),
        (block(kind=b"L", size=b"77777777777") + b"\0" * 512, "larger than 1 MiB"),
        (block(kind=b"x", size=b"4") + b"oops".ljust(512, b"\0"), "malformed"),
        (block(kind=b"x", size=b"14") + b"99 path=abcdef".ljust(512, b"\0"), "malformed"),
        (block(kind=b"x", size=b"12") + b"-2 path=abc\n".ljust(512, b"\0"), "malformed"),
        (block(kind=b"x", size=b"13") + b"11 size=-5\n".ljust(512, b"\0") + block(), "negative size"),
        (block(kind=b"x", size=b"17") + b"15 size=banana\n".ljust(512, b"\0") + block(), "malformed"),
        (block(kind=b"S"), "sparse"),
        (block(kind=b"x", size=b"26") + b"22 GNU.sparse.major=1\n".ljust(512, b"\0") + block(), "sparse|malformed"),
        (block(size=b"\xff" * 12), "negative size"),
        (block(size=b"12x"), "not a tar"),
        (block(kind=b"g", size=b"0") * 10, "too many extended"),
        (block(size=b"7777"), "middle of"),
        (block()[:100], "middle of"),
    ],
)
def test_hostile_headers(tar: bytes, words: str) -> None:
    with pytest.raises(ImageUnusable, match=words):
        read(tar)


@settings(max_examples=200)
@given(st.binary(max_size=2048), st.integers(0, 1500), st.binary(max_size=16))
def test_any_bytes_are_read_or_refused(noise: bytes, at: int, change: bytes) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("é" * 80)
        info.size = 10
        tar.addfile(info, io.BytesIO(b"0123456789"))
    good = out.getvalue()
    for data in (noise, good[:at] + change + good[at + len(change) :]):
        try:
            read(data)
        except ImageUnusable:
            continue
