"""Shapes of the file API: content that a node keeps for itself and its peers, as ``gftp://<node id>/<file id>``."""

from __future__ import annotations

import re
from typing import Literal

from shem.errors import Refused
from shem.terms.ids import NodeId, parse_node_id
from shem.wire.base import Wire

PREFIX = "/shem-api/v1/files"
CHUNK_BYTES = 128 << 10
SIZE_HEADER = "X-Shem-Size"
SHA3_HEADER = "X-Shem-Sha3"
"""sha3-256 of the whole content, hex. Absent where nobody knows it beforehand: the node has checked what it then gives to
its end, and breaks off what is wrong."""

_FILE_ID = re.compile(r"[0-9A-Za-z_-]{16,128}")


class StoredFile(Wire, kw_only=True, omit_defaults=False):
    """A published file: ``file_id`` is the sha3-256 of its content in hex."""

    file_id: str
    url: str
    size: int


class Inbox(Wire, kw_only=True):
    """A place that one upload may fill; ``file_id`` is random and cannot be guessed."""

    file_id: str
    url: str


class InboxState(Wire, kw_only=True):
    """``size`` and ``sha3`` are present once complete."""

    state: Literal["empty", "complete"]
    size: int | None = None
    sha3: str | None = None


class Received(Wire, kw_only=True, omit_defaults=False):
    """The receiver holds the whole content: its size and sha3-256."""

    size: int
    sha3: str


def gftp_url(node_id: str, file_id: str) -> str:
    """``gftp://<node id>/<file id>``."""
    return f"gftp://{node_id}/{file_id}"


def parse_gftp_url(url: str) -> tuple[NodeId, str]:
    """(node id, file id). Raises :class:`Refused` (``bad_file_url``)."""
    scheme, _, rest = url.partition("://")
    node, _, file_id = rest.partition("/")
    if scheme != "gftp" or not file_id:
        raise Refused(f"{url[:120]!r} is not gftp://<node id>/<file id>", code="bad_file_url")
    return parse_node_id(node), parse_file_id(file_id)


def parse_file_id(text: str) -> str:
    """Raises :class:`Refused` (``bad_file_id``) for anything that could not be a file id (never a path)."""
    if not _FILE_ID.fullmatch(text):
        raise Refused(f"{text[:60]!r} is not a file id", code="bad_file_id")
    return text
