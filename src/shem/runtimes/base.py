"""What every sandbox technology offers, and the words for it.

A *driver* starts our guest agent inside a sandbox made of read-only layers plus one writable layer; everything that
then happens inside (running commands, moving files) goes through :class:`~shem.runtimes.guest.client.GuestAgent`, the
same for all drivers. What happens *to* the sandbox (limits, usage, its end) goes through :class:`Sandbox` and is
measured from outside: nothing the guest says is used for metering.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

from shem.errors import WorkFailed

if TYPE_CHECKING:
    from shem.runtimes.guest.client import GuestAgent

Enforced = Literal["hard", "polled", "none"]
EntryKind = Literal["file", "dir", "link", "other"]

HOSTNAME = "shem"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class SandboxFailed(WorkFailed):
    """The sandbox could not be made, or it is gone."""

    default_code = "sandbox_failed"


class GuestBroken(WorkFailed):
    """The program inside the sandbox that speaks to us broke its protocol, or died."""

    default_code = "guest_broken"


class CommandNotStarted(WorkFailed):
    """The guest could not start a command; ``details["errno"]`` says why (2: no such program)."""

    default_code = "not_started"


class GuestFileError(WorkFailed):
    """A file operation inside the sandbox failed; ``details["errno"]`` is the guest's errno."""

    default_code = "file_failed"


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an image says about how it wants to be run."""

    env: tuple[str, ...] = ()
    """``NAME=value`` entries."""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    user: str = ""
    """``""`` (root), a name, a uid, or either with ``:group``."""
    workdir: str = ""
    """Absolute path; ``""`` means ``/``."""
    volumes: tuple[str, ...] = ()
    """Absolute paths inside the image."""


class Rootfs(msgspec.Struct, frozen=True, kw_only=True):
    """An unpacked image: directories to be stacked by overlayfs."""

    layers: tuple[Path, ...]
    """Bottom first. Whiteouts are ``c 0 0`` devices; opaque directories carry ``user.overlay.opaque`` (mounts use
    ``userxattr``). Drivers never write into them."""
    config: ImageConfig
    digest: str
    """Names the image: ``sha256:<hex>`` of its manifest, or ``sha3:<hex>`` of the image file."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one sandbox may take from the machine."""

    memory_bytes: int = 1 << 30
    cpus: float = 1.0
    pids: int = 256
    disk_bytes: int = 10 << 30
    """The writable layer, ``/tmp`` included."""
    tmp_bytes: int = 64 << 20
    """``/dev/shm``: memory, counted in ``memory_bytes`` where that limit is hard."""
    open_files: int = 65536
    """Open files of one process."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver can do on this machine, found by running a canary."""

    available: bool
    reason: str = ""
    """Why it is not available: one sentence for the operator."""
    isolation: str = ""
    limits: dict[str, Enforced] = {}
    """For ``memory``, ``cpu``, ``disk``, ``pids``: ``hard`` (the kernel refuses), ``polled`` (we look several times a
    second and kill), ``none``."""
    notes: tuple[str, ...] = ()
    """Other things an operator should know."""


class SandboxUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Measured from outside. All counters are of the whole life of the sandbox."""

    cpu_s: float = 0.0
    memory_bytes: int = 0
    """Working set now."""
    memory_peak_bytes: int = 0
    oom_kills: int = 0
    disk_bytes: int = 0
    pids: int = 0


class ExitStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a command ended."""

    code: int
    """Exit code; 128 + signal when a signal ended it."""
    signal: int = 0
    cpu_s: float = 0.0
    """The guest's word; for display, not for metering."""
    max_rss: int = 0
    """Bytes, the guest's word."""
    timed_out: bool = False
    oom: bool = False
    """The sandbox ran out of memory while the command ran, and processes were killed for it."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One thing in a directory tree of the sandbox."""

    path: str
    """Relative to the walked directory, ``/``-separated."""
    kind: EntryKind
    size: int = 0
    mode: int = 0o644
    """Permission bits."""
    mtime: int = 0
    """Seconds since the epoch."""
    link: str = ""
    """Target of a symbolic link, as written."""


class Sandbox(Protocol):
    """A running sandbox with the guest agent alive inside."""

    @property
    def guest(self) -> GuestAgent:
        """Runs commands and moves files inside."""

    def usage(self) -> SandboxUsage:
        """Counters now; the last known ones after :meth:`destroy`."""

    async def destroy(self) -> None:
        """Kill everything inside and remove what was made on the host. Idempotent; safe from several tasks."""

    async def wait_dead(self) -> str:
        """Resolves with a reason when the sandbox ends, by itself or by :meth:`destroy`."""


class Driver(Protocol):
    """One sandbox technology."""

    @property
    def name(self) -> str:
        """``bwrap``, ``oci``, …"""

    async def probe(self) -> Capabilities:
        """Run a canary sandbox and report what this machine really allows. Never raises for a missing part."""

    async def create(
        self,
        sandbox_id: str,
        rootfs: Rootfs,
        limits: Limits,
        *,
        directory: Path,
        volumes: Mapping[str, Path],
        hostname: str = HOSTNAME,
    ) -> Sandbox:
        """Start a sandbox and wait for its agent.

        ``directory`` is the sandbox's own on the host (made when missing, emptied by ``destroy``); ``volumes`` maps
        absolute paths inside to directories of the host, mounted writable; ``hostname`` is what the
        sandbox calls itself. Raises :class:`SandboxFailed`.
        """

    async def recover(self, directory: Path) -> None:
        """Remove what a crashed process left below ``directory`` (the parent of sandbox directories), at start."""
