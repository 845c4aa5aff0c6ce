"""Agreements between two nodes when things go wrong: absences, lost answers, restarts, time running out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shem.cogs.clock import ManualClock
from shem.errors import Conflict, Gone, NotFound, PeerFailed, Refused
from shem.node.identity.signing import verify
from shem.node.market import documents
from shem.wire.market import AgreementCancelledEvent, AgreementEvent, AgreementTerminatedEvent


def state(node: Any, agreement_id: str) -> str:
    return node.market.agreement(agreement_id).state


async def test_both_keep_all_three_signatures(town: Any) -> None:
    alice, bob = await town.pair()
    agreement_id, _, _ = await town.approved(alice, bob)
    ours, theirs = alice.market.agreement(agreement_id), bob.market.agreement(agreement_id)
    for one in (ours, theirs):
        verify(documents.AGREEMENT, one.document, bytes.fromhex(one.proposed_signature), alice.node_id)
        approval = documents.encode(documents.Approval(agreement_id, bob.node_id, alice.node_id, one.approved_at))
        verify(documents.APPROVAL, approval, bytes.fromhex(one.approved_signature), bob.node_id)
        verify(documents.COMMITMENT, approval, bytes.fromhex(one.committed_signature), alice.node_id)
    assert documents.agreement_id(ours.document) == agreement_id
    assert (ours.approved_at, ours.role, theirs.role) == (theirs.approved_at, "Requestor", "Provider")
    assert alice.changes == [(agreement_id, s) for s in ("Proposal", "Pending", "Approved")]
    assert bob.changes == [(agreement_id, s) for s in ("Pending", "Approved")]


async def test_the_provider_may_refuse(town: Any) -> None:
    alice, bob = await town.pair()
    agreement_id, demand_id, _ = await town.confirmed(alice, bob)
    await bob.api.reject_agreement(agreement_id, {"message": "full", "x": 1})
    with pytest.raises(Gone) as caught:
        await alice.api.wait_agreement(agreement_id)
    assert caught.value.message == "Rejected"
    [event] = await alice.api.agreement_events()
    assert event.reason == {"message": "full", "x": 1}
    for act in (bob.api.approve, bob.api.reject_agreement, bob.api.terminate, alice.api.cancel, alice.api.confirm):
        with pytest.raises(Gone):
            await act(agreement_id)
    assert (await alice.next_proposal(demand_id)).proposal.state == "Initial"


async def test_the_requestor_may_take_it_back(town: Any) -> None:
    alice, bob = await town.pair()
    agreement_id, _, _ = await town.confirmed(alice, bob)
    await alice.api.cancel(agreement_id, {"message": "changed my mind"})
    assert state(alice, agreement_id) == "Cancelled"
    [event] = await bob.api.agreement_events()
    assert isinstance(event, AgreementCancelledEvent)
    assert event.reason == {"message": "changed my mind"}
    with pytest.raises(Gone, match="from Cancelled to Approved"):
        await bob.api.approve(agreement_id)
    with pytest.raises(Gone, match="Cancelled"):
        await alice.api.wait_agreement(agreement_id)


async def test_cancelled_before_anybody_heard_of_it(town: Any) -> None:
    alice, bob = await town.pair()
    demand_id, _, proposal_id = await town.negotiated(alice, bob)
    agreement_id = await alice.api.create_agreement(proposal_id, datetime.now(UTC) + timedelta(hours=1))
    await alice.api.cancel(agreement_id)
    assert (await alice.api.agreement(agreement_id)).state == "Cancelled"
    assert not alice.market.core.store.count_messages()
    assert (await alice.next_proposal(demand_id)).proposal.state == "Initial"


async def test_only_the_right_role(town: Any) -> None:
    alice, bob = await town.pair()
    agreement_id, _, _ = await town.confirmed(alice, bob)
    for act in (bob.api.confirm, bob.api.cancel, bob.api.wait_agreement, alice.api.approve, alice.api.reject_agreement):
        with pytest.raises(Refused) as caught:
            await act(agreement_id)
        assert caught.value.code == "wrong_role"
    assert state(alice, agreement_id) == state(bob, agreement_id) == "Pending"


@pytest.mark.parametrize("side", ["Requestor", "Provider"])
async def test_either_side_ends_it_while_the_other_is_away(town: Any, side: str) -> None:
    alice, bob = await town.pair()
    agreement_id, _, _ = await town.approved(alice, bob)
    ender, other = (alice, bob) if side == "Requestor" else (bob, alice)
    await other.stop()
    await ender.api.terminate(agreement_id, {"message": "enough", "golem.provider.code": "Shutdown"})
    assert state(ender, agreement_id) == "Terminated"
    assert ender.market.core.store.count_messages() == 1

    await ender.stop()  # what was not delivered survives this too
    await ender.start()
    other.bootstraps = [ender.peers.address()]
    await other.start()
    [_, event] = await town.eventually(lambda: both_events(other))
    assert isinstance(event, AgreementTerminatedEvent)
    assert event.terminator == side
    assert event.reason == {"message": "enough", "golem.provider.code": "Shutdown"}
    assert state(other, agreement_id) == "Terminated"
    await town.eventually(lambda: not ender.market.core.store.count_messages())
    assert [e.terminator for e in (await ender.api.agreement_events())[1:]] == [side]


async def both_events(node: Any) -> Any:
    found = await node.api.agreement_events(timeout_s=0)
    return found if len(found) == 2 else None


async def test_both_end_it_at_once(town: Any) -> None:
    alice, bob = await town.pair()
    agreement_id, _, _ = await town.approved(alice, bob)
    town.start(alice.api.terminate(agreement_id, {"message": "a"}))
    town.start(bob.api.terminate(agreement_id, {"message": "b"}))
    await town.eventually(lambda: state(alice, agreement_id) == state(bob, agreement_id) == "Terminated")
    await town.eventually(lambda: not alice.market.core.store.count_messages() + bob.market.core.store.count_messages())
    assert len(await alice.api.agreement_events()) == len(await bob.api.agreement_events()) == 2


async def test_after_an_agreement_the_pair_meets_again(town: Any) -> None:
    alice, bob = await town.pair()
    agreement_id, demand_id, offer_id = await town.approved(alice, bob)
    [event] = await bob.api.collect_offer_events(offer_id, timeout_s=0)
    assert isinstance(event, AgreementEvent)
    assert await alice.api.collect_demand_events(demand_id, timeout_s=0) == []
    for _ in range(2):
        await bob.api.terminate(agreement_id)
        await town.eventually(lambda one=agreement_id: state(alice, one) == "Terminated")
        proposal_id = await town.negotiate(alice, bob, demand_id, offer_id)
        agreement_id = await alice.api.create_agreement(proposal_id, datetime.now(UTC) + timedelta(hours=1))
        await alice.api.confirm(agreement_id)
        await bob.api.approve(agreement_id)
        await bob.api.collect_offer_events(offer_id, timeout_s=0)


async def test_the_fresh_meeting_survives_a_restart(town: Any) -> None:
    alice, bob = await town.pair()
    agreement_id, demand_id, offer_id = await town.approved(alice, bob)
    await alice.stop()
    await alice.start()
    await town.eventually(lambda: alice.knows(offer_id))
    assert await alice.api.collect_demand_events(demand_id, timeout_s=0.05) == []  # they are in an agreement
    await alice.api.terminate(agreement_id)
    await alice.stop()
    await alice.start()
    assert (await alice.next_proposal(demand_id)).proposal.state == "Initial"


async def test_a_provider_that_is_away_at_confirm(town: Any) -> None:
    alice, bob = await town.pair()
    _, _, proposal_id = await town.negotiated(alice, bob)
    agreement_id = await alice.api.create_agreement(proposal_id, datetime.now(UTC) + timedelta(hours=1))
    await bob.stop()
    with pytest.raises(PeerFailed):
        await alice.api.confirm(agreement_id)
    [event] = await alice.api.agreement_events()
    assert isinstance(event, AgreementCancelledEvent)
    with pytest.raises(Gone, match="Cancelled"):
        await alice.api.wait_agreement(agreement_id)


async def test_an_answer_to_confirm_that_is_lost(town: Any) -> None:
    """Alice gave up, Bob has it: he must not be left with it."""
    alice, bob = await town.pair()
    _, _, proposal_id = await town.negotiated(alice, bob)
    agreement_id = await alice.api.create_agreement(proposal_id, datetime.now(UTC) + timedelta(hours=1))
    alice.lossy.lose["market.propose"] = 1
    with pytest.raises(PeerFailed):
        await alice.api.confirm(agreement_id)
    await town.eventually(lambda: state(bob, agreement_id) == "Cancelled")
    with pytest.raises(Gone):
        await bob.api.approve(agreement_id)


async def test_an_answer_to_the_approval_that_is_lost(town: Any) -> None:
    alice, bob = await town.pair()
    agreement_id, _, _ = await town.confirmed(alice, bob)
    bob.lossy.lose["market.approve"] = 2
    await bob.api.approve(agreement_id)
    assert bob.lossy.calls.count("market.approve") == 3
    assert state(alice, agreement_id) == state(bob, agreement_id) == "Approved"
    assert len(await alice.api.agreement_events()) == 1
    assert bob.market.agreement(agreement_id).committed_signature


async def test_the_end_overtakes_the_answer_to_the_approval(town: Any) -> None:
    """Alice approved and at once terminated, and Bob heard of the second first."""
    alice, bob = await town.pair()
    agreement_id, _, _ = await town.confirmed(alice, bob)
    bob.lossy.lose["market.approve"] = 1
    with pytest.raises(TimeoutError):
        await bob.api.approve(agreement_id, timeout_s=0)
    await town.eventually(lambda: state(alice, agreement_id) == "Approved")
    await alice.api.terminate(agreement_id)
    await town.eventually(lambda: state(bob, agreement_id) == "Terminated")
    await town.eventually(lambda: not bob.market.core.store.count_messages())
    assert [state for _, state in bob.changes] == ["Pending", "Approved", "Terminated"]
    assert bob.market.agreement(agreement_id).approved_at == alice.market.agreement(agreement_id).approved_at
    assert bob.market.agreement(agreement_id).committed_signature


async def test_approval_finds_it_cancelled(town: Any) -> None:
    alice, bob = await town.pair()
    agreement_id, _, _ = await town.confirmed(alice, bob)
    alice.lossy.lose["market.end"] = 0
    await bob.stop()
    await alice.api.cancel(agreement_id)
    # Bob comes back, and approves before Alice's message reaches him: she does not know where he is yet
    bob.online = False
    await bob.start()
    with pytest.raises(TimeoutError):
        await bob.api.approve(agreement_id, timeout_s=0)
    await bob.stop()
    bob.online = True
    bob.bootstraps = [alice.peers.address()]
    await bob.start()
    await town.eventually(lambda: state(bob, agreement_id) == "Cancelled")
    await town.eventually(lambda: not bob.market.core.store.count_messages() + alice.market.core.store.count_messages())


async def test_an_approval_on_its_way_survives_a_restart(town: Any) -> None:
    alice, bob = await town.pair()
    agreement_id, _, _ = await town.confirmed(alice, bob)
    await alice.stop()
    with pytest.raises(TimeoutError):
        await bob.api.approve(agreement_id, timeout_s=0.05)
    assert state(bob, agreement_id) == "Pending"
    assert bob.market.agreement(agreement_id).approved_at is None
    with pytest.raises(Gone, match="from Approving"):
        await bob.api.reject_agreement(agreement_id)
    await bob.stop()
    await bob.start()
    alice.bootstraps = [bob.peers.address()]
    await alice.start()
    await alice.api.wait_agreement(agreement_id, timeout_s=5)
    await bob.api.agreement_events(timeout_s=5)
    assert state(bob, agreement_id) == "Approved"


async def timed_pair(town: Any) -> tuple[Any, Any, ManualClock]:
    clock = ManualClock(datetime.now(UTC))

    def prepare(node: Any) -> None:
        node.clock = clock

    bob = await town.node("bob", prepare=prepare)
    alice = await town.node("alice", knows=bob, prepare=prepare)
    await town.eventually(lambda: bob.peers.connected() and alice.peers.connected())
    return alice, bob, clock


async def test_what_is_not_approved_in_time_expires(town: Any) -> None:
    alice, bob, clock = await timed_pair(town)
    agreement_id, demand_id, _ = await town.confirmed(alice, bob, valid_s=60)
    waiting = town.start(alice.api.wait_agreement(agreement_id, timeout_s=30))
    key = ("agreement", alice.node_id, agreement_id)
    await town.eventually(lambda: key in alice.market.core.pulses._waiting)
    await clock.advance(59)
    assert state(alice, agreement_id) == "Pending"
    await clock.advance(2)
    with pytest.raises(Gone, match="Expired"):
        await waiting
    assert (alice.changes[-1][1], bob.changes[-1][1]) == ("Expired", "Expired")
    with pytest.raises(Gone):
        await bob.api.approve(agreement_id)
    assert (await alice.next_proposal(demand_id)).proposal.state == "Initial"


async def test_an_unsent_agreement_expires_too_and_over_a_restart(town: Any) -> None:
    alice, bob, clock = await timed_pair(town)
    _, _, proposal_id = await town.negotiated(alice, bob)
    agreement_id = await alice.api.create_agreement(proposal_id, clock.now() + timedelta(seconds=60))
    await alice.stop()
    await clock.advance(61)
    await alice.start()
    await town.eventually(lambda: (agreement_id, "Expired") in alice.changes)
    with pytest.raises(Gone):
        await alice.api.confirm(agreement_id)


async def test_bad_times(town: Any) -> None:
    alice, bob = await town.pair()
    _, _, proposal_id = await town.negotiated(alice, bob)
    with pytest.raises(Refused) as caught:
        await alice.api.create_agreement(proposal_id, datetime.now(UTC) - timedelta(seconds=1))
    assert caught.value.code == "bad_valid_to"
    agreement_id = await alice.api.create_agreement(proposal_id, datetime(9999, 1, 1, tzinfo=UTC))
    assert (await alice.api.agreement(agreement_id)).valid_to < datetime.now(UTC) + timedelta(days=31)


async def test_the_offer_went_away_before_confirm(town: Any) -> None:
    alice, bob = await town.pair()
    _, offer_id, proposal_id = await town.negotiated(alice, bob)
    agreement_id = await alice.api.create_agreement(proposal_id, datetime.now(UTC) + timedelta(hours=1))
    await bob.api.unsubscribe_offer(offer_id)
    with pytest.raises(Gone) as caught:
        await alice.api.confirm(agreement_id)
    assert caught.value.code == "subscription_gone"
    assert state(alice, agreement_id) == "Cancelled"


async def test_a_hook_that_fails_undoes_the_change(town: Any) -> None:
    alice, bob = await town.pair()
    agreement_id, _, _ = await town.approved(alice, bob)

    def refuse(agreement: Any, new: str) -> None:
        raise Conflict("not now")

    bob.market.on_agreement(refuse)
    with pytest.raises(Conflict):
        await bob.api.terminate(agreement_id)
    assert state(bob, agreement_id) == "Approved"
    assert len(await bob.api.agreement_events()) == 1
    assert not bob.market.core.store.count_messages()


async def test_agreements_of_others_are_not_shown(town: Any) -> None:
    alice, bob = await town.pair()
    agreement_id, _, _ = await town.approved(alice, bob)
    carol = await town.node("carol", knows=bob)
    with pytest.raises(NotFound):
        await carol.api.agreement(agreement_id)
    with pytest.raises(NotFound):
        carol.market.agreement(agreement_id)
    with pytest.raises(NotFound):
        alice.market.agreement(agreement_id, owner=bob.node_id)


async def test_events_are_in_strict_order_of_time(town: Any) -> None:
    alice, bob = await town.pair()
    agreement_id, demand_id, offer_id = await town.approved(alice, bob)
    await alice.api.terminate(agreement_id)
    await bob.api.collect_offer_events(offer_id, timeout_s=0)
    for _ in range(3):
        proposal_id = await town.negotiate(alice, bob, demand_id, offer_id)
        agreement_id = await alice.api.create_agreement(proposal_id, datetime.now(UTC) + timedelta(hours=1))
        await alice.api.confirm(agreement_id)
        await alice.api.cancel(agreement_id)
        await bob.api.collect_offer_events(offer_id, timeout_s=0)
    seen, after = [], None
    while events := await alice.api.agreement_events(after=after, timeout_s=0, max_events=1):
        seen.append(events[0])
        after = events[0].event_date
    assert len(seen) == 5
    assert len({event.event_date for event in seen}) == 5
