"""What answers look like, as plain values: a type, a pattern, a value that must be equal, ``[shape]`` for a list of such, a
dict with all its keys (``"key?"`` for one that may be absent), or a tuple of shapes of which one must fit.
"""

from __future__ import annotations

import re
from typing import Any

NODE_ID = re.compile(r"0x[0-9a-f]{40}")
SUBSCRIPTION_ID = re.compile(r"[0-9a-f]{32}-[0-9a-f]{64}")
R_PROPOSAL = re.compile(r"R-[0-9a-f]{64}")
P_PROPOSAL = re.compile(r"P-[0-9a-f]{64}")
AGREEMENT_ID = re.compile(r"[0-9a-f]{64}")
HEX32 = re.compile(r"[0-9a-f]{32}")
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.(?:\d{3}|\d{6}|\d{9}))?Z")
PLAIN_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")
AMOUNT = re.compile(r"\d+(?:\.\d+)?")
CODE = re.compile(r"[a-z][a-z0-9_]*")
TEXT = re.compile(r"(?s).+")
ANY = object()
NUMBER = (int, float)
EMPTY = b""
"""No body at all."""

PROPERTIES = dict

PROPOSAL = {
    "properties": PROPERTIES,
    "constraints": str,
    "proposalId": (R_PROPOSAL, P_PROPOSAL),
    "issuerId": NODE_ID,
    "state": re.compile("Initial|Draft|Rejected|Accepted|Expired"),
    "timestamp": TIME,
}
FOLLOWING = {**PROPOSAL, "prevProposalId": (R_PROPOSAL, P_PROPOSAL)}
OFFER = {
    "properties": PROPERTIES,
    "constraints": str,
    "offerId": SUBSCRIPTION_ID,
    "providerId": NODE_ID,
    "timestamp": TIME,
}
DEMAND = {
    "properties": PROPERTIES,
    "constraints": str,
    "demandId": SUBSCRIPTION_ID,
    "requestorId": NODE_ID,
    "timestamp": TIME,
}
AGREEMENT = {
    "agreementId": AGREEMENT_ID,
    "demand": DEMAND,
    "offer": OFFER,
    "validTo": TIME,
    "state": re.compile("Proposal|Pending|Cancelled|Rejected|Approved|Expired|Terminated"),
    "timestamp": TIME,
    "approvedDate?": TIME,
    "appSessionId?": str,
    "proposedSignature?": str,
    "approvedSignature?": str,
    "committedSignature?": str,
}
AGREEMENT_ENTRY = {
    "id": AGREEMENT_ID,
    "timestamp": TIME,
    "approvedDate": (None, TIME),
    "role": re.compile("Requestor|Provider"),
}


def proposal_event(proposal: Any) -> dict[str, Any]:
    return {"eventType": "ProposalEvent", "eventDate": TIME, "proposal": proposal}


REJECTED_EVENT = {
    "eventType": "ProposalRejectedEvent",
    "eventDate": TIME,
    "proposalId": (R_PROPOSAL, P_PROPOSAL),
    "reason": dict,
}
AGREEMENT_EVENT = {"eventType": "AgreementEvent", "eventDate": TIME, "agreement": AGREEMENT}
_OPERATION = {"eventDate": TIME, "agreementId": AGREEMENT_ID}
APPROVED = {**_OPERATION, "eventType": "AgreementApprovedEvent"}
OVER = {**_OPERATION, "eventType": re.compile("Agreement(Rejected|Cancelled)Event"), "reason": dict}
TERMINATED = {
    **_OPERATION,
    "eventType": "AgreementTerminatedEvent",
    "terminator": re.compile("Requestor|Provider"),
    "signature": str,
    "reason": dict,
}
OPERATION = (APPROVED, OVER, TERMINATED)

