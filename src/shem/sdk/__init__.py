"""The requestor's library: :class:`Golem` rents machines and runs tasks on them."""

from shem.sdk.golem import Golem
from shem.sdk.purse import BudgetExceeded
from shem.sdk.rental import Rental
from shem.sdk.types import CommandFailed, Need, Result, TaskFailed

__all__ = ["BudgetExceeded", "CommandFailed", "Golem", "Need", "Rental", "Result", "TaskFailed"]
