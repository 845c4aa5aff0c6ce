"""From the requestor's node to the provider's: batches and ends, and whether that node is there at all.

What is to be said is in the store; one task per activity says it, in order, and repeats it until it is confirmed.
One task per absent node tries to reach it with growing pauses; when the grace is over first, the node's activities are
marked lost, and found again when it answers. The first thing a returning node hears is how far we have got, so it sends
what we lack.
"""

from __future__ import annotations

import asyncio
import logging

from shem.cogs.clock import Clock
from shem.cogs.pulse import Pulses
from shem.errors import PeerFailed, Refused
from shem.node.activity import protocol, store
from shem.node.activity.background import Background
from shem.node.activity.settings import Hooks, Settings
from shem.node.db import Database
from shem.terms.ids import NodeId

log = logging.getLogger(__name__)


class Courier:
    """Brings what is stored to the provider's node."""

    def __init__(
        self,
        db: Database,
        peers: protocol.Peers,
        clock: Clock,
        settings: Settings,
        hooks: Hooks,
        background: Background,
        changed: Pulses[str],
    ) -> None:
        self._db = db
        self._peers = peers
        self._clock = clock
        self._settings = settings
        self._hooks = hooks
        self._background = background
        self._changed = changed
        self._running: dict[str, asyncio.Event] = {}
        self._waiters: dict[str, asyncio.Future[bool]] = {}
        self._absent: dict[str, asyncio.Event] = {}
        peers.on_connected(self._connected)
        peers.on_disconnected(self._disconnected)

    def start(self) -> None:
        """After a restart: say what is left to say, and ask for what is missing."""
        for peer in store.peers_with_rented(self._db.connection):
            self._look_for(NodeId(peer))

    async def bring(self, activity_id: str, key: str) -> bool:
        """Deliver what is stored; ``key`` is a batch's id, or the activity's for its end.

        ``True`` once confirmed; ``False`` when the node cannot be reached now (it will hear of it later). Raises the
        provider's refusal.
        """
        waiter = self._waiters.get(key)
        if waiter is None:
            waiter = self._waiters[key] = asyncio.get_running_loop().create_future()
        self.kick(activity_id)
        return await asyncio.shield(waiter)  # others may wait for the same

    def kick(self, activity_id: str) -> None:
        """There is something to say about this activity."""
        if self._background.stopped:
            return
        wake = self._running.get(activity_id)
        if wake is not None:
            wake.set()
            return
        self._running[activity_id] = asyncio.Event()
        self._background.start(self._run(activity_id), f"courier {activity_id[:8]}")

    def terminate(self, activity_id: str, reason: str) -> None:
        """Over, as far as this side is concerned."""
        with self._db.transaction() as connection:
            row = store.get(connection, "Requestor", activity_id)
            if row["state"] == "Terminated":
                return
            now_us = store.to_us(self._clock.now())
            store.set_state(connection, "Requestor", activity_id, "Terminated", None, reason, None, now_us)
            self._hooks.tell(store.activity_of(store.get(connection, "Requestor", activity_id), "Requestor"))
            self._db.after_commit(lambda: self._changed.beat(activity_id))

    async def _run(self, activity_id: str) -> None:
        wake = self._running[activity_id]
        pause = self._settings.retry_first_s
        try:
            while True:
                wake.clear()
                try:
                    if not await self._one(activity_id):
                        return
                    pause = self._settings.retry_first_s
                except (PeerFailed, TimeoutError) as error:
                    log.info("activity %s: the provider's node is away: %s", activity_id, error)
                    row = store.find(self._db.connection, "Requestor", activity_id)
                    if row is None:
                        return
                    self._look_for(NodeId(row["peer"]))
                    try:
                        async with asyncio.timeout(pause):
                            await wake.wait()
                    except TimeoutError:
                        pass
                    pause = min(self._settings.retry_last_s, pause * 2)
        finally:
            self._running.pop(activity_id, None)

    async def _one(self, activity_id: str) -> bool:
        """Say one thing; whether there was one."""
        row = store.find(self._db.connection, "Requestor", activity_id)
        if row is None:
            return False
        if row["unwanted"]:
            if row["told"]:
                return False
            await self._say_end(activity_id, row["peer"])
            return True
        batch = None if row["state"] == "Terminated" else store.undelivered(self._db.connection, activity_id)
        if batch is None:
            return False
        await self._say_batch(activity_id, row["peer"], batch["batch_id"], batch["script"])
        return True

    async def _say_batch(self, activity_id: str, peer: str, batch_id: str, script: str) -> None:
        try:
            message = protocol.Exec(activity_id, batch_id, script)
            await self._call(peer, protocol.EXEC, protocol.pack(message), batch_id)
        except Refused as error:
            with self._db.transaction() as connection:
                connection.execute("delete from rented_batch where batch_id = ?", (batch_id,))
            self._changed.beat(activity_id)
            self._settle(batch_id, error)
            return
        with self._db.transaction() as connection:
            connection.execute("update rented_batch set delivered = 1 where batch_id = ?", (batch_id,))
        self._settle(batch_id, True)

    async def _say_end(self, activity_id: str, peer: str) -> None:
        known = True
        try:
            answer = await self._call(peer, protocol.DESTROY, protocol.pack(protocol.Destroy(activity_id)), activity_id)
            known = not protocol.unpack(answer, protocol.Unknown).unknown
        except Refused as error:
            log.warning("activity %s: the provider's node will not end it: %s", activity_id, error)
            known = False
        with self._db.transaction() as connection:
            connection.execute("update rented set told = 1 where activity_id = ?", (activity_id,))
        if not known:
            self.terminate(activity_id, "the provider's node does not know it")
        self._settle(activity_id, True)

    async def _call(self, peer: str, method: str, payload: bytes, key: str) -> bytes:
        try:
            return await self._peers.call(NodeId(peer), method, payload, timeout_s=self._settings.call_s)
        except Refused:
            raise
        except (PeerFailed, TimeoutError):
            self._settle(key, False)
            raise

    def _settle(self, key: str, outcome: bool | Refused) -> None:
        waiter = self._waiters.pop(key, None)
        if waiter is None:
            return
        if isinstance(outcome, bool):
            waiter.set_result(outcome)
        else:
            waiter.set_exception(outcome)
            waiter.exception()  # whoever asked may have gone: that is no news

    # whether the other node is there

    async def _connected(self, peer: NodeId) -> None:
        self._look_for(peer)

    def _disconnected(self, peer: NodeId) -> None:
        self._look_for(peer)

    def _look_for(self, peer: NodeId) -> None:
        """Reach a node, or learn that it is away."""
        if self._background.stopped:
            return
        wake = self._absent.get(peer)
        if wake is not None:
            wake.set()
            return
        if not store.of_peer(self._db.connection, peer):
            return
        self._absent[peer] = asyncio.Event()
        self._background.start(self._search(peer), f"look for {peer[:10]}")

    async def _search(self, peer: NodeId) -> None:
        wake = self._absent[peer]
        timer = self._background.start(self._grace(peer), f"grace {peer[:10]}")
        pause = self._settings.retry_first_s
        try:
            while store.of_peer(self._db.connection, peer):
                wake.clear()
                try:
                    await self._sync(peer)
                    self._mark(peer, lost=False)
                    return
                except (PeerFailed, Refused, TimeoutError) as error:
                    log.debug("no answer from %s: %s", peer, error)
                try:
                    async with asyncio.timeout(pause):
                        await wake.wait()
                except TimeoutError:
                    pass
                pause = min(self._settings.retry_last_s, pause * 2)
        finally:
            if timer is not None:
                timer.cancel()
            self._absent.pop(peer, None)

    async def _grace(self, peer: NodeId) -> None:
        await self._clock.sleep(self._settings.peer_grace_s)
        self._mark(peer, lost=True)

    def _mark(self, peer: NodeId, *, lost: bool) -> None:
        with self._db.transaction() as connection:
            for row in store.of_peer(connection, peer):
                if row["state"] == "Terminated" or bool(row["lost"]) == lost:
                    continue
                activity_id = row["activity_id"]
                connection.execute("update rented set lost = ? where activity_id = ?", (lost, activity_id))
                self._hooks.tell(store.activity_of(store.get(connection, "Requestor", activity_id), "Requestor"))
        for row in store.of_peer(self._db.connection, peer):
            self._changed.beat(row["activity_id"])
            if not lost:
                self.kick(row["activity_id"])

    async def _sync(self, peer: NodeId) -> None:
        rows = [row for row in store.of_peer(self._db.connection, peer) if row["created"]]
        for start in range(0, max(1, len(rows)), protocol.MAX_SYNC):
            have = [
                protocol.Have(row["activity_id"], row["have_no"]) for row in rows[start : start + protocol.MAX_SYNC]
            ]
            answer = await self._peers.call(
                peer, protocol.SYNC, protocol.pack(protocol.Sync(have)), timeout_s=self._settings.call_s
            )
            asked = {one.activity_id for one in have}
            for activity_id in protocol.unpack(answer, protocol.Unknown).unknown:
                if activity_id in asked:
                    self.terminate(activity_id, "the provider's node does not know it any more")
