"""Limits and patience of the activity domain, and what both of its sides share."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from shem.node.activity.lifecycle import Activity, State
from shem.terms.ids import NodeId

log = logging.getLogger(__name__)

ActivityHandler = Callable[[Activity, State], None]
"""Called inside the transaction that changes a state, with the activity as it is now and its state."""


Admit = Callable[[str, str], Awaitable[None]]
"""(provider, agreement): returns when work may start, raises when it may not."""


async def admit_all(owner: str, agreement_id: str) -> None:
    """Where nobody has to be waited for."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds, sizes in bytes."""

    unit_grace_s: float = 5.0
    """A vanished exe unit may come back this long before the activity is Unresponsive."""
    unit_lost_s: float = 60.0
    """… and this long before it is Terminated."""
    destroy_grace_s: float = 30.0
    """An end that the provider agent does not confirm is taken as done after this."""
    peer_grace_s: float = 10.0
    """A vanished provider's node may come back this long before its activities are Unresponsive."""
    call_s: float = 10.0
    """One call to the other node."""
    create_s: float = 60.0
    """The call that creates an activity: the provider's node may wait for the money to be reserved."""
    retry_first_s: float = 0.1
    retry_last_s: float = 15.0
    retry_for_s: float = 3600.0
    """Events of an activity that ended this long ago are no longer offered to an absent requestor's node, except when it
    connects by itself."""
    max_live_per_agreement: int = 64
    max_queued_batches: int = 64
    max_output_bytes: int = 64 << 20
    """Output of one batch; more fails its command (``output_limit``)."""
    max_output_events: int = 1 << 20
    keep_batches: int = 256
    """Finished batches whose output the requestor's node keeps per activity."""
    keep_ended_s: float = 86400.0
    """How long output is kept after the activity ended."""


class Agreement(Protocol):
    """What this domain reads of an agreement."""

    @property
    def agreement_id(self) -> str: ...
    @property
    def requestor_id(self) -> str: ...
    @property
    def provider_id(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def app_session_id(self) -> str | None: ...


class AgreementBook(Protocol):
    """What this domain needs of the market."""

    def agreement(self, agreement_id: str, owner: NodeId | None = None) -> Agreement: ...

    def on_agreement(self, handler: Callable[[Agreement, str], None]) -> None: ...


class Hooks:
    """Who wants to know of state changes."""

    def __init__(self) -> None:
        self._handlers: list[ActivityHandler] = []

    def add(self, handler: ActivityHandler) -> None:
        """Call ``handler`` inside every transaction that changes a state."""
        self._handlers.append(handler)

    def tell(self, activity: Activity) -> None:
        """A state has changed."""
        for handler in self._handlers:
            handler(activity, activity.state)
