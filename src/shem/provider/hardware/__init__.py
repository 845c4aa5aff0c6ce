"""What this machine has, and how much of it this process may use.

Facts come from ``/proc`` and ``/sys`` alone; nothing is run. Inside a container the machine's own numbers would promise
what the container's limits forbid, so CPU and memory are bounded by the scheduler affinity and by the limits of every
cgroup between this process and the root, in both cgroup layouts.
"""

from shem.provider.hardware.cgroups import CgroupLimits, cgroup_limits
from shem.provider.hardware.probe import Cpu, Hardware, detect

__all__ = ["CgroupLimits", "Cpu", "Hardware", "cgroup_limits", "detect"]
