"""Beginning and end: nothing stays behind, whoever dies first."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from shem.errors import ShemError
from shem.runtimes.base import GuestBroken, ImageConfig, Rootfs, SandboxFailed
from shem.runtimes.host.process import Watched
from shem.runtimes.host.slots import RUN, _try_lock
from shem.runtimes.host.syscalls import mounts_below


def remains(directory: Path, slot: str) -> list[str]:
    """What is left of a destroyed sandbox on the host; ``slot`` is empty for one of a user."""
    left = [str(path) for path in directory.rglob("*")] if directory.exists() else []
    if slot and (ours := _try_lock(int(slot))) is not None:  # else another process of this machine has it by now
        left += [str(mount) for mount in mounts_below(RUN / slot)]
        left += [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/shem/{slot}")]
        left += [str(path) for path in (RUN / slot, Path("/sys/fs/cgroup/shem") / slot) if path.exists()]
        ours.release()
    return left


def descriptors() -> int:
    """How many this process has open, without what earlier tests have dropped."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def test_destroy_leaves_nothing_and_may_be_repeated(make) -> None:
    box = await make()
    await box.sh("echo x > /work/x; mkdir -p /work/a/b; chmod 0 /work/a")
    await asyncio.gather(box.sandbox.destroy(), box.sandbox.destroy())
    await box.sandbox.destroy()
    assert remains(box.directory, box.slot) == []
    assert "destroyed" in await box.sandbox.wait_dead()
    with pytest.raises(GuestBroken):
        await box.run("true")


async def test_many_sandboxes_at_once_and_nothing_leaks(make) -> None:
    """Also no descriptor of ours: a provider makes thousands."""
    first = await make()
    await first.sandbox.destroy()
    before = descriptors()
    boxes = await asyncio.gather(*(make() for _ in range(5)))
    said = await asyncio.gather(*(box.sh(f"echo {n}") for n, box in enumerate(boxes)))
    assert [result.out for result in said] == [f"{n}\n" for n in range(5)]
    await asyncio.gather(*(box.sandbox.destroy() for box in boxes))
    assert descriptors() <= before
    assert [remains(box.directory, box.slot) for box in boxes] == [[]] * 5


async def test_a_cancelled_start_leaves_nothing(driver, rootfs, limits, tmp_path) -> None:
    before = descriptors()
    for ms in (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 40):
        sandbox = None
        with suppress(TimeoutError):
            async with asyncio.timeout(ms / 1000):
                sandbox = await driver.create("x", rootfs, limits, directory=tmp_path / "box", volumes={})
        if sandbox is not None:
            await sandbox.destroy()
    async with asyncio.timeout(5):  # transports close a turn or two of the loop later
        while descriptors() > before:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)
    assert remains(tmp_path / "box", "") == []
    assert [pid for pid in os.listdir("/proc") if pid.isdigit() and os.fsencode(tmp_path) in _cmdline(pid)] == []


async def test_destroy_ends_running_commands(background, make) -> None:
    box = await make()
    running = background.start(box.sh("sleep 1010"), "work")
    async with asyncio.timeout(10):
        while "sleep" not in (await box.sh("cat /proc/[0-9]*/comm")).out:
            pass
    await box.sandbox.destroy()
    with pytest.raises(GuestBroken):
        await running


async def test_sandboxes_are_separate(make) -> None:
    one, two = await make(), await make()
    await one.sh("echo secret > /work/file; echo secret > /dev/shm/file")
    assert (await two.sh("ls /work /dev/shm | grep file")).out == ""
    await one.sandbox.destroy()
    assert (await two.sh("echo alive")).out == "alive\n"


