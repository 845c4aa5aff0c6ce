"""The payment API over HTTP, in the order, shapes and statuses that were recorded of the original daemon."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from shem.client.http import ApiClient
from shem.client.payment import PaymentApi
from shem.errors import Gone, MoneyShort
from shem.wire import payment as wire

PLATFORM = "testmoney-local-tglm"
NO_ID = "00000000-0000-0000-0000-000000000000"
NOTE_KEYS = {
    "debitNoteId", "issuerId", "recipientId", "payeeAddr", "payerAddr", "paymentPlatform", "timestamp", "agreementId",
    "activityId", "totalAmountDue", "paymentDueDate", "status",
}  # fmt: skip
INVOICE_KEYS = {
    "invoiceId", "issuerId", "recipientId", "payeeAddr", "payerAddr", "paymentPlatform", "timestamp", "agreementId",
    "activityIds", "amount", "paymentDueDate", "status",
}  # fmt: skip
ALLOCATION_KEYS = {
    "allocationId", "address", "paymentPlatform", "totalAmount", "spentAmount", "remainingAmount", "timestamp",
    "makeDeposit",
}  # fmt: skip


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


async def test_recorded_settlement(world, requestor, provider, alice, bob):
    started = now()
    deal = world.deals.make(alice.id, bob.id, sessions=("S1", "S2"))
    activity = world.deals.activity(deal)
    due = "2036-11-23T19:08:01.718738Z"
    _, allocation, _ = await requestor("POST", "/allocations", {"totalAmount": "5", "makeDeposit": False})
    alloc = allocation["allocationId"]

    status, first, kind = await provider(
        "POST", "/debitNotes", {"activityId": activity, "totalAmountDue": "0.1", "paymentDueDate": due}
    )
    assert (status, kind) == (201, "application/json")
    assert set(first) == NOTE_KEYS
    assert first | {"debitNoteId": "", "timestamp": ""} == {
        "debitNoteId": "",
        "issuerId": bob.id,
        "recipientId": alice.id,
        "payeeAddr": bob.id,
        "payerAddr": alice.id,
        "paymentPlatform": PLATFORM,
        "timestamp": "",
        "agreementId": deal,
        "activityId": activity,
        "totalAmountDue": "0.1",
        "paymentDueDate": due,
        "status": "ISSUED",
    }
    one = first["debitNoteId"]
    assert await provider("POST", f"/debitNotes/{one}/send") == (200, None, "application/json")
    _, second, _ = await provider(
        "POST", "/debitNotes", {"activityId": activity, "totalAmountDue": "0.3", "paymentDueDate": None}
    )
    assert second["previousDebitNoteId"] == one
    assert "paymentDueDate" not in second
    two = second["debitNoteId"]
    assert (await provider("POST", f"/debitNotes/{two}/send"))[0] == 200

    def accept(amount: str) -> dict[str, str]:
        return {"totalAmountAccepted": amount, "allocationId": alloc}

    status, error, _ = await requestor("POST", f"/debitNotes/{one}/accept", accept("0.2"))
    assert (status, error["message"]) == (400, "Invalid amount accepted")
    assert await requestor("POST", f"/debitNotes/{one}/accept", accept("0.1")) == (200, None, "application/json")
    status, seen, _ = await requestor("GET", f"/debitNotes/{one}")
    assert status == 200
    assert set(seen) == NOTE_KEYS
    assert (await requestor("POST", f"/debitNotes/{two}/accept", accept("0.3")))[0] == 200
    reject = {"rejectionReason": "BAD_SERVICE", "totalAmountAccepted": "0"}
    assert (await requestor("POST", f"/debitNotes/{two}/reject", reject))[0] == 501
    _, seen, _ = await requestor("GET", f"/allocations/{alloc}")
    assert (seen["totalAmount"], seen["spentAmount"], seen["remainingAmount"]) == ("5", "0.3", "4.7")

    wanted = [(one, "DebitNoteAcceptedEvent"), (one, "DebitNoteSettledEvent"), (two, "DebitNoteAcceptedEvent")]
    events = await follow(provider, f"/debitNoteEvents?appSessionId=S2&afterTimestamp={started}", 3)
    assert sorted((e["debitNoteId"], e["eventType"]) for e in events) == sorted(wanted)
    assert set(events[0]) == {"debitNoteId", "eventDate", "eventType"}

    bill = {"agreementId": deal, "amount": "0.2", "paymentDueDate": due}
    status, error, _ = await provider("POST", "/invoices", bill)
    lowered = "Requested amount for agreement cannot be lowered. Current amount requested: 0.3 Amount on invoice: 0.2"
    assert (status, error["message"]) == (400, lowered)
    status, made, _ = await provider("POST", "/invoices", bill | {"amount": "0.5"})
    assert status == 201
    assert set(made) == INVOICE_KEYS
    assert (made["status"], made["activityIds"], made["amount"]) == ("ISSUED", [], "0.5")
    invoice = made["invoiceId"]
    assert await provider("POST", f"/invoices/{invoice}/send") == (200, None, "application/json")
    path = f"/invoiceEvents?timeout=1&afterTimestamp={started}&maxEvents=100&appSessionId="
    status, events, _ = await requestor("GET", path + "S1")
    assert [(e["invoiceId"], e["eventType"]) for e in events] == [(invoice, "InvoiceReceivedEvent")]
    assert (await requestor("GET", f"/invoices/{invoice}"))[1]["status"] == "RECEIVED"
    assert (await requestor("GET", path.replace("timeout=1", "timeout=0.05") + "WRONG"))[1] == []
    assert (await requestor("POST", f"/invoices/{invoice}/accept", accept("0.4")))[0] == 400
    assert (await requestor("POST", f"/invoices/{invoice}/accept", accept("0.5")))[0] == 200
    assert await requestor("POST", f"/invoices/{invoice}/accept", accept("0.5")) == (200, None, "application/json")
    events = await follow(provider, f"/invoiceEvents?appSessionId=S2&afterTimestamp={started}", 2)
    assert [e["eventType"] for e in events] == ["InvoiceAcceptedEvent", "InvoiceSettledEvent"]
    assert (await provider("GET", f"/invoices/{invoice}"))[1]["status"] == "SETTLED"
    assert (await requestor("GET", f"/invoices/{invoice}"))[1]["status"] == "SETTLED"
    _, seen, _ = await requestor("GET", f"/allocations/{alloc}")
    assert (seen["spentAmount"], seen["remainingAmount"]) == ("0.5", "4.5")
    assert (await requestor("GET", f"/invoices/{invoice}/payments"))[0] == 501
    status, error, _ = await provider("POST", f"/invoices/{invoice}/cancel")
    assert (status, error["message"]) == (409, "Invoice already accepted by requestor")
    assert (await requestor("GET", "/payments/status"))[:2] == (200, [])


async def follow(caller: Any, path: str, count: int) -> list[Any]:
    """As agents do: long polls, moving the time on, until ``count`` events are there. Checks that time only grows."""
    found: list[Any] = []
    head, _, after = path.partition("&afterTimestamp=")
    async with asyncio.timeout(5):
        while len(found) < count:
            _, events, _ = await caller("GET", f"{head}&timeout=2&afterTimestamp={after}")
            assert all(event["eventDate"] > after for event in events)
            found += events
            after = found[-1]["eventDate"] if found else after
    times = [event["eventDate"] for event in found]
    assert times == sorted(set(times))
    return found


async def test_recorded_allocations(requestor, alice):
    full = {
        "allocationId": "", "totalAmount": "10", "spentAmount": "", "remainingAmount": "",
        "timestamp": "2026-11-23T18:56:50.328262Z", "timeout": "2056-11-24T18:56:50.328295Z", "makeDeposit": False,
        "address": alice.id, "paymentPlatform": PLATFORM,
    }  # fmt: skip
    status, made, kind = await requestor("POST", "/allocations", full)
    assert (status, kind) == (201, "application/json")
    assert made | {"allocationId": "", "timestamp": ""} == {
        "allocationId": "", "address": alice.id, "paymentPlatform": PLATFORM, "totalAmount": "10", "spentAmount": "0",
        "remainingAmount": "10", "timestamp": "", "timeout": "2056-11-24T18:56:50.328295Z", "makeDeposit": False,
    }  # fmt: skip
    one = made["allocationId"]
    status, bare, _ = await requestor("POST", "/allocations", {"totalAmount": "1.5", "makeDeposit": False})
    assert status == 201
    assert set(bare) == ALLOCATION_KEYS
    by_parts = {"totalAmount": "1.5", "makeDeposit": False, "paymentPlatform": {"driver": "testmoney"}}
    status, parts, _ = await requestor("POST", "/allocations", by_parts)
    assert (status, parts["paymentPlatform"]) == (201, PLATFORM)
    status, free, _ = await requestor("POST", "/allocations", by_parts | {"paymentPlatform": {"driver": "free"}})
    assert (status, free["paymentPlatform"]) == (201, "free")

    _, listed, _ = await requestor("GET", "/allocations")
    assert [a["allocationId"] for a in listed] == [a["allocationId"] for a in (made, bare, parts, free)]
    assert (await requestor("GET", f"/allocations?afterTimestamp={bare['timestamp']}&maxItems=1"))[1] == [parts]
    assert (await requestor("GET", f"/allocations/{one}"))[1] == made
    status, amended, _ = await requestor("PUT", f"/allocations/{one}", {"totalAmount": "12.5"})
    assert (status, amended) == (200, made | {"totalAmount": "12.5", "remainingAmount": "12.5"})
    status, amended, _ = await requestor("PUT", f"/allocations/{one}", full | {"totalAmount": "20"})
    assert (status, amended["totalAmount"], amended["timestamp"]) == (200, "20", made["timestamp"])

    key = f"golem.com.payment.platform.{PLATFORM}.address"
    version = {"key": "golem.com.payment.protocol.version", "value": "3"}
    assert await requestor("GET", f"/demandDecorations?allocationIds={one}") == (
        200,
        {
            "properties": [{"key": key, "value": alice.id}, version],
            "constraints": [f"({key}=*)", "(golem.com.payment.protocol.version>1)"],
        },
        "application/json",
    )
    two = bare["allocationId"]
    _, both, _ = await requestor("GET", f"/demandDecorations?allocationIds={one},{two}")
    assert both["constraints"][0] == f"(|\n  ({key}=*)\n  ({key}=*)\n)"
    assert len(both["properties"]) == 3
    assert (await requestor("GET", f"/demandDecorations?allocationIds={one}&allocationIds={two}"))[0] == 400
    assert (await requestor("GET", f"/demandDecorations?allocationIds={NO_ID}"))[0] == 404
    assert (await requestor("GET", f"/allocations/{NO_ID}"))[0] == 404
    assert (await requestor("GET", f"/allocations/{one}/orders"))[0] == 404

    assert await requestor("DELETE", f"/allocations/{two}") == (200, None, "application/json")
    status, error, _ = await requestor("DELETE", f"/allocations/{two}")
    assert (status, error["message"]) == (410, f"Allocation {two} has been already released")
    assert (await requestor("GET", f"/allocations/{two}"))[0] == 404
    assert (await requestor("PUT", f"/allocations/{two}", {"totalAmount": "1"}))[0] == 404
    assert (await requestor("DELETE", f"/allocations/{NO_ID}"))[0] == 404


@pytest.mark.parametrize(
    ("change", "type_", "instance"),
    [
        ({"paymentPlatform": "erc20-nope-tglm"}, "bad-payment-platform", None),
        ({"paymentPlatform": "testmoney-local-tGLM"}, "bad-payment-platform", None),
        ({"paymentPlatform": {"driver": "nope"}}, "bad-payment-platform", None),
        ({"timeout": "2020-01-01T00:00:00Z"}, "validation-error", "timeout-passed"),
        ({"totalAmount": "1000000"}, "validation-error", "insufficient-account-funds"),
        ({"totalAmount": "-1"}, "validation-error", None),
        ({"totalAmount": "much"}, "validation-error", None),
        ({"address": "0x" + "12" * 20}, "validation-error", None),
        ({"deposit": {"id": "1", "contract": "0x"}}, "validation-error", None),
    ],
)
async def test_allocation_problems(requestor, change, type_, instance):
    body = {"totalAmount": "1.5", "makeDeposit": False} | change
    status, problem, kind = await requestor("POST", "/allocations", body)
    assert (status, kind) == (400, "application/problem+json")
    assert problem["type"] == f"/payment-api/v1/allocations/{type_}"
    assert problem.get("instance") == (f"/payment-api/v1/allocations/validation-error/{instance}" if instance else None)
    assert problem["message"]
    assert problem["detail"]
    assert problem["requestBody"].items() >= body.items()
    assert (await requestor("GET", "/allocations"))[1] == []


async def test_bad_requests(requestor, alice):
    assert (await requestor("POST", "/allocations", {"totalAmount": "1.5"}))[0] == 400
    assert (await requestor("POST", "/allocations", raw="{nonsense"))[0] == 400
    assert (await requestor("POST", "/invoices", {"agreementId": "0" * 64, "amount": "1"}))[0] == 400
    later = {"agreementId": "0" * 64, "amount": "1", "paymentDueDate": "2030-01-01T00:00:00Z"}
    assert (await requestor("POST", "/invoices", later))[0] == 404
    assert (await requestor("POST", "/debitNotes", {"activityId": "no", "totalAmountDue": "1"}))[0] == 404
    for path in ("/invoices/nope", "/debitNotes/nope", "/payments/nope"):
        assert (await requestor("GET", path))[0] == 404
    for path in ("/invoiceEvents?timeout=soon", "/invoiceEvents?maxEvents=-1", "/debitNoteEvents?afterTimestamp=now"):
        assert (await requestor("GET", path))[0] == 400
    assert (await requestor("GET", "/payments?timeout=0.05"))[:2] == (200, [])
    assert (await requestor("GET", "/payments?timeout=0"))[:2] == (200, [])


async def test_funds_are_never_promised_twice(world, requestor, alice):
    """100 held: 60 and 40 are set aside, then nothing is left until something is released."""
    body = {"totalAmount": "60", "makeDeposit": False}
    _, first, _ = await requestor("POST", "/allocations", body)
    status, problem, _ = await requestor("POST", "/allocations", body)
    assert status == 400
    said = {k: problem[k] for k in ("requestedFunds", "availableFunds", "reservedFunds", "code")}
    assert said == {
        "requestedFunds": "60", "availableFunds": "40", "reservedFunds": "60", "code": "money_short_funds",
    }  # fmt: skip
    assert (await requestor("POST", "/allocations", body | {"totalAmount": "40"}))[0] == 201
    assert (await requestor("PUT", f"/allocations/{first['allocationId']}", {"totalAmount": "60.1"}))[0] == 400
    assert (await requestor("PUT", f"/allocations/{first['allocationId']}", {"totalAmount": "50"}))[0] == 200
    assert (await requestor("POST", "/allocations", body | {"totalAmount": "10"}))[0] == 201
    world.bank.down = True
    status, problem, _ = await requestor("POST", "/allocations", body | {"totalAmount": "0"})
    assert (status, problem["type"]) == (504, "/payment-api/v1/allocations/internal-error")


async def test_accounts_are_listed_at_once(requestor, provider, alice, bob):
    parts = {"platform": PLATFORM, "driver": "testmoney", "network": "local", "token": "tGLM"}
    _, send, _ = await requestor("GET", "/requestorAccounts")
    assert send[0] == parts | {"address": alice.id, "send": True, "receive": False}
    _, receive, _ = await provider("GET", "/providerAccounts")
    assert receive[0] == parts | {"address": bob.id, "send": False, "receive": True}
    assert [account["platform"] for account in send] == [PLATFORM, "free"]


async def test_event_headers_choose(world, requestor, provider, alice, bob, wait):
    deal = world.deals.make(alice.id, bob.id)
    invoice = await bob.bill(deal, "1")
    alice.accept("invoice", invoice, "1", await alice.allocate("5"))
    await wait(lambda: bob.state(invoice) == alice.state(invoice) == "SETTLED")
    path = "/invoiceEvents?timeout=0.05"

    async def types(caller: Any, **headers: str) -> list[str]:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return [event["eventType"] for event in (await caller("GET", path, headers=sent))[1]]

    assert await types(requestor) == ["InvoiceReceivedEvent"]
    assert await types(provider) == ["InvoiceAcceptedEvent", "InvoiceSettledEvent"]
    assert await types(requestor, X_Requestor_Events="ACCEPTED, settled") == [
        "InvoiceAcceptedEvent",
        "InvoiceSettledEvent",
    ]
    assert await types(requestor, X_Requestor_Events="") == []
    assert await types(provider, X_Provider_Events="RECEIVED,NEWER") == []


async def test_waiting_poll_is_woken_by_the_event(world, requestor, alice, bob):
    deal = world.deals.make(alice.id, bob.id)
    async with asyncio.TaskGroup() as group:
        polls = [group.create_task(requestor("GET", "/invoiceEvents?timeout=20")) for _ in range(3)]
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            invoice = await bob.bill(deal, "1")
            await asyncio.gather(*polls)
    for poll in polls:
        assert [event["invoiceId"] for event in poll.result()[1]] == [invoice]


async def test_rejection_travels(world, requestor, provider, alice, bob):
    deal = world.deals.make(alice.id, bob.id)
    invoice = await bob.bill(deal, "1")
    body = {"rejectionReason": "INCORRECT_AMOUNT", "totalAmountAccepted": "0.5", "message": "half of it"}
    assert await requestor("POST", f"/invoices/{invoice}/reject", body) == (200, None, "application/json")
    [event] = await follow(provider, "/invoiceEvents?&afterTimestamp=2020-01-01T00:00:00Z", 1)
    assert event["eventType"] == "InvoiceRejectedEvent"
    assert event["rejection"] == body
    accept = {"totalAmountAccepted": "1", "allocationId": await alice.allocate("5")}
    assert (await requestor("POST", f"/invoices/{invoice}/accept", accept))[0] == 400


async def test_the_other_role_has_no_say(world, requestor, provider, alice, bob):
    deal = world.deals.make(alice.id, bob.id)
    invoice = await bob.bill(deal, "1")
    accept = {"totalAmountAccepted": "1", "allocationId": await alice.allocate("5")}
    assert (await provider("POST", f"/invoices/{invoice}/accept", accept))[0] == 404
    assert (await requestor("POST", f"/invoices/{invoice}/send"))[0] == 404
    assert (await requestor("POST", f"/invoices/{invoice}/cancel"))[0] == 404
    body = {"agreementId": deal, "amount": "1", "paymentDueDate": "2030-01-01T00:00:00Z"}
    assert (await requestor("POST", "/invoices", body))[0] == 400


async def test_unreachable_requestor_is_504_and_told_later(world, provider, alice, bob):
    deal = world.deals.make(alice.id, bob.id)
    invoice = bob.invoice(deal, "1")
    await alice.stop()
    status, error, _ = await provider("POST", f"/invoices/{invoice}/send?timeout=0.05")
    assert (status, error["code"]) == (504, "requestor_unreachable")
    alice.bootstrap = [bob]
    await alice.start()
    assert (await provider("POST", f"/invoices/{invoice}/send?timeout=5"))[0] == 200


async def test_typed_client(world, requestor, provider, alice, bob):
    deal = world.deals.make(alice.id, bob.id, sessions=("S1", "S2"))
    activity = world.deals.activity(deal, [5.0])
    async with ApiClient(requestor.base, alice.id) as a, ApiClient(provider.base, bob.id) as b:
        rent, serve = PaymentApi(a), PaymentApi(b)
        allocation = await rent.create_allocation(wire.NewAllocation(total_amount="5", make_deposit=False))
        assert (await rent.allocation(allocation.allocation_id)) == allocation
        with pytest.raises(MoneyShort):
            await rent.create_allocation(wire.NewAllocation(total_amount="500", make_deposit=False))
        note = await serve.issue_debit_note(
            wire.NewDebitNote(
                activity_id=activity,
                total_amount_due="1",
                usage_counter_vector=[5.0],
                payment_due_date=allocation_due(),
            )
        )
        await serve.send_debit_note(note.debit_note_id)
        [heard] = await rent.debit_note_events(app_session_id="S1")
        assert heard.event_type == "DebitNoteReceivedEvent"
        assert (await rent.debit_note(heard.debit_note_id)).usage_counter_vector == [5.0]
        acceptance = wire.Acceptance(total_amount_accepted="1", allocation_id=allocation.allocation_id)
        await rent.accept_debit_note(note.debit_note_id, acceptance)
        invoice = await serve.issue_invoice(
            wire.NewInvoice(agreement_id=deal, amount="1.5", activity_ids=[activity], payment_due_date=allocation_due())
        )
        await serve.send_invoice(invoice.invoice_id)
        audit = await rent.audit("invoices", invoice.invoice_id)
        assert (audit.claimed, audit.known_usage, audit.by_known_usage) == ("1.5", {activity: [5.0]}, None)
        acceptance = wire.Acceptance(total_amount_accepted="1.5", allocation_id=allocation.allocation_id)
        await rent.accept_invoice(invoice.invoice_id, acceptance)
        got, after = [], None
        async with asyncio.timeout(5):
            while sum(float(payment.amount) for payment in got) < 1.5:
                got += await serve.settlements(after=after, app_session_id="S2", timeout_s=2)
                after = got[-1].timestamp if got else after
        assert {p.agreement_ids[0] for p in got} == {deal}
        assert [(list(p.amounts), p.amounts[deal]) for p in got] == [([deal], p.amount) for p in got]
        assert {p.role for p in got} == {"Provider"}
        assert await serve.settlements(app_session_id="S1", timeout_s=0) == []
        paid = await rent.payments(timeout_s=0)
        assert [p.payment_id for p in paid] == [p.payment_id for p in got]
        assert paid[0].activity_payments[0].activity_id == activity
        assert paid[-1].agreement_payments[0].allocation_id == allocation.allocation_id
        [status, _] = await rent.status()
        assert (status.amount, status.reserved) == ("98.5", "3.5")
        assert status.outgoing.confirmed == wire.AgreementSum(agreements_count=1, total_amount="1.5")
        assert (await serve.status())[0].incoming.accepted.total_amount == "1.5"
        assert [i.status for i in await rent.invoices()] == ["SETTLED"]
        assert [n.status for n in await serve.debit_notes()] == ["SETTLED"]
        await rent.release_allocation(allocation.allocation_id)
        with pytest.raises(Gone):
            await rent.release_allocation(allocation.allocation_id)


def allocation_due() -> datetime:
    return datetime(2030, 1, 1, tzinfo=UTC)
