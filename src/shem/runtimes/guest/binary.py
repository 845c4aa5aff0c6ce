"""Where the agent's binary for this machine is."""

from __future__ import annotations

import platform
from pathlib import Path

from shem.errors import Misconfigured

ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


def architecture() -> str:
    """``x86_64`` or ``aarch64``. Raises :class:`Misconfigured` on any other machine."""
    machine = platform.machine().lower()
    if machine not in ARCHITECTURES:
        raise Misconfigured(f"There is no guest agent for {machine} machines", code="no_guest_agent")
    return ARCHITECTURES[machine]


def agent_binary() -> Path:
    """The static executable that runs as the first process of every sandbox."""
    return Path(__file__).parent / "bin" / f"agent-{architecture()}"
