"""What the payer may still reserve. One turn of the loop asks for every payee, so everything is looked up once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shem.node.payment.books import Books
from shem.node.payment.channel import Channel, Cover
from shem.node.payment.channel_store import ChannelStore
from shem.node.payment.ledger import Allocation


class Budgets:
    """What allocations hold that is not reserved for anybody yet, per owner and platform, in one turn."""

    def __init__(
        self, books: Books, store: ChannelStore, live: Sequence[Channel], serves: Callable[[Channel, Budgets], bool]
    ) -> None:
        """``live``: every channel that is not closed. ``serves``: whether what a channel holds is for today's allocations:
        of others it cannot be taken back yet, and is no part of them."""
        self._books = books
        self._store = store
        self._live = live
        self._serves = serves
        self._left: dict[tuple[str, str], int] = {}
        self._active: dict[tuple[str, str], list[Allocation]] = {}

    def left(self, owner: str, platform: str) -> int:
        """Never below zero."""
        left = self._left.get((owner, platform))
        if left is None:
            held = sum(a.remaining for a in self._allocations(owner, platform))
            ours = [c for c in self._live if (c.owner, c.role, c.platform) == (owner, "Requestor", platform)]
            rooms = sum(c.room for c in ours if c.room and self._serves(c, self))
            left = self._left[owner, platform] = held - rooms - self._store.reserving(owner, platform)
        return max(left, 0)

    def take(self, owner: str, platform: str, amount: int) -> None:
        """So much is being reserved now."""
        self.left(owner, platform)
        self._left[owner, platform] -= amount

    def pay_for(self, cover: Cover) -> bool:
        """Whether one of today's allocations may be what an agreement is paid from: not if the one that paid its last bill is
        gone, since then its program is, too; unless a bill is paid from another."""
        account = self._books.store.account(cover.agreement_id, cover.owner)
        last = None if account is None else account.allocation_id
        active = self._allocations(cover.owner, cover.platform)
        return last is None or any(a.allocation_id == last for a in active)

    def _allocations(self, owner: str, platform: str) -> list[Allocation]:
        """Oldest first."""
        found = self._active.get((owner, platform))
        if found is None:
            found = [a for a in self._books.store.active_allocations(owner) if a.platform == platform]
            self._active[owner, platform] = found
        return found
