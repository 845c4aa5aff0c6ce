"""What work would cost at given offers, and how that and the money of a running session are shown."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from shem.sdk import events
from shem.sdk.estimate import Estimate, Quote, quote
from shem.sdk.progress import MAX_QUOTES, ProgressDisplay, show_estimate
from shem.sdk.report import Report
from shem.terms.budgets import Budget, Price
from shem.terms.pricing import COEFFS, MODEL, USAGE_VECTOR
from shem.wire.market import Offer

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
TOKEN = 10**18


def offer(provider: str, duration: Any, cpu: Any, start: Any, **more: Any) -> Offer:
    properties = {
        MODEL: "linear",
        COEFFS: [duration, cpu, start],
        USAGE_VECTOR: ["golem.usage.duration_sec", "golem.usage.cpu_sec"],
        "golem.node.id.name": f"name of {provider}",
        **more,
    }
    return Offer(properties=properties, constraints="()", offer_id="o", provider_id=provider, timestamp=NOW)


def test_each_provider_by_its_cheapest_offer_and_the_cheapest_first():
    offers = [offer("a", 0.003, 0, 0.1), offer("b", 0.001, 0.001, 0), offer("a", 0.001, 0.0, 0.5)]
    found = quote(offers, 2, tasks=10, seconds=10, machines=5, max_hourly=None)
    assert [(q.provider_id, q.total) for q in found] == [("b", 3 * TOKEN // 10), ("a", 8 * TOKEN // 10)]
    assert found[0].hourly == 108 * TOKEN // 10
    assert found[0].per_task == 3 * TOKEN // 100
    assert found[1].per_task == 13 * TOKEN // 100  # a machine of its own is started once


def test_offers_without_a_price_that_can_be_read_or_paid_are_left_out():
    offers = [
        offer("a", 0.001, 0, 0),
        offer("b", "cheap", 0, 0),
        offer("c", -1.0, 0, 0),
        offer("d", 1.0, 0, 0),
        offer("e", 1e9, 1e9, 0),
        offer("f", 0.001, 0, 0, **{MODEL: "other"}),
    ]
    assert [q.provider_id for q in quote(offers, 1, 1, 1e7, 1, max_hourly=4 * TOKEN)] == ["a"]


@given(st.lists(st.integers(0, 10**30), min_size=1, max_size=50), st.none() | st.integers(0, 10**30))
def test_the_middle_lies_between_and_all_are_whole(totals, budget):
    quotes = tuple(Quote(f"0x{n}", "x", 1, 1, total) for n, total in enumerate(sorted(totals)))
    found = Estimate(7, 2.5, 3, "GLM", quotes, budget)
    assert found.minimum == min(totals)
    assert found.maximum == max(totals)
    assert found.median in totals
    assert sum(t <= found.median for t in totals) * 2 >= len(totals)
    assert sum(t >= found.median for t in totals) * 2 >= len(totals)
    assert found.duration_s == 7.5
    assert found.fits_budget == (None if budget is None else max(totals) <= budget)
    assert json.loads(json.dumps(found.as_dict()))["tasks"] == 7


def drawn(width: int = 80) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width), out


def test_a_table_of_it_in_80_columns():
    quotes = tuple(Quote(f"0x{n}", f"evil [red]\x1b[2Jname {n}", TOKEN // 3, n, n * 7) for n in range(MAX_QUOTES + 5))
    console, out = drawn()
    show_estimate(Estimate(7, 2.5, 3, "tGLM", quotes, TOKEN), console)
    text = out.getvalue()
    assert "\x1b" not in text
    assert "[red]" in text
    assert "5 more" in text
    assert "fits the budget of 1 tGLM." in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_money_is_shown_while_it_is_spent():
    report = Report("tGLM")
    console, out = drawn(100)
    display = ProgressDisplay(report, console)
    written = Budget.parse("1 USD", "0.5 USD")
    price = Price("GLM", TOKEN // 5, "prices.toml", NOW)
    for event in (
        events.BudgetSet("session", "tGLM", written, written.limits("tGLM", price), price),
        events.DemandPublished("d", "()"),
        events.RentalStarted(1, "0xp", "p", "a"),
        events.SpendingChanged(accepted=0, owed=1, hourly=TOKEN // 3),
        events.SpendingChanged(accepted=5 * 10**14, owed=12 * 10**14, hourly=TOKEN // 3),
    ):
        report(event)
        display(event)
    display.close()
    text = out.getvalue()
    assert "budget of the session: 1 USD = 5 tGLM; 0.5 USD per hour = 2.5 tGLM per hour" in text.replace("\n", " ")
    assert "prices.toml, made 2026-11-24 12:00 UTC" in text.replace("\n", " ")
    assert "≤ 0.0012 of 5 tGLM, 0.333334/h" in text
    told = report.as_dict()["budget"]
    assert (told["total"], told["per_hour"], told["per_provider"]) == ("5", "2.5", None)
    assert told["price"]["made_at"] == "2026-11-24T12:00:00+00:00"
    assert report.spending.owed == 12 * 10**14
