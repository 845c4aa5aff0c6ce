"""A provider ends an agreement under a session: the work goes on elsewhere, and its user is told why, in the provider's words."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from shem.client.http import ApiClient
from shem.client.market import MarketApi
from shem.cogs.tasks import TaskScope
from shem.errors import PeerFailed, Refused, ShemError
from shem.node.payment.drivers.testmoney import PLATFORM
from shem.sdk import Golem, Rental, events
from shem.sdk.endings import AgreementEnded, Endings, told
from shem.sdk.hiring import Hiring, NoProviders
from shem.sdk.rental import CUT_OFF
from shem.wire.market import AgreementEvent, AgreementTerminatedEvent, Offer, ProposalEvent
from tests.network.provider.conftest import World, until

pytestmark = pytest.mark.timeout(60)

SCREEN_CLEARED = "\x1b[2J"
REASON = {"message": f"nothing is reserved{SCREEN_CLEARED}\nfor this", "golem.provider.code": "NoCover"}
"""As a provider gives it that nobody should trust with a terminal."""
WORDS = "ended the agreement: nothing is reserved [2J for this (NoCover)"


class FickleProvider:
    """Offers, counters and approves over REST like any agent, for next to nothing; and ends every agreement at once."""

    def __init__(self, http: ApiClient, like: Offer, reason: Mapping[str, Any], **changes: Any) -> None:
        self.agreements: list[str] = []
        self.offer_id = ""
        self._market = MarketApi(http)
        coeffs = "golem.com.pricing.model.linear.coeffs"
        cheap = [0.000001 for _ in like.properties[coeffs]]
        self._properties = like.properties | {coeffs: cheap} | changes
        self._constraints = like.constraints
        self._reason = dict(reason)
        self._scope = TaskScope("fickle provider")

    async def __aenter__(self) -> FickleProvider:
        self.offer_id = await self._market.subscribe_offer(self._properties, self._constraints)
        self._scope.start(self._serve(), "offer")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._scope.close()
        await self._market.unsubscribe_offer(self.offer_id)

    async def _serve(self) -> None:
        while True:
            for event in await self._market.collect_offer_events(self.offer_id, timeout_s=5):
                with contextlib.suppress(Refused, PeerFailed, TimeoutError):  # the other side thought better of it
                    await self._answer(event)

    async def _answer(self, event: object) -> None:
        match event:
            case ProposalEvent(proposal=proposal):
                await self._market.counter_as_provider(
                    self.offer_id, proposal.proposal_id, self._properties, self._constraints
                )
            case AgreementEvent(agreement=agreement):
                await self._market.approve(agreement.agreement_id)
                await self._market.terminate(agreement.agreement_id, self._reason)
                self.agreements.append(agreement.agreement_id)


@asynccontextmanager
async def fickle(world: World) -> AsyncIterator[FickleProvider]:
    """One in place of the agent, with an offer like the agent's."""
    async with world.agent():
        [like] = await MarketApi(world.provider_http).offers()
    async with FickleProvider(world.provider_http, like, REASON) as provider:
        yield provider


def session(world: World, seen: list[events.Event]) -> Golem:
    return Golem(
        budget="50",
        platform=PLATFORM.platform,
        api_url=world.alice.url,
        app_key=world.alice.key,
        subnet="test",
        progress=False,
        listener=seen.append,
    )


def left(seen: list[events.Event]) -> list[tuple[str, str]]:
    return [(event.code, event.reason) for event in seen if isinstance(event, events.ProviderLeft)]


async def _nothing(machine: Rental, _: int) -> None:
    await machine.run("true")


@pytest.mark.parametrize("workers", [1, 4])
async def test_when_nobody_else_is_there_the_last_error_tells_the_providers_reason(world: World, workers: int) -> None:
    seen: list[events.Event] = []
    async with fickle(world) as provider, session(world, seen) as golem:
        with pytest.raises(NoProviders) as caught:
            async for _ in golem.map(_nothing, range(6), image=world.root / "image", workers=workers):
                pass
    error = caught.value
    assert provider.agreements
    assert error.code == "agreement_ended"
    assert error.message == f"all 1 providers refuse: bob {WORDS}"
    assert "shem payment status" in error.hint
    assert error.details == {"reason": "nothing is reserved [2J for this", "provider_code": "NoCover"}
    assert left(seen) == [("agreement_ended", f"bob {WORDS}")]


