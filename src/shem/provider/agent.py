"""The provider agent: a REST client of its own node that sells this machine's time.

Composition only. The :class:`~shem.provider.shop.Shop` negotiates, a :class:`~shem.provider.deal.Deal` serves each
agreement, and three loops here bring the node's news to the right deal: activities to begin and end, agreements that
the requestor ended, and what became of our debit notes and invoices. News is read by long polls that answer at once;
none of it is consumed by reading, so an agent that reconnects to a restarted node misses nothing.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import uuid
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any

from shem.client.activity import ProviderActivityApi
from shem.client.cover import CoverApi
from shem.client.files import FilesApi
from shem.client.http import ApiClient
from shem.client.market import MarketApi
from shem.client.payment import PaymentApi
from shem.cogs.clock import Clock, SystemClock
from shem.cogs.tasks import TaskScope
from shem.errors import Refused, ShemError
from shem.provider.accountant import Accountant
from shem.provider.billing import SHUTDOWN, read_terms
from shem.provider.capacity import Capacity, Resources, plan
from shem.provider.config import ProviderConfig
from shem.provider.deal import Deal, Desk
from shem.provider.debtors import Debtors
from shem.provider.exeunit.machine import Tools
from shem.provider.exeunit.web import Web
from shem.provider.hardware import detect
from shem.provider.news import news
from shem.provider.offering import Account, Offer, Runtime, Seller, build_all, wanted_accounts
from shem.provider.recovery import LOOK_BACK, recover
from shem.provider.sandboxes import Chosen, choose_driver, choose_runtimes, open_image_store
from shem.provider.shop import Shop, ShopRules
from shem.wire.activity import ProviderEvent
from shem.wire.market import Agreement, AgreementOperationEvent, AgreementTerminatedEvent
from shem.wire.payment import DebitNoteEvent, InvoiceEvent

log = logging.getLogger(__name__)

POLL_S = 30.0
FREE_DRIVER = "free"
"""The payment driver on which only sums of zero can be billed."""
_SKEW = timedelta(minutes=5)
"""How far the node's clock may be behind ours; older news is known to be none of ours."""
_DOCUMENT_EVENTS = ("ACCEPTED", "REJECTED", "SETTLED", "CANCELLED", "FAILED")


