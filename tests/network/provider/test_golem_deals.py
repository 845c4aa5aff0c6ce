"""Demands as programs written for Golem make them: no sizes, a GVMI file, values as text, everything negotiated once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from shem.errors import Refused
from shem.node.payment.drivers.testmoney import PLATFORM
from shem.provider.config import ResourceLimits
from shem.runtimes.images.gvmi import gvmi_available
from shem.sdk.transfer import Courier
from shem.testing.small_image import make_small_gvmi
from shem.wire.market import ProposalEvent, ProposalRejectedEvent
from shem.wire.payment import NewAllocation
from tests.network.provider.conftest import Rental, Requestor, World

INTERVAL = "golem.com.scheme.payu.debit-note.interval-sec?"
ACCEPT_TIMEOUT = "golem.com.payment.debit-notes.accept-timeout?"
PAYMENT_TIMEOUT = "golem.com.scheme.payu.payment-timeout-sec?"
NEGOTIABLE = {INTERVAL, ACCEPT_TIMEOUT, PAYMENT_TIMEOUT}
SIZES = "(golem.inf.mem.gib>=0.5)\n\t(golem.inf.storage.gib>=1.0)\n\t(golem.inf.cpu.threads>={threads})"


class GolemDemand:
    """A demand on the market, and the steps of a client with it."""

    def __init__(self, requestor: Requestor, package: str, threads: int = 1) -> None:
        self._requestor = requestor
        self._package = package
        self._threads = threads
        self.demand_id = ""

    async def __aenter__(self) -> GolemDemand:
        requestor = self._requestor
        if not requestor.allocation:
            made = await requestor.payment.create_allocation(
                NewAllocation(total_amount="100", make_deposit=False, payment_platform=PLATFORM.platform)
            )
            requestor.allocation = made.allocation_id
        decorations = await requestor.payment.demand_decorations([requestor.allocation])
        self.properties: dict[str, Any] = {
            "golem.node.debug.subnet": "test",
            "golem.srv.caps.multi-activity": True,
            "golem.srv.comp.expiration": int((datetime.now(UTC) + timedelta(minutes=30)).timestamp() * 1000) - 5000,
            "golem.srv.comp.task_package": self._package,
            "golem.srv.comp.vm.package_format": "gvmkit-squash",
            **{decoration.key: decoration.value for decoration in decorations.properties},
        }
        self.constraints = (
            f"(&(golem.node.debug.subnet=test)\n\t{''.join(decorations.constraints)}\n\t(golem.com.pricing.model=linear)"
            f"\n\t{SIZES.format(threads=self._threads)}\n\t(golem.runtime.name=vm))"
        )
        self.demand_id = await requestor.market.subscribe_demand(self.properties, self.constraints)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._requestor.market.unsubscribe_demand(self.demand_id)

    async def initial(self) -> ProposalEvent:
        event = await self._requestor.next_event(self.demand_id)
        assert isinstance(event, ProposalEvent)
        assert event.proposal.state == "Initial"
        return event

    async def counter(self, event: ProposalEvent, **changes: Any) -> ProposalEvent | ProposalRejectedEvent:
        """The answer to a counter, where there is one offer."""
        await self._counter(event, **changes)
        return await self._requestor.next_event(self.demand_id)

    async def _counter(self, event: ProposalEvent, **changes: Any) -> None:
        chosen = {"golem.com.payment.chosen-platform": PLATFORM.platform}
        await self._requestor.market.counter_as_requestor(
            self.demand_id, event.proposal.proposal_id, self.properties | chosen | changes, self.constraints
        )

    async def draft(self) -> ProposalEvent:
        """What a client does: it counters every offer and takes the first that does not refuse."""
        while True:
            event = await self._requestor.next_event(self.demand_id)
            if isinstance(event, ProposalEvent):
                if event.proposal.state == "Draft":
                    return event
                with contextlib.suppress(Refused):  # gone already: a fresh one is on its way
                    await self._counter(event)

    async def rent(self) -> Rental:
        return await self._requestor.agree((await self.draft()).proposal.proposal_id)


@pytest_asyncio.fixture
async def gvmi(world: World, tmp_path: Path) -> AsyncIterator[str]:
    """The package of a small GVMI that the requestor's node serves."""
    if reason := gvmi_available():
        pytest.skip(f"GVMI files cannot be read here: {reason}")
    path = tmp_path / "small.gvmi"
    sha3 = make_small_gvmi(path)
    async with Courier(world.requestor.files, world.alice.id) as courier:
        stored = await courier.publish(path)
        yield f"hash:sha3:{sha3}:{stored.url}"


ONE = ResourceLimits(cpu_threads=2, memory_gib=1.0, storage_gib=2.0, max_agreements=1)
TWO = ResourceLimits(cpu_threads=2, memory_gib=1.0, storage_gib=2.0, max_agreements=2)


