"""From offers to approved agreements, for one kind of need.

A demand is published; matching offers come back as initial proposals. Whoever calls :meth:`Hiring.hire` gets the best
proposal nobody is negotiating, counters it, and makes an agreement of the provider's answer; several may hire at once.
A proposal serves for one negotiation, so when more machines are wanted than proposals are left (a provider can serve
several agreements), the demand is published once more.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any

from shem.client.http import NodeUnreachable
from shem.client.market import MarketApi
from shem.cogs.tasks import TaskScope, finish
from shem.errors import NotFound, PeerFailed, Refused, ShemError
from shem.sdk import events
from shem.sdk.endings import AgreementEnded, Endings
from shem.sdk.plain import plain
from shem.terms.constraints import parse
from shem.terms.pricing import LinearPricing
from shem.wire.market import (
    Agreement,
    NewScan,
    Proposal,
    ProposalEvent,
    ProposalRejectedEvent,
)

log = logging.getLogger(__name__)

COUNTER_TIMEOUT_S = 5.0
"""A provider answers a counter within this, or another is asked."""
APPROVE_TIMEOUT_S = 15.0
RENEW_FIRST_S = 0.3
RENEW_MOST_S = 10.0
MAX_DEMANDS = 16
"""Demands of one need that live at once; the oldest goes first."""
MAX_CANDIDATES = 10_000
MAX_NAME = 60
"""Characters of what a provider calls itself that are kept."""
MAX_REASON = 500
FORGIVE_S = 20.0
"""A provider that was asked in vain is asked after all others for so long."""
NEWCOMER_S = 3.0
"""When all have said no for good, somebody new is waited for so long."""
IS_FINAL = "golem.proposal.rejection.is-final"
_CODE = re.compile(r"[a-z][a-z0-9_]{0,60}")


class NoProviders(PeerFailed):
    """Nobody could be rented in time. ``details`` say how many offers there are and what keeps them from matching."""

    default_code = "no_providers"


class ProposalRejected(Refused):
    """A provider said no. ``final``: it will say so again to the same demand."""

    default_code = "proposal_rejected"

    def __init__(self, message: str, *, code: str = "", final: bool = False) -> None:
        super().__init__(message, code=code)
        self.final = final


class RefusedByAll(Refused):
    """Every provider there is has said no for good: the demand itself must change. The code is the last one's."""

    default_code = "refused_by_all"


@dataclass(frozen=True)
class Candidate:
    """An initial proposal that may become an agreement."""

    demand_id: str
    proposal_id: str
    provider_id: str
    name: str
    pricing: LinearPricing
    hourly: int
    """What an hour of full use costs, in base units."""
    order: int


@dataclass(frozen=True)
class Hired:
    """An approved agreement and what it costs."""

    agreement: Agreement
    provider_id: str
    name: str
    pricing: LinearPricing


