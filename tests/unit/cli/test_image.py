"""``shem image``: what it prints, how it ends, and that nothing half-made stays behind."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shem.cli import main
from shem.cogs.ociarchive import read_image, write_layout
from shem.cogs.ociformat import host_architecture
from shem.testing.small_image import make_small_gvmi, make_small_image

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shem(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; exit status, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as raised:
            main([str(each) for each in arguments])
        said = capsys.readouterr()
        return int(raised.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return make_small_image(tmp_path / "oci", {"User": "worker", "Cmd": ["sh", "-c", "date"]})


def sha3(path: Path) -> str:
    return f"sha3:{hashlib.sha3_224(path.read_bytes()).hexdigest()}"


def visible(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_to_gvmi(shem: Run, layout: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gvmi"
    status, said, complaints = shem("image", "to-gvmi", layout, out, "--volume", "/golem/work", "--volume", "/data")
    assert (status, complaints) == (0, "")
    assert sha3(out) in said
    status, said, _ = shem("image", "to-gvmi", layout, tmp_path / "b.gvmi", "--json", "--compress", "zstd")
    answer = json.loads(said)
    assert answer == {
        "path": str(tmp_path / "b.gvmi"),
        "kind": "gvmi",
        "digest": sha3(tmp_path / "b.gvmi"),
        "size": (tmp_path / "b.gvmi").stat().st_size,
        "left_out": {},
    }
    assert visible(tmp_path) == ["a.gvmi", "b.gvmi", "oci"]


def test_show(shem: Run, layout: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gvmi"
    shem("image", "to-gvmi", layout, out, "--volume", "/golem/work", "--compress", "lz4")
    _, said, _ = shem("image", "show", out, "--json")
    facts = json.loads(said)
    assert (facts["kind"], facts["digest"], facts["size"]) == ("gvmi", sha3(out), out.stat().st_size)
    assert facts["squashfs"]["compression"] == "lz4"
    assert facts["config"]["User"] == "1000:1000"
    assert facts["config"]["Volumes"] == {"/golem/work": {}}
    status, said, _ = shem("image", "show", out)
    assert status == 0
    for text in (sha3(out), "1000:1000", "/golem/work", "GREETING=hello", '["sh", "-c", "date"]', "lz4"):
        assert text in said
    _, said, _ = shem("image", "show", layout, "--json")
    facts = json.loads(said)
    assert (facts["kind"], facts["digest"]) == ("oci", read_image(layout).digest)
    assert [layer["digest"] for layer in facts["layers"]] == [
        each.digest for each in read_image(layout).manifest.layers
    ]
    assert shem("image", "show", layout)[0] == 0


def test_to_oci(shem: Run, tmp_path: Path) -> None:
    source = tmp_path / "My Image.gvmi"
    make_small_gvmi(source)
    status, said, _ = shem("image", "to-oci", source, tmp_path / "oci", "--json")
    assert status == 0
    assert json.loads(said)["digest"] == read_image(tmp_path / "oci").digest
    assert shem("image", "to-oci", source, tmp_path / "oci.tar")[0] == 0
    assert read_image(tmp_path / "oci.tar", name="my-image:latest").digest == read_image(tmp_path / "oci").digest
    assert visible(tmp_path) == ["My Image.gvmi", "oci", "oci.tar"]
    back = tmp_path / "back.gvmi"
    assert shem("image", "to-gvmi", tmp_path / "oci.tar", back)[0] == 0
    assert json.loads(shem("image", "show", back, "--json")[1])["config"]["Volumes"].keys() == {
        *("/golem/work", "/golem/input", "/golem/output", "/golem/resource")
    }


def test_wrong_requests(shem: Run, layout: Path, tmp_path: Path) -> None:
    gvmi, junk, taken = tmp_path / "x.gvmi", tmp_path / "junk", tmp_path / "taken"
    make_small_gvmi(gvmi)
    before = gvmi.read_bytes()
    junk.write_bytes(b"hsqs" + bytes(200))
    taken.mkdir()
    for code, *arguments in (
        ("no_default_registry", "to-gvmi", "python:3", gvmi),
        ("bad_image", "to-gvmi", "./not/there", gvmi),
        ("image_bad", "to-gvmi", gvmi, gvmi),
        ("image_bad", "to-gvmi", tmp_path, gvmi),
        ("refused", "to-gvmi", layout, gvmi, "--volume", "data"),
        ("refused", "to-gvmi", layout, gvmi, "--volume", "/a/../b"),
        ("no_such_file", "to-gvmi", layout, tmp_path / "nowhere/x.gvmi"),
        ("exists", "to-gvmi", layout, taken),
        ("exists", "to-oci", gvmi, taken),
        ("exists", "to-oci", gvmi, junk),
        ("no_such_file", "to-oci", tmp_path / "nothing", tmp_path / "y"),
        ("image_unsupported", "to-oci", junk, tmp_path / "y.tar"),
        ("image_unsupported", "show", junk),
        ("no_such_file", "show", tmp_path / "nothing"),
        ("refused", "build", tmp_path, "-o", tmp_path / "y.tar", "--volume", "/a"),
    ):
        status, said, complaints = shem("image", *arguments)
        assert (status, said) == (2, ""), complaints
        assert f"code: {code}\n" in complaints, complaints
    assert shem("image", "to-gvmi", layout, gvmi, "--compress", "zip")[0] == 2
    assert gvmi.read_bytes() == before
    assert visible(tmp_path) == ["junk", "oci", "taken", "x.gvmi"]
    assert visible(taken) == []


STAND_IN = """#!/bin/sh
echo "$0 $@" >> {log}
echo "what a builder says"
case "$1" in
  build) [ -f "$4/Dockerfile" ] || [ -f "$5" ] || exit 7 ;;
  push) for last; do :; done; cp {saved} "${{last#oci-archive:}}" ;;
  save) shift; while [ "$1" != --output ]; do shift; done; cp {saved} "$2" ;;
