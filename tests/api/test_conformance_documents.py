"""Debit notes, invoices, their events and payments, asked the same of our nodes and of the original daemon."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conversation import PAYMENT, ZERO_32, ZERO_AGREEMENT, ZERO_UUID, Conversation, Talks, moment
from tests.api.networks import PLATFORM
from tests.api.shapes import ALLOCATION, ANY, INVOICE, NOTE, document_event
from tests.api.test_conformance_activity import begin
from tests.api.test_conformance_allocations import ALLOCATIONS, allocate
from tests.api.test_conformance_allocations import released as released

pytestmark = pytest.mark.asyncio(loop_scope="session")
NOTES, INVOICES = f"{PAYMENT}/debitNotes", f"{PAYMENT}/invoices"
NOTE_EVENTS, INVOICE_EVENTS = f"{PAYMENT}/debitNoteEvents", f"{PAYMENT}/invoiceEvents"
NO_THANKS = {"rejectionReason": "BAD_SERVICE", "totalAmountAccepted": "0", "message": "it did not work"}


async def note(talk: Conversation, talks: Talks, total: str, **more: Any) -> str:
    """A debit note, issued and sent."""
    body = {"activityId": talks.activity, "totalAmountDue": total, **more}
    made = await talk("P", "POST", NOTES, body, gives=201, shape=NOTE)
    await talk("P", "POST", f"{NOTES}/{made['debitNoteId']}/send", gives=200, shape=None)
    return made["debitNoteId"]


async def invoice(talk: Conversation, talks: Talks, amount: str, *, send: bool = True) -> str:
    body = {"agreementId": talks.agreement, "amount": amount, "paymentDueDate": moment(3600)}
    made = await talk("P", "POST", INVOICES, body, gives=201, shape=INVOICE)
    if send:
        await talk("P", "POST", f"{INVOICES}/{made['invoiceId']}/send", gives=200, shape=None)
    return made["invoiceId"]


async def status(talk: Conversation, who: str, at: str, wanted: str) -> None:
    """The document's state, once it is there."""
    await talk.until(who, at, lambda answer: answer.status == 200 and answer.json["status"] == wanted)


async def test_a_debit_note(talk: Conversation) -> None:
    started = moment()
    talks = await begin(talk, "note")
    allocation = await allocate(talk)
    body = {
        "activityId": talks.activity,
        "totalAmountDue": "0.1",
        "usageCounterVector": [1.5, 2.0],
        "paymentDueDate": moment(3600),
    }
    made = await talk("P", "POST", NOTES, body, gives=201, shape=NOTE)
    assert (made["status"], made["totalAmountDue"], made["paymentPlatform"]) == ("ISSUED", "0.1", PLATFORM)
    assert (made["issuerId"], made["recipientId"]) == (talk.side("P").node_id, talk.side("R").node_id)
    assert (made["agreementId"], made["activityId"]) == (talks.agreement, talks.activity)
    assert made["usageCounterVector"] == [1.5, 2.0]
    assert "paymentDueDate" in made
    assert "previousDebitNoteId" not in made
    at = f"{NOTES}/{made['debitNoteId']}"
    await talk("R", "GET", at, gives=404)
    for _ in range(2):
        await talk("P", "POST", f"{at}/send", gives=200, shape=None)
    query = f"{NOTE_EVENTS}?timeout=10&afterTimestamp={started}"
    shape = [document_event("debitNote", "Received")]
    (event,) = await talk("R", "GET", f"{query}&appSessionId=note", gives=200, shape=shape)
    assert event["debitNoteId"] == made["debitNoteId"]
    theirs = await talk("R", "GET", at, gives=200, shape=NOTE)
    assert theirs["status"] == "RECEIVED"
    assert theirs | {"timestamp": "", "status": ""} == made | {"timestamp": "", "status": ""}
    second = await note(talk, talks, "0.3", paymentDueDate=moment(3600))
    following = await talk("R", "GET", f"{NOTES}/{second}", gives=200, shape=NOTE)
    assert following["previousDebitNoteId"] == made["debitNoteId"]
    accepted = {"totalAmountAccepted": "0.1", "allocationId": allocation}
    await refused_acceptances(talk, at, accepted)
    for _ in range(2):
        await talk("R", "POST", f"{at}/accept", accepted, gives=200, shape=None)
    await talk(
        "R", "POST", f"{NOTES}/{second}/accept?timeout=5&ack=true", accepted | {"totalAmountAccepted": "0.3"}, gives=200
    )
    for who in "RP":
        await status(talk, who, at, "ACCEPTED")
    spent = await talk("R", "GET", f"{ALLOCATIONS}/{allocation}", gives=200, shape=ALLOCATION)
    assert (spent["spentAmount"], spent["remainingAmount"]) == ("0.3", "4.7")
    shape = [document_event("debitNote", "Accepted")]
    first, later = await talk("P", "GET", f"{query}&appSessionId=pnote&maxEvents=100", gives=200, shape=shape)
    assert (first["debitNoteId"], later["debitNoteId"]) == (made["debitNoteId"], second)
    assert first["eventDate"] < later["eventDate"]
    query = f"{NOTE_EVENTS}?timeout=10&afterTimestamp={first['eventDate']}&appSessionId=pnote"
    assert await talk("P", "GET", query, gives=200, shape=shape) == [later]
    await not_offered(talk, at)


