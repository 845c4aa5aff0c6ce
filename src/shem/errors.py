"""Every error of Shem, in families by who must act next.

::

    ShemError
    ├── Refused            the caller must change the request         400
    │   ├── NotAllowed     … must be somebody else                    401/403
    │   ├── NotFound       … must name something that exists          404
    │   ├── Conflict       … came at the wrong moment                 409
    │   └── Gone           … came after the end                       410
    ├── PeerFailed         the other node must act
    │   └── KeyLocked      … or the owner of a node, by unlocking its key 423
    ├── MoneyShort         the owner must fund or wait
    ├── WorkFailed         the workload or its sandbox: in batch results, never an HTTP status
    └── Misconfigured      the operator must edit configuration: at start only
    TimeoutError           Python's own; 408 where the API has it

Each error carries a stable ``code`` (for programs), one sentence for a human (``message``) and what to do now
(``hint``). Leaves live in the module that raises them. HTTP statuses are known to ``node.rest.server`` and
``client.http`` alone.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ShemError(Exception):
    """The root. ``details`` are JSON-able facts for programs; nothing secret may go in."""

    default_code: ClassVar[str] = "error"

    def __init__(self, message: str, *, code: str = "", hint: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        return f"{self.message} ({self.code})" + (f" — {self.hint}" if self.hint else "")

    def as_dict(self) -> dict[str, Any]:
        """The shape that goes over REST: ``{"message", "code", "hint"?, "details"?}``."""
        out: dict[str, Any] = {"message": self.message, "code": self.code}
        if self.hint:
            out["hint"] = self.hint
        if self.details:
            out["details"] = self.details
        return out


class Refused(ShemError):
    """The caller must change the request."""

    default_code = "refused"


class NotAllowed(Refused):
    """The caller must be somebody else."""

    default_code = "not_allowed"


class NotAuthenticated(NotAllowed):
    """The caller must say who it is."""

    default_code = "not_authenticated"


class NotFound(Refused):
    """The caller must name something that exists."""

    default_code = "not_found"


class Conflict(Refused):
    """The request came at the wrong moment."""

    default_code = "conflict"


class Gone(Refused):
    """The request came after the end."""

    default_code = "gone"


class NotImplementedHere(Refused):
    """The API names this call, and this node (like the original) does not offer it."""

    default_code = "not_implemented"


class PeerFailed(ShemError):
    """The other node must act: it is away, slow, or said no."""

    default_code = "peer_failed"


class KeyLocked(PeerFailed):
    """The owner of a node, ours or another, must unlock its key. Until then it signs nothing; what is asked may be asked
    again, as of a node that is away."""

    default_code = "identity_locked"


class MoneyShort(ShemError):
    """The owner must fund, or wait."""

    default_code = "money_short"


class WorkFailed(ShemError):
    """The workload or its sandbox failed. Travels in batch results, never as an HTTP status."""

    default_code = "work_failed"


class Misconfigured(ShemError):
    """The operator must edit configuration. Raised at start only."""

    default_code = "misconfigured"
