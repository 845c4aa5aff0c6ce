"""``gftp``: files for Golem's clients, which start ``gftp server`` and talk JSON-RPC 2.0 with it, one object per line.

yapapi starts it for every program and asks for its version, also when no file will ever move. So that costs next to nothing:
what speaks to the node is loaded when the first request needs it. The bytes travel between the node and this process.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from shem.version import VERSION

LIKE = "0.17.6"
"""The original program that this one behaves like; clients close URLs only from 0.7.3 on."""
VERSION_TEXT = f"{LIKE} (shem {VERSION})"
PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS, INTERNAL_ERROR = -32700, -32600, -32601, -32602, -32603
FAILED = -32000
MAX_LINE_BYTES = 4 << 20

PARAMS: dict[str, dict[str, type]] = {
    "version": {},
    "publish": {"files": list},
    "close": {"urls": list},
    "receive": {"output_file": str},
    "download": {"url": str, "output_file": str},
    "upload": {"url": str, "file": str},
    "shutdown": {},
}
"""What each method takes; lists are of text."""


class BadCall(Exception):
    """A line that gets an error for an answer."""

    def __init__(self, code: int, message: str, id_: object = None) -> None:
        super().__init__(message)
        self.code, self.message, self.id = code, message, id_


class Call:
    """One request. ``id`` is echoed as it came; a request without one gets no answer."""

    __slots__ = ("id", "method", "params", "wants_answer")

    def __init__(self, line: bytes) -> None:
        """Raises :class:`BadCall`."""
        try:
            found = json.loads(line, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            raise BadCall(PARSE_ERROR, "this is no JSON") from None
        if not isinstance(found, dict):
            raise BadCall(INVALID_REQUEST, "a request is an object")
        self.id = found.get("id")
        if not isinstance(self.id, int | str | float | None) or isinstance(self.id, bool):
            raise BadCall(INVALID_REQUEST, "an id is text or a number")
        if isinstance(self.id, float) and self.id in {float("inf"), float("-inf")}:
            raise BadCall(INVALID_REQUEST, "no number is as large as that id")
        method = found.get("method")
        if found.get("jsonrpc") != "2.0" or not isinstance(method, str):
            raise BadCall(INVALID_REQUEST, 'a request has "jsonrpc": "2.0" and a method', self.id)
        self.method = method
        self.wants_answer = "id" in found
        self.params = self._checked(found.get("params", {}))

    def _checked(self, params: object) -> dict[str, Any]:
        taken = PARAMS.get(self.method)
        if taken is None:
            raise BadCall(METHOD_NOT_FOUND, f"there is no method {self.method[:40]!r}", self.id)
        if not isinstance(params, dict):
            raise BadCall(INVALID_PARAMS, "params is an object", self.id)
        for name, kind in taken.items():
            value = params.get(name)
            if not isinstance(value, kind) or (isinstance(value, list) and not all(isinstance(v, str) for v in value)):
                what = "a list of text" if kind is list else "text"
                raise BadCall(INVALID_PARAMS, f"{self.method} takes {name!r}, {what}", self.id)
        return params


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def answer(id_: object, result: object, *, bare: bool = False) -> bytes:
    """The line for a request that was carried out; ``bare`` for people: the result alone."""
    frame = {} if bare else {"jsonrpc": "2.0", "id": id_}
    return json.dumps(frame | {"result": result}).encode() + b"\r\n"


def refusal(error: BadCall) -> bytes:
    """The line for one that was not."""
    told = {"jsonrpc": "2.0", "id": error.id, "error": {"code": error.code, "message": error.message}}
    return json.dumps(told).encode() + b"\r\n"


def lines(fd: int) -> Iterator[bytes]:
    """Lines as they come, without their ends; blank ones are left out, and of one that is too long only the beginning is
    given. ``os.read`` and no buffered file: a thread that waits in it does not keep the process from ending."""
    data, skipping = b"", False
    while piece := os.read(fd, 1 << 16):
        *whole, rest = piece.split(b"\n")
        for part in whole:
            line, data = data + part, b""
            if not skipping and line.strip():
                yield line
            skipping = False
        data = b"" if skipping else data + rest
        if len(data) > MAX_LINE_BYTES:
            yield data
            data, skipping = b"", True
    if data.strip():
        yield data


def say(text: bytes) -> None:
    """One answer in one write where the pipe takes it. Raises ``BrokenPipeError`` when nobody listens any more."""
    left = memoryview(text)
    while left:
        left = left[os.write(1, left) :]


def serve() -> None:
    """``gftp server``, until stdin ends or ``shutdown``."""
    arriving = lines(0)
    for line in arriving:
        try:
            call = Call(line)
        except BadCall as error:
            say(refusal(error))
            continue
        if call.method not in {"version", "shutdown"}:
            _serve_files(call, arriving)
            return
        if call.wants_answer:
            say(answer(call.id, VERSION_TEXT if call.method == "version" else "ok"))
        if call.method == "shutdown":
            return


def _serve_files(first: Call, arriving: Iterator[bytes]) -> None:
    import asyncio

    from shem.cli.gftpserver import Server

    asyncio.run(Server(first, arriving).run())


USAGE = """usage: gftp server                   JSON-RPC 2.0 on stdin and stdout, for programs
       gftp publish [-v] FILE...     offer files until interrupted; prints their URLs
       gftp receive [-v] FILE        wait until interrupted for an upload into FILE; prints its URL
       gftp download [-v] URL [-o] FILE
       gftp upload [-v] FILE URL
       gftp --version | --help

The node is the one at YAGNA_API_URL; YAGNA_APPKEY is the key for it (by default your own node here, and its key).
-v prints answers as `gftp server` does.
"""


def main() -> None:
    """Entry point. Ends by ``SystemExit`` where something failed."""
    arguments = sys.argv[1:]
    try:
        if arguments == ["server"]:
            serve()
        elif arguments in (["--version"], ["-V"]):
            say(f"gftp {VERSION_TEXT}\n".encode())
        elif arguments in (["--help"], ["-h"]):
            say(USAGE.encode())
        else:
            _once(arguments)
    except BrokenPipeError:
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _once(arguments: list[str]) -> None:
    verbose = [a for a in arguments if a in {"-v", "--verbose"}]
    words = [a for a in arguments if a not in {"-v", "--verbose", "-o", "--output-file"}]
    match words:
        case ["publish", _, *_]:
            call = {"method": "publish", "params": {"files": words[1:]}}
        case ["receive", path]:
            call = {"method": "receive", "params": {"output_file": path}}
        case ["download", url, path]:
            call = {"method": "download", "params": {"url": url, "output_file": path}}
        case ["upload", path, url]:
            call = {"method": "upload", "params": {"url": url, "file": path}}
        case _:
            sys.stderr.write(USAGE)
            sys.exit(2)
    import asyncio

    from shem.cli.gftpserver import once

    sys.exit(asyncio.run(once(Call(json.dumps({"jsonrpc": "2.0", "id": None, **call}).encode()), bool(verbose))))
