"""One file being written: hashed, bounded, kept or gone."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shem.node.files.spool import PIECE_BYTES, SpoolFull, Writer, read_pieces


def nothing(_: int) -> None:
    """Room for everything."""


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 7])
async def test_written_and_read(tmp_path: Path, size: int) -> None:
    content = secrets.token_bytes(size)
    released: list[int] = []
    async with Writer(tmp_path, nothing, released.append) as writer:
        for start in range(0, size, 100_000):
            await writer.write(content[start : start + 100_000])
        assert await writer.digest() == hashlib.sha3_256(content).hexdigest()
        writer.keep(tmp_path / "kept")
    assert released == [size]
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    assert b"".join([piece async for piece in read_pieces(tmp_path / "kept")]) == content
    part = [piece async for piece in read_pieces(tmp_path / "kept", size // 3, size // 2)]
    assert b"".join(part) == content[size // 3 : size // 3 + size // 2]


async def test_a_file_removed_while_it_is_read(tmp_path: Path) -> None:
    content = secrets.token_bytes(3 * PIECE_BYTES)
    path = tmp_path / "file"
    path.write_bytes(content)
    reader = read_pieces(path)
    first = await anext(reader)
    path.unlink()
    assert first + b"".join([piece async for piece in reader]) == content


async def test_what_is_not_kept_is_gone(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        async with Writer(tmp_path, nothing, nothing) as writer:
            await writer.write(b"x" * (2 * PIECE_BYTES))
            raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
async def test_a_full_disk_is_the_spools_trouble(tmp_path: Path) -> None:
    async with Writer(tmp_path, nothing, nothing) as writer:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, writer._fd)
        os.close(full)
        with pytest.raises(SpoolFull) as caught:
            await writer.write(b"x" * (2 * PIECE_BYTES))
            await writer.digest()
        assert caught.value.__cause__ is not None
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


@given(st.integers(0, 40), st.integers(0, 50))
async def test_any_part(tmp_path_factory: pytest.TempPathFactory, start: int, length: int) -> None:
    path = tmp_path_factory.getbasetemp() / "part"
    path.write_bytes(bytes(range(30)))
    end = min(30, start + length)
    found = b"".join([piece async for piece in read_pieces(path, start, max(0, end - start))])
    assert found == bytes(range(30))[start : start + length]
