"""The committed agent binaries are those of the committed source."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[3] / "tools/build_guest.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_guest", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_manifest_names_this_source(tool) -> None:
    assert tool.check() == []


@pytest.mark.slow
def test_the_source_gives_these_bytes() -> None:
    compilers = TOOL.parents[1] / ".build" / "bin" / "python"
    if not compilers.exists():
        pytest.skip("the compiler is not installed (tools/builders.sh does it, and so does make slow)")
    done = subprocess.run([str(compilers), str(TOOL), "--compare"], check=False)
    assert done.returncode == 0
