"""What an exe unit reports, turned into stored events, a whole wake-up in one transaction.

Reports carry the unit's own numbers; one that is stored already is skipped, a gap is refused (the unit connects again
and sends from where the node is). Neighbouring pieces of output become one event. Output beyond the batch's limit fails
the command in so many words: it is never silently cut.
"""

from __future__ import annotations

import logging
import sqlite3

from shem.errors import Refused
from shem.node.activity import store
from shem.node.activity.events import (
    MAX_AT_US,
    MAX_PIECE,
    STDERR,
    STDOUT,
    Event,
    Finished,
    Kind,
    Output,
    Progress,
    Started,
    encode_kind,
)
from shem.node.activity.settings import Settings
from shem.wire import exeunit as wire

log = logging.getLogger(__name__)

FAILED = 1
"""The return code of a command that the node had to end: its unit is gone, or its output was too much."""


class Journal:
    """Appends events to one activity inside a transaction."""

    def __init__(self, connection: sqlite3.Connection, row: sqlite3.Row) -> None:
        self._connection = connection
        self._activity_id: str = row["activity_id"]
        self._first: int = row["last_no"]
        self._no = self._first

    def add(self, batch_id: str, index: int, at_us: int, kind: Kind) -> None:
        """One more event."""
        self._no += 1
        store.add_event(self._connection, self._activity_id, Event(self._no, batch_id, index, at_us, encode_kind(kind)))

    def close(self) -> bool:
        """Write the count down; whether anything was added."""
        if self._no == self._first:
            return False
        self._connection.execute("update hosted set last_no = ? where activity_id = ?", (self._no, self._activity_id))
        return True


class _Batch:
    """A batch's counters while reports are taken in."""

    def __init__(self, row: sqlite3.Row) -> None:
        self.size: int = row["size"]
        self.finished = bool(row["finished"])
        self.output_bytes: int = row["output_bytes"]
        self.events: int = row["events"]
        self.command: int = row["command"]


class Intake:
    """The reports of one wake-up; call :meth:`take` for each and :meth:`close` at the end."""

    def __init__(self, connection: sqlite3.Connection, row: sqlite3.Row, journal: Journal, settings: Settings) -> None:
        self._connection = connection
        self._activity_id: str = row["activity_id"]
        self._journal = journal
        self._settings = settings
        self._batches: dict[str, _Batch | None] = {}
        self._held: tuple[str, int, int, int] | None = None  # (batch id, index, stream, time) of the output held back
        self._piece = bytearray()
        self.cancelled: list[str] = []
        """Batches that were failed here: their unit must stop them."""

    def take(self, event: wire.BatchEvent) -> None:
        """One event of a command. What comes for a finished or unknown batch is dropped."""
        batch = self._batch(event.batch_id)
        if batch is None or batch.finished:
            return
        if event.index >= batch.size:
            raise Refused(f"batch {event.batch_id} has no command {event.index}", code="bad_frame")
        at_us = min(max(store.to_us(event.event_date), 0), MAX_AT_US)
        match event.kind:
            case wire.Stdout() | wire.Stderr() as output:
                stream = STDOUT if isinstance(output, wire.Stdout) else STDERR
                self._output(event, batch, stream, at_us, output.content())
            case wire.Started():
                batch.command = event.index
                self._add(event, batch, at_us, Started())
            case wire.Progress(step=step, message=message, progress=progress, unit=unit):
                self._add(event, batch, at_us, Progress(step, message, progress, unit))
            case wire.Finished(return_code=code, message=message):
                self._add(event, batch, at_us, Finished(code, message))
                batch.finished = code != 0 or event.index == batch.size - 1
                batch.command = min(event.index + 1, batch.size - 1)

    def flush(self) -> None:
        """Let go of the output held back (before anything else is written)."""
        if self._held is None:
            return
        batch_id, index, stream, at_us = self._held
        batch = self._batches[batch_id]
        assert batch is not None
        for start in range(0, len(self._piece), MAX_PIECE):
            piece = bytes(self._piece[start : start + MAX_PIECE])
            self._journal.add(batch_id, index, at_us, Output(STDOUT if stream == STDOUT else STDERR, piece))
            batch.events += 1
        self._held = None
        self._piece.clear()

    def close(self) -> None:
        """Write everything down."""
        self.flush()
        for batch_id, batch in self._batches.items():
            if batch is not None:
                self._connection.execute(
                    "update hosted_batch set finished = ?, output_bytes = ?, events = ?, command = ?"
                    " where activity_id = ? and batch_id = ?",
                    (batch.finished, batch.output_bytes, batch.events, batch.command, self._activity_id, batch_id),
                )

    def _output(self, event: wire.BatchEvent, batch: _Batch, stream: int, at_us: int, data: bytes) -> None:
        key = (event.batch_id, event.index, stream)
        if self._held is None or self._held[:3] != key or len(self._piece) + len(data) > MAX_PIECE:
            self.flush()
            self._held = (*key, at_us)
        limit = self._settings.max_output_bytes
        if batch.output_bytes + len(data) > limit or batch.events >= self._settings.max_output_events:
            self.flush()
            message = (
                f"output_limit: the batch wrote more than {limit} bytes (or {self._settings.max_output_events} pieces)"
            )
            self._add(event, batch, at_us, Finished(FAILED, message))
            batch.finished = True
            self.cancelled.append(event.batch_id)
            return
        batch.output_bytes += len(data)
        self._piece += data

    def _add(self, event: wire.BatchEvent, batch: _Batch, at_us: int, kind: Kind) -> None:
        self.flush()
        batch.events += 1
        self._journal.add(event.batch_id, event.index, at_us, kind)

    def _batch(self, batch_id: str) -> _Batch | None:
        if batch_id not in self._batches:
            row = self._connection.execute(
                "select * from hosted_batch where activity_id = ? and batch_id = ?", (self._activity_id, batch_id)
            ).fetchone()
            self._batches[batch_id] = None if row is None else _Batch(row)
        return self._batches[batch_id]
