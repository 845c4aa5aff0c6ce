"""Who may read what an identity of this node publishes: the providers that it has an approved agreement with.

A file's name is told only to those who must fetch or fill it; this keeps them from telling others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from shem.node.market.lifecycle import Agreement
from shem.terms.ids import NodeId


class AgreementBook(Protocol):
    """What is needed of the market."""

    def approved(self) -> Iterable[Agreement]: ...

    def on_agreement(self, handler: Callable[[Agreement, str], None]) -> None: ...


class Readers:
    """Follows the agreements of this node's requestors. Make it before the market starts."""

    def __init__(self, market: AgreementBook) -> None:
        self._open: dict[tuple[str, str], set[str]] = {}  # agreements, by provider and requestor
        for agreement in market.approved():
            self._changed(agreement, agreement.state)
        market.on_agreement(self._changed)

    def may_read(self, peer: NodeId, owner: str) -> bool:
        """Whether ``peer`` works for ``owner`` now."""
        return (peer, owner) in self._open

    def _changed(self, agreement: Agreement, state: str) -> None:
        if agreement.role != "Requestor":
            return
        pair, key = (agreement.provider_id, agreement.requestor_id), agreement.agreement_id
        if state == "Approved":
            self._open.setdefault(pair, set()).add(key)
        elif pair in self._open:
            self._open[pair].discard(key)
            if not self._open[pair]:
                del self._open[pair]
