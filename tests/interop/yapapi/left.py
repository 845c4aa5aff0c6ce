"""A machine that goes away in the middle of the work: the task is done on another."""

from common import TIMEOUT, Record, image, run
from yapapi import Golem, Task
from yapapi.rest.activity import BatchError

TRIED, ENDS = [], []


async def worker(context, tasks):
    async for task in tasks:
        TRIED.append(context.provider_id)
        script = context.new_script()
        said = script.run("/bin/sh", "-c", "sleep 1000" if len(TRIED) == 1 else "echo done")
        print("at work on", context.provider_id, flush=True)
        try:
            yield script
        except BatchError as error:
            ENDS.append(str(error))
            raise
        task.accept_result(result=(await said).stdout)


async def main():
    async with Golem(budget=1, event_consumer=Record()) as golem:
        tasks = golem.execute_tasks(worker, [Task(data=None)], await image(), timeout=TIMEOUT)
        results = [task.result async for task in tasks]
    return {"results": results, "tried": TRIED, "ends": ENDS}


run(main())
