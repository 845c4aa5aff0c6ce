"""Unpacking one layer: what hostile ones try, and what ordinary ones mean to overlayfs."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shem.cogs.ociformat import ImageUnusable
from shem.runtimes.images.errors import ImageTooLarge
from shem.runtimes.images.extract import Extractor, Unpacked
from shem.runtimes.images.tarstream import TarStream

L, H, D, C, B, F = (
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.DIRTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
)
OUT = "<outside>"  # replaced by the absolute path of a directory beside the root

REFUSED: dict[str, tuple[dict[str, Any], ...]] = {
    "dotdot": ({"n": "../outside/x", "d": b"x"},),
    "dotdot in the middle": ({"n": "a/../../outside/x", "d": b"x"},),
    "hardlink dotdot": ({"n": "h", "t": H, "l": "../outside/secret"},),
    "whiteout of dotdot": ({"n": ".wh..."},),
    "whiteout of dotdot below": ({"n": "a/.wh..."},),
    "whiteout of dot": ({"n": ".wh.."},),
    "whiteout of nothing": ({"n": ".wh."},),
    "long name": ({"n": "a" * 300, "d": b"x"},),
    "too deep": ({"n": "/".join("d" * 300), "d": b"x"},),
    "hardlink to a directory": ({"n": "d", "t": D}, {"n": "h", "t": H, "l": "d"}),
    "hardlink to the root": ({"n": "h", "t": H, "l": "./"},),
    "impossible owner": ({"n": "f", "uid": 2**32 - 1},),
}

HARMLESS: dict[str, tuple[dict[str, Any], ...]] = {
    "absolute": ({"n": f"{OUT}/x", "d": b"x"},),
    "absolute symlink as parent": ({"n": "d", "t": L, "l": OUT}, {"n": "d/secret", "d": b"pwn"}),
    "relative symlink as parent": ({"n": "d", "t": L, "l": "../outside"}, {"n": "d/secret", "d": b"pwn"}),
    "chain of symlinks": (
        {"n": "a", "t": L, "l": ".."},
        {"n": "b", "t": L, "l": "a/outside"},
        {"n": "b/secret", "d": b"pwn"},
    ),
    "loop of symlinks": ({"n": "a", "t": L, "l": "b"}, {"n": "b", "t": L, "l": "a"}, {"n": "a/x", "d": b"pwn"}),
    "write through a symlink": ({"n": "f", "t": L, "l": "../secret2"}, {"n": "f", "d": b"pwn"}),
    "hardlink absolute": ({"n": "h", "t": H, "l": f"{OUT}/secret"},),
    "hardlink to a symlink, then write": (
        {"n": "s", "t": L, "l": "../secret2"},
        {"n": "h", "t": H, "l": "s"},
        {"n": "h", "d": b"pwn"},
    ),
    "hardlink through a symlink": (
        {"n": "d", "t": L, "l": "../outside"},
        {"n": "h", "t": H, "l": "d/secret"},
        {"n": "h", "d": b"pwn"},
    ),
    "whiteout through a symlink": ({"n": "d", "t": L, "l": "../outside"}, {"n": "d/.wh.secret"}),
    "opaque through a symlink": ({"n": "d", "t": L, "l": "../outside"}, {"n": "d/.wh..wh..opq"}),
    "block device": ({"n": "sda", "t": B},),
    "character device": ({"n": "mem", "t": C},),
    "fifo": ({"n": "p", "t": F},),
    "setuid": ({"n": "su", "m": 0o4755, "d": b"x"},),
    "setgid directory": ({"n": "d", "t": D, "m": 0o2777},),
    "file capability": ({"n": "c", "d": b"x", "p": {"SCHILY.xattr.security.capability": "\x01\x00\x00\x02"}},),
    "overlay attribute, trusted": ({"n": "c", "d": b"x", "p": {"SCHILY.xattr.trusted.overlay.redirect": "/etc"}},),
    "overlay attribute, user": ({"n": "c", "d": b"x", "p": {"SCHILY.xattr.user.overlay.redirect": "/etc"}},),
    "directory over a symlink": (
        {"n": "d", "t": L, "l": "../outside"},
        {"n": "d", "t": D, "m": 0o777},
        {"n": "d/secret", "d": b"pwn"},
    ),
    "directory swapped for a symlink": (
        {"n": "d", "t": D, "m": 0o777},
        {"n": "x", "d": b""},
        {"n": "d", "t": L, "l": "../outside"},
    ),
    "not utf-8": ({"n": "\udcff\udcfe", "d": b"x"},),
    "child of a file": ({"n": "f", "d": b"x"}, {"n": "f/g", "d": b"y"}),
    "proc as parent": ({"n": "d", "t": L, "l": "/proc/self/root"}, {"n": "dt/evil/secret2", "d": b"pwn"}),
    "proc through a symlink": ({"n": "d", "t": L, "l": "/proc/self/root"}, {"n": "d/etc/x", "d": b"pwn"}),
    "hardlink to itself": ({"n": "h", "t": H, "l": "h"},),
    "root entry": ({"n": "./", "t": D, "m": 0o755}, {"n": "./a", "d": b"x"}),
    "reserved mark": ({"n": ".wh..wh.plnk", "d": b"x"},),
    "no time at all": ({"n": "f", "p": {"mtime": "nan"}}, {"n": "g", "p": {"mtime": "-inf"}}),
}


class Place:
    """A root to unpack into, with things beside it that must stay as they are."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = base / "root"
        self.outside = base / "outside"
        self.root.mkdir(parents=True)
        self.outside.mkdir()
        (self.outside / "secret").write_text("SECRET")
        (base / "secret2").write_text("S2")

    def unpack(self, tar: bytes, **options: Any) -> Unpacked:
        options = {"max_bytes": 1 << 20, "max_files": 1000, **options}
        stream = TarStream(io.BytesIO(tar).read)
        extractor = Extractor(self.root, **options)
        try:
            for member in stream:
                extractor.add(stream, member)
            return extractor.finish()
        finally:
            extractor.close()

    def damage(self) -> list[str]:
        """What a layer managed to do that it must not."""
        found = []
        if (self.outside / "secret").read_text() != "SECRET" or (self.base / "secret2").read_text() != "S2":
            found.append("wrote outside")
        if sorted(os.listdir(self.base)) != ["outside", "root", "secret2"] or os.listdir(self.outside) != ["secret"]:
            found.append("made or removed something outside")
        inodes = {(self.outside / "secret").stat().st_ino, (self.base / "secret2").stat().st_ino}
        for path in [self.root, *self.root.rglob("*")]:
            what = path.lstat()
            if stat.S_ISREG(what.st_mode) and what.st_ino in inodes:
                found.append(f"linked to the outside: {path}")
            if stat.S_ISBLK(what.st_mode) or (stat.S_ISCHR(what.st_mode) and what.st_rdev):
                found.append(f"device: {path}")
            if what.st_mode & 0o6000:
                found.append(f"setid: {path}")
            if not stat.S_ISLNK(what.st_mode):
                bad = set(os.listxattr(path)) - {"user.overlay.opaque", "trusted.overlay.opaque"}
                found += [f"attribute {name}: {path}" for name in bad]
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "here")