async def refused_acceptances(talk: Conversation, at: str, good: dict[str, str]) -> None:
    for body in (b"{bad", b"", b"null", b"{}", b'{"totalAmountAccepted":"0.1"}'):
        await talk("R", "POST", f"{at}/accept", body, gives=400)
    for change in (
        {"totalAmountAccepted": "0.2"},
        {"totalAmountAccepted": "x"},
        {"allocationId": ZERO_UUID},
        {"allocationId": "x"},
    ):
        await talk("R", "POST", f"{at}/accept", good | change, gives=400)
    await talk("R", "POST", f"{at}/accept?timeout=x", good, gives=400)
    for wrong in (ZERO_UUID, "nope"):
        await talk("R", "POST", at.rsplit("/", 1)[0] + f"/{wrong}/accept", good, gives=404)
    await talk("S", "POST", f"{at}/accept", good, gives=404)
    released_one = await allocate(talk, "1")
    await talk("R", "DELETE", f"{ALLOCATIONS}/{released_one}", gives=200)
    await talk("R", "POST", f"{at}/accept", good | {"allocationId": released_one}, gives="released-allocation")


async def not_offered(talk: Conversation, at: str) -> None:
    await talk("R", "POST", f"{at}/reject", NO_THANKS, gives=501)
    await talk("P", "POST", f"{at}/cancel", gives=501)
    for who in "RP":
        await talk(who, "GET", f"{at}/payments", gives=501)


async def test_notes_that_are_none(talk: Conversation) -> None:
    talks = await begin(talk, "nonotes")
    good = {"activityId": talks.activity, "totalAmountDue": "0.1"}
    for body in (b"{bad", b"", b"null", b"{}", b'{"activityId":"x"}', b'{"totalAmountDue":"1"}'):
        await talk("P", "POST", NOTES, body, gives=400)
    for change in ({"totalAmountDue": "x"}, {"paymentDueDate": "x"}):
        await talk("P", "POST", NOTES, good | change, gives=400)
    if talk.either("negative-note", True, False):
        await talk("P", "POST", NOTES, good | {"totalAmountDue": "-1"}, gives=400)
    if talk.either("odd-usage", True, False):
        for usage in ("x", {"a": 1}):
            await talk("P", "POST", NOTES, good | {"usageCounterVector": usage}, gives=400)
    for wrong in (ZERO_32, "nope"):
        await talk("P", "POST", NOTES, good | {"activityId": wrong}, gives="note-of-nothing")
    await talk("R", "POST", NOTES, good, gives=400)
    await note(talk, talks, "0.2")
    if talk.either("lowered-note", True, False):
        await talk("P", "POST", NOTES, good, gives=400)
    for wrong in (ZERO_UUID, "nope"):
        await talk("P", "POST", f"{NOTES}/{wrong}/send", gives=404)
    for who in "RS":
        await talk(who, "GET", f"{NOTES}/{ZERO_UUID}", gives=404)


