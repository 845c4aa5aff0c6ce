"""A service that outlives its program: ``leave`` starts it and goes, ``join`` (another process) takes it up and ends it."""

import json
import sys
from pathlib import Path

from common import Record, image, run, until
from yapapi import Golem
from yapapi.services import Service, ServiceState

STATE = Path("service.json")


class Keeper(Service):
    """Keeps what it is told."""

    @staticmethod
    async def get_payload():
        return await image()

    async def run(self):
        while True:
            signal = await self._listen()
            script = self._ctx.new_script()
            said = script.run("/bin/sh", "-c", signal.message)
            yield script
            await self._respond((await said).stdout)


async def ask(instance, text):
    await instance.send_message(text)
    return (await instance.receive_message()).message


async def main():
    golem = Golem(budget=1, event_consumer=Record())
    await golem.start()
    if sys.argv[1] == "leave":
        cluster = await golem.run_service(Keeper)
    else:
        cluster = await golem.resume_service(Keeper, json.loads(STATE.read_text()))
    instance = cluster.instances[0]
    await until(lambda: instance.state == ServiceState.running and instance._ctx is not None)
    if sys.argv[1] == "leave":
        answer = await ask(instance, "echo kept > /golem/work/note; echo written")
        STATE.write_text(json.dumps([instance.serialize()]))
        cluster.suspend()
        await golem.stop(wait_for_payments=False)
    else:
        answer = await ask(instance, "cat /golem/work/note")
        cluster.stop()
        await golem.stop()
    return {"answer": answer, "activity": instance._ctx._activity.id}


run(main())
