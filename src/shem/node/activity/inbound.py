"""What a provider's node tells of a rented activity: checked, stored for good, then confirmed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from shem.cogs.clock import Clock
from shem.cogs.pulse import Pulses
from shem.errors import NotAllowed, NotFound
from shem.node.activity import protocol, store
from shem.node.activity.events import Event, Finished, Kind, Output, Started, StateChanged, encode_kind
from shem.node.activity.lifecycle import may_step, parse_state
from shem.node.activity.settings import Hooks, Settings
from shem.node.db import Database
from shem.terms.ids import NodeId

_SLACK_BYTES = 1 << 20
"""How much more than its own limit's worth of output is taken before the provider's node is not believed to have one."""


class Inbound:
    """Serves ``activity.push``."""

    def __init__(
        self,
        db: Database,
        peers: protocol.Peers,
        clock: Clock,
        settings: Settings,
        hooks: Hooks,
        changed: Pulses[str],
        *,
        on_zombie: Callable[[str], None],
    ) -> None:
        """``on_zombie`` is told of activities that live on over there although they have ended here."""
        self._on_zombie = on_zombie
        self._db = db
        self._clock = clock
        self._settings = settings
        self._hooks = hooks
        self._changed = changed
        peers.serve(protocol.PUSH, self._push, max_request=protocol.MAX_PUSH_BYTES)

    async def _push(self, peer: NodeId, payload: bytes) -> bytes:
        message = protocol.unpack(payload, protocol.Push)
        # What is confirmed here is forgotten there: it must be on the disk first.
        with self._db.transaction(durable=bool(message.events)) as connection:
            row = store.find(connection, "Requestor", message.activity_id)
            if row is None:
                raise NotFound("no such activity", code="no_activity")
            if row["peer"] != peer:
                raise NotAllowed("this activity is not with you", code="not_your_activity")
            if message.usage is not None:
                store.set_usage(connection, "Requestor", message.activity_id, message.usage.counters, message.usage.at)
            have = self._take(connection, row, message.events)
            if have != row["have_no"]:
                connection.execute("update rented set have_no = ? where activity_id = ?", (have, message.activity_id))
                self._db.after_commit(lambda: self._changed.beat(message.activity_id))
        return protocol.pack(protocol.Got(have))

    def _take(self, connection: sqlite3.Connection, row: sqlite3.Row, events: list[Event]) -> int:
        have = int(row["have_no"])
        batches: dict[str, _Batch | None] = {}
        for event in events:
            if event.no <= have:
                continue
            if event.no != have + 1:
                break  # a gap: the answer says from where to go on
            have = event.no
            kind = event.kind
            if isinstance(kind, StateChanged):
                self._state(connection, row["activity_id"], kind)
                continue
            if event.batch_id not in batches:
                batches[event.batch_id] = _Batch.find(connection, row["activity_id"], event.batch_id)
            batch = batches[event.batch_id]
            if batch is not None and not batch.finished and event.index < batch.size:
                self._event(connection, batch, event, kind)
        for batch in batches.values():
            if batch is not None:
                batch.save(connection)
        return have

    def _event(self, connection: sqlite3.Connection, batch: _Batch, event: Event, kind: Kind) -> None:
        body = event.body
        match kind:
            case Started():
                batch.started = event.index + 1
            case Output(data=data):
                batch.output_bytes += len(data)
                if batch.output_bytes > self._settings.max_output_bytes + _SLACK_BYTES:
                    message = f"output_limit: the provider sent more than {self._settings.max_output_bytes} bytes"
                    body = encode_kind(Finished(1, message))
                    batch.finished = True
            case Finished(return_code=code):
                batch.done = event.index + 1
                batch.finished = code != 0 or batch.done == batch.size
            case _:
                pass
        connection.execute(
            "insert into rented_event values (?, ?, ?, ?, ?)",
            (event.batch_id, event.no, event.index, event.at_us, body),
        )

    def _state(self, connection: sqlite3.Connection, activity_id: str, change: StateChanged) -> None:
        row = store.get(connection, "Requestor", activity_id)
        state = parse_state(change.state)
        if row["state"] == "Terminated" and state != "Terminated":
            connection.execute("update rented set unwanted = 1, told = 0 where activity_id = ?", (activity_id,))
            self._db.after_commit(lambda: self._on_zombie(activity_id))
        if not may_step(row["state"], state):
            return
        target = None if change.target is None else parse_state(change.target)
        now_us = store.to_us(self._clock.now())
        store.set_state(
            connection, "Requestor", activity_id, state, target, change.reason, change.error_message, now_us
        )
        self._hooks.tell(store.activity_of(store.get(connection, "Requestor", activity_id), "Requestor"))


class _Batch:
    """A batch's counters while events are taken in."""

    def __init__(self, row: sqlite3.Row) -> None:
        self._id: str = row["batch_id"]
        self.size: int = row["size"]
        self.started: int = row["started"]
        self.done: int = row["done"]
        self.finished = bool(row["finished"])
        self.output_bytes: int = row["output_bytes"]

    @classmethod
    def find(cls, connection: sqlite3.Connection, activity_id: str, batch_id: str) -> _Batch | None:
        try:
            return cls(store.batch(connection, activity_id, batch_id))
        except NotFound:
            return None

    def save(self, connection: sqlite3.Connection) -> None:
        connection.execute(
            "update rented_batch set started = ?, done = ?, finished = ?, output_bytes = ? where batch_id = ?",
            (self.started, self.done, self.finished, self.output_bytes, self._id),
        )
