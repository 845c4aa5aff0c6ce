"""The market: offers and demands, who suits whom, and the agreements that come of it."""

from shem.node.market.config import MarketConfig
from shem.node.market.lifecycle import Agreement
from shem.node.market.service import Market

__all__ = ["Agreement", "Market", "MarketConfig"]
