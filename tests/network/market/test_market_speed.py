"""Not a benchmark: limits far above what is measured, so that an accidental O(n²) is seen."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from shem.node.market import documents
from shem.node.market.offers import SignedOffer

OFFERS = 10_000


def fill(node: Any, properties: dict[str, Any]) -> None:
    """Offers of strangers, as if verified."""
    now = datetime.now(UTC)
    for number in range(OFFERS):
        issuer = f"0x{number % 5000:040x}"
        body = documents.SubscriptionBody(
            secrets.token_hex(16), issuer, now, properties | {"number": number}, f"(golem.srv.comp.expiration>{number})"
        )
        raw = documents.encode(body)
        offer_id = documents.subscription_id(body, raw)
        statement = documents.Statement(offer_id, 1, now + timedelta(hours=1), False)
        signed = SignedOffer(issuer, raw, documents.encode(statement), b"")
        assert node.market.core.book.publish(offer_id, body, statement, signed, "somebody")


async def first_proposal_s(node: Any, constraints: str) -> float:
    started = time.perf_counter()
    demand = await node.demand(constraints)
    assert await node.api.collect_demand_events(demand, max_events=10)
    return time.perf_counter() - started


async def test_ten_thousand_offers(town: Any) -> None:
    alice = await town.node("alice")
    offer = town.OFFER | {"golem.node.debug.subnet": "public"}
    fill(alice, offer | {"golem.runtime.name": "vm"})
    assert await first_proposal_s(alice, "(golem.runtime.name=vm)") < 0.5
    assert await first_proposal_s(alice, "(&(golem.runtime.name=vm)(number=9999))") < 1.5
    # an index makes what nobody offers cheap
    started = time.perf_counter()
    for _ in range(20):
        demand = await alice.demand("(golem.runtime.name=wasm)")
        assert await alice.api.collect_demand_events(demand, timeout_s=0) == []
    assert time.perf_counter() - started < 1
    # all of them, page by page
    demand = await alice.demand("(golem.runtime.name=vm)")
    seen = set()
    while events := await alice.api.collect_demand_events(demand, timeout_s=0, max_events=100):
        seen |= {event.proposal.properties["number"] for event in events}
        if len(seen) >= 2000:
            break
    assert len(seen) == 2000


async def test_a_new_offer_among_a_thousand_demands(town: Any) -> None:
    alice, bob = await town.pair()
    for number in range(190):
        await alice.demand(f"(golem.runtime.name=other{number})")
    demand = await alice.demand()
    started = time.perf_counter()
    await bob.offer()
    assert await alice.api.collect_demand_events(demand)
    assert time.perf_counter() - started < 1
