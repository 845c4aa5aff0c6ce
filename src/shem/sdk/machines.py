"""Renting: from a need to a machine with the image running, and back.

Everything that is rented is known here, so that a session can give all of it back, whatever its user still holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from shem.client.activity import ActivityApi
from shem.client.http import NodeUnreachable
from shem.client.market import MarketApi
from shem.cogs.tasks import TaskScope, finish
from shem.errors import PeerFailed, Refused, ShemError
from shem.sdk import events
from shem.sdk.bookkeeping import BILL_TOO_HIGH, Bookkeeper
from shem.sdk.demand import demand_constraints, demand_properties
from shem.sdk.endings import AgreementEnded, Endings, told
from shem.sdk.events import Event
from shem.sdk.hiring import Hired, Hiring, NoProviders, RefusedByAll
from shem.sdk.images import publish_image
from shem.sdk.purse import ProviderSpent, Purse
from shem.sdk.rental import LOST, Rental, failure_code
from shem.sdk.transfer import Courier
from shem.sdk.types import CommandFailed, Need, SetupFunction
from shem.wire.payment import Decorations

log = logging.getLogger(__name__)

LIFETIME_S = 2 * 3600.0
"""An agreement ends by itself after this; a longer job goes on with a new one."""
CREATE_TRIES = 4
COVER_WAITS = 60
"""A provider answers that no money is reserved for it yet after half a minute or so; it ends the agreement itself when it has
waited long enough for its chain."""
NOT_APPROVED = "agreement_not_approved"
MAX_DEPLOY_FAILURES = 3
"""An image that fails to start at so many providers, and nowhere works, is taken to be what is wrong."""
MAX_ENDED = 5
"""So many providers may end their agreements before a machine is ready: what they say of us is then taken to be so."""
DESTROY_S = 5.0
INTERRUPTED = "image_unreachable"
"""A provider lost the connection to our node while it fetched the image: one of the two was restarted, mostly."""
MAX_INTERRUPTIONS = 3
"""So often a provider may, before it is left."""


@dataclass(frozen=True)
class Wish:
    """What somebody wants machines for."""

    need: Need
    hire_timeout_s: float
    setup: SetupFunction | None
    purse: Purse | None


@dataclass(eq=False)
class Machine:
    """A rented machine, until it is given back."""

    hiring: Hiring
    hired: Hired
    rental: Rental | None = None
    activity_id: str = ""
    taken: bool = field(default=False)
    """We end it ourselves, whatever its user does."""
    ended: bool = field(default=False)
    """Its provider ended the agreement before it was ready."""
    given_back: bool = field(default=False)


class Machines:
    """All machines of a session."""

    def __init__(
        self,
        *,
        market: MarketApi,
        activities: ActivityApi,
        courier: Courier,
        books: Bookkeeper,
        decorations: Decorations,
        platform: str,
        subnet: str,
        session_id: str,
        node_id: str,
        max_hourly: int | None,
        left: dict[str, str],
        leave: Callable[[str, str, str, str], None],
        emit: Callable[[Event], None],
    ) -> None:
        self._market = market
        self._endings = Endings(market, session_id)
        self._activities = activities
        self._courier = courier
        self._books = books
        self._decorations = decorations
        self._platform = platform
        self._subnet = subnet
        self._session_id = session_id
        self._node_id = node_id
        self._max_hourly = max_hourly
        self._left = left
        self._leave = leave
        self._emit = emit
        self._open: set[Machine] = set()
        self._count = 0
        self._worked = False
        self._interrupted: Counter[str] = Counter()
        self._scope = TaskScope("machines")

    async def close(self) -> None:
        """Give back whatever is still rented."""
        for machine in list(self._open):
            await self._give_back(machine, "Cancelled")
        await self._scope.close()

    def end_all(self, purse: Purse, provider_id: str = "") -> None:
        """The money of this purse (for this provider) is used up: machines must not run on, whatever their users do."""
        for machine in list(self._open):
            theirs = provider_id in ("", machine.hired.provider_id)
            if machine.activity_id and theirs and purse.holds(machine.hired.agreement.agreement_id):
                machine.taken = True
                self._scope.start(self._end_activity(machine), f"end {machine.activity_id[:8]}")

    @asynccontextmanager
    async def hiring(self, image: str | Path, need: Need, purse: Purse | None = None) -> AsyncIterator[Hiring]:
        """Publish the image and look for providers (that the purse allows) as long as the block lasts."""
        published = await publish_image(image, self._courier)
        constraints = demand_constraints(need, subnet=self._subnet, decorations=self._decorations)

        def demand() -> tuple[dict[str, Any], str]:
            properties = demand_properties(
                published.package,
                need,
                subnet=self._subnet,
                name=f"requestor-{self._node_id[2:8]}",
                expires=datetime.now(UTC) + timedelta(seconds=LIFETIME_S),
                decorations=self._decorations,
                by_channel=self._books.by_channel,
            )
            return properties, constraints

        async with Hiring(
            self._market,
            demand=demand,
            platform=self._platform,
            session_id=self._session_id,
            threads=need.cpu_threads,
            max_hourly=self._max_hourly,
            left=self._left,
            barred=lambda: self._books.spent_providers(purse),
            endings=self._endings,
            leave=self._leave,
            emit=self._emit,
        ) as hiring:
            yield hiring

    @asynccontextmanager
    async def rented(self, hiring: Hiring, wish: Wish, avoid: frozenset[str] = frozenset()) -> AsyncIterator[Rental]:
        """One machine with the image running and ``setup`` done, preferably not of the providers in ``avoid``."""
        machine = await self._ready(hiring, wish, avoid)
        reason = "Success"
        try:
            assert machine.rental is not None
            yield machine.rental
        except BaseException as error:
            reason = "Cancelled" if isinstance(error, asyncio.CancelledError | GeneratorExit) else "Failed"
            raise
        finally:
            await self._give_back(machine, reason)

    async def _ready(self, hiring: Hiring, wish: Wish, avoid: frozenset[str]) -> Machine:
        """Hire until a machine is ready. Raises what the last one failed with when trying on will not help."""
        failures = ended = 0
        while True:
            machine = Machine(hiring, await self._hire(hiring, wish, avoid))
            self._open.add(machine)
            try:
                self._books.open(machine.hired, wish.need.cpu_threads, wish.purse)
                machine.rental = await self._start(machine)
                if wish.setup is not None:
                    await wish.setup(machine.rental)
                self._worked = True
                return machine
            except BaseException as error:
                machine.ended = isinstance(error, AgreementEnded)
                await self._give_back(machine, "Failed")
                if not isinstance(error, (CommandFailed, TimeoutError, ProviderSpent, *LOST)):
                    raise
                if machine.hired.provider_id in self._books.spent_providers(wish.purse):
                    continue  # it may earn no more, which is not its fault
                if isinstance(error, AgreementEnded):
                    ended += 1
                    hiring.ended(machine.hired.provider_id, machine.hired.name, error)
                    if ended >= MAX_ENDED:
                        raise
                    continue
                code = error.code if isinstance(error, ShemError) else "timeout"
                if code == INTERRUPTED and self._interrupted[machine.hired.provider_id] < MAX_INTERRUPTIONS:
                    self._interrupted[machine.hired.provider_id] += 1
                    hiring.interrupted(machine.hired.provider_id)
                    continue
                failures += 1
                self._leave(machine.hired.provider_id, machine.hired.name, code, str(error))
                if failures >= MAX_DEPLOY_FAILURES or (not self._worked and self._hopeless(hiring, code)):
                    raise

    async def _hire(self, hiring: Hiring, wish: Wish, avoid: frozenset[str]) -> Hired:
        try:
            return await hiring.hire(wish.hire_timeout_s, avoid)
        except (NoProviders, RefusedByAll) as error:
            spent = self._books.all_spent(wish.purse, f"no other provider could be rented ({error.message})")
            if spent is None:
                raise
            raise spent from error

    def _hopeless(self, hiring: Hiring, code: str) -> bool:
        """Everybody we know of failed in the same way: more of the same will not help."""
        return hiring.known_providers <= {p for p, why in self._left.items() if why == code}

    async def _start(self, machine: Machine) -> Rental:
        hired = machine.hired
        agreement_id = hired.agreement.agreement_id
        self._count += 1
        number = self._count
        machine.activity_id = await self._create_activity(number, hired)
        self._books.started(agreement_id)
        rental = Rental(
            number,
            hired.provider_id,
            hired.name,
            agreement_id,
            machine.activity_id,
            activities=self._activities,
            courier=self._courier,
            emit=self._emit,
            why_ended=lambda wait_s: self._why_ended(machine, wait_s),
        )
        self._emit(events.RentalProgress(rental.number, hired.name, "starting the image"))
        deploy = {"deploy": {"progress": {"updateInterval": "300ms"}}}
        failed = (await rental.execute([deploy, {"start": {}}], check=False))[-1]
        if failed.exit_code:
            code = failure_code(failed)
            raise CommandFailed(
                f"{hired.name} could not start the image: {failed.message}",
                failed,
                code="start_failed" if code == "nonzero_exit" else code,
            )
        self._emit(events.RentalStarted(rental.number, hired.provider_id, hired.name, agreement_id))
        return rental

    async def _create_activity(self, number: int, hired: Hired) -> str:
        """The provider may see the approval a moment after we do (its node lost our answer and asks again); where it is
        paid by channel it also waits, for the time that its chain takes, until money that was reserved is final.
        Raises :class:`~shem.sdk.endings.AgreementEnded` when the provider has ended the agreement meanwhile."""
        refusals = waits = 0
        agreement_id = hired.agreement.agreement_id
        while True:
            try:
                return await self._activities.create(agreement_id, timeout_s=60)
            except (Refused, PeerFailed) as error:
                if error.code == "no_cover" and waits < COVER_WAITS:
                    waits += 1
                    self._emit(events.RentalProgress(number, hired.name, "waiting until its money is reserved"))
                    continue
                if error.code != NOT_APPROVED:
                    raise
                refusals += 1
                event = await self._endings.find(agreement_id, 0.3 * refusals)
                if event is not None:
                    ended = told(event, hired.name)
                    if ended is None:
                        raise  # we ended it: nobody else is to blame
                    raise ended from error
                if refusals >= CREATE_TRIES:
                    why = f"{hired.name} does not keep to its approval: {error.message}"
                    raise PeerFailed(why, code=NOT_APPROVED) from error

    async def _why_ended(self, machine: Machine, wait_s: float) -> AgreementEnded | None:
        """Set if its provider has ended a machine's agreement, and not we."""
        if machine.taken or machine.given_back:
            return None
        hired = machine.hired
        return await self._endings.by_provider(hired.agreement.agreement_id, hired.name, wait_s)

    async def _give_back(self, machine: Machine, code: str) -> None:
        """End the activity and the agreement. Finishes even when we are being cancelled; again does nothing."""
        if machine.given_back:
            return
        machine.given_back = True
        machine.hiring.give_back(machine.hired)
        try:
            await finish(self._end(machine, code))
        finally:
            self._open.discard(machine)
        if machine.rental is not None:
            hired = machine.hired
            agreement_id = hired.agreement.agreement_id
            self._emit(events.RentalEnded(machine.rental.number, hired.provider_id, agreement_id, "given back"))

    async def _end(self, machine: Machine, code: str) -> None:
        agreement_id = machine.hired.agreement.agreement_id
        # who ended it before there was an activity has nothing to bill
        heard = await self._end_activity(machine) if machine.activity_id else not machine.ended
        self._books.close_account(agreement_id, lost=not heard)
        refusal = self._books.refusal(agreement_id)
        if refusal:
            reason = {"message": refusal, "golem.requestor.code": "BillRefused"}
            if refusal.startswith(f"{BILL_TOO_HIGH}:"):
                reason["golem.requestor.code"] = "BillTooHigh"
        else:
            reason = {"message": "work done" if code == "Success" else code, "golem.requestor.code": code}
        try:
            await self._market.terminate(agreement_id, reason)
        except NodeUnreachable as error:
            log.warning("agreement %s may still run: %s", agreement_id[:8], error)
        except (ShemError, TimeoutError) as error:
            log.info("agreement %s had ended before: %s", agreement_id[:8], error)

    async def _end_activity(self, machine: Machine) -> bool:
        """Whether the provider was there to hear it."""
        try:
            await self._activities.destroy(machine.activity_id, timeout_s=DESTROY_S)
        except (PeerFailed, TimeoutError) as error:
            log.info("activity %s did not end by the book: %s", machine.activity_id[:8], error)
            return False
        except ShemError as error:
            log.info("activity %s had ended before: %s", machine.activity_id[:8], error)
        return True
