"""The conversation between an exe unit and its node: JSON text frames over ``GET /shem-api/v1/exeunit/{activityId}``.

The unit speaks first: :class:`Hello` with its own id (one per process of the unit, so that the node knows a returning
unit from a fresh one) and the batches it already has. The node answers :class:`Ack` with the highest ``seq`` it has
stored from this very unit, then sends what the unit lacks. Frames with a ``seq`` (1, 2, 3, … without gaps) are kept by
the unit until acknowledged and sent again after a reconnect; the node stores them once. Usage has no ``seq``: only the
newest matters.

A command's :class:`StateChanged` goes out before its :class:`Finished`, so that whoever sees the result also sees the
state it led to.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

import msgspec

from shem.cogs.decoding import DECODE_ERRORS
from shem.errors import Refused
from shem.wire.base import Timestamp, Wire

PATH = "/shem-api/v1/exeunit/{activity_id}"
MAX_FRAME_BYTES = 4 << 20
"""The largest frame in either direction; output goes in pieces far below it."""
MAX_OUTPUT_PIECE = 64 << 10
"""The most bytes of stdout or stderr in one event."""

Text = Annotated[str, msgspec.Meta(max_length=64 << 10)]
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Seq = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Index = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]


# node → unit


class Execute(Wire, tag=True, kw_only=True):
    """Run this batch after those before it. A batch id the unit already has is ignored: nothing runs twice."""

    batch_id: Id
    script: list[dict[str, Any]]


class Cancel(Wire, tag=True, kw_only=True):
    """Stop this batch; say nothing more about it."""

    batch_id: Id


class Destroy(Wire, tag=True, kw_only=True):
    """End: destroy the sandbox, report final usage, then ``StateChanged("Terminated")``."""


class Ack(Wire, tag=True, kw_only=True):
    """Everything up to ``seq`` is stored; the unit may forget it."""

    seq: Seq


Instruction = Execute | Cancel | Destroy | Ack


# unit → node


class Started(Wire, tag=True, kw_only=True):
    """The command begins."""

    command: dict[str, Any]


class _Output(Wire, kw_only=True):
    data: str
    encoding: Literal["utf8", "base64"] = "utf8"

    def content(self) -> bytes:
        """The bytes. Raises :class:`Refused` (``bad_frame``) when they are not what the encoding says."""
        if self.encoding == "utf8":
            return self.data.encode("utf-8", "surrogatepass")
        try:
            return base64.b64decode(self.data, validate=True)
        except binascii.Error:
            raise Refused("output is not base64", code="bad_frame") from None


class Stdout(_Output, tag=True):
    """A piece of standard output, at most :data:`MAX_OUTPUT_PIECE` bytes."""


class Stderr(_Output, tag=True):
    """A piece of standard error."""


class Progress(Wire, tag=True, kw_only=True):
    """How far a transfer or deploy is: step ``(current, total)``, amount ``(done, total or None)``."""

    step: tuple[int, int]
    message: Text | None = None
    progress: tuple[int, int | None]
    unit: Annotated[str, msgspec.Meta(max_length=32)] | None = None


class Finished(Wire, tag=True, kw_only=True):
    """The command ended; 0 is success. After a failure the unit stops the batch and sends nothing more for it."""

    return_code: Annotated[int, msgspec.Meta(ge=-(1 << 31), le=1 << 31)]
    message: Text | None = None


EventKind = Started | Stdout | Stderr | Progress | Finished


class Hello(Wire, tag=True, kw_only=True):
    """The first frame of every connection: who I am, the state I am in, the batches I have (finished or not)."""

    unit_id: Id
    state: Annotated[str, msgspec.Meta(max_length=32)]
    batches: Annotated[list[Id], msgspec.Meta(max_length=1024)] = msgspec.field(default_factory=list)


class BatchEvent(Wire, tag=True, kw_only=True):
    """Something happened in command ``index`` of the batch."""

    seq: Seq
    batch_id: Id
    index: Index
    event_date: Timestamp
    kind: EventKind


class StateChanged(Wire, tag=True, kw_only=True):
    """The activity's state; ``target`` is where a transition under way leads."""

    seq: Seq
    state: Annotated[str, msgspec.Meta(max_length=32)]
    target: Annotated[str, msgspec.Meta(max_length=32)] | None = None
    reason: Text | None = None
    error_message: Text | None = None


class UsageReport(Wire, tag=True, kw_only=True):
    """The counters in the order of ``golem.com.usage.vector``; ``timestamp`` in unix seconds."""

    usage: Annotated[list[Annotated[float, msgspec.Meta(ge=0, le=1e300)]], msgspec.Meta(max_length=32)]
    timestamp: Annotated[float, msgspec.Meta(ge=0, le=2.5e11)]


Report = Hello | BatchEvent | StateChanged | UsageReport

_instructions: msgspec.json.Decoder[Instruction] = msgspec.json.Decoder(Instruction)
_reports: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)


def output(kind: type[Stdout] | type[Stderr], content: bytes) -> Stdout | Stderr:
    """An output event: as text when the bytes are UTF-8, else base64."""
    try:
        return kind(data=content.decode())
    except UnicodeDecodeError:
        return kind(data=base64.b64encode(content).decode(), encoding="base64")


def parse_instruction(frame: str | bytes) -> Instruction:
    """A frame from the node. Raises :class:`Refused` (``bad_frame``)."""
    try:
        return _instructions.decode(frame)
    except DECODE_ERRORS as error:
        raise Refused(f"not an instruction to an exe unit: {error}", code="bad_frame") from None


def parse_report(frame: str | bytes) -> Report:
    """A frame from the unit. Raises :class:`Refused` (``bad_frame``)."""
    try:
        return _reports.decode(frame)
    except DECODE_ERRORS as error:
        raise Refused(f"not a report of an exe unit: {error}", code="bad_frame") from None
