"""The requestor's desk: takes documents in, and accepts or rejects them for the owner's agent.

What a document says is compared with the agreement before it is shown to anybody (safety); whether it is worth its
money is the agent's decision (willingness), for which :meth:`RequestorDesk.audit` gives the facts this node has.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from shem.errors import Conflict, NotFound, Refused
from shem.node.payment import ledger
from shem.node.payment.books import Books
from shem.node.payment.deal import Deal
from shem.node.payment.lifecycle import Fact, State
from shem.node.payment.protocol import (
    AcceptanceMessage,
    Billing,
    CancellationMessage,
    InvoiceMessage,
    NoteMessage,
    RejectionMessage,
    Signed,
    read_note,
    units,
)
from shem.node.payment.store import Document, Kind, from_us, to_us
from shem.terms.amounts import BadAmount, format_amount, parse_amount
from shem.wire import payment as wire


class WrongDocument(Refused):
    """The document contradicts the agreement it names."""

    default_code = "document_mismatch"


class DocumentConflict(Conflict):
    """Another document has this id."""

    default_code = "document_conflict"


class NotAcceptable(Refused):
    """The document does not wait for an answer."""

    default_code = "document_state"


class RequestorDesk:
    """Owner's documents to pay."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._store = books.store

    # --- from peers ---

    def receive_note(self, message: NoteMessage, signed: Signed) -> None:
        """A debit note came. Raises what its provider should hear."""
        amount = units(message.amount)
        with self._books.write():
            if self._seen(message, signed):
                return
            deal = self._check(message, amount)
            self._check_activity(message.activity_id, deal)
            if message.usage is not None and deal.pricing is not None:
                ledger.check_claim(deal.pricing, message.usage, amount)
            account = self._books.account(deal)
            account, chain = ledger.add_note(
                account, self._books.chain(message.activity_id, account), message.document_id, amount
            )
            self._books.save(account, chain)
            due_at = None if message.due_at is None else from_us(message.due_at)
            self._take_in("debit-note", message, signed, amount, due_at, account, message.activity_id)

    def receive_invoice(self, message: InvoiceMessage, signed: Signed) -> None:
        """An invoice came. Raises what its provider should hear."""
        amount = units(message.amount)
        with self._books.write():
            if self._seen(message, signed):
                return
            deal = self._check(message, amount)
            for activity_id in message.activity_ids:
                self._check_activity(activity_id, deal)
            account = ledger.add_invoice(self._books.account(deal), amount)
            self._books.save(account)
            self._take_in("invoice", message, signed, amount, from_us(message.due_at), account, None)

    def receive_cancellation(self, message: CancellationMessage, signed: Signed) -> None:
        """The provider takes an invoice back; :class:`Conflict` once it is accepted."""
        with self._books.write():
            document = self._books.document("invoice", message.document_id, message.recipient, "Requestor")
            account = self._store.account(document.agreement_id, document.owner)
            if account is None or account.peer_id != message.issuer:
                raise WrongDocument("the invoice is not yours")
            document, changed = self._books.move(document, Fact.CANCELLED)
            if changed:
                self._store.save_document(document)
                account = self._books.take_back(document, account)
                self._books.tell(document, account, "Cancelled")

    def _seen(self, message: Billing, signed: Signed) -> bool:
        known = self._store.document(message.document_id, message.recipient)
        if known is None:
            return False
        if known.payload != signed.payload:
            raise DocumentConflict(f"document {message.document_id} is known with other content")
        self._answer_again(known, message.issuer)
        return True

    def _answer_again(self, document: Document, peer: str) -> None:
        """A provider that sends what we have accepted has not heard of it, or has forgotten it."""
        said, owner = document.document_id, document.owner
        if (
            document.state not in (State.ACCEPTED, State.SETTLED)
            or not document.answer
            or not document.answer_signature
        ):
            return
        if not self._store.is_posted(owner, "acceptance", said, peer):
            self._books.repost(owner, peer, "acceptance", document.answer, document.answer_signature, said)

    def _check(self, message: Billing, amount: int) -> Deal:
        deal = self._books.deal(message.agreement_id, message.recipient)
        said = (message.issuer, message.platform, message.payer, message.payee)
        agreed = (deal.peer_id, deal.platform, deal.payer, deal.payee)
        if deal.role != "Requestor" or said != agreed:
            raise WrongDocument(
                f"agreement {deal.agreement_id} has {deal.payer} pay {deal.payee} on {deal.platform}",
                hint="bill whom you have an agreement with, on the platform it names",
            )
        self._books.check_price(deal, amount)
        return deal

    def _check_activity(self, activity_id: str, deal: Deal) -> None:
        try:
            belongs = self._books.activities.agreement_of(activity_id) == deal.agreement_id
        except NotFound:
            belongs = False
        if not belongs:
            raise WrongDocument(f"{activity_id} is no activity of agreement {deal.agreement_id}")

    def _take_in(
        self,
        kind: Kind,
        message: Billing,
        signed: Signed,
        amount: int,
        due_at: datetime | None,
        account: ledger.Account,
        activity_id: str | None,
    ) -> None:
        document = Document(
            owner=message.recipient,
            document_id=message.document_id,
            kind=kind,
            role="Requestor",
            agreement_id=message.agreement_id,
            activity_id=activity_id,
            amount=amount,
            state=State.RECEIVED,
            payload=signed.payload,
            signature=signed.signature,
            created_at=self._books.now(),
            due_at=due_at,
        )
        self._store.save_document(document)
        self._books.tell(document, account, "Received")

    # --- for the agent ---

    def accept(self, owner: str, kind: Kind, document_id: str, body: wire.Acceptance) -> None:
        """Owe the document: its growth is drawn from the allocation, ordered where it is payable, and the provider told.

        Accepting again changes nothing. Raises :class:`~ledger.WrongAmount`, :class:`NotAcceptable`,
        :class:`~ledger.WrongAllocation`, :class:`~ledger.AllocationReleased`, :class:`~ledger.AllocationShort`; where
        money is owed by voucher, also :class:`~shem.node.payment.channel.CoverShort` and
        :class:`~shem.node.payment.channel.NoChannel`: then try again soon. Without a key: :class:`~shem.errors.KeyLocked`.
        """
        with self._books.write():
            document = self._books.document(kind, document_id, owner, "Requestor")
            if self._amount(body.total_amount_accepted) != document.amount:
                raise ledger.WrongAmount("Invalid amount accepted")
            if document.state in (State.ACCEPTED, State.SETTLED):
                return
            if document.state is not State.RECEIVED:
                raise NotAcceptable(f"the {kind} is {document.state.lower()}")
            self._books.must_sign()  # the plain reason, before all that may be lacking, too
            allocation = self._store.allocation(body.allocation_id, owner)
            if allocation is None:
                raise ledger.WrongAllocation(f"Allocation {body.allocation_id} not found")
            account = self._store.account(document.agreement_id, owner)
            if account is None:
                raise NotAcceptable(f"the {kind} belongs to no account")
            if document.activity_id is not None:
                chain = self._books.chain(document.activity_id, account)
                result = ledger.accept_note(account, chain, document.amount)
            else:
                result = ledger.accept_invoice(account, document.amount)
            allocation, account = ledger.draw(allocation, result.account, result.drawn, self._books.clock.now())
            self._store.save_allocation(allocation)
            if document.due_at is not None:
                account, due = ledger.schedule(account)
                if due:
                    self._store.add_due(account, document.activity_id, due, self._pay_from(account, document.due_at))
                    self._books.db.after_commit(self._books.wake_settler)
            message = AcceptanceMessage(
                issuer=owner,
                recipient=account.peer_id,
                document_id=document_id,
                agreement_id=document.agreement_id,
                amount=str(document.amount),
                accepted=str(account.accepted),
                issued_at=to_us(self._books.clock.now()),
                voucher=self._books.voucher(account, result.drawn),
            )
            payload, signature = self._books.post(owner, account.peer_id, "acceptance", message, document_id)
            self._books.accepted(document, account, result, answer=payload, signature=signature)

    def _pay_from(self, account: ledger.Account, due_at: datetime) -> datetime:
        platform = self._books.platforms.get(account.platform)
        ahead_s = None if platform is None else platform.pay_ahead_s
        now = self._books.clock.now()
        return now if ahead_s is None else max(now, due_at - timedelta(seconds=ahead_s))

    def reject_invoice(self, owner: str, document_id: str, body: wire.Rejection) -> None:
        """Refuse to pay, and tell the provider why. Rejecting again changes nothing."""
        with self._books.write():
            document = self._books.document("invoice", document_id, owner, "Requestor")
            if document.state is State.REJECTED:
                return
            if document.state is not State.RECEIVED:
                raise NotAcceptable(f"the invoice is {document.state.lower()}")
            amount = self._amount(body.total_amount_accepted)
            account = self._store.account(document.agreement_id, owner)
            if account is None:
                raise NotAcceptable("the invoice belongs to no account")
            message = RejectionMessage(
                issuer=owner,
                recipient=account.peer_id,
                document_id=document_id,
                agreement_id=document.agreement_id,
                reason=body.rejection_reason,
                amount_accepted=str(amount),
                text=body.message,
            )
            payload, signature = self._books.post(owner, account.peer_id, "rejection", message, document_id)
            document, _ = self._books.move(document, Fact.REJECTED)
            self._store.save_document(msgspec.structs.replace(document, answer=payload, answer_signature=signature))
            account = self._books.take_back(document, account)
            self._books.tell(document, account, "Rejected", msgspec.json.encode(body))
            self._books.db.after_commit(self._books.wake_settler)

    def audit(self, owner: str, kind: Kind, document_id: str) -> wire.Audit:
        """What this node knows about a document."""
        document = self._books.document(kind, document_id, owner, "Requestor")
        deal = self._books.deal(document.agreement_id, owner)
        known = {a: list(self._books.activities.usage(a)) for a in self._activities_of(document)}
        claimed = {a: u for a in known if (u := self._last_usage(a, document)) is not None}
        return wire.Audit(
            claimed=format_amount(document.amount),
            known_usage=known,
            by_known_usage=_price(deal, [u for u in known.values() if u]),
            by_claimed_usage=_price(deal, list(claimed.values())) if len(claimed) == len(known) else None,
        )

    def _activities_of(self, document: Document) -> Sequence[str]:
        if document.activity_id is not None:
            return [document.activity_id]
        return self._books.activities.of_agreement(document.agreement_id)

    def _last_usage(self, activity_id: str, document: Document) -> list[float] | None:
        if document.kind == "debit-note":
            return read_note(document.payload).usage
        notes = self._store.live_notes(activity_id, document.agreement_id, document.owner)
        return read_note(notes[-1].payload).usage if notes else None

    def _amount(self, text: str) -> int:
        try:
            return parse_amount(text)
        except BadAmount:
            raise ledger.WrongAmount("Invalid amount accepted") from None


def _price(deal: Deal, usages: Sequence[Sequence[float]]) -> str | None:
    if deal.pricing is None:
        return None
    try:
        return format_amount(sum(deal.pricing.cost(usage) for usage in usages))
    except Refused:  # counters of another length than agreed
        return None
