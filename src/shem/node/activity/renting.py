"""The requestor's side: activities that run elsewhere, for an agent here.

What the agent asks for is written down first and then brought to the provider's node, in order, as often as it takes
(:mod:`~shem.node.activity.courier`): batches carry ids, so nothing runs twice. What that node tells is stored before it
is confirmed (:mod:`~shem.node.activity.inbound`), and every reader, long poll or stream, reads from the store and is
woken by a pulse. While the node or the exe unit is away, readers are told so instead of being kept waiting.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections.abc import AsyncIterator
from typing import cast

from shem.cogs.clock import Clock
from shem.cogs.pulse import Pulses
from shem.errors import Conflict, Gone, NotAllowed, NotFound, PeerFailed, Refused
from shem.node.activity import protocol, store
from shem.node.activity.background import Background
from shem.node.activity.courier import Courier
from shem.node.activity.events import Finished
from shem.node.activity.inbound import Inbound
from shem.node.activity.lifecycle import State
from shem.node.activity.results import Result, Script, Streamer, StreamItem, place_of, results
from shem.node.activity.settings import AgreementBook, Hooks, Settings
from shem.node.db import Database
from shem.terms.ids import NodeId

START = (0, 0.0)
_PAGE = 32
_SCRIPTS_KEPT = 64
_WAIT_S = 3600.0
_ENDED = 1
"""The return code shown for a command that the end of its activity cut off."""


class Unresponsive(PeerFailed):
    """The provider's node, or its exe unit, is away: nothing can be said about the batch."""

    default_code = "activity_unresponsive"


