"""One command by the chain of managers. The argument says how the image is found: hash (by the repository) or url."""

import os
import sys

from common import Managers, payload, run
from golem.managers import SequentialWorkManager, SingleUseActivityManager
from golem.node import GolemNode
from golem.payload import RepositoryVmPayload


async def hello(context):
    batch = await context.run("echo hello from $0; echo aside >&2")
    (event,) = await batch.wait(60)
    return [event.stdout, event.stderr, await context.get_provider_name()]


async def main():
    what = RepositoryVmPayload(os.environ["IMAGE_HASH"]) if sys.argv[1] == "hash" else payload()
    async with GolemNode() as golem, Managers(golem, what=what) as managers:
        activities = SingleUseActivityManager(golem, managers.agreement.get_agreement)
        async with activities, SequentialWorkManager(golem, activities.get_activity) as work:
            result = await work.do_work(hello)
    return {"result": result.result, "error": repr(result.exception) if result.exception else None}


run(main())
