"""The ``bwrap`` command line of a sandbox."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from shem.runtimes.base import Limits, SandboxFailed
from shem.runtimes.host.furnish import AGENT

MASKED = [
    f"/proc/{name}"
    for name in (
        *("acpi", "asound", "interrupts", "kallsyms", "kcore", "key-users", "keys", "latency_stats", "sched_debug"),
        *("scsi", "sysrq-trigger", "timer_list", "timer_stats", "vmallocinfo"),
    )
]
READ_ONLY = [f"/proc/{name}" for name in ("bus", "fs", "irq", "sys")]

MOUNT_POINTS = ("/proc", "/dev", AGENT)

SINGLE_UID_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID")
"""Root of a one-uid namespace: these reach only files of that uid, and images with read-only directories need them."""
MANY_UID_CAPABILITIES = (*SINGLE_UID_CAPABILITIES, "KILL", "SETGID", "SETUID", "NET_BIND_SERVICE", "SYS_CHROOT")


def namespaces(
    *, own_userns: bool, hostname: str, capabilities: Sequence[str], seccomp_fd: int, info_fd: int
) -> list[str]:
    """Everything but the file systems."""
    arguments = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    if own_userns:
        arguments += ["--unshare-user", "--disable-userns", "--uid", "0", "--gid", "0"]
    arguments += ["--as-pid-1", "--die-with-parent", "--hostname", hostname, "--clearenv", "--cap-drop", "ALL"]
    for capability in capabilities:
        arguments += ["--cap-add", f"CAP_{capability}"]
    return [*arguments, "--seccomp", str(seccomp_fd), "--info-fd", str(info_fd)]


def overlay(layers: Sequence[Path], upper: Path, work: Path) -> list[str]:
    """The root as a stack of layers (bottom first) under a writable one."""
    arguments: list[str] = []
    for layer in layers:
        arguments += ["--overlay-src", str(layer)]
    return [*arguments, "--overlay", str(upper), str(work), "/"]


def file_systems(agent: Path, limits: Limits, volumes: Mapping[str, Path]) -> list[str]:
    """What is mounted over the root."""
    arguments = ["--proc", "/proc"]
    for path in READ_ONLY:
        if Path(path).exists():
            arguments += ["--ro-bind", path, path]
    for path in MASKED:
        if Path(path).is_dir():
            arguments += ["--perms", "0555", "--size", "4096", "--tmpfs", path, "--remount-ro", path]
        elif Path(path).exists():
            arguments += ["--ro-bind", "/dev/null", path]
    arguments += ["--dev", "/dev"]
    arguments += ["--perms", "1777", "--size", str(limits.tmp_bytes), "--tmpfs", "/dev/shm"]  # noqa: S108
    arguments += ["--remount-ro", "/dev", "--ro-bind", str(agent), AGENT]
    for inside, source in sorted(volumes.items()):
        arguments += ["--bind", str(source), inside]
    return arguments


def check_mount_points(layers: Sequence[Path], volumes: Mapping[str, Path]) -> None:
    """Refuse an image in which a mount point, or a directory above it, is a symbolic link.

    ``bwrap`` makes mount points while the host is still visible to it, and would follow such a link out of the image.
    """
    for point in (*MOUNT_POINTS, *volumes):
        parts = Path(point).parts
        if not point.startswith("/") or ".." in parts or len(parts) < 2:
            raise SandboxFailed(f"{point!r} is no place for a mount", code="bad_mount_point")
        for depth in range(2, len(parts) + 1):
            _check_no_link(layers, Path(*parts[1:depth]))


def _check_no_link(layers: Sequence[Path], relative: Path) -> None:
    for layer in layers:
        try:
            mode = (layer / relative).lstat().st_mode
        except OSError:
            continue
        if stat.S_ISLNK(mode):
            raise SandboxFailed(f"The image has a symbolic link at /{relative}", code="bad_mount_point")
