"""The compiled filter is interpreted here, instruction by instruction, and compared with the policy for every call."""

from __future__ import annotations

import errno
import struct

import pytest

from shem.runtimes.seccomp import bpf, oci
from shem.runtimes.seccomp.policy import ABSENT, CONDITIONS, load

ARCHITECTURES = ("x86_64", "aarch64")
EPERM, ENOSYS = bpf.ERRNO | errno.EPERM, bpf.ERRNO | errno.ENOSYS


def run(program: bytes, number: int, arch: int, arguments: tuple[int, ...] = ()) -> int:
    """What the kernel would answer."""
    data = struct.pack("<iIQ", number - (1 << 32) if number >> 31 else number, arch, 0)
    data += struct.pack("<6Q", *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    code = list(struct.iter_unpack("<HBBI", program))
    accumulator = at = 0
    for _ in range(len(code)):
        instruction, if_true, if_false, value = code[at]
        at += 1
        if instruction == bpf.LOAD:
            accumulator = int(struct.unpack_from("<I", data, value)[0])
        elif instruction == bpf.AND:
            accumulator &= value
        elif instruction == bpf.JUMP:
            at += value
        elif instruction == bpf.JUMP_EQUAL:
            at += if_true if accumulator == value else if_false
        elif instruction == bpf.JUMP_GREATER_EQUAL:
            at += if_true if accumulator >= value else if_false
        else:
            assert instruction == bpf.RETURN
            return int(value)
    raise AssertionError("the program does not end")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
class TestFilter:
    def ask(self, architecture: str, name: str, *arguments: int) -> int:
        number = load(architecture).numbers[name]
        return run(bpf.compile_filter(architecture), number, bpf.AUDIT_ARCH[architecture], arguments)

    def test_every_name_has_one_verdict(self, architecture) -> None:
        policy = load(architecture)
        listed = [*policy.allow, *policy.deny, *CONDITIONS, *ABSENT]
        assert len(listed) == len(set(listed))
        assert set(policy.numbers) <= set(listed)

    def test_every_call_gets_its_verdict(self, architecture) -> None:
        policy = load(architecture)
        for name in policy.numbers:
            if name in CONDITIONS:
                continue
            expected = bpf.ALLOW if name in policy.allow else EPERM if name in policy.deny else ENOSYS
            assert self.ask(architecture, name) == expected, name

    def test_unknown_calls_do_not_exist(self, architecture) -> None:
        known = set(load(architecture).numbers.values())
        program = bpf.compile_filter(architecture)
        for number in {*range(600), 1 << 30, (1 << 32) - 1, 0x40000000, 0x40000000 | 39} - known:
            assert run(program, number, bpf.AUDIT_ARCH[architecture]) == ENOSYS, number

    def test_foreign_architectures_do_not_exist(self, architecture) -> None:
        program = bpf.compile_filter(architecture)
        for arch in {0x40000003, 0xC000003E, 0xC00000B7, 0x40000028} - {bpf.AUDIT_ARCH[architecture]}:
            for number in range(500):
                assert run(program, number, arch) == ENOSYS

    def test_clone_makes_processes_and_threads_but_no_namespaces(self, architecture) -> None:
        assert self.ask(architecture, "clone", 17) == bpf.ALLOW
        assert self.ask(architecture, "clone", 0x3D0F00) == bpf.ALLOW  # what pthread_create asks for
        for bit in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
            assert self.ask(architecture, "clone", 17 | bit) == ENOSYS
            assert self.ask(architecture, "clone", 17 | bit | 1 << 63) == ENOSYS
        assert self.ask(architecture, "clone3") == ENOSYS

    def test_sockets(self, architecture) -> None:
        for family in range(64):
            expected = bpf.ALLOW if family in (1, 2, 10, 16) else ENOSYS
            assert self.ask(architecture, "socket", family, 1, 0) == expected
        assert self.ask(architecture, "socket", 16, 3, 12) == ENOSYS  # netfilter
        assert self.ask(architecture, "socketpair", 1) == bpf.ALLOW
        assert self.ask(architecture, "socketpair", 30) == ENOSYS

    def test_personality_may_be_asked_and_not_changed(self, architecture) -> None:
        assert self.ask(architecture, "personality", 0) == bpf.ALLOW
        assert self.ask(architecture, "personality", 0xFFFFFFFF) == bpf.ALLOW
        assert self.ask(architecture, "personality", 0x40000) == ENOSYS

    def test_more_can_be_denied(self, architecture) -> None:
        program = bpf.compile_filter(architecture, ("memfd_create",))
        number = load(architecture).numbers["memfd_create"]
        assert run(program, number, bpf.AUDIT_ARCH[architecture]) == EPERM

    def test_the_kernel_takes_no_more_than_4096_instructions(self, architecture) -> None:
        assert len(bpf.compile_filter(architecture)) // 8 < 400

    def test_the_oci_form_says_the_same(self, architecture) -> None:
        rendered = oci.render(architecture)
        assert rendered["defaultAction"] == "SCMP_ACT_ERRNO"
        assert rendered["defaultErrnoRet"] == errno.ENOSYS
        assert len(rendered["architectures"]) == 1
        policy = load(architecture)
        verdicts: dict[str, int] = {}
        for rule in rendered["syscalls"]:
            for name in rule["names"]:
                assert name not in verdicts or rule.get("args")
                verdicts[name] = bpf.ALLOW if rule["action"] == "SCMP_ACT_ALLOW" else bpf.ERRNO | rule["errnoRet"]
                assert bool(rule.get("args")) == (name in CONDITIONS)
        for name in policy.numbers:
            if name not in CONDITIONS:
                assert verdicts.get(name, ENOSYS) == self.ask(architecture, name), name


@pytest.mark.parametrize(
    ("name", "x86_64", "aarch64"),
    [("read", 0, 63), ("openat", 257, 56), ("execve", 59, 221), ("ptrace", 101, 117), ("io_uring_setup", 425, 425)],
)
def test_known_numbers(name, x86_64, aarch64) -> None:
    assert (load("x86_64").numbers[name], load("aarch64").numbers[name]) == (x86_64, aarch64)
