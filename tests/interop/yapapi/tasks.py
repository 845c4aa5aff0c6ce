"""Many tasks on several machines; one task is refused at first and done again, on a machine that its worker was not."""

import asyncio

from common import TIMEOUT, Record, image, run
from yapapi import Golem, Task

TASKS, WORKERS = 12, 3


async def worker(context, tasks):
    await EVERYBODY.wait()
    async for task in tasks:
        script = context.new_script()
        script.run("/bin/sh", "-c", f"echo {task.data} > /golem/work/number")
        answer = script.run("/bin/sh", "-c", "n=$(cat /golem/work/number); echo $((n * n))")
        yield script
        square = int((await answer).stdout)
        if task.data == 5 and not REFUSED:
            REFUSED.append(context.provider_id)
            task.reject_result(reason="once more", retry=True)
        else:
            task.accept_result(result=(square, context.provider_id))


EVERYBODY, REFUSED = asyncio.Barrier(WORKERS), []


async def main():
    record = Record()
    done = {}
    async with Golem(budget=10, event_consumer=record) as golem:
        tasks = [Task(data=n) for n in range(TASKS)]
        async for task in golem.execute_tasks(worker, tasks, await image(), max_workers=WORKERS, timeout=TIMEOUT):
            done[task.data] = task.result
    return {
        "squares": [done[n][0] for n in range(TASKS)],
        "providers": sorted({provider for _, provider in done.values()}),
        "rejected": len(record.of("TaskRejected")),
        "agreements": len(record.of("AgreementConfirmed")),
    }


run(main())
