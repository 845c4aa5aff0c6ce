"""Join PNG pictures into one sheet, with nothing but the standard library.

Understands what renderers write: 8 bits a channel, RGB or RGBA, not interlaced. The filters of PNG work on bytes, so most
of the work is here in Python; the simplest are done on whole rows at a time.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from shem.errors import Refused

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_PIXELS = 50_000_000
_RGB, _RGBA = 2, 6


class BadPicture(Refused):
    """A file is not a PNG of the kind we can join."""

    default_code = "bad_picture"


class Picture(msgspec.Struct, frozen=True):
    """Rows of RGB bytes, top first."""

    width: int
    height: int
    rows: list[bytes]


def join_pngs(paths: Sequence[Path], out: Path, columns: int) -> None:
    """Write the pictures ``paths``, all of one size, to ``out`` in rows of ``columns``; unused places stay black.

    Raises :class:`BadPicture`.
    """
    if not paths or columns < 1:
        raise BadPicture("there are no pictures to join")
    pictures = [read_png(Path(path)) for path in paths]
    width, height = pictures[0].width, pictures[0].height
    for path, picture in zip(paths, pictures, strict=True):
        if (picture.width, picture.height) != (width, height):
            raise BadPicture(f"{path} has {picture.width}x{picture.height} pixels, and {paths[0]} {width}x{height}")
    columns = min(columns, len(pictures))
    if width * columns * height * -(-len(pictures) // columns) > _MAX_PIXELS:
        raise BadPicture("the joined picture would be too large")
    empty = Picture(width, height, [bytes(width * 3)] * height)
    rows: list[bytes] = []
    for start in range(0, len(pictures), columns):
        line = pictures[start : start + columns]
        line += [empty] * (columns - len(line))
        rows += [b"".join(parts) for parts in zip(*(picture.rows for picture in line), strict=True)]
    write_png(out, Picture(width * columns, len(rows), rows))


def write_png(out: Path, picture: Picture) -> None:
    """Write an RGB picture; each row as the difference to the one above, which packs well and is quick to make."""
    data = bytearray()
    above = bytes(picture.width * 3)
    for row in picture.rows:
        data += b"\x02"
        data += _minus(row, above)
        above = row
    header = struct.pack(">IIBBBBB", picture.width, picture.height, 8, _RGB, 0, 0, 0)
    out.write_bytes(
        _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(data, 6)) + _chunk(b"IEND", b"")
    )


def read_png(path: Path) -> Picture:
    """Read an 8-bit RGB or RGBA picture; transparency is dropped. Raises :class:`BadPicture`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadPicture(f"{path} cannot be read: {error.strerror}") from None
    header, packed = b"", []
    for kind, body in _chunks(path, data):
        if kind == b"IHDR":
            header = body
        elif kind == b"IDAT":
            packed.append(body)
    if len(header) != 13:
        raise BadPicture(f"{path} has no header")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if depth != 8 or colour not in (_RGB, _RGBA) or interlaced:
        raise BadPicture(
            f"{path} is not an 8-bit RGB or RGBA picture without interlacing",
            hint="povray writes such files by default",
        )
    if not 0 < width * height <= _MAX_PIXELS:
        raise BadPicture(f"{path} says it has {width}x{height} pixels")
    step = 3 if colour == _RGB else 4
    stride = width * step
    size = (stride + 1) * height
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(b"".join(packed), size + 1)
    except zlib.error as error:
        raise BadPicture(f"{path} is damaged: {error}") from None
    if len(raw) != size:
        raise BadPicture(f"{path} has {len(raw)} bytes of pixels instead of {size}")
    return Picture(width, height, list(_rows(path, raw, stride, step)))


