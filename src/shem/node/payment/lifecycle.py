"""States of debit notes and invoices, and what moves them. Pure: a table and one function over it.

Facts are idempotent: hearing one twice changes nothing, because peers deliver at least once. A fact that comes at the
wrong moment (cancelling what was accepted, say) raises :class:`WrongMoment` and changes nothing either.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from shem.errors import Conflict


class State(StrEnum):
    """As the API names them. ``ISSUED`` is seen by the provider alone, until the requestor's node has the document."""

    ISSUED = "ISSUED"
    RECEIVED = "RECEIVED"
    ACCEPTED = "ACCEPTED"
    REJECTED = "REJECTED"
    FAILED = "FAILED"
    SETTLED = "SETTLED"
    CANCELLED = "CANCELLED"


class Fact(StrEnum):
    """What may happen to a document."""

    DELIVERED = "delivered"
    REFUSED = "refused"
    """The requestor's node will not take it: it is no document of this agreement, or contradicts itself."""
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    PAID = "paid"
    """The transfers that cover it are final on their chain."""


LIVE = frozenset({State.ISSUED, State.RECEIVED, State.ACCEPTED, State.SETTLED})
"""States in which a document asks for its money; the others take the request back."""
FINAL = frozenset({State.REJECTED, State.FAILED, State.SETTLED, State.CANCELLED})

_S, _F = State, Fact
TABLE: Mapping[tuple[State, Fact], State] = MappingProxyType(
    {
        (_S.ISSUED, _F.DELIVERED): _S.RECEIVED,
        (_S.ISSUED, _F.REFUSED): _S.FAILED,
        # The answer may overtake the acknowledgement.
        (_S.ISSUED, _F.ACCEPTED): _S.ACCEPTED,
        (_S.ISSUED, _F.REJECTED): _S.REJECTED,
        (_S.ISSUED, _F.CANCELLED): _S.CANCELLED,
        (_S.RECEIVED, _F.DELIVERED): _S.RECEIVED,
        (_S.RECEIVED, _F.ACCEPTED): _S.ACCEPTED,
        (_S.RECEIVED, _F.REJECTED): _S.REJECTED,
        (_S.RECEIVED, _F.CANCELLED): _S.CANCELLED,
        (_S.ACCEPTED, _F.DELIVERED): _S.ACCEPTED,
        (_S.ACCEPTED, _F.ACCEPTED): _S.ACCEPTED,
        (_S.ACCEPTED, _F.PAID): _S.SETTLED,
        (_S.SETTLED, _F.DELIVERED): _S.SETTLED,
        (_S.SETTLED, _F.ACCEPTED): _S.SETTLED,
        (_S.SETTLED, _F.PAID): _S.SETTLED,
        (_S.REJECTED, _F.DELIVERED): _S.REJECTED,
        (_S.REJECTED, _F.REJECTED): _S.REJECTED,
        (_S.CANCELLED, _F.DELIVERED): _S.CANCELLED,
        (_S.CANCELLED, _F.CANCELLED): _S.CANCELLED,
        (_S.FAILED, _F.REFUSED): _S.FAILED,
    }
)


class WrongMoment(Conflict):
    """The document is past that."""

    default_code = "document_state"


def follow(state: State, fact: Fact) -> State:
    """The state after ``fact``. Raises :class:`WrongMoment`."""
    found = TABLE.get((state, fact))
    if found is None:
        raise WrongMoment(f"a document that is {state} cannot be {fact}", state=str(state))
    return found
