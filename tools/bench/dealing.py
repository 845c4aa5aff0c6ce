"""Deals between two nodes that carry out nothing: what is measured is what they bill and pay."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from shem.terms.amounts import format_amount
from tools.bench.beside import MARKET, Api

PAYMENT = "/payment-api/v1"
ACTIVITY = "/activity-api/v1"
TOKENS = "10"
"""Of the allocation."""
NOTE_UNITS = 1000
"""By so many base units each debit note grows."""
LIFE_S = 3600
_marks = itertools.count()


@dataclass(frozen=True)
class Agent:
    """A program on its node."""

    api: Api
    node_id: str


@dataclass(frozen=True)
class Deal:
    """An agreement under which activities run."""

    agreement: str
    platform: str
    allocation: str
    activities: tuple[str, ...]
    first_activity_s: float
    """From the call that approves to the first activity."""


async def make_deal(requestor: Agent, provider: Agent, platform: str, activities: int) -> Deal:
    """Allocate, agree, and start that many activities."""
    mark = f"billed-{next(_marks)}"
    body = {"totalAmount": TOKENS, "makeDeposit": False, "paymentPlatform": platform}
    allocation = (await requestor.api.call("POST", f"{PAYMENT}/allocations", body))["allocationId"]
    offer = await provider.api.call("POST", f"{MARKET}/offers", _offer(mark, platform, provider.node_id))
    wanted = _demand(mark, platform, requestor.node_id)
    demand = await requestor.api.call("POST", f"{MARKET}/demands", wanted)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(_counter(provider.api, offer, mark, platform, provider.node_id))
        proposal = await _proposal(requestor.api, demand, "Initial")
        await requestor.api.call("POST", f"{MARKET}/demands/{demand}/proposals/{proposal}", wanted)
        draft = await _proposal(requestor.api, demand, "Draft")
        valid_to = (datetime.now(UTC) + timedelta(seconds=LIFE_S)).isoformat().replace("+00:00", "Z")
        agreement = await requestor.api.call("POST", f"{MARKET}/agreements", {"proposalId": draft, "validTo": valid_to})
        await requestor.api.call("POST", f"{MARKET}/agreements/{agreement}/confirm")
        begun = time.perf_counter()
        await provider.api.call("POST", f"{MARKET}/agreements/{agreement}/approve?timeout=20")
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        hosting = group.create_task(_host(provider.api))
        made = [await _activity(requestor.api, agreement)]
        first = time.perf_counter() - begun
        made += [await _activity(requestor.api, agreement) for _ in range(activities - 1)]
        hosting.cancel()
    return Deal(agreement, platform, allocation, tuple(made), first)


async def end_deal(requestor: Agent, deal: Deal) -> None:
    """Nothing more will be billed, and nothing is set aside."""
    body = {"message": "measured"}
    await requestor.api.call("POST", f"{MARKET}/agreements/{deal.agreement}/terminate", body)
    await requestor.api.call("DELETE", f"{PAYMENT}/allocations/{deal.allocation}")


async def _counter(provider: Api, offer: str, mark: str, platform: str, node_id: str) -> None:
    while True:
        for event in await provider.call("GET", f"{MARKET}/offers/{offer}/events?timeout=20&maxEvents=5"):
            if event["eventType"] == "ProposalEvent":
                proposal = event["proposal"]["proposalId"]
                path = f"{MARKET}/offers/{offer}/proposals/{proposal}"
                await provider.call("POST", path, _offer(mark, platform, node_id))
                return


async def _proposal(requestor: Api, demand: str, state: str) -> str:
    while True:
        for event in await requestor.call("GET", f"{MARKET}/demands/{demand}/events?timeout=20&maxEvents=5"):
            if event["eventType"] == "ProposalEvent" and event["proposal"]["state"] == state:
                found: str = event["proposal"]["proposalId"]
                return found


async def _host(provider: Api) -> None:
    """Say of every activity that it is there."""
    after = "1970-01-01T00:00:00Z"
    while True:
        events = await provider.call("GET", f"{ACTIVITY}/events?timeout=20&maxEvents=10&afterTimestamp={after}")
        for event in events:
            after = event["eventDate"]
            path = f"{ACTIVITY}/activity/{event['activityId']}/state"
            await provider.call("PUT", path, {"state": ["Initialized", None]})


async def _activity(requestor: Api, agreement: str) -> str:
    body = {"agreementId": agreement}
    made: str = (await requestor.call("POST", f"{ACTIVITY}/activity?timeout=50", body))["activityId"]
    return made


def _offer(mark: str, platform: str, node_id: str) -> dict[str, Any]:
    properties = {
        "golem.inf.cpu.threads": 4,
        "golem.inf.mem.gib": 16.0,
        "golem.runtime.name": "measured",
        "golem.node.debug.subnet": mark,
        "golem.com.scheme": "payu",
        f"golem.com.payment.platform.{platform}.address": node_id,
        "golem.com.pricing.model": "linear",
        "golem.com.pricing.model.linear.coeffs": [0.001, 0.0],
        "golem.com.usage.vector": ["golem.usage.duration_sec"],
        "golem.srv.caps.multi-activity": True,
    }
    return {"properties": properties, "constraints": f"(golem.node.debug.subnet={mark})"}


def _demand(mark: str, platform: str, node_id: str) -> dict[str, Any]:
    properties = {
        "golem.srv.comp.expiration": int((time.time() + LIFE_S) * 1000),
        "golem.node.debug.subnet": mark,
        "golem.com.payment.chosen-platform": platform,
        f"golem.com.payment.platform.{platform}.address": node_id,
    }
    return {"properties": properties, "constraints": f"(golem.node.debug.subnet={mark})"}


@dataclass(frozen=True)
class Note:
    """A debit note that the requestor's node has."""

    document_id: str
    activity: str
    amount: str


class Bill:
    """The debit notes of one activity, one after another."""

    def __init__(self, activity: str) -> None:
        self.activity = activity
        self._total = 0

    async def issue(self, provider: Agent) -> Note:
        """Another note, issued and handed to the requestor's node."""
        self._total += NOTE_UNITS
        amount = format_amount(self._total)
        body = {"activityId": self.activity, "totalAmountDue": amount}
        note = (await provider.api.call("POST", f"{PAYMENT}/debitNotes", body))["debitNoteId"]
        await provider.api.call("POST", f"{PAYMENT}/debitNotes/{note}/send?timeout=30")
        return Note(note, self.activity, amount)
