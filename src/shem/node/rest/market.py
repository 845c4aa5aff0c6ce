"""The market API (``/market-api/v1``): handlers that parse, call the market, and shape what it gives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from aiohttp import web

from shem.errors import Refused
from shem.node.market import Market
from shem.node.market.lifecycle import Agreement, Proposal, Role, Subscription, check_subscription_id, shown
from shem.node.market.offers import KnownOffer
from shem.node.market.store import AgreementEvent, Event
from shem.node.rest.server import (
    caller,
    names,
    query_int,
    query_seconds,
    query_time,
    read_json,
    respond,
    stream_events,
)
from shem.terms.ids import parse_node_id
from shem.wire import market as wire
from shem.wire.base import Wire, encode

ROOT = "/market-api/v1"

_AGREEMENT_STATES = frozenset({"Proposal", "Pending", "Cancelled", "Rejected", "Approved", "Expired", "Terminated"})


def routes(market: Market) -> list[web.RouteDef]:
    """All calls of the market API, for both roles."""
    rest = _MarketRest(market)
    found = [
        *_side_routes(rest, "demand"),
        *_side_routes(rest, "offer"),
        web.post(f"{ROOT}/agreements", rest.create_agreement),
        web.get(f"{ROOT}/agreements", rest.list_agreements),
        web.get(f"{ROOT}/agreements/{{id}}", rest.get_agreement),
        web.get(f"{ROOT}/agreements/{{id}}/terminate/reason", rest.terminate_reason),
        web.get(f"{ROOT}/agreementEvents", rest.agreement_events),
        web.post(f"{ROOT}/scan", rest.begin_scan),
        web.get(f"{ROOT}/scan/{{id}}/events", rest.scan_events),
        web.delete(f"{ROOT}/scan/{{id}}", rest.end_scan),
    ]
    for verb in ("confirm", "wait", "cancel", "approve", "reject", "terminate"):
        found.append(web.post(f"{ROOT}/agreements/{{id}}/{verb}", getattr(rest, f"{verb}_agreement")))
    return found


def _side_routes(rest: _MarketRest, kind: str) -> list[web.RouteDef]:
    side = rest.sides[kind]
    root = f"{ROOT}/{kind}s"
    proposal = f"{root}/{{id}}/proposals/{{proposal}}"
    return [
        web.post(root, side.subscribe),
        web.get(root, side.list),
        web.delete(f"{root}/{{id}}", side.unsubscribe),
        web.get(f"{root}/{{id}}/events", side.collect),
        web.post(proposal, side.counter),
        web.get(proposal, side.proposal),
        web.post(f"{proposal}/reject", side.reject),
    ]


class _SideRest:
    """What requestors and providers do alike, under ``/demands`` and ``/offers``."""

    def __init__(self, market: Market, role: Role) -> None:
        self._market = market
        self._role: Role = role
        self._kind: Any = "demand" if role == "Requestor" else "offer"

    async def subscribe(self, request: web.Request) -> web.Response:
        body = await read_json(request, wire.NewSubscription)
        created = self._market.subscriptions.create(caller(request), self._kind, body.properties, body.constraints)
        return respond(created, 201)

    async def list(self, request: web.Request) -> web.Response:
        shape = demand_shape if self._role == "Requestor" else offer_shape
        return respond([shape(one) for one in self._market.subscriptions.of(caller(request), self._kind)])

    async def unsubscribe(self, request: web.Request) -> web.Response:
        self._market.subscriptions.end(caller(request), self._kind, self._path(request)["id"])
        return respond(status=204)

    async def collect(self, request: web.Request) -> web.Response:
        owner = caller(request)
        events = await self._market.subscriptions.collect(
            owner,
            self._kind,
            self._path(request)["id"],
            limit=_max_events(request, self._market),
            timeout_s=query_seconds(request),
            more=self._market.negotiation.initial_proposals if self._role == "Requestor" else _nothing_more,
        )
        shapes = (self._event_shape(owner, event) for event in events)
        return respond([shape for shape in shapes if shape is not None])

    async def counter(self, request: web.Request) -> web.Response:
        body, path = await read_json(request, wire.NewSubscription), self._path(request)
        created = await self._market.negotiation.counter(
            caller(request), self._role, path["id"], path["proposal"], body.properties, body.constraints
        )
        return respond(created)

    async def proposal(self, request: web.Request) -> web.Response:
        path = self._path(request)
        found = self._market.negotiation.get(caller(request), self._role, path["id"], path["proposal"])
        return respond(proposal_shape(found))

    async def reject(self, request: web.Request) -> web.Response:
        reason, path = await _reason(request), self._path(request)
        self._market.negotiation.reject(caller(request), self._role, path["id"], path["proposal"], reason)
        return respond(status=204)

    def _path(self, request: web.Request) -> Mapping[str, str]:
        """The path's variables. Raises :class:`~shem.node.market.lifecycle.BadId`."""
        path = names(request)
        check_subscription_id(path["id"])
        return path

    def _event_shape(self, owner: str, event: Event) -> Wire | None:
        """``None`` for an event whose subject is too old to be known."""
        if event.kind == "ProposalRejected":
            proposal_id = shown(event.subject, self._role)
            return wire.ProposalRejectedEvent(event_date=event.at, proposal_id=proposal_id, reason=event.reason)
        if event.kind == "Agreement":
            agreement = self._market.agreements.get(owner, event.subject)
            return wire.AgreementEvent(event_date=event.at, agreement=agreement_shape(agreement))
        proposal = self._market.negotiation.find(owner, event.subject)
        if proposal is None:
            return None
        return wire.ProposalEvent(event_date=event.at, proposal=proposal_shape(proposal))


