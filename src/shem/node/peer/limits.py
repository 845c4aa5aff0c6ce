"""How much one peer may cost us. Every number here is a wall that a test has run into."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """Seconds are of the node's clock for heartbeats and back-off, and real ones for the rest."""

    max_peers: int = 2048
    max_handshakes: int = 64
    """Callers in the handshake or the hello at once; more are refused before they cost anything."""
    max_payload: int = 1 << 20
    """Of a request or an answer."""
    max_in_flight: int = 256
    """Requests of one peer that we work on at once; told to it in the hello. More is a flood."""
    max_waiting: int = 1024
    """Our own callers that wait until a peer has room; more are refused."""
    max_queued_bytes: int = 4 << 20
    """Written to one peer and not yet taken by the transport; new requests wait."""
    max_streams: int = 64
    """Bulk streams that one peer has open with us; a further one waits at its side."""
    hello_timeout_s: float = 5.0
    dial_timeout_s: float = 5.0
    beat_s: float = 2.0
    dead_s: float = 6.0
    """Nothing heard for so long since an unanswered ping: dead."""
    stalled_s: float = 32.0
    """A ping unanswered for so long is death even while other bytes arrive: it does not read what we write."""
    first_backoff_s: float = 0.25
    max_backoff_s: float = 30.0


MAX_HELLO = 8192
"""Bytes of a hello; all that an unknown caller can make us hold."""
ENVELOPE = 4096
"""What a frame may have beyond its payload."""
MAX_URGENT = 64
"""Pongs waiting to be written; a peer that piles up more pings is not asking whether we live."""