async def test_a_sandbox_whose_first_process_dies_is_dead(box) -> None:
    os.kill(box.sandbox._init.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        assert await box.sandbox.wait_dead()
    with pytest.raises(GuestBroken):
        await box.run("true")


async def test_a_broken_image_is_refused_cleanly(limits, driver, tmp_path) -> None:
    missing = Rootfs(layers=(tmp_path / "missing",), config=ImageConfig(), digest="sha256:x")
    with pytest.raises(ShemError):
        await driver.create("x", missing, limits, directory=tmp_path / "box", volumes={})
    assert remains(tmp_path / "box", "") == []


async def test_mount_points_that_are_links_reach_no_host_directory(
    limits, driver, driver_name, rootfs, tmp_path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    top = tmp_path / "evil"
    top.mkdir()
    (top / "data").symlink_to(outside)
    (top / "old").symlink_to(f"/oldroot{outside}")
    image = Rootfs(layers=(*rootfs.layers, top), config=ImageConfig(), digest="sha256:x")
    volume = tmp_path / "volume"
    volume.mkdir()
    for inside in ("/data/deep", "/old/deep"):
        try:
            sandbox = await driver.create("x", image, limits, directory=tmp_path / "box", volumes={inside: volume})
        except SandboxFailed:
            continue
        await sandbox.destroy()
    assert list(outside.iterdir()) == []


_CHILD = """
import asyncio, os, sys
from pathlib import Path
from shem.runtimes.base import *
from shem.runtimes.bwrap.driver import BwrapDriver
from shem.runtimes.oci.driver import OciDriver
async def main():
    name, directory, layers = sys.argv[1], Path(sys.argv[2]), [Path(p) for p in sys.argv[3:]]
    driver = BwrapDriver() if name == "bwrap" else OciDriver(name)
    box = await driver.create("x", Rootfs(layers=tuple(layers), config=ImageConfig(), digest="x"), Limits(disk_bytes=1 << 24),
                              directory=directory, volumes={})
    async def say(_, data): print(data.decode().strip(), flush=True)
    stage = getattr(box, "_stage", None)
    script = "(trap '' TERM HUP; exec setsid sleep $0) & until grep -q sleep /proc/$!/comm; do :; done; echo ready $1; wait"
    await box.guest.run(["sh", "-c", script, str(1_000_000 + os.getpid()), stage.slot.name if stage else ""], on_output=say)
asyncio.run(main())
"""


async def test_when_our_process_is_killed_so_is_the_sandbox(driver, driver_name, rootfs, tmp_path) -> None:
    boxes = tmp_path / "boxes"
    boxes.mkdir()
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", _CHILD, driver_name, str(boxes / "one"), *map(str, rootfs.layers)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    try:
        async with asyncio.timeout(30):
            ready, *slot = (await child.stdout.readline()).decode().split()
        assert ready == "ready"
        sleepers = [Watched(int(pid)) for pid in _sleepers(child.pid)]
        assert sleepers
    finally:
        child.kill()
        await child.wait()
    async with asyncio.timeout(15):
        for sleeper in sleepers:
            await sleeper.wait()
            sleeper.close()
    await driver.recover(boxes)
    await driver.recover(boxes)
    assert remains(boxes, "".join(slot)) == []


async def test_no_process_of_a_sandbox_holds_its_slot(make) -> None:
    """What was lent to the start of a sandbox ends with it: a slot must be free for sweeping once its agent is dead."""
    box = await make()
    if box.slot:
        lock = str(RUN / f"{box.slot}.lock")
        assert [pid for pid in os.listdir("/proc") if pid.isdigit() and lock in _open_files(pid)] == [str(os.getpid())]


def _open_files(pid: str) -> set[str]:
    found = set()
    with suppress(OSError):  # it has ended
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.add(str(entry.readlink()))
    return found


def _sleepers(parent: int) -> list[str]:
    wanted = b"sleep\0%d\0" % (1_000_000 + parent)
    return [pid for pid in os.listdir("/proc") if pid.isdigit() and _cmdline(pid) == wanted]


def _cmdline(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def test_a_sandbox_is_called_as_it_is_told(driver, rootfs, limits, tmp_path) -> None:
    box = await driver.create("x", rootfs, limits, directory=tmp_path / "box", volumes={}, hostname="golem")
    said = bytearray()

    async def keep(stream: int, data: bytes) -> None:
        said.extend(data)

    try:
        await box.guest.run(["sh", "-c", "cat /proc/sys/kernel/hostname"], on_output=keep)
    finally:
        await box.destroy()
    assert said == b"golem\n"
