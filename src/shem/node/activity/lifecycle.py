"""What an activity may become. Pure.

A life runs New → Initialized → Deployed → Ready; ``terminate`` leads back to Initialized; Unresponsive is the loss of
whoever speaks for the activity and may end in any live state again; Terminated is final.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, cast, get_args

import msgspec

from shem.errors import Conflict, Refused

State = Literal["New", "Initialized", "Deployed", "Ready", "Unresponsive", "Terminated"]
Role = Literal["Requestor", "Provider"]

STATES: frozenset[str] = frozenset(get_args(State))

_NEXT: dict[State, frozenset[State]] = {
    "New": frozenset({"Initialized", "Unresponsive", "Terminated"}),
    "Initialized": frozenset({"Deployed", "Unresponsive", "Terminated"}),
    "Deployed": frozenset({"Ready", "Initialized", "Unresponsive", "Terminated"}),
    "Ready": frozenset({"Initialized", "Unresponsive", "Terminated"}),
    "Unresponsive": frozenset({"New", "Initialized", "Deployed", "Ready", "Terminated"}),
    "Terminated": frozenset(),
}


class IllegalStep(Conflict):
    """An activity cannot go from that state to this one."""

    default_code = "illegal_step"


class Activity(msgspec.Struct, frozen=True, kw_only=True):
    """One use of an agreement, as one side's node knows it. ``owner`` is that side's node id, ``peer`` the other's.

    ``usage`` is in the order of the offer's ``golem.com.usage.vector``; ``usage_at`` in unix seconds.
    """

    activity_id: str
    agreement_id: str
    role: Role
    owner: str
    peer: str
    state: State
    target: State | None = None
    reason: str | None = None
    error_message: str | None = None
    usage: tuple[float, ...] | None = None
    usage_at: float | None = None
    created_at: datetime
    ended_at: datetime | None = None

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.state != "Terminated"


def parse_state(text: str) -> State:
    """Raises :class:`Refused` (``bad_state``) for a word that is no state."""
    if text not in STATES:
        raise Refused(f"{text[:40]!r} is not an activity state", code="bad_state")
    return cast(State, text)


def may_step(before: State, after: State) -> bool:
    """Whether ``after`` may follow ``before``; staying is allowed in every live state."""
    return after in _NEXT[before] or (before == after and before != "Terminated")


def check_step(before: State, after: State) -> None:
    """Raises :class:`IllegalStep` where :func:`may_step` says no. Terminated twice is no error: it changes nothing."""
    if not may_step(before, after) and not before == after == "Terminated":
        raise IllegalStep(f"an activity that is {before} cannot become {after}")
