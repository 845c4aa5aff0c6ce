"""A command that fails: the program sees why, goes on with the same machine, and a task whose worker dies is tried anew."""

from common import TIMEOUT, Record, image, run
from yapapi import Golem, Task
from yapapi.rest.activity import CommandExecutionError

FAILED = []


async def worker(context, tasks):
    async for task in tasks:
        script = context.new_script()
        script.run("/bin/sh", "-c", "echo before")
        script.run("/bin/sh", "-c", "echo out of luck >&2; exit 4")
        never = script.run("/bin/sh", "-c", "echo never")
        try:
            yield script
        except CommandExecutionError as error:
            FAILED.append({"command": error.command, "message": error.message, "stderr": error.stderr})
            if len(FAILED) == 1:
                raise
            assert not never.done()
        script = context.new_script()
        said = script.run("/bin/echo", "still here")
        yield script
        task.accept_result(result=(await said).stdout)


async def main():
    record = Record()
    async with Golem(budget=1, event_consumer=record) as golem:
        tasks = golem.execute_tasks(worker, [Task(data=None)], await image(), timeout=TIMEOUT)
        results = [task.result async for task in tasks]
    return {"results": results, "failed": FAILED, "agreements": len(record.of("AgreementConfirmed"))}


run(main())
