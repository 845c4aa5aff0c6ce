"""Shapes of the net API: virtual networks between a requestor and its providers."""

from __future__ import annotations

from shem.wire.base import Wire

ROOT = "/net-api/v1"
ROOT_V2 = "/net-api/v2"


class NewNetwork(Wire):
    """``ip`` with or without a prefix; clients also send an empty ``id``, which means nothing."""

    ip: str
    mask: str | None = None
    gateway: str | None = None


class Network(Wire, kw_only=True, omit_defaults=False):
    """``ip`` has its prefix."""

    id: str
    ip: str
    mask: str
    gateway: str


class Address(Wire, kw_only=True):
    """One of the requestor's own, without a prefix when sent and with one when shown."""

    ip: str


class Node(Wire, kw_only=True):
    """Whose an address is."""

    id: str
    ip: str


class NetStatus(Wire, kw_only=True, omit_defaults=False):
    """How this node is connected. ``public_ip`` is ``None`` unless the node knows that others reach it from anywhere."""

    node_id: str
    listen_ip: str | None
    public_ip: str | None
    sessions: int
