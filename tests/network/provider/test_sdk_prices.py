"""A session pays what was offered."""

from __future__ import annotations

import pytest

from shem.client.market import MarketApi
from shem.node.payment.drivers.testmoney import PLATFORM
from shem.sdk.endings import Endings
from shem.sdk.hiring import Hiring, RefusedByAll
from shem.wire.market import AgreementEvent, ProposalEvent
from tests.network.provider.conftest import World
from tests.network.provider.test_sdk_endings import REASON, FickleProvider

pytestmark = pytest.mark.timeout(60)
COEFFS = "golem.com.pricing.model.linear.coeffs"


class Bait(FickleProvider):
    """Offers for next to nothing, and counters with something else."""

    counters: list[float]

    async def _answer(self, event: object) -> None:
        match event:
            case ProposalEvent(proposal=proposal):
                dear = self._properties | {COEFFS: self.counters}
                await self._market.counter_as_provider(self.offer_id, proposal.proposal_id, dear, self._constraints)
            case AgreementEvent(agreement=agreement):
                await self._market.approve(agreement.agreement_id)
                self.agreements.append(agreement.agreement_id)


@pytest.mark.parametrize(
    "counters", [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.000001, 0.000001, 0.00000100001]]
)
async def test_who_counters_with_a_higher_price_than_it_offered_is_not_hired(
    world: World, counters: list[float]
) -> None:
    requestor = world.requestor
    async with world.agent():
        [like] = await MarketApi(world.provider_http).offers()
        demand_id, properties, constraints = await requestor.demand(world.package)
        await requestor.market.unsubscribe_demand(demand_id)
    bait = Bait(world.provider_http, like, REASON)
    bait.counters = counters
    hiring = Hiring(
        requestor.market,
        demand=lambda: (dict(properties), constraints),
        platform=PLATFORM.platform,
        session_id="bait",
        threads=1,
        max_hourly=10**18,
        left={},
        barred=set,
        endings=Endings(requestor.market, "bait"),
        leave=lambda provider_id, name, code, reason: None,
        emit=lambda event: None,
    )
    async with bait, hiring:
        with pytest.raises(RefusedByAll) as caught:
            await hiring.hire(30.0)
    assert caught.value.code == "price_raised"
    assert bait.agreements == []
