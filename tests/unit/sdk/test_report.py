"""What a session's report and its picture make of channels and of bills that wait."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from datetime import UTC, datetime

from rich.console import Console

from shem.sdk import events
from shem.sdk.channels import LEAST_S, reserve_wanted
from shem.sdk.progress import ProgressDisplay
from shem.sdk.report import Report
from tests.unit.sdk.test_purse import TOKEN, hired

UNTIL = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
OPEN = events.ChannelChanged("0xp", "0xc1", "channel-devnet-tglm", "open", TOKEN // 2, 0, 0, "0xopen", UNTIL)
PAID = events.PaymentSettled("0xp", TOKEN // 5, "channel-devnet-tglm", "0xclose", 17, ("a1",))


def ended(state: str = "closed") -> Report:
    report = Report("tGLM")
    report(events.RentalStarted(1, "0xp", "provider-1", "a1"))
    report(OPEN)
    report(replace(OPEN, signed=TOKEN // 10))
    report(events.CostChanged("a1", "0xp", TOKEN // 5))
    report(replace(OPEN, signed=TOKEN // 5, claimed=TOKEN // 5, state=state))
    report(PAID)
    return report


def test_a_channel_is_told_with_what_came_back() -> None:
    [told] = ended().as_dict()["by_provider"]
    [channel] = told["channels"]
    assert (channel["reserved"], channel["signed"], channel["claimed"]) == ("0.5", "0.2", "0.2")
    assert (channel["returned"], channel["state"], channel["opened_tx"]) == ("0.3", "closed", "0xopen")
    [going_on] = ended("closing").as_dict()["by_provider"][0]["channels"]
    assert going_on["returned"] is None


def test_a_bill_that_waits_is_not_settled_until_it_is_accepted() -> None:
    report = ended()
    assert report.settled
    report(events.BillWaits("0xp", "a1", TOKEN // 4, "cover_short", "the payment channel holds 0 more"))
    assert not report.settled
    assert report.as_dict()["by_provider"][0]["waiting"] == ["the payment channel holds 0 more"]
    report(events.CostChanged("a1", "0xp", TOKEN // 5))  # another, lower bill
    assert report.as_dict()["by_provider"][0]["waiting"]
    report(events.CostChanged("a1", "0xp", TOKEN // 4))
    assert not report.as_dict()["by_provider"][0]["waiting"]


def drawn(*seen: events.Event, width: int = 80) -> str:
    out = io.StringIO()
    report = Report("tGLM")
    display = ProgressDisplay(report, Console(file=out, width=width, force_terminal=False))
    for event in seen:
        report(event)
        display(event)
    display.close()
    return out.getvalue()


def test_vouchers_are_drawn_and_in_the_end_what_was_reserved_paid_and_came_back() -> None:
    text = drawn(
        events.DemandPublished("d", "()"),
        OPEN,
        events.RentalStarted(1, "0xp", "provider-1", "a1"),
        events.CostChanged("a1", "0xp", TOKEN // 5),
        replace(OPEN, signed=TOKEN // 5),
    )
    assert "voucher provider-1" in text
    assert "0.2 of 0.5 tGLM" in text
    assert "after 12:30 UTC" in text  # it is still open: what is left comes back by then
    closed = replace(OPEN, signed=TOKEN // 5, claimed=TOKEN // 5, state="closed")
    text = drawn(events.RentalStarted(1, "0xp", "provider-1", "a1"), OPEN, closed, PAID)
    assert "0.2 paid, 0.3 back" in text
    assert "\n  0xopen\n    provider-1\n" in text
    assert "\n  0xclose\n    block 17: provider-1\n" in text


def test_what_waits_is_said() -> None:
    text = drawn(
        events.RentalStarted(1, "0xp", "provider-1", "a1"),
        events.BillWaits("0xp", "a1", TOKEN // 4, "no_channel", "nothing is reserved for this provider yet"),
        width=200,
    )
    assert "a bill of provider-1 is not accepted yet and waits: nothing is reserved" in text
    assert "not accepted yet: 0.25 that provider-1 asks" in text


def test_a_transaction_that_pays_many_is_shown_once() -> None:
    second = replace(PAID, provider_id="0xq", agreement_ids=("a2",))
    text = drawn(
        events.RentalStarted(1, "0xp", "provider-1", "a1"),
        events.RentalStarted(2, "0xq", "provider-2", "a2"),
        PAID,
        second,
    )
    assert text.count("\n  0xclose\n    block 17: provider-1, provider-2\n") == 1


def test_a_hash_and_many_names_fit_80_columns() -> None:
    hashed = "0x" + "d" * 64
    names = [f"a-provider-of-some-length-{n}"[:24] for n in range(9)]
    rentals = [events.RentalStarted(n, f"0x{n}", name, f"a{n}") for n, name in enumerate(names)]
    paid = [replace(PAID, provider_id=f"0x{n}", tx_hash=hashed, block_number=71_234_567) for n in range(9)]
    text = drawn(*rentals, *paid)
    assert text.count(hashed) == 1
    assert max(len(line) for line in text.splitlines()) <= 80


def test_nothing_turns_when_all_is_over() -> None:
    """A line with a spinner says that something goes on there."""
    text = drawn(
        events.DemandPublished("d", "()"),
        events.TasksAdded(1),
        events.RentalStarted(1, "0xp", "provider-1", "a1"),
        events.SpendingChanged(accepted=0, owed=1, hourly=1),
        OPEN,
    )
    assert "provider-1" in text
    assert not re.search("[⠀-⣿]", text)


def test_what_a_provider_says_moves_no_cursor() -> None:
    evil = "evil\x1b[2J\x07"
    text = drawn(
        events.RentalStarted(1, "0xp", evil, "a1"),
        events.BillWaits("0xp", "a1", TOKEN // 4, "no_channel", f"because {evil}"),
        events.BillRefused("0xp", "a2", TOKEN // 4, "x", f"since {evil}"),
        width=200,
    )
    assert "because evil" in text
    assert "since evil" in text
    assert "\x1b" not in text


def test_the_least_reserve_follows_from_the_offer() -> None:
    one = hired(1, hourly="3600", start="2")  # a token each second
    assert reserve_wanted(one) == (2 + int(LEAST_S)) * TOKEN
    for said, seconds in ((5, 5), (0.5, 0.5), (True, LEAST_S), ("5", LEAST_S), (-1, LEAST_S), (1e12, LEAST_S)):
        one.agreement.offer.properties["golem.com.payment.channel.least-sec?"] = said
        assert reserve_wanted(one) == 2 * TOKEN + int(seconds * 10) * TOKEN // 10
