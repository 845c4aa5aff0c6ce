"""Agreements and their events, asked the same of our nodes and of the original daemon."""

from __future__ import annotations

import asyncio

import pytest

from tests.api.conversation import MARKET, NO_CONTENT_TYPE, ZERO_AGREEMENT, Conversation, moment
from tests.api.shapes import (
    AGREEMENT,
    AGREEMENT_ENTRY,
    APPROVED,
    EMPTY,
    OPERATION,
    OVER,
    PROPOSAL,
    TERMINATED,
    proposal_event,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")
AGREEMENTS = f"{MARKET}/agreements"
EVENTS = f"{MARKET}/agreementEvents"
DONE = {"message": "done", "golem.requestor.code": "Success"}
VERBS = ("confirm", "wait", "cancel", "approve", "reject", "terminate")


async def test_proposals_that_make_no_agreement(talk: Conversation) -> None:
    talks = await talk.meet()
    for body in (b"{bad", b"", b"{}", b'{"proposalId":"x"}', b'{"proposalId":"x","validTo":"never"}'):
        await talk("R", "POST", AGREEMENTS, body, gives=400)
    for proposal in ("nope", f"R-{'0' * 64}", f"P-{'0' * 64}", talks.initial):
        await talk("R", "POST", AGREEMENTS, {"proposalId": proposal, "validTo": moment(60)}, gives=400)
    await talk.counter(talks)
    for proposal in (talks.initial, talks.counter):
        await talk("R", "POST", AGREEMENTS, {"proposalId": proposal, "validTo": moment(60)}, gives=400)


async def test_one_agreement_of_one_proposal(talk: Conversation) -> None:
    talks = await talk.negotiate()
    asked = {"proposalId": talks.final, "validTo": moment(60)}
    if talk.either("valid-to-past", True, False):
        await talk("R", "POST", AGREEMENTS, asked | {"validTo": moment(-60)}, gives=400)
    if talk.either("stranger-agreement", True, False):
        await talk("S", "POST", AGREEMENTS, asked, gives=400)
    talks.agreement = await talk("R", "POST", AGREEMENTS, asked, gives=200)
    await talk("R", "POST", AGREEMENTS, asked, gives=409)
    at = f"{talks.demand_at}/proposals/{talks.final}"
    assert (await talk("R", "GET", at, gives=200))["state"] == "Accepted"
    await talk("R", "POST", at, talk.wanted, gives="counter-after-agreement")


async def test_a_draft(talk: Conversation) -> None:
    talks = await talk.draft()
    at = talks.agreement_at
    agreement = await talk("R", "GET", at, gives=200, shape=AGREEMENT)
    assert agreement["state"] == "Proposal"
    assert (agreement["demand"]["demandId"], agreement["offer"]["offerId"]) == (talks.demand, talks.offer)
    assert agreement["demand"]["properties"] == talk.wanted["properties"]
    assert agreement["offer"]["properties"] == talk.offered["properties"]
    assert "approvedDate" not in agreement
    await talk("P", "GET", at, gives=404)
    await talk("S", "GET", at, gives=404)
    await talk("R", "POST", f"{at}/wait?timeout=0.1", gives=400)
    await talk("R", "POST", f"{at}/terminate", DONE, gives=409)
    await talk("R", "POST", f"{at}/approve", gives=404)
    await talk("R", "POST", f"{at}/reject", DONE, gives=404)
    await talk("R", "POST", f"{at}/cancel", DONE, gives="cancel-draft", shape=EMPTY)


async def test_ids_and_bodies(talk: Conversation) -> None:
    for wrong in ("nope", "0" * 63, f"R-{ZERO_AGREEMENT}"):
        await talk("R", "GET", f"{AGREEMENTS}/{wrong}", gives=400)
    await talk("R", "GET", f"{AGREEMENTS}/{ZERO_AGREEMENT}", gives=404)
    for verb in VERBS:
        body = {"message": "x"} if verb in ("cancel", "reject", "terminate") else ...
        gives = 400 if verb != "terminate" else "terminate-nonsense"
        await talk("R", "POST", f"{AGREEMENTS}/nope/{verb}", body, gives=gives)
        await talk("R", "POST", f"{AGREEMENTS}/{ZERO_AGREEMENT}/{verb}", body, gives=404)
    talks = await talk.propose()
    at = talks.agreement_at
    for verb in ("cancel", "terminate"):
        for body in (b"{bad", b"", b"[]", b'"x"', b'{"nomessage":1}'):
            await talk("R", "POST", f"{at}/{verb}", body, gives=400)
        await talk("R", "POST", f"{at}/{verb}", gives=400)
        await talk("R", "POST", f"{at}/{verb}", b'{"message":"x"}', headers=NO_CONTENT_TYPE, gives=400)
    await talk("P", "POST", f"{at}/reject", b'{"nomessage":1}', gives=400)
    for verb in ("confirm", "cancel", "wait"):
        await talk("P", "POST", f"{at}/{verb}", {"message": "not mine"}, gives=404)
    for verb in ("approve", "reject"):
        await talk("R", "POST", f"{at}/{verb}", {"message": "not mine"}, gives=404)
    for verb in ("confirm", "cancel", "terminate"):
        await talk("S", "POST", f"{at}/{verb}", {"message": "not mine"}, gives=404)
    await talk("S", "POST", f"{at}/wait?timeout=0.1", gives="stranger-wait")


async def test_pending(talk: Conversation) -> None:
    talks = await talk.propose("pending")
    at = talks.agreement_at
    for who in "RP":
        agreement = await talk(who, "GET", at, gives=200, shape=AGREEMENT)
        assert (agreement["state"], agreement.get("appSessionId")) == ("Pending", "pending" if who == "R" else None)
        await talk(who, "POST", f"{at}/terminate", DONE, gives=410)
    await talk("R", "POST", f"{at}/confirm", gives=410)
    await talk("R", "POST", f"{at}/wait?timeout=0.1", gives=408)


async def test_approved_and_terminated(talk: Conversation) -> None:
    started = moment()
    talks = await talk.agree("deal")
    at = talks.agreement_at
    await talk("R", "POST", f"{at}/wait?timeout=1", gives=204)
    for who, session in (("R", "deal"), ("P", "pdeal")):
        agreement = await talk(who, "GET", at, gives=200, shape=AGREEMENT)
        assert (agreement["state"], agreement["appSessionId"]) == ("Approved", session)
        assert "approvedDate" in agreement
        for signature in ("proposedSignature", "approvedSignature", "committedSignature"):
            assert (agreement[signature] == "NoSignature") is talk.either("signatures", False, True)
        query = f"{EVENTS}?timeout=10&afterTimestamp={started}"
        (event,) = await talk(who, "GET", f"{query}&appSessionId={session}", gives=200, shape=[APPROVED])
        assert event["agreementId"] == talks.agreement
    for who, verb in (("P", "approve"), ("P", "reject"), ("R", "cancel"), ("R", "confirm")):
        await talk(who, "POST", f"{at}/{verb}", {"message": "too late"}, gives=410)
    await talk("S", "POST", f"{at}/terminate", DONE, gives=404)
    after = event["eventDate"]
    reason = {"message": "enough", "golem.provider.code": "Success", "more": {"keys": [1]}}
    async with asyncio.TaskGroup() as group:
        query = f"{EVENTS}?timeout=20&afterTimestamp={moment()}&appSessionId=deal"
        poll = group.create_task(talk("R", "GET", query, gives=200, shape=[TERMINATED]))
        await talk("P", "POST", f"{at}/terminate", reason, gives=200, shape=EMPTY)
    (event,) = poll.result()
    assert (event["terminator"], event["reason"]) == ("Provider", reason)
    query = f"{EVENTS}?timeout=10&afterTimestamp={after}&appSessionId=pdeal"
    (event,) = await talk("P", "GET", query, gives=200, shape=[TERMINATED])
    assert event["terminator"] == "Provider"
    for who in "RP":
        await talk(who, "POST", f"{at}/terminate", DONE, gives=410)
        assert (await talk(who, "GET", at, gives=200, shape=AGREEMENT))["state"] == "Terminated"
    await talk("R", "POST", f"{at}/wait?timeout=0.1", gives=400)
    await talk("R", "GET", f"{at}/terminate/reason", gives="terminate-reason")
    # the pair is offered again
    await talk.event("R", talks, proposal_event(PROPOSAL))


@pytest.mark.parametrize("body", [b"null", b'{"message":"x"}'])
async def test_reasons_may_be_absent(talk: Conversation, body: bytes) -> None:
    session = f"brief{len(body)}"
    talks = await talk.agree(session)
    await talk("R", "POST", f"{talks.agreement_at}/terminate", body, gives=200, shape=EMPTY)
    _, event = await talk("R", "GET", f"{EVENTS}?timeout=5&appSessionId={session}", gives=200)
    assert event["eventType"] == "AgreementTerminatedEvent"
    if body != b"null":
        assert event["reason"] == {"message": "x"}
    else:
        assert bool(event.get("reason")) is talk.either("no-reason", True, False)


async def test_cancelled_while_waited_for(talk: Conversation) -> None:
    started = moment()
    talks = await talk.propose("cancelled")
    at = talks.agreement_at
    async with asyncio.TaskGroup() as group:
        group.create_task(talk("R", "POST", f"{at}/wait?timeout=50", gives=410))
        await asyncio.sleep(0.05)
        await talk("R", "POST", f"{at}/cancel", {"message": "changed my mind"}, gives=200, shape=EMPTY)
    query = f"{EVENTS}?timeout=10&afterTimestamp={started}"
    (event,) = await talk("R", "GET", f"{query}&appSessionId=cancelled", gives=200, shape=[OVER])
    assert (event["eventType"], event["reason"]) == ("AgreementCancelledEvent", {"message": "changed my mind"})
    events = await talk("P", "GET", query, gives=200, shape=[OPERATION])
    assert events[-1]["eventType"] == "AgreementCancelledEvent"
    for who, verb in (("P", "approve"), ("P", "reject"), ("R", "cancel"), ("R", "terminate"), ("R", "confirm")):
        await talk(who, "POST", f"{at}/{verb}", {"message": "too late"}, gives=410)
    await talk("R", "POST", f"{at}/wait?timeout=0.1", gives=410)


async def test_rejected(talk: Conversation) -> None:
    started = moment()
    talks = await talk.propose("rejected")
    at = talks.agreement_at
    reason = {"message": "not today", "golem.provider.code": "Busy"}
    async with asyncio.TaskGroup() as group:
        group.create_task(talk("R", "POST", f"{at}/wait?timeout=50", gives=410))
        await asyncio.sleep(0.05)
        await talk("P", "POST", f"{at}/reject", reason, gives=200, shape=EMPTY)
    query = f"{EVENTS}?timeout=10&afterTimestamp={started}&appSessionId=rejected"
    (event,) = await talk("R", "GET", query, gives=200, shape=[OVER])
    assert (event["eventType"], event["reason"]) == ("AgreementRejectedEvent", reason)
    assert (await talk("R", "GET", at, gives=200, shape=AGREEMENT))["state"] == "Rejected"
    for who, verb in (("P", "approve"), ("P", "reject"), ("R", "cancel"), ("R", "terminate")):
        await talk(who, "POST", f"{at}/{verb}", {"message": "too late"}, gives=410)


async def test_expired(talk: Conversation) -> None:
    talks = await talk.propose("expired", valid_s=1.0)
    at = talks.agreement_at
    if talk.either("wait-for-expired", True, False):
        await talk("R", "POST", f"{at}/wait?timeout=20", gives=410)
    else:
        await talk("R", "POST", f"{at}/wait?timeout=1.5", gives=408)
    assert (await talk("R", "GET", at, gives=200, shape=AGREEMENT))["state"] == "Expired"
    for who, verb in (("P", "approve"), ("P", "reject"), ("R", "cancel"), ("R", "terminate")):
        await talk(who, "POST", f"{at}/{verb}", {"message": "too late"}, gives=410)


async def test_lists(talk: Conversation) -> None:
    before = moment(-1)
    talks = await talk.agree("listed")
    after = moment(1)
    (entry,) = await talk("R", "GET", f"{AGREEMENTS}?appSessionId=listed", gives=200, shape=[AGREEMENT_ENTRY])
    assert (entry["id"], entry["role"]) == (talks.agreement, "Requestor")
    (entry,) = await talk("P", "GET", f"{AGREEMENTS}?appSessionId=plisted", gives=200, shape=[AGREEMENT_ENTRY])
    assert (entry["id"], entry["role"]) == (talks.agreement, "Provider")
    await talk("S", "GET", AGREEMENTS, gives=200, shape=[])
    for query, there in (
        ("", True),
        ("?state=Approved", True),
        ("?state=Terminated", False),
        (f"?afterDate={before}", True),
        (f"?afterDate={after}", False),
        (f"?beforeDate={after}", True),
        (f"?beforeDate={before}", False),
        (f"?afterDate={before}&beforeDate={after}&state=Approved", True),
        ("?appSessionId=other", False),
        ("?unknown=1", True),
    ):
        listed = await talk("R", "GET", AGREEMENTS + query, gives=200, shape=[AGREEMENT_ENTRY])
        assert (talks.agreement in [one["id"] for one in listed]) is there, query
    for query in ("?state=nope", "?state=approved", "?afterDate=x", "?beforeDate=2020-01-01T00:00:00"):
        await talk("R", "GET", AGREEMENTS + query, gives=400)


async def test_the_queries_of_events(talk: Conversation) -> None:
    started = moment()
    await talk.agree("asked")
    at = f"{EVENTS}?timeout=0.1"
    for query in (
        "maxEvents=0",
        "maxEvents=101",
        "maxEvents=x",
        "afterTimestamp=x",
        "afterTimestamp=2020-01-01T00:00:00",
    ):
        await talk("R", "GET", f"{at}&{query}", gives=400)
    await talk("R", "GET", f"{EVENTS}?timeout=x", gives=400)
    await talk("R", "GET", f"{EVENTS}?timeout=-1&afterTimestamp={moment(60)}", gives=200, shape=[])
    await talk("R", "GET", f"{at}&afterTimestamp={started}&appSessionId=asked", gives=200, shape=[APPROVED])
    await talk("R", "GET", f"{at}&afterTimestamp={started}&appSessionId=other", gives=200, shape=[])
    (one,) = await talk("R", "GET", f"{at}&maxEvents=1&afterTimestamp={started}", gives=200, shape=[APPROVED])
    offset = one["eventDate"].replace("Z", "%2B00:00")
    await talk("R", "GET", f"{at}&afterTimestamp={offset}", gives=200, shape=[])
    await talk("S", "GET", at, gives=200, shape=[])


async def test_confirming_what_nobody_sees(talk: Conversation) -> None:
    talks = await talk.negotiate()
    await talk("P", "DELETE", talks.offer_at, gives=204)
    asked = {"proposalId": talks.final, "validTo": moment(60)}
    talks.agreement = await talk("R", "POST", AGREEMENTS, asked, gives=200)
    await talk("R", "POST", f"{talks.agreement_at}/confirm", gives="confirm-withdrawn")
