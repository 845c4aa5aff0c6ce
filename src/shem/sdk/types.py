"""The nouns of the SDK's signatures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from shem.errors import ShemError

if TYPE_CHECKING:
    from shem.sdk.rental import Rental

T = TypeVar("T")
R = TypeVar("R")

TaskFunction: TypeAlias = "Callable[[Rental, T], Awaitable[R]]"
"""What ``Golem.map`` runs on each item: it gets the machine and the item, and returns the result."""
SetupFunction: TypeAlias = "Callable[[Rental], Awaitable[Any]]"
"""Runs once on each new machine before its first task (to upload what all tasks share, say)."""
SyncTaskFunction: TypeAlias = Callable[[Any, T], R]
SyncSetupFunction: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True)
class Need:
    """What one machine must have. Providers that cannot give it do not match; the sandbox is held to it."""

    memory_gib: float = 0.5
    cpu_threads: int = 1
    storage_gib: float = 1.0
    pids: int = 512
    runtime: str = "oci"
    """``oci`` runs docker images."""
    constraints: str = ""
    """A further filter in the market's constraint language, such as ``(golem.node.geo.country_code=DE)``."""


@dataclass(frozen=True)
class Result:
    """How a command ended. ``stdout`` and ``stderr`` are complete; ``text`` decodes stdout."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    message: str = ""

    @property
    def text(self) -> str:
        """Stdout as text (UTF-8; bytes that are not are replaced)."""
        return self.stdout.decode("utf-8", "replace")


class CommandFailed(ShemError):
    """A command of the user's ended badly on a machine. ``result`` has its output.

    ``code`` is the reason in a word: ``nonzero_exit``, ``command_not_found``, ``out_of_memory``, ``timed_out``,
    ``output_limit``, ``transfer_failed`` …
    """

    default_code = "command_failed"

    def __init__(self, message: str, result: Result, *, code: str = "", hint: str = "") -> None:
        super().__init__(message, code=code, hint=hint)
        self.result = result


class TaskFailed(ShemError):
    """A task was given up: every attempt failed. ``__cause__`` is what the last one failed with."""

    default_code = "task_failed"
