"""Flattening: layers as one tree must be what a sandbox sees when they are stacked."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shem.cogs.ociformat import ImageUnusable, sha256_digest
from shem.runtimes.images.errors import ImageDigestMismatch, ImageTooLarge
from shem.runtimes.images.extract import Extractor
from shem.runtimes.images.flatten import FlatImage, LayerAt, Limits
from shem.runtimes.images.inroot import Stack
from shem.runtimes.images.patch import make_patch
from shem.runtimes.images.tarstream import CHAR, DIR, FILE, HARDLINK, SYMLINK, TarStream
from shem.runtimes.images.tarwriter import TarWriter

L, H, D = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
Seen = dict[bytes, tuple[bytes, int, bytes]]
"""By path: kind, mode, and content or target."""


def flat(directory: Path, layers: Sequence[bytes], limits: Limits | None = None) -> tuple[FlatImage, bytes]:
    """The flattened image, and the tar it writes."""
    places = []
    for number, layer in enumerate(layers):
        path = directory / f"{number}.blob"
        path.write_bytes(layer)
        tar = gzip.decompress(layer) if layer[:2] == b"\x1f\x8b" else layer
        places.append(
            LayerAt(path=path, offset=0, size=len(layer), digest=sha256_digest(layer), diff_id=sha256_digest(tar))
        )
    image = FlatImage(places, limits or Limits(), lambda _: None)
    out = io.BytesIO()
    image.write(TarWriter(out))
    return image, out.getvalue()


def seen(tar: bytes) -> Seen:
    stream = TarStream(io.BytesIO(tar).read)
    found: Seen = {}
    for member in stream:
        name = member.name.removeprefix(b"./").rstrip(b"/")
        content = b"".join(iter(lambda: stream.read(1 << 20), b""))
        if member.kind == HARDLINK:
            found[name] = found[member.link.removeprefix(b"./")]
        elif name:
            found[name] = (member.kind, member.mode & 0o7777, member.link if member.kind == SYMLINK else content)
    return found


def stacked(directory: Path, layers: Sequence[bytes]) -> Seen:
    """As overlayfs shows the directories that the store would unpack."""
    trees: list[Path] = []
    for number, layer in enumerate(layers):
        tree = directory / f"{number}.tree"
        tree.mkdir()
        extractor = Extractor(tree, max_bytes=1 << 20, max_files=1000)
        stream = TarStream(io.BytesIO(layer).read)
        for member in stream:
            extractor.add(stream, member)
        report = extractor.finish()
        extractor.close()
        below = list(trees)
        trees.append(tree)
        if below and (report.implicit or report.dangling):
            patch = directory / f"{number}.patch"
            patch.mkdir()
            if make_patch(below, tree, report, patch, max_bytes=1 << 20).files:
                trees.append(patch)
    names = {os.fsencode(path.relative_to(tree)) for tree in trees for path in tree.rglob("*")}
    found: Seen = {}
    with Stack(trees) as stack:
        for name in names:
            fd = stack.find(name)
            if fd is None:
                continue
            what = os.fstat(fd)
            mode = stat.S_IMODE(what.st_mode)
            if stat.S_ISDIR(what.st_mode):
                found[name] = (DIR, mode, b"")
            elif stat.S_ISLNK(what.st_mode):
                found[name] = (SYMLINK, 0o777, os.readlink(b"", dir_fd=fd))
            else:
                found[name] = (FILE, mode, Path(f"/proc/self/fd/{fd}").read_bytes())
            os.close(fd)
    return found


NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
ENTRIES = st.one_of(
    st.builds(lambda path, data: {"n": path, "d": data}, PATHS, st.sampled_from([b"1", b"22"])),
    st.builds(lambda path, mode: {"n": path, "t": D, "m": mode}, PATHS, st.sampled_from([0o755, 0o1777, 0o700])),
    st.builds(lambda path, to: {"n": path, "t": L, "l": to, "m": 0o777}, PATHS, st.sampled_from(["a", "/b/c", "../c"])),
    st.builds(lambda path, name: {"n": f"{path}/.wh.{name}"}, PATHS, NAMES),
    st.builds(lambda name: {"n": f".wh.{name}"}, NAMES),
    st.builds(lambda path: {"n": f"{path}/.wh..wh..opq"}, PATHS),
)


def modeless(tree: Seen) -> Seen:
    return {path: (kind, 0 if kind == DIR else mode, data) for path, (kind, mode, data) in tree.items()}


def contradicts_itself(layer: list[dict[str, Any]]) -> bool:
    """Whether a name is both a directory and something else: then only the order in the tar says what is meant."""
    others = {entry["n"] for entry in layer if entry.get("t") != D}
    directories = {entry["n"] for entry in layer if entry.get("t") == D}
    directories |= {str(parent) for entry in layer for parent in PurePosixPath(entry["n"]).parents}
    return bool(others & directories)


LAYER = st.lists(ENTRIES, max_size=6).filter(lambda layer: not contradicts_itself(layer))


@pytest.mark.root  # otherwise the unpacker adds permissions that its owner needs
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layers=st.lists(LAYER, min_size=1, max_size=3))
def test_flat_is_what_a_sandbox_sees(kit: Any, layers: list[list[dict[str, Any]]]) -> None:
    tars = [kit.layer(*entries) for entries in layers]
    with tempfile.TemporaryDirectory() as name:
        _, tar = flat(Path(name), tars)
        made, expected = seen(tar), stacked(Path(name), tars)
    if any(".wh." in entry["n"] for layer in layers for entry in layer):
        # what a layer uses and says to be gone, without an entry of its own, has no mode that anybody could name
        made, expected = modeless(made), modeless(expected)
    assert made == expected


def test_a_directory_reached_through_a_link_of_its_layer(kit: Any, tmp_path: Path) -> None:
    lower = kit.layer({"n": "lib", "t": L, "l": "usr/lib"}, {"n": "usr/lib/old", "d": b"1"})
    upper = kit.layer({"n": "bin", "t": L, "l": "/usr/bin"}, {"n": "usr/bin", "t": D}, {"n": "bin/new", "d": b"2"})
    _, tar = flat(tmp_path, [lower, upper])
    assert {name for name, (kind, _, _) in seen(tar).items() if kind != DIR} == {
        *(b"lib", b"usr/lib/old", b"bin", b"usr/bin/new")
    }
    _, tar = flat(tmp_path, [lower, kit.layer({"n": "lib/new", "d": b"3"})])
    assert seen(tar)[b"lib"][0] == DIR
    assert seen(tar)[b"lib/new"] == (FILE, 0o644, b"3")


def test_hard_links(kit: Any, tmp_path: Path) -> None:
    """Within a layer, to one below, to what is deleted afterwards, and to nothing."""
    lower = kit.layer({"n": "a", "d": b"one"}, {"n": "b", "t": H, "l": "a"}, {"n": "gone", "d": b"x"})
    upper = kit.layer({"n": "c", "t": H, "l": "b"}, {"n": ".wh.a"}, {"n": "d", "t": H, "l": "nowhere"})
    image, tar = flat(tmp_path, [lower, upper])
    kinds = {m.name: m.kind for m in TarStream(io.BytesIO(tar).read)}
    assert kinds == {b"./": DIR, b"./b": FILE, b"./c": HARDLINK, b"./gone": FILE}
    assert seen(tar)[b"c"] == (FILE, 0o644, b"one")
    assert image.left_out == {"hard links to nothing": 1}


def test_what_only_root_could_write_is_kept(kit: Any, tmp_path: Path) -> None:
    attributes = {"SCHILY.xattr.security.capability": "cap", "SCHILY.xattr.user.overlay.opaque": "y"}
    layer = kit.layer(
        {"n": "tool", "d": b"x", "m": 0o4755, "uid": 70000, "gid": 3_000_000, "p": attributes},
        {"n": "tty", "t": tarfile.CHRTYPE},
        {"n": "long/" + "x" * 200, "d": b"y"},
    )
    image, tar = flat(tmp_path, [layer])
    members = {m.name: m for m in TarStream(io.BytesIO(tar).read)}
    tool = members[b"./tool"]
    assert (tool.mode & 0o7777, tool.uid, tool.gid) == (0o4755, 70000, 3_000_000)
    assert tool.xattrs == {b"security.capability": b"cap"}
    assert (members[b"./tty"].kind, members[b"./tty"].device) == (CHAR, (8, 0))
    assert b"./long/" + b"x" * 200 in members
    assert image.left_out == {"extended attributes": 1}


def test_compression_changes_nothing(kit: Any, tmp_path: Path) -> None:
    plain = [kit.layer({"n": "a", "d": b"1" * 5000}), kit.layer({"n": "b/c", "d": b"2"})]
    packed = [gzip.compress(each) for each in plain]
    assert flat(tmp_path, plain)[1] == flat(tmp_path, packed)[1]


def test_content_that_is_not_wanted_any_more_is_not_copied(kit: Any, tmp_path: Path) -> None:
    lower, upper = kit.layer({"n": "a", "d": b"1" * 100_000}), kit.layer({"n": "a", "d": b"2"})
    _, tar = flat(tmp_path, [lower, upper])
    assert seen(tar) == {b"a": (FILE, 0o644, b"2")}
    assert len(tar) < 10_000


def test_a_file_through_links(kit: Any, tmp_path: Path) -> None:
    layer = kit.layer({"n": "etc/passwd", "t": L, "l": "/usr/lib/p"}, {"n": "usr/lib/p", "d": b"root"}, {"n": "d/e"})
    loop = kit.layer({"n": "x", "t": L, "l": "y"}, {"n": "y", "t": L, "l": "x"})
    image, _ = flat(tmp_path, [layer, loop])
    assert image.read(b"etc/passwd", 100) == b"root"
    assert image.read(b"etc/passwd", 3) is None
    assert image.read(b"x", 100) is None
    assert image.read(b"d", 100) is None
    assert image.read(b"nothing/here", 100) is None


def test_a_layer_that_is_not_what_it_says(kit: Any, tmp_path: Path) -> None:
    layer = kit.layer({"n": "a", "d": b"1"})
    path = tmp_path / "blob"
    path.write_bytes(layer)
    good = LayerAt(path=path, offset=0, size=len(layer), digest=sha256_digest(layer), diff_id=sha256_digest(layer))
    for wrong in ("digest", "diff_id"):
        bad = LayerAt(**{**{f: getattr(good, f) for f in good.__struct_fields__}, wrong: "sha256:" + "0" * 64})
        with pytest.raises(ImageDigestMismatch):
            FlatImage([bad], Limits(), lambda _: None)
    path.write_bytes(layer[:700])
    with pytest.raises(ImageUnusable, match="shorter"):
        FlatImage([good], Limits(), lambda _: None)


@pytest.mark.parametrize(
    "entries",
    [
        ({"n": "../x", "d": b"x"},),
        ({"n": "d", "t": D}, {"n": "h", "t": H, "l": "d"}),
        ({"n": "h", "t": H, "l": "../x"},),
        ({"n": "h", "t": H, "l": ""},),
        ({"n": "a", "t": L, "l": "/"}, *({"n": f"a/{'d/' * 100}a", "t": L, "l": "/" + "d/" * 100} for _ in range(3))),
    ],
)
def test_impossible_layers(kit: Any, tmp_path: Path, entries: Any) -> None:
    with pytest.raises(ImageUnusable):
        flat(tmp_path, [kit.layer(*entries), kit.layer({"n": "a/" + "x/" * 254 + "y", "d": b"deep"})] * 2)


def test_limits(kit: Any, tmp_path: Path) -> None:
    many = kit.layer(*({"n": f"{n}"} for n in range(20)))
    with pytest.raises(ImageTooLarge, match="files"):
        flat(tmp_path, [many], Limits(max_files=10))
    bomb = gzip.compress(kit.layer({"n": "zeros", "d": bytes(20_000_000)}))
    assert len(bomb) < 100_000
    with pytest.raises(ImageTooLarge, match="MiB"):
        flat(tmp_path, [bomb], Limits(max_bytes=1 << 20, max_files=10))
