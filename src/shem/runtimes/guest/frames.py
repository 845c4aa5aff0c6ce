"""Frames between us and the guest agent: the Python side of ``guest-agent/wire.h``, which describes them.

``u32le length | u8 type | u32le job | payload``. What arrives was written by a program inside an untrusted sandbox:
everything is bounded and checked here and in :mod:`~shem.runtimes.guest.channel`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from shem.runtimes.base import Entry, EntryKind, ExitStatus, GuestBroken

EXEC, STDIN, STDIN_EOF, SIGNAL, CREDIT = 1, 2, 3, 4, 5
HELLO, STARTED, OUT, ERR, EXIT, FAILED = 128, 129, 130, 131, 132, 133

FLAG_STDIN, FLAG_BUILTIN = 1, 2

VERSION = 1
MAX_REQUEST = 1 << 20
MAX_ANSWER = 1 << 16
STDIN_WINDOW = 256 << 10
OUTPUT_WINDOW = 256 << 10
FRAME_COST = 64
"""Each output frame takes this much credit beside its bytes, so that many tiny frames are bounded too."""

HEADER = struct.Struct("<IBI")
_EXEC = struct.Struct("<IIHH")
_EXIT = struct.Struct("<iqqq")
_FAILED = struct.Struct("<iB")
_RECORD = struct.Struct("<BIQqHH")
_U32 = struct.Struct("<I")

STAGES = {1: "take the request", 2: "make a process", 3: "find the user", 4: "enter the directory", 5: "run"}
_KINDS: dict[int, EntryKind] = {ord("f"): "file", ord("d"): "dir", ord("l"): "link", ord("o"): "other"}


def pack(kind: int, job: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(len(payload), kind, job) + payload


def pack_u32(kind: int, job: int, value: int) -> bytes:
    return pack(kind, job, _U32.pack(value))


def pack_exec(
    job: int, argv: Sequence[str], env: Sequence[str], cwd: str, user: str, *, stdin: bool, builtin: bool = False
) -> bytes | None:
    """An EXEC frame, or ``None`` when the strings hold a NUL or are too many or too long together."""
    strings = [os.fsencode(text) for text in (user, cwd, *argv, *env)]
    if len(argv) > 0xFFFF or len(env) > 0xFFFF or any(b"\0" in text for text in strings):
        return None
    flags = (FLAG_STDIN if stdin else 0) | (FLAG_BUILTIN if builtin else 0)
    payload = _EXEC.pack(flags, OUTPUT_WINDOW, len(argv), len(env)) + b"\0".join(strings) + b"\0"
    return pack(EXEC, job, payload) if len(payload) <= MAX_REQUEST else None


def pack_signal(job: int, signal: int, *, tree: bool) -> bytes:
    return pack(SIGNAL, job, struct.pack("<iB", signal, tree))


def read_u32(payload: bytes) -> int:
    if len(payload) != 4:
        raise GuestBroken("The guest agent sent a number of the wrong size")
    return int(_U32.unpack(payload)[0])


def read_failed(payload: bytes) -> tuple[int, int]:
    """errno and stage."""
    if len(payload) != _FAILED.size:
        raise GuestBroken("The guest agent sent a failure of the wrong size")
    error, stage = _FAILED.unpack(payload)
    return int(error), int(stage)


def read_exit(payload: bytes) -> ExitStatus:
    if len(payload) != _EXIT.size:
        raise GuestBroken("The guest agent sent an exit of the wrong size")
    status, user_us, system_us, rss_kib = _EXIT.unpack(payload)
    cpu_s = max(user_us, 0) / 1e6 + max(system_us, 0) / 1e6
    rss = max(rss_kib, 0) * 1024
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return ExitStatus(code=128 + number, signal=number, cpu_s=cpu_s, max_rss=rss)
    if not os.WIFEXITED(status):
        raise GuestBroken("The guest agent sent an exit that is none")
    return ExitStatus(code=os.WEXITSTATUS(status), cpu_s=cpu_s, max_rss=rss)


class RecordReader:
    """Takes directory records apart as their bytes arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Entry]:
        self._buffer += data
        found: list[Entry] = []
        at = 0
        while (entry := self._one(at)) is not None:
            found.append(entry[0])
            at = entry[1]
        del self._buffer[:at]
        return found

    def rest(self) -> bytes:
        """What is left behind the records so far."""
        return bytes(self._buffer)

    def take_first(self, data: bytes) -> Entry | None:
        """Only one record is expected; what follows it is :meth:`rest`."""
        self._buffer += data
        entry = self._one(0)
        if entry is None:
            return None
        del self._buffer[: entry[1]]
        return entry[0]

    def _one(self, at: int) -> tuple[Entry, int] | None:
        if len(self._buffer) - at < _RECORD.size:
            return None
        kind, mode, size, mtime, path_length, link_length = _RECORD.unpack_from(self._buffer, at)
        start = at + _RECORD.size
        end = start + path_length + link_length
        if len(self._buffer) < end:
            return None
        if kind not in _KINDS:
            raise GuestBroken("The guest agent sent a directory entry of an unknown kind")
        path = os.fsdecode(bytes(self._buffer[start : start + path_length]))
        link = os.fsdecode(bytes(self._buffer[start + path_length : end]))
        if path.startswith("/") or ".." in path.split("/"):
            raise GuestBroken("The guest agent sent a directory entry that leads out of its directory")
        entry = Entry(path=path, kind=_KINDS[kind], size=size, mode=mode & 0o7777, mtime=mtime, link=link)
        return entry, end
