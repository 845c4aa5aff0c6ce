"""Programs that take too much stop, are reported, and leave a sandbox that works."""

from __future__ import annotations

import asyncio
import errno
import os
import time

import msgspec
import pytest

from shem.runtimes.base import CommandNotStarted

ALIVE = "alive\n"


async def _starts_again(box) -> None:
    """What was killed is counted until the kernel has buried it; after that there is room for a process."""
    async with asyncio.timeout(20):
        while True:
            try:
                if (await box.guest.run(["true"])).code == 0:
                    return
            except CommandNotStarted:
                pass


async def test_a_fork_bomb_is_stopped_and_survived(box) -> None:
    result = await box.sh("b() { b | b & }; b; sleep 30", timeout_s=0.8)
    assert result.status.timed_out or result.code != 0
    await _starts_again(box)
    await box.guest.kill()
    await _starts_again(box)
    assert (await box.sh("echo alive")).out == ALIVE


async def test_processes_are_counted(limits, box) -> None:
    script = """
import os, time
n = 0
try:
    while n < 1000:
        if os.fork() == 0:
            time.sleep(60); os._exit(0)
        n += 1
except OSError: pass
print(n)
"""
    result = await box.python(script)
    assert limits.pids // 2 < int(result.out) <= limits.pids + 2
    await box.guest.kill()


async def test_a_memory_bomb_is_killed_and_reported(box) -> None:
    result = await box.python("x = []\nwhile True: x.append(bytearray(1 << 20))")
    assert result.status.oom
    assert result.code == 137
    assert box.sandbox.usage().oom_kills >= 1
    assert (await box.sh("echo alive")).out == ALIVE


async def test_a_quick_taker_of_memory_does_not_slip_through(box, caps) -> None:
    """Half as much again as it may have: where memory is only watched, not even the reservation is granted."""
    result = await box.python("import mmap\nmmap.mmap(-1, 400 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)")
    if caps.limits["memory"] == "polled":
        assert "Cannot allocate memory" in result.err
    took = await box.python("x = b'x' * (400 << 20)\nprint('had it')")
    assert took.out == ""
    assert took.status.oom or "MemoryError" in took.err
    assert (await box.sh("echo alive")).out == ALIVE


async def test_a_memory_bomb_of_many_processes(box) -> None:
    script = "import os, time\nfor i in range(8):\n  if os.fork() == 0: break\nx = bytearray(100 << 20)\ntime.sleep(20)"
    result = await box.python(script, timeout_s=15)
    assert result.status.oom or box.sandbox.usage().oom_kills >= 1
    assert (await box.sh("echo alive")).out == ALIVE


async def test_an_ordinary_failure_is_not_out_of_memory(box) -> None:
    assert not (await box.sh("exit 1")).status.oom


async def test_shared_memory_is_bounded(limits, box) -> None:
    result = await box.sh("head -c 100000000 /dev/zero > /dev/shm/x; stat -c %s /dev/shm/x; rm /dev/shm/x")
    assert 0 < int(result.out) <= limits.tmp_bytes
    assert (await box.sh("echo alive")).out == ALIVE


async def test_a_full_disk_is_an_error_inside(limits, box, caps) -> None:
    if caps.limits["disk"] != "hard":
        pytest.skip("the disk is only watched here")
    result = await box.sh("head -c 400000000 /dev/zero > /work/x; stat -c %s /work/x")
    assert "No space left" in result.err
    assert int(result.out) < limits.disk_bytes
    assert box.sandbox.usage().disk_bytes > limits.disk_bytes // 2
    count = "import os\nn = 0\ntry:\n  while True: open(f'/work/i{n}', 'x'); n += 1\nexcept OSError: print(n)"
    await box.sh("rm /work/x")
    files = await box.python(count)
    assert int(files.out) < 100_000
    assert (await box.sh("echo alive")).out == ALIVE


async def test_a_watched_disk_ends_the_sandbox(limits, background, make, caps) -> None:
    if caps.limits["disk"] == "hard":
        pytest.skip("the disk is limited by the kernel here")
    box = await make(msgspec.structs.replace(limits, disk_bytes=8 << 20))
    writing = background.start(
        box.sh("i=0; while :; do head -c 4000000 /dev/zero > /work/$i; i=$((i+1)); sleep 0.2; done", timeout_s=60),
        "work",
    )
    async with asyncio.timeout(30):
        assert "limit" in await box.sandbox.wait_dead()
    writing.cancel()


