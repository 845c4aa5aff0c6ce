"""What root lays out on the host before a sandbox starts: the root file system, its disk, its volumes.

Layers belong to uid 0 on disk and stay untouched: they are mounted with their owners mapped into the slot's uids, and
overlayfs stacks them under a writable layer. That layer is a file system of its own in a sparse file, so that the
kernel enforces the size and the number of files; without loop devices it is a plain directory that is watched.
Everything hangs below the slot's directory, where one sweep finds it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from shem.runtimes.base import Limits, Rootfs, SandboxFailed
from shem.runtimes.guest.binary import agent_binary
from shem.runtimes.host.process import call, kill_and_wait, remove_tree, uninterrupted
from shem.runtimes.host.slots import UIDS, Slot
from shem.runtimes.host.syscalls import bind_mount, unmount_below

MIN_DISK_BYTES = 1 << 20
MAX_LAYERS = 127


async def open_userns(slot: Slot) -> int:
    """A descriptor of a new user namespace with the slot's uids, full owner of itself and of nothing else."""
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--user", "--", "sh", "-c", "echo; read _"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    userns = -1
    try:
        if not await process.stdout.read(1):
            raise SandboxFailed("This machine does not allow user namespaces", code="no_userns")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{process.pid}/{name}").write_text(f"0 {slot.uid} {UIDS}")
        userns = os.open(f"/proc/{process.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        process.stdin.close()
        await process.wait()
    except OSError as error:
        raise SandboxFailed(f"Cannot map user ids: {error.strerror}") from error
    except BaseException:
        if userns >= 0:
            os.close(userns)
        raise
    finally:
        await kill_and_wait(process)
    return userns


class Stage:
    """The laid out file systems of one sandbox."""

    def __init__(self, slot: Slot, data: Path, *, may_watch_disk: bool) -> None:
        """``may_watch_disk``: without loop devices, use a plain directory rather than fail."""
        self.slot = slot
        self.run = slot.directory
        self.rootfs = self.run / "rootfs"
        self.agent = self.run / "agent"
        self.volumes: dict[str, Path] = {}
        self.hard_disk = False
        self.userns_fd = -1
        self._image = data / "disk.img"
        self._plain = data / "disk"
        self._empty_bytes = 0
        self._may_watch_disk = may_watch_disk

    async def build(self, rootfs: Rootfs, limits: Limits, volumes: Mapping[str, Path]) -> None:
        """Mount everything. Raises :class:`SandboxFailed`; :meth:`remove` cleans up either way."""
        if not 0 < len(rootfs.layers) <= MAX_LAYERS:
            raise SandboxFailed(f"An image needs 1 to {MAX_LAYERS} layers, not {len(rootfs.layers)}")
        self.slot.make_directory()
        await uninterrupted(self._make_userns())
        try:
            await self._mount(rootfs, limits, volumes)
        except OSError as error:
            raise SandboxFailed(f"Cannot lay out the sandbox: {error}") from error

    async def _make_userns(self) -> None:
        self.userns_fd = await open_userns(self.slot)

    async def _mount(self, rootfs: Rootfs, limits: Limits, volumes: Mapping[str, Path]) -> None:
        lower = []
        for index, layer in enumerate(rootfs.layers):
            self._bind(layer, self.run / f"l{index}", read_only=True)
            lower.append(f"l{index}")
        disk = await self._make_disk(limits.disk_bytes)
        for name in ("u", "w"):
            (disk / name).mkdir(mode=0o755)
            (disk / name).chmod(0o755)
            os.chown(disk / name, self.slot.uid, self.slot.uid)
        self.rootfs.mkdir()
        upper = "disk" if self.hard_disk else str(disk)
        options = f"nosuid,nodev,userxattr,lowerdir={':'.join(reversed(lower))},upperdir={upper}/u,workdir={upper}/w"
        await call(["mount", "-t", "overlay", "overlay", "-o", options, "rootfs"], cwd=self.run)
        self.agent.touch()
        bind_mount(agent_binary(), self.agent, read_only=True)
        for index, (inside, source) in enumerate(sorted(volumes.items())):
            target = self.run / f"v{index}"
            self._bind(source, target, read_only=False)
            self.volumes[inside] = target

    def _bind(self, source: Path, target: Path, *, read_only: bool) -> None:
        target.mkdir()
        bind_mount(source, target, userns_fd=self.userns_fd, read_only=read_only)

    async def _make_disk(self, size: int) -> Path:
        with self._image.open("wb") as file:
            file.truncate(max(size, MIN_DISK_BYTES))
        mounted = self.run / "disk"
        mounted.mkdir()
        options = ["-q", "-m0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard"]
        try:
            await call(["mkfs.ext4", *options, self._image])
            await call(["mount", "-o", "loop,nodev,nosuid", self._image, mounted])
        except SandboxFailed:
            self._image.unlink()
            if not self._may_watch_disk:
                raise
            self._plain.mkdir()
            return self._plain
        self.hard_disk = True
        stat = os.statvfs(mounted)
        self._empty_bytes = (stat.f_blocks - stat.f_bfree) * stat.f_frsize
        return mounted

    @property
    def plain_upper(self) -> Path | None:
        """The writable layer when nothing but watching limits it."""
        return None if self.hard_disk else self._plain / "u"

    def disk_bytes(self) -> int:
        """What the sandbox has written, where the disk is a file system of its own."""
        if not self.hard_disk:
            return 0
        try:
            stat = os.statvfs(self.run / "disk")
        except OSError:
            return 0
        return max(0, (stat.f_blocks - stat.f_bfree) * stat.f_frsize - self._empty_bytes)

    def remove(self) -> None:
        """Unmount and delete everything, and give the slot back. Idempotent."""
        if self.userns_fd >= 0:
            os.close(self.userns_fd)
            self.userns_fd = -1
        sweep_mounts(self.slot)
        self._image.unlink(missing_ok=True)
        remove_tree(self._plain)
        self.slot.release()


def sweep_mounts(slot: Slot) -> None:
    """Unmount all below a slot's directory, and remove it.

    Never recursive: what is still mounted (a volume!) must not be emptied, and an empty mount point is all there is.
    """
    unmount_below(slot.directory)
    if not slot.directory.is_dir():
        return
    for entry in slot.directory.iterdir():
        with suppress(OSError):
            if entry.is_dir():
                entry.rmdir()
            else:
                entry.unlink()
    with suppress(OSError):
        slot.directory.rmdir()
