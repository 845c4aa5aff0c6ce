"""The requestor's side of Shem: rent machines, run tasks on them, pay for what was used.

A :class:`Golem` is one session with one node: it sets the budget aside, and on the way out it gives back every machine, sees
the last bills and waits for the payments. It speaks the Golem REST API only, so it works with any node of the network.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from shem.client.activity import ActivityApi
from shem.client.files import FilesApi
from shem.client.http import ApiClient, NodeUnreachable
from shem.client.market import MarketApi
from shem.client.payment import PaymentApi
from shem.cogs.places import local_app_key
from shem.cogs.tasks import TaskScope
from shem.errors import Misconfigured, PeerFailed, Refused, ShemError
from shem.sdk import events
from shem.sdk.bookkeeping import Bookkeeper
from shem.sdk.demand import demand_constraints, demand_properties
from shem.sdk.events import Event, Listener
from shem.sdk.hiring import Hired, Hiring
from shem.sdk.images import publish_image
from shem.sdk.mapping import Mapping, Outcome
from shem.sdk.rental import Rental, failure_code
from shem.sdk.report import Report
from shem.sdk.transfer import Courier
from shem.sdk.types import CommandFailed, Need, SetupFunction, TaskFunction
from shem.terms.amounts import format_amount, parse_amount
from shem.wire.payment import Decorations, NewAllocation

if TYPE_CHECKING:
    from shem.sdk.progress import ProgressDisplay
    from shem.sdk.sync import Golem as SyncGolem

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

DEFAULT_API_URL = "http://127.0.0.1:7465"
NODE_PATIENCE_S = 60.0
"""How long a call waits for our own node to come back (it refuses connections while it restarts)."""
INVOICE_WAIT_S = 30.0
SETTLE_WAIT_S = 60.0
LIFETIME_S = 2 * 3600.0
"""An agreement ends by itself after this; a longer job goes on with a new one."""
CREATE_TRIES = 4
MAX_DEPLOY_FAILURES = 3
"""An image that fails to start at so many providers, and nowhere works, is taken to be what is wrong."""


class Golem:
    """A session. Use it as ``with Golem(…) as golem`` or ``async with Golem(…) as golem``.

    ``budget``: the most that is ever spent, as a decimal string of tokens: work stops while what was done can still be
    paid. ``platform``: which payment platform
    (``erc20-polygon-glm`` …; default: the node's first). ``api_url`` and ``app_key`` default to ``YAGNA_API_URL`` and
    ``YAGNA_APPKEY``, and else to this user's own node. ``max_hourly``: offers whose fully used hour costs more are passed
    over. ``progress``: draw a live
    picture on stderr (default: when it is a terminal). ``listener`` gets every :data:`~shem.sdk.events.Event`.
    """

    def __init__(
        self,
        *,
        budget: str = "1",
        platform: str | None = None,
        api_url: str | None = None,
        app_key: str | None = None,
        subnet: str | None = None,
        max_hourly: str | None = None,
        progress: bool | None = None,
        listener: Listener | None = None,
    ) -> None:
        self._budget = parse_amount(budget)
        self._platform = platform
        self._api_url = api_url or os.environ.get("YAGNA_API_URL") or DEFAULT_API_URL
        self._app_key = app_key or local_app_key()
        self._subnet = subnet or os.environ.get("YAGNA_SUBNET") or "public"
        self._max_hourly = None if max_hourly is None else parse_amount(max_hourly)
        self._session_id = uuid.uuid4().hex
        self._report = Report()
        self._listeners: list[Listener] = [self._report]
        if listener is not None:
            self._listeners.append(listener)
        self._display: ProgressDisplay | None = None
        if progress is None:
            progress = sys.stderr.isatty() or os.environ.get("SHEM_PROGRESS") == "always"
        if progress:
            # drawing brings rich along, which a program without a terminal should not wait for
            from shem.sdk.progress import ProgressDisplay

            self._display = ProgressDisplay(self._report)
            self._listeners.append(self._display)
        self._stack = AsyncExitStack()
        self._left: dict[str, str] = {}
        self._rentals = 0
        self._open_rentals: set[str] = set()
        self._scope = TaskScope("session")
        self._worked = False
        self._sync: SyncGolem | None = None

    # -- coming and going

    async def __aenter__(self) -> Golem:
        if not self._app_key:
            raise Misconfigured(
                "there is no app key",
                code="no_app_key",
                hint="start a node (shem node run) or a devnet (shem devnet run), or set YAGNA_APPKEY",
            )
        try:
            self._http = await self._stack.enter_async_context(ApiClient(self._api_url, self._app_key))
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def _open(self) -> None:
        me = await self._http.call("GET", "/me", timeout_s=10)
        self._http.patience_s = NODE_PATIENCE_S  # a node that was never there is not waited for
        self._node_id = str(me["identity"])
        self._market = MarketApi(self._http)
        self._activities = ActivityApi(self._http)
        self._payment = PaymentApi(self._http)
        account = await self._account()
        self._report.token = account.token
        self._chosen = account.platform
        allocation = await self._payment.create_allocation(
            NewAllocation(
                total_amount=format_amount(self._budget),
                make_deposit=False,
                payment_platform=account.platform,
                address=account.address,
            )
        )
        self._allocation_id = allocation.allocation_id
        self._stack.push_async_callback(self._release)
        self._decorations: Decorations = await self._payment.demand_decorations([allocation.allocation_id])
        self._books = await self._stack.enter_async_context(
            Bookkeeper(
                self._payment,
                allocation_id=allocation.allocation_id,
                budget=self._budget,
                session_id=self._session_id,
                emit=self._emit,
                leave=self._leave,
            )
        )
        await self._stack.enter_async_context(self._scope)
        self._books.broke.add_done_callback(self._on_broke)
        self._courier = await self._stack.enter_async_context(Courier(FilesApi(self._http), self._node_id))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            late = await self._books.wait_invoices(INVOICE_WAIT_S)
            if late:
                log.warning("%d agreements have sent no final bill; the node goes on accepting none", len(late))
            unpaid = await self._books.wait_settled(SETTLE_WAIT_S)
            if unpaid:
                log.warning("%d payments are not final yet; the node goes on with them", len(unpaid))
        finally:
            self._report.finish()
            await self._stack.aclose()
            if self._display is not None:
                self._display.close()
            if path := os.environ.get("SHEM_REPORT"):
                Path(path).write_text(json.dumps(self._report.as_dict()))

    def __enter__(self) -> SyncGolem:
        from shem.sdk.sync import Golem as SyncGolem

        self._sync = SyncGolem.open(self)
        return self._sync

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sync is not None:
            self._sync.close(kind, error, trace)

    async def _account(self) -> Any:
        accounts = [a for a in await self._payment.requestor_accounts() if a.send]
        chosen = [a for a in accounts if self._platform in (None, a.platform)]
        if not chosen:
            known = ", ".join(a.platform for a in accounts) or "none"
            raise Refused(
                f"the node cannot pay on {self._platform or 'any platform'} (it has: {known})",
                code="no_platform",
                hint="configure the network on the node, or choose one of those with platform=",
            )
        return chosen[0]

    async def _release(self) -> None:
        try:
            await self._payment.release_allocation(self._allocation_id)
        except ShemError as error:
            log.info("the allocation was not released: %s", error)

    # -- what users call

    @property
    def report(self) -> Report:
        """What was done and what it cost, so far."""
        return self._report

    @property
    def node_id(self) -> str:
        """Our own node's id."""
        return self._node_id

    async def map(
        self,
        task: TaskFunction[T, R],
        items: Iterable[T] | AsyncIterable[T],
        *,
        image: str | Path,
        workers: int = 4,
        timeout: float = 300.0,
        retries: int = 2,
        ordered: bool = False,
        setup: SetupFunction | None = None,
        need: Need | None = None,
        hire_timeout: float = 60.0,
    ) -> AsyncIterator[R]:
        """Run ``task(machine, item)`` for every item on up to ``workers`` machines; yield results as they come.

        ``image``: a docker image: a reference (``python:3.12``), or the path of an OCI layout or ``docker save`` tar.
        ``timeout``: seconds that one attempt may take. ``retries``: a failed task is tried so many times more, at
        another provider where there is one. ``ordered``: yield in the order of the items. ``setup(machine)`` runs once
        on each new machine. ``hire_timeout``: seconds to find a machine in.

        Items are drawn as needed (an endless generator will do), results are kept until you take them. Leaving the loop
        early gives the machines back. Raises the last error of a task that failed for good (``CommandFailed``,
        ``TaskFailed`` or the task's own), ``NoProviders``, ``BudgetExceeded``.
        """
        if workers < 1:
            raise Refused("workers must be at least 1", code="bad_workers")
        need = need or Need()
        async with self._hiring(image, need) as hiring:

            @asynccontextmanager
            async def machine() -> AsyncIterator[Rental]:
                async with self._rented(hiring, need, hire_timeout, setup) as rental:
                    yield rental

            run: Mapping[T, R] = Mapping(
                task,
                items,
                open_rental=machine,
                leave=self._leave,
                emit=self._emit,
                workers=workers,
                timeout_s=timeout,
                retries=retries,
                ordered=ordered,
                broke=self._books.broke,
            )
            outcomes = run.results()
            try:
                async for outcome in outcomes:
                    yield _result(outcome)
            finally:
                await outcomes.aclose()  # type: ignore[attr-defined]

    @asynccontextmanager
    async def rent(
        self,
        image: str | Path,
        *,
        setup: SetupFunction | None = None,
        need: Need | None = None,
        hire_timeout: float = 60.0,
    ) -> AsyncIterator[Rental]:
        """One machine, for as long as the block lasts. Raises ``NoProviders``."""
        need = need or Need()
        async with self._hiring(image, need) as hiring, self._rented(hiring, need, hire_timeout, setup) as rental:
            try:
                yield rental
            except ShemError as error:
                broke = self._books.broke
                if broke.done() and (reason := broke.exception()) is not None:
                    raise reason from error
                raise

    async def run(
        self,
        image: str | Path,
        command: Sequence[str],
        *,
        inputs: dict[str, str] | None = None,
        outputs: dict[str, str] | None = None,
        timeout: float = 300.0,
        need: Need | None = None,
        retries: int = 2,
    ) -> Any:
        """Run one command on one machine: upload ``inputs`` (local → remote), run, download ``outputs`` (remote → local).

        Returns a :class:`~shem.sdk.types.Result`; what exits with an error is tried again elsewhere and then raised.
        """

        async def once(machine: Rental, argv: Sequence[str]) -> Any:
            for local, remote in (inputs or {}).items():
                await machine.upload(local, remote)
            result = await machine.run(*argv, timeout=timeout)
            for remote, local in (outputs or {}).items():
                await machine.download(remote, local)
            return result

        for path in inputs or {}:
            if not Path(path).exists():
                raise Refused(f"{path} does not exist", code="input_missing", hint="check the path")
        results = self.map(once, [command], image=image, workers=1, timeout=timeout + 60, need=need, retries=retries)
        async for result in results:
            return result
        raise AssertionError("one item gives one result")

    # -- machines

    @asynccontextmanager
    async def _hiring(self, image: str | Path, need: Need) -> AsyncIterator[Hiring]:
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
            )
            return properties, constraints

        hiring = Hiring(
            self._market,
            demand=demand,
            platform=self._chosen,
            session_id=self._session_id,
            threads=need.cpu_threads,
            max_hourly=self._max_hourly,
            left=self._left,
            emit=self._emit,
        )
        async with hiring:
            yield hiring

    @asynccontextmanager
    async def _rented(
        self, hiring: Hiring, need: Need, hire_timeout_s: float, setup: SetupFunction | None
    ) -> AsyncIterator[Rental]:
        hired, rental = await self._ready_machine(hiring, need, hire_timeout_s, setup)
        reason = "Success"
        try:
            yield rental
        except BaseException as error:
            reason = "Cancelled" if isinstance(error, asyncio.CancelledError | GeneratorExit) else "Failed"
            raise
        finally:
            await self._give_back(hiring, hired, rental, reason)

    async def _ready_machine(
        self, hiring: Hiring, need: Need, hire_timeout_s: float, setup: SetupFunction | None
    ) -> tuple[Hired, Rental]:
        """Hire until a machine has the image running and ``setup`` done."""
        failures = 0
        while True:
            hired = await hiring.hire(hire_timeout_s)
            rental: Rental | None = None
            try:
                self._books.open(hired, need.cpu_threads)
                rental = await self._start(hired)
                if setup is not None:
                    await setup(rental)
                self._worked = True
                return hired, rental
            except BaseException as error:
                await self._give_back(hiring, hired, rental, "Failed")
                if not isinstance(error, CommandFailed | PeerFailed | TimeoutError):
                    raise
                failures += 1
                code = error.code if isinstance(error, ShemError) else "timeout"
                self._leave(hired.provider_id, hired.name, code, str(error))
                if failures >= MAX_DEPLOY_FAILURES or (not self._worked and self._hopeless(hiring, code)):
                    raise

    def _hopeless(self, hiring: Hiring, code: str) -> bool:
        """Everybody we know of failed in the same way: more of the same will not help."""
        return hiring.known_providers <= {p for p, why in self._left.items() if why == code}

    async def _start(self, hired: Hired) -> Rental:
        agreement_id = hired.agreement.agreement_id
        activity_id = await self._create_activity(agreement_id)
        self._rentals += 1
        rental = Rental(
            self._rentals,
            hired.provider_id,
            hired.name,
            agreement_id,
            activity_id,
            activities=self._activities,
            courier=self._courier,
            emit=self._emit,
        )
        self._emit(events.RentalProgress(rental.number, hired.name, "starting the image"))
        try:
            results = await rental.execute(
                [{"deploy": {"progress": {"updateInterval": "300ms"}}}, {"start": {}}], check=False
            )
            failed = results[-1]
            if failed.exit_code:
                code = failure_code(failed)
                raise CommandFailed(
                    f"{hired.name} could not start the image: {failed.message}",
                    failed,
                    code="start_failed" if code == "nonzero_exit" else code,
                )
        except BaseException:
            await self._end_activity(activity_id)
            raise
        self._open_rentals.add(activity_id)
        self._emit(events.RentalStarted(rental.number, hired.provider_id, hired.name, agreement_id))
        return rental

    async def _create_activity(self, agreement_id: str) -> str:
        """The provider may see the approval a moment after we do (its node lost our answer and asks again)."""
        for attempt in range(CREATE_TRIES):
            try:
                return await self._activities.create(agreement_id, timeout_s=60)
            except Refused as error:
                if error.code != "agreement_not_approved" or attempt == CREATE_TRIES - 1:
                    raise
                await asyncio.sleep(0.3 * (attempt + 1))
        raise AssertionError("the last try returns or raises")

    async def _give_back(self, hiring: Hiring, hired: Hired, rental: Rental | None, code: str) -> None:
        """End the activity and the agreement. Finishes even when we are being cancelled."""
        agreement_id = hired.agreement.agreement_id

        async def end() -> None:
            heard = rental is None or await self._end_activity(rental.activity_id)
            self._books.close_account(agreement_id, lost=not heard)
            try:
                await self._market.terminate(
                    agreement_id, {"message": "work done" if code == "Success" else code, "golem.requestor.code": code}
                )
            except (ShemError, TimeoutError) as error:
                log.info("agreement %s had ended before: %s", agreement_id[:8], error)

        hiring.give_back(hired)
        await _finish(end())
        if rental is not None:
            self._emit(events.RentalEnded(rental.number, hired.provider_id, agreement_id, "given back"))

    async def _end_activity(self, activity_id: str) -> bool:
        """Whether the provider was there to hear it."""
        self._open_rentals.discard(activity_id)
        try:
            await self._activities.destroy(activity_id, timeout_s=5)
        except (PeerFailed, TimeoutError) as error:
            log.info("activity %s did not end by the book: %s", activity_id[:8], error)
            return False
        except ShemError as error:
            log.info("activity %s had ended before: %s", activity_id[:8], error)
        return True

    def _on_broke(self, broke: asyncio.Future[None]) -> None:
        """The budget is used up: machines must not run on, whatever their users are doing."""
        if not broke.cancelled():
            for activity_id in list(self._open_rentals):
                self._scope.start(self._end_activity(activity_id), f"end {activity_id[:8]}")

    # -- events

    def _leave(self, provider_id: str, name: str, code: str, reason: str) -> None:
        if code == NodeUnreachable.default_code:
            return  # our own node was away: not the provider's fault
        if provider_id not in self._left:
            self._left[provider_id] = code
            self._emit(events.ProviderLeft(provider_id, name, code, reason))

    def _emit(self, event: Event) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # a listener of the user's must not stop the work it listens to
                log.exception("a listener failed on %s", type(event).__name__)


def _result(outcome: Outcome[R]) -> R:
    if outcome.error is not None:
        raise outcome.error
    return outcome.result  # type: ignore[return-value]


async def _finish(work: Any) -> None:
    """Await ``work`` to its end although we are cancelled; the cancellation goes on afterwards."""
    task = asyncio.get_running_loop().create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
