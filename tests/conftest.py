"""What every test starts from."""

from __future__ import annotations

import os
import signal
import sys

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

DEVNET = "tests/e2e/"
ALONE = frozenset(
    f"{DEVNET}test_{name}.py" for name in ("bad_luck", "cli_alone", "devnet_parts", "keys", "money_kills", "yagna")
)
"""Files there that have no part in the network that the others share."""

RECURSION_LIMIT = 1000

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what runs in its background. Programs under test would inherit that, and never hear of Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _python_as_a_node_has_it() -> None:
    """Some libraries that tests import (py-evm, py_ecc) raise the recursion limit past what the C stack carries.

    A node imports none of them, so deep nesting from a peer is an error there, and has to be one here.
    """
    sys.setrecursionlimit(RECURSION_LIMIT)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked ``root`` say why they do not run for others."""
    if item.get_closest_marker("root") is not None and os.geteuid() != 0:
        pytest.skip("needs root: it makes users, cgroups or loop mounts")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """With several workers (``-n 2``): a file stays together, and so do all that share the one devnet, on one worker."""
    config.option.loadscopereorder = False  # the order is ours
    return _ByPlace(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits most goes first: others use the processors meanwhile, and nothing long is left for the end."""
    items.sort(key=lambda item: _rank(item.nodeid))


class _ByPlace(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return DEVNET if file.startswith(DEVNET) and file not in ALONE else file


def _rank(nodeid: str) -> int:
    file = nodeid.partition("::")[0]
    return 2 - file.startswith(DEVNET) - (file.startswith(DEVNET) and file not in ALONE)
