"""What a hostile peer may say, and what it gets for it. Mallory speaks the protocol by hand."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from shem.errors import Conflict, NotFound, PeerFailed, Refused
from shem.node.payment.protocol import (
    AcceptanceMessage,
    CancellationMessage,
    InvoiceMessage,
    NoteMessage,
    PaymentMessage,
    PaymentPart,
    RejectionMessage,
    Signed,
    method_of,
    seal,
)
from shem.node.payment.provider import RefusedByRequestor
from shem.node.payment.settlement import MAX_OPEN_CLAIMS
from shem.terms.pricing import LinearPricing

TGLM = 10**18
PLATFORM = "testmoney-local-tglm"
PRICE = LinearPricing((Decimal("0.01"),), Decimal("0.1"), ("golem.usage.duration_sec",))


def note(issuer: Any, recipient: Any, deal: str, activity: str, amount: int = TGLM, **changes: Any) -> NoteMessage:
    fields: dict[str, Any] = {
        "issuer": issuer.id,
        "recipient": recipient.id,
        "document_id": str(uuid.uuid4()),
        "agreement_id": deal,
        "platform": PLATFORM,
        "payer": recipient.id,
        "payee": issuer.id,
        "amount": str(amount),
        "issued_at": 1,
        "activity_id": activity,
    }
    return NoteMessage(**fields | changes)


def invoice(issuer: Any, recipient: Any, deal: str, amount: int = TGLM, **changes: Any) -> InvoiceMessage:
    common = msgspec.structs.asdict(note(issuer, recipient, deal, "-", amount))
    for name in ("activity_id", "previous_id", "usage", "due_at"):
        del common[name]
    return InvoiceMessage(**common | {"activity_ids": [], "due_at": 2} | changes)


async def say(sender: Any, receiver: Any, kind: str, message: Any, signer: Any = None) -> None:
    signed = seal(kind, message, (signer or sender).identity)
    await sender.network.call(receiver.id, method_of(kind), msgspec.msgpack.encode(signed))


async def test_honest_note_by_hand_is_taken(world, alice, mallory):
    """The control: what follows is refused for what is wrong with it, not for how it is sent."""
    deal = world.deals.make(alice.id, mallory.id)
    message = note(mallory, alice, deal, world.deals.activity(deal))
    await say(mallory, alice, "debit-note", message)
    await say(mallory, alice, "debit-note", message)
    assert alice.state(message.document_id) == "RECEIVED"
    assert alice.events("debit-note") == ["Received"]


async def test_wrong_notes_are_refused(world, alice, bob, mallory):
    deal = world.deals.make(alice.id, mallory.id, pricing=PRICE)
    activity = world.deals.activity(deal)
    others = world.deals.make(alice.id, bob.id)
    others_activity = world.deals.activity(others)
    unapproved = world.deals.make(alice.id, mallory.id, approved=False)
    reverse = world.deals.make(mallory.id, alice.id)
    elsewhere = world.deals.make(alice.id, mallory.id, platform="erc20-mainnet-glm")
    wrong = {
        "other's agreement → document_mismatch": note(mallory, alice, others, others_activity),
        "other's activity → document_mismatch": note(mallory, alice, deal, others_activity),
        "no activity → document_mismatch": note(mallory, alice, deal, "0" * 32),
        "no agreement → not_found": note(mallory, alice, "0" * 64, activity),
        "not approved → no_deal": note(mallory, alice, unapproved, world.deals.activity(unapproved)),
        "roles the other way → document_mismatch": note(mallory, alice, reverse, world.deals.activity(reverse)),
        "platform of nobody here → unknown_platform": note(
            mallory, alice, elsewhere, world.deals.activity(elsewhere), platform="erc20-mainnet-glm"
        ),
        "other payer → document_mismatch": note(mallory, alice, deal, activity, payer=bob.id),
        "other payee → document_mismatch": note(mallory, alice, deal, activity, payee=bob.id),
        "other platform → document_mismatch": note(mallory, alice, deal, activity, platform="free"),
        "other issuer → bad_payment_message": note(bob, alice, deal, activity),
        "other recipient → bad_payment_message": note(mallory, bob, deal, activity),
        "more than its own usage costs → over_billed": note(mallory, alice, deal, activity, usage=[10.0]),
        "usage of other counters → bad_usage": note(mallory, alice, deal, activity, usage=[1.0, 2.0]),
        "nan → bad_usage": note(mallory, alice, deal, activity, usage=[float("nan")]),
        "more than there is → bad_payment_message": note(mallory, alice, deal, activity, amount=1 << 96),
        "negative → bad_payment_message": note(mallory, alice, deal, activity, amount=-1),
    }
    for why, message in wrong.items():
        with pytest.raises(Refused) as caught:
            await say(mallory, alice, "debit-note", message)
        assert caught.value.code == why.split(" → ")[1], why
        assert alice.state(message.document_id) == "", why
        assert bob.state(message.document_id) == "", why
    assert alice.events("debit-note") == []
    assert alice.account(deal) is None


async def test_signatures_count(world, alice, bob, mallory):
    deal = world.deals.make(alice.id, mallory.id)
    message = note(mallory, alice, deal, world.deals.activity(deal))
    with pytest.raises(Refused) as caught:
        await say(mallory, alice, "debit-note", message, signer=bob)
    assert caught.value.code == "bad_signature"
    sealed = seal("invoice", message, mallory.identity)  # right key, another purpose
    with pytest.raises(Refused):
        await mallory.network.call(alice.id, "payment.debit-note", msgspec.msgpack.encode(sealed))
    with pytest.raises(Refused):
        await mallory.network.call(alice.id, "payment.debit-note", b"\xc1garbage")
    with pytest.raises(Refused):
        await mallory.network.call(alice.id, "payment.debit-note", msgspec.msgpack.encode(Signed(b"\x80", b"x" * 65)))
    assert alice.events("debit-note") == []


async def test_someone_elses_signed_note_cannot_be_passed_on(world, alice, bob, mallory):
    deal = world.deals.make(alice.id, bob.id)
    activity = world.deals.activity(deal)
    signed = seal("debit-note", note(bob, alice, deal, activity), bob.identity)
    with pytest.raises(Refused):
        await mallory.network.call(alice.id, "payment.debit-note", msgspec.msgpack.encode(signed))


async def test_same_id_with_other_content(world, alice, bob, mallory):
    deal = world.deals.make(alice.id, mallory.id)
    activity = world.deals.activity(deal)
    first = note(mallory, alice, deal, activity)
    await say(mallory, alice, "debit-note", first)
    with pytest.raises(Conflict):
        await say(mallory, alice, "debit-note", msgspec.structs.replace(first, amount=str(2 * TGLM)))
    # ... nor may anybody take an id that another provider's document has here
    theirs = world.deals.make(alice.id, bob.id)
    taken = note(bob, alice, theirs, world.deals.activity(theirs), document_id=first.document_id)
    with pytest.raises(Conflict):
        await say(bob, alice, "debit-note", taken)
    assert alice.document(first.document_id).amount == TGLM


async def test_totals_only_grow(world, alice, mallory):
    deal = world.deals.make(alice.id, mallory.id)
    one, two = world.deals.activity(deal), world.deals.activity(deal)
    await say(mallory, alice, "debit-note", note(mallory, alice, deal, one, 3 * TGLM))
    await say(mallory, alice, "debit-note", note(mallory, alice, deal, two, 2 * TGLM))
    with pytest.raises(Refused) as caught:
        await say(mallory, alice, "debit-note", note(mallory, alice, deal, one, 2 * TGLM))
    assert caught.value.code == "amount_lowered"
    with pytest.raises(Refused):
        await say(mallory, alice, "invoice", invoice(mallory, alice, deal, 4 * TGLM))
    await say(mallory, alice, "invoice", invoice(mallory, alice, deal, 5 * TGLM))
    with pytest.raises(Conflict):
        await say(mallory, alice, "invoice", invoice(mallory, alice, deal, 6 * TGLM))
    with pytest.raises(Conflict):
        await say(mallory, alice, "debit-note", note(mallory, alice, deal, two, 3 * TGLM))


async def test_over_billing_agent_hears_why(world, alice, bob):
    """Bob's own node refuses to issue a note above the price of the usage it claims; so does alice's."""
    deal = world.deals.make(alice.id, bob.id, pricing=PRICE)
    activity = world.deals.activity(deal, [100.0])
    with pytest.raises(Refused) as caught:
        bob.note(activity, "1.2", usage=[100.0])
    assert caught.value.code == "over_billed"
    fine = await bob.bill_note(activity, "1.1", usage=[100.0])
    audit = alice.payments.requestor.audit(alice.id, "debit-note", fine)
    assert (audit.claimed, audit.by_known_usage, audit.by_claimed_usage) == ("1.1", "1.1", "1.1")
    dear = await bob.bill(deal, "7")
    audit = alice.payments.requestor.audit(alice.id, "invoice", dear)
    assert (audit.claimed, audit.by_known_usage, audit.by_claimed_usage) == ("7", "1.1", "1.1")


async def test_document_that_the_requestors_node_refuses_fails_and_frees_its_amount(world, alice, bob):
    """An honest chain goes on after a note that the other node did not take."""
    deal = world.deals.make(alice.id, bob.id)
    activity = world.deals.activity(deal)
    note_id = bob.note(activity, "5")
    del world.deals._activities[activity]  # alice's node knows no such activity
    with pytest.raises(RefusedByRequestor) as caught:
        await bob.send("debit-note", note_id)
    assert caught.value.details["reason"] == "document_mismatch"
    assert bob.state(note_id) == "FAILED"
    world.deals._activities[activity] = deal
    await bob.bill_note(activity, "2")
    await bob.bill(deal, "2")


async def test_answers_of_others_and_wrong_amounts(world, alice, bob, mallory):
    deal = world.deals.make(alice.id, bob.id)
    document = await bob.bill(deal, "1")
    accept = AcceptanceMessage(
        issuer=mallory.id,
        recipient=bob.id,
        document_id=document,
        agreement_id=deal,
        amount=str(TGLM),
        accepted=str(TGLM),
        issued_at=1,
    )
    with pytest.raises(Refused):
        await say(mallory, bob, "acceptance", accept)
    with pytest.raises(Refused):
        await say(alice, bob, "acceptance", msgspec.structs.replace(accept, issuer=alice.id, amount="1"))
    with pytest.raises(Refused):
        await say(alice, bob, "acceptance", msgspec.structs.replace(accept, issuer=alice.id, document_id="none"))
    reject = RejectionMessage(
        issuer=mallory.id,
        recipient=bob.id,
        document_id=document,
        agreement_id=deal,
        reason="BAD_SERVICE",
        amount_accepted="0",
    )
    with pytest.raises(Refused):
        await say(mallory, bob, "rejection", reject)
    cancel = CancellationMessage(issuer=mallory.id, recipient=alice.id, document_id=document, agreement_id=deal)
    with pytest.raises(Refused):
        await say(mallory, alice, "cancellation", cancel)
    with pytest.raises(NotFound):
        await say(mallory, alice, "cancellation", msgspec.structs.replace(cancel, document_id="none"))
    assert (alice.state(document), bob.state(document)) == ("RECEIVED", "RECEIVED")


async def test_rejecting_after_accepting_comes_too_late(world, alice, bob, wait):
    deal = world.deals.make(alice.id, bob.id)
    allocation = await alice.allocate("5")
    document = await bob.bill(deal, "1")
    alice.accept("invoice", document, "1", allocation)
    await wait(lambda: bob.state(document) == "SETTLED")
    reject = RejectionMessage(
        issuer=alice.id,
        recipient=bob.id,
        document_id=document,
        agreement_id=deal,
        reason="BAD_SERVICE",
        amount_accepted="0",
    )
    with pytest.raises(Conflict):
        await say(alice, bob, "rejection", reject)
    assert bob.state(document) == "SETTLED"


def claim(sender: Any, receiver: Any, deal: str, tx: str, amount: int = TGLM, **changes: Any) -> PaymentMessage:
    fields: dict[str, Any] = {
        "issuer": sender.id,
        "recipient": receiver.id,
        "payment_id": str(uuid.uuid4()),
        "platform": PLATFORM,
        "payer": sender.id,
        "payee": receiver.id,
        "amount": str(amount),
        "tx_hash": tx,
        "parts": [PaymentPart(agreement_id=deal, amount=str(amount))],
    }
    return PaymentMessage(**fields | changes)


async def accepted_bill(world: Any, payer: Any, bob: Any, wait: Any, amount: str = "1") -> tuple[str, str]:
    deal = world.deals.make(payer.id, bob.id)
    allocation = await payer.allocate("5")
    document = await bob.bill(deal, amount)
    payer.accept("invoice", document, amount, allocation)
    await wait(lambda: bob.state(document) in ("ACCEPTED", "SETTLED"))
    return deal, document


async def test_one_transaction_cannot_settle_two_invoices(world, bob, mallory, wait):
    _, first = await accepted_bill(world, mallory, bob, wait)
    await wait(lambda: bob.state(first) == "SETTLED")
    [tx] = world.bank.transfers
    world.bank.balances[mallory.id] = 0
    second_deal = world.deals.make(mallory.id, bob.id)
    second = await bob.bill(second_deal, "1")
    accept = AcceptanceMessage(
        issuer=mallory.id,
        recipient=bob.id,
        document_id=second,
        agreement_id=second_deal,
        amount=str(TGLM),
        accepted=str(TGLM),
        issued_at=1,
    )
    await say(mallory, bob, "acceptance", accept)
    for hash_ in (tx, tx.upper().replace("0X", "0x"), "0x" + "00" * 32):
        message = claim(mallory, bob, second_deal, hash_)
        await say(mallory, bob, "payment", message)
        await wait(lambda pid=message.payment_id: state_of(bob, pid) == "refuted")
    assert bob.state(second) == "ACCEPTED"
    assert bob.account(second_deal).settled == 0


def state_of(node: Any, payment_id: str) -> str:
    found = node.payments.books.store.transfer(payment_id, node.id)
    return "" if found is None else found.state


async def test_two_claims_at_once_on_one_transaction(world, bob, mallory, wait):
    """Both are looked at at the same time; what they may share is decided in one place."""
    deals = [world.deals.make(mallory.id, bob.id) for _ in range(2)]
    for deal in deals:
        await bob.bill(deal, "1")
    transfer = world.bank.transfer("by-hand", mallory.id, bob.id, 3 * TGLM // 2)
    messages = [claim(mallory, bob, deal, transfer.tx_hash) for deal in deals]
    for message in messages:
        await say(mallory, bob, "payment", message)
    await wait(lambda: sorted(state_of(bob, m.payment_id) for m in messages) == ["final", "refuted"])
    assert sum(bob.account(deal).settled for deal in deals) == TGLM


async def test_other_peoples_transfers_cannot_be_claimed(world, alice, bob, mallory, wait):
    _, document = await accepted_bill(world, alice, bob, wait)
    await wait(lambda: bob.state(document) == "SETTLED")
    [tx] = world.bank.transfers
    deal = world.deals.make(mallory.id, bob.id)
    await bob.bill(deal, "1")
    with pytest.raises(Refused):  # the agreement says who pays
        await say(mallory, bob, "payment", claim(mallory, bob, deal, tx, payer=alice.id))
    posing = world.deals.make(mallory.id, bob.id, payer=alice.id)
    with pytest.raises(Refused):  # and it may not name anybody but the requestor
        bob.invoice(posing, "1")
    own = claim(mallory, bob, deal, tx)
    await say(mallory, bob, "payment", own)
    await wait(lambda: state_of(bob, own.payment_id) == "refuted")


async def test_wrong_claims_are_refused(world, alice, bob, mallory):
    deal, others = world.deals.make(mallory.id, bob.id), world.deals.make(alice.id, bob.id)
    await bob.bill(deal, "1")
    await bob.bill(others, "1")
    tx = "0x" + "11" * 32
    wrong = [
        claim(mallory, bob, others, tx),
        claim(mallory, bob, "0" * 64, tx),
        claim(mallory, bob, deal, tx, platform="free"),
        claim(mallory, bob, deal, tx, payee=alice.id),
        claim(mallory, bob, deal, tx, amount=2 * TGLM, parts=[PaymentPart(agreement_id=deal, amount="1")]),
    ]
    for message in wrong:
        with pytest.raises(Refused):
            await say(mallory, bob, "payment", message)
        assert state_of(bob, message.payment_id) == ""


async def test_a_peer_cannot_have_us_look_for_ever_many_payments(world, bob, mallory):
    world.bank.down = True  # nothing can be looked up
    deal = world.deals.make(mallory.id, bob.id)
    await bob.bill(deal, "1")
    for number in range(MAX_OPEN_CLAIMS):
        await say(mallory, bob, "payment", claim(mallory, bob, deal, f"0x{number:064x}", amount=1))
    with pytest.raises(PeerFailed) as caught:
        await say(mallory, bob, "payment", claim(mallory, bob, deal, "0x" + "ff" * 32, amount=1))
    assert caught.value.code == "too_many_claims"
    assert not isinstance(caught.value, Refused)  # an honest payer may say it again


async def test_claim_is_believed_only_once_final(world, alice, bob, wait):
    world.bank.final_at_once = False
    deal = world.deals.make(alice.id, bob.id)
    document = await bob.bill(deal, "1")
    allocation = await alice.allocate("5")
    alice.accept("invoice", document, "1", allocation)
    await wait(lambda: world.bank.transfers)
    [tx] = world.bank.transfers
    early = claim(alice, bob, deal, tx)
    await say(alice, bob, "payment", early)
    await wait(lambda: bob.state(document) == "ACCEPTED")
    assert state_of(bob, early.payment_id) == "claimed"
    world.bank.finalize()
    await wait(lambda: bob.state(document) == "SETTLED")


async def test_expired_allocation_pays_nothing(world, alice, bob, wait):
    from shem.node.payment.ledger import AllocationReleased

    deal = world.deals.make(alice.id, bob.id)
    document = await bob.bill(deal, "1")
    soon = datetime.fromtimestamp(datetime.now(UTC).timestamp() + 0.05, UTC)
    allocation = await alice.allocate("5", timeout=soon)
    assert alice.payments.allocations.reserved(alice.id, PLATFORM) == 5 * TGLM
    # The timer ends it, with nobody looking.
    row = "select released from payment_allocation where allocation_id = ?"
    await wait(lambda: alice.db.connection.execute(row, (allocation,)).fetchone()["released"])
    with pytest.raises(AllocationReleased):
        alice.accept("invoice", document, "1", allocation)
    with pytest.raises(NotFound):
        alice.payments.allocations.get(alice.id, allocation)
