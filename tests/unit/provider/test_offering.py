"""What an offer says, in the spelling that existing requestors insist on."""

from __future__ import annotations

import pytest

from shem.errors import Misconfigured
from shem.provider.hardware import Cpu
from shem.provider.offering import Account, build_constraints, build_offer
from shem.provider.presets import FREE_PRESET, Preset
from shem.runtimes.base import Capabilities
from shem.terms.constraints import parse
from shem.terms.properties import flatten
from tests.unit.provider.builders import ACCOUNTS, HARDWARE, NOW, RULES, a_demand, an_offer, small_plan


def test_properties_of_the_contract() -> None:
    properties = an_offer().properties
    assert properties["golem.runtime.name"] == "oci"
    assert properties["golem.runtime.capabilities"] == ["start-entrypoint"]
    assert properties["golem.inf.cpu.threads"] == 4
    assert properties["golem.inf.mem.gib"] == 8.0
    assert properties["golem.com.scheme"] == "payu"
    assert properties["golem.com.payment.protocol.version"] == 3
    assert properties["golem.com.payment.platform.erc20-holesky-tglm.address"] == "0x" + "ab" * 20
    assert properties["golem.srv.caps.multi-activity"] is True
    assert properties["golem.!exp.shem.v1.runtime.driver"] == "bwrap"
    assert properties["golem.!exp.shem.v1.runtime.limits.memory"] == "polled"
    assert properties["golem.activity.caps.transfer.protocol"] == ["gftp"]


@pytest.mark.parametrize("preset", [FREE_PRESET, Preset(name="p", start="1", env_per_hour="7200")])
def test_coefficients_are_floats_one_longer_than_the_usage_vector(preset: Preset) -> None:
    properties = an_offer(preset).properties
    coefficients = properties["golem.com.pricing.model.linear.coeffs"]
    assert all(type(value) is float for value in coefficients)
    assert properties["golem.com.usage.vector"] == ["golem.usage.duration_sec", "golem.usage.cpu_sec"]
    assert len(coefficients) == 3


def test_properties_are_flat_and_in_order_already() -> None:
    properties = an_offer().properties
    assert flatten(properties) == properties
    assert list(properties) == sorted(properties)


def test_constraints_are_plain_and_match_a_demand() -> None:
    text = build_constraints("public", NOW)
    assert text.count("(") == 3
    constraint = parse(text)
    demand = a_demand() | {"golem.node.debug.subnet": "public"}
    assert constraint.resolve(demand) is True
    assert constraint.resolve(demand | {"golem.node.debug.subnet": "other"}) is False
    assert constraint.resolve(demand | {"golem.srv.comp.expiration": int(NOW.timestamp() * 1000)}) is False


def test_what_is_not_known_is_not_said() -> None:
    hardware = type(HARDWARE)(cpu=Cpu(architecture="aarch64", cores=1, threads=0.5), memory_bytes=1, disk_free_bytes=1)
    offer = build_offer(
        node_name="n",
        subnet="s",
        hardware=hardware,
        plan=small_plan(),
        preset=FREE_PRESET,
        driver="oci",
        capabilities=Capabilities(available=True),
        accounts=an_accounts(),
        rules=RULES,
        now=NOW,
    )
    assert "golem.inf.cpu.model" not in offer.properties
    assert offer.properties["golem.inf.cpu.threads"] == 4


def an_accounts() -> list[Account]:
    return [Account("p", "0x0")]


def test_no_offer_without_an_account() -> None:
    with pytest.raises(Misconfigured, match="account"):
        build_offer(
            node_name="n",
            subnet="s",
            hardware=HARDWARE,
            plan=small_plan(),
            preset=FREE_PRESET,
            driver="oci",
            capabilities=Capabilities(available=True),
            accounts=[],
            rules=RULES,
            now=NOW,
        )


def platforms(preset: Preset) -> set[str]:
    prefix = "golem.com.payment.platform."
    return {name.split(".")[4] for name in an_offer(preset).properties if name.startswith(prefix)}


def test_work_for_nothing_is_offered_everywhere() -> None:
    assert platforms(FREE_PRESET) == {"erc20-holesky-tglm", "erc20-other-tglm", "free"}
    assert platforms(Preset(name="zero", start="0.0", env_per_hour="0.000")) == {
        "erc20-holesky-tglm",
        "erc20-other-tglm",
        "free",
    }


@pytest.mark.parametrize("price", ["start", "env_per_hour", "cpu_per_hour"])
def test_work_for_money_is_offered_only_where_money_moves(price: str) -> None:
    preset = Preset(name="dear", **{price: "0.000000000000000001" if price == "start" else "0.1"})
    assert platforms(preset) == {"erc20-holesky-tglm", "erc20-other-tglm"}
    with pytest.raises(Misconfigured, match="dear") as caught:
        an_offer(preset, ACCOUNTS[-1:])
    assert caught.value.code == "no_paying_platform"
    assert "[networks." in (caught.value.hint or "")
    assert an_offer(FREE_PRESET, ACCOUNTS[-1:])
