"""When the provider asks for money, and when it stops working for one who does not answer: decisions only.

A :class:`Bill` is the account of one agreement. Facts go in (an activity began, counters moved, a note was sent,
accepted, paid), and :meth:`Bill.due` says what must be done at a moment; :meth:`Bill.next_moment` says when to look
again. Who does it, and how often it is tried, is not known here.

* While an activity runs, a debit note with its running total is due every *interval*, counted from the approval.
* When it ends, one final note is due. Accepting (or paying) a note covers all earlier ones of the same activity, as
  totals only grow.
* A note has a payment date only where a payment timeout was negotiated, and then at most once per timeout, plus the
  final one.
* A note that is not accepted, or not paid, in time ends the agreement; so do its expiration, a time without any
  activity, and the end of the only activity of a demand that wants no second. "In time" allows for what the chain takes
  to make a payment final.
* Where the deal is paid by channel, an accepted note is paid: its voucher is in our node's hands. What can still be
  accepted is what is reserved (:class:`Cover`), so the agreement ends when nothing was reserved in time, just before the
  bill would be larger than that, and before the reserve's time is over; what is billed then is never more than that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from shem.errors import Refused
from shem.provider.config import Rules
from shem.provider.offering import (
    ACCEPT_TIMEOUT,
    CHANNEL,
    CHOSEN_PLATFORM,
    EXPIRATION,
    INTERVAL,
    MULTI_ACTIVITY,
    PAYMENT_TIMEOUT,
)
from shem.provider.presets import CPU, DURATION
from shem.terms.pricing import LinearPricing
from shem.terms.resources import busy_threads

SUCCESS = "Success"
EXPIRED = "Expired"
NO_ACTIVITY = "NoActivity"
NOT_ACCEPTED = "DebitNotesDeadline"
NOT_PAID = "DebitNoteNotPaid"
NOTE_REJECTED = "DebitNoteRejected"
SHUTDOWN = "Shutdown"
"""Codes of ``golem.provider.code``, as existing requestors know them."""
NO_COVER = "NoCover"
COVER_USED_UP = "CoverUsedUp"
COVER_ENDS = "CoverEnds"
"""The same, for deals paid by channel."""

_FAR_S = 86400
_LOOK_S = 1
"""No look at what is left of the cover comes sooner after the last one."""
_MAX_OPEN_NOTES = 256
"""Per activity. Reached only where no accept timeout was negotiated: the newest total is the one that counts."""


class DealTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What was agreed about money and time. ``None`` = not negotiated."""

    pricing: LinearPricing
    platform: str
    expires_at: datetime
    interval: timedelta
    payment_timeout: timedelta | None
    accept_timeout: timedelta | None
    idle_limit: timedelta
    invoice_due: timedelta
    multi_activity: bool
    by_channel: bool = False
    """An accepted note is paid, and nothing is accepted beyond what is reserved."""
    threads: int = 1
    """What full use is reckoned with."""
    spare_s: float = 0.0
    """Full use for so long is kept in reserve."""
    lead: timedelta = timedelta()
    """How long before the end of the reserve's time the work ends."""


def read_terms(demand: Mapping[str, Any], offer: Mapping[str, Any], rules: Rules) -> DealTerms:
    """The terms of an agreement from its two sides. Raises ``Refused`` (``bad_terms``) when one makes no sense."""
    ends_ms = _seconds(demand, EXPIRATION)
    if ends_ms is None:
        raise Refused(f"the agreement has no {EXPIRATION}", code="bad_terms")
    interval = _seconds(offer, INTERVAL)
    payment = _seconds(offer, PAYMENT_TIMEOUT)
    accept = _seconds(offer, ACCEPT_TIMEOUT)
    return DealTerms(
        pricing=LinearPricing.from_properties(offer),
        platform=str(demand.get(CHOSEN_PLATFORM, "")),
        expires_at=datetime.fromtimestamp(ends_ms / 1000, UTC),
        interval=timedelta(seconds=interval if interval is not None else rules.debit_note_interval_s),
        payment_timeout=None if payment is None else timedelta(seconds=payment),
        accept_timeout=None if accept is None else timedelta(seconds=accept),
        idle_limit=timedelta(seconds=rules.idle_limit_s),
        invoice_due=timedelta(seconds=payment if payment is not None else rules.invoice_due_s),
        multi_activity=str(demand.get(MULTI_ACTIVITY)).lower() == "true",
        by_channel=str(demand.get(CHOSEN_PLATFORM, "")).startswith(CHANNEL),
        threads=busy_threads(demand, offer),
        spare_s=rules.cover_spare_s,
        lead=timedelta(seconds=rules.cover_lead_s),
    )


