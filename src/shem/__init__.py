"""Shem: a decentralised marketplace for compute.

``from shem import Golem`` is the requestor's way in; names load when they are first used, so that ``import shem`` is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shem.version import VERSION

if TYPE_CHECKING:
    from shem.sdk import BudgetExceeded, CommandFailed, Golem, Need, Rental, Result, TaskFailed

__version__ = VERSION
__all__ = ["BudgetExceeded", "CommandFailed", "Golem", "Need", "Rental", "Result", "TaskFailed", "__version__"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from shem import sdk

        return getattr(sdk, name)
    raise AttributeError(f"module 'shem' has no attribute {name!r}")
