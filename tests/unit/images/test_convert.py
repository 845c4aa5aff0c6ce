"""Docker images to image files and back: what is the same afterwards."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from shem.cogs.ociarchive import read_image
from shem.cogs.ociformat import ImageUnusable, host_architecture
from shem.errors import NotFound
from shem.runtimes.images.cage import tar_of
from shem.runtimes.images.convert import describe, describe_image, pack_layout, to_gvmi, to_layout
from shem.runtimes.images.errors import ImageTooLarge
from shem.runtimes.images.flatten import Limits
from shem.runtimes.images.gvmi import read_gvmi, sha3_of, write_gvmi
from shem.runtimes.images.local import fetch_image
from shem.runtimes.images.registry import RegistryConfig
from shem.runtimes.images.tarstream import DIR, HARDLINK, TarStream
from shem.terms.images import parse_reference

PASSWD = {"n": "etc/passwd", "d": b"root:x:0:0::/root:\nworker:x:1000:1001::/home/worker:\n"}
ATTRIBUTES = {"SCHILY.xattr.user.note": "a note", "SCHILY.xattr.security.capability": "\x01\x00\x02"}


def image(kit: Any, **config: Any) -> Any:
    base = kit.layer(
        {"n": "./", "t": tarfile.DIRTYPE, "m": 0o755},
        PASSWD,
        {"n": "bin/tool", "d": b"tool" * 50_000, "m": 0o4755, "uid": 70_000, "gid": 5, "p": ATTRIBUTES},
        {"n": "bin/alias", "t": tarfile.LNKTYPE, "l": "bin/tool"},
        {"n": "bin/sh", "t": tarfile.SYMTYPE, "l": "/bin/tool", "m": 0o777},
        {"n": "tmp", "t": tarfile.DIRTYPE, "m": 0o1777},
        {"n": "dev/tty", "t": tarfile.CHRTYPE, "m": 0o666},
        {"n": "run/pipe", "t": tarfile.FIFOTYPE},
        {"n": "old", "d": b"old"},
        {"n": "name/" + "ü" * 90, "d": b"long"},
    )
    upper = kit.layer({"n": ".wh.old"}, {"n": "new", "d": b"new"})
    return kit.image([base, upper], {"Env": ["A=b"], "Cmd": ["sh"], **config})


def tree(source: Any) -> dict[bytes, tuple[Any, ...]]:
    """Everything that a tar says, by path; hard links as what they lead to."""
    stream, found = TarStream(source.read), {}
    for member in stream:
        name = member.name.removeprefix(b"./").rstrip(b"/")
        content = b"".join(iter(lambda: stream.read(1 << 16), b""))
        if member.kind == HARDLINK:
            found[name] = found[member.link.removeprefix(b"./")]
        else:
            what = (member.kind, member.mode & 0o7777, member.uid, member.gid, member.link, member.device)
            times = () if member.kind == DIR else (member.mtime,)  # of directories without an entry
            found[name] = (*what, *times, content, tuple(sorted(member.xattrs.items())))
    return found


def tree_of(path: Path) -> dict[bytes, tuple[Any, ...]]:
    with tar_of(path) as source:
        return tree(source)


def test_there_and_back_and_there(kit: Any, tmp_path: Path) -> None:
    layout = image(kit, User="worker", WorkingDir="/w", Labels={"b": "1", "a": "ü"}).layout(tmp_path / "oci")
    first = to_gvmi(read_image(layout), tmp_path / "1.gvmi", volumes=["/golem/work"])
    assert first.left_out == {}
    assert first.digest == f"sha3:{sha3_of(tmp_path / '1.gvmi')}"
    (tmp_path / "back").mkdir()
    back = to_layout(tmp_path / "1.gvmi", tmp_path / "back", name="x:latest")
    assert back.left_out == {}
    again = read_image(tmp_path / "back")
    assert again.digest == back.digest
    second = to_gvmi(again, tmp_path / "2.gvmi")
    made = tree_of(tmp_path / "1.gvmi")
    assert made == tree_of(tmp_path / "2.gvmi")
    (tmp_path / "once more").mkdir()
    assert to_layout(tmp_path / "2.gvmi", tmp_path / "once more", name="x:latest").digest == back.digest
    assert second.left_out == {}
    assert b"old" not in made
    assert made[b"bin/alias"] == made[b"bin/tool"]
    kind, mode, uid, gid, _, _, _, content, xattrs = made[b"bin/tool"]
    assert (kind, mode, uid, gid, content) == (b"0", 0o4755, 70_000, 5, b"tool" * 50_000)
    assert dict(xattrs) == {b"user.note": b"a note", b"security.capability": b"\x01\x00\x02"}
    assert made[b"dev/tty"][5] == (8, 0)
    assert made[b"tmp"][1] == 0o1777
    assert made[b"name/" + "ü".encode() * 90][-2] == b"long"
    config = describe(read_gvmi(tmp_path / "1.gvmi"))
    assert config == {
        "Env": ["A=b"],
        "Cmd": ["sh"],
        "User": "1000:1001",
        "WorkingDir": "/w",
        "Labels": {"b": "1", "a": "ü"},
        "Volumes": {"/golem/work": {}},
    }
    assert describe_image(again) == (host_architecture(), config)


def test_the_same_image_in_any_wrapping(kit: Any, tmp_path: Path) -> None:
    """A layout, its tar, and what an older docker saves, lead to the same file."""
    made = image(kit)
    layout = made.layout(tmp_path / "oci")
    pack_layout(layout, tmp_path / "oci.tar")
    saved = tmp_path / "saved.tar"
    with tarfile.open(saved, "w") as tar:
        files = {f"{n}/layer.tar": layer for n, layer in enumerate(made.layers)}
        listing = [{"Config": "c.json", "Layers": list(files), "RepoTags": None}]
        for name, data in {**files, "c.json": made.config_raw, "manifest.json": json.dumps(listing).encode()}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    digests = {
        to_gvmi(read_image(path), tmp_path / "x.gvmi", compressor="lz4").digest
        for path in (layout, tmp_path / "oci.tar", saved)
    }
    assert len(digests) == 1


async def test_an_image_of_a_registry(kit: Any, registry: Any, tmp_path: Path) -> None:
    made = image(kit)
    registry.add(made, "v1")
    layout = to_gvmi(read_image(made.layout(tmp_path / "oci")), tmp_path / "a.gvmi")
    config = RegistryConfig(insecure_hosts=frozenset({"127.0.0.1"}), architecture=host_architecture(), backoff_s=0.0)
    heard: list[tuple[int, int]] = []
    (tmp_path / "blobs").mkdir()
    fetched = await fetch_image(
        parse_reference(f"{registry.host}/x/y:v1"),
        tmp_path / "blobs",
        config,
        progress=lambda done, total: heard.append((done, total)),
    )
    assert to_gvmi(fetched, tmp_path / "b.gvmi").digest == layout.digest
    assert heard[-1][0] == heard[-1][1] == sum(map(len, made.packed))
    with pytest.raises(NotFound):
        await fetch_image(
            parse_reference(f"{registry.host}/x/y:v2"), tmp_path / "blobs", config, progress=lambda *_: None
        )


@pytest.mark.parametrize(
    ("user", "number"), [("worker", "1000:1001"), ("1000", "1000:1001"), ("7", "7:0"), ("worker:5", "1000:5"), ("", "")]
)
def test_users_become_numbers(kit: Any, tmp_path: Path, user: str, number: str) -> None:
    layout = image(kit, User=user).layout(tmp_path / "oci")
    to_gvmi(read_image(layout), tmp_path / "x.gvmi", compressor="lz4")
    assert describe(read_gvmi(tmp_path / "x.gvmi")).get("User") == number


def test_failures_leave_what_was_there(kit: Any, tmp_path: Path) -> None:
    out = tmp_path / "x.gvmi"
    out.write_text("before")
    unknown = image(kit, User="nobody").layout(tmp_path / "a")
    with pytest.raises(ImageUnusable) as raised:
        to_gvmi(read_image(unknown), out)
    assert raised.value.code == "image_user_unknown"
    with pytest.raises(ImageUnusable, match="volume"):
        to_gvmi(read_image(image(kit).layout(tmp_path / "b")), out, volumes=["/a/../b"])
    with pytest.raises(ImageTooLarge):
        to_gvmi(read_image(tmp_path / "b"), out, limits=Limits(max_files=3))
    damaged = image(kit).layout(tmp_path / "c")
    layer = read_image(damaged).manifest.layers[0]
    blob = damaged / "blobs/sha256" / layer.digest[7:]
    data = bytearray(blob.read_bytes())
    data[5000] ^= 1
    blob.write_bytes(bytes(data))
    with pytest.raises(Exception, match="a layer"):
        to_gvmi(read_image(damaged), out)
    assert out.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "x.gvmi"]


def test_what_the_other_format_cannot_say(kit: Any, tmp_path: Path) -> None:
    tar = kit.layer({"n": "a", "d": b"1"}, {"n": ".wh.a", "d": b"2"}, {"n": "d/.wh..wh..opq"})
    write_gvmi(tmp_path / "x.gvmi", lambda pipe: pipe.write(tar), b"{}")
    (tmp_path / "oci").mkdir()
    made = to_layout(tmp_path / "x.gvmi", tmp_path / "oci", name="x")
    assert made.left_out == {"names that begin with .wh.": 2}
    to_gvmi(read_image(tmp_path / "oci"), tmp_path / "y.gvmi")
    assert set(tree_of(tmp_path / "y.gvmi")) == {b"", b"a", b"d"}
    with pytest.raises(ImageTooLarge):
        to_layout(tmp_path / "x.gvmi", tmp_path / "oci", name="x", limits=Limits(max_files=2))


def test_an_image_for_another_machine(kit: Any, tmp_path: Path) -> None:
    other = "arm64" if host_architecture() != "arm64" else "amd64"
    tar = kit.layer({"n": "a", "d": b"1"})
    write_gvmi(tmp_path / "x.gvmi", lambda pipe: pipe.write(tar), b"{}")
    (tmp_path / "oci").mkdir()
    to_layout(tmp_path / "x.gvmi", tmp_path / "oci", name="x", architecture=other)
    assert describe_image(read_image(tmp_path / "oci", architecture=other))[0] == other


def test_others_read_what_we_write(kit: Any, tmp_path: Path) -> None:
    """The tree by another program: not ours, not of the same makers."""
    to_gvmi(read_image(image(kit).layout(tmp_path / "oci")), tmp_path / "x.gvmi")
    try:
        done = subprocess.run(
            ["unsquashfs", "-d", tmp_path / "out", "-n", "-no-xattrs", "-excludes", tmp_path / "x.gvmi", "dev"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("there is no unsquashfs on this machine to compare with")
    assert (tmp_path / "out/bin/tool").read_bytes() == b"tool" * 50_000, done.stderr
    assert (tmp_path / "out/bin/sh").readlink() == Path("/bin/tool")
    assert (tmp_path / "out/new").read_bytes() == b"new"
