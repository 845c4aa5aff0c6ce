"""Records of other nodes: passed on when two nodes connect, forwarded when new, and asked for by name.

What a peer sends is bounded three times: records in a frame, signatures that we check for it, records in the book. A
record that is not news costs a comparison. Honest nodes pass on only what they have checked, so a forged record ends
the link with whoever sent it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from itertools import islice

import msgspec

from shem.cogs.decoding import DECODE_ERRORS
from shem.errors import NotFound, PeerFailed, Refused
from shem.node.peer.frames import Violation
from shem.node.peer.link import Link, Switchboard
from shem.node.peer.links import Links
from shem.node.peer.records import (
    RECORD_PURPOSE,
    RECORDS_PER_FRAME,
    AddressBook,
    BadRecord,
    Credentials,
    Record,
    SignedRecord,
    read_record,
)
from shem.node.peer.transport import CloseCode
from shem.terms.ids import NodeId, parse_node_id

_BAD_RECORD: tuple[type[Exception], ...] = (*DECODE_ERRORS, Refused)

FIND = "peer.find"
ON_CONNECT = 256
"""Records told to a new peer."""
FANOUT = 32
"""Peers to whom a new record is forwarded at once; others ask."""
BUDGET = 1024
"""Signatures checked for one peer at first; refilled by ``REFILL`` with each heartbeat."""
REFILL = 64
ASKED = 8
ASK_S = 2.0

_list_decoder = msgspec.msgpack.Decoder(list[SignedRecord])
_one_decoder = msgspec.msgpack.Decoder(SignedRecord)


class Gossip:
    """What this node knows of where others are."""

    def __init__(self, credentials: Credentials, board: Switchboard, links: Links) -> None:
        self.book = AddressBook()
        self._credentials = credentials
        self._board = board
        self._links = links
        self._budgets: dict[Link, int] = {}

    def met(self, link: Link, record: Record, signed: SignedRecord) -> None:
        """A new link: keep its record, pass it on, and tell the peer of others."""
        news = self.book.is_news(record)
        self.book.put(record, signed, direct=True)
        self._budgets[link] = BUDGET
        others = (one for one in self.book.newest() if one is not signed)
        self._send(link, islice(others, ON_CONNECT))
        if news:
            self._forward([signed], link)

    def gone(self, link: Link) -> None:
        """A link ended."""
        self._budgets.pop(link, None)

    def refill(self) -> None:
        """A heartbeat has passed."""
        for link, budget in self._budgets.items():
            self._budgets[link] = min(BUDGET, budget + REFILL)

    def arrived(self, link: Link, body: bytes) -> None:
        """A frame of records. Raises :class:`Violation` for garbage and forgeries."""
        try:
            records = _list_decoder.decode(body)
            if len(records) > RECORDS_PER_FRAME:
                raise Violation("too many records in a frame")
            self._forward([signed for signed in records if self._learn(link, signed)], link)
        except DECODE_ERRORS:
            raise Violation("records that cannot be read") from None
        except Refused as error:
            self._board.counters["bad_records"] += 1
            raise Violation(f"a bad record: {error.message}") from None

    def _learn(self, link: Link | None, signed: SignedRecord) -> bool:
        """Whether it was news. Raises :class:`Refused` for a forgery."""
        record = read_record(signed)
        if record.node_id == self._credentials.node_id or not self.book.is_news(record):
            return False
        if link is not None:
            budget = self._budgets.get(link, 0)
            if budget <= 0:
                self._board.counters["records_dropped"] += 1
                return False
            self._budgets[link] = budget - 1
        self._credentials.verify(RECORD_PURPOSE, signed.payload, signed.signature, record.node_id)
        self.book.put(record, signed, direct=False)
        return True

    def _forward(self, news: list[SignedRecord], source: Link) -> None:
        if not news:
            return
        others = [link for link in self._links.live() if link is not source]
        for link in random.sample(others, min(FANOUT, len(others))):
            self._send(link, news)

    def _send(self, link: Link, records: Iterable[SignedRecord]) -> None:
        source = iter(records)
        while batch := list(islice(source, RECORDS_PER_FRAME)):
            link.send_records(msgspec.msgpack.encode(batch))

    async def answer_find(self, _peer: NodeId, payload: bytes) -> bytes:
        """The handler of :data:`FIND`."""
        node_id = parse_node_id(payload.decode("ascii", errors="replace"))
        known = self.book.get(node_id)
        if known is None:
            raise NotFound(f"{node_id} is not known here", code="unknown_node")
        return msgspec.msgpack.encode(known[1])

    async def ask(self, node_id: NodeId) -> None:
        """Ask some peers where a node is, until one has news; the book has it afterwards."""
        links = self._links.live()
        chosen = random.sample(links, min(ASKED, len(links)))
        async with asyncio.TaskGroup() as group:
            asked = {group.create_task(self._ask_one(link, node_id)) for link in chosen}
            while asked:
                answered, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                if any(task.result() for task in answered):
                    break
            for task in asked:
                task.cancel()

    async def _ask_one(self, link: Link, node_id: NodeId) -> bool:
        try:
            signed = _one_decoder.decode(await link.call(FIND, node_id.encode(), ASK_S))
            if read_record(signed).node_id != node_id:
                raise BadRecord("the record of another node")
            return self._learn(None, signed)
        except (PeerFailed, TimeoutError):
            return False
        except _BAD_RECORD as error:
            self._board.counters["bad_records"] += 1
            link.close(CloseCode.VIOLATION, f"a bad record: {error}")
            return False
