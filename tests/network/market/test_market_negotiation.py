"""Proposals between two nodes: absences, repetitions, restarts, and what Mallory may not do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shem.cogs.clock import ManualClock
from shem.errors import Conflict, Gone, NotFound, PeerFailed, Refused
from shem.node.market import MarketConfig, documents, protocol
from shem.wire.market import ProposalRejectedEvent

ZEROS = "0" * 64


async def test_many_turns(town: Any) -> None:
    alice, bob = await town.pair()
    offer, demand = await bob.offer(), await alice.demand()
    proposal = (await alice.next_proposal(demand)).proposal
    for turn in range(3):
        asked = town.demand_properties() | {"turn": turn}
        mine = await alice.api.counter_as_requestor(demand, proposal.proposal_id, asked, town.DEMAND_CONSTRAINTS)
        heard = (await bob.next_proposal(offer)).proposal
        assert heard.properties["turn"] == turn
        assert heard.proposal_id[2:] == mine[2:]
        given = town.OFFER | {"turn": turn}
        await bob.api.counter_as_provider(offer, heard.proposal_id, given, town.OFFER_CONSTRAINTS)
        proposal = (await alice.next_proposal(demand)).proposal
        assert (proposal.properties["turn"], proposal.prev_proposal_id, proposal.state) == (turn, mine, "Draft")
    # a countered proposal cannot become an agreement, the last can
    valid_to = datetime.now(UTC) + timedelta(hours=1)
    with pytest.raises(Refused):
        await alice.api.create_agreement(proposal.prev_proposal_id, valid_to)
    await alice.api.create_agreement(proposal.proposal_id, valid_to)


@pytest.mark.parametrize(
    ("properties", "constraints"),
    [
        ({}, "(golem.runtime.name=vm)"),  # the offer's constraint is undefined
        ({"golem.srv.comp.expiration": 1}, "(golem.runtime.name=vm)"),  # … is false
        ({"golem.srv.comp.expiration": 2}, "(golem.runtime.name=wasm)"),
        ({"golem.srv.comp.expiration": 2}, "(!(missing=1))"),
        ({"golem.srv.comp.expiration": 2}, "(&(golem.runtime.name=vm)"),  # does not parse
    ],
)
async def test_a_counter_that_does_not_match(town: Any, properties: Any, constraints: str) -> None:
    alice, bob = await town.pair()
    offer, demand = await bob.offer(), await alice.demand()
    initial = (await alice.next_proposal(demand)).proposal.proposal_id
    with pytest.raises(Refused) as caught:
        await alice.api.counter_as_requestor(demand, initial, properties, constraints)
    assert caught.value.code == "no_match"
    assert "market.counter" not in alice.lossy.calls
    await alice.api.counter_as_requestor(demand, initial, town.demand_properties(), "()")  # nothing is lost
    heard = (await bob.next_proposal(offer)).proposal.proposal_id
    with pytest.raises(Refused):
        await bob.api.counter_as_provider(offer, heard, {}, "(golem.srv.comp.expiration<5)")


async def test_a_peer_that_is_away(town: Any) -> None:
    alice, bob = await town.pair()
    offer, demand = await bob.offer(), await alice.demand()
    initial = (await alice.next_proposal(demand)).proposal.proposal_id
    await bob.stop()
    wanted = town.demand_properties()
    with pytest.raises(PeerFailed):
        await alice.api.counter_as_requestor(demand, initial, wanted, "()")
    bob.bootstraps = [alice.peers.address()]
    await bob.start()
    await town.eventually(lambda: alice.knows(offer))
    # another counter now: the first was never heard
    again = await alice.api.counter_as_requestor(demand, initial, wanted | {"x": 1}, "()")
    heard = (await bob.next_proposal(offer)).proposal
    assert (heard.properties["x"], heard.proposal_id[2:]) == (1, again[2:])
    with pytest.raises(Gone):
        await alice.api.counter_as_requestor(demand, initial, wanted, "()")


async def test_an_answer_that_is_lost(town: Any) -> None:
    alice, bob = await town.pair()
    offer, demand = await bob.offer(), await alice.demand()
    initial = (await alice.next_proposal(demand)).proposal.proposal_id
    wanted = town.demand_properties()
    alice.lossy.lose["market.counter"] = 1
    with pytest.raises(PeerFailed):
        await alice.api.counter_as_requestor(demand, initial, wanted, "()")
    first = await alice.api.counter_as_requestor(demand, initial, wanted, "()")  # repeated, it is the same
    heard = await bob.api.collect_offer_events(offer)
    assert [e.proposal.proposal_id[2:] for e in heard] == [first[2:]]
    with pytest.raises(Gone):
        await alice.api.counter_as_requestor(demand, initial, wanted, "()")


async def test_an_answer_that_is_lost_and_a_change_of_mind(town: Any) -> None:
    alice, bob = await town.pair()
    await bob.offer()
    demand = await alice.demand()
    initial = (await alice.next_proposal(demand)).proposal.proposal_id
    alice.lossy.lose["market.counter"] = 1
    with pytest.raises(PeerFailed):
        await alice.api.counter_as_requestor(demand, initial, town.demand_properties(), "()")
    with pytest.raises(Gone) as caught:
        await alice.api.counter_as_requestor(demand, initial, town.demand_properties() | {"x": 1}, "()")
    assert caught.value.code == "already_countered"


async def test_negotiations_survive_a_restart_of_both(town: Any) -> None:
    alice, bob = await town.pair()
    offer, demand = await bob.offer(), await alice.demand()
    initial = (await alice.next_proposal(demand)).proposal.proposal_id
    mine = await alice.api.counter_as_requestor(demand, initial, town.demand_properties(), "()")
    for node in (alice, bob):
        await node.stop()
    await bob.start()
    alice.bootstraps = [bob.peers.address()]
    await alice.start()
    heard = (await bob.next_proposal(offer)).proposal  # the event was not read before
    await bob.api.counter_as_provider(offer, heard.proposal_id, town.OFFER, town.OFFER_CONSTRAINTS)
    assert (await alice.next_proposal(demand)).proposal.prev_proposal_id == mine
    assert [d.demand_id for d in await alice.api.demands()] == [demand]


async def test_events_nobody_read_are_bounded(town: Any) -> None:
    bob = await town.node("bob", prepare=lambda node: setattr(node, "config", MarketConfig(max_events=2)))
    alice = await town.node("alice", knows=bob)
    await bob.offer()
    demands = [await alice.demand() for _ in range(3)]
    initials = [(await alice.next_proposal(demand)).proposal.proposal_id for demand in demands]
    for demand, initial in list(zip(demands, initials, strict=True))[:2]:
        await alice.api.counter_as_requestor(demand, initial, town.demand_properties(), "()")
    with pytest.raises(Refused) as caught:
        await alice.api.counter_as_requestor(demands[2], initials[2], town.demand_properties(), "()")
    assert caught.value.code == "queue_full"


async def test_old_proposals_cannot_be_answered_and_are_swept(town: Any) -> None:
    clock = ManualClock(datetime.now(UTC))

    def prepare(node: Any) -> None:
        node.clock = clock
        node.config = MarketConfig(proposal_ttl_s=7200, subscription_ttl_s=20_000)

    bob = await town.node("bob", prepare=prepare)
    alice = await town.node("alice", knows=bob, prepare=prepare)
    await bob.offer()
    demand = await alice.api.subscribe_demand({"golem.srv.comp.expiration": 1 << 42}, "()")
    initial = (await alice.next_proposal(demand)).proposal.proposal_id
    await clock.advance(7201)
    await clock.advance(3600)  # swept within the hour
    with pytest.raises(NotFound):
        await alice.api.demand_proposal(demand, initial)


async def test_an_expired_proposal(town: Any) -> None:
    clock = ManualClock(datetime.now(UTC))

    def prepare(node: Any) -> None:
        node.clock = clock
        node.config = MarketConfig(proposal_ttl_s=100)

    bob = await town.node("bob", prepare=prepare)
    alice = await town.node("alice", knows=bob, prepare=prepare)
    await bob.offer()
    demand = await alice.demand()
    initial = (await alice.next_proposal(demand)).proposal.proposal_id
    await clock.advance(101)
    assert (await alice.api.demand_proposal(demand, initial)).state == "Expired"
    with pytest.raises(Gone) as caught:
        await alice.api.counter_as_requestor(demand, initial, town.demand_properties(), "()")
    assert caught.value.code == "proposal_over"


async def test_the_offer_is_withdrawn_between(town: Any) -> None:
    alice, bob = await town.pair()
    offer, demand = await bob.offer(), await alice.demand()
    initial = (await alice.next_proposal(demand)).proposal.proposal_id
    await bob.api.unsubscribe_offer(offer)
    with pytest.raises(Gone) as caught:
        await alice.api.counter_as_requestor(demand, initial, town.demand_properties(), "()")
    assert caught.value.code == "subscription_gone"
    await alice.api.unsubscribe_demand(demand)
    with pytest.raises(Gone):
        await alice.api.counter_as_requestor(demand, initial, town.demand_properties(), "()")


async def test_the_requestor_rejects_a_counter(town: Any) -> None:
    alice, bob = await town.pair()
    _, offer, proposal = await town.negotiated(alice, bob)
    demand = (await alice.api.demands())[0].demand_id
    await alice.api.reject_demand_proposal(demand, proposal, {"message": "too dear"})
    [event] = await bob.api.collect_offer_events(offer)
    assert isinstance(event, ProposalRejectedEvent)
    assert event.proposal_id == "P-" + proposal[2:]
    assert event.reason == {"message": "too dear"}


# --- Mallory ----------------------------------------------------------------------------------------------------------


def counter(mallory: Any, bob: Any, offer: str, **more: Any) -> documents.Counter:
    """A first counter to Bob's offer that is right in everything that is not given."""
    demand = f"{'1' * 32}-{ZEROS}"
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "prev": documents.initial_id(offer, demand, now),
        "initial_at": now,
        "offer_id": offer,
        "demand_id": demand,
        "issuer": mallory.node_id,
        "receiver": bob.node_id,
        "created_at": now,
        "properties": {"golem.srv.comp.expiration": 2},
        "constraints": "()",
    }
    return documents.Counter(**values | more)


