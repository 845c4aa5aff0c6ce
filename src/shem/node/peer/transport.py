"""What carries bytes between nodes, as the rest of this package sees it.

A transport is an endpoint with an ed25519 identity: it dials and accepts connections that are encrypted and
authenticated at both ends, and a connection carries any number of two-way byte streams with back-pressure. There are two
of them, :mod:`~shem.node.peer.iroh` (QUIC) and :mod:`~shem.node.peer.loopback` (one process), and one suite of tests
for both. Whatever can go wrong arrives as one of the errors below, translated where it happens.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from shem.errors import PeerFailed

ALPN = b"shem/1"
"""Names the protocol and its version; ends that speak different versions fail in the handshake."""


class CloseCode(enum.IntEnum):
    """Why a connection is closed; travels with the close."""

    LEAVING = 0  # also what a dropped connection shows
    VIOLATION = 1  # garbage, an oversized frame, an impossible message
    BAD_HELLO = 2
    DUPLICATE = 3  # another connection between the two lives
    DEAD = 4  # heartbeats went unanswered
    FLOOD = 5  # more requests at once than agreed
    BUSY = 6  # we have all the peers we take
    HELLO_TIMEOUT = 7
    REPLACED = 8  # the peer came back; this is its old connection


class TransportLost(PeerFailed):
    """The connection is gone. ``close_code`` is the peer's reason where it gave one."""

    default_code = "peer_lost"

    def __init__(self, message: str, *, close_code: int | None = None) -> None:
        super().__init__(message)
        self.close_code = close_code


class StreamReset(PeerFailed):
    """The other end broke this stream off (the connection lives)."""

    default_code = "stream_reset"

    def __init__(self, message: str, *, reset_code: int | None = None) -> None:
        super().__init__(message)
        self.reset_code = reset_code


class DialFailed(PeerFailed):
    """Nobody with that endpoint id answered at those addresses."""

    default_code = "dial_failed"


class Stream(Protocol):
    """Two one-way halves. Only one task at a time may read, and one write."""

    async def read(self, n: int) -> bytes:
        """Up to ``n`` bytes; ``b""`` when the other end finished. Cancelling loses nothing."""

    async def write(self, data: bytes) -> None:
        """All of it, waiting while the other end does not read. After a cancelled write only :meth:`reset` is safe."""

    async def finish(self) -> None:
        """No more from us; what was written still arrives."""

    async def reset(self, code: int) -> None:
        """Break our half off; unread bytes may be lost. Never raises."""

    async def stop(self, code: int) -> None:
        """Tell the other end that we read no further. Never raises."""


class Connection(Protocol):
    """An authenticated connection."""

    remote_id: bytes

    def limit_streams(self, count: int) -> None:
        """How many streams opened by the other end may be open at once; a further open waits."""

    async def open_stream(self) -> Stream:
        """A fresh stream. The other end learns of it with the first byte."""

    async def accept_stream(self) -> Stream:
        """The next stream that the other end opened."""

    def close(self, code: int, reason: str) -> None:
        """At once; both ends' pending operations fail. Never raises."""


class Incoming(Protocol):
    """Somebody knocks. Nothing has been spent on them yet."""

    async def handshake(self) -> Connection:
        """Raises :class:`DialFailed` when they are not who they must be, or go away."""

    async def refuse(self) -> None:
        """Send them away."""


class Transport(Protocol):
    """One endpoint."""

    def addresses(self) -> list[str]:
        """``ip:port`` where others may reach us."""

    async def accept(self) -> Incoming | None:
        """The next who knocks; ``None`` once closed."""

    async def dial(self, endpoint_id: bytes, addresses: Sequence[str], timeout_s: float) -> Connection:
        """Raises :class:`DialFailed`."""

    async def close(self) -> None:
        """Close every connection and stop listening."""


TransportFactory = Callable[[bytes, bytes], Awaitable[Transport]]
"""Makes a transport from (32-byte seed, 32-byte endpoint id)."""
