"""Which way a job is paid, what its user sees of it, and what is left of it on the chain."""

from __future__ import annotations

from pathlib import Path

import pytest

from shem.sdk import Rental, events
from shem.terms.amounts import format_amount
from shem.testing.devnet import Devnet
from tests.e2e.conftest import session

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]

PLATFORM = "channel-devnet-tglm"


async def task(machine: Rental, number: int) -> bytes:
    return (await machine.shell(f"echo {number}")).stdout


async def test_a_job_is_paid_by_vouchers_that_are_seen_to_grow_and_by_one_transaction(net: Devnet, image: Path) -> None:
    seen: list[events.ChannelChanged] = []

    def note(event: events.Event) -> None:
        if isinstance(event, events.ChannelChanged):
            seen.append(event)

    async def task(machine: Rental, number: int) -> bytes:
        return (await machine.shell(f"sleep 2; echo {number}")).stdout

    golem = session(net, budget="5", listener=note)
    async with golem:
        results = [r async for r in golem.map(task, range(8), image=image, workers=2)]
    assert sorted(results) == [b"%d\n" % number for number in range(8)]
    report = golem.report
    assert report.settled
    worked = [p for p in report.providers.values() if p.rentals]
    assert len({payment.tx_hash for p in worked for payment in p.payments}) == 1
    for provider in worked:
        [ended] = provider.channels.values()
        assert (ended.platform, ended.state) == (PLATFORM, "closed")
        assert ended.claimed == ended.signed == provider.cost
        steps = [e.signed for e in seen if e.channel_id == ended.channel_id]
        assert steps == sorted(steps)
        assert len({step for step in steps if step}) >= 3
        assert all(e.signed <= e.reserved for e in seen)
        assert (await net.rpc("eth_getTransactionReceipt", ended.opened_tx))["status"] == "0x1"
    [told] = report.as_dict()["by_provider"][0]["channels"]
    assert told["returned"] == format_amount(_of(report.providers, told).reserved - _of(report.providers, told).claimed)


def _of(providers: object, told: dict[str, str]) -> events.ChannelChanged:
    found = (p.channels.get(told["channel_id"]) for p in providers.values())  # type: ignore[attr-defined]
    return next(c for c in found if c is not None)


async def test_a_platform_that_is_asked_for_is_paid_on(net: Devnet, image: Path) -> None:
    golem = session(net, budget="5", platform="erc20-devnet-tglm")
    async with golem:
        assert (await golem.run(image, ["echo", "0"])).text == "0\n"
    assert golem.report.settled
    [payment] = [p for provider in golem.report.providers.values() for p in provider.payments]
    assert payment.platform == "erc20-devnet-tglm"
    receipt = await net.rpc("eth_getTransactionReceipt", payment.tx_hash)
    assert receipt["to"].lower() == net.token.lower()
