"""What the store asks of its worker processes, and what they answer: JSON lines over a pipe, see :mod:`.worker`.

A layer is made in a directory that holds the tree (``fs``), its record (``layer.json``), and later a mark (``settled``).
Waiting for the disk would make every pull slower, at times by much: it happens some time afterwards, and then the layer is
marked. A layer without the mark is good as long as the kernel that made it has not stopped.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from shem.runtimes.images.extract import Unpacked

TREE = "fs"
RECORD = "layer.json"
SETTLED = "settled"
MAX_LINE = 1 << 20


class UnpackJob(msgspec.Struct, frozen=True, kw_only=True, tag="unpack"):
    """Unpack a blob: see :func:`~shem.runtimes.images.layer.unpack`."""

    blob: str
    offset: int
    size: int
    digest: str
    diff_id: str
    directory: str
    max_bytes: int
    max_files: int


class SquashfsJob(msgspec.Struct, frozen=True, kw_only=True, tag="squashfs"):
    """Unpack an image file: see :func:`~shem.runtimes.images.layer.unpack_squashfs`."""

    image: str
    directory: str
    name: str
    max_bytes: int
    max_files: int


class PatchJob(msgspec.Struct, frozen=True, kw_only=True, tag="patch"):
    """Make the patch of a layer: see :func:`~shem.runtimes.images.patch.make_patch`."""

    lower: list[str]
    layer: str
    directory: str
    name: str
    max_bytes: int


class RemoveJob(msgspec.Struct, frozen=True, kw_only=True, tag="remove"):
    """Delete a directory tree."""

    directory: str


class SettleJob(msgspec.Struct, frozen=True, kw_only=True, tag="settle"):
    """Wait until these layers are on the disk, then mark them so."""

    directories: list[str]


Job = UnpackJob | SquashfsJob | PatchJob | RemoveJob | SettleJob


class Working(msgspec.Struct, frozen=True, tag="working"):
    """So many compressed bytes were read."""

    done: int


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The job is done, and what it made is on the disk."""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The job failed; ``kind`` is the name of one of our error classes."""

    kind: str
    message: str
    code: str = ""
    hint: str = ""


Answer = Working | Done | Failed


class LayerRecord(msgspec.Struct, kw_only=True):
    """``layer.json``. ``name`` is the full identity of the layer: the digest of its tar, of what a patch is made
    of, or of an image file.
    ``boot`` names the run of the kernel that made it, see :func:`is_safe`."""

    name: str
    boot: str
    report: Unpacked


def read_record(directory: Path) -> LayerRecord:
    """Raises :class:`OSError`, :class:`msgspec.MsgspecError`."""
    return msgspec.json.decode((directory / RECORD).read_bytes(), type=LayerRecord)


def this_boot() -> str:
    """Names the present run of the kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def is_safe(directory: Path) -> bool:
    """Whether a layer is what was written: a power failure may have come between."""
    if (directory / SETTLED).exists():
        return True
    try:
        return read_record(directory).boot == this_boot()
    except (OSError, msgspec.MsgspecError):
        return False
