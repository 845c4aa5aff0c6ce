"""Talking to a network and holding every answer against what is expected of it; and the usual ways to a deal."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.api.answers import Answer
from tests.api.differences import DIFFERENCES
from tests.api.networks import PLATFORM, Network, Side
from tests.api.shapes import (
    AGREEMENT_EVENT,
    AGREEMENT_ID,
    ANY,
    CODE,
    EMPTY,
    FOLLOWING,
    P_PROPOSAL,
    PROPOSAL,
    R_PROPOSAL,
    SUBSCRIPTION_ID,
    TEXT,
    misfit,
    proposal_event,
)

MARKET, ACTIVITY, PAYMENT = "/market-api/v1", "/activity-api/v1", "/payment-api/v1"
ZERO_SUBSCRIPTION = f"{'0' * 32}-{'0' * 64}"
ZERO_AGREEMENT = "0" * 64
ZERO_UUID = "00000000-0000-0000-0000-000000000000"
ZERO_32 = "0" * 32
NO_CONTENT_TYPE = {"Content-Type": "text/plain"}
TERMS = {
    "golem.runtime.name": "vm",
    "golem.com.scheme": "payu",
    "golem.com.pricing.model": "linear",
    "golem.com.pricing.model.linear.coeffs": [0.0, 0.0, 1.0],
    "golem.com.usage.vector": ["golem.usage.duration_sec", "golem.usage.cpu_sec"],
}
"""One token for starting, nothing for staying: any sum of these tests is within the price."""

_PROBLEM = {
    "type": TEXT,
    "detail": TEXT,
    "requestBody": dict,
    "instance?": TEXT,
    "address?": TEXT,
    "paymentPlatform?": (None, str),
    "parseError?": TEXT,
    "requestedPaymentPlatform?": ANY,
    "requestedTimeout?": TEXT,
    "requestedFunds?": TEXT,
    "availableFunds?": TEXT,
    "reservedFunds?": TEXT,
}
_OURS = {"message": TEXT, "code": CODE, "hint?": TEXT, "details?": dict}


def moment(in_s: float = 0.0) -> str:
    """A time as programs write it."""
    return (datetime.now(UTC) + timedelta(seconds=in_s)).isoformat().replace("+00:00", "Z")


@dataclass
class Talks:
    """A negotiation as far as it got."""

    mark: str
    offer: str = ""
    demand: str = ""
    initial: str = ""
    """Provider's offer as the requestor sees it."""
    counter: str = ""
    counter_p: str = ""
    """The requestor's counter as the provider sees it."""
    final_p: str = ""
    final: str = ""
    """The provider's counter as the requestor sees it: what an agreement is made of."""
    agreement: str = ""
    activity: str = ""

    @property
    def demand_at(self) -> str:
        return f"{MARKET}/demands/{self.demand}"

    @property
    def offer_at(self) -> str:
        return f"{MARKET}/offers/{self.offer}"

    @property
    def agreement_at(self) -> str:
        return f"{MARKET}/agreements/{self.agreement}"


