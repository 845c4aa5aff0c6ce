"""What every test starts from."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

RECURSION_LIMIT = 1000


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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers (``-n 2``): a file stays together, and so do all that share the one devnet, which go first."""
    whole = Path(__file__).parent / "e2e"
    for item in items:
        shared = whole in item.path.parents
        item.add_marker(pytest.mark.xdist_group("e2e" if shared else str(item.path)))
    items.sort(key=lambda item: whole not in item.path.parents)
