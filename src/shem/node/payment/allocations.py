"""Allocations: the requestor's money set aside.

An allocation is book-keeping of this node: it keeps the owner's programs from promising the same money twice. It is
checked against the balance when it is made or grows, less all that is reserved already: what other allocations still
hold, and what was accepted and is not final on the chain yet. It ends when it is released or its time is up; then it
reserves nothing, and everything that was accepted from it becomes due.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime

from shem.errors import NotFound, Refused
from shem.node.payment import ledger
from shem.node.payment.books import Books
from shem.node.payment.deal import ADDRESS
from shem.node.payment.drivers.base import Platform
from shem.node.payment.ledger import Allocation
from shem.terms.amounts import BadAmount, format_amount, parse_amount
from shem.wire import payment as wire

MAX_ACTIVE = 10_000
"""Allocations of one owner at a time."""


class AllocationNotFound(NotFound):
    """No such allocation, or it is released."""

    default_code = "allocation_not_found"


class BadPlatform(Refused):
    """The payment platform is not one of this node's."""

    default_code = "bad_payment_platform"


class BadAllocation(Refused):
    """The allocation cannot be made as asked."""

    default_code = "bad_allocation"


class TimeoutPassed(BadAllocation):
    """The time-out lies in the past."""

    default_code = "allocation_timeout_passed"


async def _nothing(owner: str, platform: str) -> tuple[int, int]:
    return 0, 0


