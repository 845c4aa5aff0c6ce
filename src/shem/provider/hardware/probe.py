"""CPU, memory and disk of this machine as one value."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import msgspec

from shem.provider.hardware.cgroups import cgroup_limits

_ARCHITECTURES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
_VENDORS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    """The processor as ``/proc/cpuinfo`` describes it; unknown parts are empty."""

    architecture: str
    cores: int
    """Physical ones of the machine, at most :attr:`threads` rounded up."""
    threads: float
    """What this process may use: a fraction when a cgroup quota says so."""
    vendor: str = ""
    brand: str = ""
    model: str = ""
    """``Stepping a Family b Model c``, as existing providers write it."""
    capabilities: tuple[str, ...] = ()


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """What could be for rent."""

    cpu: Cpu
    memory_bytes: int
    disk_free_bytes: int
    """On the file system of the data directory."""


def detect(data_dir: Path, root: Path = Path("/")) -> Hardware:
    """Look at the machine. ``root`` stands for ``/``, so that tests can build their own."""
    limits = cgroup_limits(root)
    threads = float(_affinity())
    if limits.cpus is not None:
        threads = min(threads, limits.cpus)
    memory = _memory(root)
    if limits.memory_bytes is not None:
        memory = min(memory, limits.memory_bytes)
    return Hardware(
        cpu=_cpu(root, threads), memory_bytes=memory, disk_free_bytes=shutil.disk_usage(_existing(data_dir)).free
    )


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def _memory(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _cpu(root: Path, threads: float) -> Cpu:
    machine = platform.machine().lower()
    blocks = [_fields(block) for block in (root / "proc/cpuinfo").read_text().strip().split("\n\n")]
    blocks = [fields for fields in blocks if "processor" in fields]
    physical = {(fields.get("physical id", "0"), fields.get("core id", fields["processor"])) for fields in blocks}
    first = blocks[0] if blocks else {}
    model = ""
    if {"stepping", "cpu family", "model"} <= first.keys():
        model = f"Stepping {first['stepping']} Family {first['cpu family']} Model {first['model']}"
    vendor = first.get("vendor_id", "")
    return Cpu(
        architecture=_ARCHITECTURES.get(machine, machine),
        cores=max(1, min(len(physical) or 1, -(-int(threads * 1000) // 1000))),
        threads=threads,
        vendor=_VENDORS.get(vendor, vendor),
        brand=first.get("model name", ""),
        model=model,
        capabilities=tuple(first.get("flags", first.get("Features", "")).split()),
    )


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
