"""Which system calls a sandbox may make.

``syscalls.json`` holds the numbers of both architectures and sorts every name into *allow*, *deny* (``EPERM``) or
*conditional*; a call that no list knows is answered ``ENOSYS``, as an older kernel would, so that libc falls back. What
is conditional stands here, as alternatives that each allow the call. Denied are the doors to the kernel that no program
in a container needs: namespaces, mounts, keyrings, BPF, perf, io_uring, userfaultfd, ptrace and its kin, modules,
clocks. ``clone3`` hides its flags behind a pointer, so it does not exist here and libc uses ``clone``.
"""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CLONE_NEW_FLAGS = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
NETLINK_ROUTE = 0


@dataclass(frozen=True)
class Test:
    """The low 32 bits of an argument, masked, must equal a value."""

    argument: int
    value: int
    mask: int = 0xFFFFFFFF


Alternatives = tuple[tuple[Test, ...], ...]

CONDITIONS: dict[str, Alternatives] = {
    "clone": ((Test(0, 0, CLONE_NEW_FLAGS),),),
    "personality": ((Test(0, 0),), (Test(0, 0xFFFFFFFF),)),
    "socket": (
        (Test(0, AF_UNIX),),
        (Test(0, AF_INET),),
        (Test(0, AF_INET6),),
        (Test(0, AF_NETLINK), Test(2, NETLINK_ROUTE)),
    ),
    "socketpair": ((Test(0, AF_UNIX),),),
}
"""Calls that are allowed when every test of one alternative holds, and ``ENOSYS`` otherwise (as an OCI runtime's
library can only express it)."""

ABSENT = ("clone3",)
DENIED_ERRNO = errno.EPERM
ABSENT_ERRNO = errno.ENOSYS


@dataclass(frozen=True)
class Policy:
    """Names by what happens to them, and their numbers on one architecture."""

    allow: tuple[str, ...]
    deny: tuple[str, ...]
    numbers: dict[str, int]


@cache
def load(architecture: str) -> Policy:
    """The policy for ``x86_64`` or ``aarch64``."""
    data = json.loads((Path(__file__).parent / "syscalls.json").read_text())
    return Policy(allow=tuple(data["allow"]), deny=tuple(data["deny"]), numbers=data["numbers"][architecture])
