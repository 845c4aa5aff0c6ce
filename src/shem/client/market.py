"""Typed calls of the market API: one method per endpoint, for both roles.

Methods that collect or wait are long polls: ``timeout_s`` is how long the node may hold the answer, and an empty list
means nothing came. The connection's own limit lies a little above it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import TypeVar

import msgspec

from shem.client.http import ApiClient
from shem.wire import market as wire
from shem.wire.base import Properties, Wire

_T = TypeVar("_T")

_ROOT = "/market-api/v1"
_SPARE_S = 15.0
"""What a long poll may take beyond its own timeout before the node counts as unreachable."""
CALL_TIMEOUT_S = 30.0


class MarketApi:
    """The market of one node, for the identity of the client's key.

    Errors are those of :class:`~shem.client.http.ApiClient`: ``NotFound`` for what is not there (or was unsubscribed),
    ``Gone`` for what came too late, ``Conflict``, ``Refused``, ``PeerFailed`` when the other node is away,
    ``TimeoutError``.
    """

    def __init__(self, http: ApiClient) -> None:
        self._http = http

    # offers and demands

    async def subscribe_offer(self, properties: Properties, constraints: str) -> str:
        """Publish an offer; its id. A constraint that does not parse is accepted and never matches."""
        return await self._post("/offers", wire.NewSubscription(properties=properties, constraints=constraints))

    async def subscribe_demand(self, properties: Properties, constraints: str) -> str:
        """Publish a demand; its id."""
        return await self._post("/demands", wire.NewSubscription(properties=properties, constraints=constraints))

    async def offers(self) -> list[wire.Offer]:
        """Own offers that live."""
        return await self._http.call("GET", f"{_ROOT}/offers", into=list[wire.Offer])

    async def demands(self) -> list[wire.Demand]:
        """Own demands that live."""
        return await self._http.call("GET", f"{_ROOT}/demands", into=list[wire.Demand])

    async def unsubscribe_offer(self, offer_id: str) -> None:
        """Withdraw; other nodes hear at once. ``Gone`` the second time."""
        await self._http.call("DELETE", f"{_ROOT}/offers/{offer_id}")

    async def unsubscribe_demand(self, demand_id: str) -> None:
        """Withdraw; a pending collect ends with ``NotFound``."""
        await self._http.call("DELETE", f"{_ROOT}/demands/{demand_id}")

    async def collect_demand_events(
        self, demand_id: str, *, timeout_s: float = 5.0, max_events: int = 20
    ) -> list[wire.DemandEvent]:
        """Events of a demand; each is given once."""
        return await self._poll(
            f"/demands/{demand_id}/events", timeout_s, {"maxEvents": max_events}, list[wire.DemandEvent]
        )

    async def collect_offer_events(
        self, offer_id: str, *, timeout_s: float = 5.0, max_events: int = 20
    ) -> list[wire.OfferEvent]:
        """Events of an offer; each is given once."""
        return await self._poll(
            f"/offers/{offer_id}/events", timeout_s, {"maxEvents": max_events}, list[wire.OfferEvent]
        )

    # proposals

    async def counter_as_requestor(
        self, demand_id: str, proposal_id: str, properties: Properties, constraints: str
    ) -> str:
        """Answer a provider's proposal with one's own; its id. ``Gone`` when it was countered before."""
        body = wire.NewSubscription(properties=properties, constraints=constraints)
        return await self._post(f"/demands/{demand_id}/proposals/{proposal_id}", body)

    async def counter_as_provider(
        self, offer_id: str, proposal_id: str, properties: Properties, constraints: str
    ) -> str:
        """Answer a requestor's proposal with one's own; its id."""
        body = wire.NewSubscription(properties=properties, constraints=constraints)
        return await self._post(f"/offers/{offer_id}/proposals/{proposal_id}", body)

    async def demand_proposal(self, demand_id: str, proposal_id: str) -> wire.Proposal:
        """One proposal of a demand's negotiations; own counters too."""
        return await self._http.call("GET", f"{_ROOT}/demands/{demand_id}/proposals/{proposal_id}", into=wire.Proposal)

    async def offer_proposal(self, offer_id: str, proposal_id: str) -> wire.Proposal:
        """One proposal of an offer's negotiations; own counters and the initial one too."""
        return await self._http.call("GET", f"{_ROOT}/offers/{offer_id}/proposals/{proposal_id}", into=wire.Proposal)

    async def reject_demand_proposal(self, demand_id: str, proposal_id: str, reason: wire.Reason | None = None) -> None:
        """End a negotiation as requestor."""
        await self._http.call("POST", f"{_ROOT}/demands/{demand_id}/proposals/{proposal_id}/reject", json=reason)

    async def reject_offer_proposal(self, offer_id: str, proposal_id: str, reason: wire.Reason | None = None) -> None:
        """End a negotiation as provider."""
        await self._http.call("POST", f"{_ROOT}/offers/{offer_id}/proposals/{proposal_id}/reject", json=reason)

    # agreements

    async def create_agreement(self, proposal_id: str, valid_to: datetime) -> str:
        """Make an agreement of a provider's counter; its id. Nothing is sent before :meth:`confirm`."""
        return await self._post("/agreements", wire.NewAgreement(proposal_id=proposal_id, valid_to=valid_to))

    async def confirm(self, agreement_id: str, *, app_session_id: str | None = None) -> None:
        """Sign and send to the provider. ``PeerFailed`` when it is away (the agreement is then cancelled)."""
        await self._act(agreement_id, "confirm", {"appSessionId": app_session_id})

    async def wait_agreement(self, agreement_id: str, *, timeout_s: float = 15.0) -> None:
        """Until approved. ``Gone`` with the state as message when it will not be, ``TimeoutError`` otherwise."""
        await self._act(agreement_id, "wait", {"timeout": timeout_s}, timeout_s=timeout_s + _SPARE_S)

    async def cancel(self, agreement_id: str, reason: wire.Reason | None = None) -> None:
        """Take an unapproved agreement back."""
        await self._act(agreement_id, "cancel", body=reason)

    async def approve(self, agreement_id: str, *, app_session_id: str | None = None, timeout_s: float = 10.0) -> None:
        """Sign as provider and tell the requestor. ``Gone`` when it was cancelled or has expired."""
        params = {"appSessionId": app_session_id, "timeout": timeout_s}
        await self._act(agreement_id, "approve", params, timeout_s=timeout_s + _SPARE_S)

    async def reject_agreement(self, agreement_id: str, reason: wire.Reason | None = None) -> None:
        """Refuse as provider."""
        await self._act(agreement_id, "reject", body=reason)

    async def terminate(self, agreement_id: str, reason: wire.Reason | None = None) -> None:
        """End an approved agreement, as either side. Takes effect here at once, also when the other node is away."""
        await self._act(agreement_id, "terminate", body=reason)

    async def agreement(self, agreement_id: str) -> wire.Agreement:
        """One agreement."""
        return await self._http.call("GET", f"{_ROOT}/agreements/{agreement_id}", into=wire.Agreement)

    async def list_agreements(
        self,
        *,
        state: wire.AgreementState | None = None,
        after: datetime | None = None,
        before: datetime | None = None,
        app_session_id: str | None = None,
    ) -> list[wire.AgreementEntry]:
        """Own agreements, both roles, oldest first."""
        params = {
            "state": state,
            "afterDate": _time(after),
            "beforeDate": _time(before),
            "appSessionId": app_session_id,
        }
        return await self._http.call("GET", f"{_ROOT}/agreements", params=params, into=list[wire.AgreementEntry])

    async def agreement_events(
        self,
        *,
        after: datetime | None = None,
        timeout_s: float = 5.0,
        max_events: int = 20,
        app_session_id: str | None = None,
    ) -> list[wire.AgreementOperationEvent]:
        """What happened to agreements after ``after`` (exclusive). Not consumed: pass the last ``event_date`` on."""
        params = {"afterTimestamp": _time(after), "maxEvents": max_events, "appSessionId": app_session_id}
        return await self._poll("/agreementEvents", timeout_s, params, list[wire.AgreementOperationEvent])

    # scans

    async def begin_scan(self, scan: wire.NewScan) -> str:
        """Look at the market without taking part; the scan's id. ``Refused`` when the constraint does not parse."""
        return await self._post("/scan", scan)

    async def scan_offers(
        self, scan_id: str, *, timeout_s: float = 5.0, max_events: int = 20, peer_id: str | None = None
    ) -> list[wire.Offer]:
        """What a scan of type ``offer`` has found since the last call."""
        params = {"maxEvents": max_events, "peerId": peer_id}
        return await self._poll(f"/scan/{scan_id}/events", timeout_s, params, list[wire.Offer])

    async def scan_demands(
        self, scan_id: str, *, timeout_s: float = 5.0, max_events: int = 20, peer_id: str | None = None
    ) -> list[wire.Demand]:
        """What a scan of type ``demand`` has found since the last call."""
        params = {"maxEvents": max_events, "peerId": peer_id}
        return await self._poll(f"/scan/{scan_id}/events", timeout_s, params, list[wire.Demand])

    async def end_scan(self, scan_id: str) -> None:
        """Forget a scan."""
        await self._http.call("DELETE", f"{_ROOT}/scan/{scan_id}")

    async def watch_offers(self, scan_id: str) -> AsyncIterator[wire.Offer]:
        """All offers of a scan, then new ones as they come, without end."""
        async for event, _, data in self._http.events(f"{_ROOT}/scan/{scan_id}/events"):
            if event == "offer":
                yield msgspec.json.decode(data, type=wire.Offer)

    # common

    async def _post(self, path: str, body: Wire) -> str:
        return await self._http.call("POST", _ROOT + path, json=body, into=str)

    async def _act(
        self,
        agreement_id: str,
        verb: str,
        params: Mapping[str, object] | None = None,
        *,
        body: wire.Reason | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        path = f"{_ROOT}/agreements/{agreement_id}/{verb}"
        await self._http.call("POST", path, params=params, json=body, timeout_s=timeout_s)

    async def _poll(self, path: str, timeout_s: float, params: Mapping[str, object], into: type[_T]) -> _T:
        query = {"timeout": timeout_s, **params}
        return await self._http.call("GET", _ROOT + path, params=query, timeout_s=timeout_s + _SPARE_S, into=into)


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