ALLOCATION = {
    "allocationId": UUID,
    "address": re.compile("0x[0-9a-fA-F]{40}"),
    "paymentPlatform": str,
    "totalAmount": AMOUNT,
    "spentAmount": AMOUNT,
    "remainingAmount": AMOUNT,
    "timestamp": TIME,
    "timeout?": TIME,
    "makeDeposit": bool,
}
ACCOUNT = {
    "platform": str,
    "address": NODE_ID,
    "driver": str,
    "network": str,
    "token": str,
    "send": bool,
    "receive": bool,
}
DECORATIONS = {"properties": [{"key": str, "value": str}], "constraints": [str]}
STATUS = re.compile("ISSUED|RECEIVED|ACCEPTED|REJECTED|FAILED|SETTLED|CANCELLED")
_DOCUMENT = {
    "issuerId": NODE_ID,
    "recipientId": NODE_ID,
    "payeeAddr": NODE_ID,
    "payerAddr": NODE_ID,
    "paymentPlatform": str,
    "timestamp": TIME,
    "agreementId": AGREEMENT_ID,
    "status": STATUS,
}
NOTE = {
    **_DOCUMENT,
    "debitNoteId": UUID,
    "previousDebitNoteId?": UUID,
    "activityId": HEX32,
    "totalAmountDue": AMOUNT,
    "usageCounterVector?": [NUMBER],
    "paymentDueDate?": TIME,
}
INVOICE = {**_DOCUMENT, "invoiceId": UUID, "activityIds": [HEX32], "amount": AMOUNT, "paymentDueDate": TIME}


def document_event(noun: str, kind: str) -> dict[str, Any]:
    """An event of a ``debitNote`` or an ``invoice``."""
    return {
        f"{noun}Id": UUID,
        "eventDate": TIME,
        "eventType": f"{noun[0].upper()}{noun[1:]}{kind}Event",
        "rejection?": dict,
    }


ACTIVITY_EVENT = {
    "activityId": HEX32,
    "agreementId": AGREEMENT_ID,
    "eventDate": TIME,
    "eventType": ({"CreateActivity": {"requestorPubKey?": ANY}}, {"DestroyActivity": {}}),
}
STATE = {
    "state": [(None, re.compile("New|Initialized|Deployed|Ready|Terminated|Unresponsive"))],
    "reason?": (None, str),
    "errorMessage?": (None, str),
}
USAGE = {"timestamp": int, "currentUsage?": [NUMBER]}
NETWORK = {"id": HEX32, "ip": str, "mask": str, "gateway": str}


def misfit(shape: Any, value: Any, at: str = "$") -> str:
    """Where and how ``value`` is not of the shape; empty when it is."""
    if shape is ANY:
        return ""
    if isinstance(shape, tuple):
        return _of_several(shape, value, at)
    if isinstance(shape, type):
        fits = isinstance(value, shape) and (shape is bool or not isinstance(value, bool))
        return "" if fits else f"{at} is {value!r:.80}, not {shape.__name__}"
    if isinstance(shape, re.Pattern):
        fits = isinstance(value, str) and shape.fullmatch(value) is not None
        return "" if fits else f"{at} is {value!r:.120}, not like {shape.pattern}"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{at} is no list"
        if not shape:
            return "" if value == [] else f"{at} is not empty"
        found = (misfit(shape[0], one, f"{at}[{n}]") for n, one in enumerate(value))
        return next((what for what in found if what), "")
    if isinstance(shape, dict):
        return _of_object(shape, value, at)
    return "" if value == shape and type(value) is type(shape) else f"{at} is {value!r:.80}, not {shape!r}"


def _of_several(shapes: tuple[Any, ...], value: Any, at: str) -> str:
    found = [misfit(one, value, at) for one in shapes]
    return "" if "" in found else " and ".join(found)


def _of_object(shape: dict[str, Any], value: Any, at: str) -> str:
    if not isinstance(value, dict):
        return f"{at} is no object"
    known = {name.removesuffix("?"): (name, one) for name, one in shape.items()}
    strange = [name for name in value if name not in known]
    missing = [name for name, (full, _) in known.items() if name not in value and not full.endswith("?")]
    if strange or missing:
        return f"{at} has {strange} too many and lacks {missing}"
    found = (misfit(known[name][1], one, f"{at}.{name}") for name, one in value.items())
    return next((what for what in found if what), "")
