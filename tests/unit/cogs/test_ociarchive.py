"""Images in local files: every shape gives the same blobs, and damaged ones are refused with a reason."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from shem.cogs.ociarchive import ImageArchive, copy_layout, read_image, write_layout
from shem.cogs.ociformat import ImageUnusable, Index, choose, host_architecture, parse_manifest, sha256_digest

HERE = host_architecture()
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


def layer(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


LAYERS = [layer("etc/a", b"one"), layer("etc/b", b"two" * 1000)]


def config(layers: list[bytes], **more: Any) -> bytes:
    diff_ids = [sha256_digest(each) for each in layers]
    return json.dumps({"architecture": HERE, "os": "linux", "rootfs": {"diff_ids": diff_ids}, **more}).encode()


def layout(directory: Path, layers: list[bytes] = LAYERS, conf: bytes | None = None, name: str = "latest") -> str:
    directory.mkdir()
    files = []
    for number, each in enumerate(layers):
        file = directory / f"{number}.tmp"
        file.write_bytes(each)
        files.append((file, LAYER_TYPE))
    return write_layout(directory, conf or config(layers), files, name=name)


def tar_of(directory: Path, out: Path, prefix: str = "") -> Path:
    with tarfile.open(out, "w") as tar:
        for path in sorted(directory.rglob("*")):
            tar.add(path, prefix + str(path.relative_to(directory)), recursive=False)
    return out


def docker_save(out: Path, layers: list[bytes] = LAYERS, conf: bytes | None = None, images: int = 1) -> Path:
    conf = conf or config(layers)
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    listing = [{"Config": "c.json", "RepoTags": [f"x/y:{number}"], "Layers": names} for number in range(images)]
    with tarfile.open(out, "w") as tar:
        files = {"manifest.json": json.dumps(listing).encode(), "c.json": conf, **dict(zip(names, layers, strict=True))}
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out


def contents(image: ImageArchive) -> list[bytes]:
    return [b"".join(image.blobs[each.digest].chunks()) for each in image.manifest.layers]


def verify(image: ImageArchive) -> None:
    for digest, blob in image.blobs.items():
        data = b"".join(blob.chunks())
        assert "sha256:" + hashlib.sha256(data).hexdigest() == digest
        assert len(data) == blob.size
        assert b"".join(blob.chunks(3)) == data[3:]
    assert next(iter(image.blobs)) == image.digest
    assert image.size == sum(len(b"".join(b.chunks())) for b in image.blobs.values())


@pytest.mark.parametrize("prefix", ["", "./"])
def test_layout_directory_and_tar_are_the_same_image(tmp_path: Path, prefix: str) -> None:
    digest = layout(tmp_path / "oci")
    one = read_image(tmp_path / "oci")
    two = read_image(tar_of(tmp_path / "oci", tmp_path / "oci.tar", prefix))
    for image in (one, two):
        assert image.digest == digest
        assert contents(image) == LAYERS
        verify(image)


def test_same_inputs_make_the_same_layout(tmp_path: Path) -> None:
    assert layout(tmp_path / "a") == layout(tmp_path / "b")


def test_a_saved_image_becomes_a_layout(tmp_path: Path) -> None:
    saved = read_image(docker_save(tmp_path / "a.tar"))
    (tmp_path / "oci").mkdir()
    assert copy_layout(saved, tmp_path / "oci", name="x") == saved.digest
    copied = read_image(tmp_path / "oci", name="x")
    verify(copied)
    assert copied.manifest == saved.manifest
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes().replace(b"twotwo", b"TWOtwo"))
    (tmp_path / "bad").mkdir()
    with pytest.raises(ImageUnusable, match="damaged"):
        copy_layout(saved, tmp_path / "bad", name="x")


def test_old_docker_save_gets_the_same_manifest_each_time(tmp_path: Path) -> None:
    image = read_image(docker_save(tmp_path / "a.tar"))
    verify(image)
    assert contents(image) == LAYERS
    assert image.digest == read_image(docker_save(tmp_path / "b.tar")).digest
    # … and it is the one that a registry would have for these blobs in this form.
    assert image.digest == layout(tmp_path / "oci")


def test_compressed_layers_of_a_docker_save_are_hashed(tmp_path: Path) -> None:
    packed = [gzip.compress(each, mtime=0) for each in LAYERS]
    image = read_image(docker_save(tmp_path / "a.tar", packed, config(LAYERS)))
    verify(image)
    assert contents(image) == packed


def test_repeated_layers_are_links(tmp_path: Path) -> None:
    conf = config([LAYERS[0], LAYERS[0]])
    listing = [{"Config": "c.json", "RepoTags": None, "Layers": ["a/layer.tar", "b/layer.tar"]}]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in {
            "manifest.json": json.dumps(listing).encode(),
            "c.json": conf,
            "a/layer.tar": LAYERS[0],
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        link = tarfile.TarInfo("b/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../a/layer.tar"
        tar.addfile(link)
    image = read_image(tmp_path / "a.tar")
    assert contents(image) == [LAYERS[0], LAYERS[0]]
    assert len(image.blobs) == 3


def test_an_index_inside_the_layout_is_followed_to_this_platform(tmp_path: Path) -> None:
    digest = layout(tmp_path / "oci")
    blobs = tmp_path / "oci/blobs/sha256"
    size = (blobs / digest[7:]).stat().st_size
    other = {"mediaType": MANIFEST_TYPE, "digest": "sha256:" + "0" * 64, "size": 5}
    nested = json.dumps(
        {
            "schemaVersion": 2,
            "manifests": [
                {**other, "platform": {"architecture": "s390x", "os": "linux"}},
                {**other, "platform": {"architecture": "unknown", "os": "unknown"}},
                {"digest": digest, "size": size, "platform": {"architecture": HERE, "os": "linux"}},
            ],
        }
    ).encode()
    (blobs / sha256_digest(nested)[7:]).write_bytes(nested)
    entry = {"digest": sha256_digest(nested), "size": len(nested)}
    (tmp_path / "oci/index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    assert read_image(tmp_path / "oci").digest == digest
    with pytest.raises(ImageUnusable) as raised:
        read_image(tmp_path / "oci", architecture="riscv64")
    assert raised.value.code == "image_wrong_platform"
    assert f"linux/{HERE}" in raised.value.message


def test_a_name_chooses_among_images(tmp_path: Path) -> None:
    layout(tmp_path / "oci", name="first")
    index = json.loads((tmp_path / "oci/index.json").read_text())
    second = layout(tmp_path / "two", LAYERS[:1], name="second")
    for blob in (tmp_path / "two/blobs/sha256").iterdir():
        blob.replace(tmp_path / "oci/blobs/sha256" / blob.name)
    index["manifests"] += json.loads((tmp_path / "two/index.json").read_text())["manifests"]
    (tmp_path / "oci/index.json").write_text(json.dumps(index))
    assert read_image(tmp_path / "oci", name="second").digest == second
    for name, code in (("third", "image_not_found"), ("", "image_ambiguous")):
        with pytest.raises(ImageUnusable) as raised:
            read_image(tmp_path / "oci", name=name)
        assert raised.value.code == code
    with pytest.raises(ImageUnusable, match="holds 2 images"):
        read_image(docker_save(tmp_path / "many.tar", images=2))
    assert read_image(tmp_path / "many.tar", name="x/y:1")


def refused(path: Path, words: str) -> None:
    with pytest.raises(ImageUnusable, match=words):
        read_image(path)


def test_what_is_no_image(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "No such file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "neither index.json nor manifest.json")
    (tmp_path / "text").write_text("hello")
    refused(tmp_path / "text", "not a tar")
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(docker_save(tmp_path / "x.tar").read_bytes()))
    refused(tmp_path / "x.tar.gz", "compressed as a whole")
    tar_of(tmp_path / "empty", tmp_path / "empty.tar")
    refused(tmp_path / "empty.tar", "neither")


def test_damage_is_named(tmp_path: Path) -> None:
    digest = layout(tmp_path / "oci")
    blobs = tmp_path / "oci/blobs/sha256"
    manifest = blobs / digest[7:]
    one = parse_manifest(manifest.read_bytes())
    assert not isinstance(one, Index)
    top = blobs / one.layers[0].digest[7:]
    top.write_bytes(top.read_bytes()[:-1])
    refused(tmp_path / "oci", "instead of")
    top.unlink()
    refused(tmp_path / "oci", "lacks layer")
    manifest.write_bytes(manifest.read_bytes() + b" ")
    refused(tmp_path / "oci", "damaged")
    (tmp_path / "oci/index.json").write_bytes(b" " * (5 << 20))
    refused(tmp_path / "oci", "larger than 4 MiB")
    refused(docker_save(tmp_path / "few.tar", conf=config(LAYERS[:1])), "has 2 layers and names 1")
    refused(
        docker_save(tmp_path / "arm.tar", conf=config(LAYERS).replace(HERE.encode(), b"mips")), "made for linux/mips"
    )


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    image = read_image(docker_save(tmp_path / "a.tar"))
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(ImageUnusable, match="became shorter"):
        list(image.blobs[image.manifest.layers[0].digest].chunks())


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"[]", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b'{"schemaVersion":1}', "no longer used"),
        (b'{"schemaVersion":2}', "cannot be read"),
        (b'{"schemaVersion":2,"config":{"digest":"sha512:00","size":1},"layers":[]}', "only sha256"),
        (b'{"schemaVersion":2,"config":{"digest":"sha256:%s","size":-1}}' % (b"0" * 64), "-1 bytes"),
        (b'{"schemaVersion":2,"config":{"digest":"sha256:%s","size":1e9}}' % (b"0" * 64), "cannot be read"),
        (b'{"schemaVersion":2,"config":{"digest":"sha256:%s","size":99999999}}' % (b"0" * 64), "99999999 bytes"),
        (
            b'{"schemaVersion":2,"config":{"digest":"sha256:%b","size":1},"layers":[%b]}'
            % (b"0" * 64, b",".join([b'{"digest":"sha256:%b","size":1}' % (b"0" * 64)] * 128)),
            "more than 127",
        ),
        (
            b'{"schemaVersion":2,"config":{"digest":"sha256:%b","size":1},"layers":'
            b'[{"digest":"sha256:%b","size":1,"mediaType":"application/json"}]}' % (b"0" * 64, b"0" * 64),
            "not a file tree",
        ),
        (b" " * ((4 << 20) + 1), "larger than 4 MiB"),
        (b'{"schemaVersion":2,"manifests":[{"digest":"sha256:../../x","size":1}]}', "only sha256"),
    ],
)
def test_hostile_manifests(document: bytes, words: str) -> None:
    with pytest.raises(ImageUnusable, match=words):
        parse_manifest(document)


def test_an_index_for_other_machines_says_what_it_has() -> None:
    entry = {"digest": "sha256:" + "0" * 64, "size": 1, "platform": {"architecture": "s390x", "os": "linux"}}
    index = parse_manifest(json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
    assert isinstance(index, Index)
    with pytest.raises(ImageUnusable, match="linux/s390x") as raised:
        choose(index, HERE)
    assert raised.value.hint
