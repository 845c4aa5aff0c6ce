"""An image of two megabytes, as docker's or as Golem's, made in a moment from the machine's own static busybox: for tests and
measurements."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from shem.cogs.ociarchive import write_layout
from shem.cogs.ociformat import host_architecture
from shem.errors import Misconfigured
from shem.runtimes.images.gvmi import write_gvmi

LAYER = "application/vnd.oci.image.layer.v1.tar"
TOOLS = (
    *("sh", "cat", "echo", "sleep", "true", "false", "ls", "cp", "mkdir", "head", "tr", "env", "id", "dd"),
    *("wc", "seq", "sha256sum", "touch", "rm", "ln", "kill", "ps", "yes", "date", "stat", "chmod"),
)
DIRECTORIES = {"bin": 0o755, "usr": 0o755, "usr/bin": 0o755, "etc": 0o755, "tmp": 0o1777, "work": 0o777}
CONFIG: Mapping[str, object] = {"Env": ["PATH=/bin:/usr/bin", "GREETING=hello"], "WorkingDir": "/work"}
VOLUMES = ("/golem/work", "/golem/input", "/golem/output", "/golem/resource")


def make_small_image(where: Path, config: Mapping[str, object] | None = None) -> Path:
    """An OCI layout directory at ``where`` (must not exist): busybox under its usual names, working directory ``/work``,
    ``GREETING=hello``. ``config`` overrides keys of the image's configuration.

    Raises :class:`Misconfigured` when there is no static busybox.
    """
    busybox = _busybox()
    where.mkdir(parents=True)
    layer = where.parent / f".{where.name}.layer.tar"
    try:
        with layer.open("wb") as file:
            _write_root(file, busybox)
        body = {
            "architecture": host_architecture(),
            "os": "linux",
            "config": {**CONFIG, **(config or {})},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer.read_bytes()).hexdigest()]},
        }
        write_layout(where, json.dumps(body).encode(), [(layer, LAYER)], name="small")
    finally:
        layer.unlink(missing_ok=True)
    return where


def make_small_gvmi(path: Path, *, volumes: Sequence[str] = VOLUMES, config: Mapping[str, object] | None = None) -> str:
    """The same root file system as a Golem image file at ``path``; returns the hex SHA3-224 that names it. ``config`` overrides
    keys of its configuration (``Env``, ``User``, ``WorkingDir``, ``Entrypoint``, ``Cmd``).

    Raises :class:`Misconfigured` when there is no static busybox, or no squashfs-tools-ng.
    """
    busybox = _busybox()
    body = {**CONFIG, "Volumes": {volume: {} for volume in volumes}, **(config or {})}
    return write_gvmi(path, lambda pipe: _write_root(pipe, busybox), json.dumps(body).encode())


def _busybox() -> bytes:
    found = shutil.which("busybox")
    if found is None:
        raise Misconfigured(
            "there is no busybox on this machine", code="busybox_missing", hint="apt-get install busybox-static"
        )
    return Path(found).read_bytes()


def _write_root(out: IO[bytes], busybox: bytes) -> None:
    with tarfile.open(fileobj=out, mode="w|") as tar:
        for name, mode in DIRECTORIES.items():
            _add(tar, name, tarfile.DIRTYPE, mode)
        _add(tar, "bin/busybox", tarfile.REGTYPE, 0o755, content=busybox)
        for tool in TOOLS:
            for place in ("bin", "usr/bin"):
                _add(tar, f"{place}/{tool}", tarfile.SYMTYPE, 0o777, link="/bin/busybox")
        passwd = b"root:x:0:0:root:/:/bin/sh\nworker:x:1000:1000::/:/bin/sh\n"
        _add(tar, "etc/passwd", tarfile.REGTYPE, 0o644, content=passwd)
        _add(tar, "etc/group", tarfile.REGTYPE, 0o644, content=b"root:x:0:\nworker:x:1000:\n")


def _add(tar: tarfile.TarFile, name: str, kind: bytes, mode: int, *, content: bytes = b"", link: str = "") -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.linkname, entry.size = kind, mode, link, len(content)
    tar.addfile(entry, io.BytesIO(content) if content else None)
