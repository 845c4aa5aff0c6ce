"""One budget, two rentals one after the other: both are paid from the same allocation."""

from decimal import Decimal

from common import TIMEOUT, Record, image, run
from yapapi import Golem, Task


async def worker(context, tasks):
    async for task in tasks:
        script = context.new_script()
        said = script.run("/bin/echo", str(task.data))
        yield script
        task.accept_result(result=(await said).stdout.strip())


async def main():
    record = Record()
    results, held = [], []
    async with Golem(budget=Decimal("0.75"), event_consumer=record) as golem:
        for job in ("first", "second"):
            tasks = golem.execute_tasks(worker, [Task(data=job)], await image(), timeout=TIMEOUT)
            results += [task.result async for task in tasks]
            payment = golem._engine._payment_api
            held.append([[a.id, str(a.amount), a.payment_platform] async for a in payment.allocations()])
    return {"results": results, "held": held, "agreements": len(record.of("AgreementConfirmed"))}


run(main())
