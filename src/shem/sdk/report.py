"""What a session did and cost, kept from its events; drawn as a table for people and as JSON for programs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from shem.sdk import events
from shem.terms.amounts import format_amount
from shem.terms.budgets import Price


@dataclass
class ProviderReport:
    """One provider's part."""

    provider_id: str
    name: str
    rentals: int = 0
    tasks: int = 0
    failures: int = 0
    busy_s: float = 0.0
    costs: dict[str, int] = field(default_factory=dict)
    """Agreement id → its bill in base units."""
    payments: list[events.PaymentSettled] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """Agreement id → why its bill was not accepted."""
    waiting: dict[str, events.BillWaits] = field(default_factory=dict)
    """Agreement id → its bill that cannot be accepted yet."""
    unbilled: set[str] = field(default_factory=set)
    """Agreements that no final bill came for."""
    channels: dict[str, events.ChannelChanged] = field(default_factory=dict)
    """Channel id → how it stands."""
    left: str = ""

    @property
    def cost(self) -> int:
        """The sum of its bills, in base units."""
        return sum(self.costs.values())

    @property
    def paid(self) -> int:
        """What has settled, in base units."""
        return sum(p.amount for p in self.payments)


class Report:
    """Listens to a session's events."""

    def __init__(self, token: str = "") -> None:
        self.token = token
        self.providers: dict[str, ProviderReport] = {}
        self.budget: events.BudgetSet | None = None
        """The session's."""
        self.spending = events.SpendingChanged(0, 0, 0)
        self.tasks_done = 0
        self.tasks_failed = 0
        self.started = time.monotonic()
        self.published_at: float | None = None
        self.first_stdout_s: float | None = None
        self.ended_s: float | None = None

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.DemandPublished():
                self.published_at = self.published_at or time.monotonic()
            case events.RentalStarted(provider_id=pid, provider_name=name):
                self._of(pid, name).rentals += 1
            case events.OutputReceived() if self.first_stdout_s is None and self.published_at is not None:
                self.first_stdout_s = time.monotonic() - self.published_at
            case events.TaskFinished(provider_id=pid, seconds=seconds):
                self.tasks_done += 1
                provider = self._of(pid)
                provider.tasks += 1
                provider.busy_s += seconds
            case events.TaskFailed(provider_id=pid, retried=retried):
                self._of(pid).failures += 1
                self.tasks_failed += not retried
            case events.CostChanged(provider_id=pid, agreement_id=agreement, cost=cost):
                provider = self._of(pid)
                provider.costs[agreement] = cost
                if (waits := provider.waiting.get(agreement)) is not None and waits.amount <= cost:
                    del provider.waiting[agreement]
            case events.BudgetSet(of="session"):
                self.budget = event
            case events.SpendingChanged():
                self.spending = event
            case events.BillRefused(provider_id=pid, agreement_id=agreement, reason=reason):
                self._of(pid).refused[agreement] = reason
            case events.BillWaits(provider_id=pid, agreement_id=agreement):
                self._of(pid).waiting[agreement] = event
            case events.ChannelChanged(provider_id=pid, channel_id=channel):
                self._of(pid).channels[channel] = event
            case events.BillMissing(provider_id=pid, agreement_id=agreement):
                self._of(pid).unbilled.add(agreement)
            case events.PaymentSettled(provider_id=pid):
                self._of(pid).payments.append(event)
            case events.ProviderLeft(provider_id=pid, provider_name=name, code=code):
                self._of(pid, name).left = code
            case _:
                pass

    def _of(self, provider_id: str, name: str = "") -> ProviderReport:
        provider = self.providers.setdefault(provider_id, ProviderReport(provider_id, name or provider_id[:10]))
        if name:
            provider.name = name
        return provider

    @property
    def cost(self) -> int:
        """All bills, in base units."""
        return sum(p.cost for p in self.providers.values())

    @property
    def paid(self) -> int:
        """All that settled, in base units."""
        return sum(p.paid for p in self.providers.values())

    @property
    def settled(self) -> bool:
        """Whether every agreement was billed, no bill was refused or waits, and each is paid to the last unit."""
        return all(p.paid == p.cost and not (p.refused or p.waiting or p.unbilled) for p in self.providers.values())

    def finish(self) -> None:
        """The session is over: stop its clock."""
        if self.ended_s is None:
            self.ended_s = time.monotonic() - self.started

    def _budget(self) -> dict[str, Any] | None:
        if self.budget is None:
            return None
        written, limits, price = self.budget.written, self.budget.limits, self.budget.price
        amounts = {"total": limits.total, "per_hour": limits.per_hour, "per_provider": limits.per_provider}
        return {
            "written": None if written.total is None else str(written.total),
            **{name: None if units is None else format_amount(units) for name, units in amounts.items()},
            "price": None if price is None else _price(price),
        }

    def as_dict(self) -> dict[str, Any]:
        """For programs. Amounts are exact decimal strings of the token."""
        worked = [p for p in self.providers.values() if p.rentals]
        return {
            "tasks": self.tasks_done,
            "failed": self.tasks_failed,
            "providers": len(worked),
            "seconds": round(self.ended_s if self.ended_s is not None else time.monotonic() - self.started, 3),
            "first_stdout_s": None if self.first_stdout_s is None else round(self.first_stdout_s, 3),
            "cost": format_amount(self.cost),
            "paid": format_amount(self.paid),
            "token": self.token,
            "settled": self.settled,
            "budget": self._budget(),
            "by_provider": [
                {
                    "provider_id": p.provider_id,
                    "name": p.name,
                    "tasks": p.tasks,
                    "failures": p.failures,
                    "busy_s": round(p.busy_s, 3),
                    "cost": format_amount(p.cost),
                    "paid": format_amount(p.paid),
                    "refused": sorted(p.refused.values()),
                    "waiting": sorted(w.reason for w in p.waiting.values()),
                    "unbilled": len(p.unbilled),
                    "left": p.left or None,
                    "payments": [
                        {
                            "amount": format_amount(s.amount),
                            "tx_hash": s.tx_hash,
                            "block": s.block_number,
                            "platform": s.platform,
                        }
                        for s in p.payments
                    ],
                    "channels": [_channel(c) for c in p.channels.values()],
                }
                for p in self.providers.values()
            ],
        }


def _channel(channel: events.ChannelChanged) -> dict[str, Any]:
    closed = channel.state == "closed"
    return {
        "channel_id": channel.channel_id,
        "platform": channel.platform,
        "state": channel.state,
        "reserved": format_amount(channel.reserved),
        "signed": format_amount(channel.signed),
        "claimed": format_amount(channel.claimed),
        "returned": format_amount(channel.reserved - channel.claimed) if closed else None,
        "opened_tx": channel.opened_tx,
        "valid_until": channel.valid_until.isoformat(),
    }


def _price(price: Price) -> dict[str, Any]:
    made_at = None if price.made_at is None else price.made_at.isoformat()
    return {"usd": format_amount(price.units), "token": price.token, "source": price.source, "made_at": made_at}