class SendNote(msgspec.Struct, frozen=True, kw_only=True):
    """Issue and send a debit note."""

    activity_id: str
    amount: int
    usage: tuple[float, ...]
    payment_due: datetime | None
    final: bool


class EndAgreement(msgspec.Struct, frozen=True, kw_only=True):
    """Terminate the agreement for this reason."""

    code: str
    message: str


class Cover(msgspec.Struct, frozen=True, kw_only=True):
    """What our node says of the money that is reserved for a deal, in base units."""

    started: bool
    """There is, or was, enough to start."""
    lacks: str = ""
    """If not, why, in a sentence."""
    expected_until: datetime
    """When waiting for it makes no more sense."""
    accepted: int
    room: int
    """What may be accepted beyond that."""
    credit: int = 0
    """What the owner lets the requestor owe beyond that."""
    until: datetime | None = None
    """When nothing can be accepted any more; ``None``: nothing is reserved."""


class _Note(msgspec.Struct, kw_only=True):
    note_id: str
    sent_at: datetime
    payment_due: datetime | None
    accepted: bool = False
    paid: bool = False


class _Account(msgspec.Struct, kw_only=True):
    """One activity."""

    since: datetime
    usage: tuple[float, ...] = ()
    ended_at: datetime | None = None
    asked: int = 0
    final_sent: bool = False
    notes: list[_Note]