def prepared(kit: Any, place: Place, entries: tuple[dict[str, Any], ...]) -> bytes:
    here = str(place.outside)
    return bytes(
        kit.layer(
            *({k: v.replace(OUT, here) if isinstance(v, str) else v for k, v in each.items()} for each in entries)
        )
    )


@pytest.mark.parametrize("case", REFUSED)
def test_refused(kit: Any, place: Place, case: str) -> None:
    with pytest.raises(ImageUnusable):
        place.unpack(prepared(kit, place, REFUSED[case]))
    assert place.damage() == []


@pytest.mark.parametrize("case", HARMLESS)
def test_harmless(kit: Any, place: Place, case: str) -> None:
    place.unpack(prepared(kit, place, HARMLESS[case]))
    assert place.damage() == []


def test_nul_in_a_name(kit: Any, place: Place) -> None:
    tar = kit.layer({"n": "f", "p": {"path": "a\0b"}})
    with pytest.raises(ImageUnusable):
        place.unpack(tar)


def test_limits_of_bytes_and_files(kit: Any, place: Place) -> None:
    with pytest.raises(ImageTooLarge, match="MiB"):
        place.unpack(kit.layer({"n": "z", "d": b"0" * 2_000_000}))
    with pytest.raises(ImageTooLarge, match="20 files"):
        place.unpack(kit.layer(*({"n": f"f{number}"} for number in range(50))), max_files=20)


def test_contents_modes_times_and_links(kit: Any, place: Place) -> None:
    place.unpack(
        kit.layer(
            {"n": "bin", "t": D, "m": 0o750, "mtime": 1_000_000_000},
            {"n": "bin/sh", "d": b"#!", "m": 0o755, "mtime": 1_000_000_001},
            {"n": "bin/bash", "t": H, "l": "bin/sh"},
            {"n": "link", "t": L, "l": "bin/sh"},
            {"n": "x", "d": b"x", "p": {"SCHILY.xattr.user.note": "hello"}},
        )
    )
    root = place.root
    assert (root / "bin/sh").read_bytes() == b"#!"
    assert stat.S_IMODE((root / "bin/sh").stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "bin").stat().st_mode) == 0o750
    assert (root / "bin").stat().st_mtime == 1_000_000_000
    assert (root / "bin/sh").stat().st_mtime == 1_000_000_001
    assert (root / "bin/bash").stat().st_ino == (root / "bin/sh").stat().st_ino
    assert os.readlink(root / "link") == "bin/sh"
    assert os.getxattr(root / "x", "user.note") == b"hello"


