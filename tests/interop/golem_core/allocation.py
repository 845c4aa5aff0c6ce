"""One allocation, two rentals at the same time and a third later; what each cost is taken from it."""

import asyncio
from decimal import Decimal

from common import Payments, agree, ready, run
from golem.node import GolemNode
from golem.resources import Run


async def rental(golem, allocation):
    agreement = await agree(golem, allocation)
    activity = await ready(await agreement.create_activity())
    batch = await activity.execute_commands(Run("echo done"))
    said = (await batch.wait(60))[0].stdout
    await activity.destroy()
    await agreement.terminate("enough")
    return said, agreement


async def main():
    async with GolemNode() as golem:
        allocation = await golem.create_allocation(Decimal("0.5"))
        payments = Payments(golem, allocation)
        await payments.start()
        done = list(await asyncio.gather(rental(golem, allocation), rental(golem, allocation)))
        done.append(await rental(golem, allocation))
        await payments.finish(*(agreement for _, agreement in done))
        amounts = [Decimal(agreement.invoice.data.amount) for _, agreement in done]
        data = await allocation.get_data(force=True)
        async with GolemNode() as other:
            listed = [a.id for a in await other.allocations()]
    return {
        "said": [said for said, _ in done],
        "providers": len({agreement.proposal.data.issuer_id for _, agreement in done}),
        "spent": Decimal(data.spent_amount) == sum(amounts) > 0,
        "left": Decimal(data.remaining_amount) == Decimal("0.5") - sum(amounts),
        "listed": allocation.id in listed,
    }


run(main())
