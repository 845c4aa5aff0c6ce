"""The instance is ended and deployed again within one activity: what the first had written is gone."""

from common import TIMEOUT, Record, image, run
from yapapi import Golem, Task


async def worker(context, tasks):
    async for task in tasks:
        answers = []
        for _ in range(2):
            script = context.new_script()
            script.deploy()
            script.start()
            seen = script.run("/bin/sh", "-c", "ls /tmp; echo x > /tmp/left-behind; ls /tmp")
            yield script
            answers.append((await seen).stdout.split())
            script = context.new_script()
            script.terminate()
            yield script
        task.accept_result(result=answers)


async def main():
    record = Record()
    async with Golem(budget=1, event_consumer=record) as golem:
        work = [Task(data=None)]
        tasks = golem.execute_tasks(worker, work, await image(), timeout=TIMEOUT, implicit_init=False)
        results = [task.result async for task in tasks]
    return {"results": results[0], "activities": len(record.of("ActivityCreated"))}


run(main())
