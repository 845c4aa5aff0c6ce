"""Values that several tests of the provider start from."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from shem.provider.capacity import GIB, Capacity, Plan, Resources
from shem.provider.config import Rules
from shem.provider.hardware import Cpu, Hardware
from shem.provider.negotiators import Request
from shem.provider.offering import OCI, Account, Offer, Runtime, Seller, build_offers
from shem.provider.presets import Preset
from shem.runtimes.base import Capabilities

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
HARDWARE = Hardware(
    cpu=Cpu(architecture="x86_64", cores=4, threads=8.0, vendor="Intel", capabilities=("sse",)),
    memory_bytes=16 * GIB,
    disk_free_bytes=100 * GIB,
)
PLATFORM = "erc20-holesky-tglm"
RULES = Rules()


def small_plan(slots: int = 2) -> Plan:
    total = Resources(cpu_threads=4.0, memory_bytes=8 * GIB, storage_bytes=40 * GIB)
    share = Resources(cpu_threads=4.0 / slots, memory_bytes=8 * GIB // slots, storage_bytes=40 * GIB // slots)
    return Plan(total, share, slots)


ADDRESS = "0x" + "ab" * 20
ACCOUNTS = (
    Account(PLATFORM, ADDRESS),
    Account("erc20-other-tglm", ADDRESS),
    Account("free", ADDRESS, moves_money=False),
)


PRESET = Preset(name="test", start="0.1", env_per_hour="3.6", cpu_per_hour="36")
CHANNEL = "channel-devnet-tglm"


def a_seller(**changes: Any) -> Seller:
    values: dict[str, Any] = {
        "node_name": "bob",
        "subnet": "public",
        "hardware": HARDWARE,
        "plan": small_plan(),
        "driver": "bwrap",
        "capabilities": Capabilities(available=True, isolation="userns", limits={"memory": "polled", "pids": "hard"}),
        "accounts": ACCOUNTS,
        "rules": RULES,
        "now": NOW,
    }
    return Seller(**(values | changes))


def an_offer(
    preset: Preset = PRESET, accounts: Sequence[Account] = ACCOUNTS, *, runtime: Runtime = OCI, **seller: Any
) -> Offer:
    """The smallest one."""
    return build_offers(a_seller(accounts=accounts, **seller), runtime, preset)[0]


def an_offer_by_channel(rules: Rules = RULES) -> Offer:
    """That takes payment by channel too."""
    return an_offer(accounts=(Account(PLATFORM, ADDRESS), Account(CHANNEL, ADDRESS)), rules=rules)


def a_demand(**changes: Any) -> dict[str, Any]:
    """A demand that is accepted; ``changes`` by short name (``None`` removes)."""
    names = {
        "expiration": "golem.srv.comp.expiration",
        "platform": "golem.com.payment.chosen-platform",
        "package": "golem.srv.comp.task_package",
        "format": "golem.srv.comp.vm.package_format",
        "payload": "golem.srv.comp.payload",
        "interval": "golem.com.scheme.payu.debit-note.interval-sec?",
        "payment": "golem.com.scheme.payu.payment-timeout-sec?",
        "accept": "golem.com.payment.debit-notes.accept-timeout?",
        "cover": "golem.com.payment.channel.cover-sec?",
        "least_cover": "golem.com.payment.channel.least-sec?",
        "cover_after": "golem.com.payment.channel.after-sec?",
        "coeffs": "golem.com.pricing.model.linear.coeffs",
        "mem": "golem.!exp.shem.v1.require.mem.gib",
        "cpu": "golem.!exp.shem.v1.require.cpu.threads",
        "storage": "golem.!exp.shem.v1.require.storage.gib",
        "pids": "golem.!exp.shem.v1.require.pids",
        "multi": "golem.srv.caps.multi-activity",
    }
    values: dict[str, Any] = {
        "expiration": in_ms(timedelta(minutes=20)),
        "platform": PLATFORM,
        "package": "oci:docker://registry.example/library/busybox:latest",
        "multi": True,
    } | changes
    return {names[name]: value for name, value in values.items() if value is not None}


GVMI = "hash:sha3:" + "ab" * 28 + ":http://h.example/i.gvmi"


def a_golem_demand(**changes: Any) -> dict[str, Any]:
    """What programs written for Golem send: a GVMI file, no sizes."""
    return a_demand(**({"package": GVMI, "format": "gvmkit-squash"} | changes))


def in_ms(delta: timedelta) -> int:
    return int((NOW + delta).timestamp() * 1000)


def a_request(
    demand: dict[str, Any],
    *,
    constraints: str = "(&)",
    capacity: Capacity | None = None,
    rules: Rules = RULES,
    offer: Offer | None = None,
    now: datetime = NOW,
    overdue: str = "",
) -> Request:
    offer = offer or an_offer()
    return Request(
        offer=offer.properties,
        lot=offer.lot,
        smaller=offer.smaller,
        demand=demand,
        demand_constraints=constraints,
        capacity=capacity or Capacity(small_plan()),
        rules=rules,
        now=now,
        overdue=overdue,
    )
