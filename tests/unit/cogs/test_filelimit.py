"""Room for open files, as far as the machine gives it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from shem.cogs.filelimit import raise_file_limit
soft, hard = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
raise_file_limit()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("soft", "hard", "then"), [(100, 300, 300), (300, 300, 300)])
def test_it_is_raised_to_what_is_allowed(soft: int, hard: int, then: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(soft), str(hard)], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.split() == [str(then), str(hard)]
