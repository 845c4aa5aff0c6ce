"""Who may read what we publish: the providers that we have an approved agreement with.

A file's name is the hash of its content, told only to those who must fetch it; this keeps them from telling others.
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
        self._open: dict[str, set[str]] = {}
        for agreement in market.approved():
            self._changed(agreement, agreement.state)
        market.on_agreement(self._changed)

    def may_read(self, peer: NodeId, _file_id: str) -> bool:
        """Whether ``peer`` works for us now."""
        return peer in self._open

    def _changed(self, agreement: Agreement, state: str) -> None:
        if agreement.role != "Requestor":
            return
        provider, key = agreement.provider_id, agreement.agreement_id
        if state == "Approved":
            self._open.setdefault(provider, set()).add(key)
        elif provider in self._open:
            self._open[provider].discard(key)
            if not self._open[provider]:
                del self._open[provider]
