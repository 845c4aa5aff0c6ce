from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any, get_args

import msgspec
import pytest

from shem.errors import Conflict, Gone, NotFound, Refused
from shem.node.market import documents, lifecycle
from shem.node.market.lifecycle import (
    AGREEMENT_MOVES,
    ENDED,
    OPEN,
    PROPOSAL_MOVES,
    Agreement,
    AgreementState,
    BadId,
    Proposal,
    ProposalState,
    agreement_from,
    agreement_of,
    check_agreement,
    check_reaction,
    check_same_terms,
    clean_reason,
    move,
    move_proposal,
    parse_agreement_id,
    parse_proposal_id,
    reason_of,
)

NOW = datetime(2026, 11, 23, 18, 54, 21, 787460, tzinfo=UTC)
ALICE, BOB = "0x" + "a" * 40, "0x" + "b" * 40
OFFER, DEMAND = f"{'0' * 32}-{'0' * 64}", f"{'1' * 32}-{'1' * 64}"

AGREEMENT_STATES = get_args(AgreementState)
LEGAL = {
    ("Proposal", "Pending"),
    ("Proposal", "Cancelled"),
    ("Proposal", "Expired"),
    ("Pending", "Approved"),
    ("Pending", "Cancelled"),
    ("Pending", "Rejected"),
    ("Pending", "Expired"),
    ("Approved", "Terminated"),
}


def proposal(**more: Any) -> Proposal:
    """Bob's counter, as Alice keeps it."""
    values: dict[str, Any] = {
        "proposal_id": "c" * 64,
        "owner": ALICE,
        "role": "Requestor",
        "offer_id": OFFER,
        "demand_id": DEMAND,
        "requestor_id": ALICE,
        "provider_id": BOB,
        "issuer_id": BOB,
        "prev_id": "d" * 64,
        "initial_at": NOW,
        "properties": {"o": 1},
        "constraints": "()",
        "created_at": NOW,
        "state": "Draft",
    }
    return Proposal(**values | more)


def agreement(state: AgreementState = "Proposal") -> Agreement:
    made = agreement_from(proposal(), proposal(issuer_id=ALICE, properties={"d": 1}), NOW + timedelta(hours=1), NOW)
    return msgspec.structs.replace(made, state=state)


@pytest.mark.parametrize(("before", "after"), list(product(AGREEMENT_STATES, AGREEMENT_STATES)))
def test_every_move_of_an_agreement(before: AgreementState, after: AgreementState) -> None:
    if (before, after) in LEGAL:
        assert move(agreement(before), after).state == after
        return
    family = Conflict if (before, after) == ("Proposal", "Terminated") else Gone
    with pytest.raises(family) as caught:
        move(agreement(before), after)
    assert caught.value.message == f"Can't update Agreement state from {before} to {after}."
    assert caught.value.code == "illegal_agreement_state"


def test_the_tables_are_whole() -> None:
    assert set(AGREEMENT_MOVES) == set(AGREEMENT_STATES)
    assert set(PROPOSAL_MOVES) == set(get_args(ProposalState))
    assert {s for s, next_states in AGREEMENT_MOVES.items() if not next_states} == ENDED
    assert {s for s, next_states in AGREEMENT_MOVES.items() if "Expired" in next_states} == OPEN
    reached = {after for states in AGREEMENT_MOVES.values() for after in states}
    assert reached == set(AGREEMENT_STATES) - {"Proposal"}


@pytest.mark.parametrize(("before", "after"), list(product(get_args(ProposalState), get_args(ProposalState))))
def test_every_move_of_a_proposal(before: ProposalState, after: ProposalState) -> None:
    legal = (before in ("Initial", "Draft") and after in ("Rejected", "Expired")) or (before, after) == (
        "Draft",
        "Accepted",
    )
    if legal:
        assert move_proposal(proposal(state=before), after).state == after
    else:
        with pytest.raises(Gone):
            move_proposal(proposal(state=before), after)


