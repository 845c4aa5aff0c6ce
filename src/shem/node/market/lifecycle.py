"""What is legal between two nodes that negotiate: states, moves, and the values that pass through them.

The tables come first; every change of state in the market goes through :func:`move` or one of the ``check_*`` functions.
Pure: no clock, no database, no peer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec

from shem.errors import Conflict, Gone, NotFound, Refused
from shem.node.market import documents
from shem.terms.properties import flatten

ProposalState = Literal["Initial", "Draft", "Rejected", "Accepted", "Expired"]
AgreementState = Literal["Proposal", "Pending", "Cancelled", "Rejected", "Approved", "Expired", "Terminated"]
SubscriptionState = Literal["live", "unsubscribed", "expired"]
Role = Literal["Requestor", "Provider"]
Kind = Literal["offer", "demand"]

PROPOSAL_MOVES: Mapping[ProposalState, frozenset[ProposalState]] = {
    "Initial": frozenset({"Rejected", "Expired"}),
    "Draft": frozenset({"Rejected", "Accepted", "Expired"}),
    "Rejected": frozenset(),
    "Accepted": frozenset(),
    "Expired": frozenset(),
}
AGREEMENT_MOVES: Mapping[AgreementState, frozenset[AgreementState]] = {
    "Proposal": frozenset({"Pending", "Cancelled", "Expired"}),
    "Pending": frozenset({"Approved", "Cancelled", "Rejected", "Expired"}),
    "Approved": frozenset({"Terminated"}),
    "Cancelled": frozenset(),
    "Rejected": frozenset(),
    "Expired": frozenset(),
    "Terminated": frozenset(),
}
ENDED: frozenset[AgreementState] = frozenset({"Cancelled", "Rejected", "Expired", "Terminated"})
OPEN: frozenset[AgreementState] = frozenset({"Proposal", "Pending"})
"""States that end by themselves at ``valid_to``."""

_PROPOSAL_ID = re.compile(r"([RP])-([0-9a-f]{64})")
_SUBSCRIPTION_ID = re.compile(r"[0-9a-f]{32}-[0-9a-f]{64}")
_HEX = re.compile(r"[0-9a-fA-F]+")


class SubscriptionNotFound(NotFound):
    """No such offer or demand, or it was unsubscribed."""

    default_code = "subscription_not_found"


class SubscriptionGone(Gone):
    """The offer or demand was unsubscribed or has expired."""

    default_code = "subscription_gone"


class ProposalNotFound(NotFound):
    default_code = "proposal_not_found"


class AgreementNotFound(NotFound):
    default_code = "agreement_not_found"


class BadId(Refused):
    """This cannot be the id of anything."""

    default_code = "bad_id"


class BadAgreementId(BadId):
    default_code = "bad_agreement_id"


class OwnProposal(Refused):
    """Only the other side may react to a proposal."""

    default_code = "own_proposal"


class AlreadyCountered(Gone):
    default_code = "already_countered"


class ProposalOver(Gone):
    """The proposal was rejected, accepted or has expired."""

    default_code = "proposal_over"


class NoMatch(Refused):
    """The two sides' constraints are not met (undefined counts as not met)."""

    default_code = "no_match"


class NotNegotiated(Refused):
    default_code = "not_negotiated"


class SecondAgreement(Conflict):
    default_code = "second_agreement"


class IllegalMove(Gone):
    """The agreement is past the state in which this was possible."""

    default_code = "illegal_agreement_state"


class TooEarly(Conflict):
    """The agreement has not reached the state in which this is possible."""

    default_code = "illegal_agreement_state"


class NotConfirmed(Refused):
    default_code = "agreement_not_confirmed"


