"""Docker images to Golem image files, and back.

Both ways the file tree keeps owners, modes, times to the second, links, hard links, devices, and the extended attributes that
a squashfs has room for; sockets, and names that begin with ``.wh.``, which the other format could not tell from its own
marks, are left out. Of the configuration everything is kept, only the user of a docker image becomes numbers, because in a
Golem image a name means root. The same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from isal import igzip

from shem.cogs.decoding import DECODE_ERRORS
from shem.cogs.ociarchive import ImageArchive, write_layout
from shem.cogs.ociformat import ImageUnusable, host_architecture
from shem.runtimes.images.cage import tar_of
from shem.runtimes.images.config import MAX_TABLE, number_user, parse_config, parse_container_config
from shem.runtimes.images.errors import ImageTooLarge
from shem.runtimes.images.extract import PREFIX, path_parts
from shem.runtimes.images.flatten import FlatImage, LayerAt, Limits
from shem.runtimes.images.gvmi import Gvmi, read_gvmi, write_gvmi
from shem.runtimes.images.squashfs import Compressor
from shem.runtimes.images.tarstream import BLOCK, DIR, FILE, HARDLINK, Member, TarStream
from shem.runtimes.images.tarwriter import TarWriter

LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"

_LEVEL = 2

Progress = Callable[[str, int, int], None]
"""Hears what is being done, how much of it is, and of how much."""


class Converted(msgspec.Struct, frozen=True, kw_only=True):
    """What came out."""

    digest: str
    """``sha3:<hex>`` of an image file, ``sha256:<hex>`` of a docker image's manifest."""
    size: int
    """Bytes of the result."""
    left_out: dict[str, int]
    """What the format has no room for, and how often."""


def to_gvmi(
    image: ImageArchive,
    out: Path,
    *,
    volumes: Sequence[str] = (),
    compressor: Compressor = "gzip",
    limits: Limits | None = None,
    progress: Progress = lambda *_: None,
) -> Converted:
    """Make ``out`` of a docker image: its layers as one tree, its configuration with ``volumes`` added.

    Raises :class:`ImageUnusable` (``image_user_unknown``: its user is a name that is not in it),
    :class:`~shem.runtimes.images.errors.ImageDigestMismatch`, :class:`ImageTooLarge`, and as
    :func:`~shem.runtimes.images.gvmi.write_gvmi`.
    """
    raw = b"".join(image.blobs[image.manifest.config.digest].chunks())
    _, diff_ids = parse_config(raw)
    if len(diff_ids) != len(image.manifest.layers):
        raise ImageUnusable(f"the image has {len(image.manifest.layers)} layers and names {len(diff_ids)}")
    layers = [_layer(image, layer.digest, diff) for layer, diff in zip(image.manifest.layers, diff_ids, strict=True)]
    total = 2 * sum(layer.size for layer in layers)
    done = 0

    def tell(more: int) -> None:
        nonlocal done
        done += more
        progress("flattening the layers", done, total)

    flat = FlatImage(layers, limits or Limits(), tell)
    config = _container_config(raw, volumes, flat)
    digest = write_gvmi(out, lambda pipe: flat.write(TarWriter(pipe)), config, compressor=compressor)
    return Converted(digest=f"sha3:{digest}", size=out.stat().st_size, left_out=flat.left_out)


def to_layout(
    image: Path,
    directory: Path,
    *,
    name: str,
    architecture: str = "",
    limits: Limits | None = None,
    progress: Progress = lambda *_: None,
) -> Converted:
    """Make an OCI layout in ``directory`` (which must exist) of an image file: one layer, gzip.

    Raises as :func:`~shem.runtimes.images.gvmi.read_gvmi` and :func:`~shem.runtimes.images.cage.tar_of`, and
    :class:`ImageTooLarge`.
    """
    outside = read_gvmi(image)
    parse_container_config(outside.config)
    limits = limits or Limits()
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".layer-", delete=False) as packed:
        layer = Path(packed.name)
        sha = hashlib.sha256()
        with igzip.IGzipFile(filename="", mode="wb", fileobj=packed, compresslevel=_LEVEL, mtime=0) as squeezed:
            left_out = _copy_tree(image, _Tee(squeezed, sha), limits, progress)
    document = {
        "architecture": architecture or host_architecture(),
        "config": msgspec.json.decode(outside.config),
        "created": "1970-01-01T00:00:00Z",
        "os": "linux",
        "rootfs": {"diff_ids": [f"sha256:{sha.hexdigest()}"], "type": "layers"},
    }
    digest = write_layout(directory, _json(document), [(layer, LAYER_GZIP)], name=name)
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    return Converted(digest=digest, size=size, left_out=left_out)


