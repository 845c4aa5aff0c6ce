"""Activities of this node, in both roles: what REST and payment talk to.

An agreement that ends takes its activities with it, on either side; whoever bills for them subscribes with
:meth:`Activities.on_activity`.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from shem.cogs.clock import Clock
from shem.errors import NotAllowed, NotFound
from shem.node.activity import store
from shem.node.activity.background import Background
from shem.node.activity.hosting import Hosting
from shem.node.activity.lifecycle import Activity, Role
from shem.node.activity.protocol import Peers
from shem.node.activity.renting import Renting
from shem.node.activity.settings import ActivityHandler, Admit, Agreement, AgreementBook, Hooks, Settings, admit_all
from shem.node.db import Database

log = logging.getLogger(__name__)

_OVER = frozenset({"Terminated", "Expired", "Cancelled", "Rejected"})
_ROLES: tuple[Role, ...] = ("Requestor", "Provider")


class Activities:
    """The service. ``renting`` is the requestor's side, ``hosting`` the provider's."""

    def __init__(
        self,
        db: Database,
        peers: Peers,
        market: AgreementBook,
        clock: Clock,
        settings: Settings | None = None,
        admit: Admit = admit_all,
    ) -> None:
        """``admit`` is awaited before a requestor's activity is made here."""
        self._db = db
        self._clock = clock
        self._settings = settings or Settings()
        self._hooks = Hooks()
        self._background = Background()
        db.migrate(store.DOMAIN, store.SCRIPTS)
        parts = (db, peers, market, clock, self._settings, self._hooks, self._background)
        self.renting = Renting(*parts)
        self.hosting = Hosting(*parts, admit)
        market.on_agreement(self._agreement_changed)

    async def start(self) -> None:
        """Take up what a restart interrupted. Call when the peer network runs."""
        before = self._clock.now() - timedelta(seconds=self._settings.keep_ended_s)
        with self._db.transaction() as connection:
            store.sweep(connection, store.to_us(before))
        self.renting.start()
        self.hosting.start()

    async def stop(self) -> None:
        """End background work; nothing is lost by it."""
        self.renting.stop()
        self.hosting.stop()
        await self._background.stop()

    def on_activity(self, handler: ActivityHandler) -> None:
        """``handler(activity, state)`` inside the transaction of every state change, New and Terminated included.

        ``activity.usage`` is then the newest there is; at Terminated it is final. Use ``db.after_commit`` for more.
        """
        self._hooks.add(handler)

    def activity(self, activity_id: str, owner: str | None = None) -> Activity:
        """One activity, in whichever role this node has it. Raises ``NotFound`` (``no_activity``), ``NotAllowed``."""
        found = [
            store.activity_of(row, role)
            for role in _ROLES
            if (row := store.find(self._db.connection, role, activity_id)) is not None
        ]
        if not found:
            raise NotFound(f"there is no activity {activity_id[:64]!r} here", code="no_activity")
        for activity in found:
            if owner is None or activity.owner == owner:
                return activity
        raise NotAllowed("this activity belongs to another identity", code="not_your_activity")

    def agreement_of(self, activity_id: str) -> str:
        """The id of the agreement that an activity uses."""
        return self.activity(activity_id).agreement_id

    def usage(self, activity_id: str) -> list[float]:
        """The newest counters; empty before the first report."""
        return list(self.activity(activity_id).usage or ())

    def of_agreement(self, agreement_id: str, owner: str | None = None) -> list[str]:
        """The activities of an agreement, oldest first, ended ones too."""
        ids: list[str] = []
        for role in _ROLES:
            for row in store.of_agreement(self._db.connection, role, agreement_id):
                if (owner is None or row["owner"] == owner) and row["activity_id"] not in ids:
                    ids.append(row["activity_id"])
        return ids

    def _agreement_changed(self, agreement: Agreement, state: str) -> None:
        if state not in _OVER:
            return
        for row in store.of_agreement(self._db.connection, "Requestor", agreement.agreement_id):
            if row["state"] != "Terminated" and not row["unwanted"]:
                self.renting.give_up(row["activity_id"])
        for row in store.of_agreement(self._db.connection, "Provider", agreement.agreement_id):
            self.hosting.end(row["activity_id"])
