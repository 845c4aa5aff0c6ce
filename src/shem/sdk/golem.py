"""The requestor's side of Shem: rent machines, run tasks on them, pay for what was used.

A :class:`Golem` is one session with one node: it sets the budget aside, and on the way out it gives back every machine, sees
the last bills and waits for the payments. It speaks the Golem REST API only, so it works with any node of the network.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import uuid
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from shem.client.activity import ActivityApi
from shem.client.files import FilesApi
from shem.client.http import ApiClient, NodeUnreachable
from shem.client.market import MarketApi
from shem.client.payment import PaymentApi
from shem.cogs.places import local_app_key
from shem.errors import Misconfigured, Refused, ShemError
from shem.sdk import events
from shem.sdk.bookkeeping import Bookkeeper, OpenPurse
from shem.sdk.estimate import Estimate, Terms, estimate
from shem.sdk.events import Event, Listener
from shem.sdk.machines import Machines, Wish
from shem.sdk.mapping import Mapping, OpenRental, Outcome
from shem.sdk.prices import Prices
from shem.sdk.rental import NODE_PATIENCE_S, Rental
from shem.sdk.report import Report
from shem.sdk.transfer import Courier
from shem.sdk.types import Need, SetupFunction, TaskFunction
from shem.terms.amounts import format_amount
from shem.terms.budgets import Budget, Limits, Price, parse_sum
from shem.wire.payment import Account, NewAllocation

if TYPE_CHECKING:
    from shem.sdk.progress import ProgressDisplay
    from shem.sdk.sync import Golem as SyncGolem

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

DEFAULT_API_URL = "http://127.0.0.1:7465"
INVOICE_WAIT_S = 30.0
SETTLE_WAIT_S = 60.0
CHANNEL_DRIVER = "channel"


class Golem:
    """A session. Use it as ``with Golem(…) as golem`` or ``async with Golem(…) as golem``.

    ``budget``: the most that is ever spent, such as ``"5 GLM"``, ``"5"`` (of the token that the session pays in) or
    ``"2.50 USD"``: work stops while what was done can still be paid. ``budget_per_hour``: the most that any sixty minutes
    may cost. ``budget_per_provider``: the most that one provider may earn; the work goes on at others. What is written in
    USD is turned into tokens when the session begins, at the price that :mod:`shem.sdk.prices` finds.

    ``platform``: which payment platform (``erc20-polygon-glm``, ``channel-devnet-tglm`` …; default: by channel on the node's
    first network where that has a vault, else the node's first). ``api_url`` and ``app_key``
    default to ``YAGNA_API_URL`` and ``YAGNA_APPKEY``, and else to this user's own node. ``max_hourly``: offers whose fully
    used hour costs more are passed over. ``progress``: draw a live picture on stderr (default: when it is a terminal, or
    ``SHEM_PROGRESS=always``). ``listener`` gets every :data:`~shem.sdk.events.Event`.
    """

    def __init__(
        self,
        *,
        budget: str = "1",
        budget_per_hour: str | None = None,
        budget_per_provider: str | None = None,
        platform: str | None = None,
        api_url: str | None = None,
        app_key: str | None = None,
        subnet: str | None = None,
        max_hourly: str | None = None,
        progress: bool | None = None,
        listener: Listener | None = None,
    ) -> None:
        parse_sum(budget)  # a map may have no budget of its own (None); a session without one would set nothing aside
        self._budget = Budget.parse(budget, budget_per_hour, budget_per_provider)
        self._platform = platform
        self._api_url = api_url or os.environ.get("YAGNA_API_URL") or DEFAULT_API_URL
        self._app_key = app_key or local_app_key()
        self._subnet = subnet or os.environ.get("YAGNA_SUBNET") or "public"
        self._max_hourly = Budget.parse(max_hourly)
        self._prices = Prices()
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
        self._maps: weakref.WeakSet[AsyncGenerator[Any, None]] = weakref.WeakSet()
        self._sync: SyncGolem | None = None
        self._released = False

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
        self._payment = PaymentApi(self._http)
        account = await sending_account(self._payment, self._platform)
        self._report.token = self._token = account.token
        limits = await self._limits(self._budget, "session")
        max_hourly = (await self._to_tokens(self._max_hourly))[0].total
        self._terms = Terms(self._subnet, account.platform, account.token, limits.total, max_hourly)
        allocation = await self._payment.create_allocation(
            NewAllocation(
                total_amount=format_amount(limits.total or 0),
                make_deposit=False,
                payment_platform=account.platform,
                address=account.address,
            )
        )
        self._allocation_id = allocation.allocation_id
        self._stack.push_async_callback(self._release)
        decorations = await self._payment.demand_decorations([allocation.allocation_id])
        self._books = await self._stack.enter_async_context(
            Bookkeeper(
                self._payment,
                allocation_id=allocation.allocation_id,
                limits=limits,
                session_id=self._session_id,
                platform=account.platform,
                emit=self._emit,
                leave=self._leave,
            )
        )
        self._courier = await self._stack.enter_async_context(Courier(FilesApi(self._http), self._node_id))
        self._machines = Machines(
            market=MarketApi(self._http),
            activities=ActivityApi(self._http),
            courier=self._courier,
            books=self._books,
            decorations=decorations,
            platform=account.platform,
            subnet=self._subnet,
            session_id=self._session_id,
            node_id=self._node_id,
            max_hourly=max_hourly,
            left=self._left,
            leave=self._leave,
            emit=self._emit,
        )
        self._books.on_used_up(self._machines.end_all)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._stop_work()
            late = await self._books.wait_invoices(INVOICE_WAIT_S)
            if late:
                log.warning("%d agreements have sent no final bill; the node goes on accepting none", len(late))
            else:
                await self._release()  # so that channels are closed at once
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

    async def _stop_work(self) -> None:
        """What the user still holds (a map that was left in the middle, a machine) is given back all the same."""
        for running in list(self._maps):
            try:
                await running.aclose()
            except RuntimeError as error:
                # its own task is in it, and ends it: we are that task's clean-up, or it is cancelled with us
                log.debug("a map is being left already: %s", error)
        await self._machines.close()

    def __enter__(self) -> SyncGolem:
        from shem.sdk.sync import Golem as SyncGolem

        self._sync = SyncGolem.open(self)
        return self._sync

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sync is not None:
            self._sync.close(kind, error, trace)

    async def _limits(self, budget: Budget, of: str) -> Limits:
        """The limits in base units of the session's token; told to whom it concerns."""
        limits, price = await self._to_tokens(budget)
        if price is not None:
            log.info("the %s's budget is taken at %s", of, price)
        self._emit(events.BudgetSet(of, self._token, budget, limits, price))
        return limits

    async def _to_tokens(self, budget: Budget) -> tuple[Limits, Price | None]:
        price = await self._prices.price(self._token) if budget.in_usd else None
        return budget.limits(self._token, price), price

    async def _release(self) -> None:
        if self._released:
            return
        self._released = True
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

    def map(
        self,
        task: TaskFunction[T, R],
        items: Iterable[T] | AsyncIterable[T],
        *,
        image: str | Path,
        workers: int = 4,
        budget: str | None = None,
        budget_per_hour: str | None = None,
        budget_per_provider: str | None = None,
        timeout: float = 300.0,
        retries: int = 2,
        ordered: bool = False,
        setup: SetupFunction | None = None,
        need: Need | None = None,
        hire_timeout: float = 60.0,
    ) -> AsyncIterator[R]:
        """Run ``task(machine, item)`` for every item on up to ``workers`` machines; yield results as they come.

        ``image``: a docker image: a reference (``python:3.12``), or the path of an OCI layout or ``docker save`` tar.
        ``budget``, ``budget_per_hour``, ``budget_per_provider``: the most that this map may spend, written as for the
        session, whose own limits hold all the same. ``timeout``: seconds that one attempt may take. ``retries``: a failed
        task is tried so many times more, at another provider where there is one. ``ordered``: yield in the order of the
        items. ``setup(machine)`` runs once on each new machine.
        ``hire_timeout``: seconds to find a machine in.

        Items are drawn as needed (an endless generator will do), results are kept until you take them. Leaving the loop
        early gives the machines back; so does leaving the session. Raises the last error of a task that failed for good
        (``CommandFailed``, ``TaskFailed`` or the task's own), what ``setup`` raises, ``NoProviders``, ``BudgetExceeded``.
        """
        if workers < 1:
            raise Refused("workers must be at least 1", code="bad_workers")
        limits = Budget.parse(budget, budget_per_hour, budget_per_provider)

        def prepare(machine: OpenRental, purse: OpenPurse | None) -> Mapping[T, R]:
            return Mapping(
                task,
                items,
                open_rental=machine,
                leave=self._leave_from(purse),
                emit=self._emit,
                workers=workers,
                timeout_s=timeout,
                retries=retries,
                ordered=ordered,
                broke=[self._books.broke, *([purse.broke] if purse else [])],
            )

        running = self._map(image, Wish(need or Need(), hire_timeout, setup, None), limits, prepare)
        self._maps.add(running)
        return running

    async def _map(
        self,
        image: str | Path,
        wish: Wish,
        budget: Budget,
        prepare: Callable[[OpenRental, OpenPurse | None], Mapping[Any, R]],
    ) -> AsyncGenerator[R, None]:
        purse = None if budget.is_empty else self._books.purse(await self._limits(budget, "map"))
        wish = replace(wish, purse=purse)
        async with self._machines.hiring(image, wish.need, purse) as hiring:
            mapping = prepare(lambda avoid: self._machines.rented(hiring, wish, avoid), purse)
            async with aclosing(mapping.results()) as outcomes:
                async for outcome in outcomes:
                    yield _result(outcome)

    @asynccontextmanager
    async def rent(
        self,
        image: str | Path,
        *,
        setup: SetupFunction | None = None,
        need: Need | None = None,
        hire_timeout: float = 60.0,
    ) -> AsyncIterator[Rental]:
        """One machine, for as long as the block lasts. Raises ``NoProviders``, ``BudgetExceeded``."""
        wish = Wish(need or Need(), hire_timeout, setup, None)
        async with self._machines.hiring(image, wish.need) as hiring, self._machines.rented(hiring, wish) as rental:
            try:
                yield rental
            except ShemError as error:
                reason = self._books.ended(rental.provider_id)
                if reason is None or reason is error:
                    raise
                raise reason from error

    async def run(
        self,
        image: str | Path,
        command: Sequence[str] = (),
        *,
        inputs: Sequence[tuple[str, str]] = (),
        outputs: Sequence[tuple[str, str]] = (),
        timeout: float = 300.0,
        need: Need | None = None,
        retries: int = 2,
    ) -> Any:
        """Run one command on one machine: upload ``inputs`` (local, remote), run, download ``outputs`` (remote, local).

        Without ``command`` the image's own ENTRYPOINT and CMD run. Returns a :class:`~shem.sdk.types.Result`; what exits
        with an error is tried again elsewhere and then raised.
        """

        async def once(machine: Rental, argv: Sequence[str]) -> Any:
            for local, remote in inputs:
                await machine.upload(local, remote)
            run = machine.run if argv else machine.run_image
            result = await run(*argv, timeout=timeout)
            for remote, local in outputs:
                await machine.download(remote, local)
            return result

        for path, _ in inputs:
            if not Path(path).exists():
                raise Refused(f"{path} does not exist", code="input_missing", hint="check the path")
        results = self.map(once, [command], image=image, workers=1, timeout=timeout + 60, need=need, retries=retries)
        async with aclosing(results):  # type: ignore[type-var]
            async for result in results:
                return result
        raise AssertionError("one item gives one result")

    async def estimate(
        self, *, tasks: int = 1, seconds: float = 60.0, workers: int = 4, need: Need | None = None
    ) -> Estimate:
        """What ``tasks`` tasks of ``seconds`` each would cost at the offers now on the market. Nothing is rented.

        Fully used, without what it takes to start the image and to move files; see
        :class:`~shem.sdk.estimate.Estimate`. Raises ``NoProviders`` when nobody offers what is needed.
        """
        return await estimate(MarketApi(self._http), self._terms, need or Need(), tasks, seconds, workers)

    # -- events

    def _leave_from(self, purse: OpenPurse | None) -> Callable[[str, str, str, str], None]:
        """As :meth:`_leave`, for work on a purse: who lost a machine because it may earn no more is not to blame."""

        def leave(provider_id: str, name: str, code: str, reason: str) -> None:
            if provider_id not in self._books.spent_providers(purse):
                self._leave(provider_id, name, code, reason)

        return leave

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


async def sending_account(payment: PaymentApi, platform: str | None) -> Account:
    """What to pay from: on ``platform``, or on the node's first network, by channel where it has a vault there.

    Raises ``Refused`` (``no_platform``).
    """
    accounts = [a for a in await payment.requestor_accounts() if a.send]
    chosen = [a for a in accounts if platform in (None, a.platform)]
    if not chosen:
        known = ", ".join(a.platform for a in accounts) or "none"
        raise Refused(
            f"the node cannot pay on {platform or 'any platform'} (it has: {known})",
            code="no_platform",
            hint="configure the network on the node, or choose one of those with platform=",
        )
    first = chosen[0]
    # never another network or token than the node's own choice: only the way of paying differs
    same = [a for a in chosen if (a.network, a.token) == (first.network, first.token)]
    return next((a for a in same if a.driver == CHANNEL_DRIVER), first)


def _result(outcome: Outcome[R]) -> R:
    if outcome.error is not None:
        raise outcome.error
    return outcome.result  # type: ignore[return-value]
