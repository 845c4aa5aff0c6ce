"""What each command of a script does to the machine, and what of it is reported."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import closing
from typing import Any

from shem.client.exeunit import ExeUnitLink
from shem.provider.exeunit.capture import OutputBudget, StreamCapture
from shem.provider.exeunit.failures import (
    DISK_FULL,
    NO_ENTRYPOINT,
    OUT_OF_MEMORY,
    TIMED_OUT,
    UNSUPPORTED,
    CommandFailed,
    nonzero_exit,
    not_started,
)
from shem.provider.exeunit.machine import Machine, Tools
from shem.provider.exeunit.progress import ProgressReports
from shem.provider.exeunit.transfer import Transfers
from shem.runtimes.base import CommandNotStarted, ExitStatus, ImageConfig, Limits, Sandbox, SandboxUsage
from shem.terms.script import Command, Deploy, Run, Start, Transfer
from shem.wire.exeunit import Stderr, Stdout

START_ENTRYPOINT = "start-entrypoint"
"""The argument of ``start`` that asks for the image's own program."""
_MAX_TIMEOUT_S = 366 * 24 * 3600.0
_FULL = 0.98
_NEARLY_FULL = 0.8
_NO_SPACE = b"No space left on device"
_FILE_TOO_LARGE = 128 + signal.SIGXFSZ
"""How a program ends that makes one file larger than the whole disk, where that is only watched."""
_NO_MEMORY = (
    *(b"annot allocate memory", b"MemoryError", b"OutOfMemory", b"ut of memory"),
    *(b"memory exhausted", b"bad_alloc", b"memory allocation of"),
)
"""What programs say that were refused memory, as they are where nothing counts it for the whole sandbox."""
_LAST_WORDS = 4096


class Commands:
    """Runs deploy, start, run and transfer; reports output and progress on the way."""

    def __init__(
        self, machine: Machine, tools: Tools, link: ExeUnitLink, on_sandbox: Callable[[Sandbox], None]
    ) -> None:
        """``on_sandbox`` is told of each new sandbox."""
        self._machine = machine
        self._tools = tools
        self._link = link
        self._on_sandbox = on_sandbox

    async def run(self, batch_id: str, index: int, command: Command, raw: dict[str, Any], budget: OutputBudget) -> None:
        """Carry out one command whose turn it is. Raises :class:`CommandFailed` and other errors of the work."""
        match command:
            case Deploy():
                progress = ProgressReports(self._link, batch_id, index, command.progress)
                progress.fetching(0, 0, "preparing the image")  # one that is here already tells nothing more
                printed = await progress.during(self._machine.deploy(command, progress.fetching))
                self._on_sandbox(self._machine.running)
                await self._link.emit_output(batch_id, index, Stdout, printed.encode())
            case Start():
                await self._start(command)
            case Run():
                await self._run(batch_id, index, command, _timeout(raw), budget)
            case Transfer():
                progress = ProgressReports(self._link, batch_id, index, command.progress)
                await progress.during(self._transfers().run(command, progress.moved))
            case _:
                raise CommandFailed(UNSUPPORTED, "signed results are not offered here")

    def _transfers(self) -> Transfers:
        machine = self._machine
        return Transfers(
            machine.running.guest,
            self._tools.files,
            self._tools.web,
            max_bytes=machine.limits.disk_bytes,
            directory=machine.directory,
            check_path=machine.check_path,
        )

    async def _start(self, command: Start) -> None:
        if START_ENTRYPOINT not in command.args:
            return
        image = self._machine.image
        argv = [*image.entrypoint, *image.cmd]
        if not argv:
            raise CommandFailed(NO_ENTRYPOINT, "the image has neither an ENTRYPOINT nor a CMD")
        self._machine.start_in_background(argv)

    async def _run(
        self, batch_id: str, index: int, command: Run, timeout_s: float | None, budget: OutputBudget
    ) -> None:
        capture = command.capture
        out, err = (capture.stdout, capture.stderr) if capture else (None, None)
        with (
            closing(StreamCapture(out, Stdout, budget, self._machine.directory)) as stdout,
            closing(StreamCapture(err, Stderr, budget, self._machine.directory)) as stderr,
        ):
            await self._captured(batch_id, index, command, timeout_s, {1: stdout, 2: stderr})

    async def _captured(
        self, batch_id: str, index: int, command: Run, timeout_s: float | None, streams: dict[int, StreamCapture]
    ) -> None:
        last_words = bytearray()

        async def on_output(stream: int, data: bytes) -> None:
            if stream == 2:
                last_words.extend(data)
                del last_words[:-_LAST_WORDS]
            for event in streams[stream].feed(data):
                await self._link.emit(batch_id, index, event)

        machine = self._machine
        sandbox = machine.running
        argv = _program(command, machine.image)
        try:
            status = await sandbox.guest.run(
                argv,
                env=machine.env,
                cwd=machine.image.workdir or "/",
                user=machine.image.user,
                on_output=on_output,
                timeout_s=timeout_s,
            )
        except CommandNotStarted as error:
            raise not_started(error, argv[0]) from None
        for stream in streams.values():
            for event in stream.finish():
                await self._link.emit(batch_id, index, event)
        judge(status, timeout_s, machine.limits, sandbox.usage(), bytes(last_words))


def judge(status: ExitStatus, timeout_s: float | None, limits: Limits, usage: SandboxUsage, last_words: bytes) -> None:
    """Raises the most telling failure of a command that ended; ``last_words`` are the end of what it complained."""
    if status.timed_out:
        raise CommandFailed(
            TIMED_OUT, f"the command ran longer than {timeout_s:g} s and was killed", return_code=status.code
        )
    if status.code == 0:
        return
    if status.oom or any(word in last_words for word in _NO_MEMORY):
        what = "used more than" if status.oom else "was refused memory, of which it may use"
        end = " and was killed" if status.oom else ""
        raise CommandFailed(
            OUT_OF_MEMORY,
            f"the command {what} {limits.memory_bytes >> 20} MiB (limit){end}",
            return_code=status.code,
        )
    used = usage.disk_bytes / max(1, limits.disk_bytes)
    # a file system keeps some of its size for itself: below the limit, the program's own words decide
    if status.code == _FILE_TOO_LARGE or used >= _FULL or (used >= _NEARLY_FULL and _NO_SPACE in last_words):
        raise CommandFailed(
            DISK_FULL,
            f"the command failed and the disk is full ({limits.disk_bytes >> 20} MiB)",
            return_code=status.code,
        )
    raise nonzero_exit(status.code)


def _program(command: Run, image: ImageConfig) -> list[str]:
    """What is to be run; an empty entry point is the image's own (see :mod:`shem.terms.script`)."""
    if command.entry_point:
        return [command.entry_point, *command.args]
    argv = [*image.entrypoint, *(command.args or image.cmd)]
    if not argv:
        raise CommandFailed(NO_ENTRYPOINT, "the image has neither an ENTRYPOINT nor a CMD, and there are no arguments")
    return argv


def _timeout(raw: dict[str, Any]) -> float | None:
    """Our extension: ``{"run": {…, "timeoutSec": 5.0}}``."""
    value = raw["run"].get("timeoutSec")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MAX_TIMEOUT_S:
        raise CommandFailed("bad_timeout", f"timeoutSec must be a number of seconds greater than 0, not {value!r}")
    return float(value)
