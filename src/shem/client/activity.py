"""Callers of the activity API: the requestor's side and the provider agent's side."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from shem.client.http import ApiClient, error_of
from shem.errors import NotFound
from shem.wire.activity import (
    ActivityState,
    ActivityUsage,
    CommandResult,
    ExecScript,
    ProviderEvent,
    RunningCommand,
    RuntimeEvent,
    SetState,
    State,
)
from shem.wire.base import encode

_PREFIX = "/activity-api/v1"
_SLACK_S = 5.0
"""What a call may take beyond the wait that it asks for."""


class ActivityApi:
    """The requestor's calls. Times are seconds; the node shortens waits to 60 s, so loop for longer ones."""

    def __init__(self, http: ApiClient) -> None:
        self._http = http

    async def create(self, agreement_id: str, *, timeout_s: float = 60.0) -> str:
        """A new activity, once the provider has initialized it.

        Raises ``TimeoutError`` when it does not in time (the activity is then destroyed), ``Refused`` when the
        agreement is not approved, ``PeerFailed`` when the provider cannot be reached.
        """
        return await self._http.call(
            "POST",
            f"{_PREFIX}/activity",
            params={"timeout": timeout_s},
            json=agreement_id,
            timeout_s=timeout_s + _SLACK_S,
            into=str,
        )

    async def of_agreement(self, agreement_id: str) -> list[str]:
        """The activities of an agreement, oldest first, ended ones too."""
        return await self._http.call("GET", f"{_PREFIX}/activity", params={"agreementId": agreement_id}, into=_strings)

    async def agreement(self, activity_id: str) -> str:
        """The agreement this activity uses."""
        return await self._http.call("GET", f"{_PREFIX}/activity/{activity_id}/agreement", into=str)

    async def state(self, activity_id: str) -> ActivityState:
        """The state now and, in a transition, the state it leads to."""
        return await self._http.call("GET", f"{_PREFIX}/activity/{activity_id}/state", into=ActivityState)

    async def usage(self, activity_id: str) -> ActivityUsage:
        """The newest counters."""
        return await self._http.call("GET", f"{_PREFIX}/activity/{activity_id}/usage", into=ActivityUsage)

    async def running(self, activity_id: str) -> Sequence[RunningCommand]:
        """The commands under way; empty when there is none."""
        try:
            return await self._http.call("GET", f"{_PREFIX}/activity/{activity_id}/command", into=_running)
        except NotFound as error:
            if error.code == "no_command":
                return []
            raise

    async def exec(self, activity_id: str, script: Sequence[Mapping[str, Any]] | str) -> str:
        """Submit a batch; its id. ``script`` is a list of commands, or their JSON text.

        Returns once the batch is stored. Raises ``Refused`` (``bad_script``) for a script that cannot be run.
        """
        text = script if isinstance(script, str) else encode(list(script)).decode()
        return await self._http.call(
            "POST", f"{_PREFIX}/activity/{activity_id}/exec", json=ExecScript(text=text), into=str
        )

    async def results(
        self,
        activity_id: str,
        batch_id: str,
        *,
        timeout_s: float = 5.0,
        command_index: int | None = None,
        max_events: int | None = None,
    ) -> Sequence[CommandResult]:
        """All finished results from the first, once the batch is done or the time is up.

        With ``command_index``: once that command is done; ``TimeoutError`` otherwise. Raises ``PeerFailed``
        (``activity_unresponsive``) as soon as the provider or its exe unit is known to be away.
        """
        return await self._http.call(
            "GET",
            f"{_PREFIX}/activity/{activity_id}/exec/{batch_id}",
            params={"timeout": timeout_s, "commandIndex": command_index, "maxEvents": max_events},
            timeout_s=timeout_s + 30.0,
            into=_results,
        )

    async def stream(self, activity_id: str, batch_id: str) -> AsyncIterator[RuntimeEvent]:
        """Every event of the batch from its beginning, in order; ends after the batch's last event.

        Raises ``PeerFailed`` (``activity_unresponsive``) when the provider or its exe unit goes away meanwhile.
        """
        path = f"{_PREFIX}/activity/{activity_id}/exec/{batch_id}"
        async for event, _, data in self._http.events(path):
            if event == "error":
                raise error_of(504, data)
            if event == "runtime":
                yield msgspec.json.decode(data, type=RuntimeEvent)

    async def destroy(self, activity_id: str, *, timeout_s: float = 10.0) -> None:
        """End the activity; returns when it is Terminated. Repeating it does no harm.

        Raises ``TimeoutError`` when the provider has not confirmed in time; the node keeps asking.
        """
        await self._http.call(
            "DELETE",
            f"{_PREFIX}/activity/{activity_id}",
            params={"timeout": timeout_s},
            timeout_s=timeout_s + _SLACK_S,
        )


class ProviderActivityApi:
    """The provider agent's calls."""

    def __init__(self, http: ApiClient) -> None:
        self._http = http

    async def events(
        self, *, after: datetime, app_session_id: str | None = None, timeout_s: float = 5.0, max_events: int = 100
    ) -> Sequence[ProviderEvent]:
        """What happened strictly after ``after`` (pass the newest ``event_date`` next time); empty when nothing did.

        A destroy is reported again and again, whatever ``after`` says, until the activity is Terminated.
        """
        try:
            return await self._http.call(
                "GET",
                f"{_PREFIX}/events",
                params={
                    "afterTimestamp": after.isoformat().replace("+00:00", "Z"),
                    "appSessionId": app_session_id,
                    "timeout": timeout_s,
                    "maxEvents": max_events,
                },
                timeout_s=timeout_s + _SLACK_S + 10.0,
                into=_provider_events,
            )
        except TimeoutError:
            return []

    async def set_state(
        self,
        activity_id: str,
        state: State,
        *,
        target: State | None = None,
        reason: str | None = None,
        error_message: str | None = None,
    ) -> None:
        """Say which state the activity is in. Raises ``Conflict`` for a step that the lifecycle does not have."""
        await self._http.call(
            "PUT",
            f"{_PREFIX}/activity/{activity_id}/state",
            json=SetState(state=(state, target), reason=reason, error_message=error_message),
        )

    async def state(self, activity_id: str) -> ActivityState:
        """The state as this node knows it."""
        return await self._http.call("GET", f"{_PREFIX}/activity/{activity_id}/state", into=ActivityState)

    async def usage(self, activity_id: str) -> ActivityUsage:
        """The newest counters that the exe unit reported."""
        return await self._http.call("GET", f"{_PREFIX}/activity/{activity_id}/usage", into=ActivityUsage)

    async def agreement(self, activity_id: str) -> str:
        """The agreement this activity uses."""
        return await self._http.call("GET", f"{_PREFIX}/activity/{activity_id}/agreement", into=str)


_strings = list[str]
_running = list[RunningCommand]
_results = list[CommandResult]
_provider_events = list[ProviderEvent]
