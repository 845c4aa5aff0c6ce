r"""Constraints: the small filter language in which one side of a deal says what it wants of the other's properties.

::

    filter = "(" ( "&" filter* | "|" filter* | "!" filter | "" | item ) ")"
    item   = name ("=" | "<" | "<=" | ">" | ">=") value        presence: (name=*)

White space is free around ``&``, ``|``, ``!``, between filters and before a name, and significant inside an item. A
value runs up to the first ``)``: there are no quotes and no escapes. Text after the first complete filter is ignored.
A name may end in ``$v``, ``$d`` or ``$t``, which compares text as a version, a decimal or a time.

The answer has three values: ``True``, ``False`` and ``None`` (undefined: a comparison with a property that is not
there). AND is false before it is undefined, OR is true before it is undefined, NOT leaves undefined as it is. Only
``True`` matches.

A constraint is compiled once, into a tree of small objects with the operand parsed for every type that it could meet,
and resolved many times. Constraints come from strangers: length, number of items and depth are bounded, the parser
keeps its own stack, and wildcards are matched without backtracking (a regular expression could be made to take for
ever).
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol

from shem.errors import Refused

MAX_CHARS = 64 << 10
MAX_ITEMS = 2_000
MAX_DEPTH = 64

Answer = bool | None
Properties = Mapping[str, Any]


class BadConstraint(Refused):
    """The text is not a constraint."""

    default_code = "bad_constraint"


class _Node(Protocol):
    def resolve(self, properties: Properties) -> Answer: ...


class Constraint:
    """A compiled constraint. ``text`` is as it was written."""

    __slots__ = ("_root", "equalities", "text")

    def __init__(self, text: str, root: _Node) -> None:
        self.text = text
        self._root = root
        self.equalities: Mapping[str, str] = _required(root)
        """Names that must be there with that very text for the answer to be ``True``, when the property is text.

        A cheap filter for an index: an offer that says ``"golem.runtime.name": "wasm"`` need not be asked
        ``(&(golem.runtime.name=vm)…)``. Says nothing about properties that are not text.
        """

    def resolve(self, properties: Properties) -> Answer:
        """What it says of flat ``properties``: ``True``, ``False``, or ``None`` for undefined. Never raises."""
        return self._root.resolve(properties)

    def __repr__(self) -> str:
        return f"Constraint({self.text!r})"


def parse(text: str) -> Constraint:
    """Compile. Raises :class:`BadConstraint` with the place and the reason."""
    if len(text) > MAX_CHARS:
        raise BadConstraint(f"the constraint has {len(text)} characters, more than {MAX_CHARS}")
    return Constraint(text, _Parser(text).parse())


def matches(constraint: Constraint | None, properties: Properties) -> bool:
    """Whether the answer is ``True``. ``None`` stands for a constraint that did not parse: it never matches."""
    return constraint is not None and constraint.resolve(properties) is True


# --- the tree ---------------------------------------------------------------------------------------------------------


class _Always:
    __slots__ = ()

    def resolve(self, properties: Properties) -> Answer:
        return True


class _And:
    __slots__ = ("children",)

    def __init__(self, children: tuple[_Node, ...]) -> None:
        self.children = children

    def resolve(self, properties: Properties) -> Answer:
        answer: Answer = True
        for child in self.children:
            found = child.resolve(properties)
            if found is False:
                return False
            if found is None:
                answer = None
        return answer


class _Or:
    __slots__ = ("children",)

    def __init__(self, children: tuple[_Node, ...]) -> None:
        self.children = children

    def resolve(self, properties: Properties) -> Answer:
        answer: Answer = False
        for child in self.children:
            found = child.resolve(properties)
            if found is True:
                return True
            if found is None:
                answer = None
        return answer


class _Not:
    __slots__ = ("child",)

    def __init__(self, child: _Node) -> None:
        self.child = child

    def resolve(self, properties: Properties) -> Answer:
        found = self.child.resolve(properties)
        return None if found is None else not found


class _Present:
    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def resolve(self, properties: Properties) -> Answer:
        return properties.get(self.name) is not None


class _Aspect:
    """``name[aspect]``: nobody here gives aspects a value, so presence is false and comparison undefined."""

    __slots__ = ("answer",)

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def resolve(self, properties: Properties) -> Answer:
        return self.answer


_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class _Compare:
    """``name op value``; the operand is ready in each of the types that the property may turn out to have."""

    __slots__ = ("equal", "items", "name", "number", "order", "truth", "value", "wildcard")

    def __init__(self, name: str, symbol: str, value: str) -> None:
        self.name = name
        self.value = value
        self.equal = symbol == "="
        self.order = _ORDERS[symbol]
        self.number = _number(value)
        self.truth = {"true": True, "false": False}.get(value)
        self.wildcard = _Wildcard(value) if self.equal and "*" in value else None
        self.items = _list_items(value)

    def resolve(self, properties: Properties) -> Answer:
        found = properties.get(self.name)
        if found is None:
            return None
        if isinstance(found, str):
            if self.wildcard is not None:
                return self.wildcard.matches(found)
            return self.order(found, self.value)
        if isinstance(found, bool):
            return self.equal and self.truth is found
        if isinstance(found, int | float):
            return self.number is not None and self.order(found, self.number)
        if isinstance(found, list | tuple):
            return self.equal and self._list(found)
        return False

    def _list(self, found: list[Any] | tuple[Any, ...]) -> bool:
        texts = [_item_text(item) for item in found]
        if self.items is not None:
            return len(texts) == len(self.items) and Counter(texts) == Counter(self.items)
        if self.wildcard is not None:
            return any(map(self.wildcard.matches, texts))
        return self.value in texts


class _CompareAs:
    """``name$v op value`` and its sisters: text (or a number, for ``$d``) read as a version, decimal or time."""

    __slots__ = ("name", "operand", "order", "read")

    def __init__(self, name: str, symbol: str, value: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self.order = _ORDERS[symbol]
        self.read = read
        self.operand = read(value)

    def resolve(self, properties: Properties) -> Answer:
        found = properties.get(self.name)
        if found is None:
            return None
        if isinstance(found, int | float) and not isinstance(found, bool) and self.read is _decimal:
            found = repr(found)
        if not isinstance(found, str) or self.operand is None:
            return False
        value = self.read(found)
        return value is not None and self.order(value, self.operand)


class _Wildcard:
    """``ab*c*``: parts in order, the first at the start, the last at the end. Linear, no backtracking."""

    __slots__ = ("first", "last", "middle", "shortest")

    def __init__(self, pattern: str) -> None:
        self.first, *middle, self.last = pattern.split("*")
        self.middle = [part for part in middle if part]
        self.shortest = len(pattern) - pattern.count("*")

    def matches(self, text: str) -> bool:
        if len(text) < self.shortest or not (text.startswith(self.first) and text.endswith(self.last)):
            return False
        place, end = len(self.first), len(text) - len(self.last)
        for part in self.middle:
            place = text.find(part, place, end)
            if place < 0:
                return False
            place += len(part)
        return place <= end


# --- values -----------------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,30}", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)
_NUMERAL = r"(0|[1-9]\d{0,19})"
_VERSION = re.compile(
    rf"{_NUMERAL}\.{_NUMERAL}\.{_NUMERAL}(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:\+[0-9A-Za-z.-]+)?", re.ASCII
)
_MAX_TYPED_CHARS = 256


def _number(text: str) -> int | float | None:
    if _INTEGER.fullmatch(text):
        return int(text)  # exact beyond 2**53
    return float(text) if _NUMBER.fullmatch(text) else None


def _decimal(text: str) -> Decimal | None:
    return Decimal(text) if len(text) <= _MAX_TYPED_CHARS and _DECIMAL.fullmatch(text) else None


def _time(text: str) -> datetime | None:
    if len(text) > _MAX_TYPED_CHARS or not _TIME.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text.upper())
    except ValueError:  # the 31st of February
        return None


def _version(text: str) -> tuple[Any, ...] | None:
    """A key that orders semantic versions: a pre-release comes before its release, numbers before words."""
    found = _VERSION.fullmatch(text) if len(text) <= _MAX_TYPED_CHARS else None
    if found is None:
        return None
    major, minor, patch, pre = found.groups()
    parts = tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in pre.split(".")) if pre else ()
    return int(major), int(minor), int(patch), pre is None, parts


_SUFFIXES: dict[str, Callable[[str], Any]] = {"$v": _version, "$d": _decimal, "$t": _time}


def _list_items(value: str) -> list[str] | None:
    if not (value.startswith("[") and value.endswith("]")):
        return None
    inner = value[1:-1]
    return inner.split(",") if inner else []


def _item_text(item: Any) -> str:
    """A list's element as it would be written in a constraint."""
    if isinstance(item, str):
        return item
    if isinstance(item, bool):
        return "true" if item else "false"
    return "null" if item is None else repr(item)