class Hiring:
    """One need's negotiations. An async context manager."""

    def __init__(
        self,
        market: MarketApi,
        *,
        demand: Callable[[], tuple[dict[str, Any], str]],
        platform: str,
        session_id: str,
        threads: int,
        max_hourly: int | None,
        left: Mapping[str, str],
        barred: Callable[[], Collection[str]],
        endings: Endings,
        leave: Callable[[str, str, str, str], None],
        emit: Callable[[events.Event], None],
    ) -> None:
        self._market = market
        self._demand = demand
        self._platform = platform
        self._session_id = session_id
        self._threads = threads
        self._max_hourly = max_hourly
        self._left = left
        self._barred = barred
        self._endings = endings
        self._leave = leave
        self._emit = emit
        self._scope = TaskScope("hiring")
        self._candidates: list[Candidate] = []
        self._answers: dict[str, asyncio.Future[Proposal | Refused]] = {}
        self._negotiating: Counter[str] = Counter()
        self._demands: list[str] = []
        self._changed = asyncio.Event()
        self._renew_s = RENEW_FIRST_S
        self._renewing = asyncio.Lock()
        self._in_use: Counter[str] = Counter()
        self._in_vain: dict[str, float] = {}
        self._refusals: dict[str, ProposalRejected | AgreementEnded] = {}
        """Providers that said no for good, and their words."""
        self._count = 0
        self._seen: set[str] = set()
        self._last_refusal: str = ""

    async def __aenter__(self) -> Hiring:
        await self._publish()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._scope.close()
        for demand_id in self._demands:
            await self._withdraw(demand_id)

    async def hire(self, timeout_s: float, avoid: frozenset[str] = frozenset()) -> Hired:
        """An approved agreement; the providers in ``avoid`` are asked after all others.

        Raises :class:`NoProviders` when there is none after ``timeout_s``, and :class:`RefusedByAll` once there will be
        none.
        """
        loop = asyncio.get_running_loop()
        begun = loop.time()
        deadline = begun + timeout_s
        while True:
            candidate = self._pick(avoid)
            if candidate is not None:
                hired = await self._try(candidate)
                if hired is not None:
                    self._in_use[hired.provider_id] += 1
                    self._renew_s = RENEW_FIRST_S
                    return hired
                continue
            left = deadline - loop.time()
            if self._all_refused():
                since = max((self._in_vain[p] for p in self._refusals), default=begun)
                left = min(left, since + NEWCOMER_S - loop.time())
            if left <= 0:
                raise await self._explain(timeout_s)
            await self._wait_for_more(left)

    @property
    def known_providers(self) -> set[str]:
        """Everybody whose offer matched so far."""
        return set(self._seen)

    def give_back(self, hired: Hired) -> None:
        """A rental ended: its provider is as good as any other again."""
        self._in_use[hired.provider_id] -= 1

    def interrupted(self, provider_id: str) -> None:
        """Nobody is to blame that a rental came to nothing: its provider is asked again, after all others."""
        self._in_vain[provider_id] = asyncio.get_running_loop().time()

    def ended(self, provider_id: str, name: str, error: AgreementEnded) -> None:
        """A provider ended an agreement before any work was done: as good as a no for good."""
        self._refusals[provider_id] = error
        self._in_vain[provider_id] = asyncio.get_running_loop().time()
        self._last_refusal = error.message
        self._leave(provider_id, name, error.code, error.message)
        self._changed.set()  # whoever waits for more may wait for nobody now

    # -- choosing

    def _pick(self, avoid: frozenset[str]) -> Candidate | None:
        """The best: not left, least used by us, not asked in vain just now, cheapest, first come."""
        now = asyncio.get_running_loop().time()
        out = {*self._left, *self._refusals, *self._barred()}
        self._candidates = [c for c in self._candidates if c.provider_id not in out]
        best = min(
            self._candidates,
            default=None,
            key=lambda c: (
                c.provider_id in avoid,
                now - self._in_vain.get(c.provider_id, -FORGIVE_S) < FORGIVE_S,
                self._in_use[c.provider_id] + self._negotiating[c.provider_id],
                c.hourly,
                c.order,
            ),
        )
        if best is not None:
            self._candidates.remove(best)
        return best

    def _all_refused(self) -> bool:
        """Nobody we know of will ever serve: each has said no for good, or may earn no more."""
        out = {*self._refusals, *self._barred()}
        return bool(out) and self._seen <= out

    async def _wait_for_more(self, left_s: float) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(min(self._renew_s, left_s)):
                await self._changed.wait()
        except TimeoutError:
            async with self._renewing:
                # who waited for the lock while another asked anew has nothing to add
                if not self._candidates and not self._changed.is_set():
                    self._renew_s = min(self._renew_s * 2, RENEW_MOST_S)
                    await self._publish()

    # -- demands

    async def _publish(self) -> None:
        properties, constraints = self._demand()
        demand_id = await self._market.subscribe_demand(properties, constraints)
        self._demands.append(demand_id)
        self._emit(events.DemandPublished(demand_id, constraints))
        self._scope.start(self._collect(demand_id), f"demand {demand_id[:8]}")
        while len(self._demands) > MAX_DEMANDS:
            oldest = next((d for d in self._demands if not self._negotiating[d]), None)
            if oldest is None:
                break
            self._demands.remove(oldest)
            await self._withdraw(oldest)

    async def _withdraw(self, demand_id: str) -> None:
        try:
            await self._market.unsubscribe_demand(demand_id)
        except (Refused, PeerFailed):
            pass  # expired by itself, or the node is away and will see it expire

    async def _collect(self, demand_id: str) -> None:
        while True:
            try:
                found = await self._market.collect_demand_events(demand_id, timeout_s=30, max_events=100)
            except NotFound:
                if demand_id in self._demands:
                    self._demands.remove(demand_id)
                return
            except (NodeUnreachable, TimeoutError):
                await asyncio.sleep(0.2)  # the node restarts; a refused connection returns at once
                continue
            for event in found:
                if isinstance(event, ProposalEvent):
                    self._proposed(demand_id, event.proposal)
                elif isinstance(event, ProposalRejectedEvent):
                    self._answered(event.proposal_id, _rejection(event.reason or {}))

    def _answer_to(self, counter_id: str) -> asyncio.Future[Proposal | Refused]:
        return self._answers.setdefault(counter_id, asyncio.get_running_loop().create_future())

    def _answered(self, counter_id: str, answer: Proposal | Refused) -> None:
        """Kept also when nobody waits yet: the answer may overtake the call that sent the counter."""
        while len(self._answers) > MAX_CANDIDATES:
            del self._answers[next(iter(self._answers))]
        waiting = self._answer_to(counter_id)
        if not waiting.done():
            waiting.set_result(answer)

    def _proposed(self, demand_id: str, proposal: Proposal) -> None:
        if proposal.prev_proposal_id is not None:
            self._answered(proposal.prev_proposal_id, proposal)
            return
        name = plain(proposal.properties.get("golem.node.id.name") or "", MAX_NAME) or proposal.issuer_id[:10]
        try:
            pricing = LinearPricing.from_properties(proposal.properties)
            hourly = self._hourly(pricing)
        except Refused as error:
            log.info("the offer of %s is not understood: %s", name, error)
            return
        if self._max_hourly is not None and hourly > self._max_hourly:
            self._last_refusal = "offers cost more than max_hourly allows"
            return
        if len(self._candidates) >= MAX_CANDIDATES:
            return
        self._count += 1
        self._candidates.append(
            Candidate(demand_id, proposal.proposal_id, proposal.issuer_id, name, pricing, hourly, self._count)
        )
        if proposal.issuer_id not in self._seen:
            self._seen.add(proposal.issuer_id)
            self._emit(events.ProposalSeen(proposal.issuer_id, name))
        self._changed.set()

    def _hourly(self, pricing: LinearPricing) -> int:
        """The cost of one hour with every thread busy."""
        full = {"golem.usage.duration_sec": 3600.0, "golem.usage.cpu_sec": 3600.0 * self._threads}
        return pricing.cost([full.get(counter, 0.0) for counter in pricing.usage_vector])

    # -- negotiating

    async def _try(self, candidate: Candidate) -> Hired | None:
        keys = (candidate.provider_id, candidate.demand_id)
        self._negotiating.update(keys)
        try:
            return await self._negotiate(candidate)
        except AgreementEnded as error:
            self.ended(candidate.provider_id, candidate.name, error)
            return None
        except (ShemError, TimeoutError) as error:
            reason = error.message if isinstance(error, ShemError) else "no answer in time"
            log.info("no agreement with %s: %s", candidate.name, reason)
            self._last_refusal = f"{candidate.name}: {reason}"
            self._in_vain[candidate.provider_id] = asyncio.get_running_loop().time()
            if isinstance(error, ProposalRejected) and error.final:
                self._refusals[candidate.provider_id] = error
            if isinstance(error, NodeUnreachable):
                await asyncio.sleep(0.2)
            return None
        finally:
            self._negotiating.subtract(keys)

    async def _negotiate(self, candidate: Candidate) -> Hired:
        properties, constraints = self._demand()
        properties["golem.com.payment.chosen-platform"] = self._platform
        counter_id = await self._market.counter_as_requestor(
            candidate.demand_id, candidate.proposal_id, properties, constraints
        )
        try:
            async with asyncio.timeout(COUNTER_TIMEOUT_S):
                draft = await self._answer_to(counter_id)
        finally:
            self._answers.pop(counter_id, None)
        if isinstance(draft, Refused):
            raise draft
        if _is_dearer(LinearPricing.from_properties(draft.properties), candidate.pricing):
            raise ProposalRejected("it asks for more than it offered", code="price_raised", final=True)
        valid_to = datetime.now(UTC) + timedelta(seconds=2 * APPROVE_TIMEOUT_S)
        agreement_id = await self._market.create_agreement(draft.proposal_id, valid_to)
        try:
            await self._market.confirm(agreement_id, app_session_id=self._session_id)
            await self._market.wait_agreement(agreement_id, timeout_s=APPROVE_TIMEOUT_S)
        except BaseException as error:
            await self._take_back(agreement_id)
            # approved and ended again before we could look: the node says no more than that it is over
            if isinstance(error, Refused) and (ended := await self._endings.by_provider(agreement_id, candidate.name)):
                raise ended from error
            raise
        agreement = await self._market.agreement(agreement_id)
        pricing = LinearPricing.from_properties(agreement.offer.properties)
        return Hired(agreement, candidate.provider_id, candidate.name, pricing)

    async def _take_back(self, agreement_id: str) -> None:
        """Whether it was approved meanwhile or not: nothing of ours stays rented."""
        reason = {"message": "not needed any more", "golem.requestor.code": "Cancelled"}
        for end in (self._market.cancel, self._market.terminate):
            try:
                await finish(end(agreement_id, reason))
            except (ShemError, TimeoutError) as error:
                log.debug("agreement %s: %s", agreement_id[:8], error)
            else:
                return

    # -- explaining

    async def _explain(self, waited_s: float) -> NoProviders | RefusedByAll:
        """Say what keeps offers from matching: for each part of our filter, how many offers it turns away."""
        if self._refusals and self._all_refused():
            last = list(self._refusals.values())[-1]
            message = f"all {len(self._refusals)} providers refuse: {last.message}"
            if isinstance(last, AgreementEnded):
                return NoProviders(message, code=last.code, hint=last.hint, **last.details)
            return RefusedByAll(
                message,
                code=last.code,
                hint="change what is asked for: the image, the resources, or the time",
            )
        _, constraints = self._demand()
        offers = await self._all_offers()
        if not offers:
            return NoProviders(
                f"no provider offers anything on this network (waited {waited_s:.0f} s)",
                hint="check that the node has peers (its bootstrap addresses) and that providers run",
                offers=0,
            )
        parts = {p: sum(_passes(p, o) is not True for o in offers) for p in _parts(constraints)}
        culprits = [f"{part} turns away {n} of {len(offers)}" for part, n in parts.items() if n]
        if culprits:
            message = f"of {len(offers)} offers none could be rented: " + "; ".join(culprits[:4])
        else:
            left = sorted({self._left[p] for p in self._seen if p in self._left})
            why = self._last_refusal or (f"some are left ({', '.join(left)})" if left else "they are busy")
            message = f"{len(offers)} offers match, but no provider agreed: {why}"
        return NoProviders(message, hint="ask for less, pay more, or wait", offers=len(offers), filter=parts)

    async def _all_offers(self) -> list[dict[str, Any]]:
        try:
            scan = await self._market.begin_scan(NewScan(type="offer", timeout=5))
            found = await self._market.scan_offers(scan, timeout_s=0.5, max_events=100)
            await self._market.end_scan(scan)
        except (ShemError, TimeoutError):
            return []
        return [offer.properties for offer in found]