class LateMarket(MarketApi):
    """Looks at an agreement only when it is over again, as a busy program may."""

    async def wait_agreement(self, agreement_id: str, *, timeout_s: float = 15.0) -> None:
        async def over() -> bool:
            return (await self.agreement(agreement_id)).state == "Terminated"

        await until(over)
        await super().wait_agreement(agreement_id, timeout_s=timeout_s)


async def test_an_end_that_comes_before_the_approval_was_seen_is_no_different(world: World) -> None:
    requestor, who = world.requestor, {}
    demand_id, properties, constraints = await requestor.demand(world.package)
    await requestor.market.unsubscribe_demand(demand_id)

    def leave(provider_id: str, name: str, code: str, reason: str) -> None:
        who[provider_id] = (code, reason)

    hiring = Hiring(
        LateMarket(requestor.http),
        demand=lambda: (dict(properties), constraints),
        platform=PLATFORM.platform,
        session_id="late",
        threads=1,
        max_hourly=None,
        left={},
        barred=set,
        endings=Endings(requestor.market, "late"),
        leave=leave,
        emit=lambda event: None,
    )
    async with fickle(world), hiring:
        with pytest.raises(NoProviders) as caught:
            await hiring.hire(30.0)
    assert caught.value.code == "agreement_ended"
    assert who == {world.bob.id: ("agreement_ended", f"bob {WORDS}")}


async def test_who_is_stopped_in_the_middle_of_a_command_is_quoted(world: World) -> None:
    seen: list[events.Event] = []
    async with AsyncExitStack() as agent, session(world, seen) as golem:
        await agent.enter_async_context(world.agent())

        async def stop() -> None:
            await until(lambda: _some(seen, events.OutputReceived))
            await agent.aclose()

        async with asyncio.TaskGroup() as group, golem.rent(image=world.root / "image") as machine:
            group.create_task(stop())
            with pytest.raises(AgreementEnded) as caught:
                await machine.shell("echo begun; sleep 60")
    assert caught.value.details["provider_code"] == "Shutdown"
    assert caught.value.message.endswith("(Shutdown)")


async def test_a_task_whose_provider_stops_loses_its_machine_and_no_attempt(world: World) -> None:
    seen: list[events.Event] = []
    async with AsyncExitStack() as agent, session(world, seen) as golem:
        await agent.enter_async_context(world.agent())

        async def stop() -> None:
            await until(lambda: _some(seen, events.OutputReceived))
            await agent.aclose()

        async def task(machine: Rental, _: int) -> None:
            await machine.shell("echo begun; sleep 60")

        async with asyncio.TaskGroup() as group:
            group.create_task(stop())
            with pytest.raises(NoProviders) as caught:
                image = world.root / "image"
                async for _ in golem.map(task, [1], image=image, workers=1, retries=0, hire_timeout=5):
                    pass
    [(code, reason)] = left(seen)
    assert (code, reason.endswith("(Shutdown)")) == ("agreement_ended", True)
    [failed] = [event for event in seen if isinstance(event, events.TaskFailed)]
    assert (failed.code, failed.reason, failed.retried) == (code, reason, True)
    assert caught.value.code == "no_providers"


async def test_what_we_ended_ourselves_is_not_put_down_to_the_provider(world: World) -> None:
    seen: list[events.Event] = []
    async with world.agent(), session(world, seen) as golem, golem.rent(image=world.root / "image") as machine:
        await world.requestor.market.terminate(machine.agreement_id, {"message": "by hand"})
        with pytest.raises(ShemError) as caught:
            while True:
                await machine.shell("true")
    assert not isinstance(caught.value, AgreementEnded)
    assert caught.value.code in CUT_OFF


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (None, "bob ended the agreement: no reason given"),
        ({"message": "", "golem.provider.code": ["x"] * 9}, "bob ended the agreement: no reason given (['x', "),
        ({"message": "long " * 200}, "bob ended the agreement: long "),
    ],
)
def test_reasons_of_any_shape_and_length_become_a_sentence(reason: dict[str, Any] | None, words: str) -> None:
    event = AgreementTerminatedEvent(datetime.now(UTC), "a1", terminator="Provider", reason=reason)
    error = told(event, "bob")
    assert error is not None
    assert error.message.startswith(words)
    assert len(error.message) < 400
    assert error.hint


async def _some(seen: list[events.Event], kind: type) -> bool:
    return any(isinstance(event, kind) for event in seen)
