"""Sandboxes of an OCI runtime, run by root: the driver for a provider installed as a service.

The file systems are laid out first (:mod:`~shem.runtimes.host.stage`), then ``runc`` or ``crun`` starts our agent in
fresh namespaces, with a user namespace of its own uids, our system call filter, no devices, no network and hard limits
in a control group. From there on the runtime is not needed: commands go through the agent, the end through a pidfd.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from shem.errors import ShemError
from shem.runtimes.base import HOSTNAME, Capabilities, Enforced, Limits, Rootfs, SandboxFailed, SandboxUsage
from shem.runtimes.guest.client import GuestAgent
from shem.runtimes.host import cgroups
from shem.runtimes.host.canary import LIMITS, run_canary
from shem.runtimes.host.cgroups import Cgroup
from shem.runtimes.host.furnish import furnish
from shem.runtimes.host.lifetime import Lifetime
from shem.runtimes.host.process import Watched, remove_tree, uninterrupted
from shem.runtimes.host.slots import RUN, Slot, abandoned_slots, take_slot
from shem.runtimes.host.stage import Stage, sweep_mounts
from shem.runtimes.host.watch import DiskWatch
from shem.runtimes.oci.config import configuration
from shem.runtimes.oci.runtime import KNOWN, Runtime, find_runtime

STATES = RUN / "oci"
FILES = ("config.json", "runtime.log", "pid", ".pid", "disk.img", "disk")
"""What this driver makes in a sandbox's directory."""


class OciSandbox:
    """A sandbox in the making, running, or destroyed."""

    def __init__(self, runtime: Runtime, slot: Slot, directory: Path, *, may_watch_disk: bool) -> None:
        self._runtime = runtime
        self._slot = slot
        self._directory = directory
        self._container = f"shem-{slot.name}"
        self._cgroup = Cgroup(slot.name)
        self._stage = Stage(slot, directory, may_watch_disk=may_watch_disk)
        self._init: Watched | None = None
        self._socket: socket.socket | None = None
        self._guest: GuestAgent | None = None
        self._disk: DiskWatch | None = None
        self._last: SandboxUsage | None = None
        self._life = Lifetime(self._container, self._clean_up)

    @property
    def guest(self) -> GuestAgent:
        assert self._guest is not None
        return self._guest

    @property
    def hard_disk(self) -> bool:
        """Whether the kernel enforces the size of the disk."""
        return self._stage.hard_disk

    async def start(
        self, rootfs: Rootfs, limits: Limits, volumes: Mapping[str, Path], hostname: str = HOSTNAME
    ) -> None:
        """Lay out, start, and wait for the agent; the caller destroys us when this fails."""
        await self._stage.build(rootfs, limits, volumes)
        settings = [f"nofile={limits.open_files}"]
        if (upper := self._stage.plain_upper) is not None:
            settings.append(f"fsize={limits.disk_bytes}")
            self._disk = DiskWatch(upper, limits.disk_bytes)
        config = configuration(self._stage, limits, self._cgroup.path, settings, hostname)
        (self._directory / "config.json").write_text(json.dumps(config))
        self._socket, theirs = socket.socketpair()
        with theirs:
            await uninterrupted(self._run(theirs))
        assert self._init is not None
        self._guest = await GuestAgent.attach(self._socket, oom_kills=self._cgroup.oom_kills)
        await furnish(self._guest, hostname)
        self._life.watch(self._init.wait(), "The sandbox's first process has ended", "init")
        if self._disk is not None:
            self._life.watch(self._disk.wait_exceeded(), "", "disk")

    async def _run(self, theirs: socket.socket) -> None:
        try:
            self._init = Watched(await self._runtime.run(self._container, self._directory, theirs, self._slot.lock_fd))
        except ProcessLookupError:
            raise SandboxFailed("The sandbox ended while it started") from None

    def usage(self) -> SandboxUsage:
        return self._last or self._cgroup.usage(self._disk.bytes if self._disk else self._stage.disk_bytes())

    async def destroy(self) -> None:
        await self._life.destroy()

    async def wait_dead(self) -> str:
        return await self._life.wait_dead()

    async def _clean_up(self) -> None:
        if self._init is not None:
            await self._init.end()
        if self._guest is not None:
            await self._guest.close()
        elif self._socket is not None:
            self._socket.close()
        self._cgroup.kill()  # what a start that failed half-way has left
        self._last = self.usage()
        with suppress(SandboxFailed):
            await self._runtime.delete(self._container)
        self._cgroup.remove()
        self._stage.remove()
        _remove_files(self._directory)


