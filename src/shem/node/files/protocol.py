"""Files between nodes, on bulk streams.

``file.get``: the opener names file and offset; the answer is :class:`Head` behind its length (``u32``), then the content
from there and, where the head has no hash because nobody knows it beforehand, the 32-byte sha3-256 of what was sent.
``file.put``: the opener names an inbox and sends the content and, last, its 32-byte sha3-256; the answer is :class:`Head`
alone, once all of it is stored. The stream itself makes sure that a broken transfer never looks complete.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Annotated, Protocol, TypeVar

import msgspec

from shem.cogs.decoding import DECODE_ERRORS
from shem.errors import PeerFailed, Refused
from shem.terms.ids import NodeId

GET = "file.get"
PUT = "file.put"
DIGEST_BYTES = 32
_LENGTH = struct.Struct(">I")
_MAX_HEAD = 1024

T = TypeVar("T")

FileId = Annotated[str, msgspec.Meta(pattern="^[0-9A-Za-z_-]{16,128}$")]
Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class Bulk(Protocol):
    """What this domain uses of a bulk stream."""

    async def __aenter__(self) -> Bulk: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def write(self, data: bytes) -> None: ...

    async def finish(self) -> None: ...

    async def read(self, n: int = ...) -> bytes: ...


class Get(msgspec.Struct, frozen=True):
    """Send this file from ``offset`` on, ``length`` bytes of it or all."""

    file_id: FileId
    offset: Size = 0
    length: Size | None = None


class Put(msgspec.Struct, frozen=True):
    """Here comes the content of this inbox."""

    file_id: FileId


class Head(msgspec.Struct, frozen=True):
    """A whole file: its size and sha3-256 in hex, which may be ``""`` before the content."""

    size: Size
    sha3: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")]


StreamHandler = Callable[[NodeId, bytes, Bulk], Awaitable[None]]


def pack(message: msgspec.Struct) -> bytes:
    """A message as bytes."""
    return msgspec.msgpack.encode(message)


def unpack(payload: bytes, shape: type[T]) -> T:
    """A message from bytes. Raises :class:`Refused` (``bad_message``)."""
    try:
        return msgspec.msgpack.decode(payload, type=shape)
    except DECODE_ERRORS as error:
        raise Refused(f"not a {shape.__name__} message: {error}", code="bad_message") from None


def frame(head: Head) -> bytes:
    """A head behind its length."""
    body = pack(head)
    return _LENGTH.pack(len(body)) + body


async def read_head(stream: Bulk) -> tuple[Head, bytes]:
    """A head, and the beginning of the content that came with it. Raises :class:`PeerFailed` (``bad_answer``)."""
    data = b""
    while len(data) < _LENGTH.size or len(data) < _LENGTH.size + _LENGTH.unpack_from(data)[0]:
        if len(data) >= _LENGTH.size and _LENGTH.unpack_from(data)[0] > _MAX_HEAD:
            raise PeerFailed("the peer's answer does not begin with a head", code="bad_answer")
        piece = await stream.read()
        if not piece:
            raise PeerFailed("the peer's answer is too short", code="bad_answer")
        data += piece
    end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
    try:
        return unpack(data[_LENGTH.size : end], Head), data[end:]
    except Refused as error:
        raise PeerFailed(error.message, code="bad_answer") from None
