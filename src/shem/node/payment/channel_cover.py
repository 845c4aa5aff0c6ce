"""The gate of the payee: no work on a channel platform before a final block shows money for it, and how much there is.

An agreement starts when one open channel holds the least that was agreed, for it and for all others of the same payer
that have started, and holds it long enough. What may still be signed for it afterwards is told to whoever asks: the
provider's agent, which stops before its bill is larger than that. The owner may give credit: so much is done for each
payer beyond what it has reserved.
"""

from __future__ import annotations

import msgspec

from shem.errors import NotFound, PeerFailed
from shem.node.payment.channel import PAY_S, Channel, Cover, lacking, may_be_signed
from shem.node.payment.channel_books import ChannelBooks, waiting_for, way_of
from shem.node.payment.channel_payee import INVOICE_GRACE_S

CALL_WAIT_S = 30.0
"""How long one question of a requestor may wait. Where finality takes longer it asks again."""


class NoCover(PeerFailed):
    """The requestor has reserved no money for this agreement in time."""

    default_code = "no_cover"


class CoverNow(msgspec.Struct, frozen=True, kw_only=True):
    """One agreement's money at this moment, as its provider's node sees it. Base units; Unix seconds."""

    agreement_id: str
    platform: str
    finality_s: float
    """How long it usually takes until a payment on this platform is final."""
    by_channel: bool
    """Whether it is paid by vouchers; without that, nothing below means anything."""
    started: bool = False
    """There is enough for it to start, or has been."""
    lacks: str = ""
    """If not, why, in a sentence."""
    expected_until: float = 0.0
    """When waiting for that makes no more sense."""
    wanted: int = 0
    least: int = 0
    accepted: int = 0
    room: int = 0
    """What may still be signed beyond that: an equal part for each agreement with the same payer that has started, of what
    is not asked for already. So no bill of one is too large because of another's."""
    credit: int = 0
    until: float = 0.0
    """After this nothing is signed any more; 0 while there is no channel."""

    @property
    def version(self) -> str:
        """Differs when something of interest does."""
        return f"{self.started:d}-{self.accepted}-{self.room}-{self.until:.0f}"


