"""The OCI runtime configuration of a sandbox: namespaces, limits, capabilities, mounts, masks."""

from __future__ import annotations

from typing import Any

from shem.runtimes.base import DEFAULT_PATH, HOSTNAME, Limits
from shem.runtimes.guest.binary import architecture
from shem.runtimes.host.cgroups import CPU_PERIOD_US
from shem.runtimes.host.furnish import AGENT
from shem.runtimes.host.slots import UIDS
from shem.runtimes.host.stage import Stage
from shem.runtimes.seccomp.oci import render

CAPABILITIES = [
    f"CAP_{name}"
    for name in (
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "NET_BIND_SERVICE",
        "SYS_CHROOT",
    )
]
"""Inside the sandbox's user namespace only; enough for package managers and for changing users."""

MASKED = [
    *(f"/proc/{name}" for name in ("acpi", "asound", "interrupts", "kallsyms", "kcore", "key-users", "keys")),
    *(f"/proc/{name}" for name in ("latency_stats", "sched_debug", "scsi", "timer_list", "timer_stats", "vmallocinfo")),
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
]
READ_ONLY = [f"/proc/{name}" for name in ("bus", "fs", "irq", "sys", "sysrq-trigger")]

_HIDDEN = ["nosuid", "noexec", "nodev"]


def configuration(
    stage: Stage, limits: Limits, cgroup_path: str, agent_settings: list[str], hostname: str = HOSTNAME
) -> dict[str, Any]:
    """``config.json`` as a value."""
    mapping = [{"containerID": 0, "hostID": stage.slot.uid, "size": UIDS}]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": [AGENT, *agent_settings],
            "env": [f"PATH={DEFAULT_PATH}"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
            "rlimits": [{"type": "RLIMIT_CORE", "hard": 0, "soft": 0}],
            "noNewPrivileges": True,
            "oomScoreAdj": 0,
        },
        "root": {"path": str(stage.rootfs), "readonly": False},
        "hostname": hostname,
        "mounts": _mounts(stage, limits),
        "linux": {
            "namespaces": [{"type": kind} for kind in ("user", "pid", "ipc", "uts", "mount", "network", "cgroup")],
            "uidMappings": mapping,
            "gidMappings": mapping,
            "cgroupsPath": cgroup_path,
            "resources": _resources(limits),
            "seccomp": render(architecture()),
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    }


def _resources(limits: Limits) -> dict[str, Any]:
    quota = max(1000, int(limits.cpus * CPU_PERIOD_US))
    return {
        "devices": [{"allow": False, "access": "rwm"}],
        "memory": {"limit": limits.memory_bytes, "swap": limits.memory_bytes},
        "cpu": {"quota": quota, "period": CPU_PERIOD_US},
        "pids": {"limit": limits.pids},
    }


def _mounts(stage: Stage, limits: Limits) -> list[dict[str, Any]]:
    def mount(kind: str, destination: str, *options: str, source: str = "") -> dict[str, Any]:
        return {"destination": destination, "type": kind, "source": source or kind, "options": list(options)}

    return [
        mount("proc", "/proc", *_HIDDEN),
        mount("tmpfs", "/dev", "nosuid", "noexec", "strictatime", "mode=755", "size=64k"),
        mount("devpts", "/dev/pts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        mount("tmpfs", "/dev/shm", *_HIDDEN, "mode=1777", f"size={limits.tmp_bytes}"),  # noqa: S108
        mount("mqueue", "/dev/mqueue", *_HIDDEN),
        mount("sysfs", "/sys", *_HIDDEN, "ro"),
        mount("bind", AGENT, "bind", "ro", "nosuid", "nodev", source=str(stage.agent)),
        *(
            mount("bind", inside, "bind", "rw", "nosuid", "nodev", source=str(source))
            for inside, source in stage.volumes.items()
        ),
    ]
