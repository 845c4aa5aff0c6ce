"""Output as it comes: each line of a slow command is an event of its own, in order, before the command has ended."""

import time

from common import TIMEOUT, Record, image, run
from yapapi import Golem, Task
from yapapi.script.command import Run

SLOW = "for n in 1 2 3; do echo line $n; echo aside $n >&2; sleep 1; done"
FAST = "seq 1 20000"


async def worker(context, tasks):
    async for task in tasks:
        script = context.new_script()
        script.run("/bin/sh", "-c", SLOW)
        script.run("/bin/sh", "-c", FAST)
        yield script
        task.accept_result()


class Timed(Record):
    """Also remembers when."""

    def __init__(self):
        super().__init__()
        self.at = {}

    def __call__(self, event):
        self.at[id(event)] = time.monotonic()
        super().__call__(event)


async def main():
    record = Timed()
    async with Golem(budget=1, event_consumer=record, stream_output=True) as golem:
        async for _ in golem.execute_tasks(worker, [Task(data=None)], await image(), timeout=TIMEOUT):
            pass

    def of(name, text):
        return [e for e in record.of(name) if isinstance(e.command, Run) and e.command.args[-1] == text]

    slow, fast = of("CommandStdOut", SLOW), of("CommandStdOut", FAST)
    aside = "".join(e.output for e in of("CommandStdErr", SLOW))
    (ended,) = of("CommandExecuted", SLOW)
    return {
        "slow": "".join(e.output for e in slow),
        "aside": aside,
        "ahead": record.at[id(ended)] - record.at[id(slow[0])],
        "fast": "".join(e.output for e in fast) == "".join(f"{n}\n" for n in range(1, 20001)),
        "started": len(record.of("CommandStarted")),
    }


run(main())
