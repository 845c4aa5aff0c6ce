"""The payer's half of payment channels: reserve ahead, sign vouchers, pay and close at the end.

One channel for each payee on each platform is used for all agreements; another is opened only when the first one ends.
A voucher is signed in the transaction that accepts a document, on what a final block holds. When nothing goes on any more
with a payee, the channel is marked as closing *before* the payee is asked for its signature: from then on nothing is
signed on it, whatever becomes of the question. A payee that does not answer is paid by ``settle`` and the rest comes back
after the term.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection

import msgspec

from shem.errors import MoneyShort, Refused
from shem.node.payment import ledger
from shem.node.payment.channel import Channel, Cover, NoChannel, Seen, may_close, observe, plan, sign_up
from shem.node.payment.channel_books import (
    LOOK_ERRORS,
    ChannelBooks,
    id_bytes,
    is_paid_through,
    key_of,
    pair_of,
    vault_of,
    waiting_for,
    way_of,
)
from shem.node.payment.channel_budgets import Budgets
from shem.node.payment.channel_closer import Closer, way_of_target
from shem.node.payment.channel_memory import Memory
from shem.node.payment.channel_store import Pair, Request, RequestKind, Target, Way
from shem.node.payment.drivers.base import PaymentOrder, Settlement
from shem.node.payment.drivers.channel import ChannelDriver
from shem.node.payment.drivers.evm.vault import voucher_digest
from shem.node.payment.drivers.vaults import ChainWord, Ended, Failed, Opened
from shem.node.payment.protocol import ChannelMessage, KeyPart, Peers, VoucherPart
from shem.terms.ids import NodeId

log = logging.getLogger(__name__)

REST = 60
"""A channel is closed when it was not needed for so small a part of the margin, although its payer has allocations."""
LOOK_AGAIN_S = (1.0, 60.0)
SHORT_S = 60
"""What an agent could not accept is reserved for unless it has not tried again for so long."""
NO_TRANSACTION = "0x" + 64 * "0"
"""What paid is forgotten, or the payee has waived it."""
RETRY_S = 10
"""A request that the chain refused is made again no sooner."""


class Short(msgspec.Struct, frozen=True):
    """So much was to be accepted, and what is reserved did not suffice."""

    payer: str
    drawn: int
    until: float


class Payer:
    """Channels that this node pays through."""

    def __init__(self, shared: ChannelBooks, peers: Peers, driver: ChannelDriver, settle_after_s: float | None) -> None:
        self._shared = shared
        self._books = shared.books
        self._store = shared.store
        self._peers = peers
        self._driver = driver
        self._settle_after_s = settle_after_s
        self._looking: set[str] = set()
        self._not_before: dict[Way, float] = {}
        self._blind_s: dict[str, float] = {}
        """Channels that could not be looked at, and how long they are left alone for that."""
        self._closer = Closer(shared, peers)
        self._leaving: set[str] = set()
        """Channels that end as soon as nothing goes on, allocations or not."""
        self._unseen: set[str] = set()
        """Channels of an earlier run that were not compared with the chain yet: a database may be an older copy."""
        self._memory = Memory(shared, peers)
        self._short: dict[tuple[Way, str], Short] = {}
        """By way and payee's address: what agents wanted to accept of late, and what was reserved did not suffice."""

    def start(self) -> None:
        """Compare what is remembered with the chain, and with what payees hold, before anything is signed on it."""
        self._peers.on_connected(self._on_connected)
        for channel in self._store.live_channels():
            if channel.role == "Requestor" and channel.platform in self._shared.chains:
                self._unseen.add(channel.name)
                self._start_look(channel, None)
                self._memory.ask(channel)

    async def _on_connected(self, peer: NodeId) -> None:
        """Who was away when a channel was to be closed may be asked again."""
        self._memory.nudge(peer)
        for channel in self._store.live_channels():
            if channel.peer_id == peer and self._closer.forgive(channel):
                self._shared.wake()

    def unlocked(self) -> None:
        """Our key can sign again: ask now what could not be asked without it."""
        self._memory.nudge(self._books.signer.node_id)
        self._closer.forgive_all()
        self._shared.wake()

    # --- in others' transactions ---

    def voucher(self, account: ledger.Account, drawn: int) -> VoucherPart | None:
        """The voucher that an acceptance of ``drawn`` more must carry; ``None`` where none is due.

        Raises :class:`~shem.node.payment.channel.CoverShort`, :class:`NoChannel`.
        """
        if account.platform not in self._shared.chains or not drawn:
            return None
        way = (account.owner, account.peer_id, account.platform)
        try:
            part = self._voucher(way, account.payee, drawn)
        except MoneyShort:  # the transaction is taken back, but not what we learnt
            self._short[way, account.payee] = Short(account.payer, drawn, self._shared.now() + SHORT_S)
            self._shared.wake()
            raise
        self._short.pop((way, account.payee), None)
        return part

    def _voucher(self, way: Way, payee: str, drawn: int) -> VoucherPart:
        platform = way[2]
        now, margin_s = self._shared.now_on(platform), self._shared.margin_s(platform)
        fitting = [
            c
            for c in self._store.of_way("Requestor", way)
            if c.state == "open"
            and c.payee == payee
            and c.signer == self._books.voucher_signer.node_id
            and c.name not in self._unseen
            and not self._memory.asks(c)
        ]
        if not fitting:
            raise NoChannel("nothing is reserved for this provider yet", hint="try again in a moment")
        best = next((c for c in fitting if c.room >= drawn and now < c.valid_until - margin_s), fitting[-1])
        channel = sign_up(best, drawn, now, margin_s)
        digest = voucher_digest(vault_of(channel), id_bytes(channel), channel.signed)
        channel = msgspec.structs.replace(channel, signature=self._books.voucher_signer.sign_digest(digest))
        self._store.save(channel)
        self._shared.wake_later()
        assert channel.signature is not None
        return VoucherPart(key=key_part(channel), amount=str(channel.signed), signature=channel.signature)

    def order(self, order: PaymentOrder) -> None:
        """What is due on a channel is paid when the channel ends, or after a while."""
        if self._store.target(order.order_id) is not None:
            return
        stored = self._books.store.order(order.order_id)
        now, after_s = self._shared.now(), self._settle_after_s
        if after_s is None:
            after_s = self._shared.chains[order.platform].terms.settle_after_s
        owner = order.payer if stored is None else stored.owner
        self._store.save_target(
            Target(
                order_id=order.order_id,
                owner=owner,
                peer_id=order.payee if stored is None else stored.peer_id,
                platform=order.platform,
                payer=order.payer,
                payee=order.payee,
                amount=order.amount_units,
                target=self._store.last_target((owner, order.platform, order.payer, order.payee)) + order.amount_units,
                settle_at=int(now + after_s),
            )
        )
        self._shared.wake_later()

    def on_word(self, request: Request, word: ChainWord) -> None:
        """What the chain says of a request of the payer's, inside the chain side's transaction."""
        if isinstance(word, Opened):
            if word.final:
                self._opened(request, word)
        elif isinstance(word, Failed):
            log.error("%s of %s for %s failed: %s", request.kind, request.payer, request.payee, word.message)
            self._failed(request)
        else:
            self._ended(request, word)

    def _failed(self, request: Request) -> None:
        """Asked for again after a while, under another id and after another look. A close needs the payee's word anew."""
        self._not_before[request.owner, request.peer_id, request.platform] = self._shared.now() + RETRY_S
        channel = self._shared.channel_of(request.owner, request.platform, request.channel_id)
        if request.kind == "close" and channel is not None:
            self._store.save(msgspec.structs.replace(channel, close_signature=None))
        self._finish(request, "failed", "")

    def _opened(self, request: Request, word: Opened) -> None:
        if request.state != "open":
            return
        channel_id = "0x" + word.key.id.hex()
        vault = self._shared.chains[request.platform].vault
        known = self._shared.channel_of(request.owner, request.platform, channel_id) or Channel(
            owner=request.owner,
            channel_id=channel_id,
            role="Requestor",
            peer_id=request.peer_id,
            platform=request.platform,
            payer=word.key.payer,
            payee=word.key.payee,
            signer=word.key.signer,
            nonce=word.key.nonce,
            chain_id=vault.chain_id,
            vault=vault.address,
            opened_tx=word.tx_hash,
            created_at=int(self._shared.now()),
        )
        reserved, until = max(word.reserved, known.reserved), max(word.valid_until, known.valid_until)
        channel = observe(known, Seen(reserved, known.claimed, until))
        self._store.save(channel)
        self._books.wake(request.owner, waiting_for(request.peer_id))
        self._finish(request, "done", word.tx_hash)
        message = ChannelMessage(
            issuer=request.owner,
            recipient=request.peer_id,
            platform=request.platform,
            chain_id=vault.chain_id,
            vault=vault.address,
            key=key_part(channel),
            tx_hash=word.tx_hash,
        )
        self._books.post(request.owner, request.peer_id, "channel", message, channel_id)

    def _ended(self, request: Request, word: Ended) -> None:
        if request.state != "open":
            return
        self._finish(request, "done", word.tx_hash)
        channel = self._shared.channel_of(request.owner, request.platform, request.channel_id)
        if channel is None:
            return
        if request.kind in ("settle", "close"):
            channel = msgspec.structs.replace(channel, claimed=max(channel.claimed, request.amount))
        if request.kind in ("close", "release"):
            channel = msgspec.structs.replace(channel, state="closed")
        self._store.save(channel)
        self._complete(pair_of(channel), word)

    def _finish(self, request: Request, state: str, tx_hash: str) -> None:
        self._store.save_request(msgspec.structs.replace(request, state=state, tx_hash=tx_hash))
        self._shared.wake_later()

    def _complete(self, pair: Pair, word: Ended) -> None:
        """Every order that what was claimed reaches is paid."""
        for target in self._store.open_between(pair, self._store.claimed("Requestor", pair)):
            self._store.save_target(msgspec.structs.replace(target, done=True))
            self._driver.finish(
                Settlement(
                    order_id=target.order_id,
                    tx_hash=word.tx_hash or NO_TRANSACTION,
                    block_number=word.block_number,
                    block_hash=word.block_hash,
                    gas_used=word.gas_used,
                )
            )

    # --- for an owner that wants its money back ---

    def leave(self, names: set[str]) -> None:
        """Close these channels as soon as nothing goes on, even if their payers have allocations, and no others."""
        for name in names - self._leaving:
            self._closer.hurry(name)
            self._shared.wake()
        self._leaving = names

    def talks(self, channel: Channel) -> bool:
        """Whether the payee is being asked to close it, or is going to be."""
        if self._closer.asks(channel):
            return True
        if channel.state == "open":
            return self._idle(channel)
        return channel.close_signature is None and self._closer.may_ask(channel)

    def acts(self, channel: Channel) -> bool:
        """Whether something that is asked of the chain is under way."""
        requests = self._store.open_requests(*way_of(channel))
        return channel.name in self._looking or any(r.channel_id == channel.channel_id for r in requests)

    def settle_now(self, channel: Channel) -> None:
        """Pay what is signed, whatever goes on."""
        if not self.acts(channel):
            self._start_look(channel, "settle")

    # --- the loop's turn ---

    def step(self) -> None:
        """Do what the rows ask for now; while our key is locked, only see what is paid already."""
        if self._books.signer.locked:
            self._notice_paid()
            return
        now = self._shared.now()
        live = self._store.live_channels()
        self._not_before = {way: moment for way, moment in self._not_before.items() if moment > now}
        self._short = {place: short for place, short in self._short.items() if short.until > now}
        budgets = Budgets(self._books, self._store, live, lambda channel, them: self._serves(channel, now, them))
        covers: dict[tuple[Way, str], list[Cover]] = defaultdict(list)
        for cover in self._store.live_covers("Requestor"):
            if budgets.pay_for(cover):
                covers[way_of(cover), cover.payee].append(cover)
        for way, payee in dict.fromkeys((*covers, *self._short)):
            if way[2] not in self._shared.chains:
                continue
            try:
                self._reserve(way, payee, covers.get((way, payee), []), now, budgets)
            except Refused as error:
                log.error("nothing can be reserved for %s on %s: %s", way[1], way[2], error)
                self._not_before[way] = now + RETRY_S
        due = {way_of_target(target) for target in self._store.due(now)}
        for channel in live:
            if channel.role == "Requestor" and channel.platform in self._shared.chains:
                self._tend(channel, now, due)
        self._closer.prune(live)
        self._notice_paid()

    def _notice_paid(self) -> None:
        """Orders of what was paid before they came, or by the payee's own doing."""
        for target in self._store.waiting_pairs():
            pair = pair_of(target)
            if target.platform in self._shared.chains and target.target <= self._store.claimed("Requestor", pair):
                channel = self._store.last_between("Requestor", pair)
                if channel is None:  # forgotten since: it was paid long ago
                    with self._books.write():
                        self._complete(
                            pair, Ended(request_id="", tx_hash="", block_number=0, block_hash="", gas_used=0)
                        )
                elif channel.name not in self._looking:
                    self._start_look(channel, None)

    def next_moment(self) -> list[float]:
        """When time alone asks for another turn."""
        settle_at = self._store.next_settle()
        moments = [] if settle_at is None else [float(settle_at)]
        live = [c for c in self._store.live_channels() if c.role == "Requestor" and c.platform in self._shared.chains]
        moments += [float(channel.valid_until + 1) for channel in live]
        for channel in live:
            if channel.state == "open":
                moments += (self._rested_at(channel), self._shared.unaccepted_until(channel))
        return moments + list(self._not_before.values()) + self._closer.next_moments()

    def _reserve(self, way: Way, payee: str, covers: list[Cover], now: float, budgets: Budgets) -> None:
        """For one payee's address: what is reserved for another that the same node had before pays nothing here."""
        owner, _, platform = way
        pending = [request for request in self._store.open_requests(*way) if request.payee == payee]
        if any(request.kind in ("reserve", "extend") for request in pending) or self._not_before.get(way, 0) > now:
            return
        now, margin_s = self._shared.now_on(platform), self._shared.margin_s(platform)
        channels = [c for c in self._store.of_way("Requestor", way) if c.payee == payee]
        short = self._short.get((way, payee))
        usable = [c for c in channels if self._may_sign_on(c)]
        channel = usable[-1] if usable else None
        asked = 0 if short is None else short.drawn
        grow = plan(channel, covers, budgets.left(owner, platform), now, margin_s, asked)
        if grow is None:
            return
        budgets.take(owner, platform, grow.add)
        payer = covers[0].payer if short is None else short.payer
        chain, connection = self._shared.chains[platform], self._books.db.connection
        with self._books.write():
            if channel is None:
                request = self._shared.request("reserve", way, payer, payee, "", grow.add)
                chain.reserve(
                    connection,
                    request.request_id,
                    payer=request.payer,
                    payee=request.payee,
                    signer=self._books.voucher_signer.node_id,
                    amount=grow.add,
                    valid_until=grow.valid_until,
                )
            else:
                request = self._shared.request(
                    "extend", way, channel.payer, channel.payee, channel.channel_id, grow.add
                )
                chain.extend(connection, request.request_id, key_of(channel), grow.add, grow.valid_until)

    def _tend(self, channel: Channel, now: float, due: Collection[Way]) -> None:
        """Close what is idle, pay what is due, take back what is over."""
        way = way_of(channel)
        if self._closer.asks(channel) or channel.name in self._looking or self._not_before.get(way, 0) > now:
            return
        if any(r.channel_id == channel.channel_id for r in self._store.open_requests(*way)):
            return
        if channel.name in self._unseen:
            self._start_look(channel, None)
            return
        may_ask = self._closer.may_ask(channel)
        half_closed = channel.state == "closing" and channel.close_signature is None
        if self._shared.now_on(channel.platform) > channel.valid_until:
            self._start_look(channel, "settle" if channel.signed > channel.claimed else "release")
        elif may_ask and (half_closed or self._idle(channel)):
            self._closer.start(channel)
        elif channel.signed > channel.claimed and (way in due or self._rests(channel, now)):
            self._start_look(channel, "settle")

    def _idle(self, channel: Channel) -> bool:
        now = self._shared.now()
        allocations = self._books.store.active_allocations(channel.owner)
        wanted = channel.name not in self._leaving and now < self._rested_at(channel)
        return may_close(
            channel,
            live=self._goes_on(channel, now),
            unaccepted=self._shared.unaccepted(channel) or self._shared.undelivered(way_of(channel)),
            allocated=wanted and any(a.platform == channel.platform for a in allocations),
        )

    def _rests(self, channel: Channel, now: float) -> bool:
        """Nothing goes on, and yet it does not close: a bill that nobody accepts any more must not hold up what was."""
        return channel.state == "open" and not self._goes_on(channel, now) and now >= self._rested_at(channel)

    def _serves(self, channel: Channel, now: float, budgets: Budgets) -> bool:
        """Whether what it holds is for what today's allocations are to pay."""
        if not self._may_sign_on(channel):
            return False
        way = way_of(channel)
        if (way, channel.payee) in self._short:
            return True
        covers = [
            cover
            for cover in self._store.live_covers("Requestor", way)
            if cover.lives(now) and is_paid_through(cover, channel)
        ]
        return any(budgets.pay_for(cover) for cover in covers) if covers else not self._rests(channel, now)

    def _may_sign_on(self, channel: Channel) -> bool:
        """Whether a voucher may be signed on it now: by a key that was changed since, or near its end, none is."""
        until = channel.valid_until - self._shared.margin_s(channel.platform)
        ours = channel.signer == self._books.voucher_signer.node_id
        return channel.state == "open" and ours and self._shared.now_on(channel.platform) < until

    def _goes_on(self, channel: Channel, now: float) -> bool:
        """Whether work that it pays for may still come, or its bills."""
        way = way_of(channel)
        return (way, channel.payee) in self._short or any(
            cover.lives(now) and is_paid_through(cover, channel) for cover in self._store.live_covers("Requestor", way)
        )

    def _rested_at(self, channel: Channel) -> float:
        """When a channel has been without work for so long that nothing is expected, allocations or not."""
        since = self._store.last_change("Requestor", way_of(channel))
        return since + self._shared.margin_s(channel.platform) / REST

    def _start_look(self, channel: Channel, then: RequestKind | None) -> None:
        self._looking.add(channel.name)
        self._shared.tasks.start(self._look(channel, then), f"look at channel {channel.channel_id}")

    async def _look(self, channel: Channel, then: RequestKind | None) -> None:
        """The payee may have acted meanwhile: see first, then settle or release what is left to do."""
        try:
            channel, seen = await self._shared.look(channel)
            self._unseen.discard(channel.name)
            with self._books.write():
                self._books.wake(channel.owner, waiting_for(channel.peer_id))  # acceptances may wait for this look
                word = Ended(
                    request_id="",
                    tx_hash=seen.paid_tx,
                    block_number=seen.block_number,
                    block_hash=seen.block_hash,
                    gas_used=0,
                )
                self._complete(pair_of(channel), word)
                if not seen.is_open:
                    then = None
                chain, connection = self._shared.chains[channel.platform], self._books.db.connection
                parts = (way_of(channel), channel.payer, channel.payee, channel.channel_id)
                if then == "release":
                    chain.release(connection, self._shared.request("release", *parts, 0).request_id, key_of(channel))
                elif then == "settle" and channel.signed > channel.claimed:
                    request = self._shared.request("settle", *parts, channel.signed)
                    chain.settle(connection, request.request_id, key_of(channel), channel.signed)
            self._blind_s.pop(channel.name, None)
        except LOOK_ERRORS as error:
            log.info("channel %s cannot be looked at now: %s", channel.channel_id, error)
            self._blind_s[channel.name] = min(2 * self._blind_s.get(channel.name, LOOK_AGAIN_S[0]), LOOK_AGAIN_S[1])
        finally:
            await self._pause_then_wake(channel)

    async def _pause_then_wake(self, channel: Channel) -> None:
        """A look that led to nothing is not repeated at once, one that failed less and less often."""
        blind_s = self._blind_s.get(channel.name)
        if blind_s is not None or not self._store.open_requests(*way_of(channel)):
            await self._books.clock.sleep(blind_s or LOOK_AGAIN_S[0])
        self._looking.discard(channel.name)
        self._shared.wake()


def key_part(channel: Channel) -> KeyPart:
    """As messages name it."""
    return KeyPart(payer=channel.payer, payee=channel.payee, signer=channel.signer, nonce=channel.nonce)
