"""What a payer has forgotten, because its database is an older copy of itself.

Money that was promised once is promised: a payee holds the payer's vouchers and acceptances, whatever the payer
remembers. So a payer that was started signs nothing on a channel of an earlier run before its payee has said what it
holds. Nothing of that is believed but the payer's own signatures: the highest voucher raises what the channel counts as
signed, and the last acceptance of each agreement raises what the books count as accepted, so that a document whose
acceptance was forgotten costs nothing when it is accepted again. What no acceptance explains is paid all the same, by
what is owed later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import cast

import msgspec

from shem.cogs.decoding import DECODE_ERRORS
from shem.errors import KeyLocked, NotFound, PeerFailed, Refused
from shem.node.identity.signing import BadSignature, verify
from shem.node.payment import ledger
from shem.node.payment.channel import Channel, remember
from shem.node.payment.channel_books import ChannelBooks, id_bytes, vault_of, waiting_for, way_of
from shem.node.payment.drivers.evm.vault import voucher_signer
from shem.node.payment.lifecycle import State
from shem.node.payment.protocol import (
    AcceptanceMessage,
    Held,
    HeldMessage,
    KeyPart,
    Peers,
    Signed,
    method_of,
    seal,
    units,
)
from shem.node.payment.store import Document
from shem.terms.ids import NodeId

log = logging.getLogger(__name__)

ASK_TIMEOUT_S = 15.0
ASK_AGAIN_S = (0.5, 60.0)


class Memory:
    """Asks payees what they hold."""

    def __init__(self, shared: ChannelBooks, peers: Peers) -> None:
        self._shared = shared
        self._books = shared.books
        self._peers = peers
        self._asking: dict[str, asyncio.Event] = {}

    def ask(self, channel: Channel) -> None:
        """Until the payee has answered, :meth:`asks` holds."""
        self._asking[channel.name] = asyncio.Event()
        self._shared.tasks.start(self._ask(channel), f"what is held on {channel.channel_id}")

    def asks(self, channel: Channel) -> bool:
        """Whether the payee has not answered yet."""
        return channel.name in self._asking

    def nudge(self, peer: NodeId) -> None:
        """A peer is there: whoever it is, what is unanswered is asked again."""
        for waiting in self._asking.values():
            waiting.set()

    async def _ask(self, channel: Channel) -> None:
        delay_s, most_s = ASK_AGAIN_S
        told = self._asking[channel.name]
        while True:
            known = self._shared.store.channel(channel)
            if known is None or (known.state == "closed" and delay_s == most_s):
                break
            try:
                held = await self._held(known)
                self._recall(channel, held)
                break
            except Refused as error:  # it knows of no such channel, or holds what we have not signed
                log.info("%s holds nothing on channel %s: %s", channel.peer_id, channel.channel_id, error)
                break
            except DECODE_ERRORS as error:
                log.warning("%s does not say what it holds: %s", channel.peer_id, error)
                break
            except (PeerFailed, KeyLocked, TimeoutError) as error:
                log.info("%s does not say what it holds: %s", channel.peer_id, error)
            told.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await told.wait()
            delay_s = min(2 * delay_s, most_s)
        del self._asking[channel.name]
        self._books.wake(channel.owner, waiting_for(channel.peer_id))  # acceptances may wait for this
        self._shared.wake()

    async def _held(self, channel: Channel) -> Held:
        message = HeldMessage(
            issuer=channel.owner,
            recipient=channel.peer_id,
            chain_id=channel.chain_id,
            vault=channel.vault,
            channel_id=channel.channel_id,
        )
        request = msgspec.msgpack.encode(seal("held", message, self._books.signer))
        answer = await self._peers.call(NodeId(channel.peer_id), method_of("held"), request, timeout_s=ASK_TIMEOUT_S)
        return msgspec.msgpack.decode(answer, type=Held)

    def _recall(self, channel: Channel, held: Held) -> None:
        """Raises :class:`BadSignature` for what we have not signed."""
        accepted = [(signed, _acceptance(signed, channel)) for signed in held.acceptances]
        amount, signature = _highest(channel, held, [message for _, message in accepted])
        with self._books.write():
            known = self._shared.store.channel(channel)
            if known is None:
                return
            explained = sum(self._explain(known, signed, message) for signed, message in accepted)
            after = remember(known, amount, signature, explained)
            if after == known or known.state == "closed":
                return
            log.warning(
                "channel %s: vouchers up to %d were forgotten; acceptances explain %d of them",
                channel.channel_id,
                after.signed,
                explained,
            )
            self._shared.store.save(after)

    def _explain(self, channel: Channel, signed: Signed, message: AcceptanceMessage) -> int:
        """Take an acceptance of ours back into the books: what it adds. An agreement that we know nothing of any more was
        made after the copy, and so was all that is owed for it."""
        store = self._books.store
        total = units(message.accepted)
        account = store.account(message.agreement_id, channel.owner)
        if account is None:
            try:
                account = self._books.account(self._books.deal(message.agreement_id, channel.owner))
            except (NotFound, Refused):
                return total
        if (*way_of(channel), channel.payee) != (account.owner, account.peer_id, account.platform, account.payee):
            return 0
        grown = max(total - account.accepted, 0)
        document = store.document(message.document_id, channel.owner)
        if not grown:
            return 0
        result = ledger.Accepted(account, None, grown)
        if document is not None and document.state is State.RECEIVED:
            result = self._accept_again(account, document)
        account = msgspec.structs.replace(result.account, accepted=max(total, result.account.accepted))
        account = self._draw_again(account, grown)
        if document is not None and document.state is State.RECEIVED:
            self._books.accepted(document, account, result, answer=signed.payload, signature=signed.signature)
        else:
            self._books.save(account)
        return grown

    def _accept_again(self, account: ledger.Account, document: Document) -> ledger.Accepted:
        if document.activity_id is None:
            return ledger.accept_invoice(account, document.amount)
        return ledger.accept_note(account, self._books.chain(document.activity_id, account), document.amount)

    def _draw_again(self, account: ledger.Account, amount: int) -> ledger.Account:
        """It was drawn from an allocation that has forgotten it, too; if none is left, it is due."""
        named = self._books.store.allocation(account.allocation_id or "", account.owner)
        active = self._books.store.active_allocations(account.owner)
        for allocation in ([named] if named else []) + [a for a in active if a.platform == account.platform]:
            if not allocation.released:
                spent = min(allocation.spent + amount, allocation.total)
                self._books.store.save_allocation(msgspec.structs.replace(allocation, spent=spent))
                return msgspec.structs.replace(account, allocation_id=allocation.allocation_id)
        account, due = ledger.schedule(account)
        self._books.store.add_due(account, None, due)
        self._books.db.after_commit(self._books.wake_settler)
        return account


def _highest(channel: Channel, held: Held, accepted: Sequence[AcceptanceMessage]) -> tuple[int, bytes]:
    """The highest voucher of all, and its signature. Raises :class:`BadSignature` for one that is not ours."""
    found = [(units(held.amount), held.signature)] if held.signature else []
    parts = [message.voucher for message in accepted if message.voucher is not None]
    found += [(units(part.amount), part.signature) for part in parts if _is_on(channel, part.key)]
    amount, signature = max(found, default=(0, b""))
    if signature:
        by = voucher_signer(vault_of(channel), id_bytes(channel), amount, signature)
        if by != channel.signer:
            raise BadSignature(f"the voucher is signed by {by}")
    return amount, signature


def _is_on(channel: Channel, key: KeyPart) -> bool:
    return (key.payer, key.payee, key.signer, key.nonce) == (
        channel.payer,
        channel.payee,
        channel.signer,
        channel.nonce,
    )


def _acceptance(signed: Signed, channel: Channel) -> AcceptanceMessage:
    """Raises :class:`BadSignature`, or as decoding does, unless it is ours, to this payee."""
    message = msgspec.msgpack.decode(signed.payload, type=AcceptanceMessage)
    if (message.issuer, message.recipient) != (channel.owner, channel.peer_id):
        raise BadSignature("the acceptance is somebody else's")
    verify(method_of("acceptance"), signed.payload, signed.signature, cast(NodeId, message.issuer))
    return message