class Gate:
    """What provider agents and requestors' first calls ask."""

    def __init__(self, shared: ChannelBooks, cover_timeout_s: float | None) -> None:
        """``cover_timeout_s`` overrides what each network says."""
        self._shared = shared
        self._books = shared.books
        self._store = shared.store
        self._cover_timeout_s = cover_timeout_s
        self._started: set[str] = set()

    def start(self) -> None:
        """After a restart, what goes on has started if it was billed, or if there is enough for it."""
        now = self._shared.now()
        for cover in self._store.live_covers("Provider"):
            if not cover.lives(now) or cover.platform not in self._shared.chains:
                continue
            if self._books.store.account(cover.agreement_id, cover.owner) or not self._lacking(cover):
                self._started.add(cover.agreement_id)

    def ended(self, agreement_id: str) -> None:
        """It holds nothing any more."""
        self._started.discard(agreement_id)

    async def admit(self, owner: str, agreement_id: str) -> None:
        """Wait until a final block shows enough for this agreement. Raises :class:`NoCover` when none does in time."""
        need = self._store.cover(owner, agreement_id)
        if need is None or need.role != "Provider" or not need.least or need.platform not in self._shared.chains:
            return
        admitted = await self._books.pulses.wait_for(
            (owner, waiting_for(need.peer_id)),
            lambda: not self._lacking(need),
            min(self._patience_s(need), CALL_WAIT_S),
        )
        if not admitted:
            raise NoCover(
                self._lacking(need),
                hint="its node reserves from its allocation on this platform: fund it, or make it larger",
            )
        if agreement_id not in self._started:
            self._started.add(agreement_id)
            self._books.pulses.beat((owner, waiting_for(need.peer_id)))  # the others' parts are smaller now

    def _patience_s(self, need: Cover) -> float:
        return self._cover_timeout_s or self._shared.chains[need.platform].terms.cover_timeout_s

    def _lacking(self, need: Cover) -> str:
        now, margin_s = self._shared.now(), self._shared.margin_s(need.platform)
        channels = self._channels(need)
        credit = self._shared.chains[need.platform].terms.credit
        return lacking(channels, [*self._others(need, now), need], now, margin_s, credit)

    def _channels(self, need: Cover) -> list[Channel]:
        """Those that pay where the agreement is paid: what came to another address of ours before is no cover for it."""
        return [c for c in self._store.of_way("Provider", way_of(need)) if c.payee == need.payee]

    def _others(self, need: Cover, now: float) -> list[Cover]:
        return [
            cover
            for cover in self._store.live_covers("Provider", way_of(need))
            if cover.agreement_id in self._started and self._competes(cover, need) and cover.lives(now)
        ]

    def _competes(self, cover: Cover, need: Cover) -> bool:
        """Whether another agreement is paid through the same channels."""
        return cover.agreement_id != need.agreement_id and (cover.role, cover.payee) == (need.role, need.payee)

    def now(self, owner: str, agreement_id: str) -> CoverNow:
        """Raises as :meth:`~shem.node.payment.books.Books.deal` does."""
        need = self._store.cover(owner, agreement_id)
        if need is None or need.platform not in self._shared.chains:
            deal = self._books.deal(agreement_id, owner)
            _check_role(deal.role, agreement_id)
            platform = self._books.platforms[deal.platform]
            return CoverNow(
                agreement_id=agreement_id, platform=deal.platform, finality_s=platform.finality_s, by_channel=False
            )
        _check_role(need.role, agreement_id)
        now, terms = self._shared.now(), self._shared.chains[need.platform].terms
        shares = 1 + len(self._others(need, now)) + self._to_be_invoiced(need, now)
        lacks = self._lacking(need) if need.least and agreement_id not in self._started else ""
        channels = self._channels(need)
        room, until = may_be_signed(channels, now, self._shared.margin_s(need.platform))
        account = self._books.store.account(agreement_id, owner)
        return CoverNow(
            agreement_id=agreement_id,
            platform=need.platform,
            finality_s=terms.finality_s,
            by_channel=True,
            started=not lacks,
            lacks=lacks,
            expected_until=need.changed_at + self._patience_s(need),
            wanted=need.wanted,
            least=need.least,
            accepted=0 if account is None else account.accepted,
            room=max(room - self._asked_by_others(need, now), 0) // shares,
            credit=terms.credit // shares,
            until=until,
        )

    def _to_be_invoiced(self, need: Cover, now: float) -> int:
        """How many agreements have ended just now and not said what they ask for."""
        count = 0
        for cover in self._store.covers_since("Provider", way_of(need), now - INVOICE_GRACE_S):
            if not cover.live and self._competes(cover, need):
                account = self._books.store.account(cover.agreement_id, cover.owner)
                count += account is None or account.invoiced is None
        return count

    def _asked_by_others(self, need: Cover, now: float) -> int:
        """What may still be accepted on other agreements, those that ended a short while ago too."""
        asked = 0
        for account in self._books.store.asking(*way_of(need)):
            other = self._store.cover(account.owner, account.agreement_id)
            if other is None or not self._competes(other, need):
                continue
            if other.live or now < other.changed_at + max(other.after_s, PAY_S):
                asked += account.requested - account.accepted
        return asked

    async def changed(self, owner: str, agreement_id: str, version: str, timeout_s: float) -> CoverNow:
        """As :meth:`now`, waiting up to ``timeout_s`` for another than ``version``."""
        first = self.now(owner, agreement_id)
        if not first.by_channel or first.version != version:
            return first
        need = self._store.cover(owner, agreement_id)
        assert need is not None

        def read() -> CoverNow | None:
            found = self.now(owner, agreement_id)
            return found if found.version != version else None

        found = await self._books.pulses.wait_for((owner, waiting_for(need.peer_id)), read, timeout_s)
        return found or self.now(owner, agreement_id)


def _check_role(role: str, agreement_id: str) -> None:
    if role != "Provider":
        raise NotFound(f"you are not the provider of agreement {agreement_id}", code="agreement_not_found")
