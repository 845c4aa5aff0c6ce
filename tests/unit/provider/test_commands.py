"""How the end of a command is judged."""

from __future__ import annotations

import pytest

from shem.provider.exeunit.commands import judge
from shem.provider.exeunit.failures import CommandFailed
from shem.runtimes.base import ExitStatus, Limits, SandboxUsage

LIMITS = Limits(memory_bytes=256 << 20, disk_bytes=100)


def code_of(status: ExitStatus, said: bytes = b"", disk_bytes: int = 0) -> str:
    try:
        judge(status, None, LIMITS, SandboxUsage(disk_bytes=disk_bytes), said)
    except CommandFailed as failure:
        return failure.code
    return ""


@pytest.mark.parametrize(
    "said",
    [
        b'Traceback (most recent call last):\n  File "x", line 1\nMemoryError\n',
        b"numpy.core._exceptions._ArrayMemoryError: Unable to allocate 400. MiB for an array\n",
        b"OSError: [Errno 12] Cannot allocate memory\n",
        b"sh: 1: Cannot fork: cannot allocate memory\n",
        b"dd: out of memory\n",
        b"dd: memory exhausted by input buffer of size 419430400 bytes\n",
        b"fatal error: runtime: out of memory\n",
        b"FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory\n",
        b"terminate called after throwing an instance of 'std::bad_alloc'\n",
        b"memory allocation of 419430400 bytes failed\n",
        b"java.lang.OutOfMemoryError: Java heap space\n",
    ],
)
def test_a_program_that_is_refused_memory_says_so(said: bytes) -> None:
    assert code_of(ExitStatus(code=1), b"before\n" + said) == "out_of_memory"
    assert code_of(ExitStatus(code=0), said) == ""


def test_one_that_is_killed_for_memory_need_not_say_it() -> None:
    assert code_of(ExitStatus(code=137, signal=9, oom=True)) == "out_of_memory"


def test_other_failures() -> None:
    assert code_of(ExitStatus(code=1), b"I remember nothing\n") == "nonzero_exit"
    assert code_of(ExitStatus(code=1), disk_bytes=99) == "disk_full"
    assert code_of(ExitStatus(code=153)) == "disk_full"  # a file as large as the whole disk: SIGXFSZ
    assert code_of(ExitStatus(code=1), b"No space left on device", disk_bytes=85) == "disk_full"
    assert code_of(ExitStatus(code=1), b"No space left on device", disk_bytes=5) == "nonzero_exit"
