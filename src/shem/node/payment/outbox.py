"""Letters to peers: written with the change they tell of, delivered at least once, in order where order matters.

One carrier task per peer that has letters. It goes through them from the oldest to the newest, a window at a time, all of
a window on their way at once; then it removes those that were answered and tells the desks, in one transaction. All is
idempotent: a crash between answer and removal sends letters again. Bills that build on each other travel in a *lane*, one
after another: the notes of an activity; an invoice and its cancellation.

A letter that the peer cannot take now is left behind with the rest of its lane, holds up no other, and is tried again after
a delay that doubles up to a limit. A peer that is away is tried again then, or as soon as it connects or another letter is
written. A letter that the peer refuses, that crashes the peer again and again, or that grows old, is dropped and the desk
is told why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from datetime import timedelta

import msgspec

from shem.cogs.tasks import TaskScope
from shem.errors import KeyLocked, PeerFailed, Refused, ShemError
from shem.node.payment.books import Books
from shem.node.payment.protocol import Peers, method_of
from shem.node.payment.store import Letter
from shem.node.peer.remote_errors import PeerRefused
from shem.terms.ids import NodeId

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 15.0
MAX_AGE = timedelta(days=30)
MAX_CRASHES = 20
"""How often in a row a peer may answer one letter with a fault of its own before the letter is given up."""
WINDOW = 64
"""Letters on their way to one peer; a quarter of what a peer takes at once."""


class Undeliverable(PeerFailed):
    """The letter was given up."""

    default_code = "undeliverable"


class _Bill(msgspec.Struct, frozen=True):
    """What a bill belongs to."""

    agreement_id: str = ""
    activity_id: str = ""


class _Carrier:
    """How far one peer's letters are carried."""

    def __init__(self, delay_s: float) -> None:
        self.nudge = asyncio.Event()
        self.anew = False
        """The peer has connected: begin at the oldest."""
        self.width = 1
        """Letters at once: one, until the peer is known to be there."""
        self.passed = 0
        """The last letter of the window before."""
        self.left: set[Hashable] = set()
        """Lanes in which a letter waits, since the oldest was looked at last."""
        self.away = False
        """The last try found nobody."""
        self.retry_at = 0.0
        """When what was left behind is tried again, by the loop's clock."""
        self.delay_s = delay_s
        self.crashes: dict[int, int] = {}
        """Of letters that wait: how often in a row the peer failed on them."""

    def restart(self) -> None:
        """Back to the oldest."""
        self.passed, self.anew, self.away = 0, False, False
        self.left.clear()


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
        self._carriers: dict[str, _Carrier] = {}
        books.wake_peer = self.wake

    def start(self) -> None:
        """Carry what an earlier run left."""
        self._peers.on_connected(self._on_connected)
        for peer in self._books.store.addressees():
            self.wake(peer)

    async def _on_connected(self, peer: NodeId) -> None:
        carrier = self._carriers.get(peer)
        if carrier is not None:
            carrier.anew = True
        self.wake(peer)

    def wake(self, peer: str) -> None:
        """Carry this peer's letters now."""
        carrier = self._carriers.get(peer)
        if carrier is not None:
            carrier.nudge.set()
        elif not self._books.closed and self._books.store.letters(peer, 1):
            self._carriers[peer] = _Carrier(self._first_delay_s)
            self._tasks.start(self._carry(peer), f"letters to {peer}")

    async def _carry(self, peer: str) -> None:
        carrier, loop = self._carriers[peer], asyncio.get_running_loop()
        try:
            while True:
                carrier.nudge.clear()
                if carrier.anew or (carrier.left and loop.time() >= carrier.retry_at):
                    carrier.restart()
                letters = self._books.store.letters(peer, carrier.width, after=carrier.passed)
                if letters:
                    await self._carry_window(carrier, letters)
                elif not carrier.left:
                    return
                if carrier.left and (carrier.away or not letters):
                    await self._rest(carrier)
        finally:
            # Between the last look at the store and here nothing is awaited: no letter can slip in between.
            del self._carriers[peer]

    async def _rest(self, carrier: _Carrier) -> None:
        """Until there is a letter, the peer connects, or it is time to try again."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(carrier.retry_at):
                await carrier.nudge.wait()
        if carrier.away:
            carrier.anew = True

    async def _carry_window(self, carrier: _Carrier, letters: Sequence[Letter]) -> None:
        lanes: dict[Hashable, list[Letter]] = {}
        for letter in letters:
            lane = _lane(letter)
            if lane not in carrier.left:
                lanes.setdefault(lane, []).append(letter)
        over: list[tuple[Letter, ShemError | None]] = []
        was_left = bool(carrier.left)
        async with asyncio.TaskGroup() as group:
            for lane, queue in lanes.items():
                group.create_task(self._carry_lane(carrier, lane, queue, over))
        self._remove(over)
        carrier.passed = letters[-1].seq
        carrier.width = 1 if carrier.away else WINDOW
        if carrier.left and not was_left:
            carrier.retry_at = asyncio.get_running_loop().time() + carrier.delay_s
            carrier.delay_s = min(carrier.delay_s * 2, self._last_delay_s)
        elif over and not carrier.left:
            carrier.delay_s = self._first_delay_s

    async def _carry_lane(
        self, carrier: _Carrier, lane: Hashable, queue: Sequence[Letter], over: list[tuple[Letter, ShemError | None]]
    ) -> None:
        """Send one after another, up to one that must wait; what is over goes to ``over``, with why it was refused."""
        for letter in queue:
            try:
                over.append((letter, await self._send(letter, carrier.crashes.get(letter.seq, 0))))
            except (PeerFailed, KeyLocked, TimeoutError) as error:
                if isinstance(error, PeerRefused) and error.code == "internal":
                    carrier.crashes[letter.seq] = carrier.crashes.get(letter.seq, 0) + 1
                else:
                    carrier.crashes.pop(letter.seq, None)
                carrier.away = carrier.away or not isinstance(error, PeerRefused | KeyLocked)
                carrier.left.add(lane)
                log.info("a %s for %s waits: %s", letter.kind, letter.peer_id, error)
                return
            carrier.crashes.pop(letter.seq, None)

    async def _send(self, letter: Letter, crashes: int) -> ShemError | None:
        """``None``: the peer has it. An error: it is given up. Raises what makes it wait."""
        if letter.created_at + MAX_AGE < self._books.clock.now() or crashes >= MAX_CRASHES:
            return Undeliverable(f"the {letter.kind} could not be delivered to {letter.peer_id}")
        request = msgspec.msgpack.encode(self._books.envelope(letter))
        try:
            await self._peers.call(NodeId(letter.peer_id), method_of(letter.kind), request, timeout_s=CALL_TIMEOUT_S)
        except Refused as error:
            return error
        return None

    def _remove(self, over: Sequence[tuple[Letter, ShemError | None]]) -> None:
        if not over:
            return
        # A delivery is not durable: a power cut that takes it back has the letter sent again, which is harmless.
        with self._books.db.transaction(durable=any(error is not None for _, error in over)):
            for letter, error in over:
                self._books.store.drop_letter(letter.seq)
                if error is None:
                    self._delivered(letter)
                else:
                    log.warning("a %s for %s is given up: %s", letter.kind, letter.peer_id, error)
                    self._refused(letter, error)


def _lane(letter: Letter) -> Hashable:
    """Letters of one lane are carried one after another; one that orders nothing has its own."""
    if letter.kind not in ("debit-note", "invoice", "cancellation"):
        return letter.seq
    bill = msgspec.msgpack.decode(letter.payload, type=_Bill)
    return bill.activity_id or bill.agreement_id
