"""What both sides of payment channels share: rows, vaults, and looks at the chain."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Mapping

from shem.cogs.tasks import TaskScope
from shem.errors import PeerFailed, Refused
from shem.node.payment.books import Books
from shem.node.payment.channel import PAY_S, Channel, Cover, Seen, cover_wanted, ends_at, observe, term_after
from shem.node.payment.channel_store import ChannelStore, Pair, Request, RequestKind, Target, Way
from shem.node.payment.deal import AgreementView, NoDeal, deal_of
from shem.node.payment.drivers.base import NotFinalYet, VerifiedTransfer
from shem.node.payment.drivers.evm.vault import ChannelKey, Vault
from shem.node.payment.drivers.vaults import Look, VaultChain
from shem.node.payment.store import Transfer

log = logging.getLogger(__name__)

LOOK_TIMEOUT_S = 30.0
KEEP_S = 30 * 86400
"""How long rows of what is over are kept: much longer than anything that names them may be under way."""


class ChannelBooks:
    """What payer and payee share: rows, vaults, looks at the chain."""

    def __init__(self, books: Books, chains: Mapping[str, VaultChain], tasks: TaskScope) -> None:
        self.books = books
        self.store = ChannelStore(books.db)
        self.chains = chains
        self.tasks = tasks
        self._behind_s: dict[tuple[int, str], float] = {}
        """By vault: how far our clock is behind its chain's."""
        self.closed: Callable[[Channel], None] = lambda channel: None
        """Told of channels that pay this node and that their payer has ended alone."""
        self.wake: Callable[[], None] = lambda: None
        """Have the loop look at the rows again."""

    def now(self) -> float:
        """Unix seconds."""
        return self.books.clock.now().timestamp()

    def now_on(self, platform: str) -> float:
        """The same, or the time of the last final block that was seen, if that is later: terms end by the chain's time,
        and our clock may be behind."""
        return self.now() + self._behind_s.get(self._vault(platform), 0.0)

    def _vault(self, platform: str) -> tuple[int, str]:
        vault = self.chains[platform].vault
        return vault.chain_id, vault.address

    def wake_later(self) -> None:
        """After the transaction that is open."""
        self.books.db.after_commit(self.wake)

    def margin_s(self, platform: str) -> float:
        """See :attr:`VaultChain.margin_s`."""
        return self.chains[platform].margin_s

    def unaccepted(self, channel: Channel) -> bool:
        """Whether documents ask for money that is not accepted, and may be yet, through this channel."""
        return self.now() < self.unaccepted_until(channel)

    def unaccepted_until(self, channel: Channel) -> float:
        """When such documents have waited so long that nobody is taken to accept them any more, Unix seconds; zero if there
        are none."""
        until = 0.0
        for account in self.books.store.asking(*way_of(channel)):
            cover = self.store.cover(account.owner, account.agreement_id)
            if cover is not None and is_paid_through(cover, channel):
                ended_at = max(cover.ends_at, cover.changed_at) if cover.live else cover.changed_at
                until = max(until, ended_at + max(cover.after_s, PAY_S))
        return until

    def undelivered(self, way: Way) -> bool:
        """Whether the peer has not yet heard of something that was accepted, or of the channel itself."""
        owner, peer_id, _ = way
        return any(self.store.has_letter(owner, peer_id, kind) for kind in ("acceptance", "channel"))

    async def look(self, channel: Channel) -> tuple[Channel, Look]:
        """The channel after a look at a final block, and what was seen. Raises as :meth:`VaultChain.look` does."""
        async with asyncio.timeout(LOOK_TIMEOUT_S):
            seen = await self.chains[channel.platform].look(key_of(channel))
        self._behind_s[self._vault(channel.platform)] = max(seen.block_time - self.now(), 0.0)
        with self.books.write():
            known = self.store.channel(channel) or channel
            if not seen.opened:
                return known, seen
            after = observe(known, Seen(seen.reserved, seen.claimed, seen.valid_until))
            if after != known:
                self.store.save(after)
                if after.role == "Provider" and (after.state, known.state) == ("closed", "open"):
                    self.books.db.after_commit(lambda: self.closed(after))
                self.wake_later()
                self.books.wake(channel.owner, waiting_for(channel.peer_id))
        return after, seen

    def channel_of(self, owner: str, platform: str, channel_id: str) -> Channel | None:
        """A channel in a platform's vault."""
        chain = self.chains.get(platform)
        if chain is None:
            return None
        return self.store.channel_at(owner, chain.vault.chain_id, chain.vault.address, channel_id)

    def request(self, kind: RequestKind, way: Way, payer: str, payee: str, channel_id: str, amount: int) -> Request:
        """A new row for what is going to be asked of the vault, in the caller's transaction."""
        owner, peer_id, platform = way
        request = Request(
            request_id=str(uuid.uuid4()),
            owner=owner,
            kind=kind,
            peer_id=peer_id,
            platform=platform,
            payer=payer,
            payee=payee,
            channel_id=channel_id,
            amount=amount,
            created_at=int(self.now()),
        )
        self.store.save_request(request)
        return request

    def sweep(self) -> bool:
        """Forget some of what was over long ago; whether there may be more."""
        now = int(self.now())
        with self.books.db.transaction():
            self.store.end_covers(now)
            return self.store.sweep(now - KEEP_S)

    def save_cover(self, agreement: AgreementView, owner: str) -> Cover | None:
        """Note what an approved agreement needs; ``None`` for one that is not paid through channels."""
        try:
            deal = deal_of(agreement, owner)
        except NoDeal:
            return None
        if deal.platform not in self.chains:
            return None
        finality_s = self.chains[deal.platform].terms.finality_s
        wanted, least = cover_wanted(deal.pricing, agreement.demand_properties, agreement.offer_properties, finality_s)
        cover = Cover(
            owner=owner,
            agreement_id=deal.agreement_id,
            role="Requestor" if deal.role == "Requestor" else "Provider",
            peer_id=deal.peer_id,
            platform=deal.platform,
            payer=deal.payer,
            payee=deal.payee,
            wanted=wanted,
            least=least,
            ends_at=ends_at(agreement.demand_properties, self.now()),
            after_s=term_after(agreement.offer_properties),
            changed_at=int(self.now()),
        )
        self.store.save_cover(cover)
        return cover


