"""What the parts of the market share."""

from __future__ import annotations

from collections.abc import Hashable
from datetime import datetime, timedelta

import msgspec

from shem.cogs.clock import Clock
from shem.cogs.pulse import Pulses
from shem.errors import NotFound
from shem.node.db import Database
from shem.node.market.config import MarketConfig
from shem.node.market.offers import OfferBook
from shem.node.market.outbox import Outbox
from shem.node.market.protocol import Identities, Peers, Signer
from shem.node.market.store import Store
from shem.terms.ids import NodeId


class Core(msgspec.Struct, frozen=True, kw_only=True):
    """One per node; made by :class:`~shem.node.market.service.Market`."""

    db: Database
    store: Store
    peers: Peers
    identities: Identities
    clock: Clock
    config: MarketConfig
    pulses: Pulses[Hashable]
    book: OfferBook
    outbox: Outbox

    def now(self) -> datetime:
        return self.clock.now()

    def later(self, seconds: float) -> datetime:
        """That long from now."""
        return self.clock.now() + timedelta(seconds=seconds)

    def signer(self, owner: str) -> Signer:
        """The identity with that node id. Raises :class:`NotFound` for one that does not live here."""
        signer = self.identities.get(NodeId(owner))
        if signer is None:
            raise NotFound(f"{owner} is no identity of this node", code="identity_not_found")
        return signer

    def beat_after_commit(self, key: Hashable) -> None:
        """Wake who waits for ``key`` once the open transaction has committed."""
        self.db.after_commit(lambda: self.pulses.beat(key))
