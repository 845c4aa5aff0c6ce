"""The market of one node: how the parts are put together, started and stopped.

::

    REST ──▶ subscriptions ─ negotiation ─ agreements ─ scans
                  │               │            │          │
             book (offers) ◀── gossip ──▶ peers ◀── outbox
                  │
             store (SQLite), timers, pulses

Demands stay on their node. Offers spread to everybody, signed; each requestor's node matches its own demands with the
offers it knows, makes the initial proposals, and from then on the two nodes speak to each other alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from datetime import timedelta

from shem.cogs.clock import Clock
from shem.cogs.pulse import Pulses
from shem.cogs.tasks import TaskScope
from shem.node.db import Database
from shem.node.market import protocol
from shem.node.market.agreements import Agreements
from shem.node.market.config import MarketConfig
from shem.node.market.core import Core
from shem.node.market.gossip import Gossip
from shem.node.market.lifecycle import Agreement, AgreementNotFound
from shem.node.market.negotiation import Negotiation
from shem.node.market.offers import OfferBook
from shem.node.market.outbox import Outbox
from shem.node.market.protocol import Identities, Peers
from shem.node.market.scans import Scans
from shem.node.market.store import Store
from shem.node.market.subscriptions import Subscriptions
from shem.node.market.timers import Timers

SWEEP_S = 3600.0


class Market:
    """Construct, :meth:`start` once the peer network runs (or before), :meth:`stop` before it stops."""

    def __init__(
        self,
        db: Database,
        peers: Peers,
        identities: Identities,
        clock: Clock,
        config: MarketConfig | None = None,
    ) -> None:
        """``identities`` maps the node ids that live here to what signs for them. Registers with ``peers``."""
        config = config or MarketConfig()
        self._tasks = TaskScope("market")
        self._timers = Timers(clock, self._tasks)
        store = Store(db)
        self.core = Core(
            db=db,
            store=store,
            peers=peers,
            identities=identities,
            clock=clock,
            config=config,
            pulses=Pulses[Hashable](),
            book=OfferBook(self._timers, max_offers=config.max_offers, max_per_issuer=config.max_offers_per_issuer),
            outbox=Outbox(
                store,
                peers,
                clock,
                self._tasks,
                ttl_s=config.outbox_ttl_s,
                limit=config.max_outbox,
                rpc_timeout_s=config.rpc_timeout_s,
                retry_first_s=config.retry_first_s,
                retry_max_s=config.retry_max_s,
            ),
        )
        self.subscriptions = Subscriptions(self.core, self._timers)
        self.negotiation = Negotiation(self.core, self.subscriptions)
        self.agreements = Agreements(self.core, self.subscriptions, self.negotiation, self._timers)
        self.scans = Scans(self.core, self.subscriptions, self._timers)
        self._gossip = Gossip(peers, self.core.book, self._tasks, clock, timeout_s=config.rpc_timeout_s)
        self._meters = protocol.Meters(clock, burst=config.news_burst, per_s=config.news_per_s)
        protocol.serve_offers(peers, self.core.book, identities, clock, self._meters, self._gossip.heard)

    async def start(self) -> None:
        """Bring everything back from the store, publish, and follow the network."""
        self._gossip.start()
        self.subscriptions.start()
        self.agreements.start()
        self.core.outbox.start()
        self._sweep()

    async def stop(self) -> None:
        """Tell connected peers that our offers are gone for now, wake all long polls, end all tasks."""
        await self._gossip.farewell(self.subscriptions.farewell())
        self.core.outbox.stop()
        self.core.pulses.beat_all()
        await self._tasks.close()

    def unlocked(self) -> None:
        """The key that signs for an identity is there again: show the network what waited for it."""
        self.subscriptions.republish()

    def agreement(self, agreement_id: str, owner: str | None = None) -> Agreement:
        """An agreement of ``owner``, or of whichever identity of this node is a party to it.

        Raises :class:`~shem.node.market.lifecycle.AgreementNotFound` (``NotFound``).
        """
        if owner is not None:
            return self.agreements.get(owner, agreement_id)
        for node_id in self.core.identities:
            try:
                return self.agreements.get(node_id, agreement_id)
            except AgreementNotFound:
                continue
        raise AgreementNotFound(f"Agreement [{agreement_id[:80]}] not found.")

    def approved(self) -> list[Agreement]:
        """All agreements that are in force, of every identity of this node."""
        return [a for owner in self.core.identities for a in self.core.store.agreements(owner, state="Approved")]

    def on_agreement(self, handler: Callable[[Agreement, str], None]) -> None:
        """``handler(agreement, new state)`` is called inside the transaction that changes the state.

        It must not await; what it raises undoes the change. Use ``db.after_commit`` for what follows.
        """
        self.agreements.on_change(handler)

    def _sweep(self) -> None:
        core = self.core
        with core.db.transaction():
            core.store.sweep(core.now() - timedelta(seconds=core.config.proposal_ttl_s))
        self._timers.at(core.later(SWEEP_S), "sweep", self._sweep)