class NotRole(NotFound):
    """The call is the other side's: this side has no such agreement to do it with."""

    default_code = "wrong_role"


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """An own offer or demand: value and row."""

    subscription_id: str
    owner: str
    kind: Kind
    properties: dict[str, Any]
    constraints: str
    created_at: datetime
    expires_at: datetime
    """When others may forget it, unless it is prolonged before."""
    ends_at: datetime | None = None
    """When it ends in any case (a demand's own expiration)."""
    sequence: int = 1
    body: bytes = b""
    state: SubscriptionState = "live"


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """One turn, as one side keeps it: value and row. ``proposal_id`` has no ``R-``/``P-`` here."""

    proposal_id: str
    owner: str
    role: Role
    offer_id: str
    demand_id: str
    requestor_id: str
    provider_id: str
    issuer_id: str
    prev_id: str | None
    initial_at: datetime
    properties: dict[str, Any]
    constraints: str
    created_at: datetime
    state: ProposalState
    next_id: str | None = None
    """The counter to it."""
    delivered: bool = True
    """Whether the peer has it. Meaningful for own counters."""

    @property
    def shown_id(self) -> str:
        """The id as the agent sees it."""
        return shown(self.proposal_id, self.role)

    @property
    def subscription_id(self) -> str:
        """Of the owner's own side."""
        return self.demand_id if self.role == "Requestor" else self.offer_id

    @property
    def peer_id(self) -> str:
        """The node on the other side."""
        return self.provider_id if self.role == "Requestor" else self.requestor_id


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """A deal as one side keeps it: value and row."""

    agreement_id: str
    owner: str
    role: Role
    requestor_id: str
    provider_id: str
    proposal_id: str
    demand_id: str
    offer_id: str
    demand_properties: dict[str, Any]
    demand_constraints: str
    offer_properties: dict[str, Any]
    offer_constraints: str
    created_at: datetime
    valid_to: datetime
    state: AgreementState
    document: bytes
    """The signed bytes; their hash is the id."""
    approved_at: datetime | None = None
    """Set once it is approved on both sides, and kept after its end."""
    signed_at: datetime | None = None
    """Provider: when it signed its approval; the state stays Pending until the requestor has answered."""
    app_session_id: str | None = None
    proposed_signature: str | None = None
    approved_signature: str | None = None
    committed_signature: str | None = None
    ended_by: Role | None = None
    reason: dict[str, Any] | None = None

    @property
    def peer_id(self) -> str:
        """The node on the other side."""
        return self.provider_id if self.role == "Requestor" else self.requestor_id


def shown(proposal_id: str, role: Role) -> str:
    """A proposal id as the agent of that role sees it."""
    return ("R-" if role == "Requestor" else "P-") + proposal_id


def check_subscription_id(text: str) -> str:
    """The id, if it can be one of an offer or a demand. Raises :class:`BadId`."""
    if not _SUBSCRIPTION_ID.fullmatch(text):
        raise BadId(f"Subscription id [{text[:120]}] has invalid format.", code="bad_subscription_id")
    return text


def parse_proposal_id(text: str, role: Role) -> str:
    """The hash in an id as the agent of that role sees it.

    Raises :class:`BadId` for what cannot be one, :class:`ProposalNotFound` for one as the other side sees it.
    """
    found = _PROPOSAL_ID.fullmatch(text)
    if found is None:
        raise BadId(f"Id [{text[:80]}] has invalid format.", code="bad_proposal_id")
    if found[1] != role[0]:
        raise ProposalNotFound(f"Proposal [{text}] not found.")
    return found[2]


def parse_agreement_id(text: str) -> str:
    """Raises :class:`BadAgreementId` for what cannot be one."""
    if not _HEX.fullmatch(text):
        raise BadAgreementId(f"The agreement id [{text[:80]}] contains non hexadecimal characters.")
    if len(text) != 64:
        raise BadAgreementId(f"The agreement id [{text[:80]}] has invalid length. Should be |64|")
    return text.lower()


def move(agreement: Agreement, state: AgreementState, **changes: Any) -> Agreement:
    """The agreement in its next state. Raises :class:`IllegalMove`, or :class:`TooEarly` for ending an unsent one."""
    if state not in AGREEMENT_MOVES[agreement.state]:
        kind = TooEarly if (agreement.state, state) == ("Proposal", "Terminated") else IllegalMove
        raise kind(
            f"Can't update Agreement state from {agreement.state} to {state}.",
            hint="read the agreement to see where it stands",
            state=agreement.state,
        )
    return msgspec.structs.replace(agreement, state=state, **changes)


def move_proposal(proposal: Proposal, state: ProposalState) -> Proposal:
    """The proposal in its next state. Raises :class:`ProposalOver`."""
    if state not in PROPOSAL_MOVES[proposal.state]:
        raise ProposalOver(f"Proposal [{proposal.shown_id}] is {proposal.state} and can't become {state}.")
    return msgspec.structs.replace(proposal, state=state)


def check_reaction(proposal: Proposal) -> None:
    """Whether the owner may counter or reject this proposal: the other's, and the last word so far."""
    if proposal.issuer_id == proposal.owner:
        raise OwnProposal(f"Can't react to own Proposal [{proposal.shown_id}].")
    if proposal.next_id is not None:
        raise AlreadyCountered(
            f"Proposal [{proposal.shown_id}] already has counter proposal. Can't counter for the second time."
        )
    if proposal.state not in ("Initial", "Draft"):
        raise ProposalOver(f"Proposal [{proposal.shown_id}] is {proposal.state}.")