async def test_a_flood_of_output_costs_us_nothing(box) -> None:
    """The reader takes a little and then kills; meanwhile the program has been waiting, not our memory growing."""
    got = 0

    async def slow(_: int, data: bytes) -> None:
        nonlocal got
        got += len(data)
        if got > 1_000_000:
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await box.guest.run(["cat", "/dev/zero"], on_output=slow)
    assert 1_000_000 < got < 1_200_000
    assert (await box.sh("echo alive")).out == ALIVE


async def test_tiny_writes_are_bounded_too(box) -> None:
    pieces = 0

    async def count(_: int, data: bytes) -> None:
        nonlocal pieces
        pieces += 1
        if pieces > 50:
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await box.guest.run(["sh", "-c", "while :; do echo; done"], on_output=count)
    assert (await box.sh("echo alive")).out == ALIVE


async def test_cpu_time_is_metered_from_outside(box) -> None:
    before = box.sandbox.usage().cpu_s
    await box.python("import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass")
    spent = box.sandbox.usage().cpu_s - before
    assert 0.4 < spent < 3


async def test_cpu_is_shared_out(limits, make, caps) -> None:
    if caps.limits["cpu"] != "hard":
        pytest.skip("CPU is not limited here")
    if os.geteuid() != 0:
        pytest.skip("without control groups the limit is whole CPUs")
    box = await make(msgspec.structs.replace(limits, cpus=0.25))
    before = box.sandbox.usage().cpu_s
    await box.sh("while :; do :; done", timeout_s=0.8)
    assert box.sandbox.usage().cpu_s - before < 0.5


BUSY = """
import os, sys, time
end = time.monotonic() + float(sys.argv[1])
try: os.sched_setaffinity(0, range(os.cpu_count()))
except OSError as error: print(error.errno, flush=True)
for _ in range(4):
    if os.fork() == 0: break
while time.monotonic() < end: pass
"""


async def test_more_busy_processes_than_cpus_use_what_is_agreed(make, caps) -> None:
    """They may not widen what they were given, either."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one CPU here, and no more to use")
    assert caps.limits["cpu"] == "hard"
    box = await make()
    before, began = box.sandbox.usage().cpu_s, time.monotonic()
    result = await box.python(BUSY, "1.0")
    spent = box.sandbox.usage().cpu_s - before
    assert spent < 1.1 * (time.monotonic() - began) + 0.1
    if os.geteuid() != 0:
        assert result.out.split() == [str(errno.EPERM)]


async def test_sandboxes_get_cpus_of_their_own(make) -> None:
    """As long as there are enough; where shares of the time are given out, each may use all."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one CPU here")
    if os.geteuid() == 0:
        pytest.skip("control groups share the time out")
    boxes = [await make(), await make()]
    script = "import os; print(*os.sched_getaffinity(0))"
    given = [(await box.python(script)).out.split() for box in boxes]
    assert [len(cpus) for cpus in given] == [1, 1]
    assert given[0] != given[1]


async def test_many_open_files(limits, make) -> None:
    box = await make(msgspec.structs.replace(limits, open_files=256))
    script = "import os\nn = 0\ntry:\n  while True: os.open('/', 0); n += 1\nexcept OSError: print(n)"
    assert int((await box.python(script)).out) < 256


async def test_no_core_files_and_no_descriptors_are_inherited(box) -> None:
    assert (await box.sh("ulimit -c; ls /proc/self/fd | wc -l")).out.split() == ["0", "4"]  # 0 1 2 and ls's own


async def test_usage_survives_the_end(make) -> None:
    box = await make()
    await box.python("import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass")
    await box.sandbox.destroy()
    assert box.sandbox.usage().cpu_s > 0.15


def test_limits_are_stated(caps) -> None:
    assert set(caps.limits) == {"memory", "cpu", "disk", "pids"}
    assert caps.isolation == "userns"
    if os.geteuid() != 0:
        assert caps.limits["memory"] == "polled"
        assert caps.limits["cpu"] == "hard"
