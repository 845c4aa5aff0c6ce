"""Schemaless FlexBuffers: writing by the library, reading by ourselves.

A FlexBuffer is a graph of offsets, and the library follows them wherever they lead: into loops of vectors that share their
members (a few hundred bytes that unfold into gigabytes), or before the beginning, where an index of Python counts from the
end. What strangers' programs send is therefore read here: every access is checked against the buffer, and depth, number of
values and bytes of text are bounded. Blobs are views of the buffer, not copies.
"""

from __future__ import annotations

import struct
from typing import Any

from shem.errors import Refused

MAX_DEPTH = 16
MAX_VALUES = 4096
MAX_KEY_BYTES = 256
SAFE_INT = (1 << 31) - 1
"""The largest number that is written in 32 bits: a wider one arrives in JavaScript as a BigInt, which breaks arithmetic."""

_NULL, _INT, _UINT, _FLOAT, _KEY, _STRING, _INDIRECT_INT, _INDIRECT_UINT, _INDIRECT_FLOAT, _MAP, _VECTOR = range(11)
_TYPED = {11: _INT, 12: _UINT, 13: _FLOAT, 14: _KEY, 36: 26}
_FIXED = range(16, 25)
_BLOB, _BOOL = 25, 26
_INDIRECT = {_INDIRECT_INT: _INT, _INDIRECT_UINT: _UINT, _INDIRECT_FLOAT: _FLOAT}


class BadFlexBuffer(Refused):
    """These bytes are no FlexBuffer, or one that nobody needs."""

    default_code = "bad_flexbuffer"


def dumps(value: Any) -> bytes:
    """A value of maps, lists, text, ``bytes``, numbers, booleans and ``None`` as bytes."""
    from flatbuffers import flexbuffers  # takes a while to load, and a program that moves no file needs none of it

    return bytes(flexbuffers.Dumps(value))


def number(value: int) -> int | float:
    """A whole number up to 2^53, so that every reader gets a plain number (see :data:`SAFE_INT`)."""
    return value if -SAFE_INT <= value <= SAFE_INT else float(value)


def loads(data: bytes) -> Any:
    """The value in ``data``; blobs are ``memoryview``. Raises :class:`BadFlexBuffer`."""
    if len(data) < 3:
        raise BadFlexBuffer("it is too short")
    width = data[-1]
    if width not in {1, 2, 4, 8}:
        raise BadFlexBuffer("its root has no width")
    return _Reader(data).value(len(data) - 2 - width, width, data[-2], MAX_DEPTH)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._view = memoryview(data)
        self._values_left = MAX_VALUES
        self._text_left = max(len(data), MAX_KEY_BYTES)

    def value(self, place: int, width: int, packed: int, depth: int) -> Any:
        """The value that stands at ``place``, in a parent of ``width``."""
        self._values_left -= 1
        if self._values_left < 0 or depth < 0:
            raise BadFlexBuffer("it has too many values, or too deep ones")
        kind, own = packed >> 2, 1 << (packed & 3)
        if kind == _NULL:
            return None
        if kind in {_INT, _UINT, _FLOAT, _BOOL}:
            return self._number(kind, place, width)
        target = self._follow(place, width)
        if kind == _MAP:
            return self._map(target, own, depth)
        if kind == _STRING:
            return self._text(target, self._uint(target - own, own))
        if kind == _BLOB:
            return self._piece(target, self._uint(target - own, own))
        if kind == _KEY:
            return self._key(target)
        if kind in _INDIRECT:
            return self._number(_INDIRECT[kind], target, own)
        return self._list(kind, target, own, depth)

    def _list(self, kind: int, target: int, width: int, depth: int) -> list[Any]:
        if kind in _FIXED:
            count, element = (kind - 16) // 3 + 2, (kind - 16) % 3 + 1
        elif kind in _TYPED:
            count, element = self._count(target, width), _TYPED[kind]
        elif kind == _VECTOR:
            count = self._count(target, width)
            types = self._piece(target + count * width, count)
            return [self.value(target + i * width, width, types[i], depth - 1) for i in range(count)]
        else:
            raise BadFlexBuffer("it has a value of an unknown kind")
        return [self.value(target + i * width, width, element << 2, depth - 1) for i in range(count)]

    def _map(self, target: int, width: int, depth: int) -> dict[str, Any]:
        count = self._count(target, width)
        keys = self._follow(target - 3 * width, width)
        keys_width = self._uint(target - 2 * width, width)
        if keys_width not in {1, 2, 4, 8} or self._uint(keys - keys_width, keys_width) != count:
            raise BadFlexBuffer("a map has not as many keys as values")
        types = self._piece(target + count * width, count)
        found: dict[str, Any] = {}
        for i in range(count):
            key = self._key(self._follow(keys + i * keys_width, keys_width))
            found[key] = self.value(target + i * width, width, types[i], depth - 1)
        return found

    def _count(self, target: int, width: int) -> int:
        count = self._uint(target - width, width)
        if count > self._values_left:
            raise BadFlexBuffer("it has too many values")
        return count

    def _follow(self, place: int, width: int) -> int:
        return place - self._uint(place, width)

    def _uint(self, place: int, width: int) -> int:
        return int.from_bytes(self._piece(place, width), "little")

    def _number(self, kind: int, place: int, width: int) -> int | float | bool:
        piece = self._piece(place, width)
        if kind == _FLOAT:
            if width not in {4, 8}:
                raise BadFlexBuffer("it has a fraction of an unknown width")
            value: float = struct.unpack("<f" if width == 4 else "<d", piece)[0]
            return value
        found = int.from_bytes(piece, "little", signed=kind == _INT)
        return bool(found) if kind == _BOOL else found

    def _key(self, target: int) -> str:
        if not 0 <= target < len(self._data):
            raise BadFlexBuffer("it leads out of itself")
        end = self._data.find(0, target, target + MAX_KEY_BYTES)
        if end < 0:
            raise BadFlexBuffer("it has a key without an end")
        return self._text(target, end - target)

    def _text(self, target: int, size: int) -> str:
        self._text_left -= size
        if self._text_left < 0:
            raise BadFlexBuffer("it has too much text")
        try:
            return str(self._piece(target, size), "utf-8")
        except UnicodeDecodeError:
            raise BadFlexBuffer("it has text that is not UTF-8") from None

    def _piece(self, target: int, size: int) -> memoryview:
        if target < 0 or target + size > len(self._data):
            raise BadFlexBuffer("it leads out of itself")
        return self._view[target : target + size]
