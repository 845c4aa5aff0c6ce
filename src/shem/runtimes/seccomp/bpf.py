"""Compiles the policy to a classic BPF program, as ``seccomp(2)`` and ``bwrap --seccomp`` take it.

The numbers are cut into runs that share an action, and the program finds its run by binary search: about eight
comparisons for any call. Foreign architectures, and the x32 numbers of x86_64, get ``ENOSYS``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache

from shem.runtimes.seccomp.policy import ABSENT, ABSENT_ERRNO, CONDITIONS, DENIED_ERRNO, Alternatives, Test, load

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

LOAD, AND, JUMP = 0x20, 0x54, 0x05
JUMP_EQUAL, JUMP_GREATER_EQUAL = 0x15, 0x35
RETURN = 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
NUMBER_AT, ARCH_AT, ARGUMENTS_AT = 0, 4, 16

Instruction = tuple[int, int, int, int]
Action = int | Alternatives
"""A return value, or alternatives each of which allows the call."""

_MAX_SHORT_JUMP = 255


@cache
def compile_filter(architecture: str, also_deny: tuple[str, ...] = ()) -> bytes:
    """The program as an array of ``struct sock_filter``, little-endian."""
    absent = (RETURN, 0, 0, ERRNO | ABSENT_ERRNO)
    program: list[Instruction] = [
        (LOAD, 0, 0, ARCH_AT),
        (JUMP_EQUAL, 1, 0, AUDIT_ARCH[architecture]),
        absent,
        (LOAD, 0, 0, NUMBER_AT),
        *_search(_runs(architecture, also_deny)),
    ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def _runs(architecture: str, also_deny: Sequence[str]) -> list[tuple[int, Action]]:
    """(first number, action) of each run, ascending; each lasts until the next."""
    policy = load(architecture)
    actions: dict[int, Action] = {}
    for name, number in policy.numbers.items():
        if name in CONDITIONS:
            actions[number] = CONDITIONS[name]
        elif name in also_deny or name in policy.deny:
            actions[number] = ERRNO | DENIED_ERRNO
        elif name not in ABSENT and name in policy.allow:
            actions[number] = ALLOW
    absent = ERRNO | ABSENT_ERRNO
    runs: list[tuple[int, Action]] = []
    for number in range(max(actions) + 2):
        action = actions.get(number, absent)
        if not runs or runs[-1][1] != action:
            runs.append((number, action))
    return runs


def _search(runs: list[tuple[int, Action]]) -> list[Instruction]:
    if len(runs) == 1:
        return _leaf(runs[0][1])
    middle = len(runs) // 2
    low, high = _search(runs[:middle]), _search(runs[middle:])
    if len(low) <= _MAX_SHORT_JUMP:
        return [(JUMP_GREATER_EQUAL, len(low), 0, runs[middle][0]), *low, *high]
    return [(JUMP_GREATER_EQUAL, 0, 1, runs[middle][0]), (JUMP, 0, 0, len(low)), *low, *high]


def _leaf(action: Action) -> list[Instruction]:
    if isinstance(action, int):
        return [(RETURN, 0, 0, action)]
    code: list[Instruction] = []
    for alternative in action:
        code += _alternative(alternative)
    return [*code, (RETURN, 0, 0, ERRNO | ABSENT_ERRNO)]


def _alternative(tests: tuple[Test, ...]) -> list[Instruction]:
    """Return ALLOW when all tests hold, else fall out of the end."""
    code: list[Instruction] = [(RETURN, 0, 0, ALLOW)]
    for test in reversed(tests):
        check: list[Instruction] = [(LOAD, 0, 0, ARGUMENTS_AT + 8 * test.argument)]
        if test.mask != 0xFFFFFFFF:
            check.append((AND, 0, 0, test.mask))
        code = [*check, (JUMP_EQUAL, 0, len(code), test.value), *code]
    return code
