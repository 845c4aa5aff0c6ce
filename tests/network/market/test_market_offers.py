"""How offers spread, and what does not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from shem.cogs.clock import ManualClock
from shem.errors import Conflict, NotFound, Refused
from shem.node.identity.keys import Identity
from shem.node.market import MarketConfig, documents, protocol
from shem.node.market.offers import SignedOffer


async def test_offers_reach_whoever_comes_later(town: Any) -> None:
    bob = await town.node("bob")
    offers = {await bob.offer(number=number) for number in range(5)}
    alice = await town.node("alice", knows=bob)
    await town.eventually(lambda: all(map(alice.knows, offers)))
    demand = await alice.demand()
    found = await alice.api.collect_demand_events(demand)
    assert {e.proposal.properties["number"] for e in found} == set(range(5))
    assert {e.proposal.issuer_id for e in found} == {bob.node_id}


async def test_nodes_with_a_common_acquaintance_hear_of_each_other(town: Any) -> None:
    middle = await town.node("middle")
    bob = await town.node("bob", knows=middle)
    alice = await town.node("alice", knows=middle)
    early = await bob.offer()
    demand = await alice.demand()
    first = await alice.next_proposal(demand)
    assert first.proposal.issuer_id == bob.node_id
    assert alice.knows(early)
    # and they can do business: Alice finds Bob by his node id
    await alice.api.counter_as_requestor(demand, first.proposal.proposal_id, town.demand_properties(), "()")
    assert (await bob.next_proposal(early)).proposal.issuer_id == alice.node_id
    await bob.api.unsubscribe_offer(early)
    await town.eventually(lambda: not alice.knows(early) and not middle.knows(early))


async def test_a_new_offer_wakes_a_waiting_demand(town: Any) -> None:
    alice, bob = await town.pair()
    demand = await alice.demand()
    waiting = town.start(alice.api.collect_demand_events(demand, timeout_s=30))
    await town.eventually(lambda: demand in alice.market.core.pulses._waiting)
    await bob.offer(**{"golem.runtime.name": "wasm"})
    offer = await bob.offer()
    [event] = await waiting
    assert event.proposal.properties["golem.runtime.name"] == "vm"
    assert alice.knows(offer)


async def test_a_node_that_stops_takes_its_offers_along_and_brings_them_back(town: Any) -> None:
    alice, bob = await town.pair()
    offer = await bob.offer()
    await town.eventually(lambda: alice.knows(offer))
    await bob.stop()
    assert not alice.knows(offer)
    bob.bootstraps = [alice.peers.address()]
    await bob.start()
    await town.eventually(lambda: alice.knows(offer))
    assert [o.offer_id for o in await bob.api.offers()] == [offer]
    await bob.api.unsubscribe_offer(offer)
    await town.eventually(lambda: not alice.knows(offer))
    await bob.stop()
    await bob.start()
    assert await bob.api.offers() == []


async def test_a_node_that_dies_is_not_offered(town: Any) -> None:
    middle = await town.node("middle")
    bob = await town.node("bob", knows=middle)
    alice = await town.node("alice", knows=middle)
    offer = await bob.offer()
    await town.eventually(lambda: alice.knows(offer))
    demand = await alice.demand()
    await alice.next_proposal(demand)
    await bob.crash()
    await town.eventually(lambda: not middle.knows(offer))
    carol = await town.node("carol", knows=middle)
    await carol.demand()
    await bob.start()
    await town.eventually(lambda: middle.knows(offer) and carol.knows(offer))
    # met before: no news for Alice's demand
    assert await alice.api.collect_demand_events(demand, timeout_s=0.02) == []


async def test_a_broken_link_is_not_a_dead_node(town: Any) -> None:
    alice, bob = await town.pair()
    offer = await bob.offer()
    await town.eventually(lambda: alice.knows(offer))
    await alice.peers.disconnect(bob.node_id)
    await town.eventually(lambda: bob.node_id in alice.peers.connected())
    assert alice.knows(offer)


async def test_an_offer_lives_as_long_as_its_agent(town: Any) -> None:
    clock = ManualClock(datetime.now(UTC))

    def prepare(node: Any) -> None:
        node.clock = clock
        node.config = MarketConfig(subscription_ttl_s=1000)

    bob = await town.node("bob", prepare=prepare)
    alice = await town.node("alice", knows=bob, prepare=prepare)
    read, unread = await bob.offer(), await bob.offer()
    await town.eventually(lambda: alice.knows(read) and alice.knows(unread))
    for _ in range(4):
        await clock.advance(400)
        await bob.api.collect_offer_events(read, timeout_s=0)
        expires = bob.market.core.book.get(read).statement.expires_at
        await town.eventually(lambda until=expires: alice.market.core.book.get(read).statement.expires_at == until)
    assert alice.knows(read)
    assert not alice.knows(unread)
    with pytest.raises(NotFound):
        await bob.api.collect_offer_events(unread, timeout_s=0)
    assert [o.offer_id for o in await bob.api.offers()] == [read]
    # expired for good
    await clock.advance(1001)
    assert not alice.knows(read)
    assert len(alice.market.core.book) == 0


async def test_a_demand_ends_when_it_says(town: Any) -> None:
    clock = ManualClock(datetime.now(UTC))
    alice = await town.node("alice", prepare=lambda node: setattr(node, "clock", clock))
    ends_ms = int((clock.now() + timedelta(minutes=30)).timestamp() * 1000)
    demand = await alice.api.subscribe_demand({"golem.srv.comp.expiration": ends_ms}, "()")
    await clock.advance(29 * 60)
    assert await alice.api.collect_demand_events(demand, timeout_s=0) == []
    await clock.advance(61)
    with pytest.raises(NotFound):
        await alice.api.collect_demand_events(demand, timeout_s=0)


async def test_what_was_on_sale_while_we_were_away_is_not_matched(town: Any) -> None:
    alice, bob = await town.pair()
    gone, stays = await bob.offer(which="gone"), await bob.offer(which="stays")
    demand = await alice.demand()
    await town.eventually(lambda: alice.knows(gone) and alice.knows(stays))
    await bob.api.unsubscribe_offer(gone)
    await town.eventually(lambda: not alice.knows(gone))
    [event] = await alice.api.collect_demand_events(demand)
    assert event.proposal.properties["which"] == "stays"


async def test_limits_on_what_an_agent_may_publish(town: Any) -> None:
    alice = await town.node("alice", prepare=lambda node: setattr(node, "config", MarketConfig(max_subscriptions=2)))
    with pytest.raises(Refused) as caught:
        await alice.offer(big="x" * protocol.MAX_OFFER_BYTES)
    assert caught.value.code == "offer_too_large"
    await alice.offer()
    await alice.offer()
    with pytest.raises(Refused) as caught:
        await alice.offer()
    assert caught.value.code == "too_many_subscriptions"
    await alice.demand()


# --- Mallory ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def victim(town: Any) -> tuple[Any, Any]:
    alice = await town.node("alice")
    return alice, await town.mallory(alice)


async def refused(mallory: Any, alice: Any, *offers: SignedOffer) -> str:
    with pytest.raises(Refused) as caught:
        await mallory.spread(alice, *offers)
    return caught.value.code


async def test_an_honest_stranger_is_heard(victim: Any) -> None:
    alice, mallory = victim
    offer = mallory.offer()
    await mallory.spread(alice, offer, offer)
    assert len(alice.market.core.book) == 1


async def test_an_offer_in_somebody_elses_name(victim: Any) -> None:
    alice, mallory = victim
    bob = Identity.generate()
    body = documents.SubscriptionBody("0" * 32, bob.node_id, datetime.now(UTC), {}, "()")
    assert await refused(mallory, alice, mallory.offer(body=body)) == "bad_signature"
    # signed by herself, with Bob's name on the envelope only
    good = mallory.offer()
    stolen = SignedOffer(bob.node_id, good.body, good.statement, good.signature)
    assert await refused(mallory, alice, stolen) == "bad_document"
    assert len(alice.market.core.book) == 0


async def test_an_offer_with_other_content_than_its_id_says(victim: Any) -> None:
    alice, mallory = victim
    cheap = mallory.offer(properties={"price": 1})
    dear = mallory.offer(properties={"price": 1000})
    forged = SignedOffer(mallory.node_id, dear.body, cheap.statement, cheap.signature)
    assert await refused(mallory, alice, forged) == "bad_document"


async def test_a_stranger_cannot_withdraw_or_change_an_offer(town: Any) -> None:
    alice, bob = await town.pair()
    mallory = await town.mallory(alice, bob)
    offer = await bob.offer()
    await town.eventually(lambda: alice.knows(offer))
    for statement in ({"withdrawn": True}, {"expires_at": datetime.now(UTC) + timedelta(seconds=1)}):
        attack = mallory.offer(offer_id=offer, sequence=1000, **statement)
        attack = SignedOffer(mallory.node_id, b"", attack.statement, attack.signature)
        assert await refused(mallory, alice, attack) == "not_the_issuer"
        in_his_name = SignedOffer(bob.node_id, b"", attack.statement, attack.signature)
        assert await refused(mallory, alice, in_his_name) == "bad_signature"
    assert alice.knows(offer)


async def test_a_tombstone_set_in_advance_does_not_stop_an_offer(town: Any) -> None:
    alice = await town.node("alice")
    mallory = await town.mallory(alice)
    bob = Identity.generate()
    body = documents.SubscriptionBody("0" * 32, bob.node_id, datetime.now(UTC), {}, "()")
    offer_id = documents.subscription_id(body, documents.encode(body))
    await mallory.spread(alice, mallory.offer(offer_id=offer_id, sequence=1000, withdrawn=True))
    await mallory.spread(alice, mallory.offer(signer=bob, body=body))
    assert alice.knows(offer_id)


async def test_old_statements_are_no_news(victim: Any) -> None:
    alice, mallory = victim
    body = documents.SubscriptionBody("0" * 32, mallory.node_id, datetime.now(UTC), {}, "()")
    first, second = mallory.offer(body=body), mallory.offer(body=body, sequence=2, withdrawn=True)
    offer_id = documents.subscription_id(body, documents.encode(body))
    await mallory.spread(alice, first)
    assert alice.knows(offer_id)
    await mallory.spread(alice, second)
    assert not alice.knows(offer_id)
    await mallory.spread(alice, first)  # replayed by whoever has kept it
    assert not alice.knows(offer_id)
    await mallory.spread(alice, mallory.offer(body=body, sequence=3))
    assert alice.knows(offer_id)


async def test_our_own_offers_are_not_discussed(town: Any) -> None:
    """Not even with our own signature: a copy of the data directory somewhere else must not confuse us."""
    bob = await town.node("bob")
    mallory = await town.mallory(bob)
    offer = await bob.offer()
    withdrawal = mallory.offer(signer=bob.identity, offer_id=offer, sequence=1000, withdrawn=True)
    attack = SignedOffer(bob.node_id, b"", withdrawal.statement, withdrawal.signature)
    await mallory.spread(bob, attack)
    assert bob.knows(offer)


@pytest.mark.parametrize(
    "statement",
    [
        {"expires_at": datetime(2999, 1, 1, tzinfo=UTC)},
        {"sequence": 0},
        {"sequence": 1 << 63},
        {"offer_id": "x"},
    ],
)
async def test_statements_out_of_bounds(victim: Any, statement: Any) -> None:
    alice, mallory = victim
    assert await refused(mallory, alice, mallory.offer(**statement)) == "bad_document"


async def test_expired_offers_are_passed_over(victim: Any) -> None:
    alice, mallory = victim
    await mallory.spread(alice, mallory.offer(expires_at=datetime.now(UTC) - timedelta(seconds=1)), mallory.offer())
    assert len(alice.market.core.book) == 1


async def test_garbage_and_sizes(victim: Any) -> None:
    alice, mallory = victim
    for garbage in (b"", b"\xc1", b"\x91" * 5000, msgspec.msgpack.encode([[["0x", b"", b"", b""]]]), b"x" * 1000):
        with pytest.raises(Refused) as caught:
            await mallory.call(alice, protocol.OFFERS, garbage)
        assert caught.value.code == "bad_document"
    big = mallory.offer(properties={"x": "y" * protocol.MAX_OFFER_BYTES})
    assert await refused(mallory, alice, big) == "bad_document"
    nested: Any = []
    for _ in range(200):
        nested = [nested]
    assert await refused(mallory, alice, mallory.offer(properties={"x": nested})) == "bad_properties"
    assert await refused(mallory, alice, mallory.offer(properties={"x": {"y": 1}})) == "bad_properties"
    page = protocol.OffersPage([mallory.offer()] * (protocol.MAX_PAGE_OFFERS + 1))
    with pytest.raises(Refused):
        await mallory.call(alice, protocol.OFFERS, protocol.pack(page))
    assert len(alice.market.core.book) == 0


async def test_a_flood_of_offers_stops_at_the_limit(town: Any) -> None:
    config = MarketConfig(max_offers=30, max_offers_per_issuer=20)
    alice = await town.node("alice", prepare=lambda node: setattr(node, "config", config))
    mallory = await town.mallory(alice)
    await mallory.spread(alice, *[mallory.offer() for _ in range(25)])
    assert len(alice.market.core.book) == 20
    for _ in range(15):  # new keys cost nothing
        mallory.identity = Identity.generate()
        mallory.node_id = mallory.identity.node_id
        await mallory.spread(alice, mallory.offer())
    assert len(alice.market.core.book) == 30
    own = await alice.offer()
    assert alice.knows(own)


async def test_an_offer_with_a_terrible_constraint_costs_little(victim: Any) -> None:
    alice, mallory = victim
    demand = await alice.api.subscribe_demand({"a": "a" * 10_000}, "()")
    body = documents.SubscriptionBody(
        "0" * 32, mallory.node_id, datetime.now(UTC), {}, "(&" + "(a=a" + "*a" * 10_000 + "b))"
    )
    await mallory.spread(alice, mallory.offer(body=body))
    assert await alice.api.collect_demand_events(demand, timeout_s=0) == []


async def test_much_news_has_to_wait(town: Any) -> None:
    clock = ManualClock(datetime.now(UTC))

    def prepare(node: Any) -> None:
        node.clock = clock
        node.config = MarketConfig(news_burst=10, news_per_s=1)

    alice = await town.node("alice", prepare=prepare)
    mallory = await town.mallory(alice)
    offers = [mallory.offer() for _ in range(12)]
    told = town.start(mallory.spread(alice, *offers))
    await town.eventually(lambda: len(alice.market.core.book) == 10)
    other = town.start(mallory.spread(alice, *offers[:10], mallory.offer()))
    await town.eventually(lambda: alice.market._meters.pages(mallory.node_id) == 2)
    with pytest.raises(Conflict) as caught:
        await mallory.spread(alice)
    assert caught.value.code == "too_many_pages"
    # others are not affected
    carol = await town.mallory(alice)
    await carol.spread(alice, carol.offer())
    for _ in range(4):
        await clock.advance(1)
    await told
    await other
    assert len(alice.market.core.book) == 14


async def test_rumours_of_withdrawals_are_not_passed_on(town: Any) -> None:
    alice, bob = await town.pair()
    mallory = await town.mallory(alice)
    await mallory.spread(alice, mallory.offer(withdrawn=True))
    await mallory.spread(alice, mallory.offer())
    await town.eventually(lambda: len(bob.market.core.book) == 1)
    assert not bob.market.core.book._tombs
