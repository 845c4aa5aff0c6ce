"""The sandbox of one activity: made from the image that was agreed, started, and taken away.

An activity may deploy, terminate and deploy again; each time it gets a fresh sandbox in a directory of its own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec

from shem.client.files import FilesApi
from shem.cogs.tasks import TaskScope
from shem.errors import ShemError
from shem.provider.exeunit.failures import UNSUPPORTED, CommandFailed, as_failure, image_failure
from shem.provider.exeunit.meter import Meter
from shem.runtimes.base import Driver, ImageConfig, Limits, Sandbox
from shem.runtimes.images.store import ImageStore
from shem.terms.images import parse_package
from shem.terms.script import Deploy
from shem.wire.files import parse_gftp_url

log = logging.getLogger(__name__)


class Tools(msgspec.Struct, frozen=True):
    """What all units of one agent share."""

    driver: Driver
    images: ImageStore
    files: FilesApi


class Machine:
    """At most one sandbox at a time."""

    def __init__(
        self, activity_id: str, package: str, limits: Limits, directory: Path, tools: Tools, meter: Meter
    ) -> None:
        """``directory`` holds the sandboxes of all activities; this one's are named after it."""
        self._activity_id = activity_id
        self._package = package
        self._directory = directory
        self._tools = tools
        self._meter = meter
        self._count = 0
        self._background = TaskScope("entrypoint")
        self.limits = limits
        self.env: dict[str, str] = {}
        self.image = ImageConfig()
        self.sandbox: Sandbox | None = None

    async def deploy(self, command: Deploy, report: Callable[[int, int, str], None]) -> str:
        """Fetch the image and make the sandbox; the JSON text that runtimes print. Raises :class:`CommandFailed`."""
        if command.net or command.hosts:
            raise CommandFailed(UNSUPPORTED, "private networks are not offered here")
        try:
            rootfs = await self._tools.images.ensure(
                parse_package(self._package), fetch=self._fetch, progress=report, holder=self._activity_id
            )
        except ShemError as error:
            raise image_failure(error) from error
        env = _environment(rootfs.config, command.env or {})
        self._count += 1
        name = f"{self._activity_id}-{self._count}"
        try:
            sandbox = await self._tools.driver.create(
                name, rootfs, self.limits, directory=self._directory / name, volumes={}
            )
        except ShemError as error:
            raise as_failure(error, "sandbox_failed") from error
        self.sandbox = sandbox
        self.image = rootfs.config
        self.env = env
        self._meter.attach(sandbox)
        volumes = list(command.volumes or ())
        for volume in volumes:  # the whole file system is writable: a volume is a directory within the same limit
            await sandbox.guest.make_dir(volume)
        return json.dumps(
            {
                "valid": {"Ok": ""},
                "vols": [{"name": f"vol-{number}", "path": path} for number, path in enumerate(volumes)],
                "startMode": "blocking",
            }
        )

    @property
    def running(self) -> Sandbox:
        """The sandbox that commands run in. The order of commands ensures that there is one."""
        if self.sandbox is None:
            raise CommandFailed("sandbox_died", "there is no sandbox")
        return self.sandbox

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
        node_id, file_id = parse_gftp_url(url)
        async with self._tools.files.open(node_id, file_id) as download:
            async for chunk in download.chunks():
                yield chunk


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
