"""The node's end of the line to one exe unit: what is still to be said to it."""

from __future__ import annotations

import asyncio
from collections import deque

from shem.wire.exeunit import Ack, Cancel, Destroy, Execute, Instruction


class UnitSession:
    """One connection of one exe unit. The queue is short by construction: unfinished batches, one end, one Ack."""

    def __init__(self, activity_id: str, unit_id: str, stored_seq: int) -> None:
        self.activity_id = activity_id
        self.unit_id = unit_id
        self._queue: deque[Execute | Cancel | Destroy] = deque()
        self._ack: int | None = stored_seq  # the welcome
        self._wake = asyncio.Event()
        self._wake.set()
        self.closed = False

    def say(self, instruction: Execute | Cancel | Destroy) -> None:
        """Queue something for the unit."""
        self._queue.append(instruction)
        self._wake.set()

    def ack(self, seq: int) -> None:
        """Tell the unit that everything up to ``seq`` is stored; a newer one replaces one that is not sent yet."""
        self._ack = seq
        self._wake.set()

    def close(self) -> None:
        """Another connection has taken over, or the activity is over."""
        self.closed = True
        self._wake.set()

    async def next(self) -> list[Instruction]:
        """What to send now, Ack first; waits for something. Empty only when closed."""
        while True:
            if not self.closed:
                await self._wake.wait()
            self._wake.clear()
            out: list[Instruction] = []
            if self._ack is not None:
                out.append(Ack(seq=self._ack))
                self._ack = None
            out.extend(self._queue)
            self._queue.clear()
            if out or self.closed:
                return out
