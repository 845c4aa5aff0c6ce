"""One process at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shem.cogs.locks import try_lock

HOLD = "import sys, pathlib; from shem.cogs.locks import try_lock; print(bool(try_lock(pathlib.Path(sys.argv[1]))), flush=True)"


def test_one_holds_it_until_it_is_given_back(tmp_path: Path) -> None:
    unlock = try_lock(tmp_path / "lock")
    assert unlock is not None
    assert try_lock(tmp_path / "lock") is None
    unlock()
    again = try_lock(tmp_path / "lock")
    assert again is not None
    again()


def test_it_goes_with_the_process_and_children_do_not_keep_it(tmp_path: Path) -> None:
    nowhere = "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL"  # else our pipes are open for as long as it lives
    child = f"import subprocess; left = subprocess.Popen(['sleep', '60'], close_fds=False, {nowhere})"
    code = f"{HOLD}; {child}; print('', left.pid, flush=True); import os; os.kill(os.getpid(), 9)"
    holder = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "lock")], capture_output=True, text=True, check=False
    )
    assert holder.stdout.startswith("True")
    try:
        unlock = try_lock(tmp_path / "lock")
        assert unlock is not None
        unlock()
    finally:
        os.kill(int(holder.stdout.split()[-1]), signal.SIGKILL)


def test_a_file_that_cannot_be_opened_is_an_error_and_not_a_lock(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="directory"):
        try_lock(tmp_path)