async def test_an_invoice(talk: Conversation) -> None:
    started = moment()
    talks = await begin(talk, "invoice")
    allocation = await allocate(talk)
    await note(talk, talks, "0.3")
    good = {
        "agreementId": talks.agreement,
        "activityIds": [talks.activity],
        "amount": "0.5",
        "paymentDueDate": moment(3600),
    }
    await talk("P", "POST", INVOICES, good | {"amount": "0.2"}, gives=400)
    made = await talk("P", "POST", INVOICES, good, gives=201, shape=INVOICE)
    assert (made["status"], made["amount"], made["activityIds"]) == ("ISSUED", "0.5", [talks.activity])
    at = f"{INVOICES}/{made['invoiceId']}"
    await talk("R", "GET", at, gives=404)
    await talk("P", "POST", f"{at}/send", gives=200, shape=None)
    query = f"{INVOICE_EVENTS}?timeout=10&maxEvents=100&afterTimestamp={started}"
    shape = [document_event("invoice", "Received")]
    (event,) = await talk("R", "GET", f"{query}&appSessionId=invoice", gives=200, shape=shape)
    theirs = await talk("R", "GET", f"{INVOICES}/{event['invoiceId']}", gives=200, shape=INVOICE)
    assert theirs | {"timestamp": "", "status": ""} == made | {"timestamp": "", "status": ""}
    assert theirs["status"] == "RECEIVED"
    await talk("R", "GET", f"{query.replace('timeout=10', 'timeout=0.1')}&appSessionId=other", gives=200, shape=[])
    accepted = {"totalAmountAccepted": "0.5", "allocationId": allocation}
    await refused_acceptances(talk, at, accepted)
    for _ in range(2):
        await talk("R", "POST", f"{at}/accept", accepted, gives=200, shape=None)
    for who in "RP":
        await status(talk, who, at, "ACCEPTED")
    spent = await talk("R", "GET", f"{ALLOCATIONS}/{allocation}", gives=200, shape=ALLOCATION)
    assert (spent["spentAmount"], spent["remainingAmount"]) == ("0.5", "4.5")
    shape = [document_event("invoice", "Accepted")]
    (event,) = await talk("P", "GET", f"{query}&appSessionId=pinvoice", gives=200, shape=shape)
    assert event["invoiceId"] == made["invoiceId"]
    await talk("P", "POST", f"{at}/cancel", gives=409)
    for who in "RP":
        await talk(who, "GET", f"{at}/payments", gives=501)


async def test_an_invoice_of_nothing_is_settled_at_once(talk: Conversation) -> None:
    started = moment()
    talks = await talk.agree("free")
    made = await invoice(talk, talks, "0")
    accepted = {"totalAmountAccepted": "0", "allocationId": await allocate(talk, "1")}
    await talk("R", "POST", f"{INVOICES}/{made}/accept", accepted, gives=200, shape=None)
    for who in "RP":
        await status(talk, who, f"{INVOICES}/{made}", "SETTLED")
    query = f"{INVOICE_EVENTS}?timeout=10&afterTimestamp={started}&appSessionId=pfree"
    both = (document_event("invoice", "Accepted"), document_event("invoice", "Settled"))
    events = await talk("P", "GET", query, gives=200, shape=[both])
    assert [event["eventType"] for event in events] == ["InvoiceAcceptedEvent", "InvoiceSettledEvent"]
    assert events[0]["eventDate"] < events[1]["eventDate"]


