"""One command on one machine. The argument says how the image is found: hash, tag or url."""

import os
import sys

from common import Record, run
from yapapi import Golem, Task
from yapapi.payload import vm


async def worker(context, tasks):
    async for task in tasks:
        script = context.new_script()
        said = script.run("/bin/sh", "-c", "echo hello from $0; echo aside >&2", "golem")
        yield script
        answer = await said
        task.accept_result(result=(answer.stdout, answer.stderr, context.provider_name))


async def main():
    found = {
        "hash": {"image_hash": os.environ["IMAGE_HASH"]},
        "tag": {"image_tag": os.environ["IMAGE_TAG"]},
        "url": {"image_hash": os.environ["IMAGE_HASH"], "image_url": os.environ["IMAGE_URL"]},
    }[sys.argv[1]]
    package = await vm.repo(**found)
    record = Record()
    async with Golem(budget=1, event_consumer=record) as golem:
        results = [done.result async for done in golem.execute_tasks(worker, [Task(data=None)], package)]
    return {"results": results, "events": record.names}


run(main())
