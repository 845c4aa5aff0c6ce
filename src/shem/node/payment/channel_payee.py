"""The payee's half of payment channels: look for cover, take vouchers, agree to the end, or collect alone.

Nothing a payer says is believed: a channel counts as far as a final block shows it. Work starts when there is cover for
it, an acceptance counts when its voucher does, and a close is signed for the highest voucher only. What is held and not
paid when the term gets near is redeemed without the payer.
"""

from __future__ import annotations

import logging
import uuid
from contextlib import suppress

import msgspec

from shem.errors import PeerFailed, Refused
from shem.node.identity.signing import BadSignature
from shem.node.payment import ledger
from shem.node.payment.channel import (
    Channel,
    Cover,
    CoverNotSeen,
    Voucher,
    VoucherLow,
    VoucherMissing,
    VoucherWrong,
    agree_to_close,
    lend,
    redeem_moment,
    spare_of,
    take_voucher,
)
from shem.node.payment.channel_books import (
    KEEP_S,
    LOOK_ERRORS,
    ChannelBooks,
    id_bytes,
    is_paid_through,
    key_of,
    pair_of,
    pot_of,
    vault_of,
    waiting_for,
    way_of,
)
from shem.node.payment.channel_store import Pair, Request, Way
from shem.node.payment.drivers.evm.vault import ChannelKey, close_digest, voucher_signer
from shem.node.payment.drivers.vaults import ChainWord, Failed, Look
from shem.node.payment.protocol import (
    MAX_HELD,
    AcceptanceMessage,
    ChannelMessage,
    CloseMessage,
    Held,
    HeldMessage,
    Signed,
    VoucherPart,
    units,
)
from shem.node.payment.settlement import sessions_of
from shem.node.payment.store import Part, Transfer

log = logging.getLogger(__name__)

MAX_CHANNELS = 64
"""Channels of one peer at once; those that it does not close count until their terms are over."""
MAX_UNSEEN = 8
"""Of them, those that no final block has shown yet: each costs looks."""
AGREED_S = 7 * 86400
"""A channel may be announced for an agreement that goes on, or ended so long ago."""
INVOICE_GRACE_S = 60
"""An agreement that ended so shortly ago may still be invoiced."""
LOOK_AGAIN_S = (0.2, 5.0)
LOOK_AT_END_S = (0.5, 60.0)
"""How soon, and at last how often, the chain is looked at for the end of a channel that we agreed to close."""
COUNT_AFTER_S = 600.0
"""How long a payer may take to say what it has paid for by ending a channel alone."""
LOOK_AFTER_S = 3600.0
"""The same after its term, when only its payer gains by ending it."""
LOOKS = 40
"""How often a channel that was announced is looked for."""
RETRY_S = (10.0, 60.0)
"""How soon a redemption is tried again, and at last how often while the chain cannot be asked."""


class WrongChannel(Refused):
    """That is no channel between us in the vault of this platform."""

    default_code = "channel_mismatch"


class PayoutCold(Refused):
    """The payee's address is no key of this node."""

    default_code = "payout_cold"