class Allocations:
    """The owner's allocations."""

    def __init__(self, books: Books, default_platform: str | None, payouts: Mapping[str, str]) -> None:
        """``payouts``: by platform, the address that is paid there instead of the owner's."""
        self._books = books
        self._payouts = payouts
        self._store = books.store
        self._default = default_platform
        self.channel_platforms: Collection[str] = ()
        self.in_vault: Callable[[str, str], Awaitable[tuple[int, int]]] = _nothing
        """Set by the channels: (owner, channel platform) → what lies free in its vault, and in channels."""

    # --- platforms ---

    def platforms(self) -> list[Platform]:
        """All that this node serves, the default first."""
        default = self._default_platform()
        return sorted(self._books.platforms.values(), key=lambda platform: platform is not default)

    def _default_platform(self) -> Platform | None:
        served = self._books.platforms
        if self._default is not None:
            return served.get(self._default)
        return next((p for p in served.values() if p.moves_money), None) or next(iter(served.values()), None)

    def platform(self, choice: str | wire.PlatformChoice | None) -> Platform:
        """A platform by its name, by its parts, or the default. Raises :class:`BadPlatform`."""
        default = self._default_platform()
        if choice is None and default is not None:
            return default
        if isinstance(choice, str):
            found = self._books.platforms.get(choice)
            if found is not None:
                return found
            raise BadPlatform(self._why_unknown(choice))
        if choice is None or default is None:
            raise BadPlatform("this node serves no payment platform", hint="configure a network")
        driver = choice.driver or default.driver
        network = choice.network or (default.network if driver == default.driver else None)
        for platform in self.platforms():
            if (
                platform.driver == driver
                and network in (None, platform.network)
                and (choice.token is None or choice.token == platform.token.lower())
            ):
                return platform
        raise BadPlatform(self._why_unknown("-".join(part or "*" for part in (driver, network, choice.token))))

    def _why_unknown(self, name: str) -> str:
        if name.lower() in self._books.platforms:
            return f"Uppercase names are not supported. Use {name.lower()} instead of {name}"
        known = ", ".join(self._books.platforms) or "none"
        return f"Invalid payment platform: {name[:100]} (this node has: {known})"

    def accounts(self, owner: str, *, send: bool) -> list[wire.Account]:
        """Where the owner can pay from, or be paid."""
        return [
            wire.Account(
                platform=platform.platform,
                address=owner if send else self._payouts.get(platform.platform, owner),
                driver=platform.driver,
                network=platform.network,
                token=platform.token,
                send=send,
                receive=not send,
            )
            for platform in self.platforms()
        ]

    # --- life ---

    async def create(self, owner: str, body: wire.NewAllocation) -> Allocation:
        """Set money aside.

        Raises :class:`BadPlatform`, :class:`BadAllocation`, :class:`TimeoutPassed`, :class:`~ledger.FundsShort`,
        :class:`~shem.node.payment.drivers.base.ChainUnreachable`.
        """
        platform = self.platform(body.payment_platform)
        total = _total(body.total_amount)
        now = self._books.clock.now()
        if body.deposit is not None:
            raise BadAllocation("this node does not pay from deposits", hint="leave deposit out")
        if body.address is not None and body.address.lower() != owner:
            raise BadAllocation(f"this node cannot pay from {body.address[:60]!r}", hint=f"its account is {owner}")
        if body.timeout is not None and body.timeout <= now:
            raise TimeoutPassed("Requested allocation timeout is in the past")
        balance = await self._balance(platform, owner)
        with self._books.write():
            self.release_expired()
            active = self._store.active_allocations(owner)
            if len(active) >= MAX_ACTIVE:
                raise BadAllocation(f"there are {MAX_ACTIVE} allocations already", hint="release some")
            self._check_funds(owner, platform, total, balance)
            allocation = Allocation(
                allocation_id=str(uuid.uuid4()),
                owner=owner,
                platform=platform.platform,
                address=owner,
                total=total,
                created_at=now,
                timeout=body.timeout,
                make_deposit=body.make_deposit,
            )
            self._store.save_allocation(allocation)
        self._books.wake_settler()
        return allocation

    def get(self, owner: str, allocation_id: str) -> Allocation:
        """Raises :class:`AllocationNotFound`, also once released."""
        self.release_expired()
        found = self._store.allocation(allocation_id, owner)
        if found is None or found.released:
            raise AllocationNotFound(f"there is no allocation {allocation_id[:60]!r}")
        return found

    def active(self, owner: str, after: datetime | None = None, limit: int = MAX_ACTIVE) -> list[Allocation]:
        """All that still set money aside, oldest first, made strictly after ``after``."""
        self.release_expired()
        found = self._store.active_allocations(owner)
        return [allocation for allocation in found if after is None or allocation.created_at > after][:limit]

    async def amend(self, owner: str, allocation_id: str, body: wire.AllocationChange) -> Allocation:
        """Another total or time-out; errors as for :meth:`create`."""
        allocation = self.get(owner, allocation_id)
        total = None if body.total_amount is None else _total(body.total_amount)
        if body.deposit is not None:
            raise BadAllocation("this node does not pay from deposits", hint="leave deposit out")
        if body.timeout is not None and body.timeout <= self._books.clock.now():
            raise TimeoutPassed("Requested allocation timeout is in the past")
        platform = self._books.platforms[allocation.platform]
        balance = await self._balance(platform, owner) if total is not None else 0
        with self._books.write():
            allocation = self.get(owner, allocation_id)  # it may have ended while the chain was asked
            amended = ledger.amend(allocation, total, body.timeout)
            if amended.total > allocation.total:
                self._check_funds(owner, platform, amended.total - allocation.total, balance)
            self._store.save_allocation(amended)
        self._books.wake_settler()
        return amended

    def release(self, owner: str, allocation_id: str) -> None:
        """Set nothing aside any more. Raises :class:`AllocationNotFound`, :class:`~ledger.AllocationReleased`."""
        self.release_expired()
        found = self._store.allocation(allocation_id, owner)
        if found is None:
            raise AllocationNotFound(f"there is no allocation {allocation_id[:60]!r}")
        if found.released:
            raise ledger.AllocationReleased(f"Allocation {allocation_id} has been already released")
        with self._books.write():
            self._end(found)

    def release_expired(self) -> None:
        """End every allocation whose time is up. Called before each look, so that none outlives its time by a moment."""
        expired = self._store.expired_allocations(self._books.clock.now())
        if expired:
            with self._books.write():
                for allocation in expired:
                    self._end(allocation)

    def _end(self, allocation: Allocation) -> None:
        self._store.save_allocation(ledger.release(allocation))
        for account in self._store.unscheduled_of(allocation.allocation_id):
            scheduled, due = ledger.schedule(account)
            self._books.save(scheduled)
            self._store.add_due(scheduled, None, due)
        self._books.db.after_commit(self._books.wake_settler)

    def reserved(self, owner: str, platform: str) -> int:
        """What the owner has promised of a platform's money, in base units."""
        return self._reserved_on(owner, self._books.same_money(platform))

    def promised(self, owner: str, platform: str) -> tuple[int, int]:
        """(by channel, by transfer): what the owner has promised of a platform's money, by who is going to pay it."""
        names = self._books.same_money(platform)
        channels = [name for name in names if name in self.channel_platforms]
        others = [name for name in names if name not in channels]
        return self._reserved_on(owner, channels), self._reserved_on(owner, others)

    def allocated(self, owner: str, platform: str) -> int:
        """What allocations on this platform still hold, in base units."""
        return sum(a.remaining for a in self._store.active_allocations(owner) if a.platform == platform)

    def _reserved_on(self, owner: str, names: Sequence[str]) -> int:
        allocations = [a for a in self._store.active_allocations(owner) if a.platform in names]
        owing = [account for name in names for account in self._store.owing(owner, name)]
        return ledger.reserved(allocations, owing)

    async def _balance(self, platform: Platform, owner: str) -> int:
        if not platform.moves_money:
            return 0
        channels = [name for name in self._books.same_money(platform.platform) if name in self.channel_platforms]
        before = await self.in_vault(owner, channels[0]) if channels else (0, 0)
        held = (await self._books.drivers[platform.platform].balance(platform.platform, owner)).token_units
        if not channels:
            return held
        after = await self.in_vault(owner, channels[0])
        # What moves between wallet, vault and channels while we look is counted once or not at all.
        locked = min(before[1], after[1])
        if platform.platform in channels:
            return held + locked
        # What is promised on channels is taken from the vault first: only that part of the vault helps here.
        return held + min(min(before[0], after[0]) + locked, self._reserved_on(owner, channels))

    def _check_funds(self, owner: str, platform: Platform, requested: int, balance: int) -> None:
        if platform.moves_money:  # where nothing is ever paid, any limit is as good
            ledger.check_funds(requested, balance, self.reserved(owner, platform.platform))

    # --- for demands ---

    def decorations(self, owner: str, allocation_ids: Sequence[str]) -> wire.Decorations:
        """What these allocations add to a demand. Raises :class:`AllocationNotFound`."""
        allocations = [self.get(owner, allocation_id) for allocation_id in allocation_ids]
        keys = [ADDRESS.format(allocation.platform) for allocation in allocations]
        properties = [wire.Decoration(key=k, value=a.address) for k, a in zip(keys, allocations, strict=True)]
        properties.append(wire.Decoration(key="golem.com.payment.protocol.version", value="3"))
        present = [f"({key}=*)" for key in keys]
        platform = present[0] if len(present) == 1 else "(|\n  " + "\n  ".join(present) + "\n)"
        return wire.Decorations(properties=properties, constraints=[platform, "(golem.com.payment.protocol.version>1)"])


def view(allocation: Allocation) -> wire.Allocation:
    """As the API shows it."""
    return wire.Allocation(
        allocation_id=allocation.allocation_id,
        address=allocation.address,
        payment_platform=allocation.platform,
        total_amount=format_amount(allocation.total),
        spent_amount=format_amount(allocation.spent),
        remaining_amount=format_amount(allocation.remaining),
        timestamp=allocation.created_at,
        make_deposit=allocation.make_deposit,
        timeout=allocation.timeout,
    )


def _total(text: str) -> int:
    try:
        # A limit may be rounded down: programs compute budgets with more digits than a token has.
        return parse_amount(text, round_down=True)
    except BadAmount as error:
        raise BadAllocation(error.message) from None
