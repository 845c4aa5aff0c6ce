"""Frozen values as rows that change in place.

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
Encoder = Callable[[Any], Any]


class Rows(Generic[V]):
    """The rows of one kind of value in one table."""

    def __init__(
        self, table: str, shape: type[V], key: Sequence[str], changing: Collection[str], encoders: Mapping[str, Encoder]
    ) -> None:
        """``encoders`` make a cell of what SQLite does not take as it is; ``None`` is ``null`` whatever they do."""
        fields = shape.__struct_fields__
        places = {name: place for place, name in enumerate(fields)}
        self._encoders = [(places[name], encoder) for name, encoder in encoders.items() if name in places]
        self._sources = [places[name] for name in (*(name for name in fields if name in changing), *key)]
        changes = ", ".join(f"{name} = ?" for name in fields if name in changing)
        where = " and ".join(f"{name} = ?" for name in key)
        marks = ", ".join("?" * len(fields))
        self._update = f"update {table} set {changes} where {where}"  # noqa: S608  our names
        self._insert = f"insert into {table} ({', '.join(fields)}) values ({marks})"  # noqa: S608  our names

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