class Payee:
    """Channels that this node is paid through."""

    def __init__(self, shared: ChannelBooks) -> None:
        self._shared = shared
        self._books = shared.books
        self._store = shared.store
        self._looking: set[str] = set()
        self._not_before: dict[str, float] = {}
        self._end_delay_s: dict[str, float] = {}
        self._redeeming: set[str] = set()
        self._redeem_at: dict[str, float] = {}
        """When a redemption may be tried again. Apart from looks, which a payer brings about as often as it likes: else its
        letters could keep us from collecting until the term is over."""
        self._redeem_s: dict[str, float] = {}
        self._told: set[str] = set()
        """Channels whose payers had news while they were looked at."""
        shared.closed = lambda channel: self._count_soon(channel.owner, channel.peer_id, pair_of(channel))

    def start(self) -> None:
        """Look for what was announced before, and for what has come and was never told of."""
        for owner, peer_id, *rest in self._store.unpaid_pairs():
            pair = (owner, *rest)
            if pair[1] in self._shared.chains:
                self._count_soon(owner, peer_id, (pair[0], pair[1], pair[2], pair[3]))
        for channel in self._store.live_channels():
            if channel.role == "Provider" and channel.platform in self._shared.chains:
                self._watch(channel)

    # --- cover ---

    def receive_channel(self, message: ChannelMessage, signed: Signed) -> None:
        """A payer says that it has reserved money for us."""
        chain = self._shared.chains.get(message.platform)
        owner = message.recipient
        way = (owner, message.issuer, message.platform)
        if chain is None or (chain.vault.chain_id, chain.vault.address) != (message.chain_id, message.vault):
            raise WrongChannel(f"this node is not paid through {message.vault} on {message.platform[:60]!r}")
        agreed = self._agreed(way)
        if not agreed:
            raise CoverNotSeen("there is no agreement that this channel would pay")
        if (message.key.payer, message.key.payee) not in {(cover.payer, cover.payee) for cover in agreed}:
            raise WrongChannel("the channel is not between the agreement's two addresses")
        key = ChannelKey(message.key.payer, message.key.payee, message.key.signer, message.key.nonce)
        with self._books.write():
            found = self._note(way, key, message.tx_hash)
            self._books.db.after_commit(lambda: self._hear_of(found))

    def _agreed(self, way: Way) -> list[Cover]:
        """Agreements that channels may pay: all that go on, however long they last, and those of late, newest first."""
        late = self._store.covers_since("Provider", way, self._shared.now() - AGREED_S)
        found = {cover.agreement_id: cover for cover in (*self._store.live_covers("Provider", way), *late)}
        return sorted(found.values(), key=lambda cover: (cover.live, cover.changed_at), reverse=True)

    def _note(self, way: Way, key: ChannelKey, tx_hash: str) -> Channel:
        """The row of a channel that somebody names. Raises :class:`WrongChannel`."""
        owner, peer_id, platform = way
        vault = self._shared.chains[platform].vault
        channel_id = "0x" + key.id.hex()
        channel = self._store.channel_at(owner, vault.chain_id, vault.address, channel_id)
        if channel is not None:
            if channel.role != "Provider" or way_of(channel) != way:
                raise WrongChannel("that channel is not yours")
            return channel
        if self._store.is_forgotten(owner, vault, key):
            raise WrongChannel("that channel was over long ago")
        known, unseen = self._store.known_of(owner, peer_id)
        if known >= MAX_CHANNELS or unseen >= MAX_UNSEEN:
            raise WrongChannel(f"{known} channels between us are open already, {unseen} of them nowhere")
        channel = Channel(
            owner=owner,
            channel_id=channel_id,
            role="Provider",
            peer_id=peer_id,
            platform=platform,
            payer=key.payer,
            payee=key.payee,
            signer=key.signer,
            nonce=key.nonce,
            chain_id=vault.chain_id,
            vault=vault.address,
            opened_tx=tx_hash,
            created_at=int(self._shared.now()),
        )
        self._store.save(channel)
        return channel

    def _hear_of(self, channel: Channel) -> None:
        """Its payer says that there is news: look soon, but not at every repeated letter."""
        if channel.name in self._looking:
            self._told.add(channel.name)  # the look that is under way may be too early
            return
        now = self._shared.now()
        earliest = max(self._not_before.get(channel.name, now), now)
        self._not_before[channel.name] = earliest + 1
        self._watch(channel, earliest - now)

    def _watch(self, channel: Channel, in_s: float = 0.0) -> None:
        if channel.name not in self._looking and not self._books.closed:
            self._looking.add(channel.name)
            self._shared.tasks.start(self._look_for(channel, in_s), f"look for channel {channel.channel_id}")

    async def _look_for(self, channel: Channel, in_s: float) -> None:
        """Until a final block shows news, or for a while."""
        delay_s, most_s = LOOK_AGAIN_S
        try:
            await self._books.clock.sleep(in_s)
            for _ in range(LOOKS):
                try:
                    after, _ = await self._shared.look(channel)
                    if (after.reserved, after.valid_until, after.state) != (
                        channel.reserved,
                        channel.valid_until,
                        channel.state,
                    ) or after.reserved:
                        return
                except LOOK_ERRORS as error:
                    log.info("channel %s cannot be looked at now: %s", channel.channel_id, error)
                await self._books.clock.sleep(delay_s)
                delay_s = min(delay_s * 2, most_s)
        finally:
            self._looking.discard(channel.name)
            self._shared.wake()
            if channel.name in self._told:
                self._told.discard(channel.name)
                self._hear_of(channel)

    # --- vouchers ---

    def take(self, account: ledger.Account, message: AcceptanceMessage, drawn: int) -> None:
        """Refuse an acceptance whose money is not covered by a voucher; inside the transaction that accepts.

        Raises what :func:`~shem.node.payment.channel.take_voucher` raises.
        """
        if account.platform not in self._shared.chains:
            return
        if drawn:
            self._take(account, message.voucher, drawn)
        elif message.voucher is not None:
            with suppress(PeerFailed, Refused):  # a later one came first; this one's voucher may be on another channel
                self._take(account, message.voucher, 0)

    def _take(self, account: ledger.Account, part: VoucherPart | None, drawn: int) -> None:
        if part is None:
            raise VoucherMissing("money on this platform is owed by voucher, or it is not owed")
        key = ChannelKey(part.key.payer, part.key.payee, part.key.signer, part.key.nonce)
        channel = self._shared.channel_of(account.owner, account.platform, "0x" + key.id.hex())
        if (key.payer, key.payee) != (account.payer, account.payee):
            raise VoucherWrong("the voucher's channel is not between the agreement's two addresses")
        way = (account.owner, account.peer_id, account.platform)
        if channel is None or way_of(channel) != way:
            # We may have forgotten its announcement. What is refused changes nothing: it is noted by itself.
            if not self._books.closed:
                self._shared.tasks.start(self._note_later(way, key), f"note a channel of {account.peer_id}")
            raise CoverNotSeen("the voucher's channel was not announced yet")
        amount = units(part.amount)
        try:
            signer = voucher_signer(vault_of(channel), id_bytes(channel), amount, part.signature)
        except BadSignature as error:
            raise VoucherWrong(f"the voucher is not signed: {error.message}") from None
        voucher = Voucher(channel.channel_id, amount, signer, part.signature)
        ways = self._store.of_way("Provider", way)
        others = [c for c in ways if c.name != channel.name and c.payee == channel.payee]
        try:
            now, margin_s = self._shared.now_on(channel.platform), self._shared.margin_s(channel.platform)
            after = take_voucher(channel, voucher, drawn, now, margin_s, sum(spare_of(c) for c in others))
        except CoverNotSeen:
            self._watch_again(channel)
            raise
        except VoucherLow as error:
            if not others:
                raise
            # An acceptance before it, on another channel, may be on its way still: with that one it will do.
            raise CoverNotSeen(f"{error.message}, unless another channel's voucher is under way") from None
        self._store.save(after)
        for other in lend(others, channel.owed + drawn - after.owed):
            self._store.save(other)
        if channel.claimed > channel.owed:  # it has paid what nobody had told us that it owes
            self._books.db.after_commit(lambda: self.count_later(account.owner, account.peer_id, pair_of(channel)))
        self._shared.wake_later()
        self._books.wake(account.owner, waiting_for(account.peer_id))

    def _count_soon(self, owner: str, peer_id: str, pair: Pair) -> None:
        """Unless the payer says what it has paid for."""
        if not self._books.closed:
            self._shared.tasks.start(self._count_after(owner, peer_id, pair), f"count what {pair[2]} has paid")

    async def _count_after(self, owner: str, peer_id: str, pair: Pair) -> None:
        await self._books.clock.sleep(COUNT_AFTER_S)
        if self._store.claimed("Provider", pair) > self._books.store.claimed_on(pot_of(*pair[1:]), *pair[2:]):
            self.count_later(owner, peer_id, pair)

    async def _note_later(self, way: Way, key: ChannelKey) -> None:
        try:
            with self._books.write():
                found = self._note(way, key, "")
        except WrongChannel as error:
            log.info("a voucher of %s names a channel that is none: %s", way[1], error)
        else:
            self._hear_of(found)

    def count_later(self, owner: str, peer_id: str, pair: Pair) -> None:
        """What came that no notice of the payer's accounts for, and none that is still looked into is going to."""
        channel = self._store.last_between("Provider", pair)
        if channel is not None and not self._books.closed and not self._books.store.claims_of(owner, peer_id):
            self._start_count(channel)

    def _watch_again(self, channel: Channel) -> None:
        """The payer knows of more than we do: look, but not at every repeated letter."""
        now = self._shared.now()
        if self._not_before.get(channel.name, 0) <= now:
            self._not_before[channel.name] = now + 1
            self._watch(channel)

    # --- ending ---

    async def answer_close(self, message: CloseMessage, signed: Signed) -> bytes:
        """Our signature that ``amount`` is all; the channel takes nothing more after it."""
        with self._books.write():
            channel = self._store.channel_at(message.recipient, message.chain_id, message.vault, message.channel_id)
            if channel is None or channel.role != "Provider" or channel.peer_id != message.issuer:
                raise WrongChannel("there is no such channel between us")
            if channel.payee != self._books.signer.node_id:
                raise PayoutCold(f"this node cannot sign for {channel.payee}, where the channel pays: settle it")
            self._books.must_sign()  # nothing is noted that cannot be signed
            amount = units(message.amount)
            channel = self._reminded(channel, message, amount)
            now = self._shared.now()
            covers = self._store.live_covers("Provider", way_of(channel))
            live = any(cover.lives(now) and is_paid_through(cover, channel) for cover in covers)
            open_bills = self._shared.unaccepted(channel) or self._uninvoiced(channel)
            channel = agree_to_close(channel, amount, live=live, unaccepted=open_bills)
            self._store.save(channel)
            self._shared.wake_later()
        return self._books.signer.sign_digest(close_digest(vault_of(channel), id_bytes(channel), amount))

    def _reminded(self, channel: Channel, message: CloseMessage, amount: int) -> Channel:
        """Our database may be an older copy: a voucher for more than we remember is as good as ever."""
        if channel.state != "open" or not channel.signed < amount <= channel.reserved or message.signature is None:
            return channel
        if voucher_signer(vault_of(channel), id_bytes(channel), amount, message.signature) != channel.signer:
            return channel
        return msgspec.structs.replace(channel, signed=amount, signature=message.signature)

    async def answer_held(self, message: HeldMessage, signed: Signed) -> bytes:
        """What the payer has signed, should it have forgotten."""
        channel = self._store.channel_at(message.recipient, message.chain_id, message.vault, message.channel_id)
        if channel is None or channel.role != "Provider" or channel.peer_id != message.issuer:
            raise WrongChannel("there is no such channel between us")
        covers = [cover for cover in self._agreed(way_of(channel)) if is_paid_through(cover, channel)]
        found = [self._books.store.last_accepted(cover.agreement_id, cover.owner) for cover in covers[:MAX_HELD]]
        answer = Held(
            amount=str(channel.signed),
            signature=channel.signature or b"",
            acceptances=[
                Signed(document.answer, document.answer_signature)
                for document in found
                if document is not None and document.answer and document.answer_signature
            ],
        )
        return msgspec.msgpack.encode(answer)

    def _uninvoiced(self, channel: Channel) -> bool:
        """Whether an agreement that ended just now may still be billed."""
        since = self._shared.now() - INVOICE_GRACE_S
        for cover in self._store.covers_since("Provider", way_of(channel), since):
            if not is_paid_through(cover, channel):
                continue
            account = self._books.store.account(cover.agreement_id, cover.owner)
            if account is None or account.invoiced is None:
                return True
        return False

    # --- the loop's turn ---

    def step(self) -> None:
        """Collect what would be lost."""
        now = self._shared.now()
        self._not_before = {name: moment for name, moment in self._not_before.items() if moment > now}
        self._redeem_at = {name: moment for name, moment in self._redeem_at.items() if moment > now}
        for channel in self._store.live_channels():
            if channel.role != "Provider" or channel.platform not in self._shared.chains:
                continue
            moment = redeem_moment(channel, self._shared.margin_s(channel.platform))
            busy = channel.name in self._looking or self._not_before.get(channel.name, 0) > now
            due = moment is not None and moment <= self._shared.now_on(channel.platform)
            if due and channel.name not in self._redeem_at and not self.acts(channel):
                self._start_redeem(channel)
            elif self._seems_over(channel) and not busy:
                self._looking.add(channel.name)
                self._shared.tasks.start(self._look_at_end(channel), f"see channel {channel.channel_id} closed")

    def _seems_over(self, channel: Channel) -> bool:
        """Its payer has no more to pay: whether it has closed it, the chain tells."""
        if channel.signed > channel.claimed or not channel.valid_until:
            return False
        return channel.state == "closing" or self._shared.now_on(channel.platform) > channel.valid_until

    async def _look_at_end(self, channel: Channel) -> None:
        """Whether the payer has closed what we agreed to close: where it pays nothing more, it has nothing to tell us of."""
        first_s, most_s = LOOK_AT_END_S
        over_s = self._shared.now_on(channel.platform) - channel.valid_until
        most_s = most_s if over_s < 0 else LOOK_AFTER_S
        delay_s = min(2 * self._end_delay_s.get(channel.name, first_s / 2), most_s)
        self._not_before[channel.name] = self._shared.now() + delay_s
        self._end_delay_s[channel.name] = delay_s
        try:
            channel, _ = await self._shared.look(channel)
            if channel.state == "closed":
                self._end_delay_s.pop(channel.name, None)
                self._not_before.pop(channel.name, None)
            elif over_s > KEEP_S and channel.signed <= channel.claimed:  # its payer leaves its own money there
                with self._books.write():
                    self._store.save(msgspec.structs.replace(channel, state="closed"))
        except LOOK_ERRORS as error:
            log.info("channel %s cannot be looked at now: %s", channel.channel_id, error)
        finally:
            self._looking.discard(channel.name)
            self._shared.wake()

    def acts(self, channel: Channel) -> bool:
        """Whether it is being collected from."""
        requests = self._store.open_requests(*way_of(channel))
        return channel.name in self._redeeming or any(r.channel_id == channel.channel_id for r in requests)

    def collect(self, channel: Channel) -> None:
        """Redeem what is held now, without waiting for its payer or the end of the term."""
        if not self.acts(channel):
            self._start_redeem(channel)

    def _start_redeem(self, channel: Channel) -> None:
        self._redeeming.add(channel.name)
        self._shared.tasks.start(self._redeem(channel), f"redeem channel {channel.channel_id}")

    def next_moment(self) -> list[float]:
        """When time alone asks for another turn."""
        live = [c for c in self._store.live_channels() if c.role == "Provider" and c.platform in self._shared.chains]
        moments = [redeem_moment(c, self._shared.margin_s(c.platform)) or float(c.valid_until + 1) for c in live]
        return moments + list(self._not_before.values()) + list(self._redeem_at.values())

    async def _redeem(self, channel: Channel) -> None:
        """The payer may have paid meanwhile: see first."""
        try:
            self._redeem_at[channel.name] = self._shared.now() + self._redeem_s.get(channel.name, RETRY_S[0])
            self._redeem_s[channel.name] = min(2 * self._redeem_s.get(channel.name, RETRY_S[0]), RETRY_S[1])
            channel, seen = await self._shared.look(channel)
            self._redeem_s.pop(channel.name, None)
            if not seen.is_open or channel.claimed >= channel.signed or channel.signature is None:
                self._count(channel, seen)
                return
            log.warning("channel %s is redeemed alone: its payer has not paid", channel.channel_id)
            with self._books.write():
                parts = (way_of(channel), channel.payer, channel.payee, channel.channel_id)
                request = self._shared.request("redeem", *parts, channel.signed)
                self._shared.chains[channel.platform].redeem(
                    self._books.db.connection,
                    request.request_id,
                    key_of(channel),
                    channel.signed,
                    channel.signature,
                    sender=channel.owner,
                )
        except LOOK_ERRORS as error:
            log.info("channel %s cannot be looked at now: %s", channel.channel_id, error)
        finally:
            self._redeeming.discard(channel.name)
            self._shared.wake()

    def on_word(self, request: Request, word: ChainWord) -> None:
        """What became of a redemption, inside the chain side's transaction."""
        if request.state != "open":
            return
        failed = isinstance(word, Failed)
        if isinstance(word, Failed):
            log.error("channel %s could not be redeemed: %s", request.channel_id, word.message)
        self._store.save_request(msgspec.structs.replace(request, state="failed" if failed else "done"))
        channel = self._shared.channel_of(request.owner, request.platform, request.channel_id)
        if channel is not None and not self._books.closed:
            self._books.db.after_commit(lambda: self._start_count(channel))

    def _start_count(self, channel: Channel) -> None:
        self._shared.tasks.start(self._recount(channel), f"count channel {channel.channel_id}")

    async def _recount(self, channel: Channel) -> None:
        try:
            channel, seen = await self._shared.look(channel)
            self._count(channel, seen)
        except LOOK_ERRORS as error:
            log.info("channel %s cannot be looked at now: %s", channel.channel_id, error)

    def _count(self, channel: Channel, seen: Look) -> None:
        """What came without a word of the payer pays the oldest debts of this way."""
        pot = pot_of(channel.platform, channel.payer, channel.payee)
        with self._books.write():
            left = self._store.claimed("Provider", pair_of(channel))
            left -= self._books.store.claimed_on(pot, channel.payer, channel.payee)
            parts, grown = [], []
            for account in self._books.store.unpaid(*way_of(channel)):
                amount = min(account.accepted - account.settled, left)
                if amount > 0:
                    left -= amount
                    parts.append(Part(agreement_id=account.agreement_id, amount=str(amount)))
                    grown.append(ledger.settle(account, amount))
            if not parts:
                return
            self._books.store.save_transfer(
                Transfer(
                    owner=channel.owner,
                    payment_id=str(uuid.uuid4()),
                    role="Provider",
                    payer_id=channel.peer_id,
                    payee_id=channel.owner,
                    payer=channel.payer,
                    payee=channel.payee,
                    platform=channel.platform,
                    amount=sum(int(part.amount) for part in parts),
                    at=self._books.now(),
                    tx_hash=seen.paid_tx,
                    block_number=seen.block_number,
                    block_hash=seen.block_hash,
                    parts=tuple(parts),
                    sessions=sessions_of(grown),
                    state="final",
                    pot=pot,
                )
            )
            for account in grown:
                self._books.save(account)
                self._books.cover(account)
            self._books.wake(channel.owner, "payment")
