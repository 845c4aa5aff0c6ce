"""A stranger's archive: what is sound comes out whole, what reaches out is refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from shem.sdk.unpack import BadArchive, unpack

Member = tuple[str, bytes, str | bytes]


def archive(tmp_path: Path, *members: Member) -> Path:
    path = tmp_path / "archive.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind, content in members:
            entry = tarfile.TarInfo(name)
            entry.type = kind
            entry.mode = 0o755 if kind == tarfile.DIRTYPE else 0o640
            if isinstance(content, bytes):
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
            else:
                entry.linkname = content
                tar.addfile(entry)
    return path


FILE, DIR, SYM, LNK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def test_what_is_sound_comes_out_whole(tmp_path: Path) -> None:
    made = archive(
        tmp_path,
        (".", DIR, b""),
        ("./deep/er/file", FILE, b"content"),
        ("empty", DIR, b""),
        ("deep/up", SYM, "../deep/er/file"),
        ("dangling", SYM, "not/there"),
        ("hard", LNK, "deep/er/file"),
    )
    unpack(made, tmp_path / "out")
    out = tmp_path / "out"
    assert (out / "deep/er/file").read_bytes() == b"content"
    assert (out / "deep/up").read_bytes() == b"content"
    assert (out / "hard").read_bytes() == b"content"
    assert (out / "dangling").is_symlink()
    assert (out / "empty").is_dir()
    assert (out / "deep/er/file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    "members",
    [
        [("../out-there", FILE, b"x")],
        [("a/../../out-there", FILE, b"x")],
        [("/absolute", FILE, b"x")],
        [("link", SYM, "/etc")],
        [("link", SYM, "../..")],
        [("a/link", SYM, "../../out-there")],
        [("hard", LNK, "../outside")],
        [("hard", LNK, "missing")],
        [("pipe", tarfile.FIFOTYPE, b"")],
        [("device", tarfile.CHRTYPE, b"")],
        [("a", DIR, b""), ("a", FILE, b"x")],
    ],
)
def test_what_reaches_out_is_refused(tmp_path: Path, members: list[Member]) -> None:
    (tmp_path / "outside").write_bytes(b"precious")
    with pytest.raises(BadArchive):
        unpack(archive(tmp_path, *members), tmp_path / "out")
    assert (tmp_path / "outside").read_bytes() == b"precious"
    assert not (tmp_path / "out-there").exists()


def test_a_link_swapped_in_under_a_directory_is_not_followed_out(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (out / "link").symlink_to(outside)
    with pytest.raises(BadArchive):
        unpack(archive(tmp_path, ("link/file", FILE, b"x")), out)
    assert list(outside.iterdir()) == []


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    made = archive(tmp_path, ("file", FILE, b"x" * 100_000))
    made.write_bytes(made.read_bytes()[:50_000])
    with pytest.raises(BadArchive):
        unpack(made, tmp_path / "out")
