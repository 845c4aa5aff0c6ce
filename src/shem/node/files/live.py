"""Files that are not in the spool: a program of this node's user hands them out, or takes them in, while it runs.

What such a file holds is not known before it has been read. Where its name is its hash, the name promises the content; for
all others the sender hashes what it reads, and says at the end what that was.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncGenerator
from typing import Protocol

from shem.errors import Conflict
from shem.node.files.protocol import Head
from shem.node.files.spool import TooLarge, Writer

_HASH = re.compile(r"[0-9a-f]{64}")


class Sink(Protocol):
    """Content on its way to a program."""

    async def write(self, data: bytes) -> None: ...

    async def finish(self, sha3: str) -> None: ...

    def close(self) -> None: ...


class LiveFile(Protocol):
    """One file; ``owner`` is the identity whose program has it."""

    owner: str

    async def size(self) -> int: ...

    def read(self, offset: int, length: int) -> AsyncGenerator[bytes, None]: ...

    def sink(self) -> Sink: ...


class LiveFiles(Protocol):
    """All of them."""

    def find(self, file_id: str) -> LiveFile | None: ...


class NoLiveFiles:
    """A node whose users' programs publish nothing."""

    def find(self, file_id: str) -> None:
        """None has this id."""
        return


def promised(file_id: str) -> str:
    """The sha3-256 that a file's name promises; ``""`` for a name that promises nothing."""
    return file_id if _HASH.fullmatch(file_id) else ""


class Target(Protocol):
    """What an upload fills."""

    async def write(self, data: bytes) -> None: ...

    async def keep(self, expected: str) -> Head: ...


class SpoolTarget:
    """An inbox of the spool."""

    def __init__(self, writer: Writer, keep: Keep) -> None:
        self.write = writer.write
        self._writer = writer
        self._keep = keep

    async def keep(self, expected: str) -> Head:
        """Move it into place. Raises ``Conflict`` (``broken_content``) when its hash is not the ``expected`` one."""
        sha3 = await self._writer.digest()
        _check(sha3, expected)
        return self._keep(self._writer, sha3)


class Keep(Protocol):
    """What makes a written file the content of its inbox."""

    def __call__(self, writer: Writer, sha3: str) -> Head: ...


class LiveTarget:
    """A program that takes a file."""

    def __init__(self, sink: Sink, limit: int) -> None:
        """``limit``: the most bytes that a peer may have written to a disk of our user."""
        self._sink = sink
        self._limit = limit
        self._digest = hashlib.sha3_256()
        self._size = 0

    async def write(self, data: bytes) -> None:
        """Hand on. Raises :class:`TooLarge`, and what the program says."""
        self._digest.update(data)
        self._size += len(data)
        if self._size > self._limit:
            raise TooLarge(f"a file may have at most {self._limit} bytes here")
        await self._sink.write(data)

    async def keep(self, expected: str) -> Head:
        """Tell the program that it has it all. Raises ``Conflict`` (``broken_content``)."""
        sha3 = self._digest.hexdigest()
        _check(sha3, expected)
        await self._sink.finish(sha3)
        return Head(self._size, sha3)


def _check(sha3: str, expected: str) -> None:
    if expected and sha3 != expected:
        raise Conflict("the content does not match its hash", code="broken_content")