async def test_from_a_demand_to_an_invoice_and_again(world: World, gvmi: str) -> None:
    requestor = world.requestor
    async with world.agent(runtimes=("oci", "vm"), limits=ONE), GolemDemand(requestor, gvmi) as demand:
        began = time.perf_counter()
        first = await demand.draft()
        print(f"initial and draft took {time.perf_counter() - began:.3f} s")
        for draft in (first, None):
            rental = await requestor.agree((draft or await demand.draft()).proposal.proposal_id)
            await rental.open()
            result = await rental.shell("echo hello")
            assert (result.result, result.stdout) == ("Ok", "hello\n")
            await requestor.end(rental)
            await requestor.invoice(rental.agreement_id)
            assert len(await requestor.invoices(rental.agreement_id)) == 1


async def test_the_counter_is_the_offer_with_what_the_requestor_negotiates(world: World) -> None:
    package = "hash:sha3:" + "ab" * 28 + ":http://127.0.0.1:9/none.gvmi"
    async with world.agent(runtimes=("vm",), limits=ONE), GolemDemand(world.requestor, package) as demand:
        initial = await demand.initial()
        offered = initial.proposal.properties
        assert offered.keys() >= NEGOTIABLE
        wanted = {INTERVAL: 120, PAYMENT_TIMEOUT: 43200, ACCEPT_TIMEOUT: 120}
        answer = await demand.counter(initial, **wanted)
        assert isinstance(answer, ProposalEvent)
        assert answer.proposal.state == "Draft"
        assert answer.proposal.properties == offered | wanted
    async with world.agent(runtimes=("vm",), limits=ONE), GolemDemand(world.requestor, package) as demand:
        answer = await demand.counter(await demand.initial())
        assert isinstance(answer, ProposalEvent)
        assert answer.proposal.properties == {k: v for k, v in offered.items() if k not in NEGOTIABLE}


async def test_a_docker_image_is_refused_where_golem_images_run(world: World) -> None:
    async with world.agent(runtimes=("vm",), limits=ONE), GolemDemand(world.requestor, world.package) as demand:
        refusal = await demand.counter(await demand.initial())
        assert isinstance(refusal, ProposalRejectedEvent)
        assert refusal.reason is not None
        assert (refusal.reason["code"], refusal.reason["golem.proposal.rejection.is-final"]) == (
            "wrong_image_kind",
            True,
        )
        assert refusal.reason["message"]


async def test_modest_demands_share_a_machine_that_a_large_one_takes_whole(world: World) -> None:
    requestor = world.requestor
    package = "hash:sha3:" + "ab" * 28 + ":http://127.0.0.1:9/none.gvmi"
    demand = partial(GolemDemand, requestor, package)
    async with world.agent(runtimes=("oci", "vm"), limits=TWO) as agent:
        async with demand() as one, demand() as two, demand(threads=2) as large:
            rentals = [await one.rent(), await two.rent()]
            assert len(agent.deals) == 2
            refusal = await large.counter(await large.initial())
            assert isinstance(refusal, ProposalRejectedEvent)
            assert refusal.reason is not None
            assert refusal.reason["code"] == "no_capacity"
            for rental in rentals:
                await requestor.end(rental)
            whole = await large.rent()
            sizes = [(await world.agreement(rental.agreement_id)).offer.properties for rental in (*rentals, whole)]
            assert [offer["golem.inf.cpu.threads"] for offer in sizes] == [1, 1, 2]
            assert [offer["golem.inf.mem.gib"] for offer in sizes] == [0.5, 0.5, 1.0]
            await requestor.end(whole)
        for rental in (*rentals, whole):
            assert (await requestor.invoice(rental.agreement_id)).amount == "0"


async def test_who_holds_a_fresh_draft_can_take_it_when_room_comes_back(world: World) -> None:
    requestor = world.requestor
    package = "hash:sha3:" + "ab" * 28 + ":http://127.0.0.1:9/none.gvmi"
    demand = partial(GolemDemand, requestor, package)
    async with world.agent(runtimes=("vm",), limits=ONE), demand() as quick, demand() as slow, demand() as late:
        drafts = [await quick.draft(), await slow.draft()]
        rental = await requestor.agree(drafts[0].proposal.proposal_id)
        refusal = await late.counter(await late.initial())
        assert isinstance(refusal, ProposalRejectedEvent)
        await requestor.end(rental)
        await requestor.invoice(rental.agreement_id)
        second = await requestor.agree(drafts[1].proposal.proposal_id)
        await requestor.end(second)
        third = await late.rent()
        await requestor.end(third)
        for done in (second, third):
            assert (await requestor.invoice(done.agreement_id)).amount == "0"
