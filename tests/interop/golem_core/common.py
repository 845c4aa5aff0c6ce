"""What our golem-core programs share: the network's image, and the way down from a demand to an activity."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

from golem.managers import (
    DefaultAgreementManager,
    DefaultPaymentManager,
    DefaultProposalManager,
    NegotiatingPlugin,
    PaymentPlatformNegotiator,
    RefreshingDemandManager,
)
from golem.node import GolemNode
from golem.payload import RepositoryVmPayload
from golem.resources import Activity, Agreement, Allocation, Deploy, Invoice, NewDebitNote, NewInvoice, Proposal, Start
from golem.resources.proposal.exceptions import ProposalRejected

LIFETIME = timedelta(minutes=30)


def payload() -> RepositoryVmPayload:
    """The network's image, from where the network's registry has it."""
    return RepositoryVmPayload(os.environ["IMAGE_HASH"], image_url=os.environ["IMAGE_URL"])


class Managers:
    """The chain of managers that the documentation begins with, up to agreements."""

    def __init__(
        self,
        golem: GolemNode,
        budget: float = 1.0,
        plugins: Any = None,
        what: Any = None,
        lifetime: timedelta = LIFETIME,
    ) -> None:
        self.payment = DefaultPaymentManager(golem, budget=budget)
        self.demand = RefreshingDemandManager(
            golem, self.payment.get_allocation, [what or payload()], demand_lifetime=lifetime
        )
        chosen = plugins or [NegotiatingPlugin(proposal_negotiators=(PaymentPlatformNegotiator(),))]
        self.proposal = DefaultProposalManager(golem, self.demand.get_initial_proposal, plugins=chosen)
        self.agreement = DefaultAgreementManager(golem, self.proposal.get_draft_proposal)

    async def __aenter__(self) -> Managers:
        for manager in (self.payment, self.demand, self.proposal, self.agreement):
            await manager.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for manager in (self.agreement, self.proposal, self.demand, self.payment):
            await manager.stop()


class Payments:
    """Accepts every note and every invoice of a session in full. (The package's own handler for this, of its pipeline,
    cannot be started: it names an event that it does not import.)
    """

    def __init__(self, golem: GolemNode, allocation: Allocation) -> None:
        self._golem, self._allocation = golem, allocation
        self._accepted: dict[str, asyncio.Future[None]] = {}

    async def start(self) -> None:
        """Listen."""
        await self._golem.event_bus.on(NewInvoice, self._accept)
        await self._golem.event_bus.on(NewDebitNote, self._accept)

    async def _accept(self, event: NewInvoice | NewDebitNote) -> None:
        document = event.resource
        data = await document.get_data(force=True)
        if data.status == "RECEIVED":
            await document.accept_full(self._allocation)
            await document.get_data(force=True)
        if isinstance(document, Invoice):
            self._of(data.agreement_id).set_result(None)

    def _of(self, agreement_id: str) -> asyncio.Future[None]:
        return self._accepted.setdefault(agreement_id, asyncio.get_running_loop().create_future())

    async def finish(self, *agreements: Agreement) -> None:
        """End agreements and wait until the invoice of each is accepted."""
        await asyncio.gather(*(agreement.close_all() for agreement in agreements))
        async with asyncio.timeout(60):
            await asyncio.gather(*(self._of(agreement.id) for agreement in agreements))


async def draft_of(proposal: Proposal, allocation: Any) -> Proposal:
    """Counter an initial proposal, naming the platform to pay on, and take the provider's answer."""
    demand = await proposal.demand.get_demand_data()
    demand.properties["golem.com.payment.chosen-platform"] = (await allocation.get_data()).payment_platform
    countered = await proposal.respond(demand.properties, demand.constraints)
    return await anext(countered.responses())


async def agree(golem: GolemNode, allocation: Any, *, autoclose: bool = True) -> Agreement:
    """An approved agreement with whoever comes first."""
    demand = await golem.create_demand(payload(), allocations=[allocation], autoclose=True)
    async for proposal in demand.initial_proposals():
        try:
            draft = await draft_of(proposal, allocation)
        except ProposalRejected:  # in use by somebody
            continue
        agreement = await draft.create_agreement(autoclose=autoclose)
        await agreement.confirm()
        if await agreement.wait_for_approval():
            await demand.unsubscribe()
            return agreement
    raise RuntimeError("no proposals")


async def ready(activity: Activity, deploy: dict[str, Any] | None = None) -> Activity:
    """Deploy and start."""
    batch = await activity.execute_commands(Deploy(deploy), Start())
    await batch.wait(60)
    return activity


def run(main: Coroutine[Any, Any, Any]) -> None:
    """Run and print one line of JSON; Ctrl-C cancels the work, and the session ends in order."""
    try:
        print(json.dumps(asyncio.run(main)), flush=True)
    except KeyboardInterrupt:
        print("ended in order", flush=True)
