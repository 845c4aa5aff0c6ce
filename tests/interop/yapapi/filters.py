"""Who may work, and for how much, is the program's choice. The argument: ``dear`` (nobody is cheap enough), ``one`` (a
single provider is allowed), ``unpaid`` (the bill is too high for the strategy, so it is not accepted).
"""

import asyncio
import contextlib
import sys
from decimal import Decimal

from common import TIMEOUT, Record, image, run, until
from yapapi import Golem, Task
from yapapi.contrib.strategy import ProviderFilter
from yapapi.props import com
from yapapi.strategy import LeastExpensiveLinearPayuMS


class Stingy(LeastExpensiveLinearPayuMS):
    """Accepts no bill."""

    async def invoice_accepted_amount(self, invoice):
        return Decimal(0)


async def worker(context, tasks):
    async for task in tasks:
        script = context.new_script()
        script.run("/bin/true")
        yield script
        task.accept_result(result=context.provider_id)


def strategy(kind):
    if kind == "dear":
        return LeastExpensiveLinearPayuMS(max_price_for={com.Counter.TIME: Decimal("0.0000001")})
    if kind == "one":
        return ProviderFilter(LeastExpensiveLinearPayuMS(), lambda provider: provider == sys.argv[2])
    return Stingy()


async def main():
    kind = sys.argv[1]
    record = Record()
    golem = Golem(budget=1, event_consumer=record, strategy=strategy(kind))
    await golem.start()
    results = []
    try:
        tasks = golem.execute_tasks(worker, [Task(data=None)], await image(), timeout=TIMEOUT)
        if kind == "dear":
            with contextlib.suppress(asyncio.CancelledError):
                async with asyncio.TaskGroup() as group:
                    first = group.create_task(tasks.__anext__())
                    await until(lambda: len(record.of("ProposalRejected")) >= 3)
                    first.cancel()
        else:
            results = [task.result async for task in tasks]
    finally:
        await golem.stop(wait_for_payments=kind != "unpaid")
    return {
        "results": results,
        "rejected": sorted({(e.proposal.issuer, e.reason) for e in record.of("ProposalRejected")}),
        "agreements": len(record.of("AgreementConfirmed")),
        "accepted": len(record.of("InvoiceAccepted")),
    }


run(main())