async def send(mallory: Any, node: Any, document: documents.Counter, **more: Any) -> None:
    await mallory.send(node, protocol.COUNTER, documents.COUNTER, document, **more)


@pytest.fixture
async def market(town: Any) -> tuple[Any, Any, Any, str]:
    alice, bob = await town.pair()
    return alice, bob, await town.mallory(alice, bob), await bob.offer()


async def test_a_requestor_of_her_own_make_is_welcome_and_repeats_are_harmless(market: Any) -> None:
    _, bob, mallory, offer = market
    document = counter(mallory, bob, offer)
    await send(mallory, bob, document)
    await send(mallory, bob, document)
    assert len(await bob.api.collect_offer_events(offer)) == 1
    with pytest.raises(Gone):
        await send(
            mallory,
            bob,
            counter(
                mallory,
                bob,
                offer,
                prev=document.prev,
                initial_at=document.initial_at,
                properties={"golem.srv.comp.expiration": 3},
            ),
        )


async def test_counters_that_are_not_what_they_should_be(market: Any) -> None:
    alice, bob, mallory, offer = market
    cases: list[tuple[documents.Counter, type[Exception], str]] = [
        (counter(mallory, bob, offer, prev=ZEROS), NotFound, "proposal_not_found"),
        (counter(mallory, bob, offer, issuer=alice.node_id), Refused, "not_the_sender"),
        (counter(mallory, bob, offer, receiver=alice.node_id), Refused, "not_the_sender"),
        (counter(mallory, bob, f"{'2' * 32}-{ZEROS}"), Gone, "subscription_gone"),
        (counter(mallory, bob, offer, properties={}), Refused, "no_match"),
        (counter(mallory, bob, offer, properties={"a": {"b": 1}}), Refused, "bad_properties"),
        (counter(mallory, bob, offer, constraints="(" * 10), Refused, "no_match"),
        (counter(mallory, bob, offer, constraints="(" * 100_000), Refused, "bad_document"),
        (counter(mallory, bob, offer, demand_id="x"), Refused, "bad_document"),
    ]
    for document, family, code in cases:
        with pytest.raises(family) as caught:
            await send(mallory, bob, document)
        assert caught.value.code == code  # type: ignore[attr-defined]
    with pytest.raises(Refused) as caught:
        await send(mallory, bob, counter(mallory, bob, offer), signer=alice.identity)
    assert caught.value.code == "bad_signature"
    wrong_purpose = mallory.send(bob, protocol.COUNTER, documents.AGREEMENT, counter(mallory, bob, offer))
    with pytest.raises(Refused) as caught:
        await wrong_purpose
    assert caught.value.code == "bad_signature"
    for garbage in (b"", b"\xc1" * 10, b"\x92\xc4\x00\xc4\x00", b"\x91" * 3000):
        with pytest.raises(Refused):
            await mallory.call(bob, protocol.COUNTER, garbage)
    with pytest.raises(Refused):
        await mallory.call(bob, protocol.COUNTER, b"x" * (1 << 20) + b"y")
    assert await bob.api.collect_offer_events(offer, timeout_s=0) == []