class Verification:
    """Looks at what a payer claims to have paid through channels."""

    def __init__(self, shared: ChannelBooks) -> None:
        self._shared = shared

    async def verify(self, claim: Transfer) -> VerifiedTransfer:
        """What all channels between the two have paid. Raises :class:`NotFinalYet`, or as looks do."""
        shared = self._shared
        last: Look | None = None
        pair = (claim.owner, claim.platform, claim.payer, claim.payee)
        for channel in shared.store.live_between("Provider", pair):
            _, last = await shared.look(channel)
        total = shared.store.claimed("Provider", pair)
        if total < claim.amount:
            raise NotFinalYet("the channels between the two have not paid that much in a final block")
        return VerifiedTransfer(
            platform=claim.platform,
            tx_hash=claim.tx_hash,
            payer=claim.payer,
            payee=claim.payee,
            amount_units=total,
            block_number=last.block_number if last else 0,
            block_hash=last.block_hash if last else "",
            pot=pot_of(claim.platform, claim.payer, claim.payee),
        )


def pot_of(platform: str, payer: str, payee: str) -> str:
    """Claims on what channels between two addresses have paid are counted together."""
    return f"{platform}:{payer}:{payee}"


def key_of(channel: Channel) -> ChannelKey:
    """As the vault names it."""
    return ChannelKey(channel.payer, channel.payee, channel.signer, channel.nonce)


def vault_of(channel: Channel) -> Vault:
    """Where its vouchers count."""
    return Vault(channel.chain_id, channel.vault)


def id_bytes(channel: Channel) -> bytes:
    """What is signed as its name."""
    return bytes.fromhex(channel.channel_id[2:])


def way_of(item: Channel | Cover) -> Way:
    """Between whom, where."""
    return item.owner, item.peer_id, item.platform


def is_paid_through(cover: Cover, channel: Channel) -> bool:
    """Whether the channel may pay the agreement. Two nodes may each pay the other, and a payee may move."""
    return way_of(cover) == way_of(channel) and (cover.role, cover.payee) == (channel.role, channel.payee)


def pair_of(item: Channel | Target | Request) -> Pair:
    """Between which addresses."""
    return item.owner, item.platform, item.payer, item.payee


def waiting_for(peer_id: str) -> str:
    """The pulse that tells of a peer's channels."""
    return f"channels with {peer_id}"


LOOK_ERRORS = (PeerFailed, Refused, TimeoutError)
"""What a look at the chain raises when there is no answer to be had now."""