class ProviderAgent:
    """An async context manager: inside it the machine is for rent.

    Entering returns once the offers are on the market; leaving withdraws them, ends all agreements and bills them.
    ``http`` is a client of the own node, already open.
    """

    def __init__(self, config: ProviderConfig, http: ApiClient, *, clock: Clock | None = None) -> None:
        self.config = config
        self._http = http
        self._clock = clock or SystemClock()
        self._market = MarketApi(http)
        self._activities = ProviderActivityApi(http)
        self._payment = PaymentApi(http)
        self._session = f"provider-{uuid.uuid4().hex}"
        self._scope = TaskScope("provider")
        self._resources = AsyncExitStack()
        self._deals: dict[str, Deal] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._closing: set[str] = set()
        self._ending_activities: set[asyncio.Task[None]] = set()
        self._capacity: Capacity | None = None
        self._shop: Shop | None = None
        self._desk: Desk | None = None
        self._driver_name = ""
        self._runtimes: tuple[Runtime, ...] = ()
        self._platforms: list[str] = []
        self._debtors = Debtors(config.rules.debt_grace_s)
        self.node_id = ""
        self.broken = asyncio.Event()
        """Set when one of the agent's own loops has failed (its log says why): it should be stopped and started again."""

    @property
    def deals(self) -> dict[str, Deal]:
        """Running agreements, by id."""
        return dict(self._deals)

    @property
    def facts(self) -> dict[str, Any]:
        """What a person or a test wants to know of a running agent, as plain JSON values."""
        capacity = self._capacity
        return {
            "name": self.config.node_name,
            "node_id": self.node_id,
            "driver": self._driver_name,
            "runtimes": list(self._runtimes),
            "subnet": self.config.subnet,
            "max_agreements": capacity.plan.slots if capacity else 0,
            "offers": self._shop.published if self._shop else {},
            "platforms": self._platforms,
        }

    async def __aenter__(self) -> ProviderAgent:
        try:
            await self._open()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _open(self) -> None:
        config = self.config
        config.units_dir.mkdir(parents=True, exist_ok=True)
        me = await self._http.call("GET", "/me")
        self.node_id = str(me["identity"])
        chosen = await choose_driver(config)
        self._driver_name = chosen.driver.name
        self._runtimes = await choose_runtimes(config)
        hardware = detect(config.data_dir)
        self._capacity = Capacity(plan(hardware, config.limits, config.share))
        accounts = wanted_accounts(
            [
                Account(one.platform, one.address, moves_money=one.driver != FREE_DRIVER)
                for one in await self._payment.provider_accounts()
                if one.receive
            ],
            config.platforms,
        )
        self._platforms = [account.platform for account in accounts]
        images = await self._resources.enter_async_context(open_image_store(config))
        self._desk = Desk(
            http=self._http,
            market=self._market,
            activities=self._activities,
            accountant=self._accountant(),
            cover=CoverApi(self._http),
            tools=Tools(chosen.driver, images, FilesApi(self._http), Web(config.web_private_addresses)),
            clock=self._clock,
            units_dir=config.units_dir,
        )
        since = self._clock.now() - _SKEW
        await recover(self._desk, config.rules)
        self._debtors.note(await self._desk.accountant.invoices(since - LOOK_BACK))
        self._shop = self._build_shop(self._build_offers(chosen, accounts), self._capacity)
        for name, loop in {
            "activities": self._follow_activities(since),
            "agreements": self._follow_agreements(since),
            "debit notes": self._follow_debit_notes(since),
            "invoices": self._follow_invoices(since),
        }.items():
            self._scope.start(loop, name).add_done_callback(self._loop_ended)
        await self._shop.open()

    def _accountant(self) -> Accountant:
        return Accountant(self._payment, self._clock)

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self.broken.set()

    def _build_offers(self, chosen: Chosen, accounts: list[Account]) -> list[Offer]:
        config, capacity = self.config, self._capacity
        assert capacity is not None
        seller = Seller(
            node_name=config.node_name,
            subnet=config.subnet,
            hardware=detect(config.data_dir),
            plan=capacity.plan,
            driver=chosen.driver.name,
            capabilities=chosen.capabilities,
            accounts=accounts,
            rules=config.rules,
            now=self._clock.now(),
            is_public=config.is_public,
            country_code=config.country_code,
        )
        return build_all(seller, self._runtimes, config.enabled)

    def _build_shop(self, offers: list[Offer], capacity: Capacity) -> Shop:
        config = self.config
        return Shop(
            offers,
            self._market,
            capacity,
            self._clock,
            ShopRules(config.rules, config.subnet, self._session, config.default_registry),
            on_pending=self._begin,
            on_approved=self._approved,
            on_lost=self._lost,
            ending=lambda: bool(self._closing),
            overdue=lambda requestor_id: self._debtors.overdue(requestor_id, self._clock.now()),
        )

    async def _close(self) -> None:
        if self._shop is not None:
            await self._shop.close()
        for deal in self._deals.values():
            deal.stop(SHUTDOWN, "the provider is shutting down")
        if running := list(self._running.values()):
            _, late = await asyncio.wait(running, timeout=self.config.shutdown_timeout_s)
            if late:
                log.error("%d agreements could not be billed in time; the next start does it", len(late))
        await self._scope.close()
        await self._resources.aclose()

    # agreements

    def _begin(self, agreement: Agreement, resources: Resources) -> None:
        """Before the approval, so that the first activity cannot come to an unknown agreement."""
        desk = self._desk
        assert desk is not None
        terms = read_terms(agreement.demand.properties, agreement.offer.properties, self.config.rules)
        agreement_id = agreement.agreement_id
        self._deals[agreement_id] = Deal(
            agreement,
            terms,
            resources,
            desk,
            on_ending=lambda: self._closing.add(agreement_id),
            on_freed=lambda: self._freed(agreement_id),
        )

    def _approved(self, agreement_id: str) -> None:
        deal = self._deals[agreement_id]
        log.info("agreement %s is approved", agreement_id)
        self._running[agreement_id] = self._scope.start(self._run_deal(deal), f"deal {agreement_id[:8]}")

    def _lost(self, agreement_id: str) -> None:
        self._deals.pop(agreement_id, None)
        self._freed(agreement_id)

    async def _run_deal(self, deal: Deal) -> None:
        try:
            await deal.run()
        finally:
            self._deals.pop(deal.agreement_id, None)
            self._running.pop(deal.agreement_id, None)

    def _freed(self, agreement_id: str) -> None:
        self._closing.discard(agreement_id)
        if self._capacity is not None and self._capacity.release(agreement_id) and self._shop is not None:
            self._shop.room_again()

    # news

    async def _follow_activities(self, since: datetime) -> None:
        newest = since

        async def ask(after: datetime) -> Sequence[ProviderEvent]:
            return await self._activities.events(after=after, app_session_id=self._session, timeout_s=POLL_S)

        async for events in news(self._clock, since, ask):
            for event in events:
                await self._on_activity(event)
            repeated = all(event.event_date <= newest for event in events)
            newest = max([newest, *(event.event_date for event in events)])
            if repeated and self._ending_activities:
                # a destroy is reported until it is done: wait for that instead of asking in circles
                await asyncio.wait(self._ending_activities, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)

    async def _on_activity(self, event: ProviderEvent) -> None:
        deal = self._deals.get(event.agreement_id)
        if event.event_type.create is not None:
            await self._create_activity(deal, event.activity_id)
            return
        task = deal.destroy(event.activity_id) if deal is not None else None
        if task is None:
            await self._disown(event.activity_id, "there is no such activity any more")
        elif task not in self._ending_activities:
            self._ending_activities.add(task)
            task.add_done_callback(self._ending_activities.discard)

    async def _create_activity(self, deal: Deal | None, activity_id: str) -> None:
        if deal is None:
            await self._disown(activity_id, "the agreement is not served any more")
            return
        try:
            deal.create(activity_id)
        except Refused as error:
            await self._disown(activity_id, error.message)

    async def _disown(self, activity_id: str, why: str) -> None:
        """End an activity that nobody here serves; nothing to do when it has ended."""
        try:
            if (await self._activities.state(activity_id)).state[0] != "Terminated":
                await self._activities.set_state(activity_id, "Terminated", reason="NotServed", error_message=why)
        except (ShemError, TimeoutError) as error:
            log.info("activity %s: %s", activity_id, error)

    async def _follow_agreements(self, since: datetime) -> None:
        async def ask(after: datetime) -> Sequence[AgreementOperationEvent]:
            return await self._market.agreement_events(after=after, timeout_s=POLL_S, app_session_id=self._session)

        async for events in news(self._clock, since, ask):
            for event in events:
                deal = self._deals.get(event.agreement_id)
                if deal is not None and isinstance(event, AgreementTerminatedEvent) and event.terminator == "Requestor":
                    message = str((event.reason or {}).get("message", ""))[:500]
                    deal.ended_by_requestor(message or "the requestor ended the agreement")

    async def _follow_debit_notes(self, since: datetime) -> None:
        async def ask(after: datetime) -> Sequence[DebitNoteEvent]:
            return await self._payment.debit_note_events(
                after=after, timeout_s=POLL_S, requestor_events=(), provider_events=_DOCUMENT_EVENTS
            )

        async for events in news(self._clock, since, ask):
            for event in events:
                self._on_debit_note(event)

    def _on_debit_note(self, event: DebitNoteEvent) -> None:
        note_id = event.debit_note_id
        deal = next((deal for deal in self._deals.values() if deal.bill.knows(note_id)), None)
        if deal is None:
            return
        match event.event_type:
            case "DebitNoteAcceptedEvent":
                deal.note_accepted(note_id)
            case "DebitNoteSettledEvent":
                deal.note_paid(note_id)
            case "DebitNoteRejectedEvent" | "DebitNoteFailedEvent":
                message = event.rejection.message if event.rejection else None
                deal.note_rejected(note_id, message or "the requestor's node does not take it")
            case _:
                pass

    async def _follow_invoices(self, since: datetime) -> None:
        async def ask(after: datetime) -> Sequence[InvoiceEvent]:
            return await self._payment.invoice_events(
                after=after, timeout_s=POLL_S, requestor_events=(), provider_events=_DOCUMENT_EVENTS
            )

        async for events in news(self._clock, since, ask):
            for event in events:
                _log_invoice(event)
                await self._note_debt(event)

    async def _note_debt(self, event: InvoiceEvent) -> None:
        try:
            self._debtors.note([await self._payment.invoice(event.invoice_id)])
        except (ShemError, TimeoutError) as error:
            log.info("invoice %s cannot be looked at now: %s", event.invoice_id, error)


