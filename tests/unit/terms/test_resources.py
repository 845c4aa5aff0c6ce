"""What both sides of a deal take full use to be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shem.terms.resources import MAX_THREADS, REQUIRE, THREADS, busy_threads


@pytest.mark.parametrize(
    ("offered", "required", "busy"),
    [
        (64, 1, 1),
        (64, 2.5, 3),
        (4, 0.25, 1),
        (4, 8, 4),
        (4, None, 4),
        (None, None, 1),
        (None, 8, 1),
        (4, -1, 4),
        (0, 1, 1),
    ],
)
def test_a_demand_that_says_what_it_needs_keeps_no_more_busy(offered: Any, required: Any, busy: int) -> None:
    assert busy_threads({f"{REQUIRE}cpu.threads": required}, {THREADS: offered}) == busy


ANY = (
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=1)
)


@given(ANY, ANY)
def test_whatever_is_said_it_is_a_number_of_threads(offered: Any, required: Any) -> None:
    assert 1 <= busy_threads({f"{REQUIRE}cpu.threads": required}, {THREADS: offered}) <= MAX_THREADS
