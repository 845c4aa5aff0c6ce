"""Bulk bytes between nodes, on a stream of their own, framed so that a broken transfer never looks complete.

QUIC ends a stream cleanly when its sender merely disappears. So each direction is a sequence of records::

    DATA  u8=1 | u32 length | bytes        at most 128 KiB
    END   u8=2 | u32 8      | u64 total    the sender has sent all
    ACK   u8=3 | u32 8      | u64 total    the reader of the other direction has taken all
    FAIL  u8=4 | u32 length | error        the sender gives up, and says why

and only END makes ``read`` return ``b""``. ``finish`` returns when the peer's reader has reached END. The opener first
sends ``u8 | kind | u32 | header``.

Either side may be read while it is written. Whoever needs the next record, reader or finisher, reads for both.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from types import TracebackType
from typing import NoReturn

from shem.cogs.decoding import DECODE_ERRORS
from shem.errors import PeerFailed, Refused, ShemError
from shem.node.peer.frames import Violation
from shem.node.peer.remote_errors import INTERNAL, MAX_CODE, MAX_TEXT, pack_error, unpack_error
from shem.node.peer.transport import Stream, StreamReset, TransportLost

CHUNK_BYTES = 128 << 10
MAX_KIND_BYTES = 100
MAX_HEADER_BYTES = 64 << 10
MAX_FAIL_BYTES = 4 * (2 * MAX_TEXT + 2 * MAX_CODE)
MAX_UNREAD_BYTES = 1 << 20
"""Received while finishing and not yet asked for; more has to wait in the transport."""
EXPLAIN_S = 1.0
"""How long a failed write waits for the peer's word on why."""

_DATA, _END, _ACK, _FAIL = 1, 2, 3, 4
_RECORD = struct.Struct(">BI")
_TOTAL = struct.Struct(">BIQ")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")

ABORTED = 1
UNREAD = 0


class StreamBroken(PeerFailed):
    """The transfer is not complete. ``details["reset_code"]`` is the peer's code where it gave one."""

    default_code = "stream_broken"


