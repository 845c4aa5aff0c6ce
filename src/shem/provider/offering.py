"""What the provider says about itself on the market: offers for each runtime and price list.

Pure: the seller (hardware, plan, driver, accounts …) and a preset go in; properties and constraints come out. Existing
requestors read some of these values with a strict eye: coefficients must be floats (``0.0``), the usage vector one
shorter than they are, and the constraints of an offer plain enough for the simplest of their parsers.

* ``oci`` runs docker images. Its one offer names the machine as it is: demands say what part of it they need.
* ``vm`` runs GVMI files, for programs written for Golem. Those take an offer's sizes for what they will get, so there is
  one offer for each *lot* (see :mod:`~shem.provider.capacity`): the share of one agreement, and the whole machine. The
  larger one is sold only to who cannot do with the smaller.

All draw on the same capacity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec

from shem.errors import Misconfigured
from shem.provider.capacity import GIB, Plan, Resources, lots
from shem.provider.config import Rules
from shem.provider.hardware import Cpu, Hardware
from shem.provider.presets import Preset
from shem.runtimes.base import Capabilities
from shem.terms.resources import THREADS
from shem.version import VERSION

Runtime = Literal["oci", "vm"]
OCI: Runtime = "oci"
"""Runs images as docker makes them."""
VM: Runtime = "vm"
"""Runs GVMI files."""

RUNTIME_NAME = "golem.runtime.name"
EXPIRATION = "golem.srv.comp.expiration"
SUBNET = "golem.node.debug.subnet"
INTERVAL = "golem.com.scheme.payu.debit-note.interval-sec?"
PAYMENT_TIMEOUT = "golem.com.scheme.payu.payment-timeout-sec?"
ACCEPT_TIMEOUT = "golem.com.payment.debit-notes.accept-timeout?"
COEFFS = "golem.com.pricing.model.linear.coeffs"
CHOSEN_PLATFORM = "golem.com.payment.chosen-platform"
MULTI_ACTIVITY = "golem.srv.caps.multi-activity"
TASK_PACKAGE = "golem.srv.comp.task_package"
PACKAGE_FORMAT = "golem.srv.comp.vm.package_format"
GVMI_FORMAT = "gvmkit-squash"
PAYLOAD = "golem.srv.comp.payload"
PROTOCOLS = ("gftp", "http", "https")
"""Where images and transfers may come from and go to."""
PLATFORM = "golem.com.payment.platform."
CHANNEL = "channel-"
"""What the names of platforms paid by payment channel begin with."""
COVER = "golem.com.payment.channel.cover-sec?"
LEAST_COVER = "golem.com.payment.channel.least-sec?"
COVER_AFTER = "golem.com.payment.channel.after-sec?"
"""What a requestor's node reserves where it pays by channel (:class:`~shem.provider.config.Rules` says what they mean)."""
PREFERENCE = "golem.!exp.shem.v1.payment.preference"
"""The platforms of an offer, best first."""
OURS = "golem.!exp.shem.v1.runtime."


def is_ours(properties: Mapping[str, Any]) -> bool:
    """Whether an offer is one of this agent, and not of another program at the same node."""
    return OURS + "driver" in properties


class Account(msgspec.Struct, frozen=True):
    """Where the provider takes money: a payment platform and its address there."""

    platform: str
    address: str
    moves_money: bool = True
    """Whether a sum above zero can be billed there."""


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """One offer as it is published."""

    name: str
    """For people and logs: runtime and preset."""
    runtime: Runtime
    properties: dict[str, Any]
    constraints: str
    lot: Resources | None = None
    """What an agreement gets whose demand does not say what it needs; ``None`` = the share."""
    smaller: tuple[Mapping[str, Any], ...] = ()
    """The same for less: the properties of offers that a modest demand is sent to."""


class Seller(msgspec.Struct, frozen=True, kw_only=True):
    """What all offers of an agent have in common."""

    node_name: str
    subnet: str
    hardware: Hardware
    plan: Plan
    driver: str
    capabilities: Capabilities
    accounts: Sequence[Account]
    rules: Rules
    now: datetime
    is_public: bool | None = None
    country_code: str = ""


def wanted_accounts(accounts: Sequence[Account], platforms: Sequence[str]) -> list[Account]:
    """Those that the owner wants to be paid on, in the owner's order; without one, all, channels first.

    Raises ``Misconfigured`` when the node has none of them.
    """
    if not platforms:
        return sorted(accounts, key=lambda account: not account.platform.startswith(CHANNEL))
    found: dict[str, Account] = {}
    for name in platforms:
        for account in accounts:
            if account.platform == name or (name.endswith("*") and account.platform.startswith(name[:-1])):
                found.setdefault(account.platform, account)
    if accounts and not found:
        known = ", ".join(account.platform for account in accounts)
        raise Misconfigured(
            f"the node takes payments on {known}, and platforms names none of them",
            code="no_wanted_platform",
            hint="correct platforms in provider.toml, or configure the network in the node's config.toml",
        )
    return list(found.values())


def build_all(seller: Seller, runtimes: Sequence[Runtime], presets: Sequence[Preset]) -> list[Offer]:
    """Everything that is published. Raises ``Misconfigured`` when that is nothing, or when an account is missing."""
    offers = [
        offer
        for runtime in runtimes
        for preset in presets
        if preset.is_for(runtime, seller.driver)
        for offer in build_offers(seller, runtime, preset)
    ]
    if not offers:
        raise Misconfigured(
            f"no active preset is for {' or '.join(runtimes)} with the driver {seller.driver}",
            code="nothing_to_offer",
            hint="change driver or runtimes of a preset, or activate another one",
        )
    return offers


