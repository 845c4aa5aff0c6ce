"""Frames of the control stream: ``size u32 | kind u8 | id u32 | body``, big-endian, ``size`` being that of the body.

The id ties an answer to its request; each side numbers its own. Requests carry ``method length u8 | method | payload``.
The splitter takes whatever the stream gives and returns whole frames, and never holds more than one incomplete frame,
whose size is checked when its header arrives.
"""

from __future__ import annotations

import enum
import struct

from shem.errors import PeerFailed

HEADER = struct.Struct(">IBI")
MAX_METHOD_BYTES = 100


class Kind(enum.IntEnum):
    """What a frame is."""

    HELLO = 1
    PING = 2
    PONG = 3
    REQUEST = 4
    ANSWER = 5
    ERROR = 6
    CANCEL = 7
    RECORDS = 8


class Violation(PeerFailed):
    """The peer sent what no honest peer sends. Its connection is closed."""

    default_code = "protocol_violation"


Frame = tuple[int, int, bytes]
"""kind, id, body"""


def pack(kind: int, frame_id: int, body: bytes = b"") -> bytes:
    """One frame."""
    return HEADER.pack(len(body), kind, frame_id) + body


def pack_request(frame_id: int, method: bytes, payload: bytes) -> bytes:
    """A request frame."""
    return b"".join(
        (HEADER.pack(len(payload) + len(method) + 1, Kind.REQUEST, frame_id), bytes((len(method),)), method, payload)
    )


def unpack_request(body: bytes) -> tuple[str, bytes]:
    """(method, payload). Raises :class:`Violation`."""
    if not body or len(body) <= body[0]:
        raise Violation("a request without a method")
    end = 1 + body[0]
    try:
        return body[1:end].decode("ascii"), body[end:]
    except UnicodeDecodeError:
        raise Violation("a method that is not ASCII") from None


class Splitter:
    """Bytes in, frames out."""

    def __init__(self, max_body: int, begun: bytes = b"") -> None:
        """``begun``: what has been read already."""
        self._max_body = max_body
        self._buffer = bytearray(begun)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completes. Raises :class:`Violation` on an oversized one."""
        buffer = self._buffer
        if buffer:
            buffer += data
            source: bytes | bytearray = buffer
        else:
            source = data
        frames: list[Frame] = []
        position, available = 0, len(source)
        while available - position >= HEADER.size:
            size, kind, frame_id = HEADER.unpack_from(source, position)
            if size > self._max_body:
                raise Violation(f"a frame of {size} bytes, over the limit of {self._max_body}")
            end = position + HEADER.size + size
            if end > available:
                break
            frames.append((kind, frame_id, bytes(source[position + HEADER.size : end])))
            position = end
        if source is buffer:
            del buffer[:position]
        elif position < available:
            buffer += memoryview(data)[position:]
        return frames
