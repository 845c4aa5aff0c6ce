"""The first frames of a connection: who are you, and can you prove it.

Both sides send one hello on the control stream, the dialler first. It holds the binding (node id and endpoint id,
signed by both keys), the sender's signed record, a number drawn at its start (so a restarted node is told from a
second connection of the same one) and how many requests it takes at once. Nothing else is read from a peer before its
hello has been checked against the endpoint id that the transport authenticated.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import msgspec

from shem.cogs.decoding import DECODE_ERRORS
from shem.errors import Refused
from shem.node.peer.addresses import BadAddress
from shem.node.peer.frames import HEADER, Kind, Violation, pack
from shem.node.peer.limits import MAX_HELLO
from shem.node.peer.records import RECORD_PURPOSE, Credentials, Record, SignedRecord, read_record
from shem.node.peer.transport import Stream
from shem.terms.ids import NodeId

READ_BYTES = 4096


class BadHello(Violation):
    """The peer is not who it says it is, or says it wrongly."""

    default_code = "bad_hello"


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """As it travels."""

    binding: Annotated[bytes, msgspec.Meta(max_length=1024)]
    record: SignedRecord
    incarnation: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
    max_in_flight: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]


@dataclass(frozen=True, slots=True)
class Met:
    """A peer whose hello has been checked."""

    node_id: NodeId
    binding_seq: int
    record: Record
    signed: SignedRecord
    incarnation: int
    max_in_flight: int


_decoder = msgspec.msgpack.Decoder(Hello)


async def send_hello(stream: Stream, hello: Hello) -> None:
    """One frame."""
    await stream.write(pack(Kind.HELLO, 0, msgspec.msgpack.encode(hello)))


async def read_hello(stream: Stream) -> tuple[Hello, bytes]:
    """The peer's hello, and what was read beyond it. Raises :class:`BadHello`."""
    buffer, need = b"", HEADER.size
    while len(buffer) < need:
        data = await stream.read(READ_BYTES)
        if not data:
            raise BadHello("no hello")
        buffer += data
        if len(buffer) >= HEADER.size:
            size, kind, _ = HEADER.unpack_from(buffer)
            if kind != Kind.HELLO or size > MAX_HELLO:
                raise BadHello("the first frame is not a hello")
            need = HEADER.size + size
    try:
        return _decoder.decode(buffer[HEADER.size : need]), buffer[need:]
    except DECODE_ERRORS as error:
        raise BadHello(f"a hello that cannot be read: {error}") from None


def check_hello(hello: Hello, remote_id: bytes, credentials: Credentials, now: datetime) -> Met:
    """Everything a hello claims, against the endpoint id that the transport proved. Raises :class:`BadHello`."""
    try:
        bound = credentials.check_binding(hello.binding, now)
        if bound.transport_id != remote_id:
            raise BadHello("its binding is for another endpoint")
        record = read_record(hello.record)
        if record.node_id != bound.node_id or record.endpoint_id != remote_id:
            raise BadHello("its record is of another node")
        if bound.node_id == credentials.node_id:
            raise BadHello("it claims to be us")
        credentials.verify(RECORD_PURPOSE, hello.record.payload, hello.record.signature, bound.node_id)
    except (Refused, BadAddress) as error:
        raise BadHello(error.message) from None
    return Met(bound.node_id, bound.seq, record, hello.record, hello.incarnation, hello.max_in_flight)
