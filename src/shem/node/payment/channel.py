"""Payment channels between two nodes: what may be signed, taken, reserved and ended. Pure: values in, values out.

A channel holds money that its payer has reserved in a vault for one payee. The payer pays by *vouchers*: its signature
over all that the payee may collect so far. Every rule here is a comparison of totals that only grow:

* *reserved*: what the last final block holds for the payee, until *valid_until*;
* *owed*: what was accepted on all agreements that are paid through the channel, since it was opened;
* *signed*: the highest voucher, never below *owed*. A payer has signed what it owes, and more only when it has forgotten
  what for, because its memory is older than its word: then what it owes later reaches the old sum first;
* *claimed* ≤ *signed* ≤ *reserved*: what the vault has paid out of it in a final block.

So the payee is owed nothing that it cannot collect, and the payer has signed nothing that it does not owe. Repeated and
reordered messages change nothing, since a lower total than one known is no news. Both sides stop a *margin* before the
end of the term: from then on the payee collects, and no voucher is made or taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any, Literal

import msgspec

from shem.errors import Conflict, MoneyShort, PeerFailed, Refused
from shem.terms.amounts import format_amount
from shem.terms.pricing import BadUsage, LinearPricing
from shem.terms.resources import busy_threads

COVER_S = 600.0
"""The payer reserves the price of so much full use ahead, unless agreed otherwise."""
LEAST_S = 60.0
"""The payee starts nothing without the price of so much, unless agreed otherwise."""
MAX_COVER_S = 7200.0
"""No payee's wish has more reserved ahead than the price of so much."""
PAY_S = 600
"""How long after an agreement's end the reserve lasts, unless agreed otherwise: time to bill and pay."""
MAX_PAY_S = 86400
"""No payee's wish locks a payer's money for longer than that."""
FINALITIES = 4
"""A reserve is final long before the last one is used up: it lasts for so many times what finality takes."""
DEFAULT_LIFE_S = 24 * 3600
"""How long an agreement is taken to last that does not say."""
DAY_S = 86400
MAX_AHEAD_S = 360 * DAY_S
"""Vaults take no term much longer than this."""
MAX_UNITS = 2**96 - 1
"""The most that a channel holds."""

COVER_PROPERTY = "golem.com.payment.channel.cover-sec?"
"""The price of so many seconds of full use is reserved ahead, as far as the payer's allocation has it."""
LEAST_PROPERTY = "golem.com.payment.channel.least-sec?"
"""Nothing starts before the price of so much is reserved in a final block."""
AFTER_PROPERTY = "golem.com.payment.channel.after-sec?"
"""For so many seconds after the agreement's end the payee can collect."""
EXPIRATION = "golem.srv.comp.expiration"
_DURATION = "golem.usage.duration_sec"
_CPU = "golem.usage.cpu_sec"

State = Literal["open", "closing", "closed"]


class CoverShort(MoneyShort):
    """The channel does not hold that much yet; more is on its way if the allocation has it."""

    default_code = "cover_short"


class NoChannel(MoneyShort):
    """Nothing is reserved for this payee that a voucher could be signed on."""

    default_code = "no_channel"


class VoucherMissing(Refused):
    """Money on a channel platform is owed by voucher, or it is not owed."""

    default_code = "voucher_missing"


class VoucherWrong(Refused):
    """Another channel's, another vault's or chain's, another signer's, or for too little."""

    default_code = "voucher_wrong"


class VoucherLow(VoucherWrong):
    """It is good, and for too little."""


class VoucherLate(Refused):
    """The channel is closed."""

    default_code = "voucher_late"


class CoverNotSeen(PeerFailed):
    """The payee's look at the chain does not show that much reserved, or not for long enough. Not a refusal: it may be
    final a moment later."""

    default_code = "cover_not_seen"


class StillOpen(Conflict):
    """Work goes on, or money is asked for that was not accepted."""

    default_code = "channel_in_use"


class WrongSum(Refused):
    """A channel ends with its highest voucher or not at all."""

    default_code = "close_sum_wrong"


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """One channel as one side knows it. Base units; Unix seconds; ids and addresses in lower-case hex."""

    owner: str
    channel_id: str
    role: Literal["Requestor", "Provider"]
    """``Requestor`` pays, ``Provider`` is paid."""
    peer_id: str
    platform: str
    payer: str
    payee: str
    signer: str
    nonce: int
    chain_id: int
    vault: str
    reserved: int = 0
    valid_until: int = 0
    claimed: int = 0
    owed: int = 0
    signed: int = 0
    signature: bytes | None = None
    state: State = "open"
    close_signature: bytes | None = None
    """The payee's word that ``signed`` is all."""
    opened_tx: str = ""
    created_at: int = 0

    @property
    def name(self) -> str:
        """Its own in this process. Two vaults may give equal ids."""
        return f"{self.chain_id}:{self.vault}:{self.channel_id}"

    @property
    def room(self) -> int:
        """What may still be signed."""
        return max(self.reserved - self.signed, 0) if self.state == "open" else 0


