"""Budgets on a network of processes: kept in each of their forms, told before and while money is spent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shem.errors import MoneyShort
from shem.sdk import Golem, Rental, events
from shem.terms.amounts import format_amount, parse_amount
from shem.terms.budgets import BadBudget
from shem.testing.devnet import Devnet
from tests.e2e.conftest import session
from tests.e2e.test_cli import shem

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]


async def task(machine: Rental, number: int) -> str:
    await machine.shell("sleep 0.2")
    return machine.provider_id


async def test_one_provider_earns_no_more_than_it_may_and_the_work_goes_on_elsewhere(net: Devnet, image: Path) -> None:
    most = parse_amount("0.006")
    served: list[str] = []
    golem = session(net, budget="1 GLM", budget_per_provider="0.006 GLM")
    async with golem:
        async for provider_id in golem.map(task, range(10_000), image=image, workers=1):
            if provider_id not in served:
                served.append(provider_id)
            if len(served) == 2:
                break
    assert len(served) == 2
    assert golem.report.settled
    costs = [p.cost for p in golem.report.providers.values()]
    assert 0 < max(costs) <= most
    first = golem.report.providers[served[0]]
    assert first.left == "money_budget_per_provider"


async def test_when_every_provider_has_earned_all_that_it_may_the_work_ends_and_says_so(
    net: Devnet, image: Path
) -> None:
    golem = session(net, budget="1")
    async with golem:
        with pytest.raises(MoneyShort) as caught:
            async for _ in golem.map(task, range(10_000), image=image, workers=3, budget_per_provider="0.005"):
                pass
        # another map has money for the same providers
        assert len([p async for p in golem.map(task, range(2), image=image, workers=1)]) == 2
    assert caught.value.code == "money_budget_per_provider"
    assert caught.value.details["limit"] == "budget_per_provider"
    assert golem.report.settled


async def test_a_rented_machine_is_taken_back_with_the_right_reason(net: Devnet, image: Path) -> None:
    golem = session(net, budget="1", budget_per_provider="0.006")
    async with golem:
        with pytest.raises(MoneyShort) as caught:
            async with golem.rent(image) as machine:
                while True:
                    await machine.shell("sleep 0.2")
    assert caught.value.code == "money_budget_per_provider"
    assert golem.report.settled
    assert 0 < golem.report.paid <= parse_amount("0.006")


async def test_an_hour_costs_no_more_than_it_may(net: Devnet, image: Path) -> None:
    seen: list[events.SpendingChanged] = []

    def note(event: events.Event) -> None:
        if isinstance(event, events.SpendingChanged):
            seen.append(event)

    golem = session(net, budget="1", budget_per_hour="0.005", listener=note)
    with pytest.raises(MoneyShort) as caught:
        async with golem:
            async for _ in golem.map(task, range(10_000), image=image, workers=1):
                pass
    assert caught.value.code == "money_budget_per_hour"
    assert golem.report.settled
    assert 0 < golem.report.paid <= parse_amount("0.005")
    assert max(s.hourly for s in seen) > 0
    assert seen[-1].hourly == 0
    assert seen[-1].accepted == golem.report.cost


async def test_dollars_become_tokens_once_and_the_report_says_how(net: Devnet, image: Path) -> None:
    argv = ("run", str(image), "--budget", "0.10 USD", "--json", "--", "true")
    done = await shem(net, *argv, SHEM_GLM_USD="0.3")
    assert done.status == 0, done.err
    report = json.loads(done.out.splitlines()[-1])
    told = report["budget"]
    assert told["written"] == "0.1 USD"
    assert told["total"] == "0.333333333333333333"
    assert told["price"]["usd"] == "0.3"
    assert told["price"]["source"] == "SHEM_GLM_USD"
    assert report["settled"]


async def test_a_budget_in_another_currency_is_refused_before_money_is_set_aside(net: Devnet) -> None:
    with pytest.raises(BadBudget) as caught:
        async with session(net, budget="5 EUR"):
            pass
    assert caught.value.code == "budget_currency"


async def test_an_estimate_before_anything_runs(net: Devnet, golem: Golem) -> None:
    async with golem:
        found = await golem.estimate(tasks=7, seconds=10, workers=3)
    assert len(found.quotes) == 3
    assert found.machines == 3
    assert found.duration_s == 30
    assert 0 < found.minimum <= found.median <= found.maximum
    assert [q.total for q in found.quotes] == sorted(q.total for q in found.quotes)
    # three machines are started, not seven, and what is rounded down is rounded once
    start = parse_amount("0.0001")
    assert all(0 <= q.total - (7 * q.per_task - 4 * start) < 7 for q in found.quotes)
    assert golem.report.cost == 0
    assert not golem.report.providers


async def test_the_command_line_estimates_without_renting_or_reserving(net: Devnet) -> None:
    done = await shem(net, "run", "any", "--estimate", "--tasks", "4", "--seconds", "30", "--budget", "2 USD", "--json")
    assert done.status == 0, done.err
    told = json.loads(done.out)
    assert told["tasks"] == told["machines"] == 4
    assert told["budget"] == "1"  # the built-in price, which needs no network
    assert told["fits_budget"] is True
    assert len(told["by_provider"]) == 3
    shown = await shem(net, "run", "any", "--estimate", "--seconds", "30")
    assert shown.status == 0, shown.err
    assert format_amount(parse_amount(told["by_provider"][0]["per_task"])) in shown.out
    for word in ("cheapest", "middle", "dearest", "fits the budget"):
        assert word in shown.out
