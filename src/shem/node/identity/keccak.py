"""Keccak-256, the hash of Ethereum (which is not SHA3-256), without what its library does around it.

The library's class makes a state for each hash, wraps it and throws it away, which costs three times what the hash does; a
signature needs three hashes. Here each thread keeps one state, and the same C functions work on it. They are not the
library's public face, so they are tried once on inputs of every length that matters, and where they do not agree with the
public class, or are not there, that class does the work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from Crypto.Hash import keccak
from Crypto.Util import _raw_api

_library: Any = getattr(keccak, "_raw_keccak_lib", None)
_memory: Any = _raw_api
"""Neither says what it takes."""
Hash = Callable[[bytes], bytes]

_RATE = 136
"""So many bytes are absorbed at once; trials lie around it."""
_TRIALS = tuple(bytes(size) + b"." for size in (0, 31, _RATE - 2, _RATE - 1, _RATE, 3 * _RATE, 5000))


def by_class(data: bytes) -> bytes:
    """32 bytes, by the library's public class."""
    digest: bytes = keccak.new(digest_bits=256, data=data).digest()
    return digest


class _State(threading.local):
    """A thread's own: the C functions let other threads run."""

    def __init__(self) -> None:
        place = _memory.VoidPointer()
        if _library.keccak_init(place.address_of(), 64, 24):
            raise MemoryError("no room for a hash")
        self.pointer = place.get()
        self.digest = _memory.create_string_buffer(32)
        self._owner = _memory.SmartPointer(self.pointer, _library.keccak_destroy)


def by_functions() -> Hash:
    """The same by its C functions. Raises ``AttributeError`` where they are not."""
    reset, absorb, squeeze = _library.keccak_reset, _library.keccak_absorb, _library.keccak_digest
    text = _memory.get_raw_buffer
    state = _State()

    def hashed(data: bytes) -> bytes:
        pointer, digest = state.pointer, state.digest
        if reset(pointer) or absorb(pointer, data, len(data)) or squeeze(pointer, digest, 32, 1):
            raise RuntimeError("a hash failed")
        found: bytes = text(digest)
        return found

    return hashed


def _best() -> Hash:
    if getattr(_raw_api, "backend", "") != "cffi":  # ctypes would have to be told every type
        return by_class
    try:
        functions = by_functions()
        agree = all(functions(trial) == by_class(trial) for trial in (*_TRIALS, *reversed(_TRIALS)))
    except (AttributeError, TypeError, RuntimeError):
        agree = False
    return functions if agree else by_class


keccak256: Hash = _best()
"""32 bytes."""
