"""Properties: what an offer or a demand says of itself, as a flat map from dotted names to values.

Agents may send nested objects, dotted names, or a mix; what is stored, compared and shown is flat and sorted by name.
``{"golem": {"inf": {"mem": {"gib": 4.0}}}}`` is ``{"golem.inf.mem.gib": 4.0}``. A name that is a value and a parent
at once is written with the tag ``@tag``: ``{"golem": {"x": {"@tag": "v", "y": 1}}}`` is ``{"golem.x": "v",
"golem.x.y": 1}``. Empty objects vanish, ``null`` stays, lists are values.

Properties come from strangers, so everything is bounded, and nothing here recurses deeper than :data:`MAX_DEPTH`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from shem.errors import Refused

TAG = "@tag"
MAX_COUNT = 1_000
"""Properties of one offer or demand."""
MAX_DEPTH = 32
"""Nested objects and lists."""
MAX_NAME_CHARS = 512
MAX_BYTES = 256 << 10
"""Names and values together, counted roughly as they are sent. Payload manifests are the large ones."""
_MAX_INT = (1 << 64) - 1
_MIN_INT = -(1 << 63)
_PLAIN = frozenset({str, int, float, bool, type(None), list})
"""What nearly all values are. Offers are checked by the thousand, and to ask whether something is a ``Mapping`` is slow."""


class BadProperties(Refused):
    """The properties are not a bounded map of names to plain values."""

    default_code = "bad_properties"


def flatten(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Nested or dotted properties as a flat map, sorted by name.

    Raises :class:`BadProperties` when there are too many, too deep or too large ones, when a value is not JSON, or when
    two spellings of the same name disagree.
    """
    flat: dict[str, Any] = {}
    _flatten_into(flat, "", properties, 0)
    _check_size(flat)
    return dict(sorted(flat.items()))


def check_flat(properties: Mapping[str, Any]) -> None:
    """Raises :class:`BadProperties` unless ``properties`` is what :func:`flatten` could have given (in any order)."""
    if len(properties) > MAX_COUNT:
        raise BadProperties(f"more than {MAX_COUNT} properties")
    for name, value in properties.items():
        _check_name(name)
        if type(value) not in _PLAIN and isinstance(value, Mapping):
            raise BadProperties(f"the property {name[:80]!r} is an object: send flat names")
    _check_size(properties)


def unflatten(properties: Mapping[str, Any]) -> dict[str, Any]:
    """The nested form of flat properties; :data:`TAG` holds the value of a name that is also a parent."""
    nested: dict[str, Any] = {}
    for name, value in sorted(properties.items()):
        *parents, last = name.split(".")
        place = nested
        for part in parents:
            child = place.get(part)
            if not isinstance(child, dict):
                child = {} if part not in place else {TAG: child}
                place[part] = child
            place = child
        place[last] = value
    return nested


def _flatten_into(flat: dict[str, Any], prefix: str, value: Mapping[str, Any], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise BadProperties(f"properties are nested deeper than {MAX_DEPTH}")
    for key, item in value.items():
        if not isinstance(key, str):
            raise BadProperties(f"a property name is not text: {str(key)[:80]!r}")
        name = _join(prefix, key) if prefix or TAG in key else key
        if type(item) not in _PLAIN and isinstance(item, Mapping):
            _flatten_into(flat, name, item, depth + 1)
            continue
        _check_name(name)
        if name in flat and flat[name] != item:
            raise BadProperties(f"the property {name[:80]!r} is given twice, with different values")
        flat[name] = item
        if len(flat) > MAX_COUNT:
            raise BadProperties(f"more than {MAX_COUNT} properties")


def _join(prefix: str, key: str) -> str:
    if key == TAG:
        return prefix
    name = f"{prefix}.{key}" if prefix else key
    return name.removesuffix("." + TAG)


def _check_name(name: str) -> None:
    if not name or len(name) > MAX_NAME_CHARS:
        raise BadProperties(f"a property name must have 1 to {MAX_NAME_CHARS} characters, not {len(name)}")


def _check_size(flat: Mapping[str, Any]) -> None:
    left = MAX_BYTES
    for name, value in flat.items():
        if type(value) is str and value.isascii():
            left -= len(name) + len(value) + 2
        else:
            left -= len(name) + _size(name, value, left, 0)
        if left < 0:
            raise BadProperties(f"the properties take more than {MAX_BYTES} bytes")


def _size(name: str, value: Any, left: int, depth: int) -> int:
    """About how many bytes ``value`` takes as JSON; raises when it is none. Stops counting soon after ``left``."""
    if value is None or isinstance(value, bool):
        return 5
    if isinstance(value, str):
        return _text_size(name, value)
    if isinstance(value, int):
        if not _MIN_INT <= value <= _MAX_INT:
            raise BadProperties(f"the property {name[:80]!r} holds a number beyond 64 bits")
        return 20
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadProperties(f"the property {name[:80]!r} holds a number that is not finite")
        return 24
    if depth >= MAX_DEPTH:
        raise BadProperties(f"the property {name[:80]!r} is nested deeper than {MAX_DEPTH}")
    total = 2
    if isinstance(value, list | tuple):
        for item in value:
            total += 1 + _size(name, item, left - total, depth + 1)
            if total > left:
                break
        return total
    if isinstance(value, Mapping):  # only inside lists: elsewhere it was flattened
        for key, item in value.items():
            if not isinstance(key, str):
                raise BadProperties(f"the property {name[:80]!r} has a key that is not text")
            total += _text_size(name, key) + _size(name, item, left - total, depth + 1)
            if total > left:
                break
        return total
    raise BadProperties(f"the property {name[:80]!r} holds a {type(value).__name__}, which is not JSON")


def _text_size(name: str, text: str) -> int:
    try:
        return len(text.encode()) + 2
    except UnicodeEncodeError:
        raise BadProperties(f"the property {name[:80]!r} holds text that is not Unicode") from None
