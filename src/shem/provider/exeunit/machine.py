"""The sandbox of one activity: made from the image that was agreed, started, and taken away.

An activity may deploy, terminate and deploy again; each time it gets a fresh sandbox in a directory of its own. Agreements on
runtime ``vm`` get what programs know from virtual machines: the image's volumes are empty at the start, files travel to and
from volumes only, and the machine is called ``golem``. Those on ``oci`` get what programs know from containers.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec

from shem.client.files import FilesApi
from shem.cogs.tasks import TaskScope
from shem.errors import ShemError
from shem.provider.exeunit.failures import PATH_NOT_FOUND, UNSUPPORTED, CommandFailed, as_failure, image_failure
from shem.provider.exeunit.meter import Meter
from shem.provider.exeunit.naming import add_hosts, check_hostname, check_hosts
from shem.provider.exeunit.volumes import is_within, make_volumes, plan_volumes
from shem.provider.exeunit.web import Web
from shem.runtimes.base import HOSTNAME, Driver, GuestFileError, ImageConfig, Limits, Rootfs, Sandbox
from shem.runtimes.images.store import ImageStore
from shem.terms.images import parse_package
from shem.terms.script import Deploy
from shem.wire.files import parse_gftp_url

log = logging.getLogger(__name__)

VM = "vm"
_VM_HOSTNAME = "golem"


class Tools(msgspec.Struct, frozen=True):
    """What all units of one agent share."""

    driver: Driver
    images: ImageStore
    files: FilesApi
    web: Web


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where an activity's sandboxes are made, and what they may use."""

    package: str
    runtime: str
    """``golem.runtime.name`` of the agreement."""
    limits: Limits
    directory: Path
    """Of all activities' sandboxes; each is named after its activity."""


class Machine:
    """At most one sandbox at a time."""

    def __init__(self, activity_id: str, place: Place, tools: Tools, meter: Meter) -> None:
        self._activity_id = activity_id
        self._place = place
        self._tools = tools
        self._meter = meter
        self._count = 0
        self._background = TaskScope("entrypoint")
        self.limits = place.limits
        self.volumes: tuple[str, ...] = ()
        self.env: dict[str, str] = {}
        self.image = ImageConfig()
        self.sandbox: Sandbox | None = None

    async def deploy(self, command: Deploy, report: Callable[[int, int, str], None]) -> str:
        """Fetch the image and make the sandbox; the JSON text that runtimes print. Raises :class:`CommandFailed`."""
        if command.net:
            raise CommandFailed(UNSUPPORTED, "private networks (deploy.net) are not offered here")
        vm = self._place.runtime == VM
        hosts = check_hosts(command.hosts or {})
        hostname = check_hostname(command.hostname or (_VM_HOSTNAME if vm else HOSTNAME))
        try:
            rootfs = await self._tools.images.ensure(
                parse_package(self._place.package), fetch=self._fetch, progress=report, holder=self._activity_id
            )
        except ShemError as error:
            raise image_failure(error) from error
        env = _environment(rootfs.config, command.env or {})
        declared = rootfs.config.volumes if vm else ()
        volumes = plan_volumes(declared, command.volumes or (), disk_bytes=self.limits.disk_bytes)
        sandbox = await self._create(rootfs, hostname)
        try:
            await make_volumes(sandbox.guest, volumes, mode=0o755 if rootfs.config.user in _ROOT else 0o777)
            await _make_workdir(sandbox, rootfs.config.workdir)
            await add_hosts(sandbox.guest, hosts)
        except BaseException:
            await sandbox.destroy()
            raise
        self.sandbox, self.image, self.env, self.volumes = sandbox, rootfs.config, env, tuple(volumes)
        self._meter.attach(sandbox)
        return json.dumps(
            {
                "valid": {"Ok": ""},
                "vols": [{"name": f"vol-{uuid.uuid4()}", "path": path} for path in volumes],
                "startMode": "blocking",
            }
        )

    async def _create(self, rootfs: Rootfs, hostname: str) -> Sandbox:
        self._count += 1
        name = f"{self._activity_id}-{self._count}"
        directory = self._place.directory / name
        try:
            return await self._tools.driver.create(
                name, rootfs, self.limits, directory=directory, volumes={}, hostname=hostname
            )
        except ShemError as error:
            raise as_failure(error, "sandbox_failed") from error

    @property
    def running(self) -> Sandbox:
        """The sandbox that commands run in. The order of commands ensures that there is one."""
        if self.sandbox is None:
            raise CommandFailed("sandbox_died", "there is no sandbox")
        return self.sandbox

    @property
    def directory(self) -> Path:
        """Of this agent, on the disk that it lends."""
        return self._place.directory

    def check_path(self, path: str) -> None:
        """Whether files may travel to and from there. Raises :class:`CommandFailed` (``path_not_found``)."""
        if self._place.runtime == VM and not is_within(path, self.volumes):
            raise CommandFailed(PATH_NOT_FOUND, f"path not found in container: {path[:500]}")

    def start_in_background(self, argv: Sequence[str]) -> None:
        """Run a program for as long as the sandbox lives; its output goes nowhere."""
        self._background.start(self._serve(self.running, argv), "entrypoint")

    async def _serve(self, sandbox: Sandbox, argv: Sequence[str]) -> None:
        async def drop(stream: int, data: bytes) -> None:
            log.debug("activity %s: %d bytes on stream %d", self._activity_id, len(data), stream)

        try:
            status = await sandbox.guest.run(
                list(argv), env=self.env, cwd=self.image.workdir or "/", user=self.image.user, on_output=drop
            )
            log.info("activity %s: the image's program exited with %d", self._activity_id, status.code)
        except ShemError as error:
            log.info("activity %s: the image's program: %s", self._activity_id, error)

    async def dispose(self) -> None:
        """Take the sandbox away, if there is one; its usage stays counted."""
        sandbox, self.sandbox = self.sandbox, None
        await self._background.close()
        self._background = TaskScope("entrypoint")
        if sandbox is not None:
            await sandbox.destroy()
            self._meter.detach()
        self._tools.images.release(self._activity_id)

    async def _fetch(self, url: str) -> AsyncIterator[bytes]:
        if url.startswith(("http://", "https://")):
            async with self._tools.web.get(url) as answer:
                async for chunk in answer.chunks():
                    yield chunk
            return
        node_id, file_id = parse_gftp_url(url)
        async with self._tools.files.open(node_id, file_id) as download:
            async for chunk in download.chunks():
                yield chunk


_ROOT = ("", "0", "root", "0:0", "root:root")


async def _make_workdir(sandbox: Sandbox, workdir: str) -> None:
    """Images may name a directory that they do not have."""
    if not workdir:
        return
    try:
        await sandbox.guest.stat(workdir)
    except GuestFileError:
        try:
            await sandbox.guest.make_dir(workdir)
        except GuestFileError as error:
            raise as_failure(error, "sandbox_failed") from error


def _environment(image: ImageConfig, more: dict[str, str]) -> dict[str, str]:
    env: dict[str, str] = {}
    for entry in image.env:
        name, _, value = entry.partition("=")
        env[name] = value
    for name, value in more.items():
        if not name or "=" in name or "\0" in name + value:
            raise CommandFailed("bad_env", f"{name[:80]!r} is not the name of a variable")
        env[name] = value
    return env
