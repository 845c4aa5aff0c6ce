"""What an offer says, in the spelling that existing requestors insist on."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from shem.errors import Misconfigured
from shem.provider.capacity import GIB, Capacity, plan
from shem.provider.config import ResourceLimits
from shem.provider.hardware import Cpu
from shem.provider.offering import (
    PREFERENCE,
    Account,
    Offer,
    build_all,
    build_constraints,
    build_offers,
    wanted_accounts,
)
from shem.provider.presets import FREE_PRESET, Preset
from shem.runtimes.base import Capabilities
from shem.terms.constraints import parse
from shem.terms.properties import flatten
from tests.unit.provider.builders import ACCOUNTS, HARDWARE, NOW, PRESET, a_demand, a_seller, an_offer, small_plan


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
    assert properties["golem.activity.caps.transfer.protocol"] == ["gftp", "http", "https"]
    assert "golem.srv.comp.vm.package_format" not in properties


def test_an_offer_for_golem_differs_in_what_it_runs_and_in_its_size() -> None:
    ours, theirs = an_offer(), an_offer(runtime="vm")
    differing = {
        name for name in ours.properties | theirs.properties if ours.properties.get(name) != theirs.properties.get(name)
    }
    assert differing == {
        "golem.runtime.name",
        "golem.srv.comp.vm.package_format",
        "golem.inf.cpu.cores",
        "golem.inf.cpu.threads",
        "golem.inf.mem.gib",
        "golem.inf.storage.gib",
    }
    assert theirs.properties["golem.runtime.name"] == "vm"
    assert theirs.properties["golem.srv.comp.vm.package_format"] == "gvmkit-squash"
    assert theirs.constraints == ours.constraints


def sizes(offer: Offer) -> tuple[int, float, float]:
    values = offer.properties
    return values["golem.inf.cpu.threads"], values["golem.inf.mem.gib"], values["golem.inf.storage.gib"]


def test_golem_gets_the_share_or_the_whole_machine() -> None:
    share, whole = build_offers(a_seller(), "vm", PRESET)
    assert (sizes(share), sizes(whole)) == ((2, 4.0, 20.0), (4, 8.0, 40.0))
    assert (share.name, whole.name) == ("vm/test", "vm/test/whole")
    assert (share.smaller, whole.smaller) == ((), (share.properties,))


def test_a_machine_for_one_agreement_is_offered_once() -> None:
    (only,) = build_offers(a_seller(plan=small_plan(slots=1)), "vm", PRESET)
    assert sizes(only) == (4, 8.0, 40.0)


@pytest.mark.parametrize("threads", [0.5, 1, 1.5, 2, 3, 7.9, 16])
@pytest.mark.parametrize("agreements", [None, 1, 2, 5])
def test_an_offer_for_golem_never_says_more_than_an_agreement_gets(threads: float, agreements: int | None) -> None:
    limits = ResourceLimits(cpu_threads=threads, memory_gib=3.3, storage_gib=9.1, max_agreements=agreements)
    seller = a_seller(plan=plan(replace(HARDWARE, cpu=replace(HARDWARE.cpu, threads=16.0)), limits))
    for offer in build_offers(seller, "vm", PRESET):
        said, lot = sizes(offer), offer.lot
        assert lot is not None
        assert Capacity(seller.plan).possible(lot)
        assert said[0] <= lot.cpu_threads or (said[0] == 1 and lot.cpu_threads == threads < 1)
        assert said[1] <= lot.memory_bytes / GIB
        assert said[2] <= lot.storage_bytes / GIB


def test_presets_may_be_for_one_runtime_or_driver() -> None:
    presets = (
        Preset(name="both"),
        Preset(name="golem", runtimes=("vm",)),
        Preset(name="docker", runtimes=("oci",)),
        Preset(name="elsewhere", driver="oci"),
        Preset(name="here", driver="bwrap", runtimes=("oci", "vm")),
    )
    seller = a_seller(plan=small_plan(slots=1))
    assert [offer.name for offer in build_all(seller, ("oci", "vm"), presets)] == [
        "oci/both",
        "oci/docker",
        "oci/here",
        "vm/both",
        "vm/golem",
        "vm/here",
    ]
    with pytest.raises(Misconfigured) as caught:
        build_all(seller, ("oci",), [presets[1], presets[3]])
    assert caught.value.code == "nothing_to_offer"


def test_place_and_reachability_are_said_only_when_known() -> None:
    names = ("golem.node.net.is-public", "golem.node.geo.country_code")
    silent, open_ = an_offer().properties, an_offer(is_public=False, country_code="CH").properties
    assert [silent.get(name) for name in names] == [None, None]
    assert [open_.get(name) for name in names] == [False, "CH"]


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
    offer = an_offer(FREE_PRESET, hardware=hardware, capabilities=Capabilities(available=True))
    assert "golem.inf.cpu.model" not in offer.properties
    assert offer.properties["golem.inf.cpu.threads"] == 4


def test_no_offer_without_an_account() -> None:
    with pytest.raises(Misconfigured, match="account"):
        an_offer(FREE_PRESET, [])


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


KNOWN = [Account(name, "0x1") for name in ("erc20-devnet-tglm", "erc20-holesky-tglm", "channel-devnet-tglm", "free")]


@pytest.mark.parametrize(
    ("platforms", "taken"),
    [
        ((), "channel-devnet-tglm erc20-devnet-tglm erc20-holesky-tglm free"),
        (("erc20-*", "channel-*"), "erc20-devnet-tglm erc20-holesky-tglm channel-devnet-tglm"),
        (("erc20-holesky-tglm",), "erc20-holesky-tglm"),
        (("channel-devnet-tglm", "*"), "channel-devnet-tglm erc20-devnet-tglm erc20-holesky-tglm free"),
    ],
)
def test_the_owner_chooses_platforms_and_their_order(platforms: tuple[str, ...], taken: str) -> None:
    accounts = wanted_accounts(KNOWN, platforms)
    assert [account.platform for account in accounts] == taken.split()
    properties = an_offer(accounts=accounts).properties
    assert properties[PREFERENCE] == [account.platform for account in accounts]
    assert sum(name.endswith(".address") for name in properties) == len(accounts)


def test_platforms_that_the_node_has_not_are_named() -> None:
    with pytest.raises(Misconfigured, match="erc20-devnet-tglm"):
        wanted_accounts(KNOWN, ("channel-polygon-*",))