def _rows(path: Path, raw: bytes, stride: int, step: int) -> Iterator[bytes]:
    above = bytes(stride)
    for start in range(0, len(raw), stride + 1):
        row = _unfilter(path, raw[start], raw[start + 1 : start + 1 + stride], above, step)
        above = row
        if step == 3:
            yield row
        else:
            opaque = bytearray(stride // 4 * 3)
            for channel in range(3):
                opaque[channel::3] = row[channel::4]
            yield bytes(opaque)


def _unfilter(path: Path, kind: int, row: bytes, above: bytes, step: int) -> bytes:
    if kind == 0:
        return row
    if kind == 2:
        return _plus(row, above)
    out = bytearray(row)
    if kind == 1:
        for channel in range(step):
            total = 0
            column = bytearray(row[channel::step])
            for at, value in enumerate(column):
                total = (total + value) & 0xFF
                column[at] = total
            out[channel::step] = column
    elif kind == 3:
        for at in range(step):
            out[at] = (row[at] + (above[at] >> 1)) & 0xFF
        for at in range(step, len(row)):
            out[at] = (row[at] + ((out[at - step] + above[at]) >> 1)) & 0xFF
    elif kind == 4:
        _paeth(out, above, step)
    else:
        raise BadPicture(f"{path} uses a filter that PNG does not have: {kind}")
    return bytes(out)


def _paeth(out: bytearray, above: bytes, step: int) -> None:
    """Each byte was written as the difference to whichever neighbour (left, above, above left) predicts it best."""
    for channel in range(step):
        left = corner = 0
        column = bytearray(out[channel::step])
        for at, up in enumerate(above[channel::step]):
            to_left, to_up = up - corner, left - corner  # distances of the estimate left + up - corner
            to_corner = abs(to_left + to_up)
            if to_left < 0:
                to_left = -to_left
            if to_up < 0:
                to_up = -to_up
            if to_left <= to_up and to_left <= to_corner:
                best = left
            elif to_up <= to_corner:
                best = up
            else:
                best = corner
            column[at] = left = (column[at] + best) & 0xFF
            corner = up
        out[channel::step] = column


def _plus(one: bytes, other: bytes) -> bytes:
    """Bytes added modulo 256, all at once: as two long numbers, of every other byte each, so that a carry falls into a
    gap and is blanked out."""
    even, odd, _ = _masks(len(one))
    a, b = int.from_bytes(one, "little"), int.from_bytes(other, "little")
    total = ((a & even) + (b & even) & even) | ((a & odd) + (b & odd) & odd)
    return total.to_bytes(len(one), "little")


def _minus(one: bytes, other: bytes) -> bytes:
    """Bytes subtracted modulo 256, all at once: each borrows a one that is put into the gap above it."""
    even, odd, lent = _masks(len(one))
    a, b = int.from_bytes(one, "little"), int.from_bytes(other, "little")
    total = ((a & even) + lent - (b & even) & even) | ((a & odd) + (lent << 8) - (b & odd) & odd)
    return total.to_bytes(len(one), "little")


@functools.cache
def _masks(size: int) -> tuple[int, int, int]:
    """For rows of ``size`` bytes: the even bytes, the odd ones, and a one above each even byte."""
    pairs = size // 2 + 1
    whole = (1 << 8 * size) - 1
    even = int.from_bytes(b"\xff\x00" * pairs, "little") & whole
    return even, whole ^ even, int.from_bytes(b"\x00\x01" * pairs, "little")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _chunks(path: Path, data: bytes) -> Iterator[tuple[bytes, bytes]]:
    if not data.startswith(_SIGNATURE):
        raise BadPicture(f"{path} is not a PNG")
    at = len(_SIGNATURE)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        sum_at = at + 8 + length
        if len(body) != length or data[sum_at : sum_at + 4] != struct.pack(">I", zlib.crc32(kind + body)):
            raise BadPicture(f"{path} is damaged or cut off")
        yield kind, body
        if kind == b"IEND":
            return
        at = sum_at + 4
    raise BadPicture(f"{path} is damaged or cut off")