class OciDriver:
    """Needs root, user namespaces, control groups, and ``crun`` or ``runc``."""

    name = "oci"

    def __init__(self, runtime: str = "") -> None:
        """``runtime``: ``crun`` or ``runc``; the first that is installed when empty."""
        self._wanted = (runtime,) if runtime else KNOWN
        self._may_watch_disk = True  # until the canary has seen a hard limit, which is then a promise

    async def probe(self) -> Capabilities:
        if os.geteuid() != 0:
            return Capabilities(available=False, reason="An OCI runtime's hard limits need root")
        if not cgroups.version():
            return Capabilities(available=False, reason="The control groups memory, cpu and pids are not usable here")
        try:
            runtime = self._runtime()
            hard_disk = await run_canary(self._canary, lambda sandbox: sandbox.hard_disk)
        except (ShemError, OSError) as error:
            return Capabilities(available=False, reason=error.message if isinstance(error, ShemError) else str(error))
        self._may_watch_disk = not hard_disk
        disk: Enforced = "hard" if hard_disk else "polled"
        return Capabilities(
            available=True,
            isolation="userns",
            limits={"memory": "hard", "cpu": "hard", "pids": "hard", "disk": disk},
            notes=(f"runs {runtime.name}", f"control groups version {cgroups.version()}"),
        )

    async def create(
        self,
        sandbox_id: str,
        rootfs: Rootfs,
        limits: Limits,
        *,
        directory: Path,
        volumes: Mapping[str, Path],
        hostname: str = HOSTNAME,
    ) -> OciSandbox:
        """See :class:`~shem.runtimes.base.Driver`."""
        runtime = self._runtime()
        slot = take_slot()
        sandbox: OciSandbox | None = None
        try:
            await self._sweep(slot)
            directory.mkdir(parents=True, exist_ok=True)
            sandbox = OciSandbox(runtime, slot, directory, may_watch_disk=self._may_watch_disk)
            await sandbox.start(rootfs, limits, volumes, hostname)
        except BaseException:
            if sandbox is not None:
                await sandbox.destroy()
            slot.release()
            raise
        return sandbox

    async def recover(self, directory: Path) -> None:
        """Sweep every slot that a crash has left, and our files in each sandbox directory below ``directory``."""
        for slot in abandoned_slots():
            await self._sweep(slot)
            slot.release()
        if directory.is_dir():
            for child in directory.iterdir():
                _remove_files(child)

    async def _canary(self, rootfs: Rootfs, directory: Path) -> OciSandbox:
        return await self.create("canary", rootfs, LIMITS, directory=directory, volumes={})

    async def _sweep(self, slot: Slot) -> None:
        if not slot.directory.exists():
            return
        group = Cgroup(slot.name)
        group.kill()
        for name in KNOWN:
            if (STATES / name / f"shem-{slot.name}").exists() and (binary := find_runtime(name)) is not None:
                await Runtime(name, binary, STATES / name).delete(f"shem-{slot.name}")
        group.remove()
        sweep_mounts(slot)

    def _runtime(self) -> Runtime:
        for name in self._wanted:
            if (binary := find_runtime(name)) is not None:
                return Runtime(name, binary, STATES / name)
        raise SandboxFailed(f"None of {', '.join(self._wanted)} is installed", code="no_runtime")


def _remove_files(directory: Path) -> None:
    for name in FILES:
        remove_tree(directory / name)
    with suppress(OSError):
        directory.rmdir()
