"""Our offers and counters read by the clients' own code, and their demands answered by our rules; no network needed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
import pytest_asyncio

from shem.provider.billing import Bill, SendNote, read_terms
from shem.provider.negotiators import Counter, negotiate, review
from shem.provider.offering import (
    ACCEPT_TIMEOUT,
    COEFFS,
    EXPIRATION,
    INTERVAL,
    MULTI_ACTIVITY,
    PAYMENT_TIMEOUT,
    Offer,
    build_constraints,
    build_offers,
)
from shem.provider.presets import Preset
from shem.terms.amounts import format_amount
from shem.terms.constraints import parse
from tests.interop.support import Clients
from tests.unit.provider.builders import NOW, PLATFORM, PRESET, RULES, a_request, a_seller

pytestmark = pytest.mark.interop

PACKAGE = "hash:sha3:" + "ab" * 28 + ":http://127.0.0.1:8000/image.gvmi"
DECORATIONS = {
    "properties": {
        f"golem.com.payment.platform.{PLATFORM}.address": "0x" + "cd" * 20,
        "golem.com.payment.protocol.version": "3",
    },
    "constraints": [f"(golem.com.payment.platform.{PLATFORM}.address=*)", "(golem.com.payment.protocol.version>1)"],
}
HOUR = 3600


@pytest_asyncio.fixture
async def programs(tmp_path: Path) -> AsyncIterator[Clients]:
    """Starts programs; without a network."""
    started = Clients({"YAGNA_SUBNET": "public"}, tmp_path)
    try:
        yield started
    finally:
        await started.close()


class Table:
    """Both sides of a negotiation: a client's program, and our rules."""

    def __init__(self, programs: Clients, client: str, **given: Any) -> None:
        self._programs = programs
        self._client = client
        self._given = {
            "decorations": DECORATIONS,
            "platform": PLATFORM,
            "package": PACKAGE,
            "threads": 1,
            "before": {},
            "payment": {},
            "mid_agreement": False,
            **given,
        }
        self.now = datetime.now(UTC)
        self.offer: Offer = build_offers(a_seller(now=self.now), "vm", PRESET)[0]

    async def read(self, properties: Any, state: str) -> dict[str, Any]:
        """What the client makes of a proposal of ours."""
        told = self._programs.scratch / "proposal.json"
        constraints = build_constraints("public", self.now)
        told.write_text(
            json.dumps({**self._given, "properties": properties, "constraints": constraints, "state": state})
        )
        if self._client == "golem-js":
            ran = await self._programs.run_node("offers/with_golem_js.mjs", str(told))
        else:
            script = f"offers/with_{self._client.replace('-', '_')}.py"
            ran = await self._programs.run_python(self._client, script, str(told))
        found: dict[str, Any] = ran.result
        return found

    def answer(self, demand: dict[str, Any]) -> Counter:
        """Our counter to a client's demand. It must be one, match as markets match, and be approved as it is."""
        properties, constraints = demand["properties"], demand["constraints"]
        assert parse(build_constraints("public", self.now)).resolve(properties) is True
        assert parse(constraints).resolve(self.offer.properties) is True
        request = a_request(properties, constraints=constraints, offer=self.offer, now=self.now)
        counter = negotiate(request)
        assert isinstance(counter, Counter), counter
        assert parse(constraints).resolve(counter.properties) is True
        assert isinstance(review(request, counter.properties), Counter)
        self._given["before"] = properties
        return counter


NOT_NEGOTIATED = {INTERVAL: None, PAYMENT_TIMEOUT: None, ACCEPT_TIMEOUT: None}


def negotiated(properties: dict[str, Any]) -> dict[str, Any]:
    return {name: properties.get(name) for name in NOT_NEGOTIATED}


@pytest.mark.parametrize(
    ("lifetime_s", "terms"),
    [
        (20 * 60, {ACCEPT_TIMEOUT: 240}),
        (4 * HOUR, {ACCEPT_TIMEOUT: 240}),
        (6 * HOUR, {ACCEPT_TIMEOUT: 240, INTERVAL: 120, PAYMENT_TIMEOUT: 18000}),
        (30 * 24 * HOUR, {ACCEPT_TIMEOUT: 240, INTERVAL: 120, PAYMENT_TIMEOUT: 18000}),
    ],
)
async def test_yapapi_and_we_agree(programs: Clients, lifetime_s: int, terms: dict[str, int]) -> None:
    table = Table(programs, "yapapi", lifetime_s=lifetime_s)
    first = await table.read(table.offer.properties, "Initial")
    assert first["score"] > 0
    assert (first["name"], first["runtime"], first["scheme"]) == ("bob", "vm", "payu")
    assert (first["mem"], first["storage"]) == (4.0, 20.0)
    assert first["transfers"] == ["gftp", "http", "https"]
    assert first["cost_of_a_minute"] == pytest.approx(0.1 + 60 * 0.001 + 60 * 0.01)
    counter = table.answer(first["demand"])
    assert negotiated(counter.properties) == NOT_NEGOTIATED | terms
    assert (await table.read(counter.properties, "Draft"))["score"] > 0