class _MarketRest:
    """Agreements, their events, and scans."""

    def __init__(self, market: Market) -> None:
        self._market = market
        self.sides = {"demand": _SideRest(market, "Requestor"), "offer": _SideRest(market, "Provider")}

    async def create_agreement(self, request: web.Request) -> web.Response:
        body = await read_json(request, wire.NewAgreement)
        return respond(self._market.agreements.create(caller(request), body.proposal_id, body.valid_to))

    async def list_agreements(self, request: web.Request) -> web.Response:
        state = request.query.get("state")
        if state is not None and state not in _AGREEMENT_STATES:
            raise Refused(f"unknown state {state[:40]!r}", code="bad_query")
        found = self._market.core.store.agreements(
            caller(request),
            state=state,  # type: ignore[arg-type]
            after=query_time(request, "afterDate"),
            before=query_time(request, "beforeDate"),
            session=request.query.get("appSessionId"),
        )
        return respond(
            [
                wire.AgreementEntry(id=a.agreement_id, timestamp=a.created_at, approved_date=a.approved_at, role=a.role)
                for a in found
            ]
        )

    async def get_agreement(self, request: web.Request) -> web.Response:
        return respond(agreement_shape(self._market.agreements.get(caller(request), names(request)["id"])))

    async def terminate_reason(self, request: web.Request) -> web.Response:
        return respond(self._market.agreements.get(caller(request), names(request)["id"]).reason)

    async def confirm_agreement(self, request: web.Request) -> web.Response:
        session = request.query.get("appSessionId")
        await self._market.agreements.confirm(caller(request), names(request)["id"], session)
        return respond(status=204)

    async def wait_agreement(self, request: web.Request) -> web.Response:
        await self._market.agreements.wait(caller(request), names(request)["id"], query_seconds(request))
        return respond(status=204)

    async def approve_agreement(self, request: web.Request) -> web.Response:
        await self._market.agreements.approve(
            caller(request), names(request)["id"], request.query.get("appSessionId"), query_seconds(request)
        )
        return respond(status=204)

    async def cancel_agreement(self, request: web.Request) -> web.Response:
        self._market.agreements.cancel(caller(request), names(request)["id"], await _reason(request))
        return web.Response(status=200)

    async def reject_agreement(self, request: web.Request) -> web.Response:
        self._market.agreements.reject(caller(request), names(request)["id"], await _reason(request))
        return web.Response(status=200)

    async def terminate_agreement(self, request: web.Request) -> web.Response:
        self._market.agreements.terminate(caller(request), names(request)["id"], await _reason(request))
        return web.Response(status=200)

    async def agreement_events(self, request: web.Request) -> web.Response:
        events = await self._market.agreements.events(
            caller(request),
            after=query_time(request, "afterTimestamp"),
            limit=_max_events(request, self._market),
            timeout_s=query_seconds(request),
            session=request.query.get("appSessionId"),
        )
        return respond([agreement_event_shape(event) for event in events])

    async def begin_scan(self, request: web.Request) -> web.Response:
        body = await read_json(request, wire.NewScan)
        scan_id = self._market.scans.begin(caller(request), body.type, body.constraints, body.properties, body.timeout)
        return respond(scan_id, 201)

    async def scan_events(self, request: web.Request) -> web.StreamResponse:
        scan_id, owner, issuer = names(request)["id"], caller(request), request.query.get("peerId")
        if issuer is not None:
            issuer = parse_node_id(issuer)
        kind = self._market.scans.kind(owner, scan_id)
        if "text/event-stream" in request.headers.get("Accept", ""):
            return await stream_events(request, self._stream(owner, scan_id, kind, issuer))
        limit, timeout_s = _max_events(request, self._market), query_seconds(request)
        found = await self._market.scans.collect(owner, scan_id, limit=limit, timeout_s=timeout_s, issuer=issuer)
        return respond([_found_shape(one) for one in found])

    async def _stream(
        self, owner: str, scan_id: str, kind: str, issuer: str | None
    ) -> AsyncIterator[tuple[str, str, bytes]]:
        async for one in self._market.scans.stream(owner, scan_id, issuer):
            yield kind, "", encode(_found_shape(one))

    async def end_scan(self, request: web.Request) -> web.Response:
        self._market.scans.end(caller(request), names(request)["id"])
        return respond(status=204)