async def test_she_cannot_speak_in_the_negotiation_of_others(town: Any, market: Any) -> None:
    alice, _, mallory, offer = market
    demand = await alice.demand()
    initial = (await alice.next_proposal(demand)).proposal
    mine = await alice.api.counter_as_requestor(demand, initial.proposal_id, town.demand_properties(), "()")
    stored = alice.market.negotiation.find(alice.node_id, mine[2:])
    to_alice = {
        "prev": mine[2:],
        "initial_at": stored.initial_at,
        "demand_id": demand,
        "receiver": alice.node_id,
        "properties": {"golem.runtime.name": "vm"},
    }
    with pytest.raises(NotFound):
        await send(mallory, alice, counter(mallory, alice, offer, **to_alice))
    rejection = documents.Rejection(mine[2:], mallory.node_id, alice.node_id, "{}")
    with pytest.raises(NotFound):
        await mallory.send(alice, protocol.REJECT, documents.REJECTION, rejection)
    assert await alice.api.collect_demand_events(demand, timeout_s=0) == []


async def test_she_cannot_touch_an_agreement_of_others(town: Any, market: Any) -> None:
    alice, bob, mallory, _ = market
    await bob.api.unsubscribe_offer(market[3])
    agreement_id, _, _ = await town.confirmed(alice, bob)
    approval = documents.Approval(agreement_id, mallory.node_id, alice.node_id, datetime.now(UTC))
    with pytest.raises(NotFound):
        await mallory.send(alice, protocol.APPROVE, documents.APPROVAL, approval)
    for kind in ("cancel", "reject", "terminate"):
        ending = documents.Ending(agreement_id, mallory.node_id, bob.node_id, kind, datetime.now(UTC), "{}")
        with pytest.raises(NotFound):
            await mallory.send(bob, protocol.END, documents.ENDING, ending)
    assert bob.market.agreement(agreement_id).state == "Pending"