class BulkStream:
    """A two-way transfer. Use as a context manager, or :meth:`close` it, to give its resources back."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._buffer = b""
        self._left = 0  # bytes of the current DATA record still to come
        self._data: deque[bytes] = deque()
        self._unread = 0
        self._received = 0
        self._ended = False
        self._end_seen = False
        self._sent = 0
        self._end_sent = False
        self._acked: int | None = None
        self._failure: ShemError | None = None
        self._closed = False
        self._turns = 0
        self._reading = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._consumed = asyncio.Event()

    async def __aenter__(self) -> BulkStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.close()
        else:
            await self.abort()

    # --- sending ----------------------------------------------------------------------------------------------------

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it, waiting while the peer does not read. Raises :class:`StreamBroken`, or the peer's error.

        After a cancelled write the stream is broken: how much went out is unknown.
        """
        view = memoryview(data).cast("B")
        async with self._writing:
            if self._end_sent:
                raise StreamBroken("a finished stream is not written to")
            for start in range(0, len(view), CHUNK_BYTES):
                chunk = view[start : start + CHUNK_BYTES]
                await self._put(b"".join((_RECORD.pack(_DATA, len(chunk)), chunk)))
                self._sent += len(chunk)

    async def finish(self) -> None:
        """Say that this was all, and wait until the peer has read it all. Raises :class:`StreamBroken`, or its error."""
        async with self._writing:
            if not self._end_sent:
                await self._put(_TOTAL.pack(_END, 8, self._sent))
                self._end_sent = True
        while self._acked is None:
            if self._unread > MAX_UNREAD_BYTES:
                self._consumed.clear()
                await self._consumed.wait()
            await self._pump()
        if self._acked != self._sent:
            self._fail(StreamBroken(f"the peer read {self._acked} of {self._sent} bytes"))

    async def fail(self, error: BaseException) -> None:
        """Give up and tell the peer why: an error of our families as it is, anything else as ``internal``."""
        told = pack_error(error) or INTERNAL
        async with self._writing:
            self._end_sent = True
            try:
                await self._put(_RECORD.pack(_FAIL, len(told)) + told)
            except ShemError:
                pass  # the peer is gone, or has failed itself
        self._failure = self._failure or StreamBroken("given up")
        await self.close()

    async def _put(self, data: bytes) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            await self._stream.write(data)
        except StreamReset as error:
            await self._explain(error)
        except TransportLost as error:
            self._fail(StreamBroken(error.message, code=error.code))
        except asyncio.CancelledError:
            self._failure = self._failure or StreamBroken("a write was cancelled")
            raise

    async def _explain(self, error: StreamReset) -> NoReturn:
        """The peer stopped reading; it may have said why on its own half."""
        try:
            async with asyncio.timeout(EXPLAIN_S):
                while self._unread <= MAX_UNREAD_BYTES:
                    await self._pump()
        except TimeoutError:
            pass
        self._fail(StreamBroken(error.message, reset_code=error.reset_code))

    # --- receiving --------------------------------------------------------------------------------------------------

    async def read(self, n: int = CHUNK_BYTES) -> bytes:
        """Up to ``n`` bytes; ``b""`` only when the peer has finished and all of it was read.

        Raises :class:`StreamBroken` when the rest will not come, or the peer's own error. Cancelling loses nothing.
        """
        while not self._data:
            if self._ended:
                return b""
            if self._end_seen:
                await self._acknowledge()
                return b""
            await self._pump()
        chunk = self._data.popleft()
        if len(chunk) > n:
            self._data.appendleft(chunk[n:])
            chunk = chunk[:n]
        self._unread -= len(chunk)
        self._consumed.set()
        return chunk

    async def _acknowledge(self) -> None:
        self._ended = True
        async with self._writing:
            try:
                await self._put(_TOTAL.pack(_ACK, 8, self._received))
            except StreamBroken:
                pass  # we have it all; that the sender does not learn of it is the sender's matter

    async def _pump(self) -> None:
        """Take in what arrives next; whoever waited for the turn finds it taken."""
        turn = self._turns
        async with self._reading:
            if turn != self._turns:
                return
            if self._failure is not None:
                raise self._failure
            try:
                data = await self._stream.read(CHUNK_BYTES)
            except StreamReset as error:
                self._fail(StreamBroken(error.message, reset_code=error.reset_code))
            except TransportLost as error:
                self._fail(StreamBroken(error.message, code=error.code))
            self._turns += 1
            if not data:
                self._fail(StreamBroken("the peer went away before the end"))
            try:
                self._take(data)
            except Violation as error:
                await self._stream.stop(ABORTED)
                self._fail(StreamBroken(error.message, code=error.code))

    def _take(self, data: bytes) -> None:
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        position, size = 0, len(data)
        while position < size:
            if self._left:
                piece = data[position : position + self._left]
                self._data.append(piece)
                self._unread += len(piece)
                self._received += len(piece)
                self._left -= len(piece)
                position += len(piece)
                continue
            if size - position < _RECORD.size:
                break
            kind, length = _RECORD.unpack_from(data, position)
            if kind == _DATA:
                if self._end_seen or not 0 < length <= CHUNK_BYTES:
                    raise Violation("data where none can be")
                self._left = length
                position += _RECORD.size
                continue
            if length > MAX_FAIL_BYTES:
                raise Violation("an oversized record")
            end = position + _RECORD.size + length
            if end > size:
                break
            self._control(kind, data[position + _RECORD.size : end])
            position = end
        self._buffer = data[position:]

    def _control(self, kind: int, body: bytes) -> None:
        if kind == _FAIL:
            try:
                self._failure = unpack_error(body)
            except DECODE_ERRORS:
                raise Violation("an error that cannot be read") from None
            return
        if len(body) != _U64.size or kind not in (_END, _ACK):
            raise Violation(f"an unknown record ({kind})")
        (total,) = _U64.unpack(body)
        if kind == _ACK:
            self._acked = total
            return
        if total != self._received or self._end_seen:
            raise Violation(f"{self._received} bytes arrived of {total}")
        self._end_seen = True

    # --- ending -----------------------------------------------------------------------------------------------------

    def _fail(self, error: ShemError) -> NoReturn:
        self._failure = self._failure or error
        raise self._failure

    async def abort(self, code: int = ABORTED) -> None:
        """Break it off; the peer's reads and writes raise. Harmless when it has ended."""
        self._failure = self._failure or StreamBroken("given up")
        if not self._closed:
            self._closed = True
            await self._stream.reset(code)
            await self._stream.stop(code)

    async def close(self) -> None:
        """Give the stream back. Without :meth:`finish` before it, the peer's reader sees a broken transfer."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._stream.finish()  # not a reset: what was written, an ACK say, must still arrive
        except PeerFailed:
            pass
        await self._stream.stop(UNREAD)
        self._failure = self._failure or StreamBroken("the stream is closed")


async def send_opening(stream: Stream, kind: str, header: bytes) -> None:
    """The opener's first bytes. Raises :class:`Refused` when they are too many."""
    name = kind.encode("ascii")
    if not 0 < len(name) <= MAX_KIND_BYTES or len(header) > MAX_HEADER_BYTES:
        raise Refused(f"a stream's header has at most {MAX_HEADER_BYTES} bytes", code="too_big")
    await stream.write(b"".join((bytes((len(name),)), name, _U32.pack(len(header)), header)))


async def read_opening(stream: Stream) -> tuple[str, bytes, BulkStream]:
    """(kind, header, stream) of what a peer opened. Raises :class:`Violation`, :class:`PeerFailed`."""
    buffer = b""

    async def need(count: int) -> None:
        nonlocal buffer
        while len(buffer) < count:
            data = await stream.read(CHUNK_BYTES)
            if not data:
                raise Violation("a stream without an opening")
            buffer += data

    await need(1)
    name_end = 1 + buffer[0]
    await need(name_end + 4)
    (length,) = _U32.unpack_from(buffer, name_end)
    if length > MAX_HEADER_BYTES:
        raise Violation("an oversized stream header")
    await need(name_end + 4 + length)
    kind = buffer[1:name_end].decode("ascii", errors="replace")
    opened = BulkStream(stream)
    opened._take(buffer[name_end + 4 + length :])
    return kind, buffer[name_end + 4 : name_end + 4 + length], opened