class Voucher(msgspec.Struct, frozen=True):
    """A voucher that came, with whom its signature proves to be its signer in the channel's vault."""

    channel_id: str
    amount: int
    signer: str
    signature: bytes


class Seen(msgspec.Struct, frozen=True):
    """A channel in a final block; ``valid_until`` is zero once it is closed."""

    reserved: int
    claimed: int
    valid_until: int


# --- paying ----------------------------------------------------------------------------------------------------------


def sign_up(channel: Channel, more: int, now: float, margin_s: float) -> Channel:
    """The payer owes ``more``: the channel with the total that its next voucher says, to be signed by the caller.

    Raises :class:`NoChannel` for one that ends, :class:`CoverShort`.
    """
    if more < 0:
        raise ValueError("what is owed never falls")
    if channel.state != "open" or now >= channel.valid_until - margin_s:
        raise NoChannel("the payment channel with this provider is ending", hint="try again when a new one is open")
    owed = channel.owed + more
    if owed > max(channel.signed, channel.reserved):
        raise CoverShort(
            f"the payment channel holds {format_amount(channel.room)} more; {format_amount(more)} are needed",
            hint="try again when more is reserved; the allocation must hold enough",
        )
    total = max(channel.signed, owed)
    signature = channel.signature if total == channel.signed else None
    return msgspec.structs.replace(channel, owed=owed, signed=total, signature=signature)


def take_voucher(
    channel: Channel, voucher: Voucher | None, more: int, now: float, margin_s: float, spare: int = 0
) -> Channel:
    """An acceptance makes the payer owe ``more``: the payee's channel after it, if a voucher covers it.

    ``spare`` is what its other channels' vouchers promise beyond what is owed on them: acceptances may come in any order,
    and the last of them bring the first ones' sums. What is owed of it is then left to those: see :func:`lend`.

    Raises :class:`VoucherMissing`, :class:`VoucherWrong`, :class:`VoucherLow`, :class:`VoucherLate`,
    :class:`CoverNotSeen`; then nothing was accepted.
    """
    owed = channel.owed + more
    if more and channel.claimed >= owed:  # it has arrived already: the letter was long on its way
        return msgspec.structs.replace(channel, owed=owed, signed=max(channel.signed, channel.claimed))
    if more and channel.state != "open":
        raise VoucherLate("the channel is closed for new payments")
    if voucher is not None and voucher.amount > channel.signed:
        _check_voucher(channel, voucher, now, margin_s)
        channel = msgspec.structs.replace(channel, signed=voucher.amount, signature=voucher.signature)
    if channel.signed + spare >= owed:
        return msgspec.structs.replace(channel, owed=min(owed, max(channel.signed, channel.owed)))
    if voucher is None:
        raise VoucherMissing(f"{format_amount(owed)} are owed in all and no voucher says so")
    raise VoucherLow(f"the voucher is for {format_amount(voucher.amount)}; {format_amount(owed)} are owed in all")


def lend(others: Sequence[Channel], owed: int) -> list[Channel]:
    """Payee: those of a payer's channels that ``owed`` is counted on although an acceptance named another, after it."""
    changed = []
    for channel in others:
        part = min(owed, spare_of(channel))
        if part:
            changed.append(msgspec.structs.replace(channel, owed=channel.owed + part))
            owed -= part
    return changed


def spare_of(channel: Channel) -> int:
    """What its vouchers promise beyond what is owed on it."""
    return max(channel.signed - channel.owed, 0)


def _check_voucher(channel: Channel, voucher: Voucher, now: float, margin_s: float) -> None:
    if (voucher.channel_id, voucher.signer) != (channel.channel_id, channel.signer):
        raise VoucherWrong("the voucher is not its channel's signer's, or not for this channel in this vault")
    if channel.state != "open":
        raise VoucherLate("the channel is closed")
    if voucher.amount > channel.reserved:
        raise CoverNotSeen(
            f"the channel holds {format_amount(channel.reserved)} in the last final block, "
            f"the voucher is for {format_amount(voucher.amount)}"
        )
    if now >= channel.valid_until - margin_s:  # it may be longer by now, or what it says may be paid already
        raise CoverNotSeen("the channel is so near its end that a voucher may not be collected any more")


