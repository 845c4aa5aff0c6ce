"""The provider's side of the market: keeps offers published, answers proposals, takes or refuses agreements.

Each offer has a loop that reads its events; each event is answered by a task of its own, so a slow requestor delays
nobody else. The offer is published again when the node has forgotten it (a restart, its time is up) and when capacity
returns after somebody was turned away for lack of it: that gives everybody a fresh proposal.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from shem.client.market import MarketApi
from shem.cogs.clock import Clock
from shem.cogs.tasks import TaskScope
from shem.errors import Conflict, Gone, NotFound, PeerFailed, Refused, ShemError
from shem.provider.capacity import Capacity, Resources
from shem.provider.config import Rules
from shem.provider.negotiators import Rejection, Request, negotiate, review
from shem.provider.offering import Offer, build_constraints, is_ours
from shem.wire.market import Agreement, AgreementEvent, OfferEvent, Proposal, ProposalEvent, ProposalRejectedEvent

log = logging.getLogger(__name__)

T = TypeVar("T")

POLL_S = 30.0
MAX_ANSWERING = 64
"""Events being answered at once, per offer; more wait at the node."""
_RETRY_S = 0.5
_LAST_RETRY_S = 10.0
_HOLD_S = 2.0
"""How long an answer may wait for the capacity of an agreement that is ending just now."""
_APPROVE_S = 10.0
_DRAFT_S = 3.0
"""A requestor that takes our counter does so within this; until then its offer stays."""
_RENEW_WITHIN_S = 10.0
_NO_CAPACITY = "no_capacity"


class ShopRules(msgspec.Struct, frozen=True):
    """What answers depend on beside the demand."""

    rules: Rules
    subnet: str
    session: str
    default_registry: str = ""


class Shop:
    """All offers of one agent."""

    def __init__(
        self,
        offers: list[Offer],
        market: MarketApi,
        capacity: Capacity,
        clock: Clock,
        rules: ShopRules,
        *,
        on_pending: Callable[[Agreement, Resources], None],
        on_approved: Callable[[str], None],
        on_lost: Callable[[str], None],
        ending: Callable[[], bool],
        overdue: Callable[[str], str] = lambda requestor_id: "",
    ) -> None:
        """``on_pending`` is told of an agreement before it is approved, then either ``on_approved`` or ``on_lost``.

        ``ending`` says whether some agreement is giving its capacity back right now, ``overdue`` what a requestor owes.
        """
        self._offers = offers
        self._market = market
        self._capacity = capacity
        self._clock = clock
        self._rules = rules
        self._on_pending = on_pending
        self._on_approved = on_approved
        self._on_lost = on_lost
        self._ending = ending
        self._overdue = overdue
        self._scope = TaskScope("shop")
        self._published: dict[str, str] = {}
        self._publishing = asyncio.Lock()
        self._all_published = asyncio.Event()
        self._room = asyncio.Event()
        self._turned_away = False
        self._drafts: dict[str, deque[float]] = {}
        """Requestor → when it got a counter that it has not taken yet."""
        self._open = False

    @property
    def published(self) -> dict[str, str]:
        """Name of the offer → its id on the market."""
        return dict(self._published)

    async def open(self) -> None:
        """Publish everything; returns once all offers are on the market."""
        self._open = True
        for offer in self._offers:
            self._scope.start(self._serve(offer), offer.name)
        await self._all_published.wait()

    async def close(self) -> None:
        """Withdraw everything and answer nobody any more."""
        self._open = False
        await self._scope.close()
        for offer_id in list(self._published.values()):
            await self._withdraw(offer_id)
        self._published.clear()

    def room_again(self) -> None:
        """Capacity came back."""
        self._room.set()
        if self._turned_away and self._open:
            self._turned_away = False
            self._scope.start(self._renew(), "renew")

    # offers

    async def _serve(self, offer: Offer) -> None:
        while True:
            offer_id = await self._publish(offer)
            try:
                await self._answer_events(offer, offer_id)
            except (NotFound, Gone):
                log.info("offer %s is no longer on the market: publishing it again", offer.name)

    async def _publish(self, offer: Offer) -> str:
        async def subscribe() -> str:
            await self._withdraw_strays()
            constraints = build_constraints(self._rules.subnet, self._clock.now())
            return await self._market.subscribe_offer(offer.properties, constraints)

        async with self._publishing:  # one at a time: an offer that is not entered yet looks like a stray
            offer_id = await self._patiently(offer, subscribe)
            self._published[offer.name] = offer_id
        if len(self._published) == len(self._offers):
            self._all_published.set()
        log.info("offer %s is published as %s", offer.name, offer_id)
        return offer_id

    async def _answer_events(self, offer: Offer, offer_id: str) -> None:
        """Until the subscription is gone (``NotFound``) or was taken back. It outlives a restart of the node."""

        async def collect() -> list[OfferEvent]:
            return await self._market.collect_offer_events(offer_id, timeout_s=POLL_S, max_events=20)

        answering = asyncio.Semaphore(MAX_ANSWERING)
        while self._published.get(offer.name) == offer_id:
            for event in await self._patiently(offer, collect):
                await answering.acquire()
                self._scope.start(self._answer(offer, offer_id, event, answering), "answer")

    async def _patiently(self, offer: Offer, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask until the node answers: it may be away for a restart."""
        pause = _RETRY_S
        while True:
            try:
                return await ask()
            except (PeerFailed, TimeoutError) as error:
                log.warning("offer %s: %s", offer.name, error)
            await self._clock.sleep(pause)
            pause = min(_LAST_RETRY_S, pause * 2)

    async def _renew(self) -> None:
        """Take every offer back; its loop publishes it anew. Not from under somebody who has just been given a counter."""
        began = self._clock.monotonic()
        while (pause := min(self._draft_until(), began + _RENEW_WITHIN_S) - self._clock.monotonic()) > 0:
            await self._clock.sleep(pause)
        if len(self._capacity.held) >= self._capacity.plan.slots:
            self._turned_away = True  # taken meanwhile; when it comes back, everybody is told
            return
        taken_back, self._published = list(self._published.values()), {}
        for offer_id in taken_back:
            await self._withdraw(offer_id)

    def _draft_until(self) -> float:
        """When the youngest counter that was not taken is no longer fresh."""
        return max((given[-1] + _DRAFT_S for given in self._drafts.values()), default=0.0)

    def _note_draft(self, requestor_id: str) -> None:
        now = self._clock.monotonic()
        self._drafts = {who: given for who, given in self._drafts.items() if given[-1] + _DRAFT_S > now}
        self._drafts.setdefault(requestor_id, deque(maxlen=MAX_ANSWERING)).append(now)

    def _take_draft(self, requestor_id: str) -> None:
        given = self._drafts.get(requestor_id)
        if given:
            given.popleft()
            if not given:
                del self._drafts[requestor_id]

    async def _withdraw_strays(self) -> None:
        """Offers that were published although the answer was lost: nobody would read their events."""
        for found in await self._market.offers():
            if is_ours(found.properties) and found.offer_id not in self._published.values():
                await self._withdraw(found.offer_id)

    async def _withdraw(self, offer_id: str) -> None:
        try:
            await self._market.unsubscribe_offer(offer_id)
        except (ShemError, TimeoutError) as error:
            log.info("offer %s: %s", offer_id, error)

    # answers

    async def _answer(self, offer: Offer, offer_id: str, event: OfferEvent, answering: asyncio.Semaphore) -> None:
        try:
            match event:
                case ProposalEvent():
                    await self._answer_proposal(offer, offer_id, event.proposal)
                case AgreementEvent():
                    await self._answer_agreement(offer, event.agreement)
                case ProposalRejectedEvent():
                    reason = (event.reason or {}).get("message", "no reason given")
                    log.info("a requestor rejected our proposal: %s", str(reason)[:500])
                case _:
                    log.debug("an event nobody sends: %r", event)
        except (NotFound, Gone, Conflict) as error:
            log.info("an answer came too late: %s", error)
        except (PeerFailed, TimeoutError) as error:
            log.warning("an answer did not arrive: %s", error)
        except Refused as error:
            log.warning("an answer was refused: %s", error)
        finally:
            answering.release()

    async def _answer_proposal(self, offer: Offer, offer_id: str, proposal: Proposal) -> None:
        request = self._request(offer, proposal.issuer_id, proposal.properties, proposal.constraints)
        answer = negotiate(request)
        if isinstance(answer, Rejection) and answer.code == _NO_CAPACITY and await self._wait_for_room():
            answer = negotiate(request)
        if isinstance(answer, Rejection):
            log.info("proposal of %s refused: %s (%s)", proposal.issuer_id, answer.message, answer.code)
            self._turned_away = self._turned_away or answer.code == _NO_CAPACITY
            await self._market.reject_offer_proposal(offer_id, proposal.proposal_id, answer.as_reason())
            return
        constraints = build_constraints(self._rules.subnet, self._clock.now())
        self._note_draft(proposal.issuer_id)
        await self._market.counter_as_provider(offer_id, proposal.proposal_id, answer.properties, constraints)

    async def _wait_for_room(self) -> bool:
        """Whether an agreement that is ending right now has given its capacity back."""
        if not self._ending():
            return False
        self._room.clear()
        try:
            async with asyncio.timeout(_HOLD_S):
                await self._room.wait()
        except TimeoutError:
            return False
        return True

    async def _answer_agreement(self, offer: Offer, agreement: Agreement) -> None:
        self._take_draft(agreement.demand.requestor_id)
        demand = agreement.demand
        request = self._request(offer, demand.requestor_id, demand.properties, demand.constraints)
        answer = review(request, agreement.offer.properties)
        if isinstance(answer, Rejection) and answer.code == _NO_CAPACITY and await self._wait_for_room():
            answer = review(request, agreement.offer.properties)
        if isinstance(answer, Rejection) or not self._capacity.reserve(agreement.agreement_id, answer.resources):
            if not isinstance(answer, Rejection):
                answer = Rejection(_NO_CAPACITY, "all that is for rent here is in use; try again later", False)
            self._turned_away = self._turned_away or answer.code == _NO_CAPACITY
            log.info("agreement %s refused: %s (%s)", agreement.agreement_id, answer.message, answer.code)
            await self._market.reject_agreement(agreement.agreement_id, answer.as_reason())
            return
        approved = False
        try:
            self._on_pending(agreement, answer.resources)
            approved = await self._approve(agreement.agreement_id)
        finally:
            if approved:
                self._on_approved(agreement.agreement_id)
            else:
                self._on_lost(agreement.agreement_id)

    async def _approve(self, agreement_id: str) -> bool:
        """Whether the agreement came about. An answer that was lost is looked up: it may have been a yes."""
        while True:
            try:
                await self._market.approve(agreement_id, app_session_id=self._rules.session, timeout_s=_APPROVE_S)
                return True
            except (PeerFailed, TimeoutError, Conflict, Gone) as error:
                log.info("agreement %s: %s", agreement_id, error)
            try:
                state = (await self._market.agreement(agreement_id)).state
                if state != "Pending":
                    return state == "Approved"
            except (PeerFailed, TimeoutError) as error:
                log.warning("agreement %s: %s", agreement_id, error)
            await self._clock.sleep(_RETRY_S)

    def _request(self, offer: Offer, requestor_id: str, demand: dict[str, object], constraints: str) -> Request:
        return Request(
            offer=offer.properties,
            demand=demand,
            demand_constraints=constraints,
            capacity=self._capacity,
            rules=self._rules.rules,
            now=self._clock.now(),
            default_registry=self._rules.default_registry,
            lot=offer.lot,
            smaller=offer.smaller,
            overdue=self._overdue(requestor_id),
        )
