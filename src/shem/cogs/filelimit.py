"""How many files this process may have open. Each connection is one, and the usual soft limit of 1024 is soon reached."""

from __future__ import annotations

import resource

ENOUGH = 1 << 16


def raise_file_limit() -> None:
    """As many as :data:`ENOUGH`, or as the machine allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
