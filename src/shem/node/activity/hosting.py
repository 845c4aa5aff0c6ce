"""The provider's side: activities that run here, for a requestor elsewhere.

A batch is written down before anybody hears that it has arrived, and marked as handed out before a unit hears of it, so
no crash makes it run twice: a unit that comes back is sent what it lacks, and a *new* unit never gets what an older one
may have begun. What a unit reports is numbered, stored and only then acknowledged; it waits here until the requestor's
node has it for good (:mod:`~shem.node.activity.pushing`).
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Sequence
from datetime import datetime

import msgspec

from shem.cogs.clock import Clock
from shem.cogs.pulse import Pulses
from shem.errors import Conflict, Gone, NotAllowed, Refused
from shem.node.activity import protocol, store
from shem.node.activity.background import Background
from shem.node.activity.events import Finished, StateChanged
from shem.node.activity.intake import FAILED, Intake, Journal
from shem.node.activity.lifecycle import State, check_step, may_step, parse_state
from shem.node.activity.pushing import Pusher
from shem.node.activity.settings import Admit, AgreementBook, Hooks, Settings, admit_all
from shem.node.activity.store import ProviderEventRow
from shem.node.activity.unit import UnitSession
from shem.node.db import Database
from shem.terms.ids import NodeId
from shem.terms.script import parse_script
from shem.wire import exeunit as wire

log = logging.getLogger(__name__)


class Hosting:
    """Activities that this node's provider agents run."""

    def __init__(
        self,
        db: Database,
        peers: protocol.Peers,
        agreements: AgreementBook,
        clock: Clock,
        settings: Settings,
        hooks: Hooks,
        background: Background,
        admit: Admit = admit_all,
    ) -> None:
        """``admit`` is awaited before an activity is made: no work starts that nobody pays for."""
        self._db = db
        self._admit = admit
        self._agreements = agreements
        self._clock = clock
        self._settings = settings
        self._hooks = hooks
        self._background = background
        self._sessions: dict[str, UnitSession] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._deadlines: set[str] = set()  # ends that wait for the agent's word
        self._news: Pulses[str] = Pulses()  # keyed by the provider's node id
        self._newest_us = store.newest_provider_event_us(db.connection)
        self.pusher = Pusher(db, peers, clock, settings, background, on_unknown=self.end)
        peers.serve(protocol.CREATE, self._create)
        peers.serve(protocol.EXEC, self._exec, max_request=protocol.MAX_EXEC_BYTES)
        peers.serve(protocol.DESTROY, self._destroy)
        peers.serve(protocol.SYNC, self._sync)
        peers.on_connected(self.pusher.peer_connected)

    def start(self) -> None:
        """After a restart: give units and agents their time to come back, and push what is left."""
        for row in store.alive(self._db.connection, "Provider"):
            if row["unit_id"]:
                self._watch(row["activity_id"])
            if row["destroy_us"] is not None:
                self._arm_deadline(row["activity_id"])
        self.pusher.start()

    def stop(self) -> None:
        """Wake whoever waits."""
        self._news.beat_all()
        for session in self._sessions.values():
            session.close()

    # what the provider agent asks

    async def events(
        self, owner: str, session: str | None, after: datetime, timeout_s: float, limit: int
    ) -> list[ProviderEventRow]:
        """Events strictly after ``after``, as soon as there are any.

        When the time is up, ends that are still not confirmed are reported again. Raises ``TimeoutError`` without any.
        """
        after_us = store.to_us(after)

        def read(*, pending: bool = False) -> list[ProviderEventRow]:
            return store.provider_events(self._db.connection, owner, session, after_us, limit, pending=pending)

        found = await self._news.wait_for(owner, read, timeout_s) or read(pending=True)
        if not found:
            raise TimeoutError("Timeout")
        return found

    def set_state(
        self,
        owner: str,
        activity_id: str,
        state: str,
        *,
        target: str | None = None,
        reason: str | None = None,
        error_message: str | None = None,
    ) -> None:
        """The agent's word. Raises ``Conflict`` (``illegal_step``)."""
        with self._db.transaction() as connection:
            row = self._owned(connection, owner, activity_id)
            after = parse_state(state)
            check_step(row["state"], after)
            if row["state"] != "Terminated":
                self._step(connection, row, after, target, reason, error_message)

    def end(self, activity_id: str) -> None:
        """Ask agent and unit to end an activity (its agreement is over, or the requestor wants it). Repeatable."""
        with self._db.transaction(durable=True) as connection:
            row = store.find(connection, "Provider", activity_id)
            if row is None or row["state"] == "Terminated" or row["destroy_us"] is not None:
                return
            connection.execute("update hosted set destroy_us = ? where activity_id = ?", (self._tick(), activity_id))
            self._db.after_commit(lambda: self._tell_end(activity_id, row["owner"]))

    def _tell_end(self, activity_id: str, owner: str) -> None:
        self._news.beat(owner)
        session = self._sessions.get(activity_id)
        if session is not None:
            session.say(wire.Destroy())
        self._arm_deadline(activity_id)

    # what an exe unit says

    def check_unit(self, owner: str, activity_id: str) -> None:
        """Whether a unit of ``owner`` may speak for this activity. Raises ``NotFound``, ``NotAllowed``, ``Gone``."""
        if self._owned(self._db.connection, owner, activity_id)["state"] == "Terminated":
            raise Gone(f"activity {activity_id} has ended", code="activity_terminated")

    def attach(self, owner: str, activity_id: str, hello: wire.Hello) -> UnitSession:
        """A unit has connected. Its session holds what it must hear; an earlier connection is closed."""
        self.check_unit(owner, activity_id)
        with self._db.transaction(durable=True) as connection:
            row = store.get(connection, "Provider", activity_id)
            fresh = hello.unit_id != row["unit_id"]
            session = UnitSession(activity_id, hello.unit_id, 0 if fresh else row["unit_seq"])
            if fresh:
                self._fail_handed(connection, row)
                connection.execute(
                    "update hosted set unit_id = ?, unit_seq = 0 where activity_id = ?", (hello.unit_id, activity_id)
                )
                if row["unit_id"] and row["state"] not in {"New", "Unresponsive"}:
                    row = store.get(connection, "Provider", activity_id)
                    self._step(connection, row, "Unresponsive", None, "a new exe unit has taken over", None)
            self._revive(connection, activity_id, parse_state(hello.state))
            for batch in store.unfinished_batches(connection, activity_id):
                if batch["batch_id"] not in hello.batches:
                    self._hand(connection, session, batch)
            if row["destroy_us"] is not None:
                session.say(wire.Destroy())
        old = self._sessions.get(activity_id)
        if old is not None:
            old.close()
        self._sessions[activity_id] = session
        watch = self._watches.pop(activity_id, None)
        if watch is not None:
            watch.cancel()
        return session

    def detach(self, session: UnitSession) -> None:
        """The connection has ended. The unit has a little while to come back."""
        session.close()
        if self._sessions.get(session.activity_id) is not session:
            return
        del self._sessions[session.activity_id]
        row = store.find(self._db.connection, "Provider", session.activity_id)
        if row is not None and row["state"] != "Terminated":
            self._watch(session.activity_id)

    def take(self, session: UnitSession, reports: Sequence[wire.Report]) -> None:
        """Store what the unit reported, in one transaction, and acknowledge it.

        Raises :class:`Refused` (``bad_frame``) for what no honest unit sends: nothing of ``reports`` is then stored.
        """
        activity_id = session.activity_id
        with self._db.transaction() as connection:
            row = store.get(connection, "Provider", activity_id)
            if row["unit_id"] != session.unit_id:
                raise Refused("another unit has taken over", code="bad_frame")
            seq, usage = row["unit_seq"], None
            journal = Journal(connection, row)
            intake = Intake(connection, row, journal, self._settings)
            state = row["state"]
            for report in reports:
                if isinstance(report, wire.Hello):
                    raise Refused("a unit says Hello once", code="bad_frame")
                if isinstance(report, wire.UsageReport):
                    usage = report
                    continue
                if report.seq <= seq:
                    continue
                if report.seq != seq + 1:
                    raise Refused(f"report {report.seq} came after {seq}", code="bad_frame")
                seq = report.seq
                if state == "Terminated":
                    continue  # final: nothing is added any more
                if isinstance(report, wire.BatchEvent):
                    intake.take(report)
                else:
                    intake.flush()
                    state = self._unit_state(connection, journal, row, state, report, usage)
                    usage = None
            intake.close()
            self._store_usage(connection, row, usage)
            added = journal.close()
            connection.execute("update hosted set unit_seq = ? where activity_id = ?", (seq, activity_id))
        for batch_id in intake.cancelled:
            session.say(wire.Cancel(batch_id=batch_id))
        if seq != row["unit_seq"] or not added:
            session.ack(seq)
        if added or usage is not None:
            self.pusher.kick(activity_id, usage=usage is not None)

    def _unit_state(
        self,
        connection: sqlite3.Connection,
        journal: Journal,
        row: sqlite3.Row,
        before: State,
        report: wire.StateChanged,
        usage: wire.UsageReport | None,
    ) -> State:
        after = parse_state(report.state)
        if not may_step(before, after):
            log.warning("activity %s: its unit went from %s to %s", row["activity_id"], before, after)
            return before
        # Counters first: whoever is told of the end reads the final ones.
        self._store_usage(connection, row, usage)
        self._write_state(
            connection, journal, row["activity_id"], after, report.target, report.reason, report.error_message
        )
        return after

    def _store_usage(self, connection: sqlite3.Connection, row: sqlite3.Row, usage: wire.UsageReport | None) -> None:
        if usage is not None and row["state"] != "Terminated":
            store.set_usage(connection, "Provider", row["activity_id"], usage.usage, usage.timestamp)

    # what the requestor's node asks

    async def _create(self, peer: NodeId, payload: bytes) -> bytes:
        message = protocol.unpack(payload, protocol.Create)
        agreement = self._agreements.agreement(message.agreement_id)
        if agreement.requestor_id != peer:
            raise NotAllowed("the agreement is not yours", code="not_your_agreement")
        if agreement.state != "Approved":
            raise Refused(f"the agreement is {agreement.state}, not Approved", code="agreement_not_approved")
        await self._admit(agreement.provider_id, message.agreement_id)
        with self._db.transaction(durable=True) as connection:
            state = self._agreements.agreement(message.agreement_id).state
            if state != "Approved":
                raise Refused(f"the agreement is {state}, not Approved", code="agreement_not_approved")
            known = store.find(connection, "Provider", message.activity_id)
            if known is not None:
                if known["peer"] != peer or known["agreement_id"] != message.agreement_id:
                    raise Conflict("this activity id is taken", code="activity_id_taken")
                return b""
            rows = store.of_agreement(connection, "Provider", message.agreement_id)
            live = sum(row["state"] != "Terminated" for row in rows)
            if live >= self._settings.max_live_per_agreement:
                raise Conflict(f"the agreement has {live} activities already", code="too_many_activities")
            store.add_hosted(
                connection,
                activity_id=message.activity_id,
                agreement_id=message.agreement_id,
                owner=agreement.provider_id,
                peer=peer,
                app_session=agreement.app_session_id,
                created_us=self._tick(),
            )
            self._hooks.tell(store.activity_of(store.get(connection, "Provider", message.activity_id), "Provider"))
            self._db.after_commit(lambda: self._news.beat(agreement.provider_id))
        return b""

    async def _exec(self, peer: NodeId, payload: bytes) -> bytes:
        message = protocol.unpack(payload, protocol.Exec)
        commands = parse_script(message.script)
        with self._db.transaction() as connection:
            row = self._rented_by(connection, peer, message.activity_id)
            known = connection.execute(
                "select script from hosted_batch where activity_id = ? and batch_id = ?",
                (message.activity_id, message.batch_id),
            ).fetchone()
            if known is not None:
                if known["script"] != message.script:
                    raise Conflict("this batch id names another script", code="batch_id_taken")
                return b""
            if row["state"] == "Terminated" or row["destroy_us"] is not None:
                raise Gone("the activity has ended", code="activity_terminated")
            waiting = store.unfinished_batches(connection, message.activity_id)
            if len(waiting) >= self._settings.max_queued_batches:
                raise Conflict(f"{len(waiting)} batches are waiting already", code="too_many_batches")
            connection.execute(
                "insert into hosted_batch (activity_id, number, batch_id, script, size)"
                " select ?, coalesce(max(number), 0) + 1, ?, ?, ? from hosted_batch where activity_id = ?",
                (message.activity_id, message.batch_id, message.script, len(commands), message.activity_id),
            )
            session = self._sessions.get(message.activity_id)
            if session is not None:
                (batch,) = connection.execute(
                    "select * from hosted_batch where activity_id = ? and batch_id = ?",
                    (message.activity_id, message.batch_id),
                )
                self._hand(connection, session, batch)
        return b""

    async def _destroy(self, peer: NodeId, payload: bytes) -> bytes:
        message = protocol.unpack(payload, protocol.Destroy)
        row = store.find(self._db.connection, "Provider", message.activity_id)
        if row is None:
            return protocol.pack(protocol.Unknown([message.activity_id]))
        self._rented_by(self._db.connection, peer, message.activity_id)
        self.end(message.activity_id)
        return protocol.pack(protocol.Unknown([]))

    async def _sync(self, peer: NodeId, payload: bytes) -> bytes:
        message = protocol.unpack(payload, protocol.Sync)
        unknown: list[str] = []
        for have in message.activities:
            row = store.find(self._db.connection, "Provider", have.activity_id)
            if row is None or row["peer"] != peer:
                unknown.append(have.activity_id)
                continue
            self.pusher.kick(have.activity_id, usage=True)
        return protocol.pack(protocol.Unknown(unknown))

    # steps

    def _owned(self, connection: sqlite3.Connection, owner: str, activity_id: str) -> sqlite3.Row:
        row = store.get(connection, "Provider", activity_id)
        if row["owner"] != owner:
            raise NotAllowed("this activity belongs to another identity", code="not_your_activity")
        return row

    def _rented_by(self, connection: sqlite3.Connection, peer: str, activity_id: str) -> sqlite3.Row:
        row = store.get(connection, "Provider", activity_id)
        if row["peer"] != peer:
            raise NotAllowed("this activity is not yours", code="not_your_activity")
        return row

    def _tick(self) -> int:
        """A time later than that of every other event for agents."""
        self._newest_us = max(self._newest_us + 1, store.to_us(self._clock.now()))
        return self._newest_us

    def _hand(self, connection: sqlite3.Connection, session: UnitSession, batch: sqlite3.Row) -> None:
        """Give a batch to a unit, once the database knows of it."""
        connection.execute(
            "update hosted_batch set handed = 1 where activity_id = ? and batch_id = ?",
            (batch["activity_id"], batch["batch_id"]),
        )
        script = msgspec.json.decode(batch["script"])
        self._db.after_commit(lambda: session.say(wire.Execute(batch_id=batch["batch_id"], script=script)))

    def _fail_handed(self, connection: sqlite3.Connection, row: sqlite3.Row) -> None:
        """An exe unit is gone for good: what it had begun has failed."""
        activity_id = row["activity_id"]
        journal = Journal(connection, row)
        for batch in store.unfinished_batches(connection, activity_id):
            if not batch["handed"]:
                continue
            journal.add(
                batch["batch_id"],
                batch["command"],
                store.to_us(self._clock.now()),
                Finished(FAILED, "unit_lost: the exe unit that ran this batch is gone"),
            )
            connection.execute(
                "update hosted_batch set finished = 1 where activity_id = ? and batch_id = ?",
                (activity_id, batch["batch_id"]),
            )
        if journal.close():
            self._db.after_commit(lambda: self.pusher.kick(activity_id))

    def _revive(self, connection: sqlite3.Connection, activity_id: str, state: State) -> None:
        row = store.get(connection, "Provider", activity_id)
        if row["state"] == "Unresponsive" and state not in {"Unresponsive", "Terminated"}:
            self._step(connection, row, state, None, None, None)

    def _step(
        self,
        connection: sqlite3.Connection,
        row: sqlite3.Row,
        state: State,
        target: str | None,
        reason: str | None,
        error_message: str | None,
    ) -> None:
        journal = Journal(connection, row)
        self._write_state(connection, journal, row["activity_id"], state, target, reason, error_message)
        journal.close()
        self._db.after_commit(lambda: self.pusher.kick(row["activity_id"]))

    def _write_state(
        self,
        connection: sqlite3.Connection,
        journal: Journal,
        activity_id: str,
        state: State,
        target: str | None,
        reason: str | None,
        error_message: str | None,
    ) -> None:
        now_us = store.to_us(self._clock.now())
        goal = None if target is None else parse_state(target)
        store.set_state(connection, "Provider", activity_id, state, goal, reason, error_message, now_us)
        journal.add("", 0, now_us, StateChanged(state, goal, reason, error_message))
        self._hooks.tell(store.activity_of(store.get(connection, "Provider", activity_id), "Provider"))

    # patience

    def _watch(self, activity_id: str) -> None:
        task = self._background.start(self._wait_for_unit(activity_id), f"unit {activity_id[:8]}")
        if task is not None:
            self._watches[activity_id] = task

    async def _wait_for_unit(self, activity_id: str) -> None:
        grace = self._settings.unit_grace_s
        await self._clock.sleep(grace)
        self._give_up(activity_id, "Unresponsive", "the exe unit has lost its node")
        await self._clock.sleep(max(0.0, self._settings.unit_lost_s - grace))
        self._watches.pop(activity_id, None)
        self._give_up(activity_id, "Terminated", "the exe unit is gone")

    def _arm_deadline(self, activity_id: str) -> None:
        if activity_id not in self._deadlines:
            self._deadlines.add(activity_id)
            self._background.start(self._wait_for_end(activity_id), f"end {activity_id[:8]}")

    async def _wait_for_end(self, activity_id: str) -> None:
        try:
            await self._clock.sleep(self._settings.destroy_grace_s)
            self._give_up(activity_id, "Terminated", "the provider agent did not confirm the end")
        finally:
            self._deadlines.discard(activity_id)

    def _give_up(self, activity_id: str, state: State, reason: str) -> None:
        with self._db.transaction() as connection:
            row = store.get(connection, "Provider", activity_id)
            if row["state"] == "Terminated" or row["state"] == state:
                return
            log.warning("activity %s becomes %s: %s", activity_id, state, reason)
            self._step(connection, row, state, None, reason, None)
        if state == "Terminated" and (session := self._sessions.get(activity_id)) is not None:
            session.close()
