"""The image of the example: from an engine where one works, else from packages, and only once."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from shem.cogs.ociarchive import read_image
from shem.cogs.ociformat import host_architecture, sha256_digest
from shem.testing.render_image import _write_layer, build_render_image, examples

BUILD = """
import sys
from pathlib import Path
from shem.errors import ShemError
from shem.testing.render_image import build_render_image
try:
    print(build_render_image(Path(sys.argv[1]), lambda line: print("LOG", line)))
except ShemError as error:
    print("ERROR", error)
"""

ENGINE = """#!/bin/sh
echo "$0 $1" >> {calls}
case $1 in
  info) {info} ;;
  build) [ -f "$4/Dockerfile" ] ;;
  save) cp {saved} "$3" ;;
esac
"""


def build(out: Path, path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(out)], capture_output=True, text=True, check=True, env={"PATH": str(path)}
    )
    return done.stdout


def engines(tmp_path: Path, **info: str) -> Path:
    """A directory of programs that behave like engines, with what their ``info`` does."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for tool in ("sh", "cp"):
        (bin_ / tool).symlink_to(shutil.which(tool) or "")
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("etc"))
    conf = json.dumps(
        {"architecture": host_architecture(), "os": "linux", "rootfs": {"diff_ids": [sha256_digest(layer.getvalue())]}}
    ).encode()
    listing = json.dumps([{"Config": "c.json", "RepoTags": ["x:1"], "Layers": ["l.tar"]}]).encode()
    with tarfile.open(tmp_path / "saved.tar", "w") as tar:
        for name, data in {"manifest.json": listing, "c.json": conf, "l.tar": layer.getvalue()}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    for name, does in info.items():
        script = ENGINE.format(calls=tmp_path / "calls", saved=tmp_path / "saved.tar", info=does)
        (bin_ / name).write_text(script)
        (bin_ / name).chmod(0o755)
    return bin_


def test_an_engine_that_works_is_used_once(tmp_path: Path) -> None:
    path = engines(tmp_path, docker="echo no daemon; exit 1", podman="true")
    said = build(tmp_path / "out", path)
    assert "docker does not work here: no daemon" in said
    assert "with podman" in said
    assert read_image(tmp_path / "out").manifest.layers
    calls = (tmp_path / "calls").read_text()
    assert [line.rpartition("/")[2] for line in calls.splitlines()] == [
        "docker info",
        "podman info",
        "podman build",
        "podman save",
    ]
    assert "LOG" not in build(tmp_path / "out", path)
    assert (tmp_path / "calls").read_text() == calls
    assert sorted(os.listdir(tmp_path)) == ["bin", "calls", "out", "saved.tar"]


def test_a_damaged_image_is_built_again(tmp_path: Path) -> None:
    path = engines(tmp_path, podman="true")
    build(tmp_path / "out", path)
    (tmp_path / "out/index.json").write_text("{}")
    assert "with podman" in build(tmp_path / "out", path)
    assert read_image(tmp_path / "out")


def test_one_sentence_says_what_is_missing(tmp_path: Path) -> None:
    said = build(tmp_path / "out", engines(tmp_path, docker="exit 1"))
    assert "ERROR the example's image needs docker, podman or buildah, or a Debian or Ubuntu system" in said
    assert not (tmp_path / "out").exists()


def package(tmp_path: Path, name: str, files: dict[str, str], links: dict[str, str]) -> Path:
    root = tmp_path / name
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: us <us@example.org>\nDescription: test\n"
    )
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
        (root / path).chmod(0o6755)
    for path, target in links.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if target.startswith("="):
            os.link(root / target[1:], root / path)
        else:
            (root / path).symlink_to(target)
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", str(root), str(tmp_path / f"{name}.deb")],
        check=True,
        capture_output=True,
    )
    return tmp_path / f"{name}.deb"


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="this is not a Debian system: there is no dpkg-deb")
def test_packages_become_one_layer(tmp_path: Path) -> None:
    one = package(
        tmp_path,
        "one",
        {"lib/x/libone.so": "one", "usr/bin/tool": "tool", "usr/share/doc/one/copyright": "words", "bin/sh": "a shell"},
        {"lib64/ld.so": "/lib/x/libone.so", "usr/bin/alias": "=usr/bin/tool"},
    )
    two = package(tmp_path, "two", {"usr/lib/x/libtwo.so": "two", "usr/lib/x/gconv/big": "x"}, {})
    layers = []
    for attempt in range(2):
        with (tmp_path / f"layer{attempt}").open("wb") as file:
            diff_id = _write_layer([one, two], file)
        layers.append((diff_id, (tmp_path / f"layer{attempt}").read_bytes()))
    assert layers[0] == layers[1]
    with tarfile.open(tmp_path / "layer0") as tar:
        found = {entry.name: entry for entry in tar}
        assert (tar.extractfile("usr/bin/alias") or io.BytesIO()).read() == b"tool"
        assert (tar.extractfile("usr/bin/sh") or io.BytesIO()).read() == b"a shell"
    assert found["lib"].linkname == "usr/lib"
    assert found["lib64"].linkname == "usr/lib64"
    assert found["usr/lib64/ld.so"].linkname == "/lib/x/libone.so"
    assert {"usr/lib/x/libone.so", "usr/lib/x/libtwo.so", "usr/lib/x", "tmp", "work"} <= found.keys()
    assert not any("doc" in name or "gconv" in name for name in found)
    assert found["tmp"].mode == 0o1777
    assert found["usr/bin/tool"].mode == 0o755
    assert found["usr/bin/cat"].linkname == "busybox"
    assert {entry.mtime for entry in found.values()} == {0}
    assert list(found) == sorted(found)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="this is not a Debian system: there is no apt-get")
def test_the_real_image_renders_the_scene(tmp_path: Path) -> None:
    image = read_image(build_render_image(tmp_path / "image", print))
    assert image.size > 5_000_000
    if os.geteuid() != 0:
        pytest.skip("only root can chroot into the image")
    root = tmp_path / "root"
    root.mkdir()
    for layer in image.manifest.layers:
        content = b"".join(image.blobs[layer.digest].chunks())
        subprocess.run(["tar", "-xzf", "-", "-C", str(root)], input=content, check=True)
    shutil.copy(examples() / "render/scene.pov", root / "work/scene.pov")
    command = "cd /work && povray scene.pov +Oframe.png +W80 +H60 +K0.5 -D"
    done = subprocess.run(["chroot", str(root), "/bin/sh", "-c", command], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (root / "work/frame.png").read_bytes().startswith(b"\x89PNG")
