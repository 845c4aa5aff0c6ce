"""Output as it comes: each line of a slow command is an event of its own, in order, before the command has ended."""

import time

from common import TIMEOUT, Record, image, run
from yapapi import Golem, Task

SLOW = "for n in 1 2 3; do echo line $n; echo aside $n >&2; sleep 1; done"


async def worker(context, tasks):
    async for task in tasks:
        script = context.new_script()
        script.run("/bin/sh", "-c", SLOW)
        script.run("/bin/sh", "-c", "seq 1 20000")
        yield script
        task.accept_result()


class Timed(Record):
    """Also remembers when."""

    def __call__(self, event):
        event.at = time.monotonic()
        super().__call__(event)


async def main():
    record = Timed()
    async with Golem(budget=1, event_consumer=record, stream_output=True) as golem:
        async for _ in golem.execute_tasks(worker, [Task(data=None)], await image(), timeout=TIMEOUT):
            pass
    slow = [e for e in record.of("CommandStdOut") if e.command.args[-1] == SLOW]
    fast = [e for e in record.of("CommandStdOut") if e.command.args[-1] != SLOW]
    aside = "".join(e.output for e in record.of("CommandStdErr"))
    ended = next(e.at for e in record.of("CommandExecuted") if getattr(e.command, "args", ("",))[-1] == SLOW)
    return {
        "slow": "".join(e.output for e in slow),
        "aside": aside,
        "ahead": ended - slow[0].at,
        "fast": "".join(e.output for e in fast) == "".join(f"{n}\n" for n in range(1, 20001)),
        "started": len(record.of("CommandStarted")),
    }


run(main())
