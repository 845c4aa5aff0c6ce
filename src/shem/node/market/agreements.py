"""Agreements, from the requestor's draft to their end, for both roles.

Every change of state goes through :meth:`Agreements._record`: the row, its event, the hooks of upper services and the
message to the peer are one transaction. The requestor signs on confirming, the provider on approving, and the requestor
once more in the answer to the approval; both sides keep all three signatures.

An approval is on its way for as long as it takes: the provider's agreement is Pending with its signature set until the
requestor has answered. Ending takes effect here at once, and the peer is told when it can be.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from shem.errors import Gone, PeerFailed, Refused
from shem.node.identity.signing import verify
from shem.node.market import documents, protocol
from shem.node.market.core import Core
from shem.node.market.documents import AgreementDocument, Approval, Ending, EndingKind
from shem.node.market.lifecycle import (
    ENDED,
    OPEN,
    Agreement,
    AgreementNotFound,
    AgreementState,
    NotConfirmed,
    NotNegotiated,
    NotRole,
    ProposalNotFound,
    ProposalOver,
    Role,
    SubscriptionGone,
    agreement_from,
    agreement_of,
    check_agreement,
    check_same_terms,
    clean_reason,
    move,
    move_proposal,
    parse_agreement_id,
    parse_proposal_id,
    reason_of,
)
from shem.node.market.negotiation import Negotiation
from shem.node.market.outbox import Outcome
from shem.node.market.protocol import Signed
from shem.node.market.store import AgreementEvent, AgreementEventKind, Event
from shem.node.market.subscriptions import Subscriptions
from shem.node.market.timers import Timers
from shem.terms.ids import NodeId

log = logging.getLogger(__name__)

APPROVAL_GRACE_S = 60.0
"""Beyond ``valid_to``, an approval that was signed in time may still be delivered."""

Hook = Callable[[Agreement, str], None]

_ENDINGS: dict[EndingKind, AgreementState] = {"cancel": "Cancelled", "reject": "Rejected", "terminate": "Terminated"}
_EVENTS: dict[AgreementState, AgreementEventKind] = {
    "Approved": "Approved",
    "Rejected": "Rejected",
    "Cancelled": "Cancelled",
    "Terminated": "Terminated",
}


class AgreementOver(Gone):
    """The agreement will not be approved; the message is its state."""

    default_code = "agreement_over"


class Agreements:
    """Of all identities of this node."""

    def __init__(self, core: Core, subscriptions: Subscriptions, negotiation: Negotiation, timers: Timers) -> None:
        self._core = core
        self._subscriptions = subscriptions
        self._negotiation = negotiation
        self._timers = timers
        self._hooks: list[Hook] = []
        core.outbox.handle(protocol.PROPOSE, self._proposed)
        core.outbox.handle(protocol.APPROVE, self._answered)
        core.outbox.handle(protocol.END, lambda outcome: None)
        serve = protocol.serve_documents
        peers, ids = core.peers, core.identities
        serve(peers, ids, protocol.PROPOSE, documents.AGREEMENT, AgreementDocument, self._on_proposal)
        serve(peers, ids, protocol.APPROVE, documents.APPROVAL, Approval, self._on_approval)
        serve(peers, ids, protocol.END, documents.ENDING, Ending, self._on_ending)

    def start(self) -> None:
        """Arm the clocks of what is open."""
        for agreement in self._core.store.open_agreements():
            self._arm(agreement)

    def on_change(self, hook: Hook) -> None:
        """``hook(agreement, state)`` inside the transaction of every change."""
        self._hooks.append(hook)

    # reading

    def get(self, owner: str, text: str) -> Agreement:
        """Raises :class:`AgreementNotFound`, :class:`~shem.node.market.lifecycle.BadAgreementId`."""
        agreement = self._core.store.agreement(owner, parse_agreement_id(text))
        if agreement is None:
            raise AgreementNotFound(f"Agreement [{text[:80]}] not found.")
        if self._is_late(agreement):
            return self._expire(agreement)
        return agreement

    async def events(
        self, owner: str, *, after: datetime | None, limit: int, timeout_s: float, session: str | None
    ) -> list[AgreementEvent]:
        """What happened strictly after ``after``; waits for something to happen."""

        def read() -> list[AgreementEvent]:
            return self._core.store.agreement_events(owner, after, limit, session)

        return await self._core.pulses.wait_for(_events_key(owner), read, timeout_s) or []

    async def wait(self, owner: str, text: str, timeout_s: float) -> None:
        """Until approved. Raises :class:`NotConfirmed` (also long after: when it was terminated),
        :class:`AgreementOver`, ``TimeoutError``."""
        agreement = self._own(owner, text, "Requestor")
        shown = f"R-{agreement.agreement_id}"
        if agreement.state == "Proposal":
            raise NotConfirmed(f"Agreement [{shown}] should be confirmed, before waiting for approval.")
        if agreement.state == "Terminated":
            raise NotConfirmed(f"Agreement [{shown}] terminated.", code=AgreementOver.default_code)
        await self._wait_past_pending(agreement, timeout_s)

    # the requestor acts

    def create(self, owner: str, proposal_text: str, valid_to: datetime) -> str:
        """Make an agreement of a provider's counter. Nothing is sent yet."""
        core = self._core
        try:
            proposal = self._negotiation.find(owner, parse_proposal_id(proposal_text, "Requestor"))
        except ProposalNotFound:
            proposal = None
        if proposal is None:
            raise NotNegotiated(f"Can't create Agreement for Proposal [{proposal_text}]. Proposal not found.")
        check_agreement(proposal)
        demand = core.store.proposal(owner, proposal.prev_id or "")
        if demand is None:
            raise ProposalOver(f"Proposal [{proposal.shown_id}] is too old.")
        now = core.now()
        latest = now + timedelta(seconds=core.config.max_validity_s)
        agreement = agreement_from(proposal, demand, min(valid_to.astimezone(UTC), latest), now)
        with core.db.transaction():
            core.store.put_proposal(move_proposal(proposal, "Accepted"))
            self._record(agreement)
        return agreement.agreement_id

    async def confirm(self, owner: str, text: str, session: str | None) -> None:
        """Sign and send. Returns once the provider's node has it.

        When that node refuses, or is away, the agreement is cancelled and its error is raised.
        """
        core = self._core
        agreement = self._own(owner, text, "Requestor")
        signed = protocol.sign(core.signer(owner), documents.AGREEMENT, agreement.document)
        pending = move(agreement, "Pending", app_session_id=session, proposed_signature=signed.signature.hex())
        message_id = f"{owner}:{agreement.agreement_id}:propose"
        with core.db.transaction(durable=True):
            self._record(pending)
            self._send(pending, protocol.PROPOSE, message_id, signed, ttl_s=self._left_s(pending))
        try:
            await core.outbox.first_attempt(message_id)
        except (PeerFailed, TimeoutError) as error:
            self._give_up(owner, agreement.agreement_id, message_id, error)
            raise

    def cancel(self, owner: str, text: str, reason: object) -> None:
        """Take back what is not approved."""
        agreement = self._own(owner, text, "Requestor")
        self._end(agreement, "cancel", clean_reason(reason, "Cancelled"))

    # the provider acts

    async def approve(self, owner: str, text: str, session: str | None, timeout_s: float) -> None:
        """Sign, and wait until the requestor has answered. Raises :class:`AgreementOver`, ``TimeoutError``.

        After a ``TimeoutError`` the approval is still on its way.
        """
        core = self._core
        agreement = self._own(owner, text, "Provider")
        if agreement.signed_at is None or agreement.state != "Pending":
            move(agreement, "Approved")
            approval = Approval(
                agreement_id=agreement.agreement_id,
                issuer=owner,
                receiver=agreement.requestor_id,
                approved_at=core.now(),
            )
            signed = protocol.sign(core.signer(owner), documents.APPROVAL, documents.encode(approval))
            agreement = msgspec.structs.replace(
                agreement,
                signed_at=approval.approved_at,
                approved_signature=signed.signature.hex(),
                app_session_id=session,
            )
            ttl_s = self._left_s(agreement) + APPROVAL_GRACE_S
            with core.db.transaction(durable=True):
                core.store.put_agreement(agreement)
                message_id = f"{owner}:{agreement.agreement_id}:approve"
                self._send(agreement, protocol.APPROVE, message_id, signed, ttl_s=ttl_s)
        await self._wait_past_pending(agreement, timeout_s)

    def reject(self, owner: str, text: str, reason: object) -> None:
        """Refuse an agreement that was proposed."""
        agreement = self._own(owner, text, "Provider")
        if agreement.signed_at is not None and agreement.state == "Pending":
            raise Gone("Can't update Agreement state from Approving to Rejected.", code="illegal_agreement_state")
        self._end(agreement, "reject", clean_reason(reason, "Rejected"))

    # both act

    def terminate(self, owner: str, text: str, reason: object) -> None:
        """End an approved agreement. Takes effect here at once; the peer is told when it can be."""
        self._end(self.get(owner, text), "terminate", clean_reason(reason, "Terminated"))

    # what a peer says

    def _on_proposal(self, document: AgreementDocument, signed: Signed) -> bytes:
        core, owner = self._core, document.receiver
        agreement = agreement_of(document, signed.document, owner)
        if core.store.agreement(owner, agreement.agreement_id) is not None:
            return b""  # heard before; our answer was lost
        proposal = self._negotiation.find(owner, document.proposal)
        if proposal is None or proposal.issuer_id != owner or proposal.peer_id != document.issuer:
            raise ProposalNotFound("no such proposal of ours")
        if proposal.state != "Draft" or proposal.next_id is not None:
            raise ProposalOver(f"the proposal is {proposal.state}, or was countered")
        demand = core.store.proposal(owner, proposal.prev_id or "")
        if demand is None:
            raise ProposalNotFound("no such proposal of yours")
        check_same_terms(document, proposal, demand)
        if self._subscriptions.find(proposal.offer_id) is None:
            raise SubscriptionGone("the offer was unsubscribed or has expired")
        now = core.now()
        if document.valid_to <= now:
            raise AgreementOver("Expired")
        pending = move(agreement, "Pending", proposed_signature=signed.signature.hex())
        with core.db.transaction(durable=True):
            core.store.put_proposal(move_proposal(proposal, "Accepted"))
            self._record(pending)
            event = Event(kind="Agreement", at=now, subject=pending.agreement_id)
            self._subscriptions.push(proposal.offer_id, event)
        return b""

    def _on_approval(self, document: Approval, signed: Signed) -> bytes:
        """The answer is the requestor's own signature of the approval."""
        core = self._core
        agreement = self._of_peer(document, "Requestor")
        if agreement.approved_signature == signed.signature.hex() and agreement.committed_signature:
            return bytes.fromhex(agreement.committed_signature)  # heard before; our answer was lost
        if self._is_late(agreement):
            agreement = self._expire(agreement)
        commitment = core.signer(agreement.owner).sign(documents.COMMITMENT, signed.document)
        approved = move(
            agreement,
            "Approved",
            approved_at=document.approved_at,
            approved_signature=signed.signature.hex(),
            committed_signature=commitment.hex(),
        )
        with core.db.transaction(durable=True):
            self._record(approved)
        return commitment

    def _on_ending(self, document: Ending, signed: Signed) -> bytes:
        core = self._core
        issuer_role: Role | None = {"cancel": "Requestor", "reject": "Provider"}.get(document.kind)  # type: ignore[assignment]
        agreement = self._of_peer(document, None if issuer_role is None else _other(issuer_role))
        if agreement.state in ENDED:
            return b""  # heard before, or both ended it at once
        with core.db.transaction(durable=True):
            if document.kind == "terminate" and agreement.state == "Pending" and agreement.signed_at:
                # The requestor's end overtook its answer to our approval: it had approved
                agreement = move(agreement, "Approved", approved_at=agreement.signed_at)
                self._record(agreement)
            ended = move(
                agreement, _ENDINGS[document.kind], ended_by=_other(agreement.role), reason=reason_of(document.reason)
            )
            self._record(ended, signature=signed.signature.hex())
        return b""

    # what became of our messages

    def _proposed(self, outcome: Outcome) -> None:
        """The provider's node has the agreement, or will not have it."""
        agreement = self._of_message(outcome)
        if outcome.error is not None and agreement is not None and agreement.state == "Pending":
            self._record(move(agreement, "Cancelled", reason=_told(outcome.error)))

    def _answered(self, outcome: Outcome) -> None:
        """The requestor has answered our approval."""
        agreement = self._of_message(outcome)
        if agreement is None:
            return
        if outcome.answer is not None:
            raw = msgspec.msgpack.decode(outcome.message.payload, type=Signed).document
            try:
                verify(documents.COMMITMENT, raw, outcome.answer, NodeId(agreement.requestor_id))
            except Refused as error:
                self._unapproved(agreement, "Cancelled", error)
                return
            agreement = msgspec.structs.replace(agreement, committed_signature=outcome.answer.hex())
            if agreement.state == "Pending":
                self._record(move(agreement, "Approved", approved_at=agreement.signed_at))
            else:
                self._core.store.put_agreement(agreement)
        elif isinstance(outcome.error, TimeoutError):
            self._unapproved(agreement, "Expired", outcome.error)
        else:
            self._unapproved(agreement, "Cancelled", outcome.error)

    def _unapproved(self, agreement: Agreement, state: AgreementState, error: Exception | None) -> None:
        if agreement.state == "Pending":
            self._record(move(agreement, state, reason=_told(error)))
            # Should the requestor hold it approved after all, it learns the end of it (or that nothing comes of it)
            if not self._core.signer(agreement.owner).locked:
                self._send_ending(agreement, "terminate", _told(error))

    def _give_up(self, owner: str, agreement_id: str, message_id: str, error: Exception) -> None:
        """The provider is away: its agent will not wait, so nothing may stay half done."""
        core = self._core
        agreement = core.store.agreement(owner, agreement_id)
        if agreement is None or agreement.state != "Pending":
            return
        with core.db.transaction(durable=True):
            core.store.delete_message(message_id)
            self._record(move(agreement, "Cancelled", ended_by="Requestor", reason=_told(error)))
            self._send_ending(agreement, "cancel", _told(error))

    # inner

    def _own(self, owner: str, text: str, role: Role) -> Agreement:
        agreement = self.get(owner, text)
        if agreement.role != role:
            raise NotRole(
                f"Agreement [{role[0]}-{agreement.agreement_id}] not found.",
                hint=f"only its {role.lower()} may do this",
            )
        return agreement

    def _of_peer(self, document: Approval | Ending, role: Role | None) -> Agreement:
        """The agreement that a peer speaks of, if it is a party to it (in the other role than ``role``)."""
        agreement = self._core.store.agreement(document.receiver, document.agreement_id)
        if agreement is None or agreement.peer_id != document.issuer or role not in (None, agreement.role):
            raise AgreementNotFound("no such agreement of yours")
        return agreement

    def _of_message(self, outcome: Outcome) -> Agreement | None:
        owner, agreement_id, _ = outcome.message.message_id.split(":")
        return self._core.store.agreement(owner, agreement_id)

    def _end(self, agreement: Agreement, kind: EndingKind, reason: dict[str, Any]) -> None:
        unsent = agreement.state == "Proposal"
        ended = move(agreement, _ENDINGS[kind], ended_by=agreement.role, reason=reason)
        with self._core.db.transaction(durable=True):
            if unsent:
                self._record(ended)
            else:
                self._record(ended, signature=self._send_ending(agreement, kind, reason))

    def _send_ending(self, agreement: Agreement, kind: EndingKind, reason: dict[str, Any]) -> str:
        """Put it into the outbox; the signature in hex."""
        core = self._core
        raw = documents.encode(
            Ending(
                agreement_id=agreement.agreement_id,
                issuer=agreement.owner,
                receiver=agreement.peer_id,
                kind=kind,
                ended_at=core.now(),
                reason=msgspec.json.encode(reason).decode(),
            )
        )
        signed = protocol.sign(core.signer(agreement.owner), documents.ENDING, raw)
        message_id = f"{agreement.owner}:{agreement.agreement_id}:{kind}"
        # A peer that has not heard of it by then forgets an unapproved agreement by itself
        ttl_s = None if kind == "terminate" else self._left_s(agreement) + APPROVAL_GRACE_S
        self._send(agreement, protocol.END, message_id, signed, ttl_s=ttl_s)
        return signed.signature.hex()

    def _send(self, agreement: Agreement, method: str, message_id: str, signed: Signed, *, ttl_s: float | None) -> None:
        self._core.outbox.put(
            peer=agreement.peer_id,
            topic=agreement.agreement_id,
            kind=method,
            message_id=message_id,
            payload=protocol.pack(signed),
            ttl_s=ttl_s,
        )

    def _record(self, agreement: Agreement, *, signature: str | None = None) -> None:
        """Write a new state and all that follows from it, in the caller's transaction."""
        core, state = self._core, agreement.state
        core.store.put_agreement(agreement)
        kind = _EVENTS.get(state)
        if kind is not None:
            event = AgreementEvent(
                kind=kind,
                at=core.now(),
                agreement_id=agreement.agreement_id,
                terminator=agreement.ended_by if state == "Terminated" else None,
                signature=signature,
                reason=agreement.reason,
            )
            core.store.add_agreement_event(agreement.owner, event)
        if state in ENDED and agreement.role == "Requestor":
            core.store.free_pair(agreement.demand_id, agreement.offer_id)
            core.db.after_commit(lambda: core.book.offer_again(agreement.demand_id, agreement.offer_id))
        for hook in self._hooks:
            hook(agreement, state)
        core.db.after_commit(lambda: self._arm(agreement))
        core.beat_after_commit(_key(agreement))
        core.beat_after_commit(_events_key(agreement.owner))

    async def _wait_past_pending(self, agreement: Agreement, timeout_s: float) -> None:
        owner, agreement_id = agreement.owner, agreement.agreement_id

        def read() -> Agreement | None:
            found = self.get(owner, agreement_id)
            return None if found.state == "Pending" else found

        found = await self._core.pulses.wait_for(_key(agreement), read, timeout_s)
        if found is None:
            shown = f"{agreement.role[0]}-{agreement_id}"
            raise TimeoutError(f"Timeout while waiting for Agreement [{shown}] approval.")
        if found.state != "Approved":
            reason = (found.reason or {}).get("message", "")
            raise AgreementOver(found.state, hint=str(reason), state=found.state)

    def _is_late(self, agreement: Agreement) -> bool:
        """Open beyond its time. A signed approval on its way ends with its message, not by the clock."""
        if agreement.state not in OPEN or agreement.signed_at is not None:
            return False
        return agreement.valid_to <= self._core.now()

    def _expire(self, agreement: Agreement) -> Agreement:
        expired = move(agreement, "Expired")
        with self._core.db.transaction(durable=True):
            self._record(expired)
        return expired

    def _arm(self, agreement: Agreement) -> None:
        owner, agreement_id = agreement.owner, agreement.agreement_id
        key = ("agreement", owner, agreement_id)
        if agreement.state not in OPEN:
            self._timers.cancel(key)
            return

        def due() -> None:
            self.get(owner, agreement_id)

        self._timers.at(agreement.valid_to, key, due)

    def _left_s(self, agreement: Agreement) -> float:
        return max(0.0, (agreement.valid_to - self._core.now()).total_seconds())


def _other(role: Role) -> Role:
    return "Provider" if role == "Requestor" else "Requestor"


def _key(agreement: Agreement) -> Hashable:
    return ("agreement", agreement.owner, agreement.agreement_id)


def _events_key(owner: str) -> Hashable:
    return ("agreements", owner)


def _told(error: Exception | None) -> dict[str, Any]:
    """A reason made of an error."""
    reason = {"message": str(getattr(error, "message", error))}
    code = getattr(error, "code", None)
    return reason | {"code": code} if isinstance(code, str) else reason
