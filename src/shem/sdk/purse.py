"""Limits on what agreements may cost together: in all, in any sixty minutes, at any one provider.

They are kept *before* money is owed. What an open machine will have cost, fully used, by the time it can be given back counts
as owed; when that reaches a limit the work must end (or, for one provider's limit, go on elsewhere), with enough left to pay
for all that was done. Bills are held to the same limits once more.

Moments are monotonic seconds and always given by the caller; nothing here reads a clock. Usage is seconds; money is base units.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from shem.errors import MoneyShort
from shem.sdk.hiring import Hired
from shem.terms.amounts import format_amount
from shem.terms.budgets import Limits

HOUR_S = 3600.0
TIME_SLACK_S = 10.0
"""A provider counts from when it starts to serve; we from the approval. Clocks and messages may differ by this."""
CPU_SLACK = 1.25
"""CPU counters are read at moments of their own; a short burst may seem to exceed the cores it had."""
GIVE_BACK_S = 5.0
"""What it may take from the decision to stop until a machine's counters stand still."""

Which = Literal["budget", "budget_per_hour", "budget_per_provider"]


class BudgetExceeded(MoneyShort):
    """A budget is used up: work stopped, what was done is paid. ``details["limit"]`` names which of them (``budget``,
    ``budget_per_hour``, ``budget_per_provider``), ``details["amount"]`` how much it is in tokens."""

    default_code = "money_budget"


class ReserveShort(BudgetExceeded):
    """What is left of the budget does not suffice for the reserve that this provider wants before it starts: somebody with
    a smaller one, or fewer machines at once, may do."""

    default_code = "money_reserve"


class ProviderSpent(BudgetExceeded):
    """One provider has earned all that it may; the work can go on elsewhere."""

    default_code = "money_budget_per_provider"


@dataclass
class Account:
    """One agreement's money."""

    hired: Hired
    threads: int
    opened: float
    closed: float | None = None
    billed: dict[str, int] = field(default_factory=dict)
    """Activity id → accepted running total."""
    invoiced: int | None = None
    settled: int = 0
    refused: str = ""
    lost: bool = False
    """Its provider was not there to be told that the work is over."""
    reserve: int = 0
    """What is set aside for it by channel before it starts."""
    awaited: bool = False
    """It has not started: its provider waits until the reserve is final."""
    started: float | None = None
    """When it did, if later than it was opened."""

    @property
    def billed_for_good(self) -> bool:
        """Whether no further bill is expected."""
        return self.invoiced is not None or bool(self.refused)

    @property
    def cost(self) -> int:
        """What was accepted as of now, in base units."""
        return self.invoiced if self.invoiced is not None else sum(self.billed.values())

    def most(self, activities: int, moment: float) -> int:
        """The most that the agreed price allows for the time so far."""
        seconds = (moment if self.closed is None else self.closed) - self.opened
        return max(activities, 1) * self._full_use(seconds + TIME_SLACK_S, CPU_SLACK)

    def owed_by(self, moment: float) -> int:
        """What it will have cost by then, fully used; once billed, the bill."""
        if self.billed_for_good:
            return self.cost
        used_s = 0.0 if self.awaited else self._end(moment) - self._begin
        return max(self.cost, self._full_use(used_s))

    def since(self, begun: float, moment: float, cost: int) -> int:
        """Of ``cost``, the most that can have come up between the two moments."""
        end = self._end(moment)
        if end < begun:
            return 0
        if self._begin >= begun:
            return cost
        # + 1: both ends of the time are rounded down
        fresh = self._full_use(end - begun) - self._full_use(0.0) + 1
        unexplained = max(0, cost - self._full_use(end - self._begin))
        return min(cost, fresh + unexplained)

    @property
    def hourly(self) -> int:
        """What an hour of it costs, fully used; nothing before it starts and once it was given back."""
        stands = self.awaited or self.closed is not None
        return 0 if stands else self._full_use(HOUR_S) - self._full_use(0.0)

    @property
    def _begin(self) -> float:
        return self.opened if self.started is None else self.started

    def _end(self, moment: float) -> float:
        return moment if self.closed is None else min(self.closed, moment)

    def _full_use(self, seconds: float, slack: float = 1.0) -> int:
        seconds = max(seconds, 0.0)
        full = {"golem.usage.duration_sec": seconds, "golem.usage.cpu_sec": seconds * self.threads * slack}
        pricing = self.hired.pricing
        return pricing.cost([full.get(counter, 0.0) for counter in pricing.usage_vector])


@dataclass(frozen=True)
class Line:
    """One limit, and how near it is: what will be ``owed`` when machines can be given back, and the ``hourly`` growth."""

    which: Which
    limit: int
    owed: int
    hourly: int
    provider_id: str = ""

    @property
    def seconds_left(self) -> float | None:
        """How long open machines may run on at least; ``None``: for ever, 0: not at all."""
        if not self.hourly:
            return None
        milliseconds = max(self.limit - self.owed, 0) * 3_600_000 // self.hourly  # prices are linear
        return milliseconds / 1000


