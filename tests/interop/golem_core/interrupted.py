"""Long work that somebody interrupts with Ctrl-C."""

from common import Managers, run
from golem.managers import SequentialWorkManager, SingleUseActivityManager
from golem.node import GolemNode


async def work(context):
    print("at work", flush=True)
    await (await context.run("sleep 1000")).wait()


async def main():
    async with GolemNode() as golem, Managers(golem) as managers:
        activities = SingleUseActivityManager(golem, managers.agreement.get_agreement)
        async with activities, SequentialWorkManager(golem, activities.get_activity) as works:
            await works.do_work(work)


run(main())
