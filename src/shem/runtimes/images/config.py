"""Turn an image's configuration into our words, and the name of its user into numbers.

Names are looked up in the image's own ``/etc/passwd`` and ``/etc/group``, which are a stranger's files: read across the
layers without following links, and only so far.
"""

from __future__ import annotations

import functools
import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from shem.cogs.decoding import DECODE_ERRORS
from shem.cogs.ociformat import DIGEST, MAX_LAYERS, ImageUnusable
from shem.runtimes.base import ImageConfig
from shem.runtimes.images.inroot import Stack

MAX_TABLE = 1 << 20
"""Bytes of ``/etc/passwd`` and of ``/etc/group``."""

Read = Callable[[bytes], bytes | None]

_MAX_STRINGS = 2000
_MAX_TEXT = 256 << 10
_MAX_VOLUMES = 64
_MAX_ID = 0x7FFF_FFFF


class _Run(msgspec.Struct, frozen=True, rename="pascal"):
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    user: str | None = None
    working_dir: str | None = None
    volumes: dict[str, msgspec.Raw] | None = None


class _RootFs(msgspec.Struct, frozen=True):
    diff_ids: list[str] = []


class _Document(msgspec.Struct, frozen=True):
    rootfs: _RootFs
    config: _Run | None = None


def parse_config(raw: bytes) -> tuple[ImageConfig, tuple[str, ...]]:
    """The configuration and the digests of the unpacked layers, bottom first. Raises :class:`ImageUnusable`."""
    try:
        document = msgspec.json.decode(raw, type=_Document)
    except DECODE_ERRORS as error:
        raise ImageUnusable(f"the image's configuration cannot be read: {error}") from None
    diff_ids = tuple(document.rootfs.diff_ids)
    if len(diff_ids) > MAX_LAYERS or not all(DIGEST.fullmatch(each) for each in diff_ids):
        raise ImageUnusable("the image's configuration names its layers wrongly")
    run = document.config or _Run()
    return _checked(run, run.user or ""), diff_ids


def parse_container_config(raw: bytes) -> ImageConfig:
    """A docker container's configuration, as a Golem image file carries it. A user who is not ``uid:gid`` in numbers is root.

    Raises :class:`ImageUnusable`.
    """
    try:
        run = msgspec.json.decode(raw, type=_Run)
    except DECODE_ERRORS as error:
        raise ImageUnusable(f"the image's configuration cannot be read: {error}") from None
    uid, _, gid = (run.user or "").partition(":")
    return _checked(run, f"{_number(uid)}:{_number(gid)}" if None not in (_number(uid), _number(gid)) else "")


def _checked(run: _Run, user: str) -> ImageConfig:
    config = ImageConfig(
        env=tuple(run.env or ()),
        entrypoint=tuple(run.entrypoint or ()),
        cmd=tuple(run.cmd or ()),
        user=user,
        workdir=_absolute(run.working_dir or "", "working directory"),
        volumes=tuple(sorted({_absolute(path, "volume") for path in run.volumes or ()} - {""})),
    )
    texts = [*config.env, *config.entrypoint, *config.cmd, config.user, config.workdir, *config.volumes]
    if len(texts) > _MAX_STRINGS or sum(map(len, texts)) > _MAX_TEXT or len(config.volumes) > _MAX_VOLUMES:
        raise ImageUnusable("the image's configuration says too much")
    if any("\0" in text for text in texts):
        raise ImageUnusable("the image's configuration has a NUL in it")
    if any(entry.find("=") < 1 for entry in config.env):
        raise ImageUnusable("the image's environment has an entry that is not NAME=value")
    return config


def settle_user(config: ImageConfig, layers: Sequence[Path]) -> ImageConfig:
    """``config`` with ``user`` as ``uid:gid`` (``""`` stays: root), and ``HOME`` in ``env`` where passwd knows it.

    Raises :class:`ImageUnusable` (``image_user_unknown``) when a name is not in the image.
    """
    if not config.user:
        return config
    with Stack(layers) as stack:
        user, home = number_user(config.user, functools.partial(_read_table, stack))
    env = config.env
    if home and not any(entry.startswith("HOME=") for entry in env):
        env = (*env, f"HOME={home}")
    return msgspec.structs.replace(config, user=user, env=env)


def number_user(user: str, read: Read) -> tuple[str, str]:
    """``uid:gid`` for the ``user`` of a configuration, and their home (``""``: not known). ``read`` gives the content of
    ``etc/passwd`` and ``etc/group``, or None.

    Raises :class:`ImageUnusable` (``image_user_unknown``) when a name is not in them.
    """
    name, _, group = user.partition(":")
    uid, gid, home = _person(name, read)
    return f"{uid}:{_group(group, read) if group else gid}", home


def _person(name: str, read: Read) -> tuple[int, int, str]:
    number = _number(name)
    try:
        for row in _table(read(b"etc/passwd")):
            if len(row) >= 4 and (row[0] == name or (number is not None and _number(row[2]) == number)):
                uid, gid = _number(row[2]), _number(row[3])
                if uid is not None and gid is not None:
                    return uid, gid, row[5] if len(row) > 5 and row[5].startswith("/") else ""
    except ImageUnusable:
        if number is None:
            raise
    if number is None:
        raise ImageUnusable(f"the image's user {name[:60]!r} is not in its /etc/passwd", code="image_user_unknown")
    return number, 0, ""


def _group(name: str, read: Read) -> int:
    number = _number(name)
    if number is not None:
        return number
    for row in _table(read(b"etc/group")):
        if len(row) >= 3 and row[0] == name and (gid := _number(row[2])) is not None:
            return gid
    raise ImageUnusable(f"the image's group {name[:60]!r} is not in its /etc/group", code="image_user_unknown")


def _number(text: str) -> int | None:
    if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _MAX_ID:
        return int(text)
    return None


def _read_table(stack: Stack, path: bytes) -> bytes | None:
    fd = stack.find(path)
    if fd is None:
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_TABLE:
            raise ImageUnusable(f"the image's /{path.decode()} is not an ordinary file", code="image_user_unknown")
        return Path(f"/proc/self/fd/{fd}").read_bytes()
    finally:
        os.close(fd)


def _table(data: bytes | None) -> Iterator[list[str]]:
    for line in (data or b"").decode("utf-8", "replace").splitlines():
        if "\0" not in line:
            yield line.split(":")


def _absolute(path: str, what: str) -> str:
    if not path:
        return ""
    if ".." in path.split("/") or len(path) > 4096:
        raise ImageUnusable(f"the image has an impossible {what}: {path[:80]!r}")
    plain = posixpath.normpath("/" + path.strip("/"))
    return "" if plain == "/" else plain