@pytest.mark.root
def test_owners(kit: Any, place: Place) -> None:
    place.unpack(
        kit.layer(
            {"n": "d", "t": D, "uid": 33, "gid": 34},
            {"n": "d/f", "uid": 1000, "gid": 1001, "d": b"x"},
            {"n": "d/l", "t": L, "l": "f", "uid": 5, "gid": 6},
        )
    )
    found = {path.name: (path.lstat().st_uid, path.lstat().st_gid) for path in place.root.rglob("*")}
    assert found == {"d": (33, 34), "f": (1000, 1001), "l": (5, 6)}


def is_whiteout(path: Path) -> bool:
    what = path.lstat()
    return stat.S_ISCHR(what.st_mode) and what.st_rdev == 0


def is_opaque(path: Path) -> bool:
    return os.getxattr(path, "user.overlay.opaque") == b"y" if "user.overlay.opaque" in os.listxattr(path) else False


def test_whiteouts_become_overlay_whiteouts(kit: Any, place: Place) -> None:
    place.unpack(kit.layer({"n": "a/.wh.gone"}, {"n": "b/.wh..wh..opq"}, {"n": "b/new", "d": b"x"}))
    assert is_whiteout(place.root / "a/gone")
    assert is_opaque(place.root / "b")
    assert not is_opaque(place.root / "a")
    assert (place.root / "b/new").exists()


def test_a_whiteout_does_not_touch_what_the_same_layer_has(kit: Any, place: Place) -> None:
    place.unpack(
        kit.layer(
            {"n": "f", "d": b"new"},
            {"n": ".wh.f"},
            {"n": "d/x", "d": b"new"},
            {"n": ".wh.d"},
            {"n": ".wh.e"},
            {"n": "e/x", "d": b"new"},
            {"n": ".wh.g"},
            {"n": "g", "d": b"new"},
            {"n": ".wh.h"},
            {"n": "h", "t": D},
        )
    )
    assert (place.root / "f").read_text() == "new"
    assert (place.root / "d/x").read_text() == "new"
    assert (place.root / "e/x").read_text() == "new"
    assert (place.root / "g").read_text() == "new"
    assert is_opaque(place.root / "d")
    assert is_opaque(place.root / "e")
    assert is_opaque(place.root / "h")


def test_the_last_entry_of_a_directory_counts(kit: Any, place: Place) -> None:
    place.unpack(kit.layer({"n": "d", "t": D, "m": 0o700}, {"n": "d/f"}, {"n": "d", "t": D, "m": 0o755}))
    assert stat.S_IMODE((place.root / "d").stat().st_mode) == 0o755


def test_names_of_whiteouts_can_be_plain_names(kit: Any, place: Place) -> None:
    place.unpack(kit.layer({"n": "d/.wh..wh..opq", "d": b"1"}, {"n": ".wh.d", "d": b"2"}), whiteouts=False)
    assert (place.root / "d/.wh..wh..opq").read_bytes() == b"1"
    assert (place.root / ".wh.d").read_bytes() == b"2"
    assert place.damage() == []


def test_what_is_left_to_the_layers_below_is_reported(kit: Any, place: Place) -> None:
    report = place.unpack(
        kit.layer(
            {"n": "tmp/x/y", "d": b"1"},
            {"n": "opt/a", "d": b"1"},
            {"n": "opt", "t": D, "m": 0o700},
            {"n": "gone/z", "d": b"1"},
            {"n": "gone", "d": b"now a file"},
            {"n": "usr/h", "t": H, "l": "usr/elsewhere"},
        )
    )
    assert report.implicit == ["tmp", "tmp/x", "usr"]
    assert report.dangling == [("usr/h", "usr/elsewhere")]
    assert report.files == 6


def test_a_directory_removed_under_a_cached_path(kit: Any, place: Place) -> None:
    place.unpack(
        kit.layer(
            {"n": "usr/lib", "t": D},
            {"n": "lib", "t": L, "l": "usr/lib"},
            {"n": "lib/one", "d": b"1"},
            {"n": "usr/lib/two", "d": b"2"},
            {"n": "usr", "d": b"a file"},
            {"n": "usr", "t": D},
            {"n": "lib/three", "d": b"3"},
        )
    )
    files = sorted(str(path.relative_to(place.root)) for path in place.root.rglob("*") if path.is_file())
    assert files == ["lib/three"]


def test_many_directories_need_few_descriptors(kit: Any, place: Place) -> None:
    before = len(os.listdir("/proc/self/fd"))
    entries = [{"n": f"d{number}/f", "d": b"x"} for number in range(500)]
    report = place.unpack(kit.layer(*entries))
    assert len(report.implicit) == 500
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.root
def test_all_of_this_as_nobody(as_nobody: Callable[[str, str], None]) -> None:
    """The same rules hold for a provider that is not root."""
    as_nobody(__file__, "not nobody")
