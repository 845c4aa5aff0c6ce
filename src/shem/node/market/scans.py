"""Scans: looking at the market without taking part.

A scan of offers is an interest like a demand's, without properties unless it gives some. It first gives what is known
and then what comes, each offer once. A scan of demands sees those of this node, as demands never leave theirs. Scans live
in memory and end when nobody has read them for some minutes.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal

from shem.errors import NotAllowed, NotFound, Refused
from shem.node.market.core import Core
from shem.node.market.lifecycle import Subscription
from shem.node.market.matching import Interest, compiled
from shem.node.market.negotiation import LOOKS
from shem.node.market.offers import KnownOffer
from shem.node.market.subscriptions import Subscriptions
from shem.node.market.timers import Timers
from shem.terms.constraints import Constraint, matches, parse
from shem.terms.properties import flatten

ScanKind = Literal["offer", "demand"]
STREAM_STEP_S = 30.0


class ScanNotFound(NotFound):
    default_code = "scan_not_found"


class TooManyScans(Refused):
    default_code = "too_many_scans"


class _Scan:
    def __init__(
        self, owner: str, constraint: Constraint, properties: Mapping[str, Any] | None, kind: ScanKind, idle_s: float
    ) -> None:
        self.owner = owner
        self.constraint = constraint
        self.properties = properties
        self.kind = kind
        self.idle_s = idle_s
        self.demands: dict[str, None] = {}
        """Demands not looked at."""


class Scans:
    """All scans of this node."""

    def __init__(self, core: Core, subscriptions: Subscriptions, timers: Timers) -> None:
        self._core = core
        self._subscriptions = subscriptions
        self._timers = timers
        self._scans: dict[str, _Scan] = {}
        self._numbers = itertools.count()
        subscriptions.on_demand.append(self._demand)

    def begin(
        self,
        owner: str,
        kind: ScanKind,
        constraints: str | None,
        properties: Mapping[str, Any] | None,
        idle_s: float | None,
    ) -> str:
        """The scan's id, a decimal number. Raises ``BadConstraint``."""
        core = self._core
        if len(self._scans) >= core.config.max_scans:
            raise TooManyScans("too many scans are open", hint="delete those you do not need")
        constraint = parse(constraints if constraints is not None else "()")
        idle = core.config.scan_idle_s if idle_s is None else min(max(idle_s, 1.0), core.config.scan_idle_s)
        flat = flatten(properties) if properties else None  # Golem's clients send an empty map for none
        scan_id = str(next(self._numbers))
        scan = _Scan(owner, constraint, flat, kind, idle)
        self._scans[scan_id] = scan
        if kind == "offer":
            core.book.watch(Interest(_key(scan_id), None, constraint, flat))
        else:
            scan.demands = dict.fromkeys(d.subscription_id for d in self._subscriptions.demands())
        self._touch(scan_id)
        return scan_id

    def kind(self, owner: str, scan_id: str) -> ScanKind:
        """Raises :class:`ScanNotFound`."""
        return self._get(owner, scan_id).kind

    def end(self, owner: str, scan_id: str) -> None:
        """Raises :class:`ScanNotFound`. Readers get the same."""
        self._get(owner, scan_id)
        self._end(scan_id)

    async def collect(
        self, owner: str, scan_id: str, *, limit: int, timeout_s: float, issuer: str | None = None
    ) -> list[KnownOffer | Subscription]:
        """What was found since the last call; waits for the first find. ``issuer``: only of that node."""

        def read() -> list[KnownOffer | Subscription]:
            scan = self._get(owner, scan_id)
            if scan.kind == "demand":
                return list(self._take_demands(scan, limit, issuer))
            return list(self._take_offers(scan_id, limit, issuer))

        self._get(owner, scan_id)
        self._touch(scan_id)
        found = await self._core.pulses.wait_for(_key(scan_id), read, timeout_s)
        if scan_id in self._scans:
            self._touch(scan_id)
        return found or []

    async def stream(
        self, owner: str, scan_id: str, issuer: str | None = None
    ) -> AsyncIterator[KnownOffer | Subscription]:
        """Everything that is found, without end; ends when the scan does."""
        while scan_id in self._scans:
            step_s = min(STREAM_STEP_S, self._get(owner, scan_id).idle_s / 2)
            try:
                found = await self.collect(owner, scan_id, limit=100, timeout_s=step_s, issuer=issuer)
            except ScanNotFound:
                return
            for one in found:
                yield one

    def _take_offers(self, scan_id: str, limit: int, issuer: str | None) -> list[KnownOffer]:
        book = self._core.book
        interest = book.interest(_key(scan_id))
        if interest is None:
            return []
        before = len(interest.candidates)
        found = interest.take(book.find, limit, LOOKS, issuer)
        if not found and 0 < len(interest.candidates) < before:
            asyncio.get_running_loop().call_soon(self._core.pulses.beat, _key(scan_id))
        return [known for offer in found if (known := book.get(offer.offer_id)) is not None]

    def _take_demands(self, scan: _Scan, limit: int, issuer: str | None) -> list[Subscription]:
        found: list[Subscription] = []
        for demand_id in list(scan.demands):
            if len(found) >= limit:
                break
            demand = self._subscriptions.find(demand_id)
            if demand is not None and issuer not in (None, demand.owner):
                continue
            del scan.demands[demand_id]
            if demand is None or not matches(scan.constraint, demand.properties):
                continue
            if scan.properties is None or matches(compiled(demand.constraints), scan.properties):
                found.append(demand)
        return found

    def _demand(self, demand: Subscription) -> None:
        for scan_id, scan in self._scans.items():
            if scan.kind == "demand":
                scan.demands[demand.subscription_id] = None
                self._core.pulses.beat(_key(scan_id))

    def _get(self, owner: str, scan_id: str) -> _Scan:
        scan = self._scans.get(scan_id)
        if scan is None:
            raise ScanNotFound(f'Iterator with id "{scan_id[:40]}" not found')
        if scan.owner != owner:
            raise NotAllowed("Access denied: the scan is another identity's", code="not_your_scan")
        return scan

    def _touch(self, scan_id: str) -> None:
        scan = self._scans[scan_id]
        self._timers.at(self._core.later(scan.idle_s), _key(scan_id), lambda: self._end(scan_id))

    def _end(self, scan_id: str) -> None:
        if self._scans.pop(scan_id, None) is None:
            return
        self._timers.cancel(_key(scan_id))
        self._core.book.unwatch(_key(scan_id))
        self._core.pulses.beat(_key(scan_id))


def _key(scan_id: str) -> str:
    return f"scan:{scan_id}"
