"""The market API, asked the same of our nodes and of the original daemon: subscriptions, events, proposals, scans."""

from __future__ import annotations

import asyncio
import json
import secrets

import pytest

from tests.api.conversation import MARKET, NO_CONTENT_TYPE, ZERO_SUBSCRIPTION, Conversation, Talks
from tests.api.shapes import (
    DEMAND,
    FOLLOWING,
    OFFER,
    P_PROPOSAL,
    PROPOSAL,
    REJECTED_EVENT,
    SUBSCRIPTION_ID,
    TIME,
    misfit,
    proposal_event,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")
GOOD = {"properties": {"a": 1}, "constraints": "()"}


async def test_what_is_published_comes_back_flat(talk: Conversation) -> None:
    nested = {
        "golem": {"inf": {"cpu": {"threads": 2}, "mem.gib": 4.0}},
        "list": ["a", "b"],
        "nul": None,
        "empty": {},
        "deep": {"a": {"b": [{"c": 1}]}},
        "tag@tag": 1,
    }
    flat = {
        "deep.a.b": [{"c": 1}],
        "golem.inf.cpu.threads": 2,
        "golem.inf.mem.gib": 4.0,
        "list": ["a", "b"],
        "nul": None,
        "tag@tag": 1,
    }
    for who, noun, shape in (("R", "demands", DEMAND), ("P", "offers", OFFER)):
        body = {"properties": nested, "constraints": "(x=1)"}
        made = await talk(who, "POST", f"{MARKET}/{noun}", body, gives=201, shape=SUBSCRIPTION_ID)
        listed = await talk(who, "GET", f"{MARKET}/{noun}", gives=200, shape=[shape])
        (mine,) = [one for one in listed if one[noun[:-1] + "Id"] == made]
        assert (mine["properties"], list(mine["properties"]), mine["constraints"]) == (flat, list(flat), "(x=1)")
        await talk("R" if who == "P" else "P", "GET", f"{MARKET}/{noun}", gives=200, shape=[])


@pytest.mark.parametrize(("who", "noun"), [("R", "demands"), ("P", "offers")])
async def test_publishing_nonsense(talk: Conversation, who: str, noun: str) -> None:
    at = f"{MARKET}/{noun}"
    for body in (b"{bad", b"", b"[]", b"null", b'"x"', b"5", b'{"properties":{}}', b'{"constraints":"()"}'):
        await talk(who, "POST", at, body, gives=400)
    await talk(who, "POST", at, {"properties": {}, "constraints": 5}, gives=400)
    await talk(who, "POST", at, {"properties": [], "constraints": "()"}, gives="properties-no-object")
    await talk(who, "POST", at, {"properties": None, "constraints": "()"}, gives="properties-no-object")
    await talk(who, "POST", at, json.dumps(GOOD).encode(), headers=NO_CONTENT_TYPE, gives=400)
    for constraints in ("", "((", "(a=*b)", "(&(a=1)", "(a~=1)", "(a==1)", "(&)", "(a=1) junk"):
        body = {"properties": {"a": 1}, "constraints": constraints}
        await talk(who, "POST", at, body, gives=201, shape=SUBSCRIPTION_ID)


async def test_withdrawing(talk: Conversation) -> None:
    demand = await talk("R", "POST", f"{MARKET}/demands", GOOD, gives=201)
    offer = await talk("P", "POST", f"{MARKET}/offers", GOOD, gives=201)
    for who, noun, made, again in (("R", "demands", demand, 404), ("P", "offers", offer, 410)):
        other = "offers" if noun == "demands" else "demands"
        await talk(who, "DELETE", f"{MARKET}/{noun}/nope", gives=400)
        await talk(who, "DELETE", f"{MARKET}/{noun}/{ZERO_SUBSCRIPTION}", gives=404)
        if who == "R" or talk.either("far-offer", True, False):
            await talk("P" if who == "R" else "R", "DELETE", f"{MARKET}/{noun}/{made}", gives=404)
        await talk(who, "DELETE", f"{MARKET}/{other}/{made}", gives=404)
        await talk(who, "DELETE", f"{MARKET}/{noun}/{made}", gives=204)
        await talk(who, "DELETE", f"{MARKET}/{noun}/{made}", gives=again)
        await talk(who, "GET", f"{MARKET}/{noun}", gives=200, shape=[])
    await talk("R", "GET", f"{MARKET}/demands/{demand}/events?timeout=0.1", gives=404)
    await talk("P", "GET", f"{MARKET}/offers/{offer}/events?timeout=0.1", gives=200, shape=[])


async def test_the_queries_of_event_polls(talk: Conversation) -> None:
    demand = await talk("R", "POST", f"{MARKET}/demands", GOOD | {"constraints": "(nobody=1)"}, gives=201)
    offer = await talk("P", "POST", f"{MARKET}/offers", GOOD | {"constraints": "(nobody=1)"}, gives=201)
    for who, at in (("R", f"{MARKET}/demands/{demand}/events"), ("P", f"{MARKET}/offers/{offer}/events")):
        for query in ("maxEvents=0", "maxEvents=101", "maxEvents=-1", "maxEvents=x", "maxEvents=1.5", "maxEvents="):
            await talk(who, "GET", f"{at}?timeout=0&{query}", gives=400)
        for query in ("timeout=x", "timeout=", "timeout=0.1&timeout=0.1"):
            await talk(who, "GET", f"{at}?{query}", gives=400)
        for query in ("timeout=0", "timeout=0.05", "timeout=5e-2", "timeout=-1", "timeout=0&pollTimeout=9"):
            await talk(who, "GET", f"{at}?{query}&maxEvents=100", gives=200, shape=[])
        await talk(who, "GET", f"{at}?timeout=NaN", gives="timeout-nan")


async def test_polls_of_nobody(talk: Conversation) -> None:
    for who, noun in (("R", "demands"), ("P", "offers")):
        await talk(who, "GET", f"{MARKET}/{noun}/nope/events?timeout=0.1", gives=400)
        await talk(who, "GET", f"{MARKET}/{noun}/{ZERO_SUBSCRIPTION}/events?timeout=0.1", gives=404)
    demand = await talk("R", "POST", f"{MARKET}/demands", GOOD, gives=201)
    await talk("R", "GET", f"{MARKET}/offers/{demand}/events?timeout=0.1", gives=404)
    await talk("P", "GET", f"{MARKET}/demands/{demand}/events?timeout=0.1", gives=404)
    await talk("S", "GET", f"{MARKET}/demands/{demand}/events?timeout=0.1", gives="stranger-poll")
    await talk("S", "DELETE", f"{MARKET}/demands/{demand}", gives=404)


async def test_a_poll_ends_with_its_demand(talk: Conversation) -> None:
    demand = await talk("R", "POST", f"{MARKET}/demands", GOOD | {"constraints": "(nobody=1)"}, gives=201)
    offer = await talk("P", "POST", f"{MARKET}/offers", GOOD | {"constraints": "(nobody=1)"}, gives=201)
    async with asyncio.TaskGroup() as group:
        poll = talk("R", "GET", f"{MARKET}/demands/{demand}/events?timeout=50", gives=404)
        group.create_task(poll)
        group.create_task(talk("P", "GET", f"{MARKET}/offers/{offer}/events?timeout=50", gives=404))
        await asyncio.sleep(0.05)
        await talk("R", "DELETE", f"{MARKET}/demands/{demand}", gives=204)
        await talk("P", "DELETE", f"{MARKET}/offers/{offer}", gives=204)


async def test_a_negotiation(talk: Conversation) -> None:
    talks = await talk.subscribe(Talks(secrets.token_hex(8)))
    initial = await talk.find(talks)
    assert (initial["state"], initial["issuerId"]) == ("Initial", talk.side("P").node_id)
    assert initial["properties"] == talk.offered["properties"]
    at = f"{talks.demand_at}/proposals"
    assert await talk("R", "GET", f"{at}/{talks.initial}", gives=200, shape=PROPOSAL) == initial
    await talk.counter(talks)
    mine = await talk("R", "GET", f"{at}/{talks.counter}", gives=200, shape=FOLLOWING)
    assert (mine["state"], mine["issuerId"], mine["prevProposalId"]) == ("Draft", talk.side("R").node_id, talks.initial)
    assert (mine["properties"], mine["constraints"]) == (talk.wanted["properties"], talk.wanted["constraints"])
    theirs = await talk("P", "GET", f"{talks.offer_at}/proposals/{talks.counter_p}", gives=200, shape=FOLLOWING)
    assert theirs["proposalId"] == "P-" + talks.counter[2:]
    first = await talk("P", "GET", f"{talks.offer_at}/proposals/{theirs['prevProposalId']}", gives=200, shape=PROPOSAL)
    assert (first["state"], first["issuerId"]) == ("Initial", talk.side("P").node_id)
    await talk("P", "POST", f"{talks.offer_at}/proposals/{talks.counter_p}", talk.offered, gives=200, shape=P_PROPOSAL)
    event = await talk.event("R", talks, proposal_event(FOLLOWING))
    assert event["proposal"]["prevProposalId"] == talks.counter
    assert event["proposal"]["state"] == "Draft"
    # again and again, as some requestors do
    again = await talk("R", "POST", f"{at}/{event['proposal']['proposalId']}", talk.wanted, gives=200)
    event = await talk.event("P", talks, proposal_event(FOLLOWING))
    assert event["proposal"]["proposalId"] == "P-" + again[2:]


async def test_counters_that_cannot_be(talk: Conversation) -> None:
    talks = await talk.meet()
    at = f"{talks.demand_at}/proposals"
    for body in (b"{bad", b"", b"null", b"{}", b'{"properties":{}}'):
        await talk("R", "POST", f"{at}/{talks.initial}", body, gives=400)
    for constraints in ("(mark=other)", "(missing=1)", "(("):
        body = {"properties": {}, "constraints": constraints}
        await talk("R", "POST", f"{at}/{talks.initial}", body, gives=400)
    await talk("R", "POST", f"{at}/nope", talk.wanted, gives=400)
    await talk("R", "POST", f"{at}/R-{'0' * 64}", talk.wanted, gives=404)
    await talk("R", "POST", f"{MARKET}/demands/{ZERO_SUBSCRIPTION}/proposals/{talks.initial}", talk.wanted, gives=404)
    await talk.counter(talks)
    await talk("R", "POST", f"{at}/{talks.initial}", talk.wanted, gives=410)
    await talk("R", "POST", f"{at}/{talks.counter}", talk.wanted, gives=400)
    await talk("R", "POST", f"{at}/{talks.counter}/reject", {"message": "my own"}, gives=400)
    body = {"properties": {}, "constraints": "()"}  # the requestor's constraint is not met
    await talk("P", "POST", f"{talks.offer_at}/proposals/{talks.counter_p}", body, gives=400)
    await talk("R", "DELETE", talks.demand_at, gives=204)
    await talk("R", "POST", f"{at}/{talks.initial}", talk.wanted, gives="subscription-gone")


async def test_reading_what_is_not_there(talk: Conversation) -> None:
    talks = await talk.meet()
    at = f"{talks.demand_at}/proposals"
    for wrong in ("nope", talks.initial[2:]):
        await talk("R", "GET", f"{at}/{wrong}", gives=400)
    for wrong in (f"R-{'0' * 64}", f"P-{talks.initial[2:]}"):
        await talk("R", "GET", f"{at}/{wrong}", gives=404)
    await talk("R", "GET", f"{MARKET}/demands/nope/proposals/{talks.initial}", gives=400)
    await talk("R", "GET", f"{MARKET}/demands/{ZERO_SUBSCRIPTION}/proposals/{talks.initial}", gives=404)
    await talk("R", "GET", f"{talks.offer_at}/proposals/{talks.initial}", gives=404)
    await talk("P", "GET", f"{at}/{talks.initial}", gives=404)
    await talk("S", "GET", f"{at}/{talks.initial}", gives="stranger-proposal")


async def test_rejections(talk: Conversation) -> None:
    talks = await talk.counter(await talk.meet())
    at = f"{talks.offer_at}/proposals/{talks.counter_p}/reject"
    for body in (b"{bad", b"", b"[]", b'"x"', b'{"nomessage":1}'):
        await talk("P", "POST", at, body, gives=400)
    await talk("P", "POST", at, gives=400)
    await talk("P", "POST", at, b"null", headers=NO_CONTENT_TYPE, gives=400)
    unknown = f"{talks.offer_at}/proposals/P-{'0' * 64}/reject"
    await talk("P", "POST", unknown, {"message": "who?"}, gives="reject-unknown")
    reason = {"message": "No capacity", "golem.proposal.rejection.is-final": False}
    await talk("P", "POST", at, reason, gives=204)
    event = await talk.event("R", talks, REJECTED_EVENT)
    assert (event["proposalId"], event["reason"]) == (talks.counter, reason)
    mine = await talk("R", "GET", f"{talks.demand_at}/proposals/{talks.counter}", gives=200, shape=FOLLOWING)
    assert mine["state"] == "Rejected"
    await talk("P", "POST", at, reason, gives=204)
    await talk("P", "POST", at.removesuffix("/reject"), talk.offered, gives="counter-after-reject")
    countered = f"{talks.demand_at}/proposals/{talks.initial}/reject"
    await talk("R", "POST", countered, {"message": "late"}, gives="reject-countered")


async def test_a_rejection_without_a_word(talk: Conversation) -> None:
    talks = await talk.meet()
    at = f"{talks.demand_at}/proposals/{talks.initial}"
    await talk("R", "POST", f"{at}/reject", b"null", gives=204)
    assert (await talk("R", "GET", at, gives=200, shape=PROPOSAL))["state"] == "Rejected"


async def test_an_offer_that_went_away(talk: Conversation) -> None:
    talks = await talk.meet()
    await talk("P", "DELETE", talks.offer_at, gives=204)
    at = f"{talks.demand_at}/proposals/{talks.initial}"
    await talk("R", "POST", at, talk.wanted, gives="offer-gone")


async def test_scans(talk: Conversation) -> None:
    scan = f"{MARKET}/scan"
    for body in (b"{bad", b"", b"[]", b"{}", b'{"type":"bogus"}', b'{"type":"offer","timeout":"x"}'):
        await talk("R", "POST", scan, body, gives=400)
    for more in (
        {"timeout": -5},
        {"constraints": "(a=1"},
        {"constraints": "(a=*c)"},
        {"constraints": ""},
        {"constraints": 5},
    ):
        await talk("R", "POST", scan, {"type": "offer", **more}, gives=400)
    await talk("R", "POST", scan, b'{"type":"offer"}', headers=NO_CONTENT_TYPE, gives=400)
    talks = await talk.meet()
    body = {"type": "offer", "constraints": f"(mark={talks.mark})", "timeout": 60}
    made = await talk("R", "POST", scan, body, gives=201)
    assert made.isdecimal()
    at = f"{scan}/{made}"
    (found,) = await talk("R", "GET", f"{at}/events?timeout=20&maxEvents=10", gives=200, shape=[OFFER])
    assert (found["offerId"], found["properties"]) == (talks.offer, talk.offered["properties"])
    await talk("R", "GET", f"{at}/events?timeout=0.1", gives=200, shape=[])
    await talk("R", "GET", f"{at}/events?timeout=x", gives=400)
    await talk("R", "GET", f"{at}/events?timeout=0.1&peerId=nope", gives=400)
    await talk("R", "GET", f"{at}/events?timeout=0.1&maxEvents=0", gives="scan-max-events")
    await talk("S", "GET", f"{at}/events?timeout=0.1", gives=403)
    await talk("S", "DELETE", at, gives=403)
    for unknown in ("99999", "nope"):
        await talk("R", "GET", f"{scan}/{unknown}/events?timeout=0.1", gives=404)
        await talk("R", "DELETE", f"{scan}/{unknown}", gives=404)
    await talk("R", "DELETE", at, gives=204)
    await talk("R", "DELETE", at, gives=404)
    await talk("R", "GET", f"{at}/events?timeout=0.1", gives=404)
    made = await talk("R", "POST", scan, {"type": "demand"}, gives=201)
    listed = await talk("R", "GET", f"{scan}/{made}/events?timeout=0.5", gives=200, shape=[DEMAND])
    assert [one["demandId"] for one in listed] == talk.either("scan-of-demands", [talks.demand], [])
    await talk("R", "DELETE", f"{scan}/{made}", gives=204)


async def test_a_scan_of_one_peer(talk: Conversation) -> None:
    talks = await talk.meet()
    body = {"type": "offer", "constraints": f"(mark={talks.mark})"}
    scan = f"{MARKET}/scan/" + await talk("R", "POST", f"{MARKET}/scan", body, gives=201)
    here = await talk("R", "GET", f"{scan}/events?timeout=10&peerId={talk.side('P').node_id}", gives=200, shape=[OFFER])
    assert [one["offerId"] for one in here] == [talks.offer]
    if talk.either("scan-unknown-peer", True, False):
        await talk("R", "GET", f"{scan}/events?timeout=0.2&peerId=0x{'1' * 40}", gives=200, shape=[])
    await talk("R", "DELETE", scan, gives=204)


async def test_a_scan_as_a_stream(talk: Conversation) -> None:
    talks = await talk.meet()
    body = {"type": "offer", "constraints": f"(mark={talks.mark})"}
    scan = f"{MARKET}/scan/" + await talk("R", "POST", f"{MARKET}/scan", body, gives=201)
    side = talk.side("R")
    headers = {"Authorization": f"Bearer {side.app_key}", "Accept": "text/event-stream"}
    async with (
        asyncio.timeout(30),
        talk.network.session.get(f"{side.api_url}{scan}/events", headers=headers) as answer,
    ):
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        lines: list[bytes] = []
        while not lines or lines[-1]:
            lines.append((await answer.content.readline()).rstrip())
        assert lines[0] == b"event: offer"
        assert lines[1].startswith(b"data: ")
        first = json.loads(lines[1].removeprefix(b"data: "))
        assert not misfit(OFFER, first), misfit(OFFER, first)
        assert first["offerId"] == talks.offer
        later = await talk("P", "POST", f"{MARKET}/offers", talk.offered, gives=201)
        async for line in answer.content:
            if line.startswith(b"data: "):
                assert json.loads(line.removeprefix(b"data: "))["offerId"] == later
                break
    await talk("R", "DELETE", scan, gives=204)


async def test_only_others_and_only_matches_are_proposed(talk: Conversation) -> None:
    mark = secrets.token_hex(8)
    demand = await talk("R", "POST", f"{MARKET}/demands", GOOD | {"constraints": f"(mark={mark})"}, gives=201)
    offered = {"properties": {"mark": mark}, "constraints": "()"}
    await talk("R", "POST", f"{MARKET}/offers", offered, gives=201)  # the demand's own identity
    await talk("P", "POST", f"{MARKET}/offers", offered | {"constraints": "(missing=1)"}, gives=201)
    await talk("P", "POST", f"{MARKET}/offers", offered | {"constraints": "(("}, gives=201)
    right = {"properties": {"mark": mark, "right": True}, "constraints": "(a=1)"}
    await talk("P", "POST", f"{MARKET}/offers", right, gives=201)
    at = f"{MARKET}/demands/{demand}/events"
    (event,) = await talk("R", "GET", f"{at}?timeout=20&maxEvents=10", gives=200, shape=[proposal_event(PROPOSAL)])
    assert event["proposal"]["properties"] == right["properties"]
    assert not misfit(TIME, event["eventDate"])
    await talk("R", "GET", f"{at}?timeout=0.2", gives=200, shape=[])
