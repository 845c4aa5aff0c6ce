"""The process that unpacks layers, so that neither its Python nor its disk work stands in the way of the event loop.

It reads jobs from its standard input, one JSON line each, and writes answers to its standard output, until the input ends.
It has no secrets (a bare environment), a memory limit, and dies with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import BinaryIO

import msgspec

from shem.errors import ShemError
from shem.runtimes.images.errors import ImageStoreFailed, ImageTooLarge, ImageUnusable
from shem.runtimes.images.extract import Unpacked
from shem.runtimes.images.inroot import sync_file_system
from shem.runtimes.images.jobs import (
    RECORD,
    SETTLED,
    TREE,
    Answer,
    Done,
    Failed,
    Job,
    LayerRecord,
    PatchJob,
    RemoveJob,
    SettleJob,
    SquashfsJob,
    UnpackJob,
    Working,
    read_record,
    this_boot,
)
from shem.runtimes.images.layer import unpack, unpack_squashfs
from shem.runtimes.images.patch import make_patch

_MEMORY = 2 << 30
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve jobs from stdin."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    os.umask(0)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = sys.stdout.buffer
    for line in sys.stdin.buffer:
        job = msgspec.json.decode(line, type=Job)
        _answer(out, _do(job, out))


def _answer(out: BinaryIO, answer: Answer) -> None:
    out.write(msgspec.json.encode(answer) + b"\n")
    out.flush()


def _do(job: Job, out: BinaryIO) -> Answer:
    try:
        if isinstance(job, UnpackJob):
            _unpack(job, out)
        elif isinstance(job, SquashfsJob):
            _unpack_squashfs(job)
        elif isinstance(job, PatchJob):
            _patch(job)
        elif isinstance(job, SettleJob):
            _settle(job)
        else:
            _remove(job)
    except ShemError as error:
        return Failed(kind=type(error).__name__, message=error.message, code=error.code, hint=error.hint)
    except OSError as error:
        return _failed(_disk(error))
    except (MemoryError, RecursionError):
        return _failed(ImageTooLarge("an image needs more memory to unpack than is allowed"))
    except Exception as error:  # noqa: BLE001
        # a door: the outermost frame of the worker process, whose caller must get an answer to every job
        traceback.print_exc()
        return _failed(ImageUnusable(f"an image cannot be unpacked: {type(error).__name__}"))
    return Done()


def _failed(error: ShemError) -> Failed:
    return Failed(kind=type(error).__name__, message=error.message, code=error.code, hint=error.hint)


def _disk(error: OSError) -> ShemError:
    hint = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "the provider's disk is full: make room, or lower the size of its image store"
    elif error.errno == errno.ENOSYS:
        hint = "images need Linux 5.6 or newer (openat2)"
    elif error.errno == errno.EOPNOTSUPP:
        hint = "the image store must be on a file system with extended attributes, such as ext4 or xfs"
    return ImageStoreFailed(f"unpacking failed on the provider's disk: {error.strerror or error}", hint=hint)


def _unpack(job: UnpackJob, out: BinaryIO) -> None:
    directory = Path(job.directory)
    tree = directory / TREE
    tree.mkdir(mode=0o755)
    report = unpack(
        Path(job.blob),
        job.offset,
        job.size,
        digest=job.digest,
        diff_id=job.diff_id,
        into=tree,
        max_bytes=job.max_bytes,
        max_files=job.max_files,
        progress=lambda done: _answer(out, Working(done)),
    )
    _record(directory, job.diff_id, report)


def _unpack_squashfs(job: SquashfsJob) -> None:
    directory = Path(job.directory)
    tree = directory / TREE
    tree.mkdir(mode=0o755)
    report = unpack_squashfs(Path(job.image), into=tree, max_bytes=job.max_bytes, max_files=job.max_files)
    _record(directory, job.name, report)


def _patch(job: PatchJob) -> None:
    directory, layer = Path(job.directory), Path(job.layer)
    tree = directory / TREE
    tree.mkdir(mode=0o755)
    lower = [Path(each) / TREE for each in job.lower]
    try:
        report = make_patch(lower, layer / TREE, read_record(layer).report, tree, max_bytes=job.max_bytes)
    except (FileExistsError, NotADirectoryError):
        raise ImageUnusable("a layer's links contradict each other") from None
    _record(directory, job.name, report)


def _record(directory: Path, name: str, report: Unpacked) -> None:
    record = LayerRecord(name=name, boot=this_boot(), report=report)
    (directory / RECORD).write_bytes(msgspec.json.encode(record))


def _settle(job: SettleJob) -> None:
    there = [directory for directory in map(Path, job.directories) if directory.is_dir()]
    if there:
        fd = os.open(there[0], os.O_RDONLY | os.O_DIRECTORY)
        try:
            sync_file_system(fd)
        finally:
            os.close(fd)
    for directory in there:
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            (directory / SETTLED).touch()


def _remove(job: RemoveJob) -> None:
    directory = Path(job.directory)
    if os.geteuid() != 0:
        # What an image made read-only cannot be emptied by its owner, unless he says so first.
        for path, names, _ in os.walk(directory):
            for name in names:
                with contextlib.suppress(OSError):
                    below = os.path.join(path, name)  # noqa: PTH118
                    if not os.path.islink(below):  # noqa: PTH114
                        os.chmod(below, 0o700)  # noqa: PTH101
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
