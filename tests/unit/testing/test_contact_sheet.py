"""Joining PNG pictures: every filter, both kinds of pixels, and what is not a picture."""

from __future__ import annotations

import random
import struct
import time
import zlib
from pathlib import Path

import pytest

from shem.testing.contact_sheet import BadPicture, Picture, join_pngs, read_png, write_png


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, body: bytes, *, depth: int = 8, colour: int = 2, interlaced: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    packed = zlib.compress(body)
    half = len(packed) // 2
    parts = [
        chunk(b"IHDR", header),
        chunk(b"tEXt", b"x\0y"),
        chunk(b"IDAT", packed[:half]),
        chunk(b"IDAT", packed[half:]),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def predicted(kind: int, left: int, up: int, corner: int) -> int:
    """As the PNG specification says it."""
    if kind == 4:
        estimate = left + up - corner
        distances = [(abs(estimate - each), order) for order, each in enumerate((left, up, corner))]
        return (left, up, corner)[min(distances)[1]]
    return (0, left, up, (left + up) // 2)[kind]


def filtered(rows: list[bytes], step: int, kinds: list[int]) -> bytes:
    out = bytearray()
    above = bytes(len(rows[0]))
    for row, kind in zip(rows, kinds, strict=True):
        out.append(kind)
        for at, value in enumerate(row):
            left = row[at - step] if at >= step else 0
            corner = above[at - step] if at >= step else 0
            out.append((value - predicted(kind, left, above[at], corner)) & 0xFF)
        above = row
    return bytes(out)


@pytest.mark.parametrize("step", [3, 4])
@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4, None])
def test_every_filter(tmp_path: Path, step: int, kind: int | None) -> None:
    chance = random.Random(7)
    rows = [chance.randbytes(13 * step) for _ in range(10)]
    kinds = [kind if kind is not None else n % 5 for n in range(10)]
    file = tmp_path / "a.png"
    file.write_bytes(png(13, 10, filtered(rows, step, kinds), colour=2 if step == 3 else 6))
    picture = read_png(file)
    assert (picture.width, picture.height) == (13, 10)
    assert picture.rows == [b"".join(row[at : at + 3] for at in range(0, len(row), step)) for row in rows]


@pytest.mark.parametrize("width", [1, 2, 3, 320])
def test_what_is_written_is_read_again(tmp_path: Path, width: int) -> None:
    chance = random.Random(width)
    picture = Picture(width, 5, [chance.randbytes(width * 3) for _ in range(5)])
    write_png(tmp_path / "a.png", picture)
    assert read_png(tmp_path / "a.png") == picture


def painted(path: Path, colour: bytes, width: int = 4, height: int = 2) -> Path:
    write_png(path, Picture(width, height, [colour * width] * height))
    return path


def test_pictures_are_joined_in_rows(tmp_path: Path) -> None:
    colours = [bytes([n, n + 1, n + 2]) for n in (10, 20, 30, 40, 50)]
    parts = [painted(tmp_path / f"{n}.png", colour) for n, colour in enumerate(colours)]
    join_pngs(parts, tmp_path / "all.png", columns=3)
    sheet = read_png(tmp_path / "all.png")
    assert (sheet.width, sheet.height) == (12, 4)
    assert sheet.rows[0] == sheet.rows[1] == b"".join(colour * 4 for colour in colours[:3])
    assert sheet.rows[2] == sheet.rows[3] == b"".join(colour * 4 for colour in colours[3:]) + bytes(12)
    join_pngs(parts[:2], tmp_path / "few.png", columns=6)
    assert read_png(tmp_path / "few.png").width == 8


def test_it_is_fast_enough_for_a_demo(tmp_path: Path) -> None:
    rows = [bytes((x * y + x) & 0xFF for x in range(960)) for y in range(240)]
    (tmp_path / "f.png").write_bytes(png(320, 240, filtered(rows, 3, [4] * 240)))
    start = time.process_time()
    join_pngs([tmp_path / "f.png"] * 12, tmp_path / "all.png", columns=6)
    assert time.process_time() - start < 4  # about 0.8 where this was written, for the slowest filter


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GIF89a", "not a PNG"),
        (b"", "not a PNG"),
        (png(1, 1, b"\0rgb")[:-20], "cut off"),
        (png(1, 1, b"\0rgb").replace(b"tEXt", b"tEXT"), "damaged"),
        (png(1, 1, b"\0rgb", depth=16), "8-bit"),
        (png(1, 1, b"\0rgb", colour=0), "8-bit"),
        (png(1, 1, b"\0rgb", interlaced=1), "8-bit"),
        (png(1, 1, b"\x05rgb"), "filter"),
        (png(1, 1, b"\0rg"), "3 bytes of pixels instead of 4"),
        (png(1, 1, b"\0rgb" * 1000), "5 bytes of pixels instead of 4"),
        (png(60000, 60000, b""), "60000x60000"),
        (png(0, 1, b""), "0x1"),
    ],
)
def test_what_cannot_be_joined(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(BadPicture, match=words):
        read_png(tmp_path / "a.png")


def test_pictures_that_do_not_fit_together(tmp_path: Path) -> None:
    parts = [painted(tmp_path / "a.png", b"abc"), painted(tmp_path / "b.png", b"abc", width=5)]
    for paths, words in (([], "no pictures"), (parts, "5x2"), ([tmp_path / "none"], "No such file")):
        with pytest.raises(BadPicture, match=words):
            join_pngs(paths, tmp_path / "all.png", columns=2)
    assert not (tmp_path / "all.png").exists()
