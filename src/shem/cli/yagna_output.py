"""How ``yagna`` speaks: tables and YAML for people, JSON for tools, in the shapes that Golem's tools parse.

With ``--json`` a table is a list of objects, one for each row, keyed by column; nothing is ``null``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from shem.cli.owner import Place

Row = Mapping[str, Any]

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9 _./:@+-]*|0x[0-9a-f]{40}")
"""Texts that no reader of YAML takes for something else; an address by convention."""
_RESERVED = {"true", "false", "null", "yes", "no", "on", "off"}
WIDE = 1000
"""Columns of the table's canvas: a table is never wider than what is in it, and nothing in it is cut."""


class Speech:
    """Of one command: whether for tools, and about which node."""

    def __init__(self, *, as_json: bool, place: Place) -> None:
        self.as_json = as_json
        self.place = place

    def value(self, value: Any) -> None:
        """An object."""
        print(to_json(value) if self.as_json else to_yaml(value))

    def text(self, text: str) -> None:
        """One word or sentence; a JSON string for tools."""
        print(json.dumps(text) if self.as_json else text)

    def either(self, value: Any, text: str) -> None:
        """Other things for tools than for people."""
        print(to_json(value) if self.as_json else text)

    def nothing(self) -> None:
        """It is done, and there is nothing to tell."""
        if self.as_json:
            print("null")

    def table(self, columns: Sequence[str], rows: Sequence[Row], *, title: str = "", value: Any = ...) -> None:
        """``value``: for tools, where it is not the rows."""
        if self.as_json:
            print(to_json(list(rows) if value is ... else value))
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        if title:
            print(title)
        table = Table(box=box.SQUARE, padding=(0, 2, 0, 1))
        for column in columns:
            table.add_column(column)
        for row in rows:
            table.add_row(*(Text(_cell(row.get(column))) for column in columns))
        Console(width=WIDE, no_color=True, highlight=False).print(table)


def speech(ctx: typer.Context) -> Speech:
    """Of the command that runs."""
    found = ctx.find_object(Speech)
    assert found is not None
    return found


def to_json(value: Any) -> str:
    """As the original prints it."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)


def to_yaml(value: Any) -> str:
    """Of what JSON can say. Keys in order, strings quoted where they could be taken for something else."""
    return "\n".join(_yaml(value))


def _yaml(value: Any) -> list[str]:
    if isinstance(value, Mapping) and value:
        lines = []
        for key in sorted(value):
            lines += _under(f"{_scalar(str(key))}:", value[key])
        return lines
    if isinstance(value, list) and value:
        return [line for item in value for line in _item(item)]
    return [_scalar(value)]


def _under(head: str, value: Any) -> list[str]:
    nested = _yaml(value)
    if isinstance(value, Mapping) and value:
        return [head, *(f"  {line}" for line in nested)]
    if isinstance(value, list) and value:
        return [head, *nested]
    return [f"{head} {nested[0]}"]


def _item(item: Any) -> list[str]:
    first, *rest = _yaml(item)
    return [f"- {first}", *(f"  {line}" for line in rest)]


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _RESERVED and value == value.strip()
        quoted = not plain or ": " in value or value.endswith(":")
        return json.dumps(value, ensure_ascii=False) if quoted else value
    return json.dumps(value) if value not in ({}, []) else "{}" if value == {} else "[]"


def _cell(value: Any) -> str:
    from shem.sdk.plain import plain

    if value is None or value is False:
        return ""
    return "X" if value is True else "\n".join(plain(line, WIDE) for line in str(value).splitlines())
