"""Frozen values as rows that change in place, and back.

Most writes of the payment service change some columns of a row that is there. ``insert or replace`` would take the row out of
its table and out of every index, and put it in again; an update touches what changes. So each kind of value says once which
columns name it, and which of the others ever change; what else a row has is written when it is made.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec

V = TypeVar("V", bound=msgspec.Struct)
Codec = tuple[Callable[[Any], Any], Callable[[Any], Any]]
"""What makes a cell of a value, and the value of a cell."""


class Rows(Generic[V]):
    """The rows of one kind of value in one table."""

    def __init__(
        self, table: str, shape: type[V], key: Sequence[str], changing: Collection[str], codecs: Mapping[str, Codec]
    ) -> None:
        """``codecs`` are for columns whose values SQLite does not take as they are; ``None`` is ``null`` whatever they do."""
        self._shape = shape
        self._fields = fields = shape.__struct_fields__
        places = {name: place for place, name in enumerate(fields)}
        coded = [(places[name], codec) for name, codec in codecs.items() if name in places]
        self._encoders = [(place, encode) for place, (encode, _) in coded]
        self._decoders = [(place, decode) for place, (_, decode) in coded]
        self._sources = [places[name] for name in (*(name for name in fields if name in changing), *key)]
        changes = ", ".join(f"{name} = ?" for name in fields if name in changing)
        where = " and ".join(f"{name} = ?" for name in key)
        names, marks = ", ".join(fields), ", ".join("?" * len(fields))
        self._select = f"select {names} from {table}"  # noqa: S608  our names
        self._update = f"update {table} set {changes} where {where}"  # noqa: S608  our names
        self._insert = f"insert into {table} ({names}) values ({marks})"  # noqa: S608  our names

    def find(self, connection: sqlite3.Connection, where: str, *arguments: Any, index: str = "") -> list[V]:
        """Those of which ``where`` is true; it may go on with an order and a limit. ``index`` says by which, where SQLite
        would rather read all rows of the owner."""
        by = f" indexed by {index}" if index else ""
        return [self._value(row) for row in connection.execute(f"{self._select}{by} where {where}", arguments)]

    def one(self, connection: sqlite3.Connection, where: str, *arguments: Any) -> V | None:
        """The first of those."""
        row = connection.execute(f"{self._select} where {where}", arguments).fetchone()
        return None if row is None else self._value(row)

    def save(self, connection: sqlite3.Connection, value: V) -> None:
        """Change its row, or make it."""
        cells = self._cells(value)
        if not connection.execute(self._update, [cells[place] for place in self._sources]).rowcount:
            connection.execute(self._insert, cells)

    def add(self, connection: sqlite3.Connection, value: V) -> None:
        """Make its row; there is none yet."""
        connection.execute(self._insert, self._cells(value))

    def _cells(self, value: V) -> list[Any]:
        cells = list(msgspec.structs.astuple(value))
        for place, encode in self._encoders:
            if cells[place] is not None:
                cells[place] = encode(cells[place])
        return cells

    def _value(self, row: Sequence[Any]) -> V:
        cells = list(row)
        for place, decode in self._decoders:
            if cells[place] is not None:
                cells[place] = decode(cells[place])
        return self._shape(**dict(zip(self._fields, cells, strict=True)))
