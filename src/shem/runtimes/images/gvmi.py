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
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from shem.runtimes.images.squashfs import Compressor, make_squashfs

_DIGITS = 8
_CHUNK = 1 << 20


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
    """What stands behind the squashfs."""
    return zlib.crc32(config).to_bytes(4, "little") + config + b"%0*d" % (_DIGITS, len(config))


def sha3_of(path: Path) -> str:
    """Hex SHA3-224 of a file: its name on the network."""
    sha = hashlib.sha3_224()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            sha.update(piece)
    return sha.hexdigest()
