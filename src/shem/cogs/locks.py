"""One process at a time: an exclusive lock on a file, given back when the holder says so or ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path


def try_lock(path: Path) -> Callable[[], None] | None:
    """Lock ``path`` (made if missing); what gives the lock back, or ``None`` while somebody else has it.

    The file stays when the lock goes: deleting it would let two hold a lock, each on a file of its own. Children do not
    inherit the lock. Raises ``OSError`` when the file cannot be opened.
    """
    handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:
        os.close(handle)
        raise
    return lambda: os.close(handle)