def build_offers(seller: Seller, runtime: Runtime, preset: Preset) -> list[Offer]:
    """What is published of one runtime at one price list, from small to large.

    Raises ``Misconfigured`` without an account to be paid on.
    """
    name = f"{runtime}/{preset.name}"
    if runtime == OCI:
        properties = _properties(seller, runtime, preset, seller.plan.total)
        return [_offer(seller, name, runtime, properties)]
    offers: list[Offer] = []
    for lot in lots(seller.plan):
        properties = _properties(seller, runtime, preset, lot)
        smaller = tuple(offer.properties for offer in offers)
        offers.append(
            _offer(seller, f"{name}/whole" if smaller else name, runtime, properties, lot=lot, smaller=smaller)
        )
    return offers


def _offer(seller: Seller, name: str, runtime: Runtime, properties: dict[str, Any], **more: Any) -> Offer:
    constraints = build_constraints(seller.subnet, seller.now)
    return Offer(name=name, runtime=runtime, properties=properties, constraints=constraints, **more)


def _properties(seller: Seller, runtime: Runtime, preset: Preset, size: Resources) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "golem.node.id.name": seller.node_name,
        SUBNET: seller.subnet,
        RUNTIME_NAME: runtime,
        "golem.runtime.version": VERSION,
        "golem.runtime.capabilities": ["start-entrypoint"],
        "golem.activity.caps.transfer.protocol": list(PROTOCOLS),
        "golem.activity.caps.transfer.report-progress": True,
        "golem.activity.caps.deploy.report-progress": True,
        MULTI_ACTIVITY: True,
        **_machine(seller.hardware.cpu, size),
        **_money(preset, _usable(preset, seller.accounts), seller.rules),
        OURS + "driver": seller.driver,
        OURS + "isolation": seller.capabilities.isolation,
        **{f"{OURS}limits.{name}": how for name, how in seller.capabilities.limits.items()},
    }
    if runtime == VM:
        properties[PACKAGE_FORMAT] = GVMI_FORMAT
    if seller.is_public is not None:
        properties["golem.node.net.is-public"] = seller.is_public
    if seller.country_code:
        properties["golem.node.geo.country_code"] = seller.country_code
    return dict(sorted(properties.items()))


def _usable(preset: Preset, accounts: Sequence[Account]) -> Sequence[Account]:
    """Work for nothing can be agreed on anywhere, work that costs something only where it can be billed."""
    if not accounts:
        raise Misconfigured(
            "the node has no account that can receive payments",
            code="no_payment_account",
            hint="enable a payment driver in the node's settings",
        )
    if preset.is_free:
        return accounts
    paying = [account for account in accounts if account.moves_money]
    if not paying:
        raise Misconfigured(
            f"preset {preset.name!r} asks for money, and the node has no platform that moves any",
            code="no_paying_platform",
            hint="configure a network in the node's config.toml ([networks.NAME]), or offer for free with all prices 0",
        )
    return paying


def build_constraints(subnet: str, now: datetime) -> str:
    """What a demand must satisfy: not expired, same subnet. In the plain form that every parser takes."""
    now_ms = int(now.timestamp() * 1000)
    return f"(&({EXPIRATION}>{now_ms})({SUBNET}={subnet}))"


def _machine(cpu: Cpu, size: Resources) -> dict[str, Any]:
    threads = max(1, int(size.cpu_threads))
    facts: dict[str, Any] = {
        "golem.inf.cpu.architecture": cpu.architecture,
        "golem.inf.cpu.cores": max(1, min(cpu.cores, threads)),
        THREADS: threads,
        "golem.inf.mem.gib": _gib(size.memory_bytes),
        "golem.inf.storage.gib": _gib(size.storage_bytes),
    }
    for name in ("vendor", "brand", "model"):
        if value := getattr(cpu, name):
            facts[f"golem.inf.cpu.{name}"] = value
    if cpu.capabilities:
        facts["golem.inf.cpu.capabilities"] = list(cpu.capabilities)
    return facts


def _money(preset: Preset, accounts: Sequence[Account], rules: Rules) -> dict[str, Any]:
    cover = {COVER: rules.cover_s, LEAST_COVER: rules.least_cover_s, COVER_AFTER: rules.cover_after_s}
    by_channel = any(account.platform.startswith(CHANNEL) for account in accounts)
    pricing = preset.pricing().to_properties()
    pricing[COEFFS] = [float(coefficient) for coefficient in pricing[COEFFS]]
    return {
        "golem.com.scheme": "payu",
        INTERVAL: rules.debit_note_interval_s,
        PAYMENT_TIMEOUT: rules.payment_timeout_s,
        ACCEPT_TIMEOUT: rules.accept_timeout_s,
        "golem.com.payment.protocol.version": 3,
        **{f"{PLATFORM}{account.platform}.address": account.address for account in accounts},
        PREFERENCE: [account.platform for account in accounts],
        **(cover if by_channel else {}),
        **pricing,
    }


def _gib(size_bytes: int) -> float:
    return size_bytes * 1000 // GIB / 1000  # rounded down: never more than there is
