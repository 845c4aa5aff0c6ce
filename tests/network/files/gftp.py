"""``gftp`` as a process, and somebody who talks with it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-c", "from shem.cli.gftp import main; main()")
QUICK_S = 30.0


def surroundings(node: Any | None, home: Path) -> dict[str, str]:
    """Variables of a program that uses this node."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("YAGNA_", "SHEM_"))} | {"HOME": str(home)}
    if node is not None:
        env |= {"YAGNA_API_URL": node.http.base_url, "YAGNA_APPKEY": node.key}
    return env


class Talk:
    """A conversation with ``gftp server``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._ids = count(1)

    async def send(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        await self.process.stdin.drain()

    async def line(self) -> bytes:
        assert self.process.stdout is not None
        async with asyncio.timeout(QUICK_S):
            return await self.process.stdout.readline()

    async def answer(self) -> Any:
        return json.loads(await self.line())

    async def ask(self, method: str, **params: Any) -> Any:
        """The whole answer to one call."""
        id_ = next(self._ids)
        call = {"jsonrpc": "2.0", "id": id_, "method": method, "params": params}
        await self.send(json.dumps(call).encode() + b"\n")
        answer = await self.answer()
        assert answer["id"] == id_
        return answer

    async def result(self, method: str, **params: Any) -> Any:
        answer = await self.ask(method, **params)
        assert "result" in answer, answer
        return answer["result"]

    async def publish(self, *paths: Path) -> list[str]:
        links = await self.result("publish", files=[str(path) for path in paths])
        assert [link["file"] for link in links] == [str(path) for path in paths]
        return [link["url"] for link in links]

    async def end(self) -> int:
        """Close its stdin; its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return await self.ended()

    async def ended(self) -> int:
        async with asyncio.timeout(QUICK_S):
            return await self.process.wait()


@asynccontextmanager
async def gftp(node: Any | None, home: Path, *arguments: str, **changed: str) -> AsyncIterator[Talk]:
    """A process that does not outlive the test. ``changed``: other values of its variables."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *(arguments or ("server",)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=surroundings(node, home) | changed,
        limit=1 << 24,
    )
    try:
        yield Talk(process)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # its pipes, whether it has closed them or not