esac
"""


@pytest.fixture
def builder(shem: Run, layout: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``shem image build`` where the builders are scripts that hand out our small image and write down what they
    are told."""
    saved = tmp_path / "saved.tar"
    gvmi = tmp_path / "small.gvmi"
    assert shem("image", "to-gvmi", layout, gvmi)[0] == 0
    assert shem("image", "to-oci", gvmi, saved)[0] == 0
    context = tmp_path / "context"
    context.mkdir()

    def run(*arguments: object, programs: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        programs_dir = tmp_path / "bin"
        programs_dir.mkdir(exist_ok=True)
        for each in programs_dir.iterdir():
            each.unlink()
        for program in programs:
            script = programs_dir / program
            script.write_text(STAND_IN.format(log=tmp_path / "log", saved=saved))
            script.chmod(0o755)
        for tool in ("cp", "sh"):
            (programs_dir / tool).symlink_to(f"/bin/{tool}")
        return subprocess.run(
            [sys.executable, "-m", "shem", "image", "build", str(context), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": str(programs_dir), "HOME": str(tmp_path)},
        )

    return run


def test_build(builder: Any, tmp_path: Path) -> None:
    (tmp_path / "context/Dockerfile").write_text("FROM scratch\n")
    (tmp_path / "Other").write_text("FROM scratch\n")
    done = builder("-o", tmp_path / "a.gvmi", "--volume", "/golem/work", "--json", programs=("docker", "podman"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["digest"] == sha3(tmp_path / "a.gvmi")
    assert "what a builder says" in done.stderr
    asked = [line.split("/bin/")[1] for line in (tmp_path / "log").read_text().splitlines()]
    tag = asked[0].split()[3]
    assert asked[0] == f"docker build --tag {tag} {tmp_path / 'context'}"
    assert [line.split()[:2] for line in asked] == [["docker", "build"], ["docker", "save"], ["docker", "rmi"]]
    done = builder("-f", tmp_path / "Other", "-o", tmp_path / "b", programs=("buildah", "docker"))
    assert done.returncode == 0, done.stderr
    done = builder("-o", tmp_path / "b.tar", "--with", "podman", programs=("docker", "podman"))
    assert done.returncode == 0, done.stderr
    assert read_image(tmp_path / "b").digest == read_image(tmp_path / "b.tar").digest
    assert [name for name in visible(tmp_path) if name.startswith(".")] == []


def test_build_without_success(builder: Any, tmp_path: Path) -> None:
    done = builder("-o", tmp_path / "a.gvmi", programs=())
    assert done.returncode == 6
    assert "code: no_builder" in done.stderr
    done = builder("-o", tmp_path / "a.gvmi", "--with", "buildah", programs=("docker",))
    assert done.returncode == 6
    done = builder("-o", tmp_path / "a.gvmi", programs=("docker",))  # there is no Dockerfile
    assert done.returncode == 5
    assert "docker build ended with status 7" in done.stderr
    assert not (tmp_path / "a.gvmi").exists()
    assert [name for name in visible(tmp_path) if name.startswith(".")] == []


async def test_what_is_ended_leaves_nothing(tmp_path: Path) -> None:
    """Long work that gets SIGTERM in the middle."""
    place = tmp_path / "here"
    (place / "oci").mkdir(parents=True)
    layer = place / "layer"
    with tarfile.open(layer, "w") as tar:
        for number in range(30):
            entry = tarfile.TarInfo(f"{number}")
            entry.size = 1 << 20
            tar.addfile(entry, io.BytesIO(os.urandom(1 << 20)))
    diff = "sha256:" + hashlib.sha256(layer.read_bytes()).hexdigest()
    config = {"architecture": host_architecture(), "os": "linux", "rootfs": {"diff_ids": [diff]}}
    write_layout(
        place / "oci", json.dumps(config).encode(), [(layer, "application/vnd.oci.image.layer.v1.tar")], name="x"
    )
    out = place / "out.gvmi"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "shem", "image", "to-gvmi", str(place / "oci"), str(out), "--compress", "xz")
    )
    try:
        end = time.monotonic() + 60
        while not any(name.startswith(".out.gvmi.") for name in os.listdir(place)) and process.returncode is None:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert status == 128 + signal.SIGTERM
    assert visible(place) == ["oci"]
