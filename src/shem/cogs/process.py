"""Child processes that do not outlive us, and a clear word when one fails to start."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from shem.errors import ShemError

_PR_SET_PDEATHSIG = 1


class ProcessFailed(ShemError):
    """A child ended before it was ready, or with an error."""

    default_code = "process_failed"


def _die_with_parent() -> None:
    # Linux only: without it a killed devnet would leave its nodes behind
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Child:
    """A running child process whose first stdout line says that it is ready."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log_path: Path) -> None:
        self.name = name
        self.process = process
        self.log_path = log_path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.returncode is None

    async def wait(self) -> int:
        """Its exit code, once it ends."""
        return await self.process.wait()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        if self.running:
            self.process.kill()

    async def stop(self, grace_s: float = 15.0) -> int:
        """SIGTERM, and SIGKILL when it has not ended after ``grace_s``."""
        if self.running:
            self.process.terminate()
            try:
                async with asyncio.timeout(grace_s):
                    return await self.process.wait()
            except TimeoutError:
                self.process.kill()
        return await self.process.wait()


async def start_child(
    name: str,
    argv: Sequence[str],
    *,
    log_path: Path,
    env: Mapping[str, str] | None = None,
    ready_timeout_s: float = 60.0,
) -> tuple[Child, str]:
    """Start ``argv``; return the child and its first line on stdout.

    Stderr and later output go to ``log_path``. Raises :class:`ProcessFailed` with the log's tail when the child ends,
    or says nothing, within ``ready_timeout_s``.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    log: IO[bytes] = log_path.open("ab")
    with log:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env=dict(os.environ if env is None else env),
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
    child = Child(name, process, log_path)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(ready_timeout_s):
            line = (await process.stdout.readline()).decode().strip()
    except TimeoutError:
        await child.stop(1)
        raise ProcessFailed(f"{name} was not ready after {ready_timeout_s:.0f} s{_tail(log_path)}") from None
    except BaseException:
        await child.stop(1)
        raise
    if not line:
        code = await process.wait()
        raise ProcessFailed(f"{name} ended with status {code}{_tail(log_path)}")
    return child, line


def _tail(path: Path, lines: int = 15) -> str:
    text = path.read_text(errors="replace").splitlines()[-lines:]
    return ":\n  " + "\n  ".join(text) if text else ""
