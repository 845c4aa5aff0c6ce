"""The activity API: the requestor's calls, the provider agent's calls, and the queries that both make."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator
from typing import cast

import msgspec
from aiohttp import web

from shem.errors import NotImplementedHere, Refused, ShemError
from shem.node.activity.renting import START
from shem.node.activity.results import Result, Shown, StreamItem
from shem.node.activity.service import Activities
from shem.node.activity.store import ProviderEventRow, from_us
from shem.node.rest.server import (
    MAX_POLL_S,
    caller,
    names,
    query_int,
    query_seconds,
    query_time,
    read_json,
    respond,
    stream_events,
)
from shem.terms.script import MAX_COMMANDS
from shem.wire.activity import (
    ActivityState,
    ActivityUsage,
    CommandResult,
    CreateActivity,
    CreatedActivity,
    EventType,
    ExecScript,
    FinishedKind,
    Output,
    ProgressKind,
    ProviderEvent,
    RunningCommand,
    RuntimeEvent,
    RuntimeKind,
    SetState,
    StartedKind,
)
from shem.wire.base import encode

PREFIX = "/activity-api/v1"
_MAX_EVENTS = 1000
_PART = 1 << 16
_EVENT_ID = re.compile(r"(\d{1,15})(?:\.(\d{1,9}))?")


def routes(activities: Activities) -> list[web.RouteDef]:
    """Every call of the activity API."""
    api = _Api(activities)
    one = PREFIX + "/activity/{activity_id}"
    return [
        web.post(f"{PREFIX}/activity", api.create),
        web.get(f"{PREFIX}/activity", api.list_ids),
        web.get(f"{PREFIX}/events", api.events),
        web.get(f"{one}/agreement", api.agreement),
        web.get(f"{one}/state", api.state),
        web.put(f"{one}/state", api.set_state),
        web.get(f"{one}/usage", api.usage),
        web.get(f"{one}/command", api.command),
        web.post(f"{one}/exec", api.exec),
        web.get(f"{one}/exec/{{batch_id}}", api.batch),
        web.delete(one, api.destroy),
        web.post(f"{one}/encrypted", api.encrypted),
        *(
            add(f"{one}/proxy-http{rest}", api.proxy)
            for add in (web.get, web.post, web.put, web.patch, web.delete)
            for rest in ("", "/{path:.*}")
        ),
    ]


class _Api:
    def __init__(self, activities: Activities) -> None:
        self._activities = activities
        self._renting = activities.renting
        self._hosting = activities.hosting

    async def create(self, request: web.Request) -> web.Response:
        timeout_s = query_seconds(request, default=MAX_POLL_S)
        if (await request.read()).lstrip().startswith(b'"'):  # form A: the bare id
            agreement_id = await read_json(request, str)
            return respond(await self._renting.create(caller(request), agreement_id, timeout_s))
        body = await read_json(request, CreateActivity)
        activity_id = await self._renting.create(caller(request), body.agreement_id, timeout_s)
        return respond(CreatedActivity(activity_id=activity_id))

    async def list_ids(self, request: web.Request) -> web.Response:
        agreement_id = request.query.get("agreementId")
        if not agreement_id:
            raise Refused("agreementId is missing", code="bad_query")
        return respond(self._activities.of_agreement(agreement_id, caller(request)))

    async def agreement(self, request: web.Request) -> web.Response:
        return respond(self._activities.activity(_id(request), caller(request)).agreement_id)

    async def state(self, request: web.Request) -> web.Response:
        activity = self._activities.activity(_id(request), caller(request))
        return respond(
            ActivityState(
                state=(activity.state, activity.target), reason=activity.reason, error_message=activity.error_message
            )
        )

    async def usage(self, request: web.Request) -> web.Response:
        activity = self._activities.activity(_id(request), caller(request))
        if activity.usage is None or activity.usage_at is None:
            return respond(ActivityUsage(timestamp=int(activity.created_at.timestamp())))
        return respond(ActivityUsage(current_usage=list(activity.usage), timestamp=int(activity.usage_at)))

    async def command(self, request: web.Request) -> web.Response:
        running = self._renting.running(caller(request), _id(request))
        return respond([RunningCommand(command=name.capitalize(), params=words or None) for name, words in running])

    async def exec(self, request: web.Request) -> web.Response:
        body = await read_json(request, ExecScript)
        return respond(await self._renting.exec(caller(request), _id(request), body.text))

    async def batch(self, request: web.Request) -> web.StreamResponse:
        owner, activity_id, batch_id = caller(request), _id(request), names(request)["batch_id"]
        if "text/event-stream" in request.headers.get("Accept", ""):
            self._renting.check_batch(owner, activity_id, batch_id)
            return await stream_events(request, self._stream(activity_id, batch_id, _resume_after(request)))
        index: int | None = query_int(request, "commandIndex", -1, low=0, high=1 << 20)
        limit = query_int(request, "maxEvents", MAX_COMMANDS, low=1, high=1 << 31)
        found = await self._renting.results(
            owner, activity_id, batch_id, query_seconds(request), None if index == -1 else index
        )
        return respond([_result(result) for result in found[:limit]])

    async def _stream(
        self, activity_id: str, batch_id: str, after: tuple[int, float]
    ) -> AsyncIterator[tuple[str, str, bytes]]:
        try:
            async for item in self._renting.stream(activity_id, batch_id, after=after):
                yield "runtime", _event_id(item), encode(_runtime_event(batch_id, item))
        except ShemError as error:  # the status has left already: the reader learns of it as an event
            yield "error", "", encode(error.as_dict())

    async def destroy(self, request: web.Request) -> web.Response:
        await self._renting.destroy(caller(request), _id(request), query_seconds(request))
        return respond(None)

    async def encrypted(self, request: web.Request) -> web.Response:
        self._activities.activity(_id(request), caller(request))
        raise NotImplementedHere(
            "no runtime here runs in an enclave, so there are no encrypted calls", code="no_enclave"
        )

    async def proxy(self, request: web.Request) -> web.Response:
        self._activities.activity(_id(request), caller(request))
        raise NotImplementedHere("HTTP calls are not passed on into activities", code="no_http_proxy")

    async def events(self, request: web.Request) -> web.Response:
        after = query_time(request, "afterTimestamp")
        if after is None:
            raise Refused("afterTimestamp is missing", code="bad_query")
        rows = await self._hosting.events(
            caller(request),
            request.query.get("appSessionId") or None,
            after,
            query_seconds(request),
            query_int(request, "maxEvents", 100, low=1, high=_MAX_EVENTS),
        )
        return respond([_provider_event(row) for row in rows])

    async def set_state(self, request: web.Request) -> web.Response:
        body = await read_json(request, SetState)
        self._hosting.set_state(
            caller(request),
            _id(request),
            body.state[0],
            target=body.state[1],
            reason=body.reason,
            error_message=body.error_message,
        )
        return respond(None)


def _id(request: web.Request) -> str:
    return names(request)["activity_id"]


def _event_id(item: StreamItem) -> str:
    return f"{item.no}.{item.part}" if item.part else str(item.no)


def _resume_after(request: web.Request) -> tuple[int, float]:
    """Where a reader that lost its line goes on; a first one begins at the beginning."""
    found = _EVENT_ID.fullmatch(request.headers.get("Last-Event-ID", ""))
    if found is None:
        return START
    return int(found[1]), int(found[2]) if found[2] else math.inf


def _output(shown: Shown) -> Output:
    return cast("list[int]", _numbers(shown)) if isinstance(shown, bytes) else shown


def _numbers(data: bytes) -> msgspec.Raw:
    """A JSON array of the bytes' values, made in parts: as objects all at once they would take eight times the room."""
    parts = (encode(list(data[start : start + _PART]))[1:-1] for start in range(0, len(data), _PART))
    return msgspec.Raw(b"[" + b",".join(parts) + b"]")


def _result(result: Result) -> CommandResult:
    return CommandResult(
        index=result.index,
        event_date=from_us(result.at_us),
        result="Ok" if result.ok else "Error",
        stdout=_output(result.stdout),
        stderr=_output(result.stderr),
        message=result.message,
        is_batch_finished=result.last,
    )


def _runtime_event(batch_id: str, item: StreamItem) -> RuntimeEvent:
    kind = RuntimeKind(stdout=_output(item.stdout), stderr=_output(item.stderr))
    if item.command is not None:
        kind.started = StartedKind(command=item.command)
    if item.progress is not None:
        kind.progress = msgspec.convert(item.progress, ProgressKind, from_attributes=True)
    if item.finished is not None:
        kind.finished = FinishedKind(return_code=item.finished.return_code, message=item.finished.message)
    return RuntimeEvent(
        batch_id=batch_id, index=item.index, timestamp=from_us(item.at_us).replace(tzinfo=None), kind=kind
    )


def _provider_event(row: ProviderEventRow) -> ProviderEvent:
    return ProviderEvent(
        activity_id=row.activity_id,
        agreement_id=row.agreement_id,
        event_date=from_us(row.at_us),
        event_type=EventType(destroy={}) if row.destroy else EventType(create={}),
    )
