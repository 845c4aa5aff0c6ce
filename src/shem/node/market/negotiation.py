"""Proposals: the initial one that the matcher makes, counters, rejections; the same for both roles.

A counter is stored before it is sent, as the answer to it may overtake the answer to sending it. Its id follows from its
content: an agent that repeats a counter whose fate is unknown (the peer was away) repeats the same one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import msgspec

from shem.errors import PeerFailed, Refused
from shem.node.market import documents, protocol
from shem.node.market.core import Core
from shem.node.market.documents import Counter, Rejection
from shem.node.market.lifecycle import (
    AlreadyCountered,
    NoMatch,
    Proposal,
    ProposalNotFound,
    ProposalOver,
    Role,
    Subscription,
    SubscriptionGone,
    check_reaction,
    clean_reason,
    move_proposal,
    parse_proposal_id,
    reason_of,
)
from shem.node.market.matching import compiled, is_match
from shem.node.market.protocol import Signed
from shem.node.market.store import Event
from shem.node.market.subscriptions import Subscriptions
from shem.terms.ids import NodeId
from shem.terms.properties import flatten

REJECTION_TTL_S = 3600.0
"""A requestor that is away longer has other worries."""
LOOKS = 500
"""Candidates looked at in one turn of the loop; 10 µs each."""


class TooManyNegotiations(Refused):
    default_code = "too_many_negotiations"


class Negotiation:
    """Of all subscriptions of this node."""

    def __init__(self, core: Core, subscriptions: Subscriptions) -> None:
        self._core = core
        self._subscriptions = subscriptions
        self._sending: set[tuple[str, str]] = set()
        core.book.on_candidates = lambda interest: core.pulses.beat(interest.key)
        core.outbox.handle(protocol.REJECT, lambda outcome: None)
        serve = protocol.serve_documents
        serve(core.peers, core.identities, protocol.COUNTER, documents.COUNTER, Counter, self._on_counter)
        serve(core.peers, core.identities, protocol.REJECT, documents.REJECTION, Rejection, self._on_rejection)

    # what an agent asks

    def initial_proposals(self, demand: Subscription, limit: int) -> list[Event]:
        """Look at offers for a demand; an event for each initial proposal made. Part of reading a demand's events."""
        interest = self._core.book.interest(demand.subscription_id)
        if interest is None or not interest.candidates:
            return []
        events: list[Event] = []
        for offer in interest.take(self._core.book.find, limit, LOOKS):
            now = self._core.now()
            proposal = Proposal(
                proposal_id=documents.initial_id(offer.offer_id, demand.subscription_id, now),
                owner=demand.owner,
                role="Requestor",
                offer_id=offer.offer_id,
                demand_id=demand.subscription_id,
                requestor_id=demand.owner,
                provider_id=offer.issuer,
                issuer_id=offer.issuer,
                prev_id=None,
                initial_at=now,
                properties=dict(offer.properties),
                constraints=offer.constraints,
                created_at=now,
                state="Initial",
            )
            self._core.store.put_proposal(proposal)
            self._core.store.add_pair(demand.subscription_id, offer.offer_id)
            events.append(Event(kind="Proposal", at=now, subject=proposal.proposal_id))
        if not events and interest.candidates:
            # More to look at: after others had their turn
            asyncio.get_running_loop().call_soon(self._core.pulses.beat, demand.subscription_id)
        return events

    def get(self, owner: str, role: Role, subscription_id: str, text: str) -> Proposal:
        """One proposal of a subscription, own or the other's. Raises :class:`ProposalNotFound`."""
        proposal = self._core.store.proposal(owner, parse_proposal_id(text, role))
        if proposal is None or proposal.role != role or proposal.subscription_id != subscription_id:
            raise ProposalNotFound(f"Proposal [{text[:80]}] for subscription [{subscription_id[:120]}] not found.")
        return self._aged(proposal)

    def find(self, owner: str, proposal_id: str) -> Proposal | None:
        """By hash."""
        proposal = self._core.store.proposal(owner, proposal_id)
        return None if proposal is None else self._aged(proposal)

    async def counter(
        self,
        owner: str,
        role: Role,
        subscription_id: str,
        text: str,
        properties: Mapping[str, Any],
        constraints: str,
    ) -> str:
        """Answer a proposal of the other side; the new one's id, once the peer has it.

        Raises :class:`ProposalNotFound`, :class:`~shem.node.market.lifecycle.OwnProposal`,
        :class:`AlreadyCountered`, :class:`NoMatch`, :class:`SubscriptionGone`, what the peer refuses with, and
        ``PeerFailed`` or ``TimeoutError`` when it is away: then the same counter may be repeated.
        """
        self._subscriptions.live(owner, "demand" if role == "Requestor" else "offer", subscription_id)
        prev = self.get(owner, role, subscription_id, text)
        unsent = self._unsent_counter(prev)
        check_reaction(prev if unsent is None else msgspec.structs.replace(prev, next_id=None))
        proposal = self._next_proposal(prev, flatten(properties), constraints)
        self._check_match(proposal, prev)
        core, key = self._core, (owner, prev.proposal_id)
        with core.db.transaction():
            if unsent is not None:
                core.store.delete_proposal(owner, unsent.proposal_id)
            core.store.put_proposal(proposal)
            core.store.put_proposal(msgspec.structs.replace(prev, next_id=proposal.proposal_id))
        self._sending.add(key)
        try:
            await self._send_counter(proposal)
        except PeerFailed as error:
            if isinstance(error, Refused):
                self._take_back(proposal)
            raise
        finally:
            self._sending.discard(key)
        self._mark_delivered(proposal)
        return proposal.shown_id

    def reject(self, owner: str, role: Role, subscription_id: str, text: str, reason: object) -> None:
        """End a negotiation; again is no error. The peer is told when it can be; of an initial proposal it never heard."""
        proposal = self.get(owner, role, subscription_id, text)
        cleaned = clean_reason(reason, "Rejected")
        if proposal.state == "Rejected" and proposal.issuer_id != owner:
            return  # said before
        check_reaction(proposal)
        core = self._core
        with core.db.transaction():
            core.store.put_proposal(move_proposal(proposal, "Rejected"))
            if proposal.prev_id is None:
                return
            raw = documents.encode(
                Rejection(
                    proposal=proposal.proposal_id,
                    issuer=owner,
                    receiver=proposal.peer_id,
                    reason=msgspec.json.encode(cleaned).decode(),
                )
            )
            signed = protocol.sign(core.signer(owner), documents.REJECTION, raw)
            core.outbox.put(
                peer=proposal.peer_id,
                topic=proposal.proposal_id,
                kind=protocol.REJECT,
                message_id=f"{owner}:{proposal.proposal_id}:reject",
                payload=protocol.pack(signed),
                ttl_s=REJECTION_TTL_S,
                courtesy=True,
            )

    # what a peer says

    def _on_counter(self, document: Counter, signed: Signed) -> bytes:
        core, owner = self._core, document.receiver
        proposal_id = documents.counter_id(document)
        if core.store.proposal(owner, proposal_id) is not None:
            return b""  # heard before; its answer was lost
        subscription, role = self._addressed(document)
        found = core.store.proposal(owner, document.prev)
        prev = self._first_contact(document, subscription, role) if found is None else self._aged(found)
        expected = (prev.offer_id, prev.demand_id, prev.peer_id, prev.issuer_id, prev.role)
        if expected != (document.offer_id, document.demand_id, document.issuer, owner, role):
            raise ProposalNotFound("no such proposal of ours")
        if prev.next_id is not None:
            raise AlreadyCountered("the proposal was countered before")
        if prev.state not in ("Initial", "Draft"):
            raise ProposalOver(f"the proposal is {prev.state}")
        now = core.now()
        proposal = msgspec.structs.replace(
            self._next_proposal(prev, document.properties, document.constraints),
            issuer_id=document.issuer,
            created_at=min(document.created_at, now),
            delivered=True,
        )
        self._check_match(proposal, prev)
        with core.db.transaction():
            core.store.put_proposal(msgspec.structs.replace(prev, next_id=proposal_id))
            core.store.put_proposal(proposal)
            event = Event(kind="Proposal", at=now, subject=proposal_id)
            self._subscriptions.push(subscription.subscription_id, event)
        return b""

    def _on_rejection(self, document: Rejection, signed: Signed) -> bytes:
        core = self._core
        proposal = core.store.proposal(document.receiver, document.proposal)
        if proposal is None or proposal.issuer_id != document.receiver or proposal.peer_id != document.issuer:
            raise ProposalNotFound("no such proposal of ours")
        if proposal.state not in ("Initial", "Draft") or proposal.next_id is not None:
            return b""  # heard before, or overtaken
        with core.db.transaction():
            core.store.put_proposal(move_proposal(proposal, "Rejected"))
            if self._subscriptions.find(proposal.subscription_id) is not None:
                event = Event(
                    kind="ProposalRejected",
                    at=core.now(),
                    subject=proposal.proposal_id,
                    reason=reason_of(document.reason),
                )
                self._subscriptions.push(proposal.subscription_id, event)
        return b""

    # inner

    def _addressed(self, document: Counter) -> tuple[Subscription, Role]:
        """Our subscription that a counter is for."""
        offer = self._subscriptions.find(document.offer_id)
        if offer is not None and offer.owner == document.receiver:
            return offer, "Provider"
        demand = self._subscriptions.find(document.demand_id)
        if demand is not None and demand.owner == document.receiver:
            return demand, "Requestor"
        raise SubscriptionGone("the offer or demand was unsubscribed or has expired")

    def _first_contact(self, document: Counter, subscription: Subscription, role: Role) -> Proposal:
        """The provider's side of the initial proposal, when the requestor's first counter tells of it."""
        core = self._core
        expected = documents.initial_id(document.offer_id, document.demand_id, document.initial_at)
        if role != "Provider" or document.prev != expected:
            raise ProposalNotFound("no such proposal of ours")
        hour_ago = core.now() - timedelta(hours=1)
        opened = core.store.count_negotiations(subscription.subscription_id, document.issuer, hour_ago)
        if opened >= core.config.max_negotiations:
            raise TooManyNegotiations("too many negotiations about this offer", hint="try again in an hour")
        return Proposal(
            proposal_id=expected,
            owner=subscription.owner,
            role="Provider",
            offer_id=document.offer_id,
            demand_id=document.demand_id,
            requestor_id=document.issuer,
            provider_id=subscription.owner,
            issuer_id=subscription.owner,
            prev_id=None,
            initial_at=document.initial_at,
            properties=subscription.properties,
            constraints=subscription.constraints,
            created_at=core.now(),
            state="Initial",
        )

    def _next_proposal(self, prev: Proposal, properties: dict[str, Any], constraints: str) -> Proposal:
        """The counter to ``prev`` by its receiver, not yet delivered."""
        issuer = prev.requestor_id if prev.issuer_id == prev.provider_id else prev.provider_id
        proposal = msgspec.structs.replace(
            prev,
            proposal_id="",
            issuer_id=issuer,
            prev_id=prev.proposal_id,
            properties=properties,
            constraints=constraints,
            created_at=self._core.now(),
            state="Draft",
            next_id=None,
            delivered=False,
        )
        return msgspec.structs.replace(proposal, proposal_id=documents.counter_id(_counter(proposal)))

    def _check_match(self, proposal: Proposal, prev: Proposal) -> None:
        if not is_match(
            proposal.properties, compiled(proposal.constraints), prev.properties, compiled(prev.constraints)
        ):
            raise NoMatch(
                f"Proposal does not match the Proposal [{prev.shown_id}] that it answers.",
                hint="each side's constraints must be true of the other's properties",
            )

    def _unsent_counter(self, prev: Proposal) -> Proposal | None:
        """An own counter to ``prev`` that the peer is not known to have: it may be repeated or replaced."""
        if prev.next_id is None or (prev.owner, prev.proposal_id) in self._sending:
            return None
        counter = self._core.store.proposal(prev.owner, prev.next_id)
        return counter if counter is not None and not counter.delivered and counter.next_id is None else None

    async def _send_counter(self, proposal: Proposal) -> None:
        core = self._core
        raw = documents.encode(_counter(proposal))
        signed = protocol.sign(core.signer(proposal.owner), documents.COUNTER, raw)
        peer = NodeId(proposal.peer_id)
        await core.peers.call(peer, protocol.COUNTER, protocol.pack(signed), timeout_s=core.config.rpc_timeout_s)

    def _take_back(self, proposal: Proposal) -> None:
        """The peer refused a counter: it never was."""
        core = self._core
        prev = core.store.proposal(proposal.owner, proposal.prev_id or "")
        with core.db.transaction():
            core.store.delete_proposal(proposal.owner, proposal.proposal_id)
            if prev is not None and prev.next_id == proposal.proposal_id:
                core.store.put_proposal(msgspec.structs.replace(prev, next_id=None))

    def _mark_delivered(self, proposal: Proposal) -> None:
        found = self._core.store.proposal(proposal.owner, proposal.proposal_id)  # may have been answered meanwhile
        if found is not None:
            self._core.store.put_proposal(msgspec.structs.replace(found, delivered=True))

    def _aged(self, proposal: Proposal) -> Proposal:
        """Old proposals are expired without anybody having to write that down."""
        age = (self._core.now() - proposal.created_at).total_seconds()
        if proposal.state in ("Initial", "Draft") and age > self._core.config.proposal_ttl_s:
            return move_proposal(proposal, "Expired")
        return proposal


def _counter(proposal: Proposal) -> Counter:
    """The document of a proposal that answers another."""
    return Counter(
        prev=proposal.prev_id or "",
        initial_at=proposal.initial_at,
        offer_id=proposal.offer_id,
        demand_id=proposal.demand_id,
        issuer=proposal.issuer_id,
        receiver=proposal.provider_id if proposal.issuer_id == proposal.requestor_id else proposal.requestor_id,
        created_at=proposal.created_at,
        properties=proposal.properties,
        constraints=proposal.constraints,
    )
