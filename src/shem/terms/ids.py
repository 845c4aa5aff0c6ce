"""Identifiers as they appear in the API, and how to check them.

All are plain strings: programs treat them as opaque. The formats are those of the Golem API.
"""

from __future__ import annotations

import re
from typing import NewType

from shem.errors import Refused

NodeId = NewType("NodeId", str)
"""``0x`` and 40 lower-case hex digits: the Ethereum address of the node's secp256k1 key."""

_NODE_ID = re.compile(r"0x[0-9a-f]{40}")


def parse_node_id(text: str) -> NodeId:
    """Raises :class:`Refused` (``bad_node_id``) unless ``text`` (in any case) is a node id."""
    lowered = text.lower()
    if not _NODE_ID.fullmatch(lowered):
        raise Refused(f"{text[:60]!r} is not a node id (0x and 40 hex digits)", code="bad_node_id")
    return NodeId(lowered)
