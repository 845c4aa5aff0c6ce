"""The payment service of a node: the parts put together, and what its REST door reads.

Money is written durably and inline; what takes time is done by four kinds of owned tasks that are told, never poll:
letters to peers (:mod:`~shem.node.payment.outbox`), orders of what is due and the end of allocations
(:meth:`Payments._settle`), and looks at claimed payments (:mod:`~shem.node.payment.settlement`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

import msgspec

from shem.cogs.clock import Clock
from shem.cogs.tasks import TaskScope
from shem.errors import MoneyShort
from shem.node.db import Database
from shem.node.payment import protocol
from shem.node.payment.allocations import Allocations
from shem.node.payment.books import Activities, Agreements, Books
from shem.node.payment.channel import CoverShort, NoChannel
from shem.node.payment.channel_books import waiting_for
from shem.node.payment.channels import Channels
from shem.node.payment.drivers.base import DriverProblem, PaymentDriver
from shem.node.payment.outbox import Outbox
from shem.node.payment.protocol import Peers, Signer, VoucherKey
from shem.node.payment.provider import ProviderDesk
from shem.node.payment.requestor import RequestorDesk
from shem.node.payment.settlement import Settler, Verifier
from shem.node.payment.store import Document, Event, Kind, Letter, Store, Transfer
from shem.node.payment.treasury import Treasury
from shem.wire.payment import Acceptance, NewDebitNote, NewInvoice, PlatformChoice

log = logging.getLogger(__name__)

MAX_TIMER_S = 3600.0
"""The longest single sleep of a timer; a wall clock that is set anew is noticed after this."""


class PaymentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator may choose."""

    default_platform: str | None = None
    """The platform of allocations that name none, and the first account; else the first that moves money."""
    retry_s: tuple[float, float] = (0.5, 60.0)
    """First and longest delay of another attempt to reach a peer."""
    verify_s: tuple[float, float] = (0.2, 15.0)
    """First and longest delay of another look at a claimed payment."""
    settle_after_s: float | None = None
    """What is due on a channel that goes on is paid on the chain after so long; ``None``: as its network says."""
    payouts: Mapping[str, str] = {}
    """By platform: the address that is paid there instead of this node's own account."""
    cover_timeout_s: float | None = None
    """How long the start of work waits until money is reserved for it; ``None``: as its network says."""


