"""Where our node answers otherwise than the original daemon 0.16.0, on purpose; ``docs/differences.md`` is this, rendered
(``python -m tests.api.differences``).

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
    "negative-timeout": Difference(
        "several long polls: a negative timeout",
        "the connection is dropped",
        "as 0",
        "it is what is left of a caller's time",
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
    "signatures": Difference(
        "GET /agreements/{id}: its three signatures",
        "NoSignature",
        "hex",
        "every document that binds somebody is signed",
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
    "stranger-activity": _at(404, 403, "POST /activity", "an agreement of another identity of the node", _PRIVATE),
    "provider-creates": _at(
        403, 404, "POST /activity", "by the agreement's provider", "it exists, and it is not the provider's to do"
    ),
    "unknown-activity": _at(404, 500, "/activity/{id}…", "an unknown activity", _NO_500),
    "unknown-batch": _at(404, 500, "GET /activity/{id}/exec/{batch}", "an unknown batch, or no exe unit", _NO_500),
    "no-command": _at(404, 500, "GET /activity/{id}/command", "no command runs", _NO_500),
    # service bus
    "no-upgrade": _at(400, 500, "GET /gsb-api/v1/services/{id}", "without a WebSocket", _NO_500),
    "stranger-socket": _at(404, 500, "GET /gsb-api/v1/services/{id}", "a service of another identity", _PRIVATE),
    "stranger-service": _at(404, 200, "DELETE /gsb-api/v1/services/{id}", "a service of another identity", _PRIVATE),
    "call-of-nothing": _at(404, 500, "POST /_gsb/…", "a service, or a component of one, that is not there", _NO_500),
    # every call
    "errors-in-json": Difference(
        "every refusal but 401",
        "JSON with a message that may be null, plain text (malformed bodies and queries), or nothing (unknown paths)",
        "JSON with `message`, `code`, and often `hint` and `details`",
        "a program can always tell what was wrong",
    ),
    "wrong-method": _at(405, 404, "every path", "a method that it does not have", "it says which it has"),
    "bearer": _at(200, 401, "every call", "`Authorization: bearer …`, in lower case", "HTTP's schemes have no case"),
    "metrics": Difference(
        "GET /metrics-api/v1/expose", "counters of the original's parts", "counters of ours, `shem_…`", "other parts"
    ),
    # allocations
    "free-platform": Difference(
        "GET /requestorAccounts, /providerAccounts",
        "chains",
        "and the platform `free`, last",
        "for networks of friends",
    ),
    "accounts-at-once": Difference(
        "GET /requestorAccounts, /providerAccounts: before `payment init`",
        "an empty list",
        "all platforms",
        "golem-core needs one",
    ),
    "number-for-amount": _at(
        400, 201, "every call with an amount", "a JSON number", "amounts are decimal strings: a float cannot hold money"
    ),
    "negative-allocation": _at(400, 201, "POST /allocations", "a negative sum", _FRIEND),
    "foreign-address": _at(400, 500, "POST /allocations", "an address that is not the caller's", _NO_500),
    "deposits": _at(400, 500, "POST /allocations", "a deposit", "this node does not pay from deposits, and says so"),
    # documents
    "released-allocation": _at(
        410, 400, "POST …/accept", "a released allocation", "as for releasing it twice, and as the API is documented"
    ),
    "negative-note": Difference("POST /debitNotes: a negative sum", "201", "400", _FRIEND),
    "odd-usage": Difference(
        "POST /debitNotes: usageCounterVector that is no list of numbers",
        "201",
        "400",
        "golem-core fails on anything else",
    ),
    "lowered-note": Difference(
        "POST /debitNotes: less than the last one asked",
        "201",
        "400",
        "totals of an activity only grow, as those of an agreement",
    ),
    "note-of-nothing": _at(404, 500, "POST /debitNotes, /invoices", "an unknown activity", _NO_500),
    "invoice-of-nothing": _at(404, 400, "POST /invoices", "an unknown agreement", "as for every unknown id"),
    "invoice-nonsense-agreement": _at(400, 500, "POST /invoices", "an agreement id that is none", _NO_500),
    "second-invoice": Difference(
        "POST /invoices: a second one of an agreement", "201", "409", "an agreement is paid once"
    ),
    "payments-timeout": _at(
        200, 400, "GET /payments", "timeout, maxEvents", "the original cannot read its own parameters here"
    ),
    "unpayable-note": Difference(
        "POST /debitNotes/{id}/accept: a note without paymentDueDate",
        "the allocation's spentAmount grows with the invoice",
        "it grows now",
        "what is accepted is owed, and must not be promised to another",
    ),
}


_HEAD = """# Where our node answers otherwise than the original daemon

A conformance suite (`tests/api/test_conformance*.py`) asks two nodes of ours and two of the original daemon 0.16.0 the same,
and holds status, content type and shape of every answer against what is written for both. What remains different is listed
here, with the reason. This page is made from `tests/api/differences.py`; do not edit it by hand.

| asked for | the original | ours | why |
|---|---|---|---|
"""


def render() -> str:
    """The page."""
    rows = [[d.call, d.original, d.ours, d.why] for d in DIFFERENCES.values()]
    return _HEAD + "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)


if __name__ == "__main__":
    DOCUMENT.write_text(render(), encoding="utf-8")
