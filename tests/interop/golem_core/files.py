"""Files to a machine and back, in batches of the work context."""

import hashlib
import os
from pathlib import Path

from common import Managers, run
from golem.managers import SequentialWorkManager, SingleUseActivityManager
from golem.node import GolemNode

SIZE = 3_000_000


async def work(context):
    batch = await context.create_batch()
    batch.send_file("sent.bin", "/golem/input/sent.bin")
    batch.run("sha256sum /golem/input/sent.bin; cat /golem/input/sent.bin /golem/input/sent.bin > /golem/output/twice")
    batch.download_file("/golem/output/twice", "twice.bin")
    events = await batch()
    return [events[1].stdout.split()[0], [event.result for event in events]]


async def main():
    sent = os.urandom(SIZE)
    Path("sent.bin").write_bytes(sent)
    async with GolemNode() as golem, Managers(golem) as managers:
        activities = SingleUseActivityManager(golem, managers.agreement.get_agreement)
        async with activities, SequentialWorkManager(golem, activities.get_activity) as works:
            result = await works.do_work(work)
    if result.exception:
        raise result.exception
    digest, results = result.result
    return {
        "sum": digest == hashlib.sha256(sent).hexdigest(),
        "results": results,
        "back": Path("twice.bin").read_bytes() == sent * 2,
    }


run(main())
