"""A rented machine as its user holds it: run commands, move files. Agreement and activity are kept out of sight.

Every operation is one batch of exe script commands whose events are followed as a stream, so output is live and complete.
The stream is replayed from its beginning after our own node comes back from a restart; what was seen is skipped.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from shem.client.activity import ActivityApi
from shem.client.http import NodeUnreachable
from shem.errors import Conflict, Gone, NotFound, PeerFailed, Refused, WorkFailed
from shem.sdk import events
from shem.sdk.endings import AgreementEnded
from shem.sdk.transfer import Courier
from shem.sdk.types import CommandFailed, Result
from shem.sdk.unpack import unpack
from shem.wire.activity import RuntimeEvent, output_bytes

log = logging.getLogger(__name__)

NODE_PATIENCE_S = 60.0
"""How long our own node may be away (being restarted) before the work on a rental is given up."""
LOST = (PeerFailed, NotFound, Gone, Conflict, WorkFailed)
"""What the API says when a machine is no longer ours or no longer there."""
CUT_OFF = frozenset({"activity_terminated", "cancelled"})
"""What the node, or the exe unit, says of a command when its activity has ended."""
ENDING_WAIT_S = 5.0
"""A provider that ends an agreement clears its machine away first: word of why comes so much after the end of the activity."""
_CAPTURE: dict[str, Any] = {"stdout": {"stream": {}}, "stderr": {"stream": {}}}


class Rental:
    """One machine. Made by ``Golem.map`` and ``Golem.rent``; usable until they take it back."""

    def __init__(
        self,
        number: int,
        provider_id: str,
        provider_name: str,
        agreement_id: str,
        activity_id: str,
        *,
        activities: ActivityApi,
        courier: Courier,
        emit: Callable[[events.Event], None],
        why_ended: Callable[[float], Awaitable[AgreementEnded | None]],
    ) -> None:
        self._number = number
        self._provider_id = provider_id
        self._provider_name = provider_name
        self._agreement_id = agreement_id
        self._activity_id = activity_id
        self._activities = activities
        self._courier = courier
        self._emit = emit
        self._why_ended = why_ended
        self._turn = asyncio.Lock()
        self._spent = False

    @property
    def number(self) -> int:
        """Counts the rentals of a session, from 1."""
        return self._number

    @property
    def provider_id(self) -> str:
        """Who runs it."""
        return self._provider_id

    @property
    def provider_name(self) -> str:
        """What its owner calls it (not unique)."""
        return self._provider_name

    @property
    def agreement_id(self) -> str:
        """The agreement it is rented by."""
        return self._agreement_id

    @property
    def activity_id(self) -> str:
        """The activity on it."""
        return self._activity_id

    async def run(
        self,
        *argv: str,
        timeout: float | None = None,
        check: bool = True,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Run one command to its end.

        ``argv`` is the program and its arguments (no shell unless you name one); ``timeout`` in seconds is enforced on
        the machine; ``cwd`` and ``env`` add to what the image sets (by its ``/bin/sh`` and ``/usr/bin/env``).

        Raises :class:`CommandFailed` when it exits with anything but 0, unless ``check`` is false; always when it could
        not be run to its end (``command_not_found``, ``out_of_memory``, ``timed_out``, ``output_limit``). Raises
        ``PeerFailed`` when the machine is lost.
        """
        if not argv or not argv[0]:
            raise Refused("run needs a command", code="no_command", hint="run_image runs what the image is made to run")
        command = list(argv)
        if env:
            command = ["/usr/bin/env", *(f"{k}={v}" for k, v in env.items()), *command]
        if cwd:
            command = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', cwd, *command]
        return await self._run(command[0], command[1:], argv[0], timeout, check)

    async def run_image(self, *args: str, timeout: float | None = None, check: bool = True) -> Result:
        """Run the image's own program: its ENTRYPOINT followed by ``args``, or by its CMD when there are none.

        As ``docker run IMAGE [ARGS]`` does; otherwise like :meth:`run`. ``no_entrypoint`` when the image names nothing.
        """
        return await self._run("", list(args), args[0] if args else "the image's program", timeout, check)

    async def _run(self, program: str, args: list[str], name: str, timeout: float | None, check: bool) -> Result:
        body: dict[str, Any] = {"entry_point": program, "args": args, "capture": _CAPTURE}
        if timeout is not None:
            body["timeoutSec"] = timeout
        (result,) = await self.execute([{"run": body}], check=False)
        code = failure_code(result)
        if result.exit_code and (check or code != "nonzero_exit"):
            raise CommandFailed(_explain(name, result), result, code=code)
        return result

    async def shell(self, script: str, *, timeout: float | None = None, check: bool = True) -> Result:
        """Run ``script`` with the image's ``/bin/sh``."""
        return await self.run("/bin/sh", "-c", script, timeout=timeout, check=check)

    async def upload(self, local: str | Path, remote: str) -> None:
        """Copy a file or a directory onto the machine. ``remote`` is an absolute path there.

        The content goes to our node once, however many machines fetch it.
        """
        path = Path(local)
        _absolute(remote)
        if not path.exists():
            raise Refused(
                f"{path} does not exist", code="input_missing", hint="check the path; it is read on this machine"
            )
        async with self._courier.offer(path) as (url, form):
            await self._transfer({"from": url, "to": f"container:{remote}", **form}, f"{path} to {remote}")

    async def download(self, remote: str, local: str | Path) -> Path:
        """Copy a file (or, when ``remote`` ends with ``/``, a directory) from the machine. Returns the local path.

        The local file appears only once it is whole and its hash is right.
        """
        _absolute(remote)
        path = Path(local)
        path.parent.mkdir(parents=True, exist_ok=True)
        directory = remote.endswith("/")
        async with self._courier.receive() as inbox:
            form = {"format": "tar"} if directory else {}
            command = {"from": f"container:{remote.rstrip('/') or '/'}", "to": inbox.url, **form}
            await self._transfer(command, f"{remote} to {path}")
            if not directory:
                await inbox.save(path)
                return path
            with tempfile.TemporaryDirectory(prefix=".shem-", dir=path.parent) as scratch:
                archive = Path(scratch) / "content.tar"
                await inbox.save(archive)
                await asyncio.to_thread(unpack, archive, path)
        return path

    async def write(self, remote: str, data: bytes) -> None:
        """Make a file on the machine."""
        _absolute(remote)
        async with self._courier.offer_bytes(data) as url:
            await self._transfer({"from": url, "to": f"container:{remote}"}, f"{len(data)} bytes to {remote}")

    async def read(self, remote: str, *, limit: int = 64 << 20) -> bytes:
        """A file's content. Raises ``Refused`` (``too_large``) past ``limit`` bytes: use :meth:`download` for those."""
        _absolute(remote)
        async with self._courier.receive() as inbox:
            await self._transfer({"from": f"container:{remote}", "to": inbox.url}, f"{remote}")
            return await inbox.content(limit)

    async def usage(self) -> list[float]:
        """The counters so far, in the order of the offer's ``golem.com.usage.vector``."""
        return (await self._activities.usage(self._activity_id)).current_usage or []

    async def execute(self, script: Sequence[Mapping[str, Any]], *, check: bool = True) -> list[Result]:
        """Run a batch of exe script commands (the Golem API's ``deploy``, ``start``, ``run``, ``transfer``, ``terminate``).

        One :class:`Result` for each command that ended; the batch stops at the first that fails. One batch at a time.
        Raises :class:`~shem.sdk.endings.AgreementEnded` when the provider ended the agreement.
        """
        async with self._turn:
            if self._spent:
                raise Gone(
                    "this machine is still busy with a command that was given up",
                    code="rental_spent",
                    hint="give commands a timeout= of their own, which ends them on the machine",
                )
            try:
                batch = await self._activities.exec(self._activity_id, list(script))
                results = await self._follow(batch, len(script))
            except asyncio.CancelledError:
                self._spent = True  # the command runs on there; whatever came next would wait for it
                raise
            except NodeUnreachable:
                raise  # and our own node cannot be asked why
            except LOST as error:
                if (ended := await self._why_ended(ENDING_WAIT_S if error.code in CUT_OFF else 0.0)) is not None:
                    raise ended from error
                raise
        failed = results[-1] if results and results[-1].exit_code else None
        if failed is None:
            return results
        code = failure_code(failed)
        if code in CUT_OFF and (ended := await self._why_ended(ENDING_WAIT_S)) is not None:
            raise ended
        if check:
            raise CommandFailed(failed.message or "a command failed", failed, code=code)
        return results

    async def _transfer(self, command: dict[str, Any], what: str) -> None:
        (result,) = await self.execute([{"transfer": command}], check=False)
        if result.exit_code:
            code = failure_code(result)
            raise CommandFailed(
                f"{what}: {result.message}", result, code="transfer_failed" if code == "nonzero_exit" else code
            )

    async def _follow(self, batch: str, commands: int) -> list[Result]:
        book = _Book(commands)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + NODE_PATIENCE_S
        while True:
            seen = 0
            try:
                async for event in self._activities.stream(self._activity_id, batch):
                    deadline = loop.time() + NODE_PATIENCE_S
                    seen += 1
                    if seen > book.taken:
                        self._take(book, event)
                    if book.done:
                        return book.results
                raise PeerFailed("the results of a batch ended before the batch did", code="results_cut")
            except NodeUnreachable:
                if loop.time() > deadline:
                    raise
                log.info("the node went away; following batch %s again", batch)
                await asyncio.sleep(0.2)  # a refused connection returns at once; do not spin on it

    def _take(self, book: _Book, event: RuntimeEvent) -> None:
        book.add(event)
        kind = event.kind
        if kind.stdout is not None and book.running:
            self._emit(events.OutputReceived(self._number, 1, output_bytes(kind.stdout)))
        elif kind.stderr is not None and book.running:
            self._emit(events.OutputReceived(self._number, 2, output_bytes(kind.stderr)))
        elif kind.progress is not None:
            done, total = kind.progress.progress
            self._emit(
                events.RentalProgress(
                    self._number, self._provider_name, kind.progress.message or "", done, total, kind.progress.unit
                )
            )


