"""Shape of ``/shem-api/v1/payment/cover``: how sure a provider may be of an agreement's money. Amounts are decimal strings."""

from __future__ import annotations

from shem.wire.base import Timestamp, Wire


class Cover(Wire):
    """One agreement's money as its provider's node sees it now. What is not paid ``by_channel`` has none of the optional
    fields: its payments are looked at when they are claimed."""

    agreement_id: str
    platform: str
    by_channel: bool
    finality_sec: float
    """How long it usually takes until a payment on this platform is final."""
    version: str
    """Give it as ``after`` to be told of the next change."""
    started: bool | None = None
    """Enough was reserved for it to start; it may be given an activity."""
    lacks: str | None = None
    """Why it has not started, in a sentence."""
    expected_until: Timestamp | None = None
    """If nothing is reserved by then, nothing will be."""
    wanted: str | None = None
    least: str | None = None
    accepted: str | None = None
    room: str | None = None
    """What the requestor may still accept beyond ``accepted``: this agreement's part of what is reserved."""
    credit: str | None = None
    """So much may be done beyond that, as this node's owner has decided."""
    until: Timestamp | None = None
    """After this nothing can be accepted any more; absent while nothing is reserved."""
