"""The end of a channel as its payer makes it: by the payee's word, or without.

The channel is marked as closing *before* the payee is asked, so that nothing is signed on it any more, whatever becomes of
the question. The payee's signature over the highest voucher closes it in one transaction with others. A payee that does
not agree, or is away, is paid by ``settle``; it is asked again, less and less often, and when it is back, since without its
word the rest comes back only after the term.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from shem.errors import KeyLocked, PeerFailed, Refused
from shem.node.identity.signing import BadSignature
from shem.node.payment.channel import Channel, StillOpen
from shem.node.payment.channel_books import ChannelBooks, id_bytes, key_of, vault_of, way_of
from shem.node.payment.channel_store import Target, Way
from shem.node.payment.drivers.evm.vault import close_signer
from shem.node.payment.protocol import CloseMessage, Peers, method_of, seal
from shem.terms.ids import NodeId

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 15.0
CLOSE_TRIES = 5
CLOSE_FIRST_S = 1.0
"""After so long the payee is asked again; each time twice as long."""
PAUSE_S = (30.0, 3600.0)
"""How long a payee is left alone that did not agree to an end; each time twice as long."""
RETRY_S = 10
"""The most when it says that something goes on: a while after the last agreement only, then ever less often. Who says so for
ever keeps what is reserved for it until the term is over, whatever it is asked."""
AGE_PART = 60
"""After the end of the last agreement it is asked again when so small a part of the time since then has passed once more."""
TOGETHER_S = 2.0
"""Who has agreed waits so long for others who were asked at the same time: one transaction for all is cheaper."""
PAYOUT_COLD = "payout_cold"
"""What a payee says that is paid at an address whose key it has not: it can never agree."""


class WrongClose(Refused):
    """The answer to a close is not the payee's signature over the sum that was asked for."""

    default_code = "close_wrong"


