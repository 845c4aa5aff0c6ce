"""Content as it arrives, checked on the way: the last piece is given only when the whole is right."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from shem.errors import PeerFailed
from shem.node.files.protocol import DIGEST_BYTES

CHUNK_BYTES = 128 << 10


class BrokenContent(PeerFailed):
    """What the sender sent is not what it (or the file's name) promised."""

    default_code = "broken_content"


class Incoming:
    """Takes pieces of any size, gives pieces of at most :data:`CHUNK_BYTES` and keeps the last back until the end."""

    def __init__(self, expected: int, sha3: str, *, trailer: bool = False) -> None:
        """``sha3``: what the content must hash to, ``""`` where that is not known; with ``trailer`` the sender says it last."""
        self._expected = expected
        self._sha3 = sha3
        self._trailer: bytes | None = b"" if trailer else None
        self._digest = hashlib.sha3_256() if sha3 or trailer else None
        self._held = b""
        self._seen = 0

    def take(self, piece: bytes) -> Iterator[bytes]:
        """More of it. Raises :class:`BrokenContent` when it is too much."""
        left = self._expected - self._seen
        if len(piece) > left:
            if self._trailer is None or len(self._trailer) + len(piece) - left > DIGEST_BYTES:
                raise BrokenContent(f"more comes than the {self._expected} bytes that were promised")
            self._trailer += piece[left:]
            piece = piece[:left]
        self._seen += len(piece)
        if self._digest is not None:
            self._digest.update(piece)
        self._held += piece
        while len(self._held) > CHUNK_BYTES:  # the sender's pieces are uneven; the last byte always stays back
            yield self._held[:CHUNK_BYTES]
            self._held = self._held[CHUNK_BYTES:]

    def finish(self) -> bytes:
        """The last piece, if there is any. Raises :class:`BrokenContent`."""
        found = self._digest.digest() if self._digest is not None else b""
        wrong = bool(self._sha3 and found.hex() != self._sha3) or self._trailer not in {None, found}
        if self._seen != self._expected or wrong:
            raise BrokenContent(f"{self._seen} of {self._expected} bytes came, or wrong ones")
        return self._held


async def held_back(pieces: AsyncGenerator[bytes, None], expected: int, sha3: str) -> AsyncGenerator[bytes, None]:
    """Pieces that somebody else reads, checked alike."""
    incoming = Incoming(expected, sha3)
    async with aclosing(pieces) as source:
        async for piece in source:
            for ready in incoming.take(piece):
                yield ready
    if last := incoming.finish():
        yield last
