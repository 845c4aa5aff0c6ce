"""Where our node answers otherwise than the original daemon 0.16.0, on purpose; ``docs/differences.md`` is this, rendered.

A conformance test names the difference that it runs into, so none can stay here when it is gone, nor be there unlisted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DOCUMENT = Path(__file__).parents[2] / "docs" / "differences.md"


@dataclass(frozen=True)
class Difference:
    """One. The statuses are there when that is what differs."""

    call: str
    original: str
    ours: str
    why: str
    statuses: tuple[int, int] | None = None
    """Ours, the original's."""

    def status(self, kind: Literal["ours", "original"]) -> int:
        assert self.statuses is not None, self.call
        return self.statuses[kind == "original"]


def _at(ours: int, original: int, call: str, said: str, why: str) -> Difference:
    """A difference in the status alone; ``said``: what is asked for."""
    return Difference(f"{call}: {said}" if said else call, str(original), str(ours), why, (ours, original))


_NO_500 = "a caller's mistake is not the node's"
_FRIEND = "what cannot work is refused when it is asked for, not later"
_PRIVATE = "what belongs to another identity does not exist for a caller"
_CRASH = "the original drops the connection"

DIFFERENCES: Mapping[str, Difference] = {
    # market
    "properties-no-object": _at(400, 201, "POST /demands, /offers", "properties that are no object", _FRIEND),
    "far-offer": Difference(
        "DELETE /offers/{id}: an offer of another node", "204 or 410, and it is not seen any more", "404", _PRIVATE
    ),
    "timeout-nan": _at(400, 200, "GET …/events", "timeout=NaN", "it is no number of seconds"),
    "stranger-poll": _at(404, 200, "GET /demands/{id}/events", "a demand of another identity of the node", _PRIVATE),
    "stranger-proposal": _at(404, 200, "GET …/proposals/{id}", "a proposal of another identity of the node", _PRIVATE),
    "offer-gone": _at(
        410, 200, "POST …/proposals/{id}", "the provider has just withdrawn", "nobody would ever read the counter"
    ),
    "scan-of-demands": Difference(
        "GET /scan/{id}/events of type demand", "nothing", "the demands of this node", "something to look at"
    ),
    "subscription-gone": _at(
        410,
        400,
        "POST …/proposals/{id}",
        "either side has withdrawn",
        "as the API is documented and as newer daemons do",
    ),
    "reject-unknown": _at(404, 500, "POST …/proposals/{id}/reject", "an unknown proposal", _NO_500),
    "counter-after-reject": _at(410, 200, "POST …/proposals/{id}", "after one's own rejection", "a no is a no"),
    "reject-countered": _at(
        410, 204, "POST …/proposals/{id}/reject", "what one has countered", "the peer would take the counter for valid"
    ),
    "scan-max-events": _at(
        400, 200, "GET /scan/{id}/events", "maxEvents outside of 1 to 100", "as for all other polls"
    ),
    "scan-unknown-peer": Difference(
        "GET /scan/{id}/events: peerId of a node that is away",
        "500 or 504",
        "200",
        "offers are known here; to have none is an answer",
    ),
    # agreements
    "valid-to-past": Difference("POST /agreements: validTo in the past", "200", "400", _FRIEND),
    "stranger-agreement": Difference(
        "POST /agreements: a proposal of another identity of the node", "200", "400", _PRIVATE
    ),
    "counter-after-agreement": _at(
        410, 200, "POST …/proposals/{id}", "an agreement was made of it", "one proposal has one answer"
    ),
    "cancel-draft": _at(200, 500, "POST /agreements/{id}/cancel", "before it was confirmed", _NO_500),
    "stranger-wait": _at(
        404, 408, "POST /agreements/{id}/wait", "an agreement of another identity of the node", _PRIVATE
    ),
    "terminate-nonsense": _at(400, 500, "POST /agreements/{id}/terminate", "an id that is none", _NO_500),
    "terminate-reason": _at(200, 404, "GET /agreements/{id}/terminate/reason", "", "newer daemons have it"),
    "no-reason": Difference(
        "events of agreements that were ended with `null`",
        "no reason",
        "a reason with a message",
        "golem-js and golem-core read reason.message without looking",
    ),
    "wait-for-expired": Difference(
        "POST /agreements/{id}/wait: it expires meanwhile",
        "408 at the end of the wait",
        "410 at once",
        "it will not be approved",
    ),
    "confirm-withdrawn": _at(
        410, 204, "POST /agreements/{id}/confirm", "the offer is withdrawn", "the provider's agent would never see it"
    ),
    # activity
    "activity-nonsense-agreement": _at(400, 500, "POST /activity", "an agreement id that is none", _NO_500),
    "stranger-activity": _at(
        404, 403, "/activity…", "an agreement or activity of another identity of the node", _PRIVATE
    ),
    "provider-creates": _at(
        403, 404, "POST /activity", "by the agreement's provider", "it exists, and it is not the provider's to do"
    ),
    "provider-executes": _at(
        403, 404, "POST /activity/{id}/exec", "by the provider", "it exists, and it is not the provider's to do"
    ),
    "state-of-others": _at(404, 500, "PUT /activity/{id}/state", "by any other than its provider", _NO_500),
    "unknown-activity": _at(404, 500, "/activity/{id}…", "an unknown activity", _NO_500),
    "stranger-looks-on": _at(404, 200, "GET /activity/{id}/…", "an activity of another identity of the node", _PRIVATE),
    "unknown-batch": _at(404, 500, "GET /activity/{id}/exec/{batch}", "an unknown batch, or no exe unit", _NO_500),
    "no-command": _at(404, 500, "GET /activity/{id}/command", "no command runs", _NO_500),
    # service bus
    "no-upgrade": _at(400, 500, "GET /gsb-api/v1/services/{id}", "without a WebSocket", _NO_500),
    "stranger-socket": _at(404, 500, "GET /gsb-api/v1/services/{id}", "a service of another identity", _PRIVATE),
    "stranger-service": _at(404, 200, "DELETE /gsb-api/v1/services/{id}", "a service of another identity", _PRIVATE),
    "call-of-nothing": _at(404, 500, "POST /_gsb/…", "a service, or a component of one, that is not there", _NO_500),
}
