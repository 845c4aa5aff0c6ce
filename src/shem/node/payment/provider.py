"""The provider's desk: issues debit notes and invoices for the owner's agent, sends them, and hears the answers."""

from __future__ import annotations

import secrets
import time
import uuid
from typing import TypedDict

import msgspec

from shem.errors import Conflict, NotFound, PeerFailed, Refused, ShemError
from shem.node.payment import ledger
from shem.node.payment.books import Books
from shem.node.payment.deal import Deal
from shem.node.payment.lifecycle import Fact, State
from shem.node.payment.protocol import (
    AcceptanceMessage,
    CancellationMessage,
    InvoiceMessage,
    NoteMessage,
    RejectionMessage,
    Signed,
    method_of,
    units,
)
from shem.node.payment.store import Document, Kind, Letter, from_us, to_us
from shem.terms.amounts import format_amount, parse_amount
from shem.terms.ids import NodeId
from shem.wire import payment as wire

MAX_ASKED_AGAIN = 1000
"""Unanswered documents that are sent again at a start, the newest."""


class NotBillable(Refused):
    """This caller provides nothing under that agreement."""

    default_code = "not_billable"


class WrongAnswer(Refused):
    """The answer does not belong to the document it names."""

    default_code = "answer_mismatch"


class RefusedByRequestor(Refused):
    """The requestor's node does not take the document, now or later; its words say why."""

    default_code = "refused_by_requestor"


class AlreadyAccepted(Conflict):
    """Too late to take it back."""

    default_code = "already_accepted"


class NoAnswerYet(PeerFailed):
    """The requestor's node has not answered; sending goes on by itself."""

    default_code = "requestor_unreachable"


class Failure(msgspec.Struct, frozen=True):
    """Why a document failed, as it is stored."""

    code: str
    message: str


class _Common(TypedDict):
    """The fields of a new document that come from the deal."""

    document_id: str
    issuer: str
    recipient: str
    agreement_id: str
    platform: str
    payer: str
    payee: str


