"""The market's limits and time spans. Defaults are those of the original daemon where it has them."""

from __future__ import annotations

import msgspec


class MarketConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Frozen at start; seconds and counts."""

    subscription_ttl_s: float = 3600.0
    """How long an offer or demand lives without its agent asking for events. An offer whose agent asks is prolonged."""
    proposal_ttl_s: float = 24 * 3600.0
    """Proposals older than this cannot be answered, and are swept."""
    max_validity_s: float = 30 * 24 * 3600.0
    """How far ahead an agreement's ``validTo`` (the time left for approval) may lie."""
    scan_idle_s: float = 300.0
    max_scans: int = 200
    max_subscriptions: int = 200
    """Live offers, and live demands, of one identity."""
    max_offers: int = 150_000
    """Offers of others that this node keeps."""
    max_offers_per_issuer: int = 200
    max_events: int = 1_000
    """Unread events of one subscription."""
    max_negotiations: int = 300
    """Negotiations that one requestor may open with one offer in an hour."""
    max_outbox: int = 10_000
    """Undelivered messages to all peers, beyond which courtesies are dropped."""
    news_burst: int = 20_000
    """Offers and statements of one peer that are verified without delay; then ``news_per_s``."""
    news_per_s: float = 500.0
    outbox_ttl_s: float = 7 * 24 * 3600.0
    rpc_timeout_s: float = 10.0
    retry_first_s: float = 0.5
    retry_max_s: float = 60.0
    default_events: int = 20
    most_events: int = 100
    """Of one subscription in one answer: when no number is asked for, and at most."""