def observe(channel: Channel, seen: Seen) -> Channel:
    """What a final block shows. A payer whose own memory is older than the chain's signs no lower than it has paid."""
    claimed = max(channel.claimed, seen.claimed)
    changed = msgspec.structs.replace(channel, claimed=claimed)
    if channel.role == "Requestor" and claimed > channel.signed:
        changed = msgspec.structs.replace(changed, signed=claimed, signature=None)
    if seen.valid_until == 0:
        return msgspec.structs.replace(changed, state="closed")
    if channel.state == "closed":
        return changed
    return msgspec.structs.replace(changed, reserved=seen.reserved, valid_until=seen.valid_until)


def remember(channel: Channel, held: int, signature: bytes, explained: int) -> Channel:
    """Payer: the payee has shown a voucher that this channel's signer has signed, and acceptances that it has for
    ``explained`` more than our books knew."""
    if held > channel.signed:
        channel = msgspec.structs.replace(channel, signed=held, signature=signature)
    return msgspec.structs.replace(channel, owed=min(channel.owed + explained, channel.signed))


# --- cover -----------------------------------------------------------------------------------------------------------


class Cover(msgspec.Struct, frozen=True, kw_only=True):
    """What one agreement needs of its channel."""

    owner: str
    agreement_id: str
    role: Literal["Requestor", "Provider"]
    peer_id: str
    platform: str
    payer: str
    payee: str
    wanted: int
    """What the payer reserves ahead."""
    least: int
    """Without this much the payee starts nothing."""
    ends_at: int
    after_s: int = PAY_S
    """How long the reserve must last after that."""
    live: bool = True
    changed_at: int = 0

    def lives(self, now: float) -> bool:
        """Whether work and its bills may still come: agents may forget to end what ran out."""
        return self.live and now < self.ends_at + max(self.after_s, PAY_S)


def full_use(pricing: LinearPricing, threads: int, seconds: float) -> int:
    """The price of one activity that uses every thread for so long. Counters of no known rate count for nothing."""
    rates = {_DURATION: seconds, _CPU: seconds * threads}
    try:
        return min(pricing.cost([rates.get(name, 0.0) for name in pricing.usage_vector]), MAX_UNITS)
    except BadUsage:  # dearer than any token's supply
        return MAX_UNITS


def cover_wanted(
    pricing: LinearPricing | None, demand: Mapping[str, Any], offer: Mapping[str, Any], finality_s: float = 0.0
) -> tuple[int, int]:
    """(what the payer reserves ahead, the least that the payee starts with) for the properties of an agreement's two sides.

    Where blocks take ``finality_s`` to be final, more is reserved, so that new reserves are final in time.
    """
    if pricing is None:
        return 0, 0
    threads = busy_threads(demand, offer)
    least_s = _number(offer.get(LEAST_PROPERTY), 1.0, MAX_COVER_S, LEAST_S)
    seconds = _number(offer.get(COVER_PROPERTY), 1.0, MAX_COVER_S, COVER_S)
    wanted_s = max(seconds, least_s, min(FINALITIES * finality_s, MAX_COVER_S))
    return full_use(pricing, threads, wanted_s), full_use(pricing, threads, least_s)


def term_after(offer: Mapping[str, Any]) -> int:
    """How long the reserve of an agreement with these offer properties lasts after its end."""
    return int(_number(offer.get(AFTER_PROPERTY), 0, MAX_PAY_S, PAY_S))


def ends_at(demand: Mapping[str, Any], now: float) -> int:
    """When an agreement with these demand properties is over at the latest, as far as a vault can look ahead."""
    latest = 1000 * (now + MAX_AHEAD_S)
    return int(_number(demand.get(EXPIRATION), 1000 * now, latest, 1000 * (now + DEFAULT_LIFE_S)) / 1000)


