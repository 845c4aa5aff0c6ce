"""The suite again for ``bwrap`` without root: as the user 65534, in a process of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
USER = 65534

_BECOME = (
    f'mount --bind "$1" /mnt && shift && exec setpriv --reuid={USER} --regid={USER} --clear-groups --inh-caps=-all "$@"'
)


@pytest.fixture
def base() -> Iterator[Path]:
    """A place of that user; pytest's own directories are closed to others."""
    directory = Path(tempfile.mkdtemp(prefix="shem-user-"))
    if os.geteuid() == 0:
        os.chown(directory, USER, USER)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.root
@pytest.mark.slow
async def test_the_suite_as_a_user(base) -> None:
    """Python itself may live below a private home, so it is mounted where the user can see it."""
    if os.geteuid() != 0:
        pytest.skip("the suite runs as a user anyhow")
    packages = sysconfig.get_paths()["purelib"]
    python = Path("/mnt") / Path(sys.executable).resolve().relative_to(Path(sys.base_prefix).resolve())
    environment = {
        "HOME": str(base),
        "TMPDIR": str(base),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONHOME": "/mnt",
        "PYTHONPATH": f"{REPOSITORY / 'src'}:{packages}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    tests = ["-k", "bwrap", "-c", str(REPOSITORY / "pyproject.toml"), "--rootdir", str(REPOSITORY)]
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--mount", "sh", "-c", _BECOME, "sh", sys.base_prefix),
        *(str(python), "-m", "pytest", *tests, "--basetemp", str(base / "tests"), str(HERE)),
        env=environment,
        cwd="/",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    if b"Permission denied" in out and process.returncode == 126:
        pytest.skip("the repository cannot be read by another user")
    assert process.returncode == 0, out.decode(errors="replace")[-6000:]
