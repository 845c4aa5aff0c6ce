"""Letters to peers: written with the change they tell of, delivered at least once, in order per peer.

One carrier task per peer that has letters. It sends the oldest, waits for the answer, removes it and tells the desk, all
idempotent: a crash between answer and removal sends the letter again. A peer that is away is tried again after a delay
that doubles up to a limit, or as soon as it connects or another letter is written. A letter that the peer refuses, that
crashes the peer again and again, or that grows old, is dropped and the desk is told why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import msgspec

from shem.cogs.tasks import TaskScope
from shem.errors import PeerFailed, Refused, ShemError
from shem.node.payment.books import Books
from shem.node.payment.protocol import Peers, Signed, method_of
from shem.node.payment.store import Letter
from shem.node.peer.remote_errors import PeerRefused
from shem.terms.ids import NodeId

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 15.0
MAX_AGE = timedelta(days=30)
MAX_CRASHES = 20
"""How often in a row a peer may answer one letter with a fault of its own before the letter is given up."""
BATCH = 16


class Undeliverable(PeerFailed):
    """The letter was given up."""

    default_code = "undeliverable"


class Outbox:
    """Runs the carriers."""

    def __init__(
        self,
        books: Books,
        peers: Peers,
        tasks: TaskScope,
        *,
        delivered: Callable[[Letter], None],
        refused: Callable[[Letter, ShemError], None],
        retry_s: tuple[float, float],
    ) -> None:
        """``delivered`` and ``refused`` are called inside the transaction that removes the letter."""
        self._books = books
        self._peers = peers
        self._tasks = tasks
        self._delivered = delivered
        self._refused = refused
        self._first_delay_s, self._last_delay_s = retry_s
        self._carriers: dict[str, asyncio.Event] = {}
        books.wake_peer = self.wake

    def start(self) -> None:
        """Carry what an earlier run left."""
        self._peers.on_connected(self._on_connected)
        for peer in self._books.store.addressees():
            self.wake(peer)

    async def _on_connected(self, peer: NodeId) -> None:
        self.wake(peer)

    def wake(self, peer: str) -> None:
        """Carry this peer's letters now."""
        nudge = self._carriers.get(peer)
        if nudge is not None:
            nudge.set()
        elif not self._books.closed and self._books.store.letters(peer, 1):
            self._carriers[peer] = asyncio.Event()
            self._tasks.start(self._carry(peer), f"letters to {peer}")

    async def _carry(self, peer: str) -> None:
        nudge = self._carriers[peer]
        delay_s, crashes = self._first_delay_s, 0
        try:
            while letters := self._books.store.letters(peer, BATCH):
                nudge.clear()
                for letter in letters:
                    try:
                        await self._deliver(letter, crashes)
                    except (PeerFailed, TimeoutError) as error:
                        crashed = isinstance(error, PeerRefused) and error.code == "internal"
                        crashes = crashes + 1 if crashed else 0
                        log.info("a %s for %s waits: %s", letter.kind, peer, error)
                        with suppress(TimeoutError):
                            async with asyncio.timeout(delay_s):
                                await nudge.wait()
                        delay_s = min(delay_s * 2, self._last_delay_s)
                        break
                    delay_s, crashes = self._first_delay_s, 0
        finally:
            # Between the last look at the store and here nothing is awaited: no letter can slip in between.
            del self._carriers[peer]

    async def _deliver(self, letter: Letter, crashes: int) -> None:
        if letter.created_at + MAX_AGE < self._books.clock.now() or crashes >= MAX_CRASHES:
            self._drop(letter, Undeliverable(f"the {letter.kind} could not be delivered to {letter.peer_id}"))
            return
        request = msgspec.msgpack.encode(Signed(letter.payload, letter.signature))
        try:
            await self._peers.call(NodeId(letter.peer_id), method_of(letter.kind), request, timeout_s=CALL_TIMEOUT_S)
        except Refused as error:
            self._drop(letter, error)
            return
        # Not durable: a power cut that takes this back has the letter sent again, which is harmless.
        with self._books.db.transaction():
            self._books.store.drop_letter(letter.seq)
            self._delivered(letter)

    def _drop(self, letter: Letter, error: ShemError) -> None:
        log.warning("a %s for %s is given up: %s", letter.kind, letter.peer_id, error)
        with self._books.write():
            self._books.store.drop_letter(letter.seq)
            self._refused(letter, error)
