"""One agreement from its approval to its invoice: the activities on it, the notes, and the end.

A deal ends once, for the first reason that comes: the requestor terminates it, a rule of the bill does (no activity,
expired, notes not accepted or not paid), or the agent stops. Then, in this order: the activities are destroyed (their
last results and counters are handed to the node), the agreement is terminated where we are the one who ends it, the
last notes go out, and exactly one invoice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

import msgspec

from shem.client.activity import ProviderActivityApi
from shem.client.cover import CoverApi
from shem.client.exeunit import ExeUnitLink
from shem.client.http import ApiClient
from shem.client.market import MarketApi
from shem.cogs.clock import Clock
from shem.cogs.tasks import TaskScope
from shem.errors import PeerFailed, Refused, ShemError
from shem.provider.accountant import Accountant
from shem.provider.billing import SUCCESS, Bill, Cover, DealTerms, EndAgreement, SendNote
from shem.provider.capacity import Resources
from shem.provider.exeunit.machine import Place, Tools
from shem.provider.exeunit.unit import ExeUnit, UnitPlan
from shem.provider.offering import RUNTIME_NAME, TASK_PACKAGE
from shem.provider.waiting import wait_until
from shem.runtimes.base import Limits
from shem.terms.amounts import parse_amount
from shem.wire import cover as wire
from shem.wire.market import Agreement

log = logging.getLogger(__name__)

PROVIDER_CODE = "golem.provider.code"
MAX_ACTIVITIES = 64
"""Running at once on one agreement."""
_POLL_S = 30.0
_RETRY_S = 1.0
_LAST_RETRY_S = 60.0
_FINAL_NOTE_TRIES = 100
_TMP_SHARE = 4
"""The part of its memory that a sandbox may use as ``/dev/shm``: a fourth, at most 64 MiB."""


class Desk(msgspec.Struct, frozen=True, kw_only=True):
    """What all deals of one agent share."""

    http: ApiClient
    market: MarketApi
    activities: ProviderActivityApi
    accountant: Accountant
    cover: CoverApi
    tools: Tools
    clock: Clock
    units_dir: Path


class Deal:
    """A running agreement. :meth:`run` is its whole life."""

    def __init__(
        self,
        agreement: Agreement,
        terms: DealTerms,
        resources: Resources,
        desk: Desk,
        *,
        on_ending: Callable[[], None] = lambda: None,
        on_freed: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_ending`` is called when the end has begun, ``on_freed`` once the machine is needed no more."""
        self.agreement = agreement
        self.agreement_id = agreement.agreement_id
        self._desk = desk
        self._resources = resources
        self._on_ending = on_ending
        self._on_freed = on_freed
        self._began = agreement.approved_date or desk.clock.now()
        self.bill = Bill(terms, self._began)
        self._units: dict[str, ExeUnit] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._scope = TaskScope(f"deal {self.agreement_id[:8]}")
        self._changed = asyncio.Event()
        self._end: EndAgreement | None = None
        self._ours = True

    @property
    def began(self) -> datetime:
        return self._began

    @property
    def running(self) -> list[str]:
        """The activities that have not ended."""
        return self.bill.running()

    # facts from outside

    def create(self, activity_id: str) -> None:
        """The requestor wants an activity. Repeats change nothing. Raises ``Refused`` when that cannot be."""
        if activity_id in self._tasks:
            return
        if self._end is not None:
            raise Refused("the agreement is ending", code="agreement_ending")
        if self._tasks and not self.bill.terms.multi_activity:
            raise Refused("the demand was for one activity", code="single_activity")
        if len(self.running) >= MAX_ACTIVITIES:
            raise Refused(f"{MAX_ACTIVITIES} activities run on this agreement already", code="too_many_activities")
        self.bill.activity_began(activity_id, self._desk.clock.now())
        self._tasks[activity_id] = self._scope.start(self._run_unit(activity_id), f"activity {activity_id[:8]}")
        self._changed.set()

    def destroy(self, activity_id: str) -> asyncio.Task[None] | None:
        """The requestor is done with an activity. Returns the task that ends with it."""
        unit = self._units.get(activity_id)
        if unit is not None:
            unit.stop("Destroyed")
        return self._tasks.get(activity_id)

    def ended_by_requestor(self, message: str) -> None:
        """The agreement is terminated already."""
        if self._end is None:
            self._ours = False
            self._begin_to_end(EndAgreement(code=SUCCESS, message=message))

    def stop(self, code: str, message: str) -> None:
        """End it from our side."""
        if self._end is None:
            self._begin_to_end(EndAgreement(code=code, message=message))

    def _begin_to_end(self, end: EndAgreement) -> None:
        self._end = end
        self._on_ending()
        self._changed.set()

    def note_accepted(self, note_id: str) -> None:
        """The requestor agrees to a note."""
        self.bill.note_accepted(note_id)
        self._changed.set()

    def note_paid(self, note_id: str) -> None:
        """A note's payment is final."""
        self.bill.note_paid(note_id)
        self._changed.set()

    def note_rejected(self, note_id: str, why: str) -> None:
        """The requestor disputes a note."""
        self.bill.note_rejected(note_id, why)
        self._changed.set()

    # life

    async def run(self) -> None:
        """From approval to invoice."""
        freed = False
        terms = self.bill.terms
        try:
            if terms.by_channel or terms.payment_timeout is not None:
                self._scope.start(self._watch_money(), "money")
            await self._serve()
            await self._stop_units()
            freed = True
            self._on_freed()
            await self._settle()
        finally:
            await self._scope.close()
            if not freed:
                self._on_freed()

    async def _serve(self) -> None:
        clock = self._desk.clock
        while self._end is None:
            await wait_until(clock, self._changed, self.bill.next_moment())
            for unit in self._units.values():
                unit.report_usage()
            for order in self.bill.due(clock.now()):
                match order:
                    case EndAgreement():
                        self.stop(order.code, order.message)
                    case SendNote():
                        await self._send(order)

    async def _watch_money(self) -> None:
        """Keep the bill told of what is reserved, and of how long payments take."""
        version, pause = "", _RETRY_S
        while True:
            try:
                found = await self._desk.cover.cover(self.agreement_id, after=version, timeout_s=_POLL_S)
            except (ShemError, TimeoutError) as error:
                log.info("agreement %s: its cover is not known now: %s", self.agreement_id, error)
                await self._desk.clock.sleep(pause)
                pause = min(_LAST_RETRY_S, pause * 2)
                continue
            self.bill.payments_take(found.finality_sec)
            if found.expected_until is not None:
                self.bill.covered(_cover(found, found.expected_until), self._desk.clock.now())
            self._changed.set()
            if not found.by_channel:
                return
            version, pause = found.version, _RETRY_S

    async def _send(self, order: SendNote) -> asyncio.Task[None] | None:
        """Issue a note; the task that delivers it, so that a requestor that is away delays no deadline."""
        accountant = self._desk.accountant
        try:
            note_id = await accountant.issue_note(self.bill, order)
        except (PeerFailed, TimeoutError) as error:
            log.warning("agreement %s: no debit note now: %s", self.agreement_id, error)
            await self._desk.clock.sleep(_RETRY_S)
        except Refused as error:
            log.error("agreement %s: the node refuses a debit note: %s", self.agreement_id, error)
            self.bill.note_refused(order)
        else:
            return self._scope.start(accountant.deliver_note(note_id), "note")
        return None

    async def _stop_units(self) -> None:
        assert self._end is not None
        for unit in self._units.values():
            unit.stop(self._end.code, "" if not self._ours else self._end.message)
        if running := [task for task in self._tasks.values() if not task.done()]:
            await asyncio.wait(running)

    async def _settle(self) -> None:
        end = self._end
        assert end is not None
        log.info("agreement %s ends: %s (%s)", self.agreement_id, end.message, end.code)
        if self._ours:
            pause = _RETRY_S
            while not await terminate(self._desk.market, self.agreement_id, end):
                await self._desk.clock.sleep(pause)
                pause = min(_LAST_RETRY_S, pause * 2)
        await self._send_final_notes()
        await self._desk.accountant.invoice_once(self.agreement_id, self.bill, self._began)

    async def _send_final_notes(self) -> None:
        """Until the own node has them all; returns when the requestor has them too, or after a few seconds.

        Not for ever: the invoice asks for the same sums.
        """
        sending: list[asyncio.Task[None]] = []
        for _ in range(_FINAL_NOTE_TRIES):
            if not (orders := self.bill.final_notes(self._desk.clock.now())):
                break
            notes = [await self._send(order) for order in orders]
            sending += [note for note in notes if note is not None]
        if sending:
            await asyncio.wait(sending)

    # activities

    async def _run_unit(self, activity_id: str) -> None:
        desk, used = self._desk, partial(self.bill.used, activity_id)
        plan = UnitPlan(
            activity_id=activity_id,
            place=Place(
                package=str(self.agreement.demand.properties.get(TASK_PACKAGE, "")),
                runtime=str(self.agreement.offer.properties.get(RUNTIME_NAME, "")),
                limits=limits_of(self._resources),
                directory=desk.units_dir,
            ),
            usage_vector=self.bill.terms.pricing.usage_vector,
        )
        unit = ExeUnit(plan, desk.tools, ExeUnitLink(desk.http, activity_id), desk.clock, on_usage=used)
        self._units[activity_id] = unit
        if self._end is not None:
            unit.stop(self._end.code, self._end.message)
        try:
            end = await unit.run()
            used(end.usage)
        finally:
            del self._units[activity_id]
            self.bill.activity_ended(activity_id, desk.clock.now())
            self._changed.set()