async def test_each_side_may_end_an_agreement_only_in_its_own_way(town: Any, market: Any) -> None:
    _, bob, mallory, offer = market
    agreement_id = await agreed(town, mallory, bob, offer)
    reject = documents.Ending(agreement_id, mallory.node_id, bob.node_id, "reject", datetime.now(UTC), "{}")
    with pytest.raises(NotFound):
        await mallory.send(bob, protocol.END, documents.ENDING, reject)
    terminate = documents.Ending(agreement_id, mallory.node_id, bob.node_id, "terminate", datetime.now(UTC), "{}")
    with pytest.raises(Gone):
        await mallory.send(bob, protocol.END, documents.ENDING, terminate)
    cancel = documents.Ending(agreement_id, mallory.node_id, bob.node_id, "cancel", datetime.now(UTC), "not JSON")
    await mallory.send(bob, protocol.END, documents.ENDING, cancel)
    await mallory.send(bob, protocol.END, documents.ENDING, cancel)
    [event] = await bob.api.agreement_events()
    assert event.reason == {"message": "not JSON"}


async def agreed(town: Any, mallory: Any, bob: Any, offer: str, **changes: Any) -> str:
    """Mallory negotiates by hand and proposes an agreement, with ``changes`` to what was negotiated."""
    first = counter(mallory, bob, offer)
    demand_properties = first.properties
    answers: list[documents.Counter] = []

    async def answer(caller: Any, payload: bytes) -> bytes:
        answers.append(documents.decode(protocol._signed.decode(payload).document, documents.Counter))
        return b""

    mallory.peers.serve(protocol.COUNTER, answer)
    await send(mallory, bob, first)
    heard = (await bob.next_proposal(offer)).proposal
    await bob.api.counter_as_provider(offer, heard.proposal_id, town.OFFER, town.OFFER_CONSTRAINTS)
    [last] = answers
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "proposal": documents.counter_id(last),
        "demand_id": first.demand_id,
        "offer_id": offer,
        "issuer": mallory.node_id,
        "receiver": bob.node_id,
        "created_at": now,
        "valid_to": now + timedelta(hours=1),
        "demand_properties": demand_properties,
        "demand_constraints": first.constraints,
        "offer_properties": last.properties,
        "offer_constraints": last.constraints,
    }
    document = documents.AgreementDocument(**values | changes)
    await mallory.send(bob, protocol.PROPOSE, documents.AGREEMENT, document)
    return documents.agreement_id(documents.encode(document))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"offer_properties": {"price": 0}}, "terms_changed"),
        ({"offer_constraints": "()"}, "terms_changed"),
        ({"demand_properties": {"golem.srv.comp.expiration": 3}}, "terms_changed"),
        ({"demand_constraints": "(a=1)"}, "terms_changed"),
        ({"demand_id": f"{'3' * 32}-{ZEROS}"}, "terms_changed"),
        ({"valid_to": datetime(2020, 1, 1, tzinfo=UTC)}, "agreement_over"),
        ({"proposal": ZEROS}, "proposal_not_found"),
    ],
)
async def test_an_agreement_about_something_else(town: Any, market: Any, changes: Any, code: str) -> None:
    _, bob, mallory, offer = market
    with pytest.raises(Refused) as caught:
        await agreed(town, mallory, bob, offer, **changes)
    assert caught.value.code == code
    assert await bob.api.list_agreements() == []