class Renting:
    """Activities that this node's requestor agents use."""

    def __init__(
        self,
        db: Database,
        peers: protocol.Peers,
        agreements: AgreementBook,
        clock: Clock,
        settings: Settings,
        hooks: Hooks,
        background: Background,
    ) -> None:
        self._db = db
        self._peers = peers
        self._agreements = agreements
        self._clock = clock
        self._settings = settings
        self._hooks = hooks
        self._scripts: dict[str, Script] = {}
        self._changed: Pulses[str] = Pulses()  # keyed by activity id
        self._courier = Courier(db, peers, clock, settings, hooks, background, self._changed)
        Inbound(db, peers, clock, settings, hooks, self._changed, on_zombie=self._courier.kick)

    def start(self) -> None:
        """After a restart: whoever waited for a new activity waits no more; everything else goes on."""
        with self._db.transaction() as connection:
            connection.execute("update rented set unwanted = 1 where state = 'New'")
        self._courier.start()

    def stop(self) -> None:
        """Wake whoever waits."""
        self._changed.beat_all()

    async def create(self, owner: str, agreement_id: str, timeout_s: float) -> str:
        """A new activity, once the provider has initialized it; its id.

        Raises ``Refused`` (``agreement_not_approved``), ``NotAllowed``, ``PeerFailed``, or ``TimeoutError``. After any
        failure the activity is destroyed, so nothing leaks at the provider.
        """
        agreement = self._agreements.agreement(agreement_id, NodeId(owner))
        if agreement.requestor_id != owner:
            raise NotAllowed("only the agreement's requestor creates activities", code="not_your_agreement")
        if agreement.state != "Approved":
            raise Refused(f"the agreement is {agreement.state}, not Approved", code="agreement_not_approved")
        activity_id = secrets.token_hex(16)
        with self._db.transaction(durable=True) as connection:
            store.add_rented(
                connection,
                activity_id=activity_id,
                agreement_id=agreement_id,
                owner=owner,
                peer=agreement.provider_id,
                created_us=store.to_us(self._clock.now()),
            )
            self._hooks.tell(store.activity_of(store.get(connection, "Requestor", activity_id), "Requestor"))
        try:
            state = await self._initialize(activity_id, agreement_id, NodeId(agreement.provider_id), timeout_s)
        except BaseException:
            self.give_up(activity_id)
            raise
        if state in {"Terminated", "Unresponsive"}:
            row = store.get(self._db.connection, "Requestor", activity_id)
            self.give_up(activity_id)
            raise PeerFailed(
                f"the provider could not start the activity: {row['reason'] or state}",
                code="activity_not_started",
                hint=row["error_message"] or "",
            )
        return activity_id

    async def _initialize(self, activity_id: str, agreement_id: str, provider: NodeId, timeout_s: float) -> State:
        message = protocol.pack(protocol.Create(activity_id, agreement_id))
        async with asyncio.timeout(timeout_s):
            patience_s = min(timeout_s, self._settings.create_s)
            await self._peers.call(provider, protocol.CREATE, message, timeout_s=patience_s)
            with self._db.transaction() as connection:
                connection.execute("update rented set created = 1 where activity_id = ?", (activity_id,))
            state = await self._changed.wait_for(activity_id, lambda: self._begun(activity_id), timeout_s)
        if state is None:
            raise TimeoutError("the provider did not initialize the activity in time")
        return cast(State, state)

    def _begun(self, activity_id: str) -> State | None:
        state = store.activity_of(store.get(self._db.connection, "Requestor", activity_id), "Requestor").state
        return None if state == "New" else state

    async def exec(self, owner: str, activity_id: str, text: str) -> str:
        """Store a batch and bring it to the provider's node; its id.

        When that node is away at the moment the batch waits for it. Raises ``BadScript``, ``Gone`` after the end,
        :class:`Unresponsive` when the provider is known to be away, and what the provider's node refuses.
        """
        self._owned(self._db.connection, owner, activity_id)
        script = Script(text)
        batch_id = secrets.token_hex(16)
        with self._db.transaction() as connection:
            row = self._owned(connection, owner, activity_id)
            if row["state"] == "Terminated" or row["unwanted"]:
                raise Gone(f"activity {activity_id} has ended", code="activity_terminated")
            self._check_responsive(row)
            waiting = connection.execute(
                "select count(*) from rented_batch where activity_id = ? and finished = 0", (activity_id,)
            ).fetchone()[0]
            if waiting >= self._settings.max_queued_batches:
                raise Conflict(f"{waiting} batches are waiting already", code="too_many_batches")
            store.add_batch(connection, activity_id, batch_id, text, len(script), keep=self._settings.keep_batches)
        self._remember(batch_id, script)
        await self._courier.bring(activity_id, batch_id)
        return batch_id

    async def results(
        self, owner: str, activity_id: str, batch_id: str, timeout_s: float, command_index: int | None
    ) -> list[Result]:
        """All finished results from the first, once the batch (or that command) is done or the time is up.

        A batch that the end of its activity cut off ends with a failed result that says so. Raises ``TimeoutError``
        when ``command_index`` is given and that command is not done, and :class:`Unresponsive`.
        """
        self._owned(self._db.connection, owner, activity_id)

        def ready() -> bool:
            batch = store.batch(self._db.connection, activity_id, batch_id)
            if batch["finished"] or (command_index is not None and batch["done"] > command_index):
                return True
            row = store.get(self._db.connection, "Requestor", activity_id)
            if row["state"] == "Terminated":
                return True
            self._check_responsive(row)
            return False

        if not await self._changed.wait_for(activity_id, ready, timeout_s) and command_index is not None:
            raise TimeoutError("Timeout")
        batch = store.batch(self._db.connection, activity_id, batch_id)
        script = self._script(batch)
        found = results(script, store.batch_events(self._db.connection, batch_id))
        row = store.get(self._db.connection, "Requestor", activity_id)
        if row["state"] == "Terminated" and not batch["finished"]:
            found.append(self._cut_off(row, len(found)))
        return found if command_index is None else found[: command_index + 1]

    def check_batch(self, owner: str, activity_id: str, batch_id: str) -> None:
        """Whether :meth:`stream` may be called. Raises ``NotFound``, ``NotAllowed``."""
        self._owned(self._db.connection, owner, activity_id)
        store.batch(self._db.connection, activity_id, batch_id)

    async def stream(
        self, activity_id: str, batch_id: str, *, after: tuple[int, float] = START
    ) -> AsyncIterator[StreamItem]:
        """Everything that happens in a batch, from its beginning (or ``after`` a place in it) to its end, at the reader's
        pace.

        Raises :class:`Unresponsive` when the provider or its exe unit goes away.
        """
        connection = self._db.connection
        script = self._script(store.batch(connection, activity_id, batch_id))
        streamer = Streamer(script)
        seen = 0

        def news() -> bool:
            batch = store.batch(connection, activity_id, batch_id)
            row = store.get(connection, "Requestor", activity_id)
            if batch["finished"] or row["state"] == "Terminated":
                return True
            if next(store.batch_events(connection, batch_id, after_no=seen, limit=1), None) is not None:
                return True
            self._check_responsive(row)
            return False

        while True:
            # Read before the events: a batch that is finished now has all of them in the store.
            batch = store.batch(connection, activity_id, batch_id)
            row = store.get(connection, "Requestor", activity_id)
            page = list(store.batch_events(connection, batch_id, after_no=seen, limit=_PAGE))
            for event in page:
                seen = event.no
                output = (
                    list(store.batch_events(connection, batch_id, index=event.index))
                    if streamer.needs_output(event)
                    else []
                )
                for item in streamer.items(event, output):
                    if place_of(item) > after:
                        yield item
            if page:
                continue
            if batch["finished"]:
                return
            if row["state"] == "Terminated":
                cut = self._cut_off(row, batch["done"])
                yield StreamItem(no=seen + 1, index=cut.index, at_us=cut.at_us, finished=Finished(_ENDED, cut.message))
                return
            await self._changed.wait_for(activity_id, news, _WAIT_S)

    def running(self, owner: str, activity_id: str) -> list[tuple[str, list[str]]]:
        """Commands under way: name and words. Raises ``NotFound`` (``no_command``) when there is none."""
        row = self._owned(self._db.connection, owner, activity_id)
        batches = self._db.connection.execute(
            "select * from rented_batch where activity_id = ? and finished = 0 and started > done order by number",
            (activity_id,),
        ).fetchall()
        if not batches or row["state"] == "Terminated":
            raise NotFound("no command is running", code="no_command")
        return [self._script(batch).describe(batch["started"] - 1) for batch in batches]

    async def destroy(self, owner: str, activity_id: str, timeout_s: float) -> None:
        """End an activity; returns once it has. Repeating it does no harm.

        When the provider's node is away it is over for this side, and that node is told when it is back. Raises
        ``TimeoutError`` when the end is not confirmed in time (it goes on).
        """
        row = self._owned(self._db.connection, owner, activity_id)
        if row["state"] == "Terminated":
            return
        self.give_up(activity_id, kick=False)
        async with asyncio.timeout(timeout_s):
            reached = bool(row["told"]) or await self._courier.bring(activity_id, activity_id)
            if reached:
                await self._changed.wait_for(activity_id, lambda: self._ended_or_lost(activity_id), timeout_s)
        row = store.get(self._db.connection, "Requestor", activity_id)
        if not reached or row["lost"]:
            self._courier.terminate(activity_id, "ended while the provider's node was away")
        elif row["state"] != "Terminated":
            raise TimeoutError("the provider has not confirmed the end in time")

    def _ended_or_lost(self, activity_id: str) -> bool:
        row = store.get(self._db.connection, "Requestor", activity_id)
        return row["state"] == "Terminated" or bool(row["lost"])

    def give_up(self, activity_id: str, *, kick: bool = True) -> None:
        """Write down that this activity is not wanted any more, and see to it that the provider's node hears of it."""
        with self._db.transaction(durable=True) as connection:
            connection.execute("update rented set unwanted = 1 where activity_id = ?", (activity_id,))
            if kick:
                self._db.after_commit(lambda: self._courier.kick(activity_id))

    def _owned(self, connection: sqlite3.Connection, owner: str, activity_id: str) -> sqlite3.Row:
        row = store.get(connection, "Requestor", activity_id)
        if row["owner"] != owner:
            raise NotAllowed("this activity belongs to another identity", code="not_your_activity")
        return row

    def _check_responsive(self, row: sqlite3.Row) -> None:
        if row["lost"] or row["state"] == "Unresponsive":
            who = "the provider's node" if row["lost"] else "the provider's exe unit"
            raise Unresponsive(
                f"{who} does not answer",
                hint="wait for it to come back, or end the agreement and take another provider",
            )

    def _cut_off(self, row: sqlite3.Row, index: int) -> Result:
        reason = row["reason"] or row["error_message"]
        message = "activity_terminated: the activity ended before this command did" + (f": {reason}" if reason else "")
        return Result(
            index=index, at_us=row["ended_us"], ok=False, stdout=None, stderr=None, message=message, last=True
        )

    def _script(self, batch: sqlite3.Row) -> Script:
        script = self._scripts.get(batch["batch_id"])
        if script is None:
            script = Script(batch["script"])
            self._remember(batch["batch_id"], script)
        return script

    def _remember(self, batch_id: str, script: Script) -> None:
        while len(self._scripts) >= _SCRIPTS_KEPT:
            self._scripts.pop(next(iter(self._scripts)))
        self._scripts[batch_id] = script
