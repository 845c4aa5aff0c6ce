"""Read a stranger's squashfs: never by the kernel, and by a program only where it can do no harm.

``sqfs2tar`` (squashfs-tools-ng) turns the file into a tar, which our own unpacker believes as little as any other. It is C
code over a stranger's bytes, so it runs in a cage of its own, made by ``bwrap`` and gone with it: no network, no files but
the image, itself and the libraries it is linked to, all read-only; no privileges, the system calls of a sandbox, limits on
memory, CPU time and what it may write, and an end when it falls silent.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO, BinaryIO, cast

from shem.cogs.ociformat import ImageUnusable
from shem.errors import Misconfigured, ShemError
from shem.runtimes.bwrap.binary import find_bwrap
from shem.runtimes.guest.binary import architecture
from shem.runtimes.images.errors import ImageStoreFailed, ImageUnsupported
from shem.runtimes.images.squashfs import find_tool
from shem.runtimes.seccomp.bpf import compile_filter

_IMAGE = "/image"
# KiB of memory, seconds of CPU, half KiB of complaints; one that cannot be set is stricter already
_LIMITS = ("-v 2097152", "-t 1200", "-f 32768", "-n 64", "-c 0")
_LIMITED = "{ " + " ".join(f"ulimit {each};" for each in _LIMITS) + ' } 2>/dev/null; exec "$@"'
_SILENCE_S = 120.0
_TIME_S = 3600.0
_BUFFER = 1 << 18
_PIPE = 1 << 20

_EMPTY = bytes.fromhex(
    "68737173010000000000000000000200000000000100110050020100040000000000000000000000850000000000000"
    "07d00000000000000ffffffffffffffff60000000000000007700000000000000ffffffffffffffffffffffffffffffff"
    "150078da636478cbc80005300613103343d9001c6700f6048000000000770000000000000000000000"
)
"""A squashfs with nothing in it."""


@contextlib.contextmanager
def tar_of(image: Path) -> Iterator[BinaryIO]:
    """The tar of the squashfs at the start of ``image``, as long as it may be: the reader counts.

    What was read is good only when this ends without an error. Raises (reading does, too) :class:`ImageUnusable` when the
    squashfs is damaged or takes too long, :class:`ImageUnsupported` when this machine lacks a part, and
    :class:`ImageStoreFailed` when the cage cannot be made.
    """
    command = _command(image)
    with tempfile.TemporaryFile() as said, _start(command, said) as process:
        assert process.stdout is not None
        try:
            tar = io.BufferedReader(_Pipe(process.stdout), _BUFFER)
            yield cast(BinaryIO, tar)
            while tar.read(_BUFFER):  # a program that cannot write says that it failed
                pass
            status = process.wait(_SILENCE_S)
        except subprocess.TimeoutExpired:
            raise ImageUnusable("the image's squashfs takes too long to read") from None
        finally:
            # its namespace of processes goes with it
            process.kill()
            process.wait()
        if status:
            said.seek(0)
            raise _failure(status, said.read(2000))


def check_parts() -> None:
    """Look for the programs that reading needs. Raises :class:`ImageUnsupported`."""
    _command(Path(_IMAGE))


def gvmi_available() -> str | None:
    """Why this machine cannot read Golem image files, or ``None`` when it can: found by reading one, in some 20 ms."""
    try:
        with tempfile.NamedTemporaryFile() as file:
            file.write(_EMPTY)
            file.flush()
            with tar_of(Path(file.name)) as tar:
                if not tar.read(512):
                    return "sqfs2tar reads nothing"
    except ShemError as error:
        return error.message
    except OSError as error:
        return f"an image file cannot be read: {error.strerror or error}"
    return None


class _Pipe(io.RawIOBase):
    """What the caged program writes, with an end to our patience."""

    def __init__(self, pipe: IO[bytes], silence_s: float = _SILENCE_S) -> None:
        self._fd = pipe.fileno()
        self._silence_s = silence_s
        self._end = time.monotonic() + _TIME_S
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        patience = min(self._silence_s, self._end - time.monotonic())
        if patience <= 0 or not self._poll.poll(patience * 1000):
            raise ImageUnusable("the image's squashfs takes too long to read")
        return os.readv(self._fd, [buffer])


def _command(image: Path) -> list[str]:
    bwrap = find_bwrap()
    if bwrap is None:
        raise ImageUnsupported("there is no usable bwrap on this machine to read image files in")
    try:
        tool = find_tool("sqfs2tar")
        parts = _linked(tool)
    except Misconfigured as error:
        raise ImageUnsupported(error.message, hint=error.hint) from None
    command = [str(bwrap), "--unshare-user-try", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    command += ["--unshare-cgroup-try", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    for inside, outside in parts:
        command += ["--ro-bind", outside, inside]
    command += ["--ro-bind", str(image.resolve()), _IMAGE, "--remount-ro", "/", "--chdir", "/"]
    # without a name for the root its own attributes would be lost
    return [*command, "--", str(tool), "--root-becomes", ".", _IMAGE]


@cache
def _linked(tool: Path) -> tuple[tuple[str, str], ...]:
    """The files that ``tool`` needs to run: where it looks for each, and where it is."""
    try:
        done = subprocess.run(
            ["ldd", str(tool)], capture_output=True, text=True, timeout=30, check=False, env={"PATH": os.defpath}
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ImageUnsupported(f"the libraries of {tool} cannot be found: {error}") from None
    found = {str(tool)}
    if "statically linked" not in done.stdout + done.stderr:
        found.update(re.findall(r"(?:=>|^)\s+(/\S+)", done.stdout, re.MULTILINE))
    return tuple((inside, str(Path(inside).resolve())) for inside in sorted(found) if Path(inside).exists())


def _start(command: list[str], said: IO[bytes]) -> subprocess.Popen[bytes]:
    seccomp = os.memfd_create("seccomp")
    try:
        os.write(seccomp, compile_filter(architecture(), ("memfd_create",)))
        os.lseek(seccomp, 0, os.SEEK_SET)
        options = ["--seccomp", str(seccomp)]
        return subprocess.Popen(
            ["sh", "-c", _LIMITED, "sh", command[0], *options, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            bufsize=0,
            pipesize=_PIPE,
            pass_fds=(seccomp,),
            env={"PATH": os.defpath},
        )
    except Misconfigured as error:
        raise ImageUnsupported(error.message) from None
    except OSError as error:
        raise ImageStoreFailed(f"bwrap cannot be started: {error.strerror}") from None
    finally:
        os.close(seccomp)


def _failure(status: int, said: bytes) -> ShemError:
    text = " ".join(re.sub(rb"[^\x20-\x7e\n]", b"?", said).decode().replace(f"{_IMAGE}: ", "").split())[:300]
    if text.startswith("bwrap:"):
        return ImageStoreFailed(f"the sandbox that image files are read in cannot be made: {text}")
    return ImageUnusable(f"the image's squashfs cannot be read: {text or f'sqfs2tar ended with status {status}'}")
