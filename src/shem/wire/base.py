"""What all REST shapes share: camelCase names, absent rather than null for optional fields, RFC 3339 times in UTC."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec


class Wire(msgspec.Struct, rename="camel", kw_only=True, omit_defaults=True):
    """Base of every REST shape. Unknown fields are ignored, as existing clients send some."""


Timestamp = Annotated[datetime, msgspec.Meta(tz=True)]
"""An aware time; written as ``2026-01-01T00:00:00.123456Z``."""

Properties = dict[str, Any]


def utc(moment: datetime) -> datetime:
    """The same moment, in UTC (so that it is written with ``Z``)."""
    return moment.astimezone(UTC)


_encoder = msgspec.json.Encoder()


def encode(value: object) -> bytes:
    """JSON bytes of any wire shape, dict, list or string."""
    return _encoder.encode(value)