async def test_a_rejected_invoice(talk: Conversation) -> None:
    started = moment()
    talks = await talk.agree("bad")
    at = f"{INVOICES}/{await invoice(talk, talks, '0.1')}"
    for body in (b"{bad", b"", b"null", b"{}", b'{"rejectionReason":"BAD_SERVICE"}'):
        await talk("R", "POST", f"{at}/reject", body, gives=400)
    await talk("R", "POST", f"{at}/reject", NO_THANKS | {"rejectionReason": "NO"}, gives=400)
    for wrong in (ZERO_UUID, "nope"):
        await talk("R", "POST", f"{INVOICES}/{wrong}/reject", NO_THANKS, gives=404)
    for _ in range(2):
        await talk("R", "POST", f"{at}/reject", NO_THANKS, gives=200, shape=None)
    for who in "RP":
        await status(talk, who, at, "REJECTED")
    query = f"{INVOICE_EVENTS}?timeout=10&afterTimestamp={started}&appSessionId=pbad"
    (event,) = await talk("P", "GET", query, gives=200, shape=[document_event("invoice", "Rejected")])
    rejection = event["rejection"]
    assert (rejection["rejectionReason"], rejection["message"]) == ("BAD_SERVICE", NO_THANKS["message"])


async def test_a_cancelled_invoice(talk: Conversation) -> None:
    started = moment()
    talks = await talk.agree("withdrawn")
    at = f"{INVOICES}/{await invoice(talk, talks, '0.1')}"
    await talk("P", "POST", f"{at}/cancel", gives=200, shape=None)
    for who in "RP":
        await status(talk, who, at, "CANCELLED")
    query = f"{INVOICE_EVENTS}?timeout=10&afterTimestamp={started}&appSessionId=withdrawn"
    kinds = (document_event("invoice", "Received"), document_event("invoice", "Cancelled"))
    events = await talk("R", "GET", query, gives=200, shape=[kinds])
    assert [event["eventType"] for event in events] == ["InvoiceReceivedEvent", "InvoiceCancelledEvent"]
    accepted = {"totalAmountAccepted": "0.1", "allocationId": await allocate(talk, "1")}
    await talk("R", "POST", f"{at}/accept", accepted, gives=400)


async def test_invoices_that_are_none(talk: Conversation) -> None:
    talks = await talk.agree("noinvoice")
    good = {"agreementId": talks.agreement, "amount": "0.5", "paymentDueDate": moment(3600)}
    for body in (b"{bad", b"", b"null", b"{}", b'{"amount":"1"}'):
        await talk("P", "POST", INVOICES, body, gives=400)
    for change in ({"amount": "x"}, {"paymentDueDate": "x"}):
        await talk("P", "POST", INVOICES, good | change, gives=400)
    await talk("P", "POST", INVOICES, good | {"agreementId": ZERO_AGREEMENT}, gives="invoice-of-nothing")
    await talk("P", "POST", INVOICES, good | {"agreementId": "nope"}, gives="invoice-nonsense-agreement")
    await talk("P", "POST", INVOICES, good | {"activityIds": ["nope"]}, gives="note-of-nothing")
    await talk("R", "POST", INVOICES, good, gives=400)
    for wrong in (ZERO_UUID, "nope"):
        await talk("P", "POST", f"{INVOICES}/{wrong}/send", gives=404)
        await talk("P", "POST", f"{INVOICES}/{wrong}/cancel", gives=404)
        await talk("R", "GET", f"{INVOICES}/{wrong}", gives=404)
    await invoice(talk, talks, "0.5", send=False)
    if talk.either("second-invoice", True, False):
        await talk("P", "POST", INVOICES, good, gives=409)


async def test_lists_of_documents(talk: Conversation) -> None:
    talks = await begin(talk, "lists")
    one = await note(talk, talks, "0.1")
    two = await invoice(talk, talks, "0.1")
    for who in "RP":
        for at, key, shape, mine in ((NOTES, "debitNoteId", NOTE, one), (INVOICES, "invoiceId", INVOICE, two)):
            listed = await talk(who, "GET", at, gives=200, shape=[shape])
            assert mine in [document[key] for document in listed]
            await talk(who, "GET", f"{at}?afterTimestamp={moment(60)}", gives=200, shape=[])
            assert len(await talk(who, "GET", f"{at}?maxItems=1", gives=200, shape=[shape])) == 1
            await talk(who, "GET", f"{at}?maxItems=0", gives=200, shape=[])
            for query in ("maxItems=x", "maxItems=-1", "afterTimestamp=x"):
                await talk(who, "GET", f"{at}?{query}", gives=400)
    for at in (NOTES, INVOICES):
        await talk("S", "GET", at, gives=200, shape=[])
    await talk("S", "GET", f"{NOTES}/{one}", gives=404)


