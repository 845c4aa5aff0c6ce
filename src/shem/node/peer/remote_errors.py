"""How an error of a handler reaches the caller at the other node.

An error of our families travels as (family, code, message, hint) and is raised at the caller as a class that is both
:class:`PeerRefused` and that family, so ``except NotFound`` works across the network. Anything else is a fault of the
answering node: it is logged and counted there and the caller learns nothing but ``internal``. A peer's words are cut to
size and freed of control characters before they may reach a log or a terminal.
"""

from __future__ import annotations

import msgspec

from shem import errors
from shem.errors import PeerFailed, ShemError

MAX_TEXT = 1000
MAX_CODE = 100


class PeerUnreachable(PeerFailed):
    """There is no way to the peer, or the connection broke before it answered (``peer_lost``: it may have acted)."""

    default_code = "peer_unreachable"


class PeerRefused(PeerFailed):
    """The peer answered with an error. ``code``, ``message`` and ``hint`` are the peer's."""

    default_code = "peer_refused"


class RemoteRefused(PeerRefused, errors.Refused):
    """The peer says that the request must change."""


class RemoteNotAllowed(RemoteRefused, errors.NotAllowed):
    """The peer says that somebody else may, but not we."""


class RemoteNotFound(RemoteRefused, errors.NotFound):
    """The peer knows no such thing."""


class RemoteConflict(RemoteRefused, errors.Conflict):
    """The peer says that it is the wrong moment."""


class RemoteGone(RemoteRefused, errors.Gone):
    """The peer says that it is too late."""


class RemoteMoneyShort(PeerRefused, errors.MoneyShort):
    """The peer lacks the money."""


class RemoteWorkFailed(PeerRefused, errors.WorkFailed):
    """The workload failed at the peer."""


# Most specific first: the first match names the family.
_FAMILIES: list[tuple[str, type[BaseException], type[PeerRefused]]] = [
    ("not_found", errors.NotFound, RemoteNotFound),
    ("conflict", errors.Conflict, RemoteConflict),
    ("gone", errors.Gone, RemoteGone),
    ("not_allowed", errors.NotAllowed, RemoteNotAllowed),
    ("refused", errors.Refused, RemoteRefused),
    ("money_short", errors.MoneyShort, RemoteMoneyShort),
    ("work_failed", errors.WorkFailed, RemoteWorkFailed),
    ("peer_failed", errors.PeerFailed, PeerRefused),
]
_BY_NAME = {name: rebuilt for name, _, rebuilt in _FAMILIES}


class _Told(msgspec.Struct, array_like=True):
    family: str
    code: str
    message: str
    hint: str = ""


_decoder = msgspec.msgpack.Decoder(_Told)
INTERNAL = msgspec.msgpack.encode(_Told("peer_failed", "internal", "the peer failed to answer"))


def pack_error(error: BaseException) -> bytes | None:
    """The error as bytes; ``None`` when it is not for a peer's eyes (send :data:`INTERNAL`)."""
    if isinstance(error, TimeoutError):
        return msgspec.msgpack.encode(_Told("peer_failed", "timeout", "the peer did not manage in time"))
    if not isinstance(error, ShemError):
        return None
    for name, family, _ in _FAMILIES:
        if isinstance(error, family):
            return msgspec.msgpack.encode(
                _Told(name, error.code[:MAX_CODE], error.message[:MAX_TEXT], error.hint[:MAX_TEXT])
            )
    return None


def unpack_error(body: bytes) -> PeerRefused:
    """The peer's error, ready to raise. Raises one of ``cogs.decoding.DECODE_ERRORS`` for garbage."""
    told = _decoder.decode(body)
    rebuilt = _BY_NAME.get(told.family, PeerRefused)
    return rebuilt(_tame(told.message, MAX_TEXT), code=_tame(told.code, MAX_CODE), hint=_tame(told.hint, MAX_TEXT))


def _tame(text: str, limit: int) -> str:
    return "".join(char if char.isprintable() else " " for char in text[:limit])
