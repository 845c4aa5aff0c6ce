"""What work would cost at the offers now on the market, before anything is rented.

The market is only looked at (a scan): no demand is published, nobody is asked, no money is set aside. Each offer's own price
is taken for machines that are fully used, so the bill will mostly be lower by what tasks leave idle, and higher by what it
takes to start the image and to move files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from shem.client.market import MarketApi
from shem.cogs.tasks import finish
from shem.errors import Refused
from shem.sdk.demand import demand_constraints
from shem.sdk.hiring import NoProviders
from shem.sdk.plain import plain
from shem.sdk.types import Need
from shem.terms.amounts import format_amount
from shem.terms.pricing import LinearPricing
from shem.wire.market import NewScan, Offer
from shem.wire.payment import Decorations

LOOK_S = 5.0
"""How long a market without a fitting offer is watched."""
QUIET_S = 0.5
"""Offers that a node knows come at once; after so long without one there are no more."""
MAX_OFFERS = 10_000
MAX_TASKS = 10**9
MAX_SECONDS = 366 * 24 * 3600
MAX_NAME = 40


@dataclass(frozen=True)
class Terms:
    """What of a session matters here: where it looks, how it pays, and its limits in base units."""

    subnet: str
    platform: str
    token: str
    budget: int | None = None
    max_hourly: int | None = None


@dataclass(frozen=True)
class Quote:
    """One provider's cheapest fitting offer, in base units: an hour, one task on a machine of its own, and all tasks."""

    provider_id: str
    name: str
    hourly: int
    per_task: int
    total: int


@dataclass(frozen=True)
class Estimate:
    """What the work would cost at each provider, cheapest first. ``machines`` is how many share the tasks, ``duration_s``
    what the tasks then take. ``budget`` is the session's, in base units."""

    tasks: int
    seconds: float
    machines: int
    token: str
    quotes: tuple[Quote, ...]
    budget: int | None = None

    @property
    def duration_s(self) -> float:
        """How long the tasks take on so many machines."""
        return -(-self.tasks // self.machines) * self.seconds

    @property
    def minimum(self) -> int:
        """All of it at the cheapest, in base units."""
        return self.quotes[0].total

    @property
    def median(self) -> int:
        """All of it at the provider in the middle (the cheaper of two)."""
        return self.quotes[(len(self.quotes) - 1) // 2].total

    @property
    def maximum(self) -> int:
        """All of it at the dearest."""
        return self.quotes[-1].total

    @property
    def fits_budget(self) -> bool | None:
        """Whether even the dearest fits the budget; ``None`` without one."""
        return None if self.budget is None else self.maximum <= self.budget

    def as_dict(self) -> dict[str, Any]:
        """For programs. Amounts are exact decimal strings of the token."""
        return {
            "tasks": self.tasks,
            "seconds": self.seconds,
            "machines": self.machines,
            "duration_s": self.duration_s,
            "token": self.token,
            "minimum": format_amount(self.minimum),
            "median": format_amount(self.median),
            "maximum": format_amount(self.maximum),
            "budget": None if self.budget is None else format_amount(self.budget),
            "fits_budget": self.fits_budget,
            "by_provider": [
                {
                    "provider_id": q.provider_id,
                    "name": q.name,
                    "hourly": format_amount(q.hourly),
                    "per_task": format_amount(q.per_task),
                    "total": format_amount(q.total),
                }
                for q in self.quotes
            ],
        }


async def estimate(market: MarketApi, terms: Terms, need: Need, tasks: int, seconds: float, workers: int) -> Estimate:
    """Look at the market and compute. Raises :class:`~shem.errors.Refused` (``bad_estimate``) and
    :class:`~shem.sdk.hiring.NoProviders`."""
    if not (1 <= tasks <= MAX_TASKS and 0 <= seconds <= MAX_SECONDS and workers >= 1):
        raise Refused(
            "an estimate is for at least one task, at least one worker, and a time",
            code="bad_estimate",
            hint=f"at most {MAX_TASKS} tasks, of 0 to {MAX_SECONDS} s",
        )
    # What an allocation would add to the demand; made by hand, as none is needed to look.
    pays = [f"(golem.com.payment.platform.{terms.platform}.address=*)", "(golem.com.payment.protocol.version>1)"]
    decorations = Decorations(properties=[], constraints=pays)
    constraints = demand_constraints(need, subnet=terms.subnet, decorations=decorations)
    offers = await _offers(market, constraints)
    machines = min(workers, tasks)
    quotes = quote(offers, need.cpu_threads, tasks, seconds, machines, terms.max_hourly)
    if not quotes:
        raise NoProviders(
            f"nobody on the market now offers what is needed ({len(offers)} offers fit, but for their price)",
            hint="ask for less, pay more, or wait",
            offers=len(offers),
        )
    return Estimate(tasks, seconds, machines, terms.token, tuple(quotes), terms.budget)


def quote(
    offers: Iterable[Offer], threads: int, tasks: int, seconds: float, machines: int, max_hourly: int | None
) -> list[Quote]:
    """Each provider's cheapest offer for this work, the cheapest provider first. Prices that cannot be read are left out."""
    best: dict[str, Quote] = {}
    for offer in offers:
        try:
            pricing = LinearPricing.from_properties(offer.properties)
            start, hourly = _full_use(pricing, threads, 0.0), _full_use(pricing, threads, 3600.0)
            once = _full_use(pricing, threads, seconds)
            # each machine is an activity: its start price once, and its share of the time
            total = _full_use(pricing, threads, seconds * tasks) + (machines - 1) * start
        except Refused:
            continue
        if max_hourly is not None and hourly > max_hourly:
            continue
        name = plain(str(offer.properties.get("golem.node.id.name") or offer.provider_id[:10]), MAX_NAME)
        found = Quote(offer.provider_id, name, hourly, once, total)
        held = best.get(offer.provider_id)
        if held is None or (found.total, found.hourly) < (held.total, held.hourly):
            best[offer.provider_id] = found
    return sorted(best.values(), key=lambda q: (q.total, q.hourly, q.provider_id))


def _full_use(pricing: LinearPricing, threads: int, seconds: float) -> int:
    full = {"golem.usage.duration_sec": seconds, "golem.usage.cpu_sec": seconds * threads}
    return pricing.cost([full.get(counter, 0.0) for counter in pricing.usage_vector])


async def _offers(market: MarketApi, constraints: str) -> list[Offer]:
    scan_id = await market.begin_scan(NewScan(type="offer", timeout=2 * LOOK_S, constraints=constraints))
    found: list[Offer] = []
    try:
        wait_s = LOOK_S
        while len(found) < MAX_OFFERS:
            batch = await market.scan_offers(scan_id, timeout_s=wait_s, max_events=100)
            if not batch:
                break
            found += batch
            wait_s = QUIET_S
    finally:
        await finish(market.end_scan(scan_id))
    return found
