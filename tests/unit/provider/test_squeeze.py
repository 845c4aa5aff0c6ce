"""Compressed streams against the standard library, and streams that mean harm."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import AsyncIterator, Callable

import pytest

from shem.provider.exeunit.failures import CommandFailed
from shem.provider.exeunit.squeeze import compress, expand

PACK: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
UNPACK: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.decompress, "bz2": bz2.decompress, "xz": lzma.decompress}
FORMS = sorted(PACK)
DATA = bytes(range(256)) * 3000


async def pieces(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def whole(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in stream])


@pytest.mark.parametrize("form", FORMS)
async def test_both_ways(form: str) -> None:
    packed = await whole(compress(pieces(DATA, 70_000), form))
    assert UNPACK[form](packed) == DATA
    assert await whole(expand(pieces(packed, 997), form)) == DATA


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [5, 1 << 20])
async def test_members_one_after_the_other_and_padding(form: str, size: int) -> None:
    packed = PACK[form](b"first ") + bytes(8) + PACK[form](b"") + PACK[form](b"second") + bytes(512)
    assert await whole(expand(pieces(packed, size), form)) == b"first second"


@pytest.mark.parametrize("form", FORMS)
async def test_a_bomb_comes_in_small_pieces(form: str) -> None:
    bomb = PACK[form](bytes(16 << 20))
    sizes = [len(piece) async for piece in expand(pieces(bomb, len(bomb)), form)]
    assert sum(sizes) == 16 << 20
    assert max(sizes) <= 128 << 10


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("damage", ["empty", "other", "cut", "garbage after", "flipped"])
async def test_damage(form: str, damage: str) -> None:
    good = PACK[form](DATA)
    data = {
        "empty": b"",
        "other": b"this is not compressed at all",
        "cut": good[:-9],
        "garbage after": good + b"garbage",
        "flipped": good[: len(good) // 2] + b"\xff\x00\xff" + good[len(good) // 2 + 3 :],
    }[damage]
    with pytest.raises(CommandFailed) as failure:
        await whole(expand(pieces(data), form))
    assert failure.value.code == "transfer_failed"


async def test_an_xz_that_wants_much_memory() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 512 << 20}]
    # a small stream that says it needs a dictionary of half a gigabyte: made without using one, by changing its header
    small = bytearray(lzma.compress(b"x", filters=[{**filters[0], "dict_size": 4096}]))
    header = small[12 : 12 + (small[12] + 1) * 4]
    header[header.index(b"\x21\x01") + 2] = 36
    header[-4:] = _crc32(bytes(header[:-4]))
    small[12 : 12 + len(header)] = header
    with pytest.raises(CommandFailed, match=r"[Mm]emory"):
        await whole(expand(pieces(bytes(small)), "xz"))


def _crc32(data: bytes) -> bytes:
    import zlib

    return zlib.crc32(data).to_bytes(4, "little")
