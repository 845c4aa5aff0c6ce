"""The list of differences is what the suite finds, and its page is the list."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.api.differences import DIFFERENCES, DOCUMENT, render

SUITE = "".join(
    path.read_text() for path in sorted(Path(__file__).parent.glob("*.py")) if path.name != "differences.py"
)
GENERAL = {"errors-in-json"}
"""Held against every answer, by the conversation itself."""


def test_the_page_is_the_table() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == render(), "write it anew: python -m tests.api.differences"


@pytest.mark.parametrize("name", [name for name in DIFFERENCES if name not in GENERAL])
def test_every_difference_is_met_by_a_test(name: str) -> None:
    assert f'"{name}"' in SUITE


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_difference_is_one_and_has_a_reason(name: str) -> None:
    one = DIFFERENCES[name]
    assert one.ours != one.original
    assert one.why
    assert one.statuses is None or one.statuses[0] != one.statuses[1]
