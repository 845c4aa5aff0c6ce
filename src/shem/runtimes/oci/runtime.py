"""Calling ``runc`` or ``crun``.

Two traps of theirs are handled here. The container's first process inherits the standard streams of ``run``, so they
are the agent's channel and never a pipe that somebody reads to its end; what went wrong is read from the log file. And
``crun`` refuses a hybrid machine whose version 2 hierarchy has a controller, so there it runs where that is unmounted.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from pathlib import Path

from shem.runtimes.base import SandboxFailed
from shem.runtimes.host import cgroups
from shem.runtimes.host.process import kill_and_wait, remove_tree

KNOWN = ("runc", "crun")
CALL_TIMEOUT_S = 60.0
_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_HIDE_V2 = 'umount /sys/fs/cgroup/unified && exec "$@"'


def find_runtime(name: str) -> Path | None:
    found = shutil.which(name) or shutil.which(name, path=_SEARCH)
    return Path(found) if found else None


class Runtime:
    """One OCI runtime binary and the directory where it keeps its states."""

    def __init__(self, name: str, binary: Path, root: Path) -> None:
        self.name = name
        self._root = root
        self._command = [str(binary)]
        if name == "crun" and cgroups.is_hybrid():
            shell = ["sh", "-c", _HIDE_V2, "crun"]
            self._command = ["unshare", "--mount", "--propagation", "slave", *shell, str(binary)]

    async def run(self, container: str, bundle: Path, channel: socket.socket, lock_fd: int) -> int:
        """Start the container of a bundle in the background, its first process on ``channel``; returns its pid.

        ``lock_fd`` is held until the start has ended, even when we are killed meanwhile: a start that nobody waits for any
        more still makes its container, which must not meet another's of the same name.
        """
        log, pid_file = bundle / "runtime.log", bundle / "pid"
        log.unlink(missing_ok=True)
        arguments = ["--log", str(log), "--log-format", "json", "run", "--detach"]
        arguments += ["--bundle", str(bundle), "--pid-file", str(pid_file), container]
        code = await self._call(arguments, channel.fileno(), (lock_fd,))
        if code:
            raise SandboxFailed(f"{self.name} could not start the sandbox: {_last_error(log) or f'exit {code}'}")
        return int(pid_file.read_text())

    async def delete(self, container: str) -> None:
        """Remove what the runtime knows and holds of a container; fine when it knows nothing."""
        try:
            await self._call(["delete", "--force", container], asyncio.subprocess.DEVNULL)
        finally:
            remove_tree(self._root / container)  # a start that was cut off leaves a state that it cannot read

    async def _call(self, arguments: list[str], channel: int, held: tuple[int, ...] = ()) -> int:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            "--root",
            str(self._root),
            *arguments,
            stdin=channel,
            stdout=channel,
            stderr=asyncio.subprocess.DEVNULL,
            pass_fds=held,
        )
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await process.wait()
        except TimeoutError:
            raise SandboxFailed(f"{self.name} {arguments[0]} took more than {CALL_TIMEOUT_S:g} s") from None
        finally:
            await kill_and_wait(process)


def _last_error(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            return line[:500]
        if isinstance(entry, dict) and entry.get("level", "error") in ("error", "fatal"):
            return str(entry.get("msg", ""))[:500]
    return ""