class Conversation:
    """What is wrong is collected, so that one run shows all of it."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.wrong: list[str] = []
        self._sides = {"R": network.requestor, "P": network.provider, "S": network.stranger}

    def side(self, who: str) -> Side:
        """``R`` requestor, ``P`` provider, ``S`` a stranger at the requestor's node."""
        return self._sides[who]

    async def __call__(
        self,
        who: str,
        method: str,
        path: str,
        body: Any = ...,
        *,
        gives: int | str,
        shape: Any = ANY,
        headers: Mapping[str, str] | None = None,
        auth: bool = True,
    ) -> Any:
        """One call; its JSON, or ``None``. ``gives``: a status, or the name of a difference that has one for each."""
        side = self.side(who)
        answer = await self.network.ask(side, method, path, body, headers=dict(headers or {}), auth=auth)
        status = gives if isinstance(gives, int) else DIFFERENCES[gives].status(self.network.kind)
        if said := self._fault(answer, status, shape):
            sent = "" if body is ... else f" {body!r:.120}"
            self.wrong.append(f"[{who}] {method} {path}{sent}: {said}; it was {answer}")
        return answer.json if answer.body and answer.content_type.endswith("json") else None

    async def until(self, who: str, path: str, holds: Callable[[Answer], bool], within_s: float = 30.0) -> Answer:
        """Look again and again, until the answer is as wanted: for what nobody is told of."""
        async with asyncio.timeout(within_s):
            while True:
                answer = await self.network.ask(self.side(who), "GET", path)
                if holds(answer):
                    return answer
                await asyncio.sleep(0.02)

    def either(self, name: str, ours: Any, original: Any) -> Any:
        """What is expected where the listed difference ``name`` is not one of statuses."""
        assert DIFFERENCES[name].statuses is None
        return ours if self.network.kind == "ours" else original

    def _fault(self, answer: Answer, status: int, shape: Any) -> str:
        if answer.status != status:
            return f"status {answer.status} instead of {status}"
        if status >= 400:
            return self._fault_of_refusal(answer)
        if status == 204 or shape is EMPTY:
            return "" if not answer.body else "there is a body"
        if answer.content_type != "application/json":
            return f"content type {answer.content_type!r}"
        return misfit(shape, answer.json)

    def _fault_of_refusal(self, answer: Answer) -> str:
        ours = self.network.kind == "ours"
        if answer.status == 401:
            return "" if answer.content_type == "text/plain" else "a 401 in other words than the API's"
        if answer.content_type == "application/problem+json":
            return misfit(_PROBLEM | _OURS if ours else {**_PROBLEM, "internalError?": TEXT}, answer.json)
        if ours:
            if answer.content_type != "application/json":
                return f"content type {answer.content_type!r}"
            return misfit(_OURS, answer.json)
        # The difference "errors-in-json": JSON, or plain text, or nothing
        if answer.content_type == "application/json":
            return misfit({"message": (None, str)}, answer.json)
        return "" if answer.content_type in ("text/plain", "") else f"content type {answer.content_type!r}"

    # --- the usual ways ---

    async def subscribe(self, talks: Talks, *, offered: Mapping[str, Any] | None = None) -> Talks:
        """An offer and a demand that are made for each other."""
        address = f"golem.com.payment.platform.{PLATFORM}.address"
        offer = {**TERMS, "mark": talks.mark, address: self.side("P").node_id, **(offered or {})}
        demand = {
            "golem.srv.comp.expiration": int((time.time() + 3600) * 1000),
            "golem.com.payment.chosen-platform": PLATFORM,
            address: self.side("R").node_id,
        }
        talks.offer = await self("P", "POST", f"{MARKET}/offers", _body(offer), gives=201, shape=SUBSCRIPTION_ID)
        talks.demand = await self(
            "R", "POST", f"{MARKET}/demands", _body(demand, f"(mark={talks.mark})"), gives=201, shape=SUBSCRIPTION_ID
        )
        self.offered, self.wanted = _body(offer), _body(demand, f"(mark={talks.mark})")
        return talks

    async def meet(self) -> Talks:
        """Up to the initial proposal."""
        talks = await self.subscribe(Talks(secrets.token_hex(8)))
        await self.find(talks)
        return talks

    async def find(self, talks: Talks) -> dict[str, Any]:
        """The demand's next event, an initial proposal."""
        event = await self.event("R", talks, proposal_event(PROPOSAL))
        talks.initial = event["proposal"]["proposalId"]
        return event["proposal"]

    async def event(self, who: str, talks: Talks, shape: Any) -> Any:
        """The one event that is waiting, or comes."""
        at = talks.demand_at if who == "R" else talks.offer_at
        events = await self(who, "GET", f"{at}/events?timeout=20&maxEvents=10", gives=200, shape=[shape])
        assert len(events) == 1, events
        return events[0]

    async def counter(self, talks: Talks) -> Talks:
        """Up to the requestor's counter, seen by the provider."""
        talks.counter = await self(
            "R", "POST", f"{talks.demand_at}/proposals/{talks.initial}", self.wanted, gives=200, shape=R_PROPOSAL
        )
        event = await self.event("P", talks, proposal_event(FOLLOWING))
        talks.counter_p = event["proposal"]["proposalId"]
        return talks

    async def negotiate(self) -> Talks:
        """Up to the provider's counter."""
        talks = await self.counter(await self.meet())
        talks.final_p = await self(
            "P", "POST", f"{talks.offer_at}/proposals/{talks.counter_p}", self.offered, gives=200, shape=P_PROPOSAL
        )
        event = await self.event("R", talks, proposal_event(FOLLOWING))
        talks.final = event["proposal"]["proposalId"]
        return talks

    async def draft(self, valid_s: float = 3600) -> Talks:
        """Up to an agreement that is not sent."""
        talks = await self.negotiate()
        asked = {"proposalId": talks.final, "validTo": moment(valid_s)}
        talks.agreement = await self("R", "POST", f"{MARKET}/agreements", asked, gives=200, shape=AGREEMENT_ID)
        return talks

    async def propose(self, session: str = "", valid_s: float = 3600) -> Talks:
        """Up to an agreement that the provider has before it."""
        talks = await self.draft(valid_s)
        query = f"?appSessionId={session}" if session else ""
        await self("R", "POST", f"{talks.agreement_at}/confirm{query}", gives=204)
        await self.event("P", talks, AGREEMENT_EVENT)
        return talks

    async def agree(self, session: str = "") -> Talks:
        """Up to an approved agreement; both sides with the session, the provider's with ``p`` in front."""
        talks = await self.propose(session)
        query = f"&appSessionId=p{session}" if session else ""
        await self("P", "POST", f"{talks.agreement_at}/approve?timeout=20{query}", gives=204)
        await self("R", "POST", f"{talks.agreement_at}/wait?timeout=20", gives=204)
        return talks

    async def clear(self) -> None:
        """Withdraw what is published."""
        for who, noun in (("R", "demands"), ("P", "offers")):
            for one in (await self.network.ask(self.side(who), "GET", f"{MARKET}/{noun}")).json:
                await self.network.ask(self.side(who), "DELETE", f"{MARKET}/{noun}/{one[noun[:-1] + 'Id']}")


def _body(properties: Mapping[str, Any], constraints: str = "()") -> dict[str, Any]:
    return {"properties": dict(properties), "constraints": constraints}
