"""Short helper programs, and the end of processes that are not our children."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import shutil
import signal
import stat
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from shem.cogs.tasks import TaskScope
from shem.runtimes.base import SandboxFailed

HELPER_TIMEOUT_S = 60.0
END_TIMEOUT_S = 20.0

log = logging.getLogger(__name__)

T = TypeVar("T")


async def call(command: Sequence[str | Path], *, cwd: Path | None = None) -> str:
    """Run a helper to its end and return its output. Raises :class:`SandboxFailed` with what it complained about."""
    return await uninterrupted(_call(command, cwd))


async def _call(command: Sequence[str | Path], cwd: Path | None) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *map(str, command),
            cwd=cwd,
            env={**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        raise SandboxFailed(f"{command[0]}: {error.strerror}") from error
    try:
        async with asyncio.timeout(HELPER_TIMEOUT_S):
            out, _ = await process.communicate()
    except BaseException:
        await kill_and_wait(process)
        raise
    text = out[-2000:].decode(errors="replace").strip()
    if process.returncode:
        raise SandboxFailed(f"{command[0]} failed: {text or process.returncode}")
    return text


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Do a short piece of work to its end even when cancelled meanwhile; the cancellation is raised then.

    For starting a sandbox: a starter killed half-way leaves a process that nobody knows. ``work`` must keep what it
    makes where a clean-up finds it, and have time limits of its own.
    """
    async with TaskScope("uninterrupted") as scope:
        task = scope.start(work, "work")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task})
            raise


async def kill_and_wait(process: asyncio.subprocess.Process) -> None:
    """End a child of ours. Not by its own ``kill``, which may reap it so that asyncio's watcher misses it."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    await process.wait()


class Watched:
    """A process of ours or of somebody else, held by a descriptor so that its number cannot be reused under us."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self._fd, self._end)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        if not self._ended.done():
            self._ended.set_result(None)

    def alive(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return not poll.poll(0)

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens when the process has ended."""
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            pass

    async def wait(self) -> None:
        await asyncio.shield(self._ended)

    async def end(self) -> None:
        """Kill it, wait until it is gone (a pid namespace goes with its first process), and close."""
        self.signal(signal.SIGKILL)
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                await self.wait()
        except TimeoutError:
            log.error("process %d does not die", self.pid)
        self.close()

    def close(self) -> None:
        self._end()
        os.close(self._fd)


def remove_tree(path: Path) -> None:
    """Remove a directory whose inside was made by somebody who may have taken our permissions away."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if os.geteuid() != 0:
        _open_up(path)
    shutil.rmtree(path, ignore_errors=True)


def _open_up(root: Path) -> None:
    """Make every directory below ours to enter and write; not recursive, the tree may be deeper than our stack."""
    waiting = [str(root)]
    while waiting:
        directory = waiting.pop()
        try:
            Path(directory).chmod(stat.S_IRWXU)
            with os.scandir(directory) as entries:
                waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue
