"""What the store asks of its worker processes, and what they answer: JSON lines over a pipe, see :mod:`.worker`.

A layer is made in a directory that holds the tree (``fs``) and its record (``layer.json``).
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from shem.runtimes.images.extract import Unpacked

TREE = "fs"
RECORD = "layer.json"
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


Job = UnpackJob | PatchJob | RemoveJob


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
    """``layer.json``. ``name`` is the full identity of the layer: the digest of its tar, or of what a patch is made of."""

    name: str
    report: Unpacked


def read_record(directory: Path) -> LayerRecord:
    """Raises :class:`OSError`, :class:`msgspec.MsgspecError`."""
    return msgspec.json.decode((directory / RECORD).read_bytes(), type=LayerRecord)
