"""Several activities in one agreement: a worker that ends well gives its agreement to the next one."""

from common import TIMEOUT, Record, image, run
from yapapi import Golem, Task

TASKS = 3


async def worker(context, tasks):
    task = await tasks.__anext__()
    script = context.new_script()
    script.run("/bin/sh", "-c", "echo $(($(cat /golem/work/n 2>/dev/null || echo 0) + 1)) > /golem/work/n")
    count = script.run("/bin/cat", "/golem/work/n")
    yield script
    task.accept_result(result=((await count).stdout.strip(), context._activity.id))
    WORKERS.append(tasks)  # as long as the tasks' iterator lives, the worker has not given up the agreement


WORKERS = []


async def main():
    record = Record()
    async with Golem(budget=1, event_consumer=record) as golem:
        work = [Task(data=n) for n in range(TASKS)]
        tasks = golem.execute_tasks(worker, work, await image(), max_workers=1, timeout=TIMEOUT)
        results = [task.result async for task in tasks]
    return {
        "counts": [count for count, _ in results],
        "activities": len({activity for _, activity in results}),
        "agreements": len(record.of("AgreementConfirmed")),
    }


run(main())
