"""Where nodes are: signed records, and the bounded book of them.

A record says *this node is the endpoint with this id, at these addresses*, signed by the node's identity and numbered,
so anybody may pass it on and nobody can forge or turn it back: the newest number wins. The book keeps a bounded
number of them; those learnt from the node itself outlive those from hearsay.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Protocol

import msgspec

from shem.cogs.decoding import DECODE_ERRORS
from shem.errors import Refused
from shem.node.peer.addresses import MAX_ADDRESSES, BadAddress, parse_address
from shem.terms.ids import NodeId

RECORD_PURPOSE = "peer.record"
MAX_RECORDS = 4096
RECORDS_PER_FRAME = 64

_Seq = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
_Id = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Address = Annotated[str, msgspec.Meta(max_length=64)]


class Bound(Protocol):
    """What a checked binding says."""

    @property
    def node_id(self) -> NodeId: ...
    @property
    def transport_id(self) -> bytes: ...
    @property
    def seq(self) -> int: ...


class Credentials(Protocol):
    """What this package needs of an identity (``node.identity.keys.Identity`` is one)."""

    @property
    def node_id(self) -> NodeId: ...
    @property
    def transport_id(self) -> bytes: ...
    @property
    def transport_seed(self) -> bytes: ...

    def sign(self, purpose: str, payload: bytes) -> bytes:
        """65 bytes over the payload. Raises :class:`~shem.errors.KeyLocked` while its key is locked."""

    def keep_record(self, signed: bytes) -> None:
        """Remember the last record that was signed, for a time when none can be."""

    def kept_record(self) -> bytes:
        """The last that was remembered; empty when there was none."""

    def verify(self, purpose: str, payload: bytes, signature: bytes, issuer: NodeId) -> None:
        """Raises :class:`Refused` unless ``issuer`` signed it."""

    def make_binding(self, now: datetime) -> bytes:
        """The statement that ties node id and endpoint id."""

    def check_binding(self, statement: bytes, now: datetime) -> Bound:
        """Raises :class:`Refused` unless it holds now."""


class BadRecord(Refused):
    """Not a record, or not signed by the node it names."""

    default_code = "bad_peer_record"


class Record(msgspec.Struct, frozen=True, array_like=True):
    """Where a node is. ``seq`` is a time in milliseconds or more."""

    node: Annotated[str, msgspec.Meta(pattern="^0x[0-9a-f]{40}$")]
    endpoint_id: _Id
    addresses: Annotated[tuple[_Address, ...], msgspec.Meta(max_length=MAX_ADDRESSES)]
    seq: _Seq

    @property
    def node_id(self) -> NodeId:
        return NodeId(self.node)


class SignedRecord(msgspec.Struct, frozen=True, array_like=True):
    """A record as it travels: the exact bytes that were signed."""

    payload: Annotated[bytes, msgspec.Meta(max_length=2048)]
    signature: Annotated[bytes, msgspec.Meta(min_length=65, max_length=65)]


_record_decoder = msgspec.msgpack.Decoder(Record)


def sign_record(credentials: Credentials, addresses: list[str], seq: int) -> SignedRecord:
    """Our own record."""
    payload = msgspec.msgpack.encode(
        Record(credentials.node_id, credentials.transport_id, tuple(addresses[:MAX_ADDRESSES]), seq)
    )
    return SignedRecord(payload, credentials.sign(RECORD_PURPOSE, payload))


def read_record(signed: SignedRecord) -> Record:
    """Its content, the form checked and the signature not. Raises :class:`BadRecord`."""
    try:
        record = _record_decoder.decode(signed.payload)
    except DECODE_ERRORS as error:
        raise BadRecord(f"not a peer record: {error}") from None
    try:
        for address in record.addresses:
            parse_address(address)
    except BadAddress as error:
        raise BadRecord(error.message) from None
    return record


class AddressBook:
    """The newest record of each node, up to a number of them."""

    def __init__(self, capacity: int = MAX_RECORDS) -> None:
        self._capacity = capacity
        self._direct: OrderedDict[NodeId, tuple[Record, SignedRecord]] = OrderedDict()
        self._hearsay: OrderedDict[NodeId, tuple[Record, SignedRecord]] = OrderedDict()

    def is_news(self, record: Record) -> bool:
        """Whether it is newer than what we have (so its signature is worth checking)."""
        known = self.get(record.node_id)
        return known is None or record.seq > known[0].seq

    def put(self, record: Record, signed: SignedRecord, *, direct: bool) -> None:
        """Keep a record whose signature has been checked."""
        known = self.get(record.node_id)
        if known is not None and known[0].seq > record.seq:
            record, signed = known
        was_direct = self._direct.pop(record.node_id, None) is not None
        self._hearsay.pop(record.node_id, None)
        shelf = self._direct if direct or was_direct else self._hearsay
        shelf[record.node_id] = (record, signed)
        while len(self) > self._capacity:
            (self._hearsay or self._direct).popitem(last=False)

    def get(self, node_id: NodeId) -> tuple[Record, SignedRecord] | None:
        """The newest record of a node."""
        return self._direct.get(node_id) or self._hearsay.get(node_id)

    def newest(self) -> Iterator[SignedRecord]:
        """Those of nodes we have met first, each shelf from the latest change."""
        for shelf in (self._direct, self._hearsay):
            for _, signed in reversed(shelf.values()):
                yield signed

    def __len__(self) -> int:
        return len(self._direct) + len(self._hearsay)
