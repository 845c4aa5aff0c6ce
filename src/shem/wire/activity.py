"""Shapes of the activity API (requestor's and provider's side), as in the Golem API.

Results are camelCase, the events of the stream are snake_case: that is how existing clients know them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from shem.wire.base import Timestamp, Wire

State = Literal["New", "Initialized", "Deployed", "Ready", "Unresponsive", "Terminated"]
Output = str | list[int] | None
"""Captured output: text, or the values of the bytes when it is binary or not UTF-8; ``None`` when not captured."""


class CreateActivity(Wire, kw_only=True):
    """Body form B of ``POST /activity`` (form A is the agreement id as a bare JSON string)."""

    agreement_id: str
    requestor_pub_key: Annotated[str, msgspec.Meta(pattern="^(?:[0-9a-fA-F]{2}){1,256}$")] | None = None


class CreatedActivity(Wire, kw_only=True):
    """The answer to form B."""

    activity_id: str


class ActivityState(Wire, kw_only=True):
    """``state`` is the pair (now, where a transition under way leads)."""

    state: tuple[State, State | None]
    reason: str | None = None
    error_message: str | None = None


class SetState(Wire, kw_only=True):
    """What a provider agent may say of its activity."""

    state: tuple[State, State | None]
    reason: Annotated[str, msgspec.Meta(max_length=64 << 10)] | None = None
    error_message: Annotated[str, msgspec.Meta(max_length=64 << 10)] | None = None


class ActivityUsage(Wire, kw_only=True):
    """Counters in the order of ``golem.com.usage.vector``; absent before the activity has started."""

    current_usage: list[float] | None = None
    timestamp: int


class ExecScript(Wire, kw_only=True):
    """``text`` is a JSON array of commands, as a string."""

    text: str


class RunningCommand(Wire, kw_only=True):
    """A command under way: its name and, for ``run``, what it runs."""

    command: str
    params: list[str] | None = None


class CommandResult(msgspec.Struct, rename="camel", kw_only=True):
    """The result of one finished command. Fields are never left out: clients look at all of them."""

    index: int
    event_date: Timestamp
    result: Literal["Ok", "Error"]
    stdout: Output = None
    stderr: Output = None
    message: str | None = None
    is_batch_finished: bool = False

    @property
    def stdout_bytes(self) -> bytes:
        """Standard output as bytes; empty when it was not captured."""
        return output_bytes(self.stdout)

    @property
    def stderr_bytes(self) -> bytes:
        """Standard error as bytes; empty when it was not captured."""
        return output_bytes(self.stderr)


def output_bytes(output: Output) -> bytes:
    """Either form of captured output as bytes."""
    if output is None:
        return b""
    return output.encode() if isinstance(output, str) else bytes(output)


class StartedKind(msgspec.Struct):
    """The command begins."""

    command: dict[str, object]


class ProgressKind(msgspec.Struct, kw_only=True):
    """How far a transfer or deploy is."""

    step: tuple[int, int]
    message: str | None = None
    progress: tuple[int, int | None]
    unit: str | None = None


class FinishedKind(msgspec.Struct, kw_only=True):
    """The command ended."""

    return_code: int
    message: str | None = None


class RuntimeKind(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Exactly one of these is set."""

    started: StartedKind | None = None
    stdout: Output = None
    stderr: Output = None
    progress: ProgressKind | None = None
    finished: FinishedKind | None = None


class RuntimeEvent(msgspec.Struct, kw_only=True):
    """One event of a batch's stream; ``timestamp`` has no zone and means UTC."""

    batch_id: str
    index: int
    timestamp: datetime
    kind: RuntimeKind


class EventType(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Exactly one of these is set (an object, not a string)."""

    create: dict[str, str] | None = msgspec.field(default=None, name="CreateActivity")
    destroy: dict[str, str] | None = msgspec.field(default=None, name="DestroyActivity")


class ProviderEvent(Wire, kw_only=True):
    """What a provider agent must act on: start an exe unit for a new activity, or end one."""

    activity_id: str
    agreement_id: str
    event_date: Timestamp
    event_type: EventType
