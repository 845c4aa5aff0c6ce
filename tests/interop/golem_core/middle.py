"""The program ends an activity, then an agreement, while a command runs."""

import asyncio

from common import Payments, agree, ready, run
from golem.node import GolemNode
from golem.resources import BatchError, BatchTimeoutError, Run


async def end_of(activity):
    while (state := (await activity.get_state()).state[0]) != "Terminated":  # noqa: ASYNC110
        await asyncio.sleep(0.1)  # the client is told of no states
    return state


async def main():
    told, agreements = {}, []
    async with GolemNode() as golem:
        allocation = await golem.create_allocation(1)
        payments = Payments(golem, allocation)
        await payments.start()
        for what in ("activity", "agreement"):
            agreement = await agree(golem, allocation)
            agreements.append(agreement)
            activity = await ready(await agreement.create_activity())
            batch = await activity.execute_commands(Run("echo started; sleep 1000"))
            try:
                await batch.wait(1)
            except BatchTimeoutError:
                told[what] = ["still running"]
            await (activity.destroy() if what == "activity" else agreement.terminate("in the middle"))
            async with asyncio.timeout(30):
                try:
                    await batch.wait()
                except BatchError:
                    told[what].append("failed")
                told[what].append(await end_of(activity))
        await payments.finish(*agreements)
    return told


run(main())