class ProviderDesk:
    """Owner's documents to be paid."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._store = books.store

    def start(self) -> None:
        """Ask again for what is unanswered: the answer may have come when the database was another copy."""
        with self._books.db.transaction():
            for document in self._store.unanswered(MAX_ASKED_AGAIN):
                account = self._account(document)
                kind, said = document.kind, document.document_id
                if not self._store.is_posted(document.owner, kind, said, account.peer_id):
                    self._books.repost(
                        document.owner, account.peer_id, kind, document.payload, document.signature, said
                    )

    # --- for the agent ---

    def issue_note(self, owner: str, body: wire.NewDebitNote) -> Document:
        """The running total of an activity; it stays here until sent."""
        amount = parse_amount(body.total_amount_due)
        agreement_id = self._books.activities.agreement_of(body.activity_id)
        with self._books.write():
            deal = self._deal(agreement_id, owner, amount)
            if body.usage_counter_vector is not None and deal.pricing is not None:
                ledger.check_claim(deal.pricing, body.usage_counter_vector, amount)
            account = self._books.account(deal)
            chain = self._books.chain(body.activity_id, account)
            message = NoteMessage(
                **_billing(deal),
                amount=str(amount),
                issued_at=to_us(self._books.clock.now()),
                activity_id=body.activity_id,
                previous_id=chain.last_note_id,
                usage=body.usage_counter_vector,
                due_at=None if body.payment_due_date is None else to_us(body.payment_due_date),
            )
            self._books.save(*ledger.add_note(account, chain, message.document_id, amount))
            return self._file("debit-note", message, amount, message.due_at, body.activity_id)

    def issue_invoice(self, owner: str, body: wire.NewInvoice) -> Document:
        """The final sum of an agreement; it stays here until sent."""
        amount = parse_amount(body.amount)
        with self._books.write():
            deal = self._deal(body.agreement_id, owner, amount)
            for activity_id in body.activity_ids or ():
                if self._books.activities.agreement_of(activity_id) != deal.agreement_id:
                    raise NotBillable(f"{activity_id} is no activity of agreement {deal.agreement_id}")
            message = InvoiceMessage(
                **_billing(deal),
                amount=str(amount),
                issued_at=to_us(self._books.clock.now()),
                activity_ids=body.activity_ids or [],
                due_at=to_us(body.payment_due_date),
            )
            self._books.save(ledger.add_invoice(self._books.account(deal), amount))
            return self._file("invoice", message, amount, message.due_at, None)

    def _deal(self, agreement_id: str, owner: str, amount: int) -> Deal:
        deal = self._books.deal(agreement_id, owner)
        if deal.role != "Provider":
            raise NotBillable(f"you are the requestor of agreement {agreement_id}")
        self._books.check_price(deal, amount)
        return deal

    def _file(
        self,
        kind: Kind,
        message: NoteMessage | InvoiceMessage,
        amount: int,
        due_us: int | None,
        activity_id: str | None,
    ) -> Document:
        payload = msgspec.msgpack.encode(message)
        document = Document(
            owner=message.issuer,
            document_id=message.document_id,
            kind=kind,
            role="Provider",
            agreement_id=message.agreement_id,
            activity_id=activity_id,
            amount=amount,
            state=State.ISSUED,
            payload=payload,
            signature=self._books.signer.sign(method_of(kind), payload),
            created_at=self._books.now(),
            due_at=None if due_us is None else from_us(due_us),
        )
        self._store.save_document(document)
        return document

    async def send(self, owner: str, kind: Kind, document_id: str, timeout_s: float) -> None:
        """Hand the document to the requestor's node and wait until it has it.

        Raises :class:`NoAnswerYet` after ``timeout_s`` (sending goes on), :class:`RefusedByRequestor` when that node will
        not have it. Sending again is harmless.
        """
        document = self._books.document(kind, document_id, owner, "Provider")
        if document.state is State.ISSUED:
            peer = self._peer(document)
            with self._books.db.transaction():  # nothing is promised before the answer comes
                if not self._store.is_posted(owner, kind, document_id, peer):
                    self._books.repost(owner, peer, kind, document.payload, document.signature, document_id)

        def settled() -> Document | None:
            found = self._books.document(kind, document_id, owner)
            return None if found.state is State.ISSUED else found

        sent = await self._books.pulses.wait_for((owner, document_id), settled, timeout_s)
        if sent is None:
            raise NoAnswerYet("the requestor's node has not answered yet", hint="it is told as soon as it can be")
        if sent.state is State.FAILED:
            why = msgspec.json.decode(sent.failure or "{}", type=Failure)
            raise RefusedByRequestor(why.message, reason=why.code)

    async def cancel_invoice(self, owner: str, document_id: str, timeout_s: float) -> None:
        """Take an invoice back. The requestor's node decides whether it comes in time: :class:`AlreadyAccepted`."""
        document = self._books.document("invoice", document_id, owner, "Provider")
        if document.state in (State.ACCEPTED, State.SETTLED):
            raise AlreadyAccepted("Invoice already accepted by requestor")
        if document.state is State.CANCELLED:
            return
        peer = self._peer(document)
        with self._books.write():
            if document.state is State.ISSUED and not self._store.is_posted(owner, "invoice", document_id, peer):
                self._cancelled(document)
                return
            self._books.move(document, Fact.CANCELLED)
            if not self._store.is_posted(owner, "cancellation", document_id, peer):
                message = CancellationMessage(
                    issuer=owner, recipient=peer, document_id=document_id, agreement_id=document.agreement_id
                )
                self._books.post(owner, peer, "cancellation", message, document_id)

        def answered() -> State | None:
            if self._store.is_posted(owner, "cancellation", document_id, peer):
                return None
            return self._books.document("invoice", document_id, owner).state

        state = await self._books.pulses.wait_for((owner, document_id), answered, timeout_s)
        if state is None:
            raise NoAnswerYet("the requestor's node has not answered yet", hint="it is told as soon as it can be")
        if state is not State.CANCELLED:
            raise AlreadyAccepted("Invoice already accepted by requestor")

    def _peer(self, document: Document) -> str:
        return self._account(document).peer_id

    def _account(self, document: Document) -> ledger.Account:
        account = self._store.account(document.agreement_id, document.owner)
        if account is None:
            raise NotFound(f"agreement {document.agreement_id} has no account", code="document_not_found")
        return account

    # --- from the outbox ---

    def delivered(self, letter: Letter) -> None:
        """The requestor's node has a document, or has cancelled one."""
        if letter.kind in ("debit-note", "invoice"):
            self._fact(letter, Fact.DELIVERED)
        elif letter.kind == "cancellation":
            document = self._store.document(letter.document_id, letter.owner)
            if document is not None and document.state in (State.ISSUED, State.RECEIVED):
                self._cancelled(document)
        self._books.wake(letter.owner, letter.document_id)

    def refused(self, letter: Letter, error: ShemError) -> None:
        """The requestor's node will not have it. A refused cancellation leaves the invoice as it is."""
        if letter.kind in ("debit-note", "invoice"):
            self._fact(letter, Fact.REFUSED, msgspec.json.encode(Failure(error.code, error.message)).decode())
        self._books.wake(letter.owner, letter.document_id)

    def _fact(self, letter: Letter, fact: Fact, failure: str | None = None) -> None:
        document = self._store.document(letter.document_id, letter.owner)
        if document is None or (fact is Fact.REFUSED and document.state is not State.ISSUED):
            return
        document, changed = self._books.move(document, fact)
        if changed:
            self._store.save_document(msgspec.structs.replace(document, failure=failure))
            if fact is Fact.REFUSED:
                account = self._books.take_back(document, self._account(document))
                self._books.tell(document, account, "Failed")

    def _cancelled(self, document: Document) -> None:
        document, _ = self._books.move(document, Fact.CANCELLED)
        self._store.save_document(document)
        account = self._books.take_back(document, self._account(document))
        self._books.tell(document, account, "Cancelled")

    # --- from peers ---

    def receive_acceptance(self, message: AcceptanceMessage, signed: Signed) -> None:
        """The requestor owes a document. Where money is owed by voucher, one without a good one changes nothing."""
        with self._books.write():
            document, account = self._answered(message.document_id, message.recipient, message.issuer)
            if units(message.amount) != document.amount:
                raise WrongAnswer("the accepted amount is not the document's")
            _, changed = self._books.move(document, Fact.ACCEPTED)
            if not changed:
                return
            if document.activity_id is not None:
                result = ledger.accept_note(account, self._books.chain(document.activity_id, account), document.amount)
            else:
                result = ledger.accept_invoice(account, document.amount)
            self._books.take_voucher(account, message, result.drawn)
            self._books.accepted(document, result.account, result, answer=signed.payload, signature=signed.signature)

    def receive_rejection(self, message: RejectionMessage, signed: Signed) -> None:
        """The requestor will not pay an invoice."""
        with self._books.write():
            document, account = self._answered(message.document_id, message.recipient, message.issuer)
            if document.kind != "invoice":
                raise WrongAnswer("debit notes are accepted or not, never rejected")
            document, changed = self._books.move(document, Fact.REJECTED)
            if not changed:
                return
            self._store.save_document(
                msgspec.structs.replace(document, answer=signed.payload, answer_signature=signed.signature)
            )
            account = self._books.take_back(document, account)
            rejection = wire.Rejection(
                rejection_reason=message.reason,
                total_amount_accepted=format_amount(units(message.amount_accepted)),
                message=message.text,
            )
            self._books.tell(document, account, "Rejected", msgspec.json.encode(rejection))

    def _answered(self, document_id: str, owner: NodeId | str, peer: str) -> tuple[Document, ledger.Account]:
        document = self._store.document(document_id, owner)
        account = None if document is None else self._store.account(document.agreement_id, owner)
        if document is None or account is None or document.role != "Provider" or account.peer_id != peer:
            raise WrongAnswer("you have no such document of mine")
        return document, account


def _new_id() -> str:
    """A UUID that begins with the time (RFC 9562, version 7): documents of one moment lie beside each other in every
    table and index, on both nodes, and not each on a page of its own."""
    number = time.time_ns() // 1_000_000 << 80 | secrets.randbits(80)
    return str(uuid.UUID(int=number & ~(0xF << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62))


def _billing(deal: Deal) -> _Common:
    return {
        "document_id": _new_id(),
        "issuer": deal.owner,
        "recipient": deal.peer_id,
        "agreement_id": deal.agreement_id,
        "platform": deal.platform,
        "payer": deal.payer,
        "payee": deal.payee,
    }