def _is_dearer(asked: LinearPricing, offered: LinearPricing) -> bool:
    """Whether some use might cost more: its offer is what a provider was chosen for, and what ``max_hourly`` was held to."""
    before = dict(zip(offered.usage_vector, offered.coeffs, strict=True))
    raised = any(coeff > before.get(name, 0) for name, coeff in zip(asked.usage_vector, asked.coeffs, strict=True))
    return raised or asked.start > offered.start


def _rejection(reason: Mapping[str, Any]) -> ProposalRejected:
    """What a provider's words come to; they are free text, and bounded here."""
    code = reason.get("code")
    return ProposalRejected(
        plain(reason.get("message") or "no reason given", MAX_REASON),
        code=code if isinstance(code, str) and _CODE.fullmatch(code) else "",
        final=reason.get(IS_FINAL) is True,
    )


def _parts(constraints: str) -> list[str]:
    """The members of our own ``(&(…)(…))``."""
    depth, start, parts = 0, 0, []
    for place, letter in enumerate(constraints[2:-1]):
        if letter == "(":
            depth += 1
            start = place if depth == 1 else start
        elif letter == ")":
            depth -= 1
            if depth == 0:
                parts.append(constraints[2:-1][start : place + 1])
    return parts


def _passes(part: str, offer: dict[str, Any]) -> bool | None:
    return parse(part).resolve(offer)
