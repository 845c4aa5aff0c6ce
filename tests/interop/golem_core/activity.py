"""By hand: one agreement, two activities one after the other, several batches, results command by command, a failure."""

from common import Payments, agree, ready, run
from golem.node import GolemNode
from golem.resources import CommandCancelled, CommandFailed, Run, Script


async def failing(activity):
    script = Script()
    before = script.add_command(Run("echo before"))
    broken = script.add_command(Run("echo out of luck >&2; exit 4"))
    never = script.add_command(Run("echo never"))
    batch = await activity.execute_script(script)
    said = [(await before).stdout]
    try:
        await broken
    except CommandFailed as error:
        said.append(error.batch.events[-1].message)
    try:
        await never
    except CommandCancelled:
        said.append("cancelled")
    await batch.wait(ignore_errors=True)
    return [*said, batch.success, batch.events[-1].stderr]


async def main():
    told = {}
    async with GolemNode() as golem:
        allocation = await golem.create_allocation(1)
        payments = Payments(golem, allocation)
        await payments.start()
        agreement = await agree(golem, allocation)
        activities = []
        for name in ("first", "second"):
            activity = await ready(await agreement.create_activity())
            batch = await activity.execute_commands(
                Run(["/bin/ls", "/golem/work"]), Run(f"echo {name} > /golem/work/x")
            )
            told[name] = [event.stdout for event in await batch.wait(60)]
            told["state"] = (await activity.get_state()).state[0]
            if name == "second":
                told["failing"] = await failing(activity)
                after = await activity.execute_commands(Run("cat /golem/work/x"))
                told["after"] = (await after.wait(60))[0].stdout
            await activity.destroy()
            activities.append(activity.id)
        await payments.finish(agreement)
        invoice = await agreement.invoice.get_data()
        told["invoiced"] = sorted(invoice.activity_ids) == sorted(activities)
        told["status"] = invoice.status
    return told


run(main())