def _log_invoice(event: InvoiceEvent) -> None:
    what = event.event_type.removeprefix("Invoice").removesuffix("Event").lower()
    why = f": {event.rejection.message or event.rejection.rejection_reason}" if event.rejection else ""
    log.info("invoice %s was %s%s", event.invoice_id, what, why)


async def _either(one: asyncio.Event, other: asyncio.Event) -> None:
    async with TaskScope("wait") as scope:
        waits = {scope.start(event.wait(), "event") for event in (one, other)}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)


async def run_provider(
    config: ProviderConfig, api_url: str, app_key: str, on_ready: Callable[[dict[str, object]], None] | None = None
) -> None:
    """Run an agent until SIGINT or SIGTERM (or until cancelled), then end and bill what runs.

    ``on_ready`` is called with :attr:`ProviderAgent.facts` once the offers are published. Raises ``Misconfigured`` when
    this machine or the node cannot sell anything, ``PeerFailed`` when the node does not answer.
    """
    logging.basicConfig(level=config.log_level, format="%(asctime)s %(levelname).1s %(name)s: %(message)s")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        async with ApiClient(api_url, app_key) as http, ProviderAgent(config, http) as agent:
            if on_ready is not None:
                on_ready(agent.facts)
            await _either(stop, agent.broken)
            if agent.broken.is_set():
                raise ShemError("the provider agent made a mistake; its log has the details", code="internal")
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