class Closer:
    """Asks payees for the end of channels, and closes by their word."""

    def __init__(self, shared: ChannelBooks, peers: Peers) -> None:
        self._shared = shared
        self._books = shared.books
        self._store = shared.store
        self._peers = peers
        self._asking: set[str] = set()
        self._first_answers: dict[str, asyncio.Event] = {}
        """Of those being asked: set when a payee has answered for the first time, or could not be reached."""
        self._ask_again: dict[str, float] = {}
        self._pauses: dict[str, float] = {}
        """How long payees that did not answer about a channel's end are left alone."""

    def asks(self, channel: Channel) -> bool:
        """Whether the payee is being asked."""
        return channel.name in self._asking

    def may_ask(self, channel: Channel) -> bool:
        """Whether the payee was left alone long enough."""
        return self._ask_again.get(channel.name, 0) <= self._shared.now()

    def next_moments(self) -> list[float]:
        """When somebody may be asked again."""
        return list(self._ask_again.values())

    def forgive(self, channel: Channel) -> bool:
        """The payee is back: whether it is to be asked again at once."""
        if self._pauses.pop(channel.name, None) is None:
            return False
        self._ask_again.pop(channel.name, None)
        return True

    def hurry(self, name: str) -> None:
        """Ask the payee of this channel once more now, however often it was asked."""
        self._ask_again.pop(name, None)

    def forgive_all(self) -> None:
        """All that were left alone may be asked again."""
        self._pauses.clear()
        self._ask_again.clear()

    def prune(self, live: Sequence[Channel]) -> None:
        """Forget what is past, and channels that are closed."""
        now = self._shared.now()
        self._ask_again = {name: moment for name, moment in self._ask_again.items() if moment > now}
        if self._pauses:
            names = {channel.name for channel in live}
            self._pauses = {name: pause for name, pause in self._pauses.items() if name in names}

    def start(self, channel: Channel) -> None:
        """Sign nothing on it any more, and ask its payee."""
        self._asking.add(channel.name)
        if channel.state == "open":
            channel = msgspec.structs.replace(channel, state="closing")
            with self._books.write():
                self._store.save(channel)
        self._shared.tasks.start(self._close(channel), f"close channel {channel.channel_id}")

    async def _close(self, channel: Channel) -> None:
        """Ask the payee for its word, and close by it; else settle."""
        delay_s = CLOSE_FIRST_S
        never = False
        self._first_answers[channel.name] = asyncio.Event()
        try:
            for _ in range(CLOSE_TRIES):
                try:
                    signature = await self._ask(channel)
                except Refused as error:
                    log.info("%s does not close channel %s: %s", channel.peer_id, channel.channel_id, error)
                    if error.code == StillOpen.default_code:
                        self._reopen(channel)
                        return
                    never = error.code == PAYOUT_COLD
                    break
                except (PeerFailed, KeyLocked, TimeoutError) as error:
                    log.info("%s does not answer about channel %s: %s", channel.peer_id, channel.channel_id, error)
                    await self._books.clock.sleep(delay_s)
                    delay_s *= 2
                else:
                    await self._others()
                    self._agreed(channel, signature)
                    return
            self._give_up(channel, never=never)
        finally:
            self._asking.discard(channel.name)
            del self._first_answers[channel.name]
            self._shared.wake()

    async def _others(self) -> None:
        """Until everybody who is being asked has answered, for a moment at most. A crash meanwhile loses nothing: the payee
        gives its word again."""
        try:
            async with asyncio.timeout(TOGETHER_S):
                for answer in list(self._first_answers.values()):
                    await answer.wait()
        except TimeoutError:
            pass

    async def _ask(self, channel: Channel) -> bytes:
        message = CloseMessage(
            issuer=channel.owner,
            recipient=channel.peer_id,
            chain_id=channel.chain_id,
            vault=channel.vault,
            channel_id=channel.channel_id,
            amount=str(channel.signed),
            signature=channel.signature,
        )
        request = msgspec.msgpack.encode(seal("close", message, self._books.signer))
        try:
            answer = await self._peers.call(
                NodeId(channel.peer_id), method_of("close"), request, timeout_s=CLOSE_TIMEOUT_S
            )
        finally:
            self._first_answers[channel.name].set()
        try:
            by = close_signer(vault_of(channel), id_bytes(channel), channel.signed, answer)
        except BadSignature as error:
            raise WrongClose(f"the payee's close is not signed: {error.message}") from None
        if by != channel.payee:
            raise WrongClose(f"the payee's close is signed by {by}, or for another sum")
        return answer

    def _agreed(self, channel: Channel, signature: bytes) -> None:
        with self._books.write():
            known = self._store.channel(channel) or channel
            if known.state == "closed":
                return
            self._store.save(msgspec.structs.replace(known, close_signature=signature))
            parts = (way_of(channel), channel.payer, channel.payee, channel.channel_id)
            request = self._shared.request("close", *parts, channel.signed)
            self._shared.chains[channel.platform].close(
                self._books.db.connection, request.request_id, key_of(channel), channel.signed, signature
            )

    def _reopen(self, channel: Channel) -> None:
        """The payee has signed nothing, so the channel may go on; it is asked again after a while: soon where the last
        agreement has just ended, since its own agent may not have heard of that yet."""
        now = self._shared.now()
        age_s = now - self._store.last_change("Requestor", way_of(channel))
        pause_s = min(max(age_s, CLOSE_FIRST_S), max(age_s / AGE_PART, RETRY_S), PAUSE_S[1])
        self._ask_again[channel.name] = now + pause_s
        with self._books.write():
            known = self._store.channel(channel)
            if known is not None and known.state == "closing":
                self._store.save(msgspec.structs.replace(known, state="open"))

    def _give_up(self, channel: Channel, *, never: bool) -> None:
        """Without the payee's word: pay it now."""
        pause_s = self._pauses.get(channel.name, PAUSE_S[0])
        now = self._shared.now()
        if never:
            self._ask_again[channel.name] = max(float(channel.valid_until), now + PAUSE_S[1])
        else:
            self._ask_again[channel.name] = now + pause_s
            self._pauses[channel.name] = min(2 * pause_s, PAUSE_S[1])
        with self._books.write():
            for target in self._store.open_targets():
                if way_of_target(target) == way_of(channel) and target.settle_at > now:
                    self._store.save_target(msgspec.structs.replace(target, settle_at=int(now)))


def way_of_target(target: Target) -> Way:
    """Between whom, where."""
    return target.owner, target.peer_id, target.platform
