"""How far deploys and transfers are, while they go on."""

import os
from pathlib import Path

from common import TIMEOUT, Record, image, run
from yapapi import Golem, Task
from yapapi.script import ProgressArgs

EVERY = ProgressArgs(updateInterval="50ms", updateStep=1_000_000)


async def worker(context, tasks):
    async for task in tasks:
        script = context.new_script()
        script.deploy(progress_args=EVERY)
        script.start()
        script.upload_file("sent.bin", "/golem/input/sent.bin", progress_args=EVERY)
        script.download_from_url(os.environ["IMAGE_URL"], "/golem/resource/web", progress_args=EVERY)
        script.download_file("/golem/input/sent.bin", "back.bin", progress_args=EVERY)
        yield script
        task.accept_result()


async def main():
    Path("sent.bin").write_bytes(os.urandom(5_000_000))
    record = Record()
    async with Golem(budget=1, event_consumer=record, stream_output=True) as golem:
        work = [Task(data=None)]
        async for _ in golem.execute_tasks(worker, work, await image(), timeout=TIMEOUT, implicit_init=False):
            pass
    seen = {}
    for event in record.of("CommandProgress"):
        seen.setdefault(type(event.command).__name__, []).append(event.progress)
    return seen


run(main())