def pack_layout(directory: Path, out: Path) -> None:
    """Write an OCI layout as a tar: the same layout, the same bytes."""
    with out.open("wb") as file:
        writer = TarWriter(file)
        for path in sorted(directory.rglob("*")):
            kind, size = (DIR, 0) if path.is_dir() else (FILE, path.stat().st_size)
            name = path.relative_to(directory).as_posix().encode() + (b"/" if kind == DIR else b"")
            member = Member(name, kind, 0o755 if kind == DIR else 0o644, 0, 0, size, 0.0, b"")
            if kind == DIR:
                writer.add(name, member)
                continue
            with path.open("rb") as content:
                writer.add(name, member, content.read)
        writer.close()


def describe(outside: Gvmi) -> dict[str, Any]:
    """The configuration of an image file, as JSON has it. Raises :class:`ImageUnusable` when it cannot be run by."""
    parse_container_config(outside.config)
    described: dict[str, Any] = msgspec.json.decode(outside.config, type=dict[str, Any])
    return described


def describe_image(image: ImageArchive) -> tuple[str, dict[str, Any]]:
    """The architecture and the configuration of a docker image. Raises as :func:`describe`."""
    raw = b"".join(image.blobs[image.manifest.config.digest].chunks())
    parse_config(raw)
    document: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
    return str(document.get("architecture") or ""), document.get("config") or {}


class _Tee:
    """Both compresses and hashes."""

    def __init__(self, out: Any, sha: Any) -> None:
        self._out = out
        self._sha = sha

    def write(self, data: bytes) -> int:
        self._sha.update(data)
        self._out.write(data)
        return len(data)


def _copy_tree(image: Path, out: Any, limits: Limits, progress: Progress) -> dict[str, int]:
    left_out: dict[str, int] = {}
    writer = TarWriter(out)
    files = size = 0
    with tar_of(image) as source:
        stream = TarStream(source.read)
        for member in stream:
            files, size = files + 1, size + member.size + BLOCK
            if files > limits.max_files or size > limits.max_bytes + BLOCK * limits.max_files:
                raise ImageTooLarge(f"the image has more than {limits.max_files} files or {limits.max_bytes >> 20} MiB")
            parts = path_parts(member.name)
            if any(part.startswith(PREFIX) for part in parts):
                left_out["names that begin with .wh."] = left_out.get("names that begin with .wh.", 0) + 1
                continue
            if member.kind == HARDLINK:
                member.link = b"/".join(path_parts(member.link))
            name = b"/".join(parts) or b"./"
            writer.add(name, member, stream.read)
            progress("unpacking the image", size, 0)
    writer.close()
    return left_out


def _layer(image: ImageArchive, digest: str, diff_id: str) -> LayerAt:
    at = image.blobs[digest]
    if at.path is None:
        raise ImageUnusable(f"layer {digest} is not a file")
    return LayerAt(path=at.path, offset=at.offset, size=at.size, digest=digest, diff_id=diff_id)


def _container_config(raw: bytes, volumes: Sequence[str], flat: FlatImage) -> bytes:
    try:
        config: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any]).get("config") or {}
    except DECODE_ERRORS as error:
        raise ImageUnusable(f"the image's configuration cannot be read: {error}") from None
    if user := config.get("User"):
        config["User"], _ = number_user(user, lambda path: flat.read(path, MAX_TABLE))
    if volumes:
        config["Volumes"] = {**(config.get("Volumes") or {}), **{volume: {} for volume in volumes}}
    made = _json(config)
    parse_container_config(made)
    return made


def _json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
