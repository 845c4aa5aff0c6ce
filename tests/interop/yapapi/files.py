"""Files, bytes and JSON to a machine and back, and a file that the machine fetches from the web."""

import hashlib
import os
from pathlib import Path

from common import TIMEOUT, Record, image, run
from yapapi import Golem, Task

SIZE = 5_000_000


async def worker(context, tasks):
    async for task in tasks:
        got = {}

        async def keep_bytes(data, got=got):
            got["bytes"] = hashlib.sha256(data).hexdigest()

        async def keep_json(data, got=got):
            got["json"] = data

        script = context.new_script()
        script.upload_file("sent.bin", "/golem/input/sent.bin")
        script.upload_bytes(b"\x00\xff bytes \n", "/golem/input/raw")
        script.upload_json({"text": "grüße", "numbers": [1, 2.5, None]}, "/golem/work/in.json")
        script.download_from_url(os.environ["IMAGE_URL"], "/golem/resource/web")
        sums = script.run("/bin/sh", "-c", "cd /golem && sha256sum input/sent.bin input/raw resource/web")
        script.run("/bin/sh", "-c", "cat /golem/input/sent.bin /golem/input/raw > /golem/output/back.bin")
        script.download_file("/golem/output/back.bin", "back.bin")
        script.download_bytes("/golem/input/raw", keep_bytes)
        script.download_json("/golem/work/in.json", keep_json)
        yield script
        got["sums"] = [line.split()[0] for line in (await sums).stdout.splitlines()]
        task.accept_result(result=got)


async def main():
    sent = os.urandom(SIZE)
    Path("sent.bin").write_bytes(sent)
    record = Record()
    async with Golem(budget=1, event_consumer=record) as golem:
        tasks = golem.execute_tasks(worker, [Task(data=None)], await image(), timeout=TIMEOUT)
        (got,) = [task.result async for task in tasks]
    raw = b"\x00\xff bytes \n"
    web = Path(os.environ["IMAGE_PATH"]).read_bytes()
    wanted = [hashlib.sha256(content).hexdigest() for content in (sent, raw, web)]
    return {
        "sums": got["sums"] == wanted,
        "back": Path("back.bin").read_bytes() == sent + raw,
        "bytes": got["bytes"] == wanted[1],
        "json": got["json"],
        "downloads": len(record.of("DownloadFinished")),
    }


run(main())
