"""What the payer may still reserve. One turn of the loop asks for every payee, so everything is looked up once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shem.node.payment.books import Books
from shem.node.payment.channel import Channel
from shem.node.payment.channel_store import ChannelStore


class Budgets:
    """What allocations hold that is not reserved for anybody yet, per owner and platform, in one turn."""

    def __init__(
        self, books: Books, store: ChannelStore, live: Sequence[Channel], rests: Callable[[Channel], bool]
    ) -> None:
        """``live``: every channel that is not closed. ``rests``: whether nothing goes on there any more, although it cannot
        be closed yet. What such a channel holds is no part of what today's allocations are for."""
        self._books = books
        self._store = store
        self._live = live
        self._rests = rests
        self._left: dict[tuple[str, str], int] = {}

    def left(self, owner: str, platform: str) -> int:
        """Never below zero."""
        left = self._left.get((owner, platform))
        if left is None:
            held = sum(a.remaining for a in self._books.store.active_allocations(owner) if a.platform == platform)
            ours = [c for c in self._live if (c.owner, c.role, c.platform) == (owner, "Requestor", platform)]
            rooms = sum(c.room for c in ours if c.room and not self._rests(c))
            left = self._left[owner, platform] = held - rooms - self._store.reserving(owner, platform)
        return max(left, 0)

    def take(self, owner: str, platform: str, amount: int) -> None:
        """So much is being reserved now."""
        self.left(owner, platform)
        self._left[owner, platform] -= amount