# --- shapes -----------------------------------------------------------------------------------------------------------


def offer_shape(one: Subscription) -> wire.Offer:
    return wire.Offer(
        properties=one.properties,
        constraints=one.constraints,
        offer_id=one.subscription_id,
        provider_id=one.owner,
        timestamp=one.created_at,
    )


def demand_shape(one: Subscription) -> wire.Demand:
    return wire.Demand(
        properties=one.properties,
        constraints=one.constraints,
        demand_id=one.subscription_id,
        requestor_id=one.owner,
        timestamp=one.created_at,
    )


def proposal_shape(one: Proposal) -> wire.Proposal:
    return wire.Proposal(
        properties=one.properties,
        constraints=one.constraints,
        proposal_id=one.shown_id,
        issuer_id=one.issuer_id,
        state=one.state,
        timestamp=one.created_at,
        prev_proposal_id=None if one.prev_id is None else shown(one.prev_id, one.role),
    )


def agreement_shape(one: Agreement) -> wire.Agreement:
    return wire.Agreement(
        agreement_id=one.agreement_id,
        demand=wire.Demand(
            properties=one.demand_properties,
            constraints=one.demand_constraints,
            demand_id=one.demand_id,
            requestor_id=one.requestor_id,
            timestamp=one.created_at,
        ),
        offer=wire.Offer(
            properties=one.offer_properties,
            constraints=one.offer_constraints,
            offer_id=one.offer_id,
            provider_id=one.provider_id,
            timestamp=one.created_at,
        ),
        valid_to=one.valid_to,
        state=one.state,
        timestamp=one.created_at,
        approved_date=one.approved_at,
        app_session_id=one.app_session_id,
        proposed_signature=one.proposed_signature,
        approved_signature=one.approved_signature if one.approved_at else None,
        committed_signature=one.committed_signature,
    )


def agreement_event_shape(event: AgreementEvent) -> wire.AgreementOperationEvent:
    at, agreement_id = event.at, event.agreement_id
    if event.kind == "Approved":
        return wire.AgreementApprovedEvent(event_date=at, agreement_id=agreement_id)
    reason = event.reason or {"message": ""}
    if event.kind == "Terminated":
        return wire.AgreementTerminatedEvent(
            event_date=at,
            agreement_id=agreement_id,
            terminator=event.terminator or "Requestor",
            signature=event.signature or "NoSignature",
            reason=reason,
        )
    shape = wire.AgreementRejectedEvent if event.kind == "Rejected" else wire.AgreementCancelledEvent
    return shape(event_date=at, agreement_id=agreement_id, reason=reason)


def _found_shape(one: KnownOffer | Subscription) -> wire.Offer | wire.Demand:
    if isinstance(one, Subscription):
        return demand_shape(one)
    return wire.Offer(
        properties=one.body.properties,
        constraints=one.body.constraints,
        offer_id=one.statement.offer_id,
        provider_id=one.body.issuer,
        timestamp=one.body.created_at,
    )


def _max_events(request: web.Request, market: Market) -> int:
    return query_int(
        request, "maxEvents", market.core.config.default_events, low=1, high=market.core.config.most_events
    )


async def _reason(request: web.Request) -> dict[str, Any]:
    """Why; ``null`` for no reason given. One that is given has a message."""
    reason = await read_json(request, dict[str, Any] | None)  # type: ignore[arg-type]
    if reason is not None and not isinstance(reason.get("message"), str):
        raise Refused("a reason is an object with a text 'message', or null", code="bad_reason")
    return reason or {}


def _nothing_more(subscription: Subscription, limit: int) -> list[Event]:
    return []
