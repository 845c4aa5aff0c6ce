"""Renders the policy as the ``linux.seccomp`` object of an OCI runtime configuration."""

from __future__ import annotations

from typing import Any

from shem.runtimes.seccomp.policy import ABSENT, ABSENT_ERRNO, CONDITIONS, DENIED_ERRNO, Test, load

_NAMES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}


def render(architecture: str) -> dict[str, Any]:
    """Same meaning as :func:`shem.runtimes.seccomp.bpf.compile_filter`."""
    policy = load(architecture)
    known = set(policy.numbers)
    rules: list[dict[str, Any]] = [
        {"names": [name for name in policy.allow if name in known], "action": "SCMP_ACT_ALLOW"},
        {
            "names": [name for name in policy.deny if name in known],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": DENIED_ERRNO,
        },
        {"names": list(ABSENT), "action": "SCMP_ACT_ERRNO", "errnoRet": ABSENT_ERRNO},
    ]
    for name, alternatives in CONDITIONS.items():
        rules += [
            {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [_argument(test) for test in tests]}
            for tests in alternatives
        ]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": ABSENT_ERRNO,
        "architectures": [_NAMES[architecture]],
        "syscalls": rules,
    }


def _argument(test: Test) -> dict[str, int | str]:
    return {"index": test.argument, "value": test.mask, "valueTwo": test.value, "op": "SCMP_CMP_MASKED_EQ"}
