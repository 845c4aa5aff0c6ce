"""How offers spread: each connected peer has a list of what it has not heard from us, and a task that tells it.

A peer that connects has heard nothing, so its list is everything; a change is put on everybody's list. The list holds
names, not copies: what is sent is the state at that moment, so ten changes of one offer are one message. The size of a
list is bounded by the number of known offers, and a page waits for the answer to the one before, so a slow peer costs
memory for names and nothing else. What a peer told us it is not told back.

A node that stops withdraws its offers. One that dies cannot: when a link ends, the offers of the node at its other end
are kept only if that node can be reached again. Should it come back, it says everything anew.
"""

from __future__ import annotations

import asyncio
import logging

from shem.cogs.clock import Clock
from shem.cogs.tasks import TaskScope
from shem.errors import Conflict, Refused, ShemError
from shem.node.market import protocol
from shem.node.market.offers import Change, OfferBook, SignedOffer, Subject
from shem.terms.ids import NodeId

log = logging.getLogger(__name__)

FAREWELL_S = 1.0
FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 60.0


class _Listener:
    """One connected peer."""

    def __init__(self) -> None:
        self.untold: dict[Subject, None] = {}
        self.heard: dict[Subject, bytes] = {}
        """Statements that came from this peer while they were on its list, until the list is next worked on."""
        self.wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Gossip:
    """Spreads the book to connected peers and takes what they spread."""

    def __init__(
        self, peers: protocol.Peers, book: OfferBook, tasks: TaskScope, clock: Clock, *, timeout_s: float
    ) -> None:
        self._peers = peers
        self._book = book
        self._tasks = tasks
        self._clock = clock
        self._timeout_s = timeout_s
        self._listeners: dict[NodeId, _Listener] = {}
        self._stopping = False

    def start(self) -> None:
        """Follow the network and the book from now on."""
        self._book.listen(self._changed)
        self._peers.on_connected(self._connected)
        self._peers.on_disconnected(self._disconnected)
        for node_id in self._peers.connected():
            self._meet(node_id)

    async def farewell(self, withdrawals: list[SignedOffer]) -> None:
        """Tell connected peers a last thing, as far as they listen within a second."""
        self._stopping = True
        targets = list(self._listeners)
        for node_id in targets:
            self._leave(node_id)
        if not withdrawals or not targets:
            return
        try:
            async with asyncio.timeout(FAREWELL_S), asyncio.TaskGroup() as group:
                for node_id in targets:
                    group.create_task(self._tell(node_id, withdrawals))
        except TimeoutError:
            log.debug("some peers did not hear our farewell")

    def heard(self, node_id: NodeId, subject: Subject, offer: SignedOffer) -> None:
        """A peer told us this: it need not be told the same."""
        listener = self._listeners.get(node_id)
        if listener is not None and subject in listener.untold:
            listener.heard[subject] = offer.statement

    async def _connected(self, node_id: NodeId) -> None:
        self._meet(node_id)

    def _meet(self, node_id: NodeId) -> None:
        """A peer may come back as another process that has forgotten everything."""
        self._leave(node_id)
        if self._stopping:
            return
        listener = _Listener()
        self._listeners[node_id] = listener
        listener.untold = dict.fromkeys(self._book.everything())
        listener.wake.set()
        listener.task = self._tasks.start(self._spread(node_id, listener), f"gossip {node_id}")

    def _disconnected(self, node_id: NodeId) -> None:
        if node_id not in self._peers.connected():  # else a new connection has replaced the lost one
            self._leave(node_id)
            if self._book.of(node_id) and not self._stopping:
                self._tasks.start(self._look_after(node_id), f"look after {node_id}")

    async def _look_after(self, node_id: NodeId) -> None:
        try:
            nothing = protocol.pack(protocol.OffersPage([]))
            await self._peers.call(node_id, protocol.OFFERS, nothing, timeout_s=self._timeout_s)
        except (ShemError, TimeoutError) as error:
            if node_id in self._peers.connected():
                return
            log.info("%s is away, and so are its offers: %s", node_id, error)
            for offer_id in self._book.of(node_id):
                self._book.forget(offer_id)

    def _leave(self, node_id: NodeId) -> None:
        listener = self._listeners.pop(node_id, None)
        if listener is not None and listener.task is not None:
            listener.task.cancel()

    def _changed(self, subject: Subject, change: Change, signed: SignedOffer, source: str | None) -> None:
        for node_id, listener in self._listeners.items():
            if node_id in (source, subject[0]):
                continue
            listener.untold[subject] = None
            listener.wake.set()

    async def _spread(self, node_id: NodeId, listener: _Listener) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            await listener.wake.wait()
            listener.wake.clear()
            while listener.untold:
                page = self._next_page(node_id, listener)
                if await self._tell(node_id, list(page.values())):
                    pause_s = FIRST_PAUSE_S
                    continue
                listener.untold = dict.fromkeys(page) | listener.untold
                await self._clock.sleep(pause_s)
                pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def _next_page(self, node_id: NodeId, listener: _Listener) -> dict[Subject, SignedOffer]:
        page: dict[Subject, SignedOffer] = {}
        size = 0
        while listener.untold and len(page) < protocol.MAX_PAGE_OFFERS and size < protocol.PAGE_BYTES:
            subject = next(iter(listener.untold))
            del listener.untold[subject]
            offer = self._book.signed(subject)
            if offer is None or subject[0] == node_id or listener.heard.pop(subject, None) == offer.statement:
                continue
            page[subject] = offer
            size += len(offer.body) + len(offer.statement) + 128
        return page

    async def _tell(self, node_id: NodeId, offers: list[SignedOffer]) -> bool:
        """Whether the peer need not be told this again."""
        if not offers:
            return True
        try:
            page = protocol.pack(protocol.OffersPage(offers))
            await self._peers.call(node_id, protocol.OFFERS, page, timeout_s=self._timeout_s)
        except Conflict:
            return False  # it still reads an earlier page
        except Refused as error:
            log.info("%s took not all of our offers: %s", node_id, error)
        except (ShemError, TimeoutError) as error:
            log.debug("%s heard no offers: %s", node_id, error)
            return False
        return True
