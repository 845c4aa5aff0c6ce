"""A script that takes too long: its machine is given up in the middle, and another does the task."""

from datetime import timedelta

from common import TIMEOUT, Record, image, run
from yapapi import Golem, Task
from yapapi.rest.activity import BatchTimeoutError

TRIED = []


async def worker(context, tasks):
    async for task in tasks:
        script = context.new_script(timeout=timedelta(seconds=2) if not TRIED else timedelta(seconds=60))
        said = script.run("/bin/sh", "-c", "echo started; sleep 1000" if not TRIED else "echo done")
        TRIED.append(context.provider_name)
        try:
            yield script
        except BatchTimeoutError:
            print("too slow", flush=True)
            raise
        task.accept_result(result=(await said).stdout)


async def main():
    record = Record()
    async with Golem(budget=1, event_consumer=record) as golem:
        tasks = golem.execute_tasks(worker, [Task(data=None)], await image(), timeout=TIMEOUT)
        results = [task.result async for task in tasks]
    reasons = [event.reason for event in record.of("AgreementTerminated")]
    return {"results": results, "tried": len(TRIED), "reasons": reasons}


run(main())