class Payments:
    """One node's payments. Start it after the peer network is up and before REST is."""

    def __init__(
        self,
        db: Database,
        peers: Peers,
        signer: Signer,
        market: Agreements,
        activities: Activities,
        drivers: Sequence[PaymentDriver],
        clock: Clock,
        config: PaymentConfig | None = None,
    ) -> None:
        config = config or PaymentConfig()
        self._peers = peers
        self._signer = signer
        self._drivers = list(drivers)
        self._tasks = TaskScope("payment")
        self._due = asyncio.Event()
        self._timer: asyncio.Task[object] | None = None
        self.books = Books(db, Store(db), signer, market, activities, drivers, clock)
        self.books.wake_settler = self._look_again
        self.payouts: Mapping[str, str] = config.payouts
        """By platform: where it pays instead of this node's own account."""
        self.allocations = Allocations(self.books, config.default_platform, config.payouts)
        self.requestor = RequestorDesk(self.books)
        self.provider = ProviderDesk(self.books)
        self.settler = Settler(self.books)
        self.verifier = Verifier(self.books, self._tasks, retry_s=config.verify_s)
        self.channels = Channels(
            self.books, peers, market, drivers, self._tasks, config.settle_after_s, config.cover_timeout_s
        )
        self.treasury = Treasury(self.books, self.allocations, self.channels, drivers)
        self.books.voucher, self.books.take_voucher = self.channels.voucher, self.channels.take
        self.verifier.channels, self.verifier.channel_platforms = self.channels.verify, self.channels.platforms
        self.verifier.refuted = self.channels.refuted
        self.allocations.in_vault, self.allocations.channel_platforms = self.channels.in_vault, self.channels.platforms
        self.outbox = Outbox(
            self.books,
            peers,
            self._tasks,
            delivered=self._delivered,
            refused=self.provider.refused,
            retry_s=config.retry_s,
        )

    async def start(self) -> None:
        """Serve peers and go on with what was left undone."""
        serve, db, me = protocol.serve, self.books.db, self._signer
        serve(self._peers, db, "debit-note", protocol.NoteMessage, me, self.requestor.receive_note)
        serve(self._peers, db, "invoice", protocol.InvoiceMessage, me, self.requestor.receive_invoice)
        serve(self._peers, db, "cancellation", protocol.CancellationMessage, me, self.requestor.receive_cancellation)
        serve(self._peers, db, "acceptance", protocol.AcceptanceMessage, me, self.provider.receive_acceptance)
        serve(self._peers, db, "rejection", protocol.RejectionMessage, me, self.provider.receive_rejection)
        serve(self._peers, db, "payment", protocol.PaymentMessage, me, self.verifier.receive)
        for driver in self._drivers:
            await driver.start()
        self.channels.start()
        self.provider.start()
        self.outbox.start()
        self.verifier.start()
        self._due.set()
        self._tasks.start(self._settle(), "settle")

    async def stop(self) -> None:
        """End tasks and drivers; everything undone is in the database."""
        self.books.closed = True
        self.books.pulses.beat_all()
        await self._tasks.close()
        for driver in self._drivers:
            await driver.stop()

    def _delivered(self, letter: Letter) -> None:
        self.provider.delivered(letter)
        if letter.kind in ("acceptance", "channel"):  # a channel may end once its payee knows it and its last voucher
            self.books.db.after_commit(self.channels.changed)

    def sign_vouchers_with(self, key: VoucherKey) -> None:
        """From now on; what another key signed stands, and its channels are paid and closed."""
        self.books.voucher_signer = key
        self.channels.changed()

    def unlocked(self) -> None:
        """Go on with what waited for signatures."""
        for peer in self.books.store.addressees():
            self.outbox.wake(peer)
        self.channels.unlocked()
        self._look_again()

    def _look_again(self) -> None:
        self._due.set()
        self.channels.changed()

    async def issue(self, owner: str, body: NewDebitNote | NewInvoice) -> Document:
        """See :meth:`ProviderDesk.issue_note` and ``issue_invoice``; callers that come together share a transaction."""
        if isinstance(body, NewInvoice):
            return await self.books.db.grouped(lambda: self.provider.issue_invoice(owner, body))
        return await self.books.db.grouped(lambda: self.provider.issue_note(owner, body))

    async def accept(
        self, owner: str, kind: Kind, document_id: str, body: Acceptance, *, cover_wait_s: float = 0.0
    ) -> None:
        """See :meth:`RequestorDesk.accept`; callers that come together share a transaction. Where more must be reserved
        first, it is tried again whenever something was, for so long."""
        try:
            await self.books.db.grouped(lambda: self.requestor.accept(owner, kind, document_id, body))
        except (CoverShort, NoChannel) as error:
            if cover_wait_s <= 0:
                raise
            short: MoneyShort = error
        else:
            return
        document = self.books.document(kind, document_id, owner, "Requestor")
        account = self.books.store.account(document.agreement_id, owner)
        assert account is not None  # else accepting was refused for another reason

        def again() -> bool | None:
            nonlocal short
            try:
                self.requestor.accept(owner, kind, document_id, body)
            except (CoverShort, NoChannel) as error:
                short = error
                return None
            return True

        if not await self.books.pulses.wait_for((owner, waiting_for(account.peer_id)), again, cover_wait_s):
            raise short

    async def admit(self, owner: str, agreement_id: str) -> None:
        """Before work for an agreement starts on the provider's side: wait until money is reserved for it, where it is
        paid through a channel. Raises :class:`~shem.node.payment.channel_cover.NoCover`."""
        await self.channels.admit(owner, agreement_id)

    async def _settle(self) -> None:
        """Order what is due and end allocations: when told, and when the next moment set in the store comes."""
        while True:
            await self._due.wait()
            self._due.clear()
            self.allocations.release_expired()
            self.settler.order_dues()
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self.books.clock.now()
        coming = [self.books.store.next_timeout(), self.books.store.next_due(now)]
        # A due that could be ordered already and was not waits for the operator, not for time.
        moments = [moment for moment in coming if moment is not None and moment > now]
        if moments:
            self._timer = self._tasks.start(self._ring((min(moments) - now).total_seconds()), "timer")

    async def _ring(self, seconds: float) -> None:
        await self.books.clock.sleep(min(seconds, MAX_TIMER_S))
        self._due.set()

    async def fund(self, owner: str, network: str | None, driver: str | None) -> tuple[str, str]:
        """Test tokens for the owner: (platform, what was done in a sentence). See the drivers' ``fund``."""
        choice = PlatformChoice(network=network, driver=driver) if network or driver else None
        platform = self.allocations.platform(choice)
        return platform.platform, await self.books.drivers[platform.platform].fund(platform.platform, owner)

    # --- reading ---

    def document(self, owner: str, kind: Kind, document_id: str) -> Document:
        """Raises :class:`~shem.node.payment.books.UnknownDocument`."""
        return self.books.document(kind, document_id, owner)

    def documents(self, owner: str, kind: Kind, after: datetime | None, limit: int) -> list[Document]:
        """Oldest first, both roles'."""
        return self.books.store.documents(owner, kind, after, limit)

    async def events(
        self,
        owner: str,
        kind: Kind,
        *,
        after: datetime | None,
        limit: int,
        session: str | None,
        wanted: Collection[tuple[str, str]],
        timeout_s: float,
    ) -> list[Event]:
        """Events strictly after ``after``, waiting up to ``timeout_s`` for the first. ``wanted`` are (role, type)."""

        def read() -> list[Event] | None:
            return self.books.store.events(owner, kind, after, limit, session, wanted) or None

        return await self.books.pulses.wait_for((owner, kind), read, timeout_s) or []

    async def transfers(
        self, owner: str, *, after: datetime | None, limit: int, session: str | None, timeout_s: float
    ) -> list[Transfer]:
        """Payments made or received for good, strictly after ``after``, waiting up to ``timeout_s`` for the first."""

        def read() -> list[Transfer] | None:
            return self.books.store.transfers(owner, after, limit, session) or None

        return await self.books.pulses.wait_for((owner, "payment"), read, timeout_s) or []

    def problems(self) -> list[DriverProblem]:
        """Why payments wait."""
        return [*self.settler.problems(), *(problem for driver in self._drivers for problem in driver.problems())]