class Bill:
    """The account of one agreement, from its approval."""

    def __init__(self, terms: DealTerms, approved_at: datetime) -> None:
        self.terms = terms
        self._accounts: dict[str, _Account] = {}
        self._idle_since: datetime | None = approved_at
        self._next_note = approved_at + terms.interval
        self._last_payable = approved_at
        self._rejected = ""
        self._finality = timedelta()
        self._cover: Cover | None = None
        self._looked_at = approved_at
        self._over = False

    # facts

    def activity_began(self, activity_id: str, at: datetime) -> None:
        """From now on its usage is billed."""
        if activity_id not in self._accounts:
            self._accounts[activity_id] = _Account(since=at, notes=[])
        self._idle_since = None

    def used(self, activity_id: str, usage: Sequence[float]) -> None:
        """Its counters now. They only grow: a smaller report changes nothing."""
        account = self._accounts[activity_id]
        before = account.usage or (0.0,) * len(usage)
        if len(usage) == len(before):
            account.usage = tuple(max(old, new) for old, new in zip(before, usage, strict=True))

    def activity_ended(self, activity_id: str, at: datetime) -> None:
        """Its counters will not move any more."""
        account = self._accounts[activity_id]
        if account.ended_at is None:
            account.ended_at = at
        if all(other.ended_at is not None for other in self._accounts.values()):
            self._idle_since = at

    def note_sent(self, order: SendNote, note_id: str, at: datetime) -> None:
        """``order`` was carried out."""
        account = self._accounts[order.activity_id]
        account.notes.append(_Note(note_id=note_id, sent_at=at, payment_due=order.payment_due))
        del account.notes[:-_MAX_OPEN_NOTES]
        account.asked = max(account.asked, order.amount)
        account.final_sent = account.final_sent or order.final
        if order.payment_due is not None:
            self._last_payable = at

    def note_refused(self, order: SendNote) -> None:
        """The own node will not have this note: the invoice asks for the sum instead."""
        account = self._accounts[order.activity_id]
        account.final_sent = account.final_sent or order.final

    def note_asked_before(self, activity_id: str, amount: int) -> None:
        """A note of this amount is already with the requestor (found after a restart)."""
        account = self._accounts[activity_id]
        account.asked = max(account.asked, amount)

    def note_accepted(self, note_id: str) -> None:
        """Covers the earlier notes of its activity too. By channel, a voucher came with it: that is the payment."""
        self._answered(note_id, paid=self.terms.by_channel)

    def note_paid(self, note_id: str) -> None:
        """The payment is final. Covers the earlier notes of its activity too."""
        self._answered(note_id, paid=True)

    def note_rejected(self, note_id: str, why: str) -> None:
        """The requestor disputes what we ask."""
        if self.knows(note_id):
            self._rejected = why or "no reason given"

    def payments_take(self, finality_s: float) -> None:
        """So long after it was made a payment is final on this platform, as a rule."""
        self._finality = timedelta(seconds=finality_s)

    def covered(self, cover: Cover, at: datetime) -> None:
        """What is reserved now. Until it is enough to start, nobody counts as idle."""
        if cover.started and not (self._cover and self._cover.started) and self._idle_since is not None:
            self._idle_since = max(self._idle_since, at)
        self._cover = cover

    # questions

    def due(self, now: datetime) -> list[SendNote | EndAgreement]:
        """What must be done now; nothing twice once the facts are entered."""
        self._looked_at = now
        if (end := self._reason_to_end(now)) is not None:
            self._over = self._over or end.code in (NO_COVER, COVER_USED_UP, COVER_ENDS)
            return [*self.final_notes(now), end]
        orders: list[SendNote | EndAgreement] = list(self.final_notes(now))
        if now >= self._next_note:
            orders += [
                self._note(activity_id, account, now, final=False)
                for activity_id, account in self._accounts.items()
                if account.ended_at is None
            ]
            while self._next_note <= now:
                self._next_note += self.terms.interval
        return orders

    def final_notes(self, now: datetime) -> list[SendNote]:
        """The last note of each activity that has ended and did not get one; none where the invoice asks for less."""
        if self.total < self._used:
            return []
        return [
            self._note(activity_id, account, now, final=True)
            for activity_id, account in self._accounts.items()
            if account.ended_at is not None and not account.final_sent
        ]

    def next_moment(self) -> datetime:
        """Nothing changes before this moment unless a fact comes in."""
        return min(moment for moment, _ in self._deadlines())

    @property
    def total(self) -> int:
        """The invoice: over all activities, in base units; never less than was asked for already.

        Of a deal that ended for lack of cover, no more than can be accepted: more would be accepted not at all.
        """
        if not self._over or self._cover is None:
            return self._used
        asked = sum(account.asked for account in self._accounts.values())
        return max(asked, min(self._used, self._cover.accepted + self._cover.room))

    @property
    def activity_ids(self) -> list[str]:
        """All that were ever begun, in order."""
        return list(self._accounts)

    def asked(self, activity_id: str) -> int:
        """The highest sum that was asked for the activity, in base units."""
        return self._accounts[activity_id].asked

    def knows(self, note_id: str) -> bool:
        """Is this one of our notes that something may still be due for?"""
        return any(note.note_id == note_id for account in self._accounts.values() for note in account.notes)

    def running(self) -> list[str]:
        """The activities that have not ended."""
        return [activity_id for activity_id, account in self._accounts.items() if account.ended_at is None]

    # inside

    @property
    def _used(self) -> int:
        return sum(self._owed(account) for account in self._accounts.values())

    def _owed(self, account: _Account) -> int:
        usage = account.usage or (0.0,) * len(self.terms.pricing.usage_vector)
        return max(account.asked, self.terms.pricing.cost(usage))

    def _note(self, activity_id: str, account: _Account, now: datetime, *, final: bool) -> SendNote:
        timeout = self.terms.payment_timeout
        payable = timeout is not None and (final or now - self._last_payable >= timeout)
        return SendNote(
            activity_id=activity_id,
            amount=self._owed(account),
            usage=account.usage or (0.0,) * len(self.terms.pricing.usage_vector),
            payment_due=now + timeout if payable and timeout is not None else None,
            final=final,
        )

    def _reason_to_end(self, now: datetime) -> EndAgreement | None:
        if self._rejected:
            return EndAgreement(code=NOTE_REJECTED, message=f"a debit note was rejected: {self._rejected}")
        if (left := self._cover_left()) is not None and left < 0:
            return EndAgreement(code=COVER_USED_UP, message="what the requestor has reserved is used up")
        ended = [(moment, end) for moment, end in self._deadlines() if end is not None and moment <= now]
        if ended:
            return min(ended, key=lambda pair: pair[0])[1]
        return None

    def _deadlines(self) -> list[tuple[datetime, EndAgreement | None]]:
        """Moments at which something is due; with a reason where that something is the agreement's end."""
        terms = self.terms
        found: list[tuple[datetime, EndAgreement | None]] = [
            (terms.expires_at, EndAgreement(code=EXPIRED, message="the agreement has expired"))
        ]
        if self.running():
            found.append((self._next_note, None))
        found += self._cover_deadlines()
        if self._idle_since is not None and not self._waits_for_cover:
            found.append(self._idle_deadline(self._idle_since))
        for account in self._accounts.values():
            if account.ended_at is not None and not account.final_sent:
                found.append((account.ended_at, None))
            for note in account.notes:
                found += self._note_deadlines(note)
        return found

    @property
    def _waits_for_cover(self) -> bool:
        return self.terms.by_channel and not (self._cover and self._cover.started) and not self._accounts

    def _cover_deadlines(self) -> list[tuple[datetime, EndAgreement | None]]:
        cover = self._cover
        if not self.terms.by_channel or cover is None:
            return []
        if self._waits_for_cover:
            message = cover.lacks or "the requestor has reserved no money for the agreement in time"
            return [(cover.expected_until, EndAgreement(code=NO_COVER, message=message))]
        found: list[tuple[datetime, EndAgreement | None]] = []
        if cover.until is not None and cover.room:
            message = f"what is reserved can be collected until {cover.until:%Y-%m-%d %H:%M:%S} UTC only"
            found.append((cover.until - self.terms.lead, EndAgreement(code=COVER_ENDS, message=message)))
        left, per_1000_s = self._cover_left(), self._full_use(1000.0)
        if left is not None and left >= 0 and per_1000_s:
            seconds = min(1000 * left // per_1000_s, _FAR_S)
            found.append((self._looked_at + timedelta(seconds=max(seconds, _LOOK_S)), None))
        return found

    def _cover_left(self) -> int | None:
        """What may still be used before the bill cannot be accepted any more; ``None`` where that is no question."""
        cover = self._cover
        if cover is None or not cover.started or not self.terms.by_channel:
            return None
        return cover.accepted + cover.room + cover.credit - self._used - self._full_use(self.terms.spare_s)

    def _full_use(self, seconds: float) -> int:
        """What all running activities cost together for so long."""
        pricing, running = self.terms.pricing, len(self.running())
        rates = {DURATION: seconds, CPU: seconds * self.terms.threads}
        use = [rates.get(name, 0.0) for name in pricing.usage_vector]
        idle = [0.0 for _ in use]
        return running * (pricing.cost(use) - pricing.cost(idle))

    def _idle_deadline(self, since: datetime) -> tuple[datetime, EndAgreement]:
        if self._accounts and not self.terms.multi_activity:
            return since, EndAgreement(code=SUCCESS, message="the only activity of the agreement has ended")
        seconds = self.terms.idle_limit.total_seconds()
        return since + self.terms.idle_limit, EndAgreement(
            code=NO_ACTIVITY, message=f"there was no activity for {seconds:g} s"
        )

    def _note_deadlines(self, note: _Note) -> list[tuple[datetime, EndAgreement | None]]:
        found: list[tuple[datetime, EndAgreement | None]] = []
        accept = self.terms.accept_timeout
        if accept is not None and not note.accepted:
            message = f"debit note {note.note_id} was not accepted within {accept.total_seconds():g} s"
            found.append((note.sent_at + accept, EndAgreement(code=NOT_ACCEPTED, message=message)))
        if note.payment_due is not None and not note.paid:
            message = f"debit note {note.note_id} was not paid until {note.payment_due:%Y-%m-%d %H:%M:%S} UTC"
            found.append((note.payment_due + self._finality, EndAgreement(code=NOT_PAID, message=message)))
        return found

    def _answered(self, note_id: str, *, paid: bool) -> None:
        for account in self._accounts.values():
            ids = [note.note_id for note in account.notes]
            if note_id not in ids:
                continue
            for note in account.notes[: ids.index(note_id) + 1]:
                note.accepted = True
                note.paid = note.paid or paid
            # what nothing can be due for any more is forgotten: an agreement may last for years
            account.notes = [
                note for note in account.notes if not (note.accepted and (note.paid or not note.payment_due))
            ]


def _seconds(properties: Mapping[str, Any], name: str) -> float | None:
    value = properties.get(name)
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Refused(f"{name} is not a number: {str(value)[:40]!r}", code="bad_terms") from None
