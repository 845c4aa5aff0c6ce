"""What becomes of a command's output: passed on as it comes, in part, or not at all.

Output is never collected as a whole here: of a *head* only a counter is kept, of a *tail* only that many bytes, and those in
a file when they are many. Text is passed on at character boundaries, so that a letter whose bytes arrive in two reads does
not turn the piece into binary.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from shem.provider.exeunit.failures import OUTPUT_LIMIT, CommandFailed
from shem.terms.script import CaptureMode
from shem.wire.exeunit import MAX_OUTPUT_PIECE, Stderr, Stdout, output

MAX_BATCH_OUTPUT = 64 << 20
"""Bytes of captured output in one batch; more fails the command, nothing is dropped in silence."""
_IN_MEMORY = 1 << 20
"""Tails up to this size are kept in memory."""


class OutputBudget:
    """Counts what a batch has captured."""

    def __init__(self, limit: int = MAX_BATCH_OUTPUT) -> None:
        self._limit = limit
        self._left = limit

    def take(self, size: int) -> None:
        """Raises :class:`CommandFailed` (``output_limit``) once the batch is over its limit."""
        self._left -= size
        if self._left < 0:
            raise CommandFailed(
                OUTPUT_LIMIT,
                f"the batch's output is larger than {self._limit >> 20} MiB; write large results to a file and transfer it",
            )


class StreamCapture:
    """One output stream of one command. Bytes go in as they come; events come out."""

    def __init__(
        self,
        mode: CaptureMode | None,
        kind: type[Stdout] | type[Stderr],
        budget: OutputBudget,
        directory: Path | None = None,
    ) -> None:
        """``directory`` is where large tails may lie; call :meth:`close` in the end."""
        self._mode = mode
        self._kind = kind
        self._budget = budget
        self._cutter = _cutter(mode, directory)
        self._binary = mode is not None and mode.binary
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Stdout | Stderr]:
        """The events that ``data`` completes."""
        if self._mode is None:
            return
        yield from self._pieces(self._cutter.feed(data))

    def finish(self) -> Iterator[Stdout | Stderr]:
        """The events that the end completes."""
        if self._mode is None:
            return
        for data in self._cutter.finish():
            yield from self._pieces(data)
        rest, self._rest = self._rest, b""
        if rest:
            yield self._event(rest)

    def close(self) -> None:
        """Let go of what is kept."""
        self._cutter.close()

    def _pieces(self, data: bytes) -> Iterator[Stdout | Stderr]:
        self._budget.take(len(data))
        for start in range(0, len(data), MAX_OUTPUT_PIECE - 3):
            piece = data[start : start + MAX_OUTPUT_PIECE - 3]
            if not self._binary:
                piece = self._rest + piece
                whole = len(piece) - _open_character(piece)
                piece, self._rest = piece[:whole], piece[whole:]
            if piece:
                yield self._event(piece)

    def _event(self, piece: bytes) -> Stdout | Stderr:
        if self._binary:
            return self._kind(data=base64.b64encode(piece).decode(), encoding="base64")
        return output(self._kind, piece)


class _All:
    def feed(self, data: bytes) -> bytes:
        return data

    def finish(self) -> Iterable[bytes]:
        return ()

    def close(self) -> None: ...


class _Head(_All):
    def __init__(self, size: int) -> None:
        self._left = size

    def feed(self, data: bytes) -> bytes:
        data = data[: self._left]
        self._left -= len(data)
        return data


class _HeadTail(_All):
    """The first ``head`` bytes, and the last ``tail`` of what follows them."""

    def __init__(self, head: int, tail: int, directory: Path | None) -> None:
        self._head = _Head(head)
        size = min(tail, MAX_BATCH_OUTPUT + 1)  # a byte more than may leave: then it is an error, not a cut
        self._tail = _Kept(size) if size <= _IN_MEMORY else _Filed(size, directory)

    def feed(self, data: bytes) -> bytes:
        first = self._head.feed(data)
        self._tail.add(data[len(first) :])
        return first

    def finish(self) -> Iterable[bytes]:
        return self._tail.read()

    def close(self) -> None:
        self._tail.close()


class _Kept:
    """The last bytes, in memory."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._bytes = bytearray()

    def add(self, data: bytes) -> None:
        self._bytes += data
        if len(self._bytes) > 2 * self._size + (64 << 10):  # now and then, not for each read
            del self._bytes[: len(self._bytes) - self._size]

    def read(self) -> Iterator[bytes]:
        yield bytes(self._bytes[max(0, len(self._bytes) - self._size) :])

    def close(self) -> None:
        self._bytes.clear()


class _Filed:
    """The last bytes, in a file without a name that is written round and round."""

    def __init__(self, size: int, directory: Path | None) -> None:
        self._size = size
        self._seen = 0
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115

    def add(self, data: bytes) -> None:
        kept = data[-self._size :]
        self._seen += len(data) - len(kept)
        while kept:
            at = self._seen % self._size
            part = kept[: self._size - at]
            self._file.seek(at)
            self._file.write(part)
            self._seen += len(part)
            kept = kept[len(part) :]

    def read(self) -> Iterator[bytes]:
        at, left = (self._seen % self._size, self._size) if self._seen > self._size else (0, self._seen)
        while left:
            self._file.seek(at)
            part = self._file.read(min(left, self._size - at, MAX_OUTPUT_PIECE))
            at, left = (at + len(part)) % self._size, left - len(part)
            yield part

    def close(self) -> None:
        self._file.close()


def _cutter(mode: CaptureMode | None, directory: Path | None) -> _All:
    if mode is None:
        return _All()
    if mode.stream is not None:
        return _All() if mode.stream.limit is None else _Head(mode.stream.limit)
    part = mode.at_end
    if part is None:
        return _All()
    if part.head is not None:
        return _Head(part.head)
    if part.tail is not None:
        return _HeadTail(0, part.tail, directory)
    if part.head_tail is not None:
        return _HeadTail((part.head_tail + 1) // 2, part.head_tail // 2, directory)
    return _All()


def _open_character(data: bytes) -> int:
    """How many bytes at the end begin a UTF-8 character that is not complete."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:  # continuation
            continue
        length = 2 if byte & 0xE0 == 0xC0 else 3 if byte & 0xF0 == 0xE0 else 4 if byte & 0xF8 == 0xF0 else 1
        return back if length > back else 0
    return 0