def _cover(found: wire.Cover, expected_until: datetime) -> Cover:
    return Cover(
        started=bool(found.started),
        lacks=found.lacks or "",
        expected_until=expected_until,
        accepted=parse_amount(found.accepted or "0"),
        room=parse_amount(found.room or "0"),
        credit=parse_amount(found.credit or "0"),
        until=found.until,
    )


def limits_of(resources: Resources) -> Limits:
    """What an agreement's sandboxes are held to."""
    return Limits(
        memory_bytes=resources.memory_bytes,
        cpus=resources.cpu_threads,
        pids=resources.pids,
        disk_bytes=resources.storage_bytes,
        tmp_bytes=min(64 << 20, resources.memory_bytes // _TMP_SHARE),
    )


async def terminate(market: MarketApi, agreement_id: str, end: EndAgreement) -> bool:
    """End an agreement with a reason; one that has ended already is left as it is.

    ``False`` when the own node was away: then it should be tried again.
    """
    try:
        await market.terminate(agreement_id, {"message": end.message, PROVIDER_CODE: end.code})
    except (PeerFailed, TimeoutError) as error:
        log.warning("agreement %s is not terminated yet: %s", agreement_id, error)
        return False
    except ShemError as error:
        log.info("agreement %s: %s", agreement_id, error)
    return True
