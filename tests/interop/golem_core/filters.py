"""Who may work, and which bills are paid, by filters. The argument: ``dear``, ``black`` with an id, or ``unpaid``."""

import asyncio
import sys

from common import Managers, agree, ready, run
from golem.managers import (
    BlacklistProviderIdPlugin,
    LinearCoeffsCost,
    NegotiatingPlugin,
    PaymentPlatformNegotiator,
    RejectIfCostsExceeds,
    SequentialWorkManager,
    SingleUseActivityManager,
)
from golem.node import GolemNode
from golem.resources import NewInvoice, Run


def negotiating():
    return NegotiatingPlugin(proposal_negotiators=(PaymentPlatformNegotiator(),))


async def work(context):
    await (await context.run("true")).wait(60)
    return await context.get_provider_id()


async def dear(golem):
    plugins = [RejectIfCostsExceeds(0.0000001, LinearCoeffsCost("price_initial")), negotiating()]
    async with Managers(golem, plugins=plugins) as managers:
        try:
            await asyncio.wait_for(managers.agreement.get_agreement(), 2)
        except TimeoutError:
            return "nobody"


async def black(golem, *providers):
    plugins = [BlacklistProviderIdPlugin(providers), negotiating()]
    async with Managers(golem, plugins=plugins) as managers:
        activities = SingleUseActivityManager(golem, managers.agreement.get_agreement)
        async with activities, SequentialWorkManager(golem, activities.get_activity) as works:
            return (await works.do_work(work)).result


async def unpaid(golem):
    invoices = asyncio.Queue()

    async def keep(event):
        await invoices.put(event.resource)

    await golem.event_bus.on(NewInvoice, keep)
    allocation = await golem.create_allocation(1)
    agreement = await agree(golem, allocation)
    activity = await ready(await agreement.create_activity())
    await (await activity.execute_commands(Run("true"))).wait(60)
    await activity.destroy()
    await agreement.terminate("no")
    invoice = await asyncio.wait_for(invoices.get(), 30)
    return (await invoice.get_data()).status


async def main():
    async with GolemNode() as golem:
        return {"result": await {"dear": dear, "black": black, "unpaid": unpaid}[sys.argv[1]](golem, *sys.argv[2:])}


run(main())