async def test_one_agreement_for_one_proposal(town: Any, market: Any) -> None:
    _, bob, mallory, offer = market
    agreement_id = await agreed(town, mallory, bob, offer)
    document = documents.decode(bob.market.agreement(agreement_id).document, documents.AgreementDocument)
    await mallory.send(bob, protocol.PROPOSE, documents.AGREEMENT, document)  # again is harmless
    other = documents.AgreementDocument(
        **{name: getattr(document, name) for name in document.__struct_fields__}
        | {"created_at": document.created_at + timedelta(seconds=1)}
    )
    with pytest.raises(Gone):
        await mallory.send(bob, protocol.PROPOSE, documents.AGREEMENT, other)
    assert len(await bob.api.list_agreements()) == 1


async def test_negotiations_per_requestor_are_bounded(town: Any) -> None:
    bob = await town.node("bob", prepare=lambda node: setattr(node, "config", MarketConfig(max_negotiations=3)))
    mallory = await town.mallory(bob)
    offer = await bob.offer()
    for number in range(3):
        await send(
            mallory, bob, counter(mallory, bob, offer, demand_id=f"{number:032x}-{ZEROS}", **again(offer, number))
        )
    with pytest.raises(Refused) as caught:
        await send(mallory, bob, counter(mallory, bob, offer, demand_id=f"{9:032x}-{ZEROS}", **again(offer, 9)))
    assert caught.value.code == "too_many_negotiations"


def again(offer: str, number: int) -> dict[str, Any]:
    now = datetime.now(UTC)
    return {"prev": documents.initial_id(offer, f"{number:032x}-{ZEROS}", now), "initial_at": now}


async def test_commitments_must_be_signed_too(town: Any, market: Any) -> None:
    """A requestor that answers an approval with nonsense has not approved."""
    _, bob, mallory, offer = market
    agreement_id = await agreed(town, mallory, bob, offer)

    async def nonsense(caller: Any, payload: bytes) -> bytes:
        return b"yes"

    mallory.peers.serve(protocol.APPROVE, nonsense)
    with pytest.raises(Gone):
        await bob.api.approve(agreement_id)
    assert bob.market.agreement(agreement_id).state == "Cancelled"
    assert isinstance((await bob.api.agreement_events())[0].reason["message"], str)


async def test_conflicting_counters_at_the_same_time(town: Any, market: Any) -> None:
    alice, bob, _, offer = market
    demand = await alice.demand()
    initial = (await alice.next_proposal(demand)).proposal.proposal_id
    calls = [
        town.start(alice.api.counter_as_requestor(demand, initial, town.demand_properties() | {"n": n}, "()"))
        for n in range(5)
    ]
    done = []
    for call in calls:
        try:
            done.append(await call)
        except (Gone, Conflict):
            continue
    assert len(done) == 1
    heard = await bob.api.collect_offer_events(offer)
    assert [e.proposal.proposal_id[2:] for e in heard] == [done[0][2:]]


async def test_rejections_wait_for_a_peer_that_is_away_but_not_too_many(town: Any) -> None:
    bob = await town.node("bob", prepare=lambda node: setattr(node, "config", MarketConfig(max_outbox=1)))
    alice = await town.node("alice", knows=bob)
    offer = await bob.offer()
    demands = [await alice.demand() for _ in range(2)]
    for demand in demands:
        initial = (await alice.next_proposal(demand)).proposal.proposal_id
        await alice.api.counter_as_requestor(demand, initial, town.demand_properties(), "()")
    heard = [(await bob.next_proposal(offer)).proposal.proposal_id for _ in demands]
    await alice.stop()
    for proposal in heard:
        await bob.api.reject_offer_proposal(offer, proposal)
        assert (await bob.api.offer_proposal(offer, proposal)).state == "Rejected"
    assert bob.market.core.store.count_messages() == 1
    await alice.start()
    await town.eventually(lambda: not bob.market.core.store.count_messages())
    [event] = await alice.api.collect_demand_events(demands[0])
    assert isinstance(event, ProposalRejectedEvent)
