"""What the provider says about itself on the market: one offer for each sandbox driver and price list.

Pure: hardware, plan, preset, driver and accounts go in; properties and constraints come out. Existing requestors read
some of these values with a strict eye: coefficients must be floats (``0.0``), the usage vector one shorter than they
are, and the constraints of an offer plain enough for the simplest of their parsers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from shem.errors import Misconfigured
from shem.provider.capacity import GIB, Plan
from shem.provider.config import Rules
from shem.provider.hardware import Cpu, Hardware
from shem.provider.presets import Preset
from shem.runtimes.base import Capabilities
from shem.version import VERSION

RUNTIME = "oci"
"""What runs here: images as docker makes them."""

EXPIRATION = "golem.srv.comp.expiration"
SUBNET = "golem.node.debug.subnet"
INTERVAL = "golem.com.scheme.payu.debit-note.interval-sec?"
PAYMENT_TIMEOUT = "golem.com.scheme.payu.payment-timeout-sec?"
ACCEPT_TIMEOUT = "golem.com.payment.debit-notes.accept-timeout?"
COEFFS = "golem.com.pricing.model.linear.coeffs"
CHOSEN_PLATFORM = "golem.com.payment.chosen-platform"
MULTI_ACTIVITY = "golem.srv.caps.multi-activity"
TASK_PACKAGE = "golem.srv.comp.task_package"
PLATFORM = "golem.com.payment.platform."
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
    """For people and logs: driver and preset."""
    driver: str
    properties: dict[str, Any]
    constraints: str


def build_offer(
    *,
    node_name: str,
    subnet: str,
    hardware: Hardware,
    plan: Plan,
    preset: Preset,
    driver: str,
    capabilities: Capabilities,
    accounts: Sequence[Account],
    rules: Rules,
    now: datetime,
) -> Offer:
    """The offer of one driver at one price list. Raises ``Misconfigured`` without an account to be paid on."""
    accounts = _usable(preset, accounts)
    properties: dict[str, Any] = {
        "golem.node.id.name": node_name,
        SUBNET: subnet,
        "golem.runtime.name": RUNTIME,
        "golem.runtime.version": VERSION,
        "golem.runtime.capabilities": ["start-entrypoint"],
        "golem.activity.caps.transfer.protocol": ["gftp"],
        "golem.activity.caps.transfer.report-progress": True,
        "golem.activity.caps.deploy.report-progress": True,
        MULTI_ACTIVITY: True,
        **_machine(hardware.cpu, plan),
        **_money(preset, accounts, rules),
        OURS + "driver": driver,
        OURS + "isolation": capabilities.isolation,
        **{f"{OURS}limits.{name}": how for name, how in capabilities.limits.items()},
    }
    return Offer(
        name=f"{driver}/{preset.name}",
        driver=driver,
        properties=dict(sorted(properties.items())),
        constraints=build_constraints(subnet, now),
    )


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


def _machine(cpu: Cpu, plan: Plan) -> dict[str, Any]:
    threads = max(1, int(plan.total.cpu_threads))
    facts: dict[str, Any] = {
        "golem.inf.cpu.architecture": cpu.architecture,
        "golem.inf.cpu.cores": max(1, min(cpu.cores, threads)),
        "golem.inf.cpu.threads": threads,
        "golem.inf.mem.gib": _gib(plan.total.memory_bytes),
        "golem.inf.storage.gib": _gib(plan.total.storage_bytes),
    }
    for name in ("vendor", "brand", "model"):
        if value := getattr(cpu, name):
            facts[f"golem.inf.cpu.{name}"] = value
    if cpu.capabilities:
        facts["golem.inf.cpu.capabilities"] = list(cpu.capabilities)
    return facts


def _money(preset: Preset, accounts: Sequence[Account], rules: Rules) -> dict[str, Any]:
    pricing = preset.pricing().to_properties()
    pricing[COEFFS] = [float(coefficient) for coefficient in pricing[COEFFS]]
    return {
        "golem.com.scheme": "payu",
        INTERVAL: rules.debit_note_interval_s,
        PAYMENT_TIMEOUT: rules.payment_timeout_s,
        ACCEPT_TIMEOUT: rules.accept_timeout_s,
        "golem.com.payment.protocol.version": 3,
        **{f"{PLATFORM}{account.platform}.address": account.address for account in accounts},
        **pricing,
    }


def _gib(size_bytes: int) -> float:
    return size_bytes * 1000 // GIB / 1000  # rounded down: never more than there is
