"""Long work that somebody interrupts with Ctrl-C."""

from common import TIMEOUT, Record, image, run
from yapapi import Golem, Task


async def worker(context, tasks):
    async for _ in tasks:
        script = context.new_script()
        script.run("/bin/true")
        yield script
        print("at work", flush=True)
        script = context.new_script()
        script.run("/bin/sleep", "1000")
        yield script


class Told(Record):
    """Says what the test waits for."""

    def __call__(self, event):
        super().__call__(event)
        if type(event).__name__ in {"InvoiceAccepted", "AgreementTerminated"}:
            print(type(event).__name__, flush=True)


async def main():
    async with Golem(budget=1, event_consumer=Told()) as golem:
        async for _ in golem.execute_tasks(worker, [Task(data=n) for n in range(2)], await image(), timeout=TIMEOUT):
            pass


run(main())
