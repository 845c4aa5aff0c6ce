"""The Golem image format (GVMI): a squashfs, and behind it how the image wants to be run.

=========  ===========================================================================================
at         content
=========  ===========================================================================================
0          a squashfs, padded to 4096 bytes
size-12-n  CRC-32 of the JSON, 4 bytes, little-endian
size-8-n   JSON, ``n`` bytes: the configuration of a docker container
size-8     ``n`` in 8 decimal digits
=========  ===========================================================================================

A file is known by the SHA3-224 of all of it. Readers of the squashfs do not see what is behind it.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

from shem.cogs.ociformat import ImageUnusable
from shem.runtimes.images.cage import gvmi_available
from shem.runtimes.images.errors import ImageUnsupported
from shem.runtimes.images.squashfs import Compressor, make_squashfs

__all__ = ["MAX_CONFIG", "Gvmi", "encode_trailer", "gvmi_available", "read_gvmi", "sha3_of", "write_gvmi"]

MAX_CONFIG = 1 << 20
"""Bytes of a configuration."""

_DIGITS = 8
_CRC = 4
_CHUNK = 1 << 20
# magic, (inodes, time, block size, fragments), compressor, (block log, flags, ids), version, (root), bytes used
_SUPERBLOCK = struct.Struct("<4s16xH6xHH8xQ")
_COMPRESSORS = {1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}


class Gvmi(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says about itself."""

    size: int
    """Bytes of the file."""
    squashfs_bytes: int
    """Of those, the squashfs, without padding."""
    compressor: str
    config: bytes
    """JSON, undamaged; see :func:`~shem.runtimes.images.config.parse_container_config`."""


def read_gvmi(path: Path) -> Gvmi:
    """Read the outside of a file; its squashfs is not looked into.

    Raises :class:`ImageUnusable` when it is not a GVMI, :class:`ImageUnsupported` for a squashfs of another version or
    compression than are known, and :class:`OSError`.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        start = file.read(_SUPERBLOCK.size)
        if len(start) < _SUPERBLOCK.size or start[:4] != b"hsqs":
            raise ImageUnusable("the file is not a Golem image: it does not start with a squashfs")
        _, compressor, major, minor, used = _SUPERBLOCK.unpack(start)
        if (major, minor) != (4, 0) or compressor not in _COMPRESSORS:
            raise ImageUnsupported(
                f"the image's squashfs is of an unknown kind: {major}.{minor}, compressor {compressor}"
            )
        if not _SUPERBLOCK.size <= used <= size:
            raise ImageUnusable("the image's squashfs is cut off")
        config = _read_config(file, size, used)
    return Gvmi(size=size, squashfs_bytes=used, compressor=_COMPRESSORS[compressor], config=config)


def _read_config(file: BinaryIO, size: int, used: int) -> bytes:
    room = size - used - _DIGITS - _CRC
    file.seek(max(0, size - _DIGITS))
    digits = file.read(_DIGITS)
    if room < 0 or not (digits.isdigit() and digits.isascii()):
        raise ImageUnusable(
            "the file is not a whole Golem image: there is no configuration behind its squashfs",
            hint="shem image to-gvmi makes one of a docker image",
        )
    length = int(digits)
    if length > min(room, MAX_CONFIG):
        raise ImageUnusable(f"the image says that its configuration has {length} bytes")
    file.seek(size - _DIGITS - length - _CRC)
    crc, config = file.read(_CRC), file.read(length)
    if int.from_bytes(crc, "little") != zlib.crc32(config) or len(config) != length:
        raise ImageUnusable("the image's configuration is damaged: its checksum is wrong")
    return config


def write_gvmi(
    path: Path, write_tar: Callable[[BinaryIO], None], config: bytes, *, compressor: Compressor = "gzip"
) -> str:
    """Make a GVMI at ``path`` (replaced when it is there) of a root file system and a configuration.

    ``write_tar`` writes the tar of the whole root file system, without whiteouts; ``config`` is the JSON of a docker container
    configuration. The file appears when it is whole. Returns the hex SHA3-224 of it: the same input gives the same.
    Raises as :func:`~shem.runtimes.images.squashfs.make_squashfs`.
    """
    draft = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}"
    try:
        make_squashfs(draft, write_tar, compressor=compressor)
        with draft.open("ab") as file:
            file.write(encode_trailer(config))
        found = sha3_of(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return found


def encode_trailer(config: bytes) -> bytes:
    """What stands behind the squashfs. Raises :class:`ImageUnusable` when ``config`` is too long to be read again."""
    if len(config) > MAX_CONFIG:
        raise ImageUnusable(f"the image's configuration is larger than {MAX_CONFIG >> 20} MiB")
    return zlib.crc32(config).to_bytes(4, "little") + config + b"%0*d" % (_DIGITS, len(config))


def sha3_of(path: Path) -> str:
    """Hex SHA3-224 of a file: its name on the network."""
    sha = hashlib.sha3_224()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            sha.update(piece)
    return sha.hexdigest()