def _number(value: Any, least: float, most: float, default: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or (isinstance(value, float) and isnan(value)):
        return default
    return min(max(value, least), most)


class Grow(msgspec.Struct, frozen=True):
    """Reserve ``add`` more (all of it, for a new channel), until ``valid_until``."""

    add: int
    valid_until: int


def plan(
    channel: Channel | None, covers: Sequence[Cover], budget: int, now: float, margin_s: float, asked: int = 0
) -> Grow | None:
    """What the payer should reserve for its live agreements with one payee; ``None``: all is well, or nothing is left.

    ``budget`` is what its allocations still hold beyond what is reserved already, ``asked`` what its agent wants to accept
    at once and cannot: that is reserved, if it is there, also when no agreement goes on any more. A channel is filled up
    to the full cover (or half of what is left, if that is less) when half of it is used; its term is moved before an
    agreement can outlive it.
    """
    live = [cover for cover in covers if cover.live and cover.wanted and now < cover.ends_at]
    if not (live or asked):
        return None
    end = max((cover.ends_at + cover.after_s for cover in live), default=int(now))
    latest = int(now) + MAX_AHEAD_S
    until = min(end + PAY_S + 2 * int(margin_s), latest)  # the next agreement may end a little later
    wanted, least = sum(cover.wanted for cover in live), sum(cover.least for cover in live)
    if channel is None or channel.state != "open" or now >= channel.valid_until - margin_s:
        add = min(max(_target(wanted, least, 0, budget), asked if asked <= budget else 0), MAX_UNITS)
        return Grow(add, max(until, int(now + 2 * margin_s) + PAY_S)) if add > 0 else None
    until = max(until, channel.valid_until)
    add = 0
    target = _target(wanted, least, channel.room, budget)
    asked = asked if asked <= channel.room + budget else 0
    target = max(target, asked)
    if 2 * channel.room < target or channel.room < max(least, asked):
        add = max(min(target - channel.room, MAX_UNITS - channel.reserved), 0)
    longer = channel.valid_until < min(end + int(margin_s), latest - DAY_S)
    if add or longer:
        return Grow(add, until)
    return None


def _target(wanted: int, least: int, room: int, budget: int) -> int:
    """How much room there should be. One payee takes at most half of what is left for all, if it can start with that."""
    return min(wanted, max(room + budget // 2, min(least, room + budget)))


def lacking(channels: Sequence[Channel], needs: Sequence[Cover], now: float, margin_s: float, credit: int = 0) -> str:
    """Payee: why none of the payer's channels holds the least that all these agreements need, for as long as each may need
    it, in a final block; empty when one does.

    Half of the margin is room for two clocks that differ, and so for two views of when an agreement ends.
    """
    least = sum(need.least for need in needs)
    if credit and credit >= least:
        return ""
    latest = now + MAX_AHEAD_S - 2 * DAY_S
    until = min(max((need.ends_at + need.after_s + margin_s / 2 for need in needs), default=0.0), latest)
    why = "the requestor has reserved no money for this agreement"
    for channel in channels:
        if channel.state != "open":
            continue
        if not channel.valid_until:
            why = "the requestor says that it has reserved money, and no final block shows it yet"
        elif now >= channel.valid_until - margin_s or channel.valid_until < until:
            why = f"the requestor's reserve ends {until - channel.valid_until:.0f} s too early"
        elif channel.room + credit < least:
            why = (
                f"of the requestor's reserve {format_amount(channel.room)} are left, {format_amount(least)} are needed"
            )
        else:
            return ""
    return why


def covers(channel: Channel, needs: Sequence[Cover], now: float, margin_s: float, credit: int = 0) -> bool:
    """Payee: whether this channel is enough; see :func:`lacking`."""
    return not lacking([channel], needs, now, margin_s, credit)


def may_be_signed(channels: Sequence[Channel], now: float, margin_s: float) -> tuple[int, float]:
    """Payee: (how much more one voucher may say, until when) on the best of the payer's channels."""
    usable = [c for c in channels if c.state == "open" and now < c.valid_until - margin_s]
    best = max(usable, key=lambda c: c.room, default=None)
    return (0, 0.0) if best is None else (best.room, best.valid_until - margin_s)


# --- ending ----------------------------------------------------------------------------------------------------------


def redeem_moment(channel: Channel, margin_s: float) -> float | None:
    """Payee: when to collect alone, Unix seconds; ``None`` while there is nothing to collect."""
    if channel.state == "closed" or channel.signed <= channel.claimed or channel.signature is None:
        return None
    return channel.valid_until - margin_s


def may_close(channel: Channel, *, live: bool, unaccepted: bool, allocated: bool) -> bool:
    """Payer: whether nothing can come any more."""
    return channel.state == "open" and not (live or unaccepted or allocated)


def agree_to_close(channel: Channel, amount: int, *, live: bool, unaccepted: bool) -> Channel:
    """Payee: ``amount`` is all. The channel then takes nothing more. Raises :class:`StillOpen`, :class:`WrongSum`."""
    if amount != channel.signed:
        raise WrongSum(f"the highest voucher is for {format_amount(channel.signed)}, not {format_amount(amount)}")
    if channel.state == "closing":
        return channel
    if channel.state == "closed":
        raise VoucherLate("the channel is closed already")
    if live or unaccepted:
        raise StillOpen("an agreement goes on, or its documents are not accepted")
    return msgspec.structs.replace(channel, state="closing")
