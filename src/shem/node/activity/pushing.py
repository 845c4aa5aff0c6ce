"""Events on their way from the provider's node to the requestor's: in order, at least once, each stored before the
next bytes leave.

One task per activity sends while there is something to send: whatever has gathered since the last answer goes in one
call of at most :data:`~shem.node.activity.protocol.PUSH_BYTES`, so one event travels at once and a flood travels in
large pieces, never more than one unacknowledged. When the requestor's node is away the task tries again with growing
pauses, and at once when it connects.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable

from shem.cogs.clock import Clock
from shem.errors import Gone, NotAllowed, NotFound, PeerFailed, Refused
from shem.node.activity import protocol, store
from shem.node.activity.background import Background
from shem.node.activity.settings import Settings
from shem.node.db import Database
from shem.terms.ids import NodeId

log = logging.getLogger(__name__)


class Pusher:
    """Keeps the requestors' nodes up to date."""

    def __init__(
        self,
        db: Database,
        peers: protocol.Peers,
        clock: Clock,
        settings: Settings,
        background: Background,
        *,
        on_unknown: Callable[[str], None],
    ) -> None:
        """``on_unknown`` is told of activities that the requestor's node does not know (any more)."""
        self._db = db
        self._peers = peers
        self._clock = clock
        self._settings = settings
        self._background = background
        self._on_unknown = on_unknown
        self._running: dict[str, asyncio.Event] = {}  # set: look again now
        self._usage_due: set[str] = set()
        self._bases: dict[str, int] = {}  # activities of an earlier run, and how many events they had at our start

    def start(self) -> None:
        """After a restart: send what is left. The first call for each activity only asks how far the other side has got:
        commits here are safe from a crash, but the last of them not from a power failure."""
        for row in store.to_resume(self._db.connection):
            self._bases[row["activity_id"]] = row["last_no"]
            self.kick(row["activity_id"])

    def kick(self, activity_id: str, *, usage: bool = False) -> None:
        """Something new is stored (``usage``: also, or only, newer counters)."""
        if usage:
            self._usage_due.add(activity_id)
        if self._background.stopped:
            return
        wake = self._running.get(activity_id)
        if wake is not None:
            wake.set()
            return
        self._running[activity_id] = asyncio.Event()
        self._background.start(self._push(activity_id), f"push {activity_id[:8]}")

    async def peer_connected(self, peer: NodeId) -> None:
        """A requestor's node is there: send it what it lacks."""
        for row in self._db.connection.execute(
            "select activity_id from hosted where peer = ? and acked_no < last_no", (peer,)
        ).fetchall():
            self.kick(row["activity_id"])

    async def _push(self, activity_id: str) -> None:
        wake = self._running[activity_id]
        pause = self._settings.retry_first_s
        try:
            while True:
                wake.clear()
                try:
                    if not await self._push_once(activity_id):
                        return
                    pause = self._settings.retry_first_s
                except (PeerFailed, Refused, TimeoutError) as error:
                    log.info("activity %s: the requestor's node is away: %s", activity_id, error)
                    if self._too_late(activity_id):
                        return
                    try:
                        async with asyncio.timeout(pause):
                            await wake.wait()
                    except TimeoutError:
                        pass
                    pause = min(self._settings.retry_last_s, pause * 2)
        finally:
            self._running.pop(activity_id, None)

    async def _push_once(self, activity_id: str) -> bool:
        """Send one piece; whether there was one."""
        connection = self._db.connection
        row = store.find(connection, "Provider", activity_id)
        if row is None:
            return False
        due = activity_id in self._usage_due
        unsure = activity_id in self._bases
        events = (
            []
            if unsure
            else store.events_to_push(
                connection, activity_id, row["acked_no"], protocol.PUSH_BYTES, protocol.MAX_PUSH_EVENTS
            )
        )
        if not events and not due and not unsure:
            return False
        usage = None
        if row["usage"] is not None:
            usage = protocol.Usage(tuple(json.loads(row["usage"])), row["usage_at"])
        self._usage_due.discard(activity_id)
        try:
            answer = await self._peers.call(
                NodeId(row["peer"]),
                protocol.PUSH,
                protocol.pack(protocol.Push(activity_id, events, usage)),
                timeout_s=self._settings.call_s,
            )
        except (NotFound, Gone, NotAllowed) as error:
            log.warning("activity %s: the requestor's node does not want its events: %s", activity_id, error)
            with self._db.transaction() as write:
                store.acknowledge(write, activity_id, row["last_no"])
            self._on_unknown(activity_id)
            return True
        except (PeerFailed, TimeoutError):
            if due:
                self._usage_due.add(activity_id)
            raise
        self._acknowledged(activity_id, row["acked_no"], protocol.unpack(answer, protocol.Got).no)
        return True

    def _acknowledged(self, activity_id: str, before: int, no: int) -> None:
        base = self._bases.pop(activity_id, None)
        with self._db.transaction() as connection:
            last = store.get(connection, "Provider", activity_id)["last_no"]
            if base is not None and no > base:
                store.renumber(connection, activity_id, base, no)
            elif before <= no <= last:
                store.acknowledge(connection, activity_id, no)
            else:
                raise PeerFailed(f"the requestor's node claims events up to {no}; it can have {before} to {last}")

    def _too_late(self, activity_id: str) -> bool:
        row = store.find(self._db.connection, "Provider", activity_id)
        if row is None or row["ended_us"] is None:
            return row is None
        age_s = (store.to_us(self._clock.now()) - row["ended_us"]) / 1e6
        return bool(age_s > self._settings.retry_for_s)
