"""The REST flow of the original daemon's recordings, step by step: statuses, shapes, events."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

FLAT_OFFER = {
    "golem.inf.cpu.threads": 2,
    "golem.inf.mem.gib": 4.0,
    "golem.node.id.name": "prov",
    "golem.runtime.name": "vm",
    "golem.x": "v",
    "golem.x.y": 1,
    "list": ["a", "b"],
    "nul": None,
}
SUBSCRIPTION = re.compile(r"[0-9a-f]{32}-[0-9a-f]{64}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")
ROOT = "/market-api/v1"
ZEROS = "0" * 64


class Rest:
    """Raw HTTP: status, content type and JSON, as the recordings have them."""

    def __init__(self, node: Any) -> None:
        self._http = node.http

    async def __call__(
        self, method: str, path: str, body: Any = ..., raw: bytes | None = None, **headers: str
    ) -> tuple[int, Any]:
        data = raw if raw is not None else None if body is ... else msgspec.json.encode(body)
        sent = {"Content-Type": "application/json"} if data is not None else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        async with self._http.session.request(method, self._http.url(ROOT + path), data=data, headers=sent) as answer:
            content = await answer.read()
            if content:
                assert answer.content_type == "application/json", content
                return answer.status, msgspec.json.decode(content)
            return answer.status, None


@pytest.fixture
async def flow(town: Any) -> tuple[Any, Any, Rest, Rest]:
    alice, bob = await town.pair()
    return alice, bob, Rest(alice), Rest(bob)


async def test_the_recorded_flow(town: Any, flow: Any) -> None:
    alice, bob, req, prov = flow
    demand_properties = town.demand_properties()
    chosen = demand_properties | {"golem.com.payment.chosen-platform": "erc20-holesky-tglm"}
    counter = {"properties": chosen, "constraints": town.DEMAND_CONSTRAINTS}

    status, offer = await prov("POST", "/offers", {"properties": town.OFFER, "constraints": town.OFFER_CONSTRAINTS})
    assert status == 201
    assert SUBSCRIPTION.fullmatch(offer)
    await town.eventually(lambda: alice.knows(offer))
    body = {"properties": demand_properties, "constraints": town.DEMAND_CONSTRAINTS}
    status, demand = await req("POST", "/demands", body)
    assert status == 201
    assert SUBSCRIPTION.fullmatch(demand)

    status, [listed] = await prov("GET", "/offers")
    assert status == 200
    assert TIME.fullmatch(listed.pop("timestamp"))
    assert listed == {
        "properties": FLAT_OFFER,
        "constraints": town.OFFER_CONSTRAINTS,
        "offerId": offer,
        "providerId": bob.node_id,
    }
    assert list(listed["properties"]) == sorted(FLAT_OFFER)
    status, [listed] = await req("GET", "/demands")
    assert status == 200
    assert (listed["demandId"], listed["requestorId"]) == (demand, alice.node_id)
    assert listed["properties"] == demand_properties

    events = f"/demands/{demand}/events?timeout=10&maxEvents=10"
    status, [event] = await req("GET", events)
    assert status == 200
    assert event["eventType"] == "ProposalEvent"
    assert TIME.fullmatch(event["eventDate"])
    initial = event["proposal"]
    initial_id = initial["proposalId"]
    assert re.fullmatch(r"R-[0-9a-f]{64}", initial_id)
    assert TIME.fullmatch(initial.pop("timestamp"))
    assert initial == {
        "properties": FLAT_OFFER,
        "constraints": town.OFFER_CONSTRAINTS,
        "proposalId": initial_id,
        "issuerId": bob.node_id,
        "state": "Initial",
    }
    status, again = await req("GET", f"/demands/{demand}/proposals/{initial_id}")
    assert status == 200
    assert again["proposalId"] == initial_id

    valid_to = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    status, refused = await req("POST", "/agreements", {"proposalId": initial_id, "validTo": valid_to})
    assert status == 400
    assert refused["message"] == (
        f"Can't create Agreement for Proposal [{initial_id}]. No negotiation with Provider took place. "
        "(You should counter Proposal at least one time)"
    )
    status, mine = await req("POST", f"/demands/{demand}/proposals/{initial_id}", counter)
    assert status == 200
    assert re.fullmatch(r"R-[0-9a-f]{64}", mine)
    status, refused = await req("POST", f"/demands/{demand}/proposals/{initial_id}", counter)
    assert status == 410
    assert refused["message"] == (
        f"Proposal [{initial_id}] already has counter proposal. Can't counter for the second time."
    )
    status, own = await req("GET", f"/demands/{demand}/proposals/{mine}")
    assert status == 200
    assert (own["state"], own["issuerId"], own["prevProposalId"]) == ("Draft", alice.node_id, initial_id)
    status, refused = await req("POST", f"/demands/{demand}/proposals/{mine}", counter)
    assert status == 400
    assert refused["message"] == f"Can't react to own Proposal [{mine}]."
    status, refused = await req("POST", "/agreements", {"proposalId": mine, "validTo": valid_to})
    assert status == 400
    assert refused["message"].startswith(f"Can't create Agreement for an own Proposal [{mine}].")

    status, [event] = await prov("GET", f"/offers/{offer}/events?timeout=5&maxEvents=5")
    assert (status, event["eventType"]) == (200, "ProposalEvent")
    draft = event["proposal"]
    assert draft["proposalId"] == "P-" + mine.removeprefix("R-")
    assert draft["properties"] == dict(sorted(chosen.items()))
    assert (draft["state"], draft["issuerId"], draft["timestamp"]) == ("Draft", alice.node_id, own["timestamp"])
    status, first = await prov("GET", f"/offers/{offer}/proposals/{draft['prevProposalId']}")
    assert status == 200
    assert (first["state"], first["issuerId"], first["properties"]) == ("Initial", bob.node_id, FLAT_OFFER)
    assert "prevProposalId" not in first

    body = {"properties": town.OFFER, "constraints": town.OFFER_CONSTRAINTS}
    status, theirs = await prov("POST", f"/offers/{offer}/proposals/{draft['proposalId']}", body)
    assert status == 200
    assert re.fullmatch(r"P-[0-9a-f]{64}", theirs)
    status, [event] = await req("GET", events)
    final = event["proposal"]
    assert final["proposalId"] == "R-" + theirs.removeprefix("P-")
    assert (final["state"], final["issuerId"], final["prevProposalId"]) == ("Draft", bob.node_id, mine)

    wanted = {"proposalId": final["proposalId"], "validTo": valid_to}
    status, agreement = await req("POST", "/agreements", wanted)
    assert status == 200
    assert re.fullmatch(r"[0-9a-f]{64}", agreement)
    status, refused = await req("POST", "/agreements", wanted)
    assert status == 409
    assert refused["message"] == f"Can't create second Agreement for Proposal [{final['proposalId']}]."
    status, shown = await req("GET", f"/agreements/{agreement}")
    assert status == 200
    created = shown["timestamp"]
    assert shown == {
        "agreementId": agreement,
        "demand": {
            "properties": dict(sorted(chosen.items())),
            "constraints": town.DEMAND_CONSTRAINTS,
            "demandId": demand,
            "requestorId": alice.node_id,
            "timestamp": created,
        },
        "offer": {
            "properties": FLAT_OFFER,
            "constraints": town.OFFER_CONSTRAINTS,
            "offerId": offer,
            "providerId": bob.node_id,
            "timestamp": created,
        },
        "validTo": valid_to.replace("+00:00", "Z"),
        "state": "Proposal",
        "timestamp": created,
    }

    at = f"/agreements/{agreement}"
    status, refused = await req("POST", f"{at}/wait?timeout=1")
    assert status == 400
    assert refused["message"] == f"Agreement [R-{agreement}] should be confirmed, before waiting for approval."
    status, refused = await req("POST", f"{at}/terminate", {"message": "no"})
    assert (status, refused["message"]) == (409, "Can't update Agreement state from Proposal to Terminated.")
    assert (await req("POST", f"{at}/confirm?appSessionId=SESS1"))[0] == 204
    status, refused = await req("POST", f"{at}/confirm")
    assert (status, refused["message"]) == (410, "Can't update Agreement state from Pending to Pending.")
    status, refused = await req("POST", f"{at}/wait?timeout=0.05")
    assert status == 408
    assert refused["message"] == f"Timeout while waiting for Agreement [R-{agreement}] approval."
    status, refused = await req("POST", f"{at}/terminate", {"message": "no"})
    assert (status, refused["message"]) == (410, "Can't update Agreement state from Pending to Terminated.")

    status, [event] = await prov("GET", f"/offers/{offer}/events?timeout=5&maxEvents=5")
    assert (status, event["eventType"]) == (200, "AgreementEvent")
    proposed = event["agreement"]
    assert proposed["state"] == "Pending"
    assert re.fullmatch(r"[0-9a-f]{130}", proposed.pop("proposedSignature"))
    assert proposed == shown | {"state": "Pending"}
    assert (await prov("POST", f"{at}/approve?appSessionId=PSESS&timeout=10"))[0] == 204
    assert (await req("POST", f"{at}/wait?timeout=15"))[0] == 204
    assert (await req("POST", f"{at}/wait?timeout=1"))[0] == 204

    (_, ours), (_, theirs) = await req("GET", at), await prov("GET", at)
    assert (ours.pop("appSessionId"), theirs.pop("appSessionId")) == ("SESS1", "PSESS")
    assert ours == theirs
    assert ours["state"] == "Approved"
    assert TIME.fullmatch(ours["approvedDate"])
    signatures = {ours[f"{kind}Signature"] for kind in ("proposed", "approved", "committed")}
    assert len(signatures) == 3
    assert all(re.fullmatch(r"[0-9a-f]{130}", one) for one in signatures)

    status, [entry] = await req("GET", "/agreements")
    expected = {"id": agreement, "timestamp": created, "approvedDate": ours["approvedDate"], "role": "Requestor"}
    assert (status, entry) == (200, expected)
    status, [entry] = await prov("GET", "/agreements?state=Approved&appSessionId=PSESS")
    assert entry["role"] == "Provider"
    assert await prov("GET", "/agreements?state=Pending") == (200, [])
    assert await prov("GET", f"/agreements?afterDate={created}") == (200, [])
    assert (await prov("GET", "/agreements?state=Odd"))[0] == 400

    long_ago = "afterTimestamp=2020-01-01T00:00:00Z"
    status, [approved] = await req("GET", f"/agreementEvents?timeout=1&appSessionId=SESS1&{long_ago}")
    assert TIME.fullmatch(approved.pop("eventDate"))
    assert approved == {"agreementId": agreement, "eventType": "AgreementApprovedEvent"}
    status, [approved] = await prov("GET", "/agreementEvents?timeout=1&appSessionId=PSESS")
    assert approved["eventType"] == "AgreementApprovedEvent"
    assert await req("GET", "/agreementEvents?timeout=0.05&appSessionId=OTHER") == (200, [])

    after = approved["eventDate"]
    poll = town.start(prov("GET", f"/agreementEvents?timeout=10&afterTimestamp={after}"))
    reason = {"message": "done", "golem.requestor.code": "Success"}
    status, nothing = await req("POST", f"{at}/terminate", reason)
    assert (status, nothing) == (200, None)
    status, refused = await req("POST", f"{at}/terminate", reason)
    assert (status, refused["message"]) == (410, "Can't update Agreement state from Terminated to Terminated.")
    status, [ended] = await poll
    assert ended.pop("eventDate") > after
    assert re.fullmatch(r"[0-9a-f]{130}", ended.pop("signature"))
    assert ended == {
        "agreementId": agreement,
        "eventType": "AgreementTerminatedEvent",
        "terminator": "Requestor",
        "reason": reason,
    }
    assert (await prov("GET", f"{at}/terminate/reason"))[1] == reason

    status, [event] = await req("GET", events)
    fresh = event["proposal"]
    assert fresh["state"] == "Initial"
    assert fresh["proposalId"] != initial_id

    assert (await req("DELETE", f"/demands/{demand}"))[0] == 204
    assert (await req("DELETE", f"/demands/{demand}"))[0] == 404
    assert (await prov("DELETE", f"/offers/{offer}"))[0] == 204
    assert (await prov("DELETE", f"/offers/{offer}"))[0] == 410
    assert (await prov("DELETE", f"/offers/{'0' * 32}-{ZEROS}"))[0] == 404


async def test_a_rejection_reaches_the_other_side(town: Any, flow: Any) -> None:
    alice, bob, req, prov = flow
    offer, demand = await bob.offer(), await alice.demand()
    initial = (await alice.next_proposal(demand)).proposal
    mine = await alice.api.counter_as_requestor(demand, initial.proposal_id, town.demand_properties(), "()")
    draft = (await bob.next_proposal(offer)).proposal
    at = f"/offers/{offer}/proposals/{draft.proposal_id}/reject"
    status, refused = await prov("POST", at, raw=b"{}", Content_Type="text/plain")
    assert (status, refused["message"]) == (400, "Content type error")
    reason = {"message": "No capacity", "golem.proposal.rejection.is-final": False}
    assert (await prov("POST", at, reason))[0] == 204
    status, [event] = await req("GET", f"/demands/{demand}/events?timeout=5")
    assert TIME.fullmatch(event.pop("eventDate"))
    assert event == {"eventType": "ProposalRejectedEvent", "proposalId": mine, "reason": reason}
    status, own = await req("GET", f"/demands/{demand}/proposals/{mine}")
    assert own["state"] == "Rejected"
    # it is over for both; saying so again is no error
    assert (await prov("POST", at, reason))[0] == 204
    status, _ = await prov(
        "POST",
        f"/offers/{offer}/proposals/{draft.proposal_id}",
        {"properties": town.OFFER, "constraints": town.OFFER_CONSTRAINTS},
    )
    assert status == 410


async def test_a_rejection_without_words(town: Any, flow: Any) -> None:
    alice, bob, req, prov = flow
    offer, demand = await bob.offer(), await alice.demand()
    initial = (await alice.next_proposal(demand)).proposal
    await alice.api.counter_as_requestor(demand, initial.proposal_id, town.demand_properties(), "()")
    draft = (await bob.next_proposal(offer)).proposal
    assert (await prov("POST", f"/offers/{offer}/proposals/{draft.proposal_id}/reject", None))[0] == 204
    _, [event] = await req("GET", f"/demands/{demand}/events?timeout=5")
    assert isinstance(event["reason"]["message"], str)


async def test_an_initial_proposal_can_be_rejected_and_then_not_countered(town: Any, flow: Any) -> None:
    alice, bob, req, _ = flow
    await bob.offer()
    demand = await alice.demand()
    initial = (await alice.next_proposal(demand)).proposal.proposal_id
    assert (await req("POST", f"/demands/{demand}/proposals/{initial}/reject", {"message": "too dear"}))[0] == 204
    body = {"properties": town.demand_properties(), "constraints": "()"}
    assert (await req("POST", f"/demands/{demand}/proposals/{initial}", body))[0] == 410
    valid_to = datetime.now(UTC) + timedelta(hours=1)
    assert (await req("POST", "/agreements", {"proposalId": initial, "validTo": valid_to}))[0] == 400


@pytest.mark.parametrize("side", ["demands", "offers"])
async def test_bad_requests(flow: Any, side: str) -> None:
    _, _, req, _ = flow
    assert (await req("POST", f"/{side}", raw=b"{bad"))[0] == 400
    status, refused = await req("POST", f"/{side}", {"properties": {}})
    assert status == 400
    assert "constraints" in refused["message"]
    assert (await req("POST", f"/{side}", {"constraints": "()"}))[0] == 400
    status, refused = await req(
        "POST", f"/{side}", {"properties": {"a": {"@tag": {}, "": 1}, "": 2}, "constraints": ""}
    )
    assert (status, refused["code"]) == (400, "bad_properties")
    unknown = f"{'0' * 32}-{ZEROS}"
    status, refused = await req("GET", f"/{side}/{unknown}/events?timeout=0")
    assert (status, refused["message"]) == (404, f"Subscription [{unknown}] not found. Could be unsubscribed.")
    body = {"properties": {}, "constraints": "()"}
    assert (await req("POST", f"/{side}/{unknown}/proposals/R-{ZEROS}", body))[0] == 404
    assert (await req("GET", f"/{side}/{unknown}/proposals/R-{ZEROS}"))[0] == 404
    assert (await req("GET", f"/{side}/{unknown}/proposals/nonsense"))[0] == 400


@pytest.mark.parametrize("constraints", ["", "()", "(a=*b)", "(&(a=1)", "(a~=1)", "(a==1)", "(&)", "(a=1) junk"])
async def test_any_constraint_may_be_published(flow: Any, constraints: str) -> None:
    _, _, req, _ = flow
    assert (await req("POST", "/demands", {"properties": {}, "constraints": constraints}))[0] == 201


async def test_a_constraint_that_does_not_parse_never_matches(flow: Any) -> None:
    alice, bob, _, _ = flow
    demand = await alice.demand("(&(golem.runtime.name=vm)")
    offer = await bob.offer()
    await bob.api.subscribe_offer({"golem.runtime.name": "vm"}, "(a=*b)")
    other = await alice.demand("()")
    assert (await alice.next_proposal(other)).proposal.properties["golem.node.id.name"] == "prov"
    assert alice.knows(offer)
    assert await alice.api.collect_demand_events(demand, timeout_s=0) == []
    assert await alice.api.collect_demand_events(other, timeout_s=0) == []


async def test_how_many_events(flow: Any) -> None:
    alice, _, req, _ = flow
    demand = await alice.demand()
    for text in ("0", "101", "-1", "x"):
        assert (await req("GET", f"/demands/{demand}/events?timeout=0&maxEvents={text}"))[0] == 400
    assert await req("GET", f"/demands/{demand}/events?timeout=0&maxEvents=100") == (200, [])
    assert (await req("GET", f"/demands/{demand}/events?timeout=soon"))[0] == 400


async def test_agreement_ids(flow: Any) -> None:
    _, _, req, _ = flow
    status, refused = await req("GET", "/agreements/not-hex")
    assert status == 400
    assert "contains non hexadecimal characters" in refused["message"]
    assert (await req("GET", f"/agreements/{ZEROS}"))[0] == 404
    assert (await req("GET", "/agreements/abc"))[0] == 400
    body = {"proposalId": f"R-{ZEROS}", "validTo": "2999-01-01T00:00:00Z"}
    assert (await req("POST", "/agreements", body))[0] == 400


async def test_a_pending_poll_ends_with_its_subscription(town: Any, flow: Any) -> None:
    alice, bob, req, prov = flow
    demand, offer = await alice.demand("(never=1)"), await bob.offer()
    polls = [
        town.start(req("GET", f"/demands/{demand}/events?timeout=30")),
        town.start(prov("GET", f"/offers/{offer}/events?timeout=30")),
    ]
    await town.eventually(lambda: demand in alice.market.core.pulses._waiting)
    await town.eventually(lambda: offer in bob.market.core.pulses._waiting)
    await alice.api.unsubscribe_demand(demand)
    await bob.api.unsubscribe_offer(offer)
    for ended, (status, refused) in zip((demand, offer), await asyncio.gather(*polls), strict=True):
        assert (status, refused["message"]) == (404, f"Subscription [{ended}] not found. Could be unsubscribed.")
    # the original answers so for offers that were withdrawn before
    assert await prov("GET", f"/offers/{offer}/events?timeout=0") == (200, [])
    body = {"properties": {}, "constraints": "()"}
    assert (await prov("POST", f"/offers/{offer}/proposals/P-{ZEROS}", body))[0] == 410


async def test_own_offers_and_demands_never_match(town: Any) -> None:
    alone = await town.node("alone")
    await alone.offer()
    demand = await alone.demand()
    assert await alone.api.collect_demand_events(demand, timeout_s=0.05) == []


async def test_scan_by_poll(town: Any, flow: Any) -> None:
    alice, bob, req, prov = flow
    offer = await bob.offer()
    await bob.offer(**{"golem.runtime.name": "wasm"})
    await town.eventually(lambda: len(alice.market.core.book) == 2)
    status, scan = await req("POST", "/scan", {"type": "offer", "constraints": "(golem.runtime.name=vm)"})
    assert (status, scan) == (201, "0")
    status, [found] = await req("GET", f"/scan/{scan}/events?timeout=2&maxEvents=10")
    assert (found["offerId"], found["providerId"], found["properties"]) == (offer, bob.node_id, FLAT_OFFER)
    assert await req("GET", f"/scan/{scan}/events?timeout=0.02&maxEvents=10") == (200, [])
    assert (await prov("GET", f"/scan/{scan}/events?timeout=0"))[0] == 404  # not Bob's

    waiting = town.start(req("GET", f"/scan/{scan}/events?timeout=10"))
    late = await bob.offer()
    _, [found] = await waiting
    assert found["offerId"] == late

    status, everything = await req("POST", "/scan", {"type": "offer"})
    assert (status, everything) == (201, "1")
    assert await req("GET", f"/scan/{everything}/events?timeout=0&peerId={alice.node_id}") == (200, [])
    _, found = await req("GET", f"/scan/{everything}/events?timeout=0&peerId={bob.node_id}")
    assert len(found) == 3

    assert await req("DELETE", f"/scan/{scan}") == (204, None)
    status, refused = await req("DELETE", f"/scan/{scan}")
    assert (status, refused["message"]) == (404, f'Iterator with id "{scan}" not found')
    assert (await req("GET", f"/scan/{scan}/events?timeout=1"))[0] == 404


async def test_scan_of_demands_and_with_properties(town: Any, flow: Any) -> None:
    alice, bob, req, _ = flow
    demand = await alice.demand()
    _, scan = await req("POST", "/scan", {"type": "demand", "constraints": "(golem.node.debug.subnet=public)"})
    _, [found] = await req("GET", f"/scan/{scan}/events?timeout=0")
    assert (found["demandId"], found["requestorId"]) == (demand, alice.node_id)
    later = await alice.demand()
    _, [found] = await req("GET", f"/scan/{scan}/events?timeout=0")
    assert found["demandId"] == later

    offer = await bob.offer()
    await town.eventually(lambda: alice.knows(offer))
    _, scan = await req("POST", "/scan", {"type": "offer", "properties": {"golem": {"srv": {"comp": {"x": 1}}}}})
    assert await req("GET", f"/scan/{scan}/events?timeout=0") == (200, [])
    suits = {"golem": {"srv": {"comp": {"expiration": 2}}}}
    for says_enough in (suits, {}, None):  # clients that have nothing to say of themselves send an empty map
        _, scan = await req("POST", "/scan", {"type": "offer", "properties": says_enough})
        _, found = await req("GET", f"/scan/{scan}/events?timeout=0")
        assert len(found) == 1, says_enough


@pytest.mark.parametrize("body", [{"type": "bogus"}, {"type": "offer", "constraints": "(a=1"}, {"constraints": "()"}])
async def test_bad_scans(flow: Any, body: Any) -> None:
    _, _, req, _ = flow
    assert (await req("POST", "/scan", body))[0] == 400


async def test_scan_by_events(town: Any, flow: Any) -> None:
    from shem.wire.market import NewScan

    alice, bob, _, _ = flow
    first = await bob.offer()
    await town.eventually(lambda: alice.knows(first))
    scan = await alice.api.begin_scan(NewScan(type="offer", constraints="(golem.runtime.name=vm)"))
    stream = alice.api.watch_offers(scan)
    assert (await anext(stream)).offer_id == first
    second = await bob.offer()
    assert (await anext(stream)).offer_id == second
    await alice.api.end_scan(scan)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    async with alice.http.session.get(
        alice.http.url(f"{ROOT}/scan/{await alice.api.begin_scan(NewScan(type='offer'))}/events"),
        headers={"Accept": "text/event-stream"},
    ) as answer:
        assert answer.content_type == "text/event-stream"
        assert await answer.content.readline() == b"event: offer\n"
        line = await answer.content.readline()
        assert msgspec.json.decode(line.removeprefix(b"data: "))["offerId"] in (first, second)
