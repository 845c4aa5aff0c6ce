"""What both desks of the payment service share: reading deals, keeping accounts, telling agents and peers.

Every method that changes something runs inside the caller's durable transaction, so that a change of state, the event
that tells the agent and the letter that tells the peer are one. Wakers run after the commit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Literal, Protocol

import msgspec

from shem.cogs.clock import Clock
from shem.cogs.pulse import Pulses
from shem.errors import KeyLocked, NotFound, Refused
from shem.node.db import Database
from shem.node.payment import ledger
from shem.node.payment.deal import AgreementView, Deal, deal_of
from shem.node.payment.drivers.base import PaymentDriver, Platform
from shem.node.payment.ledger import Account, Chain
from shem.node.payment.lifecycle import Fact, follow
from shem.node.payment.protocol import (
    AcceptanceMessage,
    LetterKind,
    Message,
    Signed,
    Signer,
    VoucherKey,
    VoucherPart,
    method_of,
    seal,
)
from shem.node.payment.store import Document, Event, Kind, Letter, Store
from shem.terms.amounts import format_amount
from shem.terms.ids import NodeId

log = logging.getLogger(__name__)

Role = Literal["Requestor", "Provider"]

UNASKED: Sequence[LetterKind] = ("payment", "channel")
"""Letters that follow from what the chain did, not from what somebody asks of us."""
_EVENT_PREFIX: Mapping[Kind, str] = {"debit-note": "DebitNote", "invoice": "Invoice"}


def _purse(platform: Platform) -> tuple[object, ...]:
    """Platforms with the same answer draw on one wallet: one token of one chain, however it is paid."""
    if platform.chain_id is None or not platform.moves_money:
        return (platform.money,)
    return platform.chain_id, platform.token


class Agreements(Protocol):
    """What payment needs of the market."""

    def agreement(self, agreement_id: str, owner: NodeId | None = None) -> AgreementView:
        """Raises :class:`NotFound`."""

    def on_agreement(self, handler: Callable[[Any, str], None]) -> None:
        """``handler(agreement, state)`` inside the transaction of every change."""


class Activities(Protocol):
    """What payment needs of the activity service."""

    def agreement_of(self, activity_id: str) -> str:
        """Raises :class:`NotFound`."""

    def usage(self, activity_id: str) -> Sequence[float]:
        """The last counters this node has seen, in the order of the usage vector; empty before the first."""

    def of_agreement(self, agreement_id: str) -> Sequence[str]:
        """Ids of all activities there were."""


class UnknownDocument(NotFound):
    """No such debit note or invoice for this caller."""

    default_code = "document_not_found"


class UnknownPlatform(Refused):
    """This node serves no such payment platform."""

    default_code = "unknown_platform"


class NotFree(Refused):
    """The platform moves no money, and the document asks for some."""

    default_code = "platform_is_free"


class Books:
    """The shared part; one per node."""

    def __init__(
        self,
        db: Database,
        store: Store,
        signer: Signer,
        agreements: Agreements,
        activities: Activities,
        drivers: Sequence[PaymentDriver],
        clock: Clock,
    ) -> None:
        self.db = db
        self.store = store
        self.signer = signer
        self.voucher_signer: VoucherKey = signer
        """What signs vouchers; set when that is a key of its own."""
        self.activities = activities
        self.clock = clock
        self.pulses: Pulses[tuple[str, str]] = Pulses()
        """Keys are (owner, ``debit-note`` | ``invoice`` | ``payment``) and (owner, document id)."""
        self.drivers: dict[str, PaymentDriver] = {}
        self.platforms: dict[str, Platform] = {}
        for driver in drivers:
            for platform in driver.platforms():
                self.platforms.setdefault(platform.platform, platform)
                self.drivers.setdefault(platform.platform, driver)
        self._agreements = agreements
        self.closed = False
        """True once the service stops: a late message is stored, and acted on at the next start."""
        self.wake_peer: Callable[[str], None] = lambda peer: None
        """Set by the outbox: there is a letter for this peer."""
        self.voucher: Callable[[Account, int], VoucherPart | None] = lambda account, drawn: None
        """Set by the channels: what an acceptance of so much more must carry; may refuse it."""
        self.take_voucher: Callable[[Account, AcceptanceMessage, int], None] = lambda account, message, drawn: None
        """Set by the channels: refuses an acceptance of so much more that carries nothing good."""
        self.wake_settler: Callable[[], None] = lambda: None
        """Set by the settler: something is due."""

    def same_money(self, platform: str) -> list[str]:
        """Every platform that moves the same tokens: what is promised on one is missing on all."""
        known = self.platforms.get(platform)
        if known is None:
            return [platform]
        return [name for name, other in self.platforms.items() if _purse(other) == _purse(known)]

    def write(self) -> AbstractContextManager[object]:
        """A durable transaction."""
        return self.db.transaction(durable=True)

    # --- deals ---

    def deal(self, agreement_id: str, owner: str) -> Deal:
        """Raises :class:`NotFound`, :class:`~shem.node.payment.deal.NoDeal`, :class:`UnknownPlatform`."""
        deal = deal_of(self._agreements.agreement(agreement_id, NodeId(owner)), owner)
        if deal.platform not in self.platforms:
            raise UnknownPlatform(f"this node does not serve the payment platform {deal.platform[:60]!r}")
        return deal

    def check_price(self, deal: Deal, amount: int) -> None:
        """Raises :class:`NotFree` for a sum on a platform that moves none."""
        if amount and not self.platforms[deal.platform].moves_money:
            raise NotFree(f"{format_amount(amount)} cannot be paid on {deal.platform}: it is for what is free")

    def account(self, deal: Deal) -> Account:
        """The deal's account, new when this is the first document."""
        return self.store.account(deal.agreement_id, deal.owner) or Account(
            owner=deal.owner,
            agreement_id=deal.agreement_id,
            role=deal.role,
            peer_id=deal.peer_id,
            platform=deal.platform,
            payer=deal.payer,
            payee=deal.payee,
            session=deal.session,
        )

    def chain(self, activity_id: str, account: Account) -> Chain:
        """The activity's debit notes, new when this is the first."""
        return self.store.chain(activity_id, account.owner) or Chain(
            owner=account.owner, activity_id=activity_id, agreement_id=account.agreement_id
        )

    def save(self, account: Account, chain: Chain | None = None) -> None:
        """Both, or the account alone."""
        self.store.save_account(account)
        if chain is not None:
            self.store.save_chain(chain)

    # --- documents ---

    def document(self, kind: Kind, document_id: str, owner: str, role: Role | None = None) -> Document:
        """Raises :class:`UnknownDocument`."""
        found = self.store.document(document_id, owner)
        if found is None or found.kind != kind or role not in (None, found.role):
            raise UnknownDocument(f"there is no {kind} {document_id[:60]!r}")
        return found

    def now(self) -> datetime:
        """A moment that no other row has."""
        return self.store.stamp(self.clock.now())

    def move(self, document: Document, fact: Fact) -> tuple[Document, bool]:
        """``fact`` happened: the document after it, and whether that changed anything. Not saved."""
        state = follow(document.state, fact)
        return msgspec.structs.replace(document, state=state), state is not document.state

    def accepted(
        self, document: Document, account: Account, result: ledger.Accepted, *, answer: bytes, signature: bytes
    ) -> Document:
        """Note an acceptance on either side. ``account`` is the one to save (it may know the allocation)."""
        document, _ = self.move(document, Fact.ACCEPTED)
        document = msgspec.structs.replace(
            document,
            covered_at=account.accepted,
            allocation_id=account.allocation_id,
            answer=answer,
            answer_signature=signature,
        )
        self.save(account, result.chain)
        self.store.save_document(document)
        self.tell(document, account, "Accepted")
        if account.accepted <= account.settled:  # else this document waits, and what was covered is settled already
            self.cover(account)
        return document

    def cover(self, account: Account) -> None:
        """Mark what the settled sum covers as settled."""
        for document in self.store.covered(account):
            paid, _ = self.move(document, Fact.PAID)
            self.store.save_document(paid)
            self.tell(paid, account, "Settled")

    def take_back(self, document: Document, account: Account) -> Account:
        """The document no longer asks for its money (it is saved already): the account without its request."""
        if document.kind == "invoice":
            account = ledger.take_invoice_back(account)
            self.save(account)
            return account
        chain = self.chain(document.activity_id or "", account)
        left = self.store.live_notes(chain.activity_id, account.agreement_id, account.owner)
        last = left[-1] if left else None
        account, chain = ledger.take_note_back(
            account, chain, last.amount if last else 0, last.document_id if last else None
        )
        self.save(account, chain)
        return account

    # --- telling ---

    def tell(self, document: Document, account: Account, what: str, rejection: bytes | None = None) -> None:
        """An event for the owner's agent."""
        owner, kind = document.owner, document.kind
        self.store.add_event(
            Event(
                at=self.now(),
                owner=owner,
                kind=kind,
                role=document.role,
                document_id=document.document_id,
                type=f"{_EVENT_PREFIX[kind]}{what}Event",
                session=account.session,
                rejection=rejection,
            )
        )
        self.wake(owner, kind)
        self.wake(owner, document.document_id)

    def wake(self, owner: str, key: str) -> None:
        """Wake long polls after the commit."""
        self.db.after_commit(lambda: self.pulses.beat((owner, key)))

    def post(
        self, owner: str, peer_id: str, kind: LetterKind, message: Message, document_id: str
    ) -> tuple[bytes, bytes]:
        """Sign and queue a letter; its payload and signature. Raises :class:`~shem.errors.KeyLocked`, but not for what the
        chain gives rise to: that has happened whatever we sign, so its letter is signed when it goes out."""
        if kind in UNASKED and self.signer.locked:
            sealed = Signed(msgspec.msgpack.encode(message), b"")
        else:
            sealed = seal(kind, message, self.signer)
        self.repost(owner, peer_id, kind, sealed.payload, sealed.signature, document_id)
        return sealed.payload, sealed.signature

    def must_sign(self) -> None:
        """Raises :class:`~shem.errors.KeyLocked` while our key is."""
        if self.signer.locked:
            raise KeyLocked(
                f"the key of {self.signer.node_id} is locked: nothing is signed with it",
                hint="unlock it: shem identity unlock",
            )

    def envelope(self, letter: Letter) -> Signed:
        """A letter as it travels. Raises :class:`~shem.errors.KeyLocked` for one that is still to be signed."""
        signature = letter.signature or self.signer.sign(method_of(letter.kind), letter.payload)
        return Signed(letter.payload, signature)

    def repost(
        self, owner: str, peer_id: str, kind: LetterKind, payload: bytes, signature: bytes, document_id: str
    ) -> None:
        """Queue what is signed already."""
        self.store.post(owner, peer_id, kind, payload, signature, document_id, self.clock.now())
        self.db.after_commit(lambda: self.wake_peer(peer_id))
