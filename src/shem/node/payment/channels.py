"""Payment channels of a node: the loop that does what agreements, time and the chain ask for.

On a channel platform the payer's node reserves money in a vault for each payee that it has live agreements with
(:mod:`~shem.node.payment.channel_payer`), and every acceptance carries a voucher, made in the transaction that accepts.
The payee's node (:mod:`~shem.node.payment.channel_payee`) takes an acceptance only with a voucher that a final block
covers, and starts no work before there is cover. At the end both agree on the sum, and one transaction pays it and
gives the rest back; without that agreement the payer settles, or else the payee redeems alone before the term is over.

All of it is rows: agreements' needs, channels, requests to the vault and orders. The loop looks at them when told and
when the next moment in them comes, and every step may be done again after ``kill -9``.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Collection, Sequence

import msgspec

from shem.cogs.tasks import TaskScope
from shem.node.payment import ledger, protocol
from shem.node.payment.books import Agreements, Books
from shem.node.payment.channel import Channel
from shem.node.payment.channel_books import ChannelBooks, Verification, waiting_for, way_of
from shem.node.payment.channel_cover import Gate
from shem.node.payment.channel_payee import Payee
from shem.node.payment.channel_payer import Payer
from shem.node.payment.channel_store import Way
from shem.node.payment.deal import AgreementView
from shem.node.payment.drivers.base import PaymentDriver, VerifiedTransfer
from shem.node.payment.drivers.channel import ChannelDriver
from shem.node.payment.drivers.vaults import ChainWord, VaultChain
from shem.node.payment.exits import Exits
from shem.node.payment.protocol import AcceptanceMessage, Peers, VoucherPart
from shem.node.payment.store import Transfer

log = logging.getLogger(__name__)

MAX_SLEEP_S = 3600.0
MIN_SLEEP_S = 0.05
RESTS = 9
MAX_REST_S = 2.0
"""After a turn it rests for so many times as long as the turn took, at most for so long."""
SWEEP_S = 3600.0
_OVER = frozenset({"Terminated", "Expired", "Cancelled", "Rejected"})


class Channels:
    """One node's channels. Without a :class:`ChannelDriver` among the drivers it does nothing."""

    def __init__(
        self,
        books: Books,
        peers: Peers,
        market: Agreements,
        drivers: Sequence[PaymentDriver],
        tasks: TaskScope,
        settle_after_s: float | None = None,
        cover_timeout_s: float | None = None,
    ) -> None:
        """The last two override what each network says."""
        self._books = books
        self._peers = peers
        self._tasks = tasks
        self._wake = asyncio.Event()
        self._sweep_at = 0.0
        self._driver = next((driver for driver in drivers if isinstance(driver, ChannelDriver)), None)
        chains: dict[str, VaultChain] = {}
        if self._driver is not None:
            for platform in self._driver.platforms():
                chains[platform.platform] = self._driver.chain(platform.platform)
        self.shared = ChannelBooks(books, chains, tasks)
        self.shared.wake = self._wake.set
        self.payee = Payee(self.shared)
        self.gate = Gate(self.shared, cover_timeout_s)
        self.payer: Payer | None = None
        self.exits: Exits | None = None
        self._verification = Verification(self.shared)
        if self._driver is not None:
            self.payer = Payer(self.shared, peers, self._driver, settle_after_s)
            self.exits = exits = Exits(self.shared, self.payer, self.payee)
            self._driver.on_order(self.payer.order)
            for chain in {id(chain): chain for chain in chains.values()}.values():
                chain.on_word(self._on_word)
                chain.on_word(exits.on_word)
            market.on_agreement(self._agreement_changed)

    def start(self) -> None:
        """Serve peers and go on with what was left undone."""
        if self.payer is None:
            return
        me = self._books.signer
        protocol.serve(self._peers, self._books.db, "channel", protocol.ChannelMessage, me, self.payee.receive_channel)
        protocol.answering(self._peers, "close", protocol.CloseMessage, me, self.payee.answer_close)
        protocol.answering(self._peers, "held", protocol.HeldMessage, me, self.payee.answer_held)
        self.payer.start()
        self.payee.start()
        self.gate.start()
        self._wake.set()
        self._tasks.start(self._run(), "channels")

    async def _run(self) -> None:
        assert self.payer is not None
        assert self.exits is not None
        while True:
            begun = self._books.clock.monotonic()
            self._wake.clear()
            self.payer.step()
            self.payee.step()
            self.exits.step()
            self._forget()
            now = self.shared.now()
            moments = [
                m for m in (*self.payer.next_moment(), *self.payee.next_moment(), *self.exits.next_moment()) if m > now
            ]
            pause_s = min([m - now for m in moments], default=MAX_SLEEP_S)
            # Every acceptance wakes this, and many channels take their time: what else the node does comes first.
            await self._books.clock.sleep(min(RESTS * (self._books.clock.monotonic() - begun), MAX_REST_S))
            await self._pause(max(min(pause_s, MAX_SLEEP_S), MIN_SLEEP_S))

    def _forget(self) -> None:
        """Now and then: rows of what was over long ago."""
        now = self.shared.now()
        if now >= self._sweep_at:
            some_left = self.shared.sweep()
            self._sweep_at = now if some_left else now + SWEEP_S
            if some_left:
                self._wake.set()

    async def _pause(self, seconds: float) -> None:
        """Until told, or until the time has come by the node's clock."""
        timer = self._tasks.start(self._ring(seconds), "channels timer")
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    async def _ring(self, seconds: float) -> None:
        await self._books.clock.sleep(seconds)
        self._wake.set()

    # --- what others ask ---

    @property
    def platforms(self) -> Collection[str]:
        """Those that are paid through channels."""
        return self.shared.chains.keys()

    async def in_vault(self, owner: str, platform: str) -> tuple[int, int]:
        """(what the owner has free in a platform's vault, what lies in its channels there). Raises as looks do.

        Channels that are being closed count as closed: what is left in them may be free already.
        """
        chain, store = self.shared.chains[platform], self.shared.store
        locked = sum(
            channel.reserved - channel.claimed
            for channel in store.live_channels()
            if (channel.owner, channel.role) == (owner, "Requestor")
            and self.shared.chains.get(channel.platform) is chain
            and not any(
                (request.channel_id, request.kind) in ((channel.channel_id, "close"), (channel.channel_id, "release"))
                for request in store.open_requests(*way_of(channel))
            )
        )
        return await chain.free(owner), locked

    def voucher(self, account: ledger.Account, drawn: int) -> VoucherPart | None:
        """See :meth:`Payer.voucher`."""
        return None if self.payer is None else self.payer.voucher(account, drawn)

    def take(self, account: ledger.Account, message: AcceptanceMessage, drawn: int) -> None:
        """See :meth:`Payee.take`."""
        self.payee.take(account, message, drawn)

    async def verify(self, claim: Transfer) -> VerifiedTransfer:
        """See :meth:`Verification.verify`."""
        return await self._verification.verify(claim)

    def refuted(self, claim: Transfer) -> None:
        """See :meth:`Payee.count_later`."""
        if claim.platform in self.shared.chains:
            pair = (claim.owner, claim.platform, claim.payer, claim.payee)
            self.payee.count_later(claim.owner, claim.payer_id, pair)

    async def admit(self, owner: str, agreement_id: str) -> None:
        """See :meth:`Gate.admit`."""
        await self.gate.admit(owner, agreement_id)

    def listed(self, owner: str) -> list[tuple[Channel, list[str]]]:
        """The owner's channels, oldest first, each with the agreements that go on between its two nodes."""
        store = self.shared.store
        going_on: dict[tuple[str, Way], list[str]] = defaultdict(list)
        for role in ("Requestor", "Provider"):  # not a query for each channel: programs look after each bill
            for cover in store.live_covers(role):
                going_on[role, way_of(cover)].append(cover.agreement_id)
        return [(channel, going_on.get((channel.role, way_of(channel)), [])) for channel in store.channels(owner)]

    def changed(self) -> None:
        """Allocations or documents have changed: look again after the commit, or now when there is none."""
        self._wake.set()

    def unlocked(self) -> None:
        """See :meth:`Payer.unlocked`."""
        if self.payer is not None:
            self.payer.unlocked()

    # --- what happens ---

    def _on_word(self, word: ChainWord) -> None:
        request = self.shared.store.request(word.request_id)
        if request is None or self.payer is None:
            return
        if request.kind == "redeem":
            self.payee.on_word(request, word)
        else:
            self.payer.on_word(request, word)

    def _agreement_changed(self, agreement: AgreementView, state: str) -> None:
        """The market's word, inside its transaction."""
        owner = agreement.requestor_id if agreement.role == "Requestor" else agreement.provider_id
        if state == "Approved":
            if self.shared.save_cover(agreement, owner) is not None:
                self.shared.wake_later()
        elif state in _OVER:
            cover = self.shared.store.cover(owner, agreement.agreement_id)
            if cover is not None and cover.live:
                ended = msgspec.structs.replace(cover, live=False, changed_at=int(self.shared.now()))
                self.shared.store.save_cover(ended)
                self.gate.ended(agreement.agreement_id)
                self.shared.wake_later()
                self._books.wake(owner, waiting_for(cover.peer_id))
