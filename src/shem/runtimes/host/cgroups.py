"""Control groups of one sandbox, version 1 and 2 behind one face.

The group is ``/shem/<name>`` in every hierarchy. It is made by us (:meth:`Cgroup.make`) or by an OCI runtime that was
given the same path. On a machine with both versions mounted (*hybrid*) the controllers are those of version 1.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from shem.runtimes.base import Limits, SandboxUsage

ROOT = Path("/sys/fs/cgroup")
PARENT = "shem"
CPU_PERIOD_US = 100_000
KILL_PASSES = 200
V1_NEEDED = ("memory", "cpu", "cpuacct", "pids", "freezer")
V2_NEEDED = ("memory", "cpu", "pids")


def version() -> int:
    """2, 1, or 0 when there is nothing that we can use as we are."""
    if os.geteuid() != 0:
        return 0
    try:
        if (ROOT / "cgroup.controllers").is_file():
            return 2 if set(V2_NEEDED) <= set((ROOT / "cgroup.controllers").read_text().split()) else 0
        return 1 if all((ROOT / name / "cgroup.procs").is_file() for name in V1_NEEDED) else 0
    except OSError:
        return 0


def is_hybrid() -> bool:
    """Version 1 holds the controllers and version 2 is mounted beside it."""
    return (ROOT / "unified" / "cgroup.controllers").is_file()


class Cgroup:
    """The group of one sandbox. Reading a group that does not exist gives zeros."""

    def __init__(self, name: str) -> None:
        self.version = version()
        self.path = f"/{PARENT}/{name}"

    def make(self, limits: Limits) -> list[Path]:
        """Make the group with its limits; returns the files to write a pid to. Raises :class:`OSError`."""
        if self.version == 2:
            for parent in (ROOT, ROOT / PARENT):
                parent.mkdir(exist_ok=True)
                (parent / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in V2_NEEDED))
        for controller in self._controllers():
            self._directory(controller).mkdir(parents=True, exist_ok=True)
        quota = str(max(1000, int(limits.cpus * CPU_PERIOD_US)))
        if self.version == 2:
            self._write("memory", "memory.max", str(limits.memory_bytes))
            with suppress(OSError):  # a kernel without swap accounting
                self._write("memory", "memory.swap.max", "0")
            self._write("cpu", "cpu.max", f"{quota} {CPU_PERIOD_US}")
        else:
            self._write("memory", "memory.limit_in_bytes", str(limits.memory_bytes))
            with suppress(OSError):
                self._write("memory", "memory.memsw.limit_in_bytes", str(limits.memory_bytes))
            self._write("cpu", "cpu.cfs_period_us", str(CPU_PERIOD_US))
            self._write("cpu", "cpu.cfs_quota_us", quota)
        self._write("pids", "pids.max", str(limits.pids))
        return [self._directory(controller) / "cgroup.procs" for controller in self._controllers()]

    def usage(self, disk_bytes: int) -> SandboxUsage:
        """Counters of the group, with the disk's from elsewhere."""
        if self.version == 2:
            cpu_s = self._pairs("cpu", "cpu.stat").get("usage_usec", 0) / 1e6
            now = self._number("memory", "memory.current")
            peak = self._number("memory", "memory.peak")
            cached = self._pairs("memory", "memory.stat").get("inactive_file", 0)
        else:
            cpu_s = self._number("cpuacct", "cpuacct.usage") / 1e9
            now = self._number("memory", "memory.usage_in_bytes")
            peak = self._number("memory", "memory.max_usage_in_bytes")
            cached = self._pairs("memory", "memory.stat").get("total_inactive_file", 0)
        return SandboxUsage(
            cpu_s=cpu_s,
            memory_bytes=max(0, now - cached),
            memory_peak_bytes=max(peak, now),
            oom_kills=self.oom_kills(),
            disk_bytes=disk_bytes,
            pids=self._number("pids", "pids.current"),
        )

    def oom_kills(self) -> int:
        """Processes that the kernel has killed for want of memory."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        return self._pairs("memory", name).get("oom_kill", 0)

    def pids(self) -> set[int]:
        """Processes of the group and the groups below it."""
        found: set[int] = set()
        for directory, _, _ in os.walk(self._directory("pids")):
            with suppress(OSError):
                found |= {int(line) for line in (Path(directory) / "cgroup.procs").read_text().split()}
        return found

    def kill(self) -> None:
        """Kill everything in the group, whatever it does meanwhile."""
        if self.version == 2 and (self._directory("pids") / "cgroup.kill").exists():
            with suppress(OSError):
                self._write("pids", "cgroup.kill", "1")
            return
        for _ in range(KILL_PASSES):
            self._freeze(True)
            pids = self.pids()
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._freeze(False)
            if not pids:
                return

    def remove(self) -> None:
        """Remove the (empty) group; what is busy stays for the next sweep."""
        for controller in self._controllers():
            for directory, _, _ in os.walk(self._directory(controller), topdown=False):
                with suppress(OSError):
                    Path(directory).rmdir()
        if self.version == 1:  # OCI runtimes make the group in every hierarchy
            for hierarchy in ROOT.iterdir():
                with suppress(OSError):
                    (hierarchy / self.path[1:]).rmdir()

    def _controllers(self) -> tuple[str, ...]:
        return {1: V1_NEEDED, 2: ("",)}.get(self.version, ())

    def _directory(self, controller: str) -> Path:
        return (ROOT / self.path[1:]) if self.version == 2 else (ROOT / controller / self.path[1:])

    def _freeze(self, on: bool) -> None:
        with suppress(OSError):
            if self.version == 2:
                self._write("pids", "cgroup.freeze", "1" if on else "0")
            else:
                self._write("freezer", "freezer.state", "FROZEN" if on else "THAWED")

    def _write(self, controller: str, name: str, value: str) -> None:
        (self._directory(controller) / name).write_text(value)

    def _number(self, controller: str, name: str) -> int:
        try:
            return int((self._directory(controller) / name).read_text())
        except (OSError, ValueError):
            return 0

    def _pairs(self, controller: str, name: str) -> dict[str, int]:
        try:
            lines = (self._directory(controller) / name).read_text().splitlines()
            return {key: int(value) for key, value in (line.split() for line in lines)}
        except (OSError, ValueError):
            return {}
