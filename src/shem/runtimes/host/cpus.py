"""Which CPUs a sandbox may use, where no control group shares their time out.

Each sandbox is given whole CPUs, as many as its limit rounded up, of those that we may use ourselves: the ones that
fewest of this process's other sandboxes have. Several agents on one machine do not know of each other, so ties are
broken by chance. What is inside inherits it, and the system call that would widen it again is denied there.
"""

from __future__ import annotations

import math
import os
import random
from collections import Counter

from shem.runtimes.host.watch import descendants

_users: Counter[int] = Counter()


class PinnedCpus:
    """CPUs lent to one sandbox, until :meth:`give_back`."""

    def __init__(self, cpus: float) -> None:
        allowed = sorted(os.sched_getaffinity(0))
        random.shuffle(allowed)
        allowed.sort(key=lambda cpu: _users[cpu])
        self.cpus = frozenset(allowed[: max(1, math.ceil(cpus))])
        self._lent = True
        _users.update(self.cpus)

    def hold(self, first: int) -> None:
        """Keep a sandbox's first process, and whatever it has started already, to these CPUs. Raises ``OSError``."""
        os.sched_setaffinity(first, self.cpus)
        for pid in descendants(first):
            try:
                os.sched_setaffinity(pid, self.cpus)
            except ProcessLookupError:
                continue

    def give_back(self) -> None:
        """Others may be given them; harmless when repeated."""
        if self._lent:
            self._lent = False
            _users.subtract(self.cpus)
