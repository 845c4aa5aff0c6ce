"""Parts of the host side that need no sandbox."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from shem.errors import Misconfigured
from shem.runtimes.base import SandboxFailed
from shem.runtimes.bwrap.binary import find_bwrap, version_of
from shem.runtimes.bwrap.command import check_mount_points
from shem.runtimes.host.cpus import PinnedCpus
from shem.runtimes.host.lifetime import Lifetime
from shem.runtimes.host.process import Watched, call, remove_tree
from shem.runtimes.host.slots import abandoned_slots, take_slot
from shem.runtimes.host.watch import DiskWatch, ProcessWatch, descendants, tree_bytes
from shem.runtimes.oci.runtime import Runtime
from shem.runtimes.select import DRIVERS, choose_driver


def test_the_packaged_bwrap_is_found() -> None:
    bwrap = find_bwrap()
    assert bwrap is not None
    assert version_of(bwrap) >= (0, 11)
    assert version_of(Path("/no/such")) == ()


async def test_an_unknown_driver_is_a_mistake_of_the_operator() -> None:
    with pytest.raises(Misconfigured) as caught:
        await choose_driver("docker")
    assert caught.value.code == "unknown_driver"


async def test_some_driver_is_chosen_or_every_reason_is_given() -> None:
    probes = [await make().probe() for make in DRIVERS.values()]
    if any(found.available for found in probes):
        assert (await (await choose_driver()).probe()).available
    else:
        with pytest.raises(Misconfigured, match=r"oci: .*bwrap: "):
            await choose_driver()


@pytest.mark.parametrize("point", ["relative", "/", "/a/../b", "/link", "/link/below", "/dir/link/x"])
def test_mount_points_with_links_are_refused(tmp_path, point) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    (lower / "dir").mkdir(parents=True)
    upper.mkdir()
    (upper / "link").symlink_to("/etc")
    (lower / "dir/link").symlink_to(".")
    with pytest.raises(SandboxFailed):
        check_mount_points((lower, upper), {point: tmp_path})


def test_ordinary_mount_points_are_fine(tmp_path) -> None:
    (tmp_path / "dir").mkdir()
    check_mount_points((tmp_path,), {"/dir": tmp_path, "/new/deep": tmp_path})


def test_a_tree_without_permissions_is_removed(tmp_path) -> None:
    deep = tmp_path / "a/b/c"
    deep.mkdir(parents=True)
    (deep / "file").write_text("x")
    (tmp_path / "a/link").symlink_to("/etc")
    for path in (deep, deep.parent, deep.parent.parent):
        path.chmod(0)
    remove_tree(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    assert Path("/etc/passwd").exists()
    remove_tree(tmp_path / "a")


def test_the_size_of_a_tree(tmp_path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_bytes(bytes(1_000_000))
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    assert 1_000_000 <= tree_bytes(tmp_path) < 2_000_000


async def test_a_disk_over_its_limit_is_noticed(tmp_path) -> None:
    (tmp_path / "f").write_bytes(bytes(100_000))
    async with asyncio.timeout(5):
        assert "limit" in await DiskWatch(tmp_path, 50_000).wait_exceeded()


async def test_processes_are_watched_with_their_children() -> None:
    script = (
        "import os, sys, time\nif os.fork() == 0:\n  x = bytearray(40 << 20); t = time.process_time()\n"
        "  while time.process_time() < t + 0.2: pass\n  print('ready', flush=True); sys.stdin.read(); os._exit(0)\n"
        "os.wait()"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    killed: list[int] = []
    watch = ProcessWatch(process.pid, 20 << 20, killed.append)
    watch.look()
    assert len(descendants(process.pid)) == 1
    assert killed == descendants(process.pid)
    assert watch.oom_kills == 1
    assert watch.pids == 2
    assert watch.memory_bytes > 40 << 20
    spent = watch.cpu_s
    assert spent > 0.15
    process.stdin.close()
    await process.wait()
    watch.look()
    assert watch.cpu_s >= spent
    assert watch.memory_peak_bytes > 40 << 20


async def test_a_watched_process_ends() -> None:
    process = await asyncio.create_subprocess_exec("sleep", "100")
    watched = Watched(process.pid)
    assert watched.alive()
    watched.signal(9)
    async with asyncio.timeout(5):
        await watched.wait()
    await process.wait()
    watched.signal(9)
    watched.close()


async def test_a_helper_that_fails_says_why() -> None:
    with pytest.raises(SandboxFailed, match="No such file"):
        await call(["ls", "/no/such/thing"])
    with pytest.raises(SandboxFailed):
        await call(["/no/such/program"])


async def test_an_end_comes_once() -> None:
    cleaned = 0

    async def clean() -> None:
        nonlocal cleaned
        cleaned += 1
        await asyncio.sleep(0)

    life = Lifetime("test", clean)
    over = asyncio.Event()
    life.watch(over.wait(), "it was over", "watch")
    over.set()
    assert await life.wait_dead() == "it was over"
    await asyncio.gather(life.destroy(), life.destroy())
    await life.destroy()
    assert cleaned == 1
    assert await life.wait_dead() == "it was over"


async def test_a_cancelled_destroy_still_cleans_up() -> None:
    started, go, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def clean() -> None:
        started.set()
        await go.wait()
        done.set()

    life = Lifetime("test", clean)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await life.destroy()
    await started.wait()
    go.set()
    await life.destroy()
    assert done.is_set()


def test_agent_binaries_are_executable() -> None:
    from shem.runtimes.guest.binary import agent_binary

    for architecture in ("x86_64", "aarch64"):
        assert os.access(agent_binary().with_name(f"agent-{architecture}"), os.X_OK)


def test_cpus_are_spread_over_sandboxes() -> None:
    ours = os.sched_getaffinity(0)
    lent = [PinnedCpus(0.25) for _ in ours]
    assert set().union(*(one.cpus for one in lent)) == ours
    lent[0].give_back()
    lent[0].give_back()
    again = PinnedCpus(1.0)
    assert again.cpus == lent[0].cpus
    everything = PinnedCpus(len(ours) + 5)
    assert everything.cpus == ours
    for one in (*lent, again, everything):
        one.give_back()


async def test_the_fuller_the_sooner_the_next_look() -> None:
    """A look at a process that takes all it may is repeated long before the usual time is up."""
    looks = 0

    class Counting(ProcessWatch):
        def look(self) -> None:
            nonlocal looks
            looks += 1
            self.memory_bytes = 100 << 20

    async def looks_in(limit_bytes: int) -> int:
        nonlocal looks
        looks = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await Counting(os.getpid(), limit_bytes, lambda pid: None).run()
        return looks

    assert await looks_in(1 << 30) <= 4
    assert await looks_in(101 << 20) > 8


@pytest.mark.root
def test_slots_of_root_are_none_of_a_users_business() -> None:
    """Where root has run sandboxes before, a user's provider must still start."""
    take_slot().release()
    os.seteuid(65534)
    try:
        assert list(abandoned_slots()) == []
    finally:
        os.seteuid(0)


@pytest.mark.root
async def test_a_start_that_outlives_its_agent_keeps_its_slot(tmp_path: Path) -> None:
    """Another agent would sweep the slot before the container is there, and then meet it."""
    slow = tmp_path / "runtime"
    slow.write_text("#!/bin/sh\necho begun\nexec sleep 60\n")
    slow.chmod(0o700)
    slot = take_slot()
    number = slot.number
    channel, theirs = socket.socketpair()
    channel.setblocking(False)
    with channel, theirs:
        start = Runtime("runc", slow, tmp_path).run(f"shem-{number}", tmp_path, theirs, slot.lock_fd)
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            starting = group.create_task(start)
            assert await asyncio.get_running_loop().sock_recv(channel, 6) == b"begun\n"
            slot.release()  # as our own death does
            other = take_slot()
            taken = other.number
            other.release()
            starting.cancel()
    assert taken != number
    again = take_slot()
    again.release()
    assert again.number <= number
