"""The table of document states, and every pair that is not in it."""

from __future__ import annotations

from itertools import product

import pytest

from shem.node.payment.lifecycle import FINAL, TABLE, Fact, State, WrongMoment, follow


@pytest.mark.parametrize(("state", "fact"), list(product(State, Fact)))
def test_every_pair(state, fact):
    if (state, fact) in TABLE:
        assert follow(follow(state, fact), fact) is follow(state, fact) or fact in (Fact.REFUSED,)
    else:
        with pytest.raises(WrongMoment):
            follow(state, fact)


def test_final_states_stay():
    for (state, _), after in TABLE.items():
        if state in FINAL:
            assert after is state


def test_accepted_money_cannot_be_taken_back():
    reachable = {State.ACCEPTED}
    while more := {after for (state, _), after in TABLE.items() if state in reachable} - reachable:
        reachable |= more
    assert reachable == {State.ACCEPTED, State.SETTLED}


def test_only_accepted_documents_settle():
    assert {state for (state, fact) in TABLE if fact is Fact.PAID} == {State.ACCEPTED, State.SETTLED}