@pytest.mark.parametrize(
    ("changes", "family", "code"),
    [
        ({"issuer_id": ALICE}, Refused, "own_proposal"),
        ({"next_id": "e" * 64}, Gone, "already_countered"),
        ({"state": "Rejected"}, Gone, "proposal_over"),
        ({"state": "Accepted"}, Gone, "proposal_over"),
        ({"state": "Expired"}, Gone, "proposal_over"),
    ],
)
def test_what_cannot_be_answered(changes: Any, family: type[Refused], code: str) -> None:
    with pytest.raises(family) as caught:
        check_reaction(proposal(**changes))
    assert caught.value.code == code
    check_reaction(proposal())
    check_reaction(proposal(state="Initial", prev_id=None))


@pytest.mark.parametrize(
    ("changes", "family", "code"),
    [
        ({"issuer_id": ALICE}, Refused, "own_proposal"),
        ({"state": "Initial"}, Refused, "not_negotiated"),
        ({"state": "Rejected"}, Refused, "not_negotiated"),
        ({"state": "Expired"}, Refused, "not_negotiated"),
        ({"next_id": "e" * 64}, Refused, "not_negotiated"),
        ({"state": "Accepted"}, Conflict, "second_agreement"),
        ({"role": "Provider", "owner": BOB}, Refused, "wrong_role"),
    ],
)
def test_of_what_no_agreement_can_be_made(changes: Any, family: type[Refused], code: str) -> None:
    with pytest.raises(family) as caught:
        check_agreement(proposal(**changes))
    assert caught.value.code == code
    check_agreement(proposal())


def test_both_sides_have_the_same_agreement() -> None:
    ours = agreement()
    document = documents.decode(ours.document, documents.AgreementDocument)
    theirs = agreement_of(document, ours.document, BOB)
    assert (ours.role, theirs.role) == ("Requestor", "Provider")
    assert (ours.peer_id, theirs.peer_id) == (BOB, ALICE)
    assert msgspec.structs.replace(theirs, owner=ALICE, role="Requestor") == ours
    check_same_terms(document, proposal(), proposal(properties={"d": 1}))
    with pytest.raises(Refused):
        check_same_terms(document, proposal(), proposal(properties={"d": 2}))
    with pytest.raises(Refused):
        agreement_from(proposal(), proposal(), NOW, NOW)


def test_ids() -> None:
    assert parse_proposal_id("R-" + "a" * 64, "Requestor") == parse_proposal_id("P-" + "a" * 64, "Provider") == "a" * 64
    for text in ("", "X-" + "a" * 64, "R-" + "A" * 64, "a" * 64, "R-" + "a" * 63, "R-" + "a" * 64 + "\n"):
        with pytest.raises(BadId):
            parse_proposal_id(text, "Requestor")
    with pytest.raises(NotFound):
        parse_proposal_id("P-" + "a" * 64, "Requestor")
    assert parse_agreement_id("a" * 64) == "a" * 64
    for text, match in (("zz", "non hexadecimal"), ("R-" + "a" * 64, "non hexadecimal"), ("abc", "length")):
        with pytest.raises(BadId, match=match):
            parse_agreement_id(text)
    assert lifecycle.shown("a", "Requestor") == "R-a"
    assert (proposal().shown_id, proposal().subscription_id, proposal().peer_id) == ("R-" + "c" * 64, DEMAND, BOB)
    other = proposal(owner=BOB, role="Provider")
    assert (other.shown_id, other.subscription_id, other.peer_id) == ("P-" + "c" * 64, OFFER, ALICE)


def test_reasons() -> None:
    assert clean_reason(None, "why") == {"message": "why"}
    assert clean_reason({"message": None, "x": 1}, "why") == {"message": "why", "x": 1}
    assert clean_reason({"message": "m", "golem.provider.code": "Success"}, "why")["message"] == "m"
    deep: Any = {}
    for _ in range(1000):
        deep = {"a": deep}
    for bad in ("text", ["list"], {"big": "x" * 20_000}, {"nan": float("nan")}, deep):
        with pytest.raises(Refused):
            clean_reason(bad, "why")
    assert reason_of('{"message":"m","a":1}') == {"message": "m", "a": 1}
    assert reason_of('{"a":1}') == {"a": 1, "message": ""}
    assert reason_of("words") == {"message": "words"}
    assert reason_of("[" * 10_000)["message"].startswith("[")
