"""What the two nodes of an activity say to each other, and how much of it is taken.

The requestor's node calls ``activity.create``, ``activity.exec``, ``activity.destroy`` and, after a reconnect or
restart, ``activity.sync`` ("this is how far I have got"). The provider's node calls ``activity.push`` with what
happened, in order, until it is told that it has arrived. Every call may be repeated without harm: activities, batches
and events carry their own names.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Protocol, TypeVar

import msgspec

from shem.cogs.decoding import DECODE_ERRORS
from shem.errors import Refused
from shem.node.activity.events import Event
from shem.terms.ids import NodeId
from shem.terms.script import MAX_SCRIPT_BYTES

CREATE = "activity.create"
EXEC = "activity.exec"
DESTROY = "activity.destroy"
SYNC = "activity.sync"
PUSH = "activity.push"

MAX_EXEC_BYTES = MAX_SCRIPT_BYTES + 4096
PUSH_BYTES = 384 << 10
"""How much output is on its way to the requestor's node before it must say that it has it."""
MAX_PUSH_EVENTS = 4096
MAX_PUSH_BYTES = 1 << 20
MAX_SYNC = 512

T = TypeVar("T")

Id = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
AgreementId = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Number = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class Peers(Protocol):
    """What this domain needs of the peer network."""

    def serve(
        self, method: str, handler: Callable[[NodeId, bytes], Awaitable[bytes]], *, max_request: int = 1 << 20
    ) -> None: ...

    async def call(self, node_id: NodeId, method: str, payload: bytes, *, timeout_s: float = 10.0) -> bytes: ...

    def on_connected(self, callback: Callable[[NodeId], Awaitable[None]]) -> None: ...

    def on_disconnected(self, callback: Callable[[NodeId], None]) -> None: ...

    def connected(self) -> list[NodeId]: ...


class Create(msgspec.Struct, frozen=True):
    """Prepare this activity for the agreement."""

    activity_id: Id
    agreement_id: AgreementId


class Exec(msgspec.Struct, frozen=True):
    """Run this batch after those before it."""

    activity_id: Id
    batch_id: Id
    script: Annotated[str, msgspec.Meta(max_length=MAX_SCRIPT_BYTES)]


class Destroy(msgspec.Struct, frozen=True):
    """End this activity."""

    activity_id: Id


class Have(msgspec.Struct, frozen=True, array_like=True):
    """All events up to ``no`` are here."""

    activity_id: Id
    no: Number


class Sync(msgspec.Struct, frozen=True):
    """Where the requestor's node stands."""

    activities: Annotated[list[Have], msgspec.Meta(max_length=MAX_SYNC)]


class Unknown(msgspec.Struct, frozen=True):
    """Those of the activities asked for that the provider's node does not have."""

    unknown: Annotated[list[Id], msgspec.Meta(max_length=MAX_SYNC)]


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """Counters and their unix time."""

    counters: Annotated[tuple[Annotated[float, msgspec.Meta(ge=0, le=1e300)], ...], msgspec.Meta(max_length=32)]
    at: Annotated[float, msgspec.Meta(ge=0, le=2.5e11)]


class Push(msgspec.Struct, frozen=True):
    """What happened, numbered without gaps, and the newest counters."""

    activity_id: Id
    events: Annotated[list[Event], msgspec.Meta(max_length=MAX_PUSH_EVENTS)]
    usage: Usage | None = None


class Got(msgspec.Struct, frozen=True):
    """Everything up to ``no`` is stored for good."""

    no: Number


_encoder = msgspec.msgpack.Encoder()


def pack(message: msgspec.Struct) -> bytes:
    """A message as bytes."""
    return _encoder.encode(message)


def unpack(payload: bytes, shape: type[T]) -> T:
    """A message from bytes. Raises :class:`Refused` (``bad_message``) for anything else."""
    try:
        return msgspec.msgpack.decode(payload, type=shape)
    except DECODE_ERRORS as error:
        raise Refused(f"not a {shape.__name__} message: {error}", code="bad_message") from None