# --- the parser -------------------------------------------------------------------------------------------------------

_SPACE = " \t\r\n"
_OPERATOR = re.compile(r"[<>]=?|=")
_ASPECT = re.compile(r"(.+)\[[^\[\]]*\]", re.DOTALL)


class _Parser:
    """One pass, with its own stack of open groups."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.items = 0

    def parse(self) -> _Node:
        open_groups: list[tuple[str, list[_Node]]] = []
        while True:
            self._skip_space()
            if open_groups and self._peek() == ")":
                self.at += 1
                symbol, children = open_groups.pop()
                node = self._group(symbol, children)
            else:
                symbol_or_node = self._open()
                if isinstance(symbol_or_node, str):
                    if len(open_groups) >= MAX_DEPTH:
                        raise BadConstraint(f"the constraint is nested deeper than {MAX_DEPTH}")
                    open_groups.append((symbol_or_node, []))
                    continue
                node = symbol_or_node
            if not open_groups:
                return node
            open_groups[-1][1].append(node)

    def _open(self) -> str | _Node:
        """Past an opening parenthesis: the symbol of a group that has begun, or a whole item."""
        if self._peek() != "(":
            raise self._error("an opening parenthesis is missing")
        self.at += 1
        self.items += 1
        if self.items > MAX_ITEMS:
            raise BadConstraint(f"the constraint has more than {MAX_ITEMS} items")
        self._skip_space()
        symbol = self._peek()
        if symbol in ("&", "|", "!"):
            self.at += 1
            return symbol
        if symbol == ")":
            self.at += 1
            return _Always()
        return self._item()

    def _group(self, symbol: str, children: list[_Node]) -> _Node:
        if symbol == "!":
            if len(children) != 1:
                raise self._error(f"'!' takes one filter, not {len(children)}")
            return _Not(children[0])
        return _And(tuple(children)) if symbol == "&" else _Or(tuple(children))

    def _item(self) -> _Node:
        end = self.text.find(")", self.at)
        if end < 0:
            raise self._error("a closing parenthesis is missing")
        body = self.text[self.at : end]
        found = _OPERATOR.search(body)
        name = body[: found.start()] if found else ""
        if found is None or not name or "(" in name:
            raise self._error("a name and one of = < <= > >= are expected")
        value = body[found.end() :]
        self.at = end + 1
        return self._comparison(name, found.group(), value)

    def _comparison(self, name: str, symbol: str, value: str) -> _Node:
        reader = _SUFFIXES.get(name[-2:])
        plain = name[:-2] if reader else name
        presence = symbol == "=" and value == "*"
        if not presence and value.startswith("*") and len(value) > 1:
            raise self._error("a value must not start with '*'")
        if _ASPECT.fullmatch(plain):
            return _Aspect(False if presence else None)
        if presence:
            return _Present(plain)
        if reader:
            return _CompareAs(plain, symbol, value, reader)
        return _Compare(plain, symbol, value)

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _skip_space(self) -> None:
        text, at = self.text, self.at
        while at < len(text) and text[at] in _SPACE:
            at += 1
        self.at = at

    def _error(self, why: str) -> BadConstraint:
        return BadConstraint(f"bad constraint at character {self.at}: {why}")


def _required(root: _Node) -> dict[str, str]:
    found: dict[str, str] = {}
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, _And):
            waiting.extend(node.children)
        elif isinstance(node, _Compare) and node.equal and node.wildcard is None:
            found.setdefault(node.name, node.value)
    return found
