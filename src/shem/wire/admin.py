"""Shapes of our own calls for the owner of a node: app keys, test tokens, the node's end."""

from __future__ import annotations

from shem.wire.base import Wire

ROOT = "/shem-api/v1"


class NewAppKey(Wire):
    """``id``: the identity that the key stands for; a node has one, which is the default."""

    name: str
    id: str | None = None
    allow_origins: tuple[str, ...] = ()


class AppKey(Wire, kw_only=True, omit_defaults=False):
    """``key`` is ``None`` for one that this node cannot tell any more."""

    name: str
    key: str | None
    id: str
    role: str
    created: str
    allow_origins: list[str]


class Fund(Wire):
    """Without a network: the default one."""

    network: str | None = None
    driver: str | None = None


class Funded(Wire, kw_only=True, omit_defaults=False):
    """``message``: what was done, or is under way."""

    platform: str
    address: str
    message: str
