"""An image from this program's own disk: published with gftp, named in a payload of the program's own."""

import os
from dataclasses import dataclass

from common import TIMEOUT, Record, run
from yapapi import Golem, Task
from yapapi.payload import Payload
from yapapi.props import inf
from yapapi.props.base import constraint, prop
from yapapi.storage import gftp


@dataclass
class OwnImage(Payload):
    """A VM image by its package address."""

    package: str = prop("golem.srv.comp.task_package", default="")
    package_format: str = prop("golem.srv.comp.vm.package_format", default="gvmkit-squash")
    runtime: str = constraint(inf.INF_RUNTIME_NAME, default="vm")
    min_mem_gib: float = constraint(inf.INF_MEM, operator=">=", default=0.5)


async def worker(context, tasks):
    async for task in tasks:
        script = context.new_script()
        said = script.run("/bin/sh", "-c", "cat /etc/passwd | head -1")
        yield script
        task.accept_result(result=(await said).stdout)


async def main():
    async with gftp.provider() as storage, Golem(budget=1, event_consumer=Record()) as golem:
        source = await storage.upload_file(os.environ["IMAGE_PATH"])
        payload = OwnImage(package=f"hash:sha3:{os.environ['IMAGE_HASH']}:{source.download_url}")
        results = [t.result async for t in golem.execute_tasks(worker, [Task(data=None)], payload, timeout=TIMEOUT)]
        await storage.release_source(source)
    return {"results": results, "scheme": source.download_url.split(":")[0]}


run(main())
