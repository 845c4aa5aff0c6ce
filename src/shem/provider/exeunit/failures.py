"""How a command's failure reads to the requestor.

A result carries a return code and one line of text. The text begins with a stable code and a colon
(``out_of_memory: the command used more than …``), so that programs can tell failures apart while people, and clients
that know nothing of codes, read a sentence. What existing clients know by its words keeps them, without a code: errors of
the order of commands, a program's exit code, a path that is not there.
"""

from __future__ import annotations

import errno
import os

from shem.errors import NotFound, PeerFailed, ShemError, WorkFailed
from shem.runtimes.base import CommandNotStarted, GuestFileError

MAX_MESSAGE = 4000

NONZERO_EXIT = "nonzero_exit"
COMMAND_NOT_FOUND = "command_not_found"
OUT_OF_MEMORY = "out_of_memory"
TIMED_OUT = "timed_out"
OUTPUT_LIMIT = "output_limit"
DISK_FULL = "disk_full"
PATH_NOT_FOUND = "path_not_found"
TRANSFER_FAILED = "transfer_failed"
IMAGE_NOT_FOUND = "image_not_found"
IMAGE_UNREACHABLE = "image_unreachable"
CANCELLED = "cancelled"
SANDBOX_DIED = "sandbox_died"
UNSUPPORTED = "unsupported"
NO_ENTRYPOINT = "no_entrypoint"


_KNOWN_WORDS = ("ExeScript command exited with code", "path not found in container:")


class CommandFailed(WorkFailed):
    """A command of a script did not succeed. ``return_code`` is never 0; an empty ``code`` leaves the bare text."""

    default_code = "command_failed"

    def __init__(self, code: str, text: str, *, return_code: int = 1) -> None:
        super().__init__(text, code=code)
        self.code = code
        self.return_code = return_code or 1

    @property
    def line(self) -> str:
        """What the result's ``message`` says."""
        known = not self.code or self.message.startswith(_KNOWN_WORDS)
        text = self.message if known else f"{self.code}: {self.message}"
        return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def nonzero_exit(code: int) -> CommandFailed:
    """The program ran and says that it failed."""
    return CommandFailed(NONZERO_EXIT, f"ExeScript command exited with code {code}", return_code=code)


def not_started(error: CommandNotStarted, program: str) -> CommandFailed:
    """The program could not be run at all."""
    number = error.details.get("errno")
    if number in (errno.ENOENT, errno.ENOTDIR):
        return CommandFailed(COMMAND_NOT_FOUND, f"there is no program {program[:200]!r} in the image", return_code=127)
    why = os.strerror(number) if isinstance(number, int) else error.message
    return CommandFailed("not_executable", f"{program[:200]!r} cannot be run: {why}", return_code=126)


def file_failure(error: GuestFileError, path: str) -> CommandFailed:
    """A file inside the sandbox could not be read or written."""
    number = error.details.get("errno")
    if number in (errno.ENOENT, errno.ENOTDIR):
        return CommandFailed(PATH_NOT_FOUND, f"path not found in container: {path[:500]}")
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return CommandFailed(DISK_FULL, f"the sandbox's disk is full (writing {path[:500]})")
    why = os.strerror(number) if isinstance(number, int) else error.message
    return CommandFailed(TRANSFER_FAILED, f"{path[:500]}: {why}")


def as_failure(error: ShemError, code: str) -> CommandFailed:
    """Another part's error as a command's, under a code of ours."""
    if isinstance(error, CommandFailed):
        return error
    return CommandFailed(code, error.message + (f" ({error.hint})" if error.hint else ""))


def image_failure(error: ShemError) -> CommandFailed:
    """Why there is no image: codes of the image store stay; a file that is not there is an image that is not there, and a
    connection that was lost on the way says nothing about the image."""
    if error.code.startswith(("image_", "registry_")):
        return as_failure(error, error.code)
    if isinstance(error, PeerFailed):
        return as_failure(error, IMAGE_UNREACHABLE)
    return as_failure(error, IMAGE_NOT_FOUND if isinstance(error, NotFound) else "image_failed")