@pytest.mark.parametrize("at", [NOTE_EVENTS, INVOICE_EVENTS])
async def test_the_queries_of_events(talk: Conversation, at: str) -> None:
    future = f"afterTimestamp={moment(600)}"
    for query in ("maxEvents=-1", "maxEvents=x", "afterTimestamp=x", "maxEvents=1&maxEvents=2"):
        await talk("R", "GET", f"{at}?timeout=0.1&{query}", gives=400)
    await talk("R", "GET", f"{at}?timeout=x", gives=400)
    for query in (
        f"timeout=0.1&{future}",
        f"timeout=0&maxEvents=0&{future}",
        f"timeout=0&maxEvents=100000&{future}",
    ):
        await talk("R", "GET", f"{at}?{query}", gives=200, shape=[])
    if talk.either("negative-timeout", True, False):
        await talk("R", "GET", f"{at}?timeout=-1&{future}", gives=200, shape=[])
    await talk("S", "GET", f"{at}?timeout=0.1", gives=200, shape=[])


async def test_events_by_header(talk: Conversation) -> None:
    started = moment()
    talks = await begin(talk, "headers")
    first = await note(talk, talks, "0.1")
    accepted = {"totalAmountAccepted": "0.1", "allocationId": await allocate(talk, "1")}
    await talk("R", "POST", f"{NOTES}/{first}/accept", accepted, gives=200)
    query = f"{NOTE_EVENTS}?timeout=0.3&afterTimestamp={started}"
    for who, session, header, words, kinds in (
        ("P", "pheaders", "X-Provider-Events", "ACCEPTED", ["Accepted"]),
        ("P", "pheaders", "X-Provider-Events", "REJECTED", []),
        ("R", "headers", "X-Requestor-Events", "RECEIVED", ["Received"]),
        ("R", "headers", "X-Requestor-Events", "RECEIVED,ACCEPTED", ["Received", "Accepted"]),
        ("R", "headers", "X-Requestor-Events", "CANCELLED", []),
    ):
        found = await talk(who, "GET", f"{query}&appSessionId={session}", headers={header: words}, gives=200, shape=ANY)
        assert [event["eventType"] for event in found] == [f"DebitNote{kind}Event" for kind in kinds], (header, words)


async def test_a_note_that_is_not_to_be_paid_yet(talk: Conversation) -> None:
    talks = await begin(talk, "later")
    allocation = await allocate(talk, "1")
    made = await note(talk, talks, "0.1")
    accepted = {"totalAmountAccepted": "0.1", "allocationId": allocation}
    await talk("R", "POST", f"{NOTES}/{made}/accept", accepted, gives=200, shape=None)
    spent = await talk("R", "GET", f"{ALLOCATIONS}/{allocation}", gives=200, shape=ALLOCATION)
    assert spent["spentAmount"] == talk.either("unpayable-note", "0.1", "0")


async def test_payments(talk: Conversation) -> None:
    at = f"{PAYMENT}/payments"
    for query in ("timeout=0.1", "timeout=0&maxEvents=5", "timeout=0&network=holesky&driver=erc20"):
        await talk("R", "GET", f"{at}?{query}", gives="payments-timeout")
    if talk.network.kind == "original":  # for five seconds, here as there
        await talk("S", "GET", at, gives=200, shape=[])
    await talk("R", "GET", f"{at}?afterTimestamp=x", gives=400)
    for wrong in (ZERO_UUID, "nope"):
        await talk("R", "GET", f"{at}/{wrong}", gives=404)
    await talk("R", "GET", f"{at}/status", gives=200, shape=list)
