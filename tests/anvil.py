"""Where the real node of a chain is: anvil, which ``tools/interop.sh`` installs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

INSTALLED = Path(__file__).parents[1] / ".interop/anvil/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil"


def anvil_path() -> str:
    """The program; skips the test where there is none."""
    path = os.environ.get("SHEM_ANVIL") or (str(INSTALLED) if INSTALLED.exists() else shutil.which("anvil"))
    if not path:
        pytest.skip("anvil is not installed (tools/interop.sh does it; or set SHEM_ANVIL): nothing is compared with it")
    return path
