"""An image from this program's own disk, published with gftp."""

import os
import tempfile
from pathlib import Path

from common import Managers, run
from golem.managers import SequentialWorkManager, SingleUseActivityManager
from golem.node import GolemNode
from golem.payload import VmPayload
from golem.utils.storage.gftp import GftpProvider


async def work(context):
    return (await (await context.run("head -1 /etc/passwd")).wait(60))[0].stdout


async def main():
    with tempfile.TemporaryDirectory() as scratch:
        async with GftpProvider(tmpdir=scratch) as storage:
            source = await storage.upload_file(Path(os.environ["IMAGE_PATH"]))
            what = VmPayload(f"hash:sha3:{os.environ['IMAGE_HASH']}:{source.download_url}")
            async with GolemNode() as golem, Managers(golem, what=what) as managers:
                activities = SingleUseActivityManager(golem, managers.agreement.get_agreement)
                async with activities, SequentialWorkManager(golem, activities.get_activity) as works:
                    result = await works.do_work(work)
            await storage.release_source(source)
    return {"result": result.result, "scheme": source.download_url.split(":")[0]}


run(main())
