"""The event bus of a session, from the first resource to the last."""

from common import Managers, run
from golem.event_bus import Event
from golem.managers import SequentialWorkManager, SingleUseActivityManager
from golem.node import GolemNode


async def work(context):
    await (await context.run("echo")).wait(60)


async def main():
    seen = []

    async def keep(event):
        seen.append(type(event).__name__)

    async with GolemNode() as golem:
        await golem.event_bus.on(Event, keep)
        async with Managers(golem) as managers:
            activities = SingleUseActivityManager(golem, managers.agreement.get_agreement)
            async with activities, SequentialWorkManager(golem, activities.get_activity) as works:
                await works.do_work(work)
    return {"events": seen}


run(main())