def check_agreement(proposal: Proposal) -> None:
    """Whether the owner may make an agreement of this proposal."""
    shown_id = proposal.shown_id
    if proposal.role != "Requestor":
        raise NotRole("Only the requestor makes an Agreement of a Proposal.")
    if proposal.issuer_id == proposal.owner:
        raise OwnProposal(
            f"Can't create Agreement for an own Proposal [{shown_id}]. "
            "You can promote only provider's Proposals to Agreement."
        )
    if proposal.state == "Accepted":
        raise SecondAgreement(f"Can't create second Agreement for Proposal [{shown_id}].")
    if proposal.state == "Initial":
        raise NotNegotiated(
            f"Can't create Agreement for Proposal [{shown_id}]. No negotiation with Provider took place. "
            "(You should counter Proposal at least one time)"
        )
    if proposal.state != "Draft":
        raise NotNegotiated(f"Can't create Agreement for Proposal [{shown_id}]: it is {proposal.state}.")
    if proposal.next_id is not None:
        raise NotNegotiated(f"Can't create Agreement for Proposal [{shown_id}]: it was already countered.")


def agreement_from(proposal: Proposal, demand: Proposal, valid_to: datetime, now: datetime) -> Agreement:
    """The requestor's agreement, of the provider's last ``proposal`` and its own last one before that."""
    if valid_to <= now:
        raise Refused("validTo must be in the future.", code="bad_valid_to")
    document = documents.AgreementDocument(
        proposal=proposal.proposal_id,
        demand_id=proposal.demand_id,
        offer_id=proposal.offer_id,
        issuer=proposal.requestor_id,
        receiver=proposal.provider_id,
        created_at=now,
        valid_to=valid_to,
        demand_properties=demand.properties,
        demand_constraints=demand.constraints,
        offer_properties=proposal.properties,
        offer_constraints=proposal.constraints,
    )
    return agreement_of(document, documents.encode(document), proposal.owner)


def agreement_of(document: documents.AgreementDocument, raw: bytes, owner: str) -> Agreement:
    """An agreement in state Proposal as ``owner`` (one of the two parties) keeps it."""
    return Agreement(
        agreement_id=documents.agreement_id(raw),
        owner=owner,
        role="Requestor" if owner == document.issuer else "Provider",
        requestor_id=document.issuer,
        provider_id=document.receiver,
        proposal_id=document.proposal,
        demand_id=document.demand_id,
        offer_id=document.offer_id,
        demand_properties=document.demand_properties,
        demand_constraints=document.demand_constraints,
        offer_properties=document.offer_properties,
        offer_constraints=document.offer_constraints,
        created_at=document.created_at,
        valid_to=document.valid_to,
        state="Proposal",
        document=raw,
    )


def check_same_terms(document: documents.AgreementDocument, proposal: Proposal, demand: Proposal) -> None:
    """What the provider checks before it shows an agreement to its agent: exactly what both last proposed."""
    ours = (proposal.demand_id, proposal.offer_id, proposal.properties, proposal.constraints)
    theirs = (document.demand_id, document.offer_id, document.offer_properties, document.offer_constraints)
    if (
        ours != theirs
        or demand.properties != document.demand_properties
        or demand.constraints != document.demand_constraints
    ):
        raise Refused("the agreement is not what was negotiated", code="terms_changed")


def clean_reason(given: object, default: str) -> dict[str, Any]:
    """A reason as it is kept: always with a text ``message``, bounded. Raises :class:`Refused` (``bad_reason``)."""
    reason: dict[str, Any] = {}
    if isinstance(given, Mapping):
        reason = dict(given)
        flatten(reason)  # for its bounds; the reason is kept as it was written
    elif given is not None:
        raise Refused("a reason is an object with a message", code="bad_reason")
    if not isinstance(reason.get("message"), str):
        reason["message"] = default
    if len(msgspec.json.encode(reason)) > documents.MAX_REASON_BYTES:
        raise Refused(f"a reason may take {documents.MAX_REASON_BYTES} bytes", code="bad_reason")
    return reason


def reason_of(text: str) -> dict[str, Any]:
    """The reason that a peer sent as JSON; its text as the message when it is none."""
    try:
        found = msgspec.json.decode(text, type=dict[str, Any])
    except documents.UNDECODABLE:
        return {"message": text[:500]}
    message = found.get("message")
    return found | {"message": message if isinstance(message, str) else ""}
