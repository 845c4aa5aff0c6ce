"""What happens in an activity, as it is stored and as one node tells the other: msgpack, one small value each."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from shem.cogs.decoding import DECODE_ERRORS
from shem.errors import Refused

MAX_MESSAGE = 64 << 10
MAX_PIECE = 64 << 10
MAX_AT_US = 253_402_300_799_999_999
"""The end of the year 9999, in microseconds since 1970."""
STDOUT: Literal[1] = 1
STDERR: Literal[2] = 2

_Text = Annotated[str, msgspec.Meta(max_length=MAX_MESSAGE)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class _Kind(msgspec.Struct, frozen=True, array_like=True):
    """Base: the tag stands first."""


class Started(_Kind, frozen=True, tag=1):
    """The command began (which one it is, both sides know from the script)."""


class Output(_Kind, frozen=True, tag=2):
    """A piece of what the command wrote."""

    stream: Literal[1, 2]
    data: Annotated[bytes, msgspec.Meta(max_length=MAX_PIECE)]


class Progress(_Kind, frozen=True, tag=3):
    """How far a transfer or deploy is."""

    step: tuple[_Count, _Count]
    message: _Text | None
    progress: tuple[_Count, _Count | None]
    unit: Annotated[str, msgspec.Meta(max_length=32)] | None


class Finished(_Kind, frozen=True, tag=4):
    """The command ended; 0 is success."""

    return_code: Annotated[int, msgspec.Meta(ge=-(1 << 31), le=1 << 31)]
    message: _Text | None


class StateChanged(_Kind, frozen=True, tag=5):
    """The activity's state."""

    state: Annotated[str, msgspec.Meta(max_length=32)]
    target: Annotated[str, msgspec.Meta(max_length=32)] | None
    reason: _Text | None
    error_message: _Text | None


Kind = Started | Output | Progress | Finished | StateChanged


class Event(msgspec.Struct, frozen=True, array_like=True):
    """``no`` counts 1, 2, 3, … within the activity; ``batch_id`` is empty for what concerns the whole activity."""

    no: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
    batch_id: Annotated[str, msgspec.Meta(max_length=64)]
    index: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
    at_us: Annotated[int, msgspec.Meta(ge=0, le=MAX_AT_US)]
    body: Annotated[bytes, msgspec.Meta(max_length=4 * MAX_MESSAGE)]
    """A :data:`Kind`, encoded."""

    @property
    def kind(self) -> Kind:
        """The decoded body. Raises :class:`Refused` (``bad_message``)."""
        return decode_kind(self.body)


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Kind] = msgspec.msgpack.Decoder(Kind)


def encode_kind(kind: Kind) -> bytes:
    """The body of an event."""
    return _encoder.encode(kind)


def decode_kind(body: bytes) -> Kind:
    """Raises :class:`Refused` (``bad_message``) for bytes that are no event."""
    try:
        return _decoder.decode(body)
    except DECODE_ERRORS as error:
        raise Refused(f"not an event of an activity: {error}", code="bad_message") from None
