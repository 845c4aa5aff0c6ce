"""Hardware: facts from a made-up /proc and /sys, and a look at the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from shem.provider.hardware import cgroup_limits, detect

CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 167
model name\t: Some CPU @ 3 GHz
stepping\t: 1
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse avx2

processor\t: 1
vendor_id\t: GenuineIntel
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse avx2
"""


def machine(root: Path, *, cgroup: str = "", mountinfo: str = "") -> Path:
    proc = root / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "cpuinfo").write_text(CPUINFO)
    (proc / "meminfo").write_text("MemTotal:       8388608 kB\nMemFree: 1 kB\n")
    (proc / "self/cgroup").write_text(cgroup)
    (proc / "self/mountinfo").write_text(mountinfo)
    return root


def put(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_cpu_as_existing_providers_write_it(tmp_path: Path) -> None:
    cpu = detect(tmp_path / "data", machine(tmp_path)).cpu
    assert cpu.model == "Stepping 1 Family 6 Model 167"
    assert (cpu.vendor, cpu.brand, cpu.cores) == ("Intel", "Some CPU @ 3 GHz", 1)
    assert cpu.capabilities == ("fpu", "sse", "avx2")


def test_memory_and_disk(tmp_path: Path) -> None:
    found = detect(tmp_path / "not" / "there" / "yet", machine(tmp_path))
    assert found.memory_bytes == 8 << 30
    assert found.disk_free_bytes > 0


V2 = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V1 = (
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def test_version_2_limits_of_all_levels(tmp_path: Path) -> None:
    root = machine(tmp_path, cgroup="0::/a/b\n", mountinfo=V2)
    put(root, "sys/fs/cgroup/a/memory.max", "1073741824\n")
    put(root, "sys/fs/cgroup/a/b/memory.max", "max\n")
    put(root, "sys/fs/cgroup/a/b/cpu.max", "50000 100000\n")
    put(root, "sys/fs/cgroup/a/cpu.max", "max 100000\n")
    limits = cgroup_limits(root)
    assert (limits.cpus, limits.memory_bytes) == (0.5, 1 << 30)
    found = detect(tmp_path, root)
    assert (found.cpu.threads, found.memory_bytes) == (0.5, 1 << 30)


def test_version_1_limits(tmp_path: Path) -> None:
    root = machine(tmp_path, cgroup="4:memory:/job\n2:cpu,cpuacct:/job\n", mountinfo=V1)
    put(root, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", "536870912\n")
    put(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    put(root, "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "150000\n")
    put(root, "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n")
    limits = cgroup_limits(root)
    assert (limits.cpus, limits.memory_bytes) == (1.5, 512 << 20)


def test_inside_a_container_the_mount_shows_only_its_part(tmp_path: Path) -> None:
    mounted = V2.replace("0:28 / ", "0:28 /docker/abc ")
    root = machine(tmp_path, cgroup="0::/docker/abc\n", mountinfo=mounted)
    put(root, "sys/fs/cgroup/memory.max", "2147483648\n")
    assert cgroup_limits(root).memory_bytes == 2 << 30


@pytest.mark.parametrize("text", ["", "garbage\n", "0::/x\n", "5:memory:/x\n"])
def test_no_limits_where_none_can_be_read(tmp_path: Path, text: str) -> None:
    limits = cgroup_limits(machine(tmp_path, cgroup=text, mountinfo="garbage\n" + V2 + V1))
    assert (limits.cpus, limits.memory_bytes) == (None, None)


def test_this_machine(tmp_path: Path) -> None:
    found = detect(tmp_path)
    assert found.memory_bytes > 64 << 20
    assert found.cpu.threads > 0
    assert found.cpu.architecture in {"x86_64", "aarch64"}