@pytest.mark.parametrize(
    ("given", "terms"),
    [
        ({"lifetime_s": 25 * 60}, {ACCEPT_TIMEOUT: 120}),
        (
            {"lifetime_s": 25 * 60, "mid_agreement": True},
            {ACCEPT_TIMEOUT: 120, INTERVAL: 600, PAYMENT_TIMEOUT: 86400},
        ),
        (
            {
                "lifetime_s": 365 * 24 * HOUR,
                "payment": {
                    "debit_notes_accept_timeout": 240,
                    "debit_notes_interval": 180,
                    "payment_timeout": 12 * HOUR,
                },
                "mid_agreement": True,
            },
            {ACCEPT_TIMEOUT: 240, INTERVAL: 600, PAYMENT_TIMEOUT: 86400},
        ),
    ],
    ids=["plain", "mid-agreement", "ray"],
)
async def test_golem_core_and_we_agree(programs: Clients, given: dict[str, Any], terms: dict[str, int]) -> None:
    table = Table(programs, "golem-core", **given)
    first = await table.read(table.offer.properties, "Initial")
    assert first["name"] == "bob"
    assert [float(price) for price in first["coeffs"]] == pytest.approx(table.offer.properties[COEFFS])
    assert first["per_cpu"] == pytest.approx(0.001 / 2)
    counter = table.answer(first["demand"])
    assert negotiated(counter.properties) == NOT_NEGOTIATED | terms
    assert (await table.read(counter.properties, "Draft"))["agreed"], "it would go on negotiating"


NEGOTIATED = {INTERVAL: 120, PAYMENT_TIMEOUT: 18000, ACCEPT_TIMEOUT: 240}


@pytest.mark.parametrize(
    ("hourly", "terms"),
    [
        (("0.005", "0.025"), NEGOTIATED),
        (("0.252", "2.52"), {}),
        (("0.333333", "0.000001"), NEGOTIATED),
        (("35.99", "7.77"), NEGOTIATED),
    ],
    ids=["usual", "unpaid", "odd", "dear"],
)
async def test_golem_core_finds_nothing_wrong_with_our_notes(
    programs: Clients, hourly: tuple[str, str], terms: dict[str, int]
) -> None:
    """A month of debit notes with every counter that the meter can make."""
    preset = Preset(name="p", start="0.1", env_per_hour=hourly[0], cpu_per_hour=hourly[1])
    offer = build_offers(a_seller(), "vm", preset)[0]
    agreed = {name: value for name, value in offer.properties.items() if name not in NEGOTIATED} | terms
    expiration = {EXPIRATION: int((NOW + timedelta(days=40)).timestamp() * 1000), MULTI_ACTIVITY: True}
    notes = a_month_of_notes(Bill(read_terms(expiration, agreed, RULES), NOW))
    assert len(notes) > 20_000
    payable = sum(note["due_s"] is not None for note in notes)
    assert 140 <= payable <= 144 if terms else payable == 0
    told = programs.scratch / "notes.json"
    told.write_text(json.dumps({"properties": agreed, "notes": notes}))
    ran = await programs.run_python("golem-core", "offers/with_golem_core.py", str(told))
    assert ran.result == []


def a_month_of_notes(bill: Bill) -> list[dict[str, Any]]:
    """All accepted and paid at once. Four threads are more or less busy; the meter counts in 64ths of a second."""
    random, now, cpu_steps = Random(7), NOW, 0
    notes: list[dict[str, Any]] = []
    bill.activity_began("a", NOW)
    while (now := max(bill.next_moment(), now + timedelta(milliseconds=1))) < NOW + timedelta(days=30):
        now += timedelta(milliseconds=random.randrange(300))  # the loop wakes when it can
        at_s = (now - NOW).total_seconds()
        cpu_steps = random.randint(cpu_steps, int(at_s * 4 * 64))
        bill.used("a", [int(at_s * 64) / 64, cpu_steps / 64])
        for order in bill.due(now):
            assert isinstance(order, SendNote), order
            bill.note_sent(order, note_id := f"{len(notes)}", now)
            bill.note_paid(note_id)
            due_s = None if order.payment_due is None else (order.payment_due - NOW).total_seconds()
            amount = format_amount(order.amount)
            notes.append({"at_s": at_s, "due_s": due_s, "amount": amount, "usage": list(order.usage)})
    return notes


async def test_golem_js_reads_offers_and_counters(programs: Clients) -> None:
    table = Table(programs, "golem-js")
    demand = {
        "golem.node.debug.subnet": "public",
        "golem.srv.caps.multi-activity": True,
        "golem.srv.comp.expiration": int((table.now.timestamp() + HOUR) * 1000),
        "golem.srv.comp.task_package": PACKAGE,
        "golem.srv.comp.vm.package_format": "gvmkit-squash",
        "golem.com.payment.chosen-platform": PLATFORM,
        INTERVAL: 120,
        PAYMENT_TIMEOUT: 43200,
        ACCEPT_TIMEOUT: 120,
        **DECORATIONS["properties"],
    }
    items = "\n\t".join(
        [
            *DECORATIONS["constraints"],
            "(golem.com.pricing.model=linear)",
            "(golem.node.debug.subnet=public)",
            "(golem.runtime.name=vm)",
            "(golem.inf.cpu.cores>=1)",
            "(golem.inf.cpu.threads>=1)",
            "(golem.inf.mem.gib>=0.5)",
            "(golem.inf.storage.gib>=2)",
            "(golem.activity.caps.transfer.report-progress=true)",
            "(golem.activity.caps.deploy.report-progress=true)",
        ]
    )
    counter = table.answer({"properties": demand, "constraints": f"(&{items})"})
    assert negotiated(counter.properties) == {INTERVAL: 120, PAYMENT_TIMEOUT: 43200, ACCEPT_TIMEOUT: 120}
    for properties, state in ((table.offer.properties, "Initial"), (counter.properties, "Draft")):
        read = await table.read(properties, state)
        assert (read["valid"], read["draft"]) == (True, state == "Draft")
        assert read["provider"] == {"id": "0x" + "00" * 20, "name": "bob", "walletAddress": "0x" + "ab" * 20}
        assert read["pricing"] == {"envSec": 0.001, "cpuSec": 0.01, "start": 0.1}
        assert read["machine"]["cpuThreads"] == 2
        assert read["machine"]["runtimeCapabilities"] == ["start-entrypoint"]
