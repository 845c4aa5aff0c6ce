"""What an agreement says about money: who pays whom, where, and at what price. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

import msgspec

from shem.errors import Refused
from shem.terms.pricing import BadPricing, LinearPricing

CHOSEN_PLATFORM = "golem.com.payment.chosen-platform"
ADDRESS = "golem.com.payment.platform.{}.address"


class NoDeal(Refused):
    """Nothing can be billed under this agreement."""

    default_code = "no_deal"


class AgreementView(Protocol):
    """What payment reads of the market's agreements."""

    @property
    def agreement_id(self) -> str: ...
    @property
    def requestor_id(self) -> str: ...
    @property
    def provider_id(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def demand_properties(self) -> Mapping[str, Any]: ...
    @property
    def offer_properties(self) -> Mapping[str, Any]: ...
    @property
    def approved_at(self) -> datetime | None: ...
    @property
    def app_session_id(self) -> str | None: ...


class Deal(msgspec.Struct, frozen=True, kw_only=True):
    """The money side of an approved agreement, as its owner here sees it."""

    agreement_id: str
    owner: str
    role: str
    peer_id: str
    platform: str
    payer: str
    payee: str
    session: str | None
    pricing: LinearPricing | None
    """``None`` for a pricing model that this node cannot compute."""


def deal_of(agreement: AgreementView, owner: str) -> Deal:
    """Raises :class:`NoDeal` for an agreement that was never approved or names no platform, or one whose payer is
    somebody else than its requestor: whoever may name any payer could claim other people's transfers."""
    if agreement.approved_at is None:
        raise NoDeal(f"agreement {agreement.agreement_id} is not approved")
    platform = agreement.demand_properties.get(CHOSEN_PLATFORM)
    if not isinstance(platform, str) or not platform:
        raise NoDeal(f"agreement {agreement.agreement_id} names no {CHOSEN_PLATFORM}")
    name = ADDRESS.format(platform)
    payer = _address(agreement.demand_properties.get(name, agreement.requestor_id), name)
    payee = _address(agreement.offer_properties.get(name, agreement.provider_id), name)
    if payer != agreement.requestor_id.lower():
        raise NoDeal(f"agreement {agreement.agreement_id} would be paid by {payer}, who is not its requestor")
    is_requestor = agreement.role == "Requestor"
    try:
        pricing = LinearPricing.from_properties(agreement.offer_properties)
    except BadPricing:
        pricing = None
    return Deal(
        agreement_id=agreement.agreement_id,
        owner=owner,
        role="Requestor" if is_requestor else "Provider",
        peer_id=agreement.provider_id if is_requestor else agreement.requestor_id,
        platform=platform,
        payer=payer,
        payee=payee,
        session=agreement.app_session_id,
        pricing=pricing,
    )


def _address(value: object, name: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 128:
        raise NoDeal(f"{name} is not an address")
    return value.lower()
