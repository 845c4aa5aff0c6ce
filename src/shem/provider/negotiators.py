"""How the provider answers a demand: rules, each looking at one thing, over plain values.

Every rule may change the counter-offer, or refuse. A refusal says whether it is *final*: the requestor changes the
demand or goes elsewhere; one that is not final may be tried again later (when capacity is free, say). Negotiable values
are taken as the requestor wrote them, since it may compare them letter by letter; those it does not mention are taken
out of the counter. An agreement is approved only if the same rules would not change it any more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from shem.errors import Refused
from shem.provider.capacity import Capacity, Resources, says_what_it_needs, wanted_by
from shem.provider.config import MAX_COVER_AFTER_S, MAX_COVER_S, Rules
from shem.provider.offering import (
    ACCEPT_TIMEOUT,
    CHANNEL,
    CHOSEN_PLATFORM,
    COEFFS,
    COVER,
    COVER_AFTER,
    EXPIRATION,
    GVMI_FORMAT,
    INTERVAL,
    LEAST_COVER,
    PACKAGE_FORMAT,
    PAYLOAD,
    PAYMENT_TIMEOUT,
    PLATFORM,
    PROTOCOLS,
    RUNTIME_NAME,
    TASK_PACKAGE,
    VM,
)
from shem.terms.constraints import BadConstraint, parse
from shem.terms.images import GvmiImage, RegistryImage, parse_package
from shem.terms.pricing import LinearPricing

IS_FINAL = "golem.proposal.rejection.is-final"

_FLOOR = re.compile(r"\(\s*(golem\.inf\.(?:cpu\.threads|mem\.gib|storage\.gib))>=?([0-9]{1,9}(?:\.[0-9]{1,9})?)\)")


class Rejection(msgspec.Struct, frozen=True):
    """No, and why. ``code`` is ours and stable."""

    code: str
    message: str
    is_final: bool

    def as_reason(self) -> dict[str, Any]:
        """The shape of a market reason."""
        return {"message": self.message, "code": self.code, IS_FINAL: self.is_final}


class Counter(msgspec.Struct, frozen=True):
    """Yes, on these terms."""

    properties: dict[str, Any]
    resources: Resources
    """What the agreement would hold."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """All that an answer depends on."""

    offer: Mapping[str, Any]
    """The published properties."""
    demand: Mapping[str, Any]
    demand_constraints: str
    capacity: Capacity
    rules: Rules
    now: datetime
    default_registry: str = ""
    lot: Resources | None = None
    """What an agreement on this offer gets unless it says what it needs; ``None`` = the share."""
    smaller: Sequence[Mapping[str, Any]] = ()
    """Properties of smaller offers of the same kind."""
    overdue: str = ""
    """What the requestor owes us and has not paid in time, in a sentence."""


Change = dict[str, Any]
"""Properties to set in the counter; ``None`` removes one."""
Rule = Callable[[Request], Change | Rejection]


def negotiate(request: Request) -> Counter | Rejection:
    """Answer a demand."""
    properties = dict(request.offer)
    for rule in _RULES:
        found = rule(request)
        if isinstance(found, Rejection):
            return found
        for name, value in found.items():
            if value is None:
                properties.pop(name, None)
            else:
                properties[name] = value
    wanted = _resources(request)
    if isinstance(wanted, Rejection):
        return wanted
    return Counter(dict(sorted(properties.items())), wanted)


def review(request: Request, agreed: Mapping[str, Any]) -> Counter | Rejection:
    """Answer a proposed agreement whose offer side is ``agreed``: a :class:`Counter` means *approve*."""
    answer = negotiate(request)
    if isinstance(answer, Counter) and dict(agreed) != answer.properties:
        other = sorted(
            name for name in agreed.keys() | answer.properties.keys() if agreed.get(name) != answer.properties.get(name)
        )
        return Rejection(
            "terms_changed", f"the agreement is not on the terms offered now: {', '.join(other[:5])}", True
        )
    return answer


def _debts(request: Request) -> Change | Rejection:
    return Rejection("overdue_payments", request.overdue, False) if request.overdue else {}


def _platform(request: Request) -> Change | Rejection:
    chosen = request.demand.get(CHOSEN_PLATFORM)
    if not isinstance(chosen, str) or not chosen:
        return Rejection("no_platform", f"{CHOSEN_PLATFORM} is missing in the demand", False)
    if f"{PLATFORM}{chosen}.address" not in request.offer:
        return Rejection("unknown_platform", f"payments on {chosen[:80]} are not taken here", True)
    return {}


def _package(request: Request) -> Change | Rejection:
    if request.demand.get(PAYLOAD) is not None:
        return Rejection("no_manifests", "computation manifests are not taken here", True)
    package = request.demand.get(TASK_PACKAGE)
    if not isinstance(package, str):
        return Rejection("no_package", f"{TASK_PACKAGE} is missing in the demand: what shall run?", True)
    try:
        image = parse_package(package)
    except Refused as error:
        return Rejection(error.code, error.message, True)
    if isinstance(image, GvmiImage):
        return _gvmi(request, image)
    if request.offer.get(RUNTIME_NAME) == VM:
        return Rejection("wrong_image_kind", "the runtime vm takes GVMI files (hash:sha3:…), not docker images", True)
    if isinstance(image, RegistryImage) and not image.host and not request.default_registry:
        return Rejection("no_default_registry", "short image names are not taken here: name the registry", True)
    return {}


def _gvmi(request: Request, image: GvmiImage) -> Change | Rejection:
    if request.offer.get(RUNTIME_NAME) != VM:
        return Rejection("wrong_image_kind", "the runtime oci takes docker images (oci:…), not GVMI files", True)
    if request.demand.get(PACKAGE_FORMAT, GVMI_FORMAT) != GVMI_FORMAT:
        return Rejection("package_format", f"{PACKAGE_FORMAT} must be {GVMI_FORMAT}", True)
    if image.url.partition(":")[0] not in PROTOCOLS:
        return Rejection("image_protocol", f"images are fetched by {', '.join(PROTOCOLS)} only", True)
    return {}


def _lot(request: Request) -> Change | Rejection:
    """A larger offer is for those whom no smaller one suffices: else a modest demand would hold the whole machine."""
    if not request.smaller or says_what_it_needs(request.demand):
        return {}
    try:
        constraint = parse(request.demand_constraints)
    except BadConstraint as error:
        return Rejection("bad_constraint", error.message, True)
    if any(constraint.resolve(properties) for properties in request.smaller):
        return Rejection("smaller_offer", "this provider has a smaller offer that fits the demand: take that", True)
    return {}


def _expiration(request: Request) -> Change | Rejection:
    ends_ms = _number(request.demand.get(EXPIRATION))
    if ends_ms is None:
        return Rejection("no_expiration", f"{EXPIRATION} is missing in the demand", True)
    left_s = ends_ms / 1000 - request.now.timestamp()
    rules = request.rules
    if left_s < rules.min_expiration_s:
        return Rejection(
            "expires_too_soon",
            f"the demand ends in {left_s:.0f} s; at least {rules.min_expiration_s:g} s are needed",
            True,
        )
    watched = _number(request.demand.get(ACCEPT_TIMEOUT)) is not None
    limit_s = rules.max_expiration_s if watched else rules.max_expiration_unwatched_s
    if left_s > limit_s:
        hint = "" if watched else f"; name {ACCEPT_TIMEOUT} for longer ones"
        return Rejection("expires_too_late", f"the demand ends in {left_s:.0f} s; at most {limit_s} s{hint}", False)
    if left_s >= rules.payment_timeout_required_from_s and _number(request.demand.get(PAYMENT_TIMEOUT)) is None:
        return Rejection(
            "no_payment_timeout",
            f"agreements of {rules.payment_timeout_required_from_s} s or more need {PAYMENT_TIMEOUT}",
            True,
        )
    return {}


def _accept_timeout(request: Request) -> Change | Rejection:
    wanted = request.demand.get(ACCEPT_TIMEOUT)
    if wanted is None:
        return {ACCEPT_TIMEOUT: None}
    seconds = _number(wanted)
    rules = request.rules
    if seconds is None or seconds > rules.accept_timeout_s:
        return Rejection("accept_timeout", f"debit notes must be accepted within {rules.accept_timeout_s} s", True)
    if seconds < rules.min_accept_timeout_s:
        return Rejection(
            "accept_timeout", f"an accept timeout of less than {rules.min_accept_timeout_s:g} s is not taken", False
        )
    return {ACCEPT_TIMEOUT: wanted}


def _within(name: str, code: str, wanted: Any, allowed: tuple[float, float]) -> Change | Rejection:
    if wanted is None:
        return {name: None}
    seconds = _number(wanted)
    low, high = allowed
    if seconds is None or not low <= seconds <= high:
        return Rejection(code, f"{name} must be from {low:g} to {high:g} s, not {str(wanted)[:40]}", True)
    return {name: wanted}


def _interval(request: Request) -> Change | Rejection:
    return _within(INTERVAL, "debit_note_interval", request.demand.get(INTERVAL), request.rules.interval_range_s)


def _payment_timeout(request: Request) -> Change | Rejection:
    wanted = request.demand.get(PAYMENT_TIMEOUT)
    return _within(PAYMENT_TIMEOUT, "payment_timeout", wanted, request.rules.payment_timeout_range_s)


def _cover(request: Request) -> Change | Rejection:
    """Who pays by channel may reserve more than we ask for, not less; our own numbers stand where it says nothing."""
    if not str(request.demand.get(CHOSEN_PLATFORM)).startswith(CHANNEL):
        return dict.fromkeys((COVER, LEAST_COVER, COVER_AFTER))
    rules = request.rules
    bounds = {
        COVER: (rules.least_cover_s, MAX_COVER_S),
        LEAST_COVER: (rules.least_cover_s, MAX_COVER_S),
        COVER_AFTER: (rules.cover_after_s, MAX_COVER_AFTER_S),
    }
    taken: Change = {}
    for name, allowed in bounds.items():
        if (wanted := request.demand.get(name)) is not None:
            if isinstance(wanted, str):
                return Rejection("channel_cover", f"{name} must be a number", True)
            found = _within(name, "channel_cover", wanted, allowed)
            if isinstance(found, Rejection):
                return found
            taken |= found
    return taken


def _price(request: Request) -> Change | Rejection:
    wanted = request.demand.get(COEFFS)
    if wanted is None:
        return {}
    offered = request.offer[COEFFS]
    numbers = [_number(value) for value in wanted] if isinstance(wanted, list) else []
    if len(numbers) != len(offered) or any(value is None for value in numbers):
        return Rejection("price", f"{COEFFS} must be {len(offered)} numbers", True)
    if any(value is None or value < low for value, low in zip(numbers, offered, strict=True)):
        return Rejection("price", "the demand's prices are lower than the offer's", True)
    taken = {COEFFS: [float(value) for value in wanted]}
    try:
        LinearPricing.from_properties({**request.offer, **taken})
    except Refused as error:
        return Rejection("price", error.message, True)
    return taken


def _resources(request: Request) -> Resources | Rejection:
    try:
        default = request.lot or request.capacity.plan.share
        wanted = wanted_by(request.demand, floors(request.demand_constraints), default)
    except Refused as error:
        return Rejection(error.code, error.message, True)
    if not request.capacity.possible(wanted):
        return Rejection("too_big", "the demand needs more than this machine offers", True)
    if not request.capacity.fits(wanted):
        return Rejection("no_capacity", "all that is for rent here is in use; try again later", False)
    return wanted


_RULES: tuple[Rule, ...] = (
    _debts,
    _platform,
    _package,
    _lot,
    _expiration,
    _accept_timeout,
    _interval,
    _payment_timeout,
    _cover,
    _price,
)


def floors(constraints: str) -> dict[str, float]:
    """The lower bounds that a demand's constraints put on the hardware, by property name.

    Read from the text without regard to how the items are combined: where that is wrong (below a NOT, say), it holds
    more than needed, never less.
    """
    found: dict[str, float] = {}
    for name, bound in _FLOOR.findall(constraints):
        found[name] = max(found.get(name, 0.0), float(bound))
    return found


def _number(value: Any) -> float | None:
    """A finite number, also from text: generic clients write every property as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < 1e18 else None
