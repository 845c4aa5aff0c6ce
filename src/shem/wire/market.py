"""JSON shapes of the market API (``/market-api/v1``). Ids travel as bare JSON strings, properties flat."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from shem.wire.base import Properties, Timestamp, Wire

Reason = dict[str, Any]
"""``message`` and any other keys, such as ``golem.requestor.code``."""

ProposalState = Literal["Initial", "Draft", "Rejected", "Accepted", "Expired"]
AgreementState = Literal["Proposal", "Pending", "Cancelled", "Rejected", "Approved", "Expired", "Terminated"]
Role = Literal["Requestor", "Provider"]


class NewSubscription(Wire):
    """What an agent publishes, as an offer or a demand, or counters with."""

    properties: Properties
    constraints: str


class Offer(Wire):
    properties: Properties
    constraints: str
    offer_id: str
    provider_id: str
    timestamp: Timestamp


class Demand(Wire):
    properties: Properties
    constraints: str
    demand_id: str
    requestor_id: str
    timestamp: Timestamp


class Proposal(Wire):
    properties: Properties
    constraints: str
    proposal_id: str
    issuer_id: str
    state: ProposalState
    timestamp: Timestamp
    prev_proposal_id: str | None = None
    """Absent on initial proposals."""


class NewAgreement(Wire):
    proposal_id: str
    valid_to: Timestamp
    """Until when the provider may approve."""


class Agreement(Wire):
    agreement_id: str
    demand: Demand
    offer: Offer
    valid_to: Timestamp
    state: AgreementState
    timestamp: Timestamp
    approved_date: Timestamp | None = None
    app_session_id: str | None = None
    proposed_signature: str | None = None
    """Hex of the requestor's signature over the agreement; the original writes ``NoSignature``."""
    approved_signature: str | None = None
    committed_signature: str | None = None


class AgreementEntry(Wire):
    """A line of the list of agreements."""

    id: str
    timestamp: Timestamp
    role: Role
    approved_date: Timestamp | None
    """Null as long as it is not approved, other than in an agreement."""


class ProposalEvent(Wire, tag_field="eventType", tag=True):
    event_date: Timestamp
    proposal: Proposal


class ProposalRejectedEvent(Wire, tag_field="eventType", tag=True):
    event_date: Timestamp
    proposal_id: str
    """The receiver's own counter."""
    reason: Reason | None = None


class AgreementEvent(Wire, tag_field="eventType", tag=True):
    """Provider only: somebody proposes an agreement."""

    event_date: Timestamp
    agreement: Agreement


class PropertyQueryEvent(Wire, tag_field="eventType", tag=True):
    """Named by the API; no node sends it."""

    event_date: Timestamp


DemandEvent = ProposalEvent | ProposalRejectedEvent | PropertyQueryEvent
OfferEvent = ProposalEvent | ProposalRejectedEvent | AgreementEvent | PropertyQueryEvent


class AgreementApprovedEvent(Wire, tag_field="eventType", tag=True):
    event_date: Timestamp
    agreement_id: str


class AgreementRejectedEvent(Wire, tag_field="eventType", tag=True):
    event_date: Timestamp
    agreement_id: str
    reason: Reason | None = None


class AgreementCancelledEvent(Wire, tag_field="eventType", tag=True):
    event_date: Timestamp
    agreement_id: str
    reason: Reason | None = None


class AgreementTerminatedEvent(Wire, tag_field="eventType", tag=True):
    event_date: Timestamp
    agreement_id: str
    terminator: Role
    signature: str | None = None
    reason: Reason | None = None


AgreementOperationEvent = (
    AgreementApprovedEvent | AgreementRejectedEvent | AgreementCancelledEvent | AgreementTerminatedEvent
)


class NewScan(Wire):
    type: Literal["offer", "demand"]
    constraints: str | None = None
    timeout: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """Seconds without a reader after which the scan ends; at most (and by default) 300."""
    properties: Properties | None = None
    """When given, the constraints of what is found must be met by these too."""