class _Book:
    """Collects a batch's events into results."""

    def __init__(self, commands: int) -> None:
        self.taken = 0
        self.done = False
        self.running = False
        """Whether the command under way is one of the user's (and not the deploying of an image, say)."""
        self.results: list[Result] = []
        self._commands = commands
        self._out: list[bytes] = []
        self._err: list[bytes] = []

    def add(self, event: RuntimeEvent) -> None:
        self.taken += 1
        kind = event.kind
        if kind.started is not None:
            self.running = "run" in kind.started.command
        elif kind.stdout is not None:
            self._out.append(output_bytes(kind.stdout))
        elif kind.stderr is not None:
            self._err.append(output_bytes(kind.stderr))
        elif kind.finished is not None:
            code = kind.finished.return_code
            self.results.append(Result(code, b"".join(self._out), b"".join(self._err), kind.finished.message or ""))
            self._out, self._err = [], []
            self.done = bool(code) or len(self.results) == self._commands


def failure_code(result: Result) -> str:
    """The stable code at the head of a failure's message (``out_of_memory: …``); ``nonzero_exit`` without one. A path that
    is not there is known by the words that all providers use."""
    if result.message.startswith("path not found in container:"):
        return "path_not_found"
    head, colon, _ = result.message.partition(":")
    if colon and head and head.replace("_", "").isalpha() and head.islower():
        return head
    return "nonzero_exit"


def _explain(program: str, result: Result) -> str:
    text = f"{PurePosixPath(program).name}: {result.message or f'exit status {result.exit_code}'}"
    last = result.stderr.decode("utf-8", "replace").strip().splitlines()[-3:]
    return text + ("" if not last else "\n  " + "\n  ".join(last))


def _absolute(remote: str) -> None:
    if not remote.startswith("/"):
        raise Refused(
            f"{remote!r} must be an absolute path on the machine", code="bad_remote_path", hint="such as /work/input"
        )
