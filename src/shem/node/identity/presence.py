"""What a node needs to be there while its key is locked: its transport key, and what the identity signed about it before.

Kept beside the key file (0600) when that has a passphrase of the owner's own. Whoever reads it can answer under this node's
name, as its locked node does; they can sign nothing, move no money, and learn nothing about the key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shem.errors import Refused
from shem.node.identity.binding import BINDING_BYTES, check_binding
from shem.node.identity.keyfiles import read_private, replace_private

PRESENCE = "identity.presence"


class Presence(msgspec.Struct, frozen=True):
    """``binding`` and ``record`` are public; ``seed`` is secret."""

    seed: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    binding: Annotated[bytes, msgspec.Meta(min_length=BINDING_BYTES, max_length=BINDING_BYTES)]
    record: Annotated[bytes, msgspec.Meta(max_length=4096)] = b""
    """The signed record of where the node was last, as it travels; empty before the first."""

    def __repr__(self) -> str:
        return "Presence()"


def read_presence(directory: Path, node_id: str, now_s: float) -> Presence | None:
    """What was kept for this identity; ``None`` when nothing good was."""
    path = directory / PRESENCE
    if not path.exists():
        return None
    try:
        found = msgspec.msgpack.decode(read_private(path), type=Presence)
        bound = check_binding(found.binding, now_s)
    except (msgspec.DecodeError, Refused):
        return None
    transport = Ed25519PrivateKey.from_private_bytes(found.seed).public_key().public_bytes_raw()
    return found if (bound.node_id, bound.transport_id) == (node_id, transport) else None


def write_presence(directory: Path, presence: Presence) -> None:
    """In place of the last one. Raises ``OSError``."""
    replace_private(directory / PRESENCE, msgspec.msgpack.encode(presence))


def forget_presence(directory: Path) -> None:
    """A node whose passphrase lies beside its key is never locked at its start."""
    (directory / PRESENCE).unlink(missing_ok=True)
