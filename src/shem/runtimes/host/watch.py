"""Limits where the kernel enforces none: looking several times a second, and acting.

Memory counts the private and shared pages of every process; CPU time is added up from all processes seen, and from what
they say of their reaped children. Both are a program's real costs as long as it does not work at hiding them, which is
why such limits are called *polled*.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

MAX_INTERVAL_S = 0.1
MIN_INTERVAL_S = 0.01
FASTEST_BYTES_PER_S = 4 << 30
"""How fast a program takes memory at most: the less is left, the sooner the next look."""
LOOK_DUTY = 20
"""A look that took t seconds is followed by a pause of at least this many times t."""
DISK_INTERVAL_S = 1.0
DISK_DUTY = 10
"""A scan that took t seconds is followed by a pause of at least this many times t."""
BLOCK = 512

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


def children_of(pid: int) -> list[int]:
    """Children of all threads of a process; empty when it is gone."""
    found: list[int] = []
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    except OSError:
        pass
    return found


def descendants(root: int) -> list[int]:
    """Everything below a process, parents first."""
    found: list[int] = []
    waiting = [root]
    while waiting:
        children = children_of(waiting.pop())
        found += children
        waiting += children
    return found


def tree_bytes(root: Path) -> int:
    """Disk blocks taken by a directory tree; what we cannot enter counts nothing."""
    total = 0
    waiting = [str(root)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    total += status.st_blocks * BLOCK
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError:
            continue
    return total


class DiskWatch:
    """Measures a writable layer again and again until it is too big."""

    def __init__(self, upper: Path, limit_bytes: int) -> None:
        self._upper = upper
        self._limit = limit_bytes
        self.bytes = 0

    async def wait_exceeded(self) -> str:
        """Resolves with a reason once the layer holds more than its limit."""
        while True:
            started = time.monotonic()
            self.bytes = await asyncio.to_thread(tree_bytes, self._upper)
            if self.bytes > self._limit:
                return f"The sandbox has written {self.bytes} bytes; its limit is {self._limit}"
            await asyncio.sleep(max(DISK_INTERVAL_S, DISK_DUTY * (time.monotonic() - started)))


class ProcessWatch:
    """Adds up what the processes below a sandbox's first process take, and enforces memory by killing them."""

    def __init__(self, init: int, limit_bytes: int, kill: Callable[[int], None]) -> None:
        self._init = init
        self._limit = limit_bytes
        self._kill = kill
        self._seen: dict[tuple[int, int], float] = {}  # (pid, start) to own CPU seconds
        self._ended_cpu_s = 0.0
        self.cpu_s = 0.0
        self.memory_bytes = 0
        self.memory_peak_bytes = 0
        self.oom_kills = 0
        self.pids = 0

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            started = time.monotonic()
            self.look()
            took = time.monotonic() - started
            until_full = (self._limit - self.memory_bytes) / FASTEST_BYTES_PER_S
            await asyncio.sleep(max(min(until_full, MAX_INTERVAL_S), MIN_INTERVAL_S, LOOK_DUTY * took))

    def look(self) -> None:
        """One look at all processes."""
        below = descendants(self._init)
        own: dict[tuple[int, int], float] = {}
        told = 0.0
        memory = 0
        for pid in (self._init, *below):
            sample = _sample(pid)
            if sample is None:
                continue
            start, own_s, told_s, pages = sample
            own[pid, start] = own_s
            told += own_s + told_s
            memory += pages * _PAGE
        self._ended_cpu_s += sum(spent for key, spent in self._seen.items() if key not in own)
        self._seen = own
        self.cpu_s = max(self.cpu_s, told, self._ended_cpu_s + sum(own.values()))
        self.memory_bytes, self.pids = memory, len(own)
        self.memory_peak_bytes = max(self.memory_peak_bytes, memory)
        if memory > self._limit:
            self.oom_kills += 1
            for pid in below:
                self._kill(pid)


def _sample(pid: int) -> tuple[int, float, float, int] | None:
    """Start time, own CPU seconds, CPU seconds of reaped children, anonymous and shared-memory pages."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        status = Path(f"/proc/{pid}/status").read_text()
    except (OSError, IndexError):
        return None
    user, system, children_user, children_system, start = (int(fields[i]) for i in (11, 12, 13, 14, 19))
    kilobytes = sum(int(line.split()[1]) for line in status.splitlines() if line.startswith(("RssAnon:", "RssShmem:")))
    return start, (user + system) / _TICKS, (children_user + children_system) / _TICKS, kilobytes * 1024 // _PAGE
