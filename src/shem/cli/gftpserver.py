"""The part of ``gftp`` that speaks to the node, loaded when the first request needs it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from shem.cli.gftp import FAILED, INTERNAL_ERROR, VERSION_TEXT, BadCall, Call, answer, refusal, say
from shem.client.files import FilesApi
from shem.client.gftp import Gftp
from shem.client.http import ApiClient
from shem.cogs.filelimit import raise_file_limit
from shem.cogs.places import local_api_url, local_app_key
from shem.cogs.tasks import TaskScope
from shem.errors import Misconfigured, Refused, ShemError
from shem.wire.files import parse_gftp_url

log = logging.getLogger(__name__)

MAX_OPEN = 64
"""Requests at work at once; more wait in the pipe."""
PATIENCE_S = 5.0
"""How long a request waits for a node that refuses connections: it may just be starting."""
BYE_S = 5.0
"""How long the node may take to hear that the files are closed."""


class Methods:
    """What requests ask for. An async context manager; the node is first spoken to when something needs it."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._turn = asyncio.Lock()
        self._http: ApiClient | None = None
        self._gftp: Gftp | None = None
        self._by_name: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "publish": self._publish,
            "close": self._close,
            "receive": self._receive,
            "download": self._download,
            "upload": self._upload,
        }

    async def __aenter__(self) -> Methods:
        return self

    async def __aexit__(self, *error: object) -> None:
        try:
            async with asyncio.timeout(BYE_S):
                await self._stack.aclose()
        except TimeoutError:
            log.debug("the node does not answer; it will find out by itself")

    async def carry_out(self, call: Call) -> Any:
        """The result of a call. Raises :class:`BadCall`."""
        match call.method:
            case "version":
                return VERSION_TEXT
            case "shutdown":
                return "ok"
        try:
            return await self._by_name[call.method](call.params)
        except ShemError as error:
            raise BadCall(FAILED, error.message + (f" ({error.hint})" if error.hint else ""), call.id) from error
        except (OSError, ValueError) as error:  # of the disk, and of text that can be no path
            raise BadCall(FAILED, str(error) or type(error).__name__, call.id) from error

    async def _publish(self, params: Any) -> list[dict[str, str]]:
        gftp, done = await self._files(), []
        try:
            for file in params["files"]:
                done.append({"file": file, "url": await gftp.publish(Path(file))})
        except BaseException:
            for link in done:
                await gftp.close(link["url"])
            raise
        return done

    async def _close(self, params: Any) -> list[str]:
        gftp = await self._files()
        return ["ok" if await gftp.close(url) else "error" for url in params["urls"]]

    async def _receive(self, params: Any) -> dict[str, str]:
        file = params["output_file"]
        return {"file": file, "url": await (await self._files()).receive(Path(file))}

    async def _download(self, params: Any) -> dict[str, str]:
        node_id, file_id = parse_gftp_url(params["url"])
        await FilesApi(await self._node()).download(node_id, file_id, Path(params["output_file"]))
        return {"file": params["output_file"], "url": params["url"]}

    async def _upload(self, params: Any) -> dict[str, str]:
        node_id, file_id = parse_gftp_url(params["url"])
        path = Path(params["file"])
        if not path.is_file():
            raise Refused(f"there is no file {params['file']!r}", code="file_unreadable")
        await FilesApi(await self._node()).send(node_id, file_id, path)
        return {"file": params["file"], "url": params["url"]}

    async def _node(self) -> ApiClient:
        async with self._turn:
            if self._http is None:
                key = local_app_key()
                if not key:
                    raise Misconfigured("there is no app key", code="no_app_key", hint="set YAGNA_APPKEY")
                http = ApiClient(local_api_url(), key, patience_s=PATIENCE_S)
                self._http = await self._stack.enter_async_context(http)
            return self._http

    async def _files(self) -> Gftp:
        http = await self._node()
        async with self._turn:
            if self._gftp is None:
                self._gftp = await self._stack.enter_async_context(Gftp(http))
            return self._gftp


class Server:
    """Answers requests as they come, several at once."""

    def __init__(self, first: Call, arriving: Iterator[bytes]) -> None:
        """``first``: the one that was read before this part was needed."""
        self._first = first
        self._arriving = arriving
        self._room = threading.BoundedSemaphore(MAX_OPEN)
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Until ``shutdown``, the end of stdin, or a signal; then close what is open to others."""
        loop = asyncio.get_running_loop()
        raise_file_limit()
        loop.add_signal_handler(signal.SIGTERM, self._ended.set)
        if not os.isatty(0):  # who interrupts the program that has started us interrupts us too, and it ends first
            loop.add_signal_handler(signal.SIGINT, lambda: None)
        async with Methods() as methods, TaskScope("gftp") as scope:

            def take(line: bytes) -> None:
                try:
                    call = Call(line)
                except BadCall as error:
                    self._say(refusal(error))
                    self._room.release()
                else:
                    scope.start(self._answer(call, methods), call.method)

            self._room.acquire()
            scope.start(self._answer(self._first, methods), self._first.method)
            threading.Thread(target=self._feed, args=(loop, take), daemon=True, name="gftp-stdin").start()
            await self._ended.wait()

    def _feed(self, loop: asyncio.AbstractEventLoop, take: Callable[[bytes], None]) -> None:
        """In a thread of its own: hands on what arrives, while there is room for more."""
        try:
            for line in self._arriving:
                self._room.acquire()
                loop.call_soon_threadsafe(take, line)
            loop.call_soon_threadsafe(self._ended.set)
        except RuntimeError:
            pass  # the loop has ended before

    async def _answer(self, call: Call, methods: Methods) -> None:
        text = refusal(BadCall(INTERNAL_ERROR, "gftp made a mistake", call.id))
        try:
            text = answer(call.id, await methods.carry_out(call))
        except BadCall as error:
            text = refusal(error)
        finally:
            self._room.release()
            if call.wants_answer:
                self._say(text)
            if call.method == "shutdown":
                self._ended.set()

    def _say(self, text: bytes) -> None:
        try:
            say(text)
        except OSError:
            self._ended.set()  # nobody listens any more


async def once(call: Call, verbose: bool) -> int:
    """One command from the command line; the exit status. What others are to fetch or fill is open until a signal."""
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted.set)
    raise_file_limit()
    async with Methods() as methods, TaskScope("gftp") as scope:
        work = scope.start(_tell(call, methods, verbose), call.method)
        signalled = scope.start(interrupted.wait(), "signals")
        await asyncio.wait({work, signalled}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return 130
        status: int = work.result()
        if status == 0 and call.method in {"publish", "receive"}:
            await signalled
        return status


async def _tell(call: Call, methods: Methods, verbose: bool) -> int:
    try:
        result = await methods.carry_out(call)
    except BadCall as error:
        if verbose:
            say(refusal(error))
        else:
            sys.stderr.write(f"gftp: {error.message}\n")
        return 1
    say(answer(call.id, result, bare=not verbose))
    return 0