class Purse:
    """The limits of a session, or of one map in it."""

    def __init__(self, limits: Limits, of: str = "session") -> None:
        self.limits = limits
        self.of = of
        self.accounts: dict[str, Account] = {}
        self.spent_providers: set[str] = set()
        """Who has earned all that one provider may: nothing more is rented there."""

    def holds(self, agreement_id: str) -> bool:
        """Whether this agreement is paid from here."""
        return agreement_id in self.accounts

    def owed_by(self, moment: float) -> int:
        """What all its agreements will have cost by then."""
        return sum(a.owed_by(moment) for a in self.accounts.values())

    def owed_between(self, begun: float, moment: float) -> int:
        """The most of that which can have come up after ``begun``."""
        return sum(a.since(begun, moment, a.owed_by(moment)) for a in self.accounts.values())

    @property
    def hourly(self) -> int:
        """What an hour of all that is rented now costs, fully used."""
        return sum(a.hourly for a in self.accounts.values())

    def lines(self, now: float) -> Iterator[Line]:
        """Each limit, as it will stand when what is open now can be given back."""
        moment, limits = now + GIVE_BACK_S, self.limits
        if limits.total is not None:
            yield Line("budget", limits.total, self.owed_by(moment), self.hourly)
        if limits.per_hour is not None:
            # The hour until now and what giving back takes. What leaves the hour meanwhile is not taken off: it may be after
            # the sum was at its highest.
            yield Line("budget_per_hour", limits.per_hour, self.owed_between(now - HOUR_S, moment), self.hourly)
        if limits.per_provider is not None:
            for provider_id in sorted({a.hired.provider_id for a in self.accounts.values()}):
                theirs = [a for a in self.accounts.values() if a.hired.provider_id == provider_id]
                owed, hourly = sum(a.owed_by(moment) for a in theirs), sum(a.hourly for a in theirs)
                yield Line("budget_per_provider", limits.per_provider, owed, hourly, provider_id)

    def open(self, account: Account, now: float) -> None:
        """Raises :class:`BudgetExceeded` when not even the start of this account fits what is left."""
        hired = account.hired
        self.accounts[hired.agreement.agreement_id] = account
        for line in self.lines(now):
            if line.owed > line.limit and line.provider_id in ("", hired.provider_id):
                self.spent_providers |= {line.provider_id} - {""}
                raise self.used_up(line.which, f"renting {hired.name} for {GIVE_BACK_S:g} s would exceed")
        self._check_reserve(account)

    def _check_reserve(self, account: Account) -> None:
        """Raises :class:`ReserveShort`."""
        total = self.limits.total
        if total is None or not account.reserve:
            return
        taken = sum(a.cost + (a.reserve if a.closed is None else 0) for a in self.accounts.values() if a is not account)
        if taken + account.reserve > total:
            wants, name = format_amount(account.reserve), account.hired.name
            raise ReserveShort(
                f"{name} wants {wants} reserved before it starts, and the {self.of}'s budget of {format_amount(total)} does "
                f"not hold that" + (" beside what others have" if taken else ""),
                hint="raise budget=, or pay by transfer: platform='erc20-…'",
                limit="budget",
                amount=format_amount(total),
            )

    def refuses(self, account: Account, total: int, now: float) -> Which | None:
        """Which limit a bill that brings the account to ``total`` would break, of what was accepted before."""

        def accepted(a: Account) -> int:
            return total if a is account else a.cost

        mine, limits = self.accounts.values(), self.limits
        if limits.total is not None and sum(accepted(a) for a in mine) > limits.total:
            return "budget"
        theirs = [a for a in mine if a.hired.provider_id == account.hired.provider_id]
        if limits.per_provider is not None and sum(accepted(a) for a in theirs) > limits.per_provider:
            return "budget_per_provider"
        begun = now - HOUR_S
        if limits.per_hour is not None and sum(a.since(begun, now, accepted(a)) for a in mine) > limits.per_hour:
            return "budget_per_hour"
        return None

    def used_up(self, which: Which, why: str) -> BudgetExceeded:
        """The error that says so."""
        limits = self.limits
        amount = {"budget": limits.total, "budget_per_hour": limits.per_hour}.get(which, limits.per_provider)
        text = format_amount(amount or 0)
        words = {"budget": "", "budget_per_hour": " per hour", "budget_per_provider": " per provider"}[which]
        kind = ProviderSpent if which == "budget_per_provider" else BudgetExceeded
        return kind(
            f"{why} the {self.of}'s budget of {text}{words}",
            code=f"money_{which}",
            hint=f"raise {which}=; what was done so far is kept and paid",
            limit=which,
            amount=text,
        )
