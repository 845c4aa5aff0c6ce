"""Schemaless FlexBuffers, as JavaScript can use them, and with nothing in them that could harm the reader.

A FlexBuffer is a graph of offsets. A reader that follows them wherever they lead is led into vectors that share their members
(a few hundred bytes that unfold into gigabytes), or before the beginning, where an index of Python counts from the end. Here
every access is checked against the buffer, and depth, number of values and bytes of text are bounded. Blobs are views of the
buffer, not copies.

The width of a vector's widest number is that of all, and what is wider than 32 bits arrives in JavaScript as a BigInt, which
breaks arithmetic. So wide numbers are written elsewhere and pointed to, where they widen nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from shem.errors import Refused

MAX_DEPTH = 16
MAX_VALUES = 4096
MAX_KEY_BYTES = 256
SAFE_INT = (1 << 31) - 1
"""The largest whole number that JavaScript gets as a number: see :func:`number`."""

_NULL, _INT, _UINT, _FLOAT, _KEY, _STRING, _INDIRECT_INT, _INDIRECT_UINT, _INDIRECT_FLOAT, _MAP, _VECTOR = range(11)
_TYPED = {11: _INT, 12: _UINT, 13: _FLOAT, 14: _KEY, 36: 26}
_FIXED = range(16, 25)
_BLOB, _BOOL = 25, 26
_INDIRECT = {_INDIRECT_INT: _INT, _INDIRECT_UINT: _UINT, _INDIRECT_FLOAT: _FLOAT}


class BadFlexBuffer(Refused):
    """These bytes are no FlexBuffer, or one that nobody needs."""

    default_code = "bad_flexbuffer"


def dumps(value: Any) -> bytes:
    """A value of maps, lists, text, bytes, numbers, booleans and ``None``. Raises :class:`BadFlexBuffer` for any other."""
    return _Writer().root(value)


def number(value: int) -> int | float:
    """A whole number up to 2^53 so that JavaScript can calculate with it."""
    return value if -SAFE_INT <= value <= SAFE_INT else float(value)


def loads(data: bytes) -> Any:
    """The value in ``data``; blobs are ``memoryview``. Raises :class:`BadFlexBuffer`."""
    if len(data) < 3:
        raise BadFlexBuffer("it is too short")
    width = data[-1]
    if width not in {1, 2, 4, 8}:
        raise BadFlexBuffer("its root has no width")
    return _Reader(data).value(len(data) - 2 - width, width, data[-2], MAX_DEPTH)


class _Stored(NamedTuple):
    """A value that is to be written into its parent: itself (as bytes of any width), or the place where it is."""

    kind: int
    width: int  # 0…3, for 1, 2, 4 and 8 bytes
    inline: Callable[[int], bytes] | None = None
    place: int = 0

    def bytes_at(self, position: int, width: int) -> bytes | None:
        """``None`` when it does not fit into this width."""
        if self.inline is not None:
            return self.inline(1 << width) if self.width <= width else None
        distance = position - self.place
        return distance.to_bytes(1 << width, "little") if distance < 1 << (8 << width) else None

    def packed(self, parent: int) -> int:
        """Its type, as it stands in a parent of that width."""
        return self.kind << 2 | (self.width if self.inline is None else max(self.width, parent))


class _Writer:
    def __init__(self) -> None:
        self._out = bytearray()

    def root(self, value: Any) -> bytes:
        stored = self._add(value, MAX_DEPTH)
        _, width = self._vector((), (stored,), bare=True)
        self._out += bytes((stored.packed(width), 1 << width))
        return bytes(self._out)

    def _add(self, value: Any, depth: int) -> _Stored:
        if depth < 0:
            raise BadFlexBuffer("it is too deep")
        match value:
            case None:
                return _Stored(_NULL, 0, bytes)
            case bool():
                return _whole(_BOOL, int(value), 0)
            case int():
                return self._int(value)
            case float():
                return self._float(value)
            case str():
                return self._sized(_STRING, _utf8(value), end=b"\0")
            case bytes() | bytearray() | memoryview():
                return self._sized(_BLOB, value)
            case dict():
                return self._map(value, depth)
            case list() | tuple():
                place, width = self._vector((), [self._add(item, depth - 1) for item in value])
                return _Stored(_VECTOR, width, place=place)
        raise BadFlexBuffer(f"there is no {type(value).__name__} in it")

    def _int(self, value: int) -> _Stored:
        width = next((w for w in range(4) if -(1 << (8 << w) - 1) <= value < 1 << (8 << w) - 1), 4)
        if width > 3:
            raise BadFlexBuffer("it has no numbers of more than 64 bits")
        return _whole(_INT, value, width) if width < 3 else self._indirect(_INDIRECT_INT, struct.pack("<q", value))

    def _float(self, value: float) -> _Stored:
        try:
            short = struct.pack("<f", value)
        except OverflowError:
            short = b""
        if not short or (struct.unpack("<f", short)[0] != value and value == value):  # noqa: PLR0124 - but for what is no number
            return self._indirect(_INDIRECT_FLOAT, struct.pack("<d", value))
        return _Stored(_FLOAT, 2, lambda width: short if width == 4 else struct.pack("<d", value))

    def _indirect(self, kind: int, eight: bytes) -> _Stored:
        self._align(3)
        self._out += eight
        return _Stored(kind, 3, place=len(self._out) - 8)

    def _sized(self, kind: int, content: bytes | bytearray | memoryview, end: bytes = b"") -> _Stored:
        width = _width(len(content))
        self._align(width)
        self._out += len(content).to_bytes(1 << width, "little")
        place = len(self._out)
        self._out += content
        self._out += end
        return _Stored(kind, width, place=place)

    def _map(self, value: dict[Any, Any], depth: int) -> _Stored:
        if not all(isinstance(key, str) and "\0" not in key for key in value):
            raise BadFlexBuffer("it has a key that can be none")
        names = sorted(_utf8(key) for key in value)
        if any(len(name) >= MAX_KEY_BYTES for name in names):
            raise BadFlexBuffer("it has a key that is too long")
        keys = []
        for name in names:
            keys.append(_Stored(_KEY, 0, place=len(self._out)))
            self._out += name + b"\0"
        values = [self._add(value[name.decode()], depth - 1) for name in names]
        keys_place, keys_width = self._vector((), keys, typed=True)
        before = (_Stored(_VECTOR, keys_width, place=keys_place), _whole(_UINT, 1 << keys_width, 0))
        place, width = self._vector(before, values)
        return _Stored(_MAP, width, place=place)

    def _vector(
        self, before: Sequence[_Stored], items: Sequence[_Stored], *, typed: bool = False, bare: bool = False
    ) -> tuple[int, int]:
        """Its place and its width. ``bare``: without its count."""
        head = list(before) if bare else [*before, _whole(_UINT, len(items), _width(len(items)))]
        for width in range(4):
            start = len(self._out) + (-len(self._out) & (1 << width) - 1)
            written = [item.bytes_at(start + (i << width), width) for i, item in enumerate((*head, *items))]
            if None not in written:
                break
        self._align(width)
        place = len(self._out) + (len(head) << width)
        self._out += b"".join(piece for piece in written if piece is not None)
        if not typed and not bare:
            self._out += bytes(item.packed(width) for item in items)
        return place, width

    def _align(self, width: int) -> None:
        self._out += bytes(-len(self._out) & (1 << width) - 1)


def _whole(kind: int, value: int, width: int) -> _Stored:
    return _Stored(kind, width, lambda size: value.to_bytes(size, "little", signed=kind == _INT))


def _width(count: int) -> int:
    return next(width for width in range(4) if count < 1 << (8 << width))


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise BadFlexBuffer("it has text that is none") from None


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
