"""Which states may follow which."""

from __future__ import annotations

import pytest

from shem.errors import Refused
from shem.node.activity.lifecycle import STATES, IllegalStep, check_step, may_step, parse_state

LEGAL = {
    ("New", "Initialized"),
    ("Initialized", "Deployed"),
    ("Deployed", "Ready"),
    ("Deployed", "Initialized"),
    ("Ready", "Initialized"),
    *((state, "Unresponsive") for state in STATES - {"Terminated"}),
    *((state, "Terminated") for state in STATES - {"Terminated"}),
    *(("Unresponsive", state) for state in STATES - {"Terminated"}),
    *((state, state) for state in STATES - {"Terminated"}),
}


@pytest.mark.parametrize("before", sorted(STATES))
@pytest.mark.parametrize("after", sorted(STATES))
def test_steps(before: str, after: str) -> None:
    legal = (before, after) in LEGAL
    assert may_step(parse_state(before), parse_state(after)) is legal
    if legal or before == after == "Terminated":  # ending twice changes nothing and is no error
        check_step(parse_state(before), parse_state(after))
    else:
        with pytest.raises(IllegalStep):
            check_step(parse_state(before), parse_state(after))


@pytest.mark.parametrize("word", ["", "ready", "Flying", "x" * 1000])
def test_words_that_are_no_state(word: str) -> None:
    with pytest.raises(Refused):
        parse_state(word)
