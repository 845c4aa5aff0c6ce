"""Limits that the cgroups of this process put on CPU and memory, version 1, version 2 or both mounted."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import msgspec

_UNLIMITED = 1 << 60
"""Version 1 writes "no limit" as a number just below 2**63."""


class CgroupLimits(msgspec.Struct, frozen=True):
    """``None`` = not limited."""

    cpus: float | None = None
    memory_bytes: int | None = None


def cgroup_limits(root: Path = Path("/")) -> CgroupLimits:
    """The tightest limits that apply to this process. ``root`` stands for ``/``, so that tests can build their own."""
    cpus: list[float] = []
    memory: list[int] = []
    for kinds, mount, path in _memberships(root):
        for directory in _up(mount, path):
            if "" in kinds:
                _add_v2(directory, cpus, memory)
            if "memory" in kinds:
                _add_memory(directory / "memory.limit_in_bytes", memory)
            if "cpu" in kinds:
                _add_quota(directory / "cpu.cfs_quota_us", directory / "cpu.cfs_period_us", cpus)
    return CgroupLimits(min(cpus, default=None), min(memory, default=None))


def _memberships(root: Path) -> list[tuple[frozenset[str], Path, PurePosixPath]]:
    """Per hierarchy of this process: its controllers (``""`` is version 2), its mount point, the path below it."""
    mounts = _mounts(root)
    found = []
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        kinds = frozenset(names.split(",")) if number != "0" else frozenset({""})
        for mount_kinds, mount_root, mount in mounts:
            if kinds & mount_kinds:
                found.append((kinds, mount, _below(path, mount_root)))
                break
    return found


def _mounts(root: Path) -> list[tuple[frozenset[str], str, Path]]:
    found = []
    for line in _lines(root / "proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        if len(fields) < 5 or len(tail) < 3 or tail[0] not in ("cgroup", "cgroup2"):
            continue
        kinds = frozenset({""}) if tail[0] == "cgroup2" else frozenset(tail[2].split(","))
        found.append((kinds, fields[3], root / fields[4].lstrip("/")))
    return found


def _below(path: str, mount_root: str) -> PurePosixPath:
    """Where the cgroup ``path`` is under its mount: inside a container the mount shows only a part of the tree."""
    full = PurePosixPath("/" + path.lstrip("/"))
    try:
        return full.relative_to(mount_root)
    except ValueError:
        return PurePosixPath()


def _up(mount: Path, below: PurePosixPath) -> list[Path]:
    """The group's directory and all above it, to the mount point."""
    return [
        mount.joinpath(*below.parts[1 if below.is_absolute() else 0 :][:count]) for count in range(len(below.parts) + 1)
    ]


def _add_v2(directory: Path, cpus: list[float], memory: list[int]) -> None:
    _add_memory(directory / "memory.max", memory)
    for line in _lines(directory / "cpu.max"):
        quota, _, period = line.partition(" ")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            cpus.append(int(quota) / int(period))


def _add_memory(path: Path, memory: list[int]) -> None:
    for line in _lines(path):
        if line.isdigit() and int(line) < _UNLIMITED:
            memory.append(int(line))


def _add_quota(quota_path: Path, period_path: Path, cpus: list[float]) -> None:
    quota, period = _lines(quota_path), _lines(period_path)
    if quota and period and quota[0].isdigit() and period[0].isdigit() and int(period[0]) > 0:
        cpus.append(int(quota[0]) / int(period[0]))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
