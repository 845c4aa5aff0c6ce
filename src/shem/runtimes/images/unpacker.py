"""The store's side of its worker processes: started when there is work, a few at once, ended when there is none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable

import msgspec

from shem.errors import ShemError
from shem.runtimes.images import errors
from shem.runtimes.images.jobs import MAX_LINE, Answer, Failed, Job, Working

_KEPT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "TMPDIR")


class Unpacker:
    """Runs jobs in at most ``workers`` processes. Safe for any number of concurrent callers."""

    def __init__(self, workers: int = 2) -> None:
        self._slots = asyncio.Semaphore(workers)
        self._idle: list[asyncio.subprocess.Process] = []
        self._ending: set[asyncio.subprocess.Process] = set()
        self._users = 0

    @contextlib.asynccontextmanager
    async def in_use(self) -> AsyncIterator[None]:
        """Processes stay, for the next job, as long as somebody is inside."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                while self._idle:
                    self._retire(self._idle.pop())

    async def run(self, job: Job, progress: Callable[[int], None] | None = None) -> None:
        """Do ``job``; ``progress`` hears how many bytes of its blob were read. Raises our image errors."""
        async with self.in_use(), self._slots:
            worker = self._idle.pop() if self._idle else await _start()
            try:
                failed = await _ask(worker, job, progress)
            except BaseException:
                # Cancelled, or the worker is gone: a half-done job must not go on behind the back of its owner.
                with contextlib.suppress(ProcessLookupError):
                    worker.kill()
                self._retire(worker)
                await worker.wait()
                raise
            self._idle.append(worker)
        if failed is not None:
            raise _error(failed)

    async def close(self) -> None:
        """Wait until all processes have ended. Nobody may be :meth:`in_use`."""
        while self._ending:
            worker = self._ending.pop()
            if worker.stdout is not None:
                while await worker.stdout.read(MAX_LINE):  # to its end, or the transport stays open behind us
                    pass
            await worker.wait()

    def _retire(self, worker: asyncio.subprocess.Process) -> None:
        """It ends by itself when its input does."""
        if worker.stdin is not None:
            worker.stdin.close()
        self._ending = {each for each in self._ending if each.returncode is None} | {worker}


async def _start() -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "shem.runtimes.images.worker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd="/",
        env={name: os.environ[name] for name in _KEPT if name in os.environ},
        limit=MAX_LINE,
    )


async def _ask(worker: asyncio.subprocess.Process, job: Job, progress: Callable[[int], None] | None) -> Failed | None:
    if worker.stdin is None or worker.stdout is None:
        raise RuntimeError("a worker without pipes")
    try:
        worker.stdin.write(msgspec.json.encode(job) + b"\n")
        await worker.stdin.drain()
        while line := await worker.stdout.readline():
            answer = msgspec.json.decode(line, type=Answer)
            if not isinstance(answer, Working):
                return answer if isinstance(answer, Failed) else None
            if progress is not None:
                progress(answer.done)
    except (ConnectionError, ValueError):
        pass
    raise errors.ImageStoreFailed("the process that unpacks images ended by itself")


def _error(failed: Failed) -> ShemError:
    kinds: dict[str, type[ShemError]] = {
        kind.__name__: kind
        for kind in (
            errors.ImageUnusable,
            errors.ImageTooLarge,
            errors.ImageUnsupported,
            errors.ImageDigestMismatch,
            errors.ImageStoreFailed,
        )
    }
    return kinds[failed.kind](failed.message, code=failed.code, hint=failed.hint)
