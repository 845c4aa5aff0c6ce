"""Repairs of the generated Python bindings of iroh 1.2.0, applied in memory and checked before use.

Two things of that version cannot be lived with:

- every ``bytes`` that crosses into Rust is copied byte by byte in Python: 10 MB/s with a core at 100 %. Here it is one
  ``memmove`` (measured: 450 MB/s);
- a ``read`` that is cancelled in the moment its data arrives loses the data, because the result is fetched only after
  another turn of the event loop. Here the completion is seen by the call itself.

The bindings are generated code without a stable inside, so the version must be exactly the one this was written for, and
:func:`install` tries what it replaced before anybody else does.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import struct
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

from shem.errors import Misconfigured

SUPPORTED = "1.2.0"
_USED = (
    "_UniffiRustBufferBuilder",
    "_UniffiRustBuffer",
    "_UniffiFfiConverterBytes",
    "_uniffi_rust_call",
    "_uniffi_rust_call_with_error",
    "_uniffi_rust_call_async",
    "_uniffi_get_event_loop",
    "_UNIFFI_RUST_FUTURE_CONTINUATION_CALLBACK",
    "_UNIFFI_RUST_FUTURE_POLL_READY",
    "_UniffiLib",
    "InternalError",
)
_MARK = "_shem_patched"


def install(ffi: ModuleType, version: str) -> None:
    """Patch the bindings module once. Raises :class:`Misconfigured` when it is not what we know."""
    if version != SUPPORTED:
        raise _unusable(f"iroh {version} is installed, and only {SUPPORTED} is supported")
    if getattr(ffi, _MARK, False):
        return
    missing = [name for name in _USED if not hasattr(ffi, name)]
    if missing:
        raise _unusable(f"the installed iroh {version} lacks {', '.join(missing)}")
    _patch_bytes(ffi)
    _patch_async(ffi)
    _self_test(ffi)
    setattr(ffi, _MARK, True)


def _unusable(why: str) -> Misconfigured:
    return Misconfigured(why, code="iroh_unusable", hint=f"install iroh=={SUPPORTED}")


def _patch_bytes(ffi: Any) -> None:
    memmove, string_at = ctypes.memmove, ctypes.string_at
    size_of = struct.Struct(">i")
    call, library, buffer_type = ffi._uniffi_rust_call, ffi._UniffiLib, ffi._UniffiRustBuffer

    def start_of(buffer: Any) -> int:
        return ctypes.cast(buffer.data, ctypes.c_void_p).value or 0

    def put(builder: Any, data: bytes) -> None:
        count, buffer = len(data), builder.rbuf
        used = buffer.len
        if used + count > buffer.capacity:
            buffer = builder.rbuf = buffer_type.reserve(buffer, count)
        if count:
            memmove(start_of(buffer) + used, data, count)
        buffer.len = used + count

    def write(builder: Any, value: Any) -> None:
        put(builder, value if isinstance(value, bytes) else bytes(value))

    def pack_into(builder: Any, _size: int, layout: str, value: Any) -> None:
        put(builder, struct.pack(layout, value))

    def lower(_cls: type, value: Any) -> Any:
        data = value if isinstance(value, bytes) else bytes(value)
        count = len(data)
        buffer = call(library.ffi_iroh_ffi_rustbuffer_alloc, count + 4)
        start = start_of(buffer)
        memmove(start, size_of.pack(count), 4)
        if count:
            memmove(start + 4, data, count)
        buffer.len = count + 4
        return buffer

    def lift(_cls: type, buffer: Any) -> bytes:
        try:
            start = start_of(buffer)
            (count,) = size_of.unpack(string_at(start, 4))
            if count + 4 != buffer.len:
                raise ffi.InternalError("bad bytes buffer")
            return string_at(start + 4, count)
        finally:
            buffer.free()

    ffi._UniffiRustBufferBuilder.write = write
    ffi._UniffiRustBufferBuilder._pack_into = pack_into
    ffi._UniffiFfiConverterBytes.lower = classmethod(lower)
    ffi._UniffiFfiConverterBytes.lift = classmethod(lift)


class _Poll:
    """One poll of a Rust future: its outcome, and who waits for it."""

    __slots__ = ("code", "loop", "waiter")

    def __init__(self) -> None:
        self.code: int | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.waiter: asyncio.Future[None] | None = None


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _patch_async(ffi: Any) -> None:
    ready = ffi._UNIFFI_RUST_FUTURE_POLL_READY
    get_loop, complete_call = ffi._uniffi_get_event_loop, ffi._uniffi_rust_call_with_error
    polls: dict[int, _Poll] = {}
    handles = itertools.count(1)

    def on_continue(handle: int, code: int) -> None:  # on a thread of Rust's, or within the poll itself
        poll = polls.pop(handle, None)
        if poll is None:
            return
        poll.code = code  # published before the waiter is looked for, as the caller does it the other way round
        waiter, loop = poll.waiter, poll.loop
        if waiter is not None and loop is not None:
            try:
                loop.call_soon_threadsafe(_wake, waiter)
            except RuntimeError:
                pass  # the loop closed meanwhile: nobody waits any more

    continuation = ffi._UNIFFI_RUST_FUTURE_CONTINUATION_CALLBACK(on_continue)
    ffi._shem_continuation = continuation  # Rust keeps a bare pointer to it

    async def call_async(
        future: Any,
        poll_it: Callable[..., None],
        complete: Any,
        free: Callable[[Any], None],
        lift: Callable[[Any], Any],
        error_converter: Any,
    ) -> Any:
        handle = 0
        try:
            while True:
                handle = next(handles)
                poll = polls[handle] = _Poll()
                poll_it(future, continuation, handle)
                if poll.code is None:
                    loop = poll.loop = get_loop()
                    waiter = poll.waiter = loop.create_future()
                    if poll.code is None:
                        await waiter
                if poll.code == ready:
                    break
            return lift(complete_call(error_converter, complete, future))
        finally:
            polls.pop(handle, None)
            free(future)

    ffi._uniffi_rust_call_async = call_async


def _self_test(ffi: Any) -> None:
    """Round trips through the replaced conversions, over the sizes where they could go wrong."""
    converter, builder_type = ffi._UniffiFfiConverterBytes, ffi._UniffiRustBufferBuilder
    for sample in (b"", b"\x00", bytes(range(256)) * 5, b"\xff" * 300_001):
        if (
            converter.lift(converter.lower(sample)) != sample
            or converter.lift(converter.lower(memoryview(sample))) != sample
        ):
            raise _unusable("the installed iroh does not pass our check of its byte buffers")
        builder = builder_type()
        converter.write(sample, builder)
        if converter.lift(builder.finalize()) != sample:
            raise _unusable("the installed iroh does not pass our check of its buffer builder")


async def async_self_test(work: Awaitable[Any], timeout_s: float) -> Any:
    """Run a first asynchronous call; one that never returns means that the patched calls do not work."""
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except TimeoutError:
        raise _unusable("the installed iroh never answered its first call") from None
