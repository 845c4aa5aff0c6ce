"""A service on two machines: batches at its start, while it runs and at its end, and messages to and from it."""

from common import Record, image, run, until
from yapapi import Golem
from yapapi.services import Service, ServiceState


class Counter(Service):
    """Counts in a file, when told."""

    @staticmethod
    async def get_payload():
        return await image()

    async def start(self):
        async for script in super().start():
            yield script
        script = self._ctx.new_script()
        script.run("/bin/sh", "-c", "echo 0 > /golem/work/count")
        yield script

    async def run(self):
        while True:
            signal = await self._listen()
            script = self._ctx.new_script()
            script.run("/bin/sh", "-c", f"echo $(($(cat /golem/work/count) + {signal.message})) > /golem/work/count")
            count = script.run("/bin/cat", "/golem/work/count")
            yield script
            await self._respond(int((await count).stdout), response_to=signal)

    async def shutdown(self):
        script = self._ctx.new_script()
        last = script.run("/bin/cat", "/golem/work/count")
        yield script
        LAST.append(int((await last).stdout))


LAST = []


async def main():
    record = Record()
    async with Golem(budget=1, event_consumer=record) as golem:
        cluster = await golem.run_service(Counter, num_instances=2)
        await until(lambda: all(instance.state == ServiceState.running for instance in cluster.instances))
        answers = []
        for step in (1, 2, 3):
            for instance in cluster.instances:
                await instance.send_message(step)
            answers.append([(await instance.receive_message()).message for instance in cluster.instances])
        names = sorted(instance.provider_name for instance in cluster.instances)
        cluster.stop()
        await until(lambda: all(instance.state == ServiceState.terminated for instance in cluster.instances))
    states = [(event.old.name, event.new.name) for event in record.of("ServiceStateChanged")]
    return {"answers": answers, "names": names, "last": LAST, "states": sorted(set(states))}


run(main())
