"""Every rule of the negotiation: what is taken, what is refused, and whether a refusal is final."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from shem.provider.capacity import Capacity
from shem.provider.negotiators import Counter, Rejection, floors, negotiate, review
from shem.provider.offering import (
    ACCEPT_TIMEOUT,
    COEFFS,
    COVER,
    COVER_AFTER,
    INTERVAL,
    LEAST_COVER,
    PAYMENT_TIMEOUT,
    Offer,
    build_offers,
)
from tests.unit.provider.builders import (
    CHANNEL,
    GVMI,
    PRESET,
    a_demand,
    a_golem_demand,
    a_request,
    a_seller,
    an_offer,
    an_offer_by_channel,
    in_ms,
    small_plan,
)

DAY = timedelta(days=1)
BUNDLE = "oci:sha256:" + "ab" * 32 + ":gftp://0x" + "12" * 20 + "/" + "cd" * 32


def accepted(demand: dict[str, Any], **more: Any) -> dict[str, Any]:
    answer = negotiate(a_request(demand, **more))
    assert isinstance(answer, Counter), answer
    return answer.properties


def refused(demand: dict[str, Any], **more: Any) -> tuple[str, bool]:
    answer = negotiate(a_request(demand, **more))
    assert isinstance(answer, Rejection), answer
    assert answer.message
    return answer.code, answer.is_final


def test_what_the_demand_does_not_mention_is_taken_out() -> None:
    counter = accepted(a_demand())
    assert not {INTERVAL, PAYMENT_TIMEOUT, ACCEPT_TIMEOUT} & counter.keys()
    rest = {k: v for k, v in an_offer().properties.items() if k not in {INTERVAL, PAYMENT_TIMEOUT, ACCEPT_TIMEOUT}}
    assert counter == rest


@pytest.mark.parametrize("spelling", [30, 30.0, "30"])
def test_negotiable_values_come_back_as_they_were_written(spelling: object) -> None:
    counter = accepted(a_demand(interval=spelling, payment=spelling, accept=spelling))
    for name in (INTERVAL, PAYMENT_TIMEOUT, ACCEPT_TIMEOUT):
        assert counter[name] == spelling
        assert type(counter[name]) is type(spelling)


@pytest.mark.parametrize(
    ("change", "code", "is_final"),
    [
        ({"platform": None}, "no_platform", False),
        ({"platform": 7}, "no_platform", False),
        ({"platform": "erc20-mainnet-glm"}, "unknown_platform", True),
        ({"package": None}, "no_package", True),
        ({"package": "nonsense"}, "bad_image", True),
        ({"package": "hash:sha3:" + "ab" * 28 + ":http://h.example/i.gvmi"}, "wrong_image_kind", True),
        ({"package": "oci:docker:///library/busybox:latest"}, "no_default_registry", True),
        ({"payload": "eyJ9"}, "no_manifests", True),
        ({"expiration": None}, "no_expiration", True),
        ({"expiration": "soon"}, "no_expiration", True),
        ({"expiration": in_ms(timedelta(seconds=299))}, "expires_too_soon", True),
        ({"expiration": in_ms(-DAY)}, "expires_too_soon", True),
        ({"expiration": in_ms(timedelta(minutes=31))}, "expires_too_late", False),
        ({"expiration": in_ms(101 * 365 * DAY), "accept": 60, "payment": 60}, "expires_too_late", False),
        ({"expiration": in_ms(DAY), "accept": 60}, "no_payment_timeout", True),
        ({"accept": 241}, "accept_timeout", True),
        ({"accept": "long"}, "accept_timeout", True),
        ({"accept": 4}, "accept_timeout", False),
        ({"interval": 0.5}, "debit_note_interval", True),
        ({"interval": 86401}, "debit_note_interval", True),
        ({"interval": True}, "debit_note_interval", True),
        ({"payment": 0}, "payment_timeout", True),
        ({"payment": 86401}, "payment_timeout", True),
        ({"payment": "1e999"}, "payment_timeout", True),
        ({"coeffs": [0.0, 0.0, 0.0]}, "price", True),
        ({"coeffs": [1.0, 1.0]}, "price", True),
        ({"coeffs": "free"}, "price", True),
        ({"coeffs": [1.0, 1.0, 1e15]}, "price", True),
        ({"mem": "lots"}, "bad_requirement", True),
        ({"mem": 8.01}, "too_big", True),
        ({"cpu": 4.5}, "too_big", True),
        ({"storage": 41}, "too_big", True),
    ],
)
def test_refusals(change: dict[str, Any], code: str, is_final: bool) -> None:
    assert refused(a_demand(**change)) == (code, is_final)


@pytest.mark.parametrize(
    "change",
    [
        {"expiration": in_ms(timedelta(seconds=300))},
        {"expiration": str(in_ms(timedelta(seconds=400)))},
        {"expiration": in_ms(timedelta(minutes=30))},
        {"expiration": in_ms(timedelta(hours=9)), "accept": 60},
        {"expiration": in_ms(10 * 365 * DAY), "accept": 240, "payment": 86400},
        {"accept": 5},
        {"interval": 1},
        {"interval": 86400},
        {"platform": "erc20-other-tglm"},
        {"package": BUNDLE},
        {"mem": 8, "cpu": 4, "storage": 40},
    ],
)
def test_limits_that_are_still_taken(change: dict[str, Any]) -> None:
    accepted(a_demand(**change))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"package": BUNDLE}, "wrong_image_kind"),
        ({"package": "oci:docker://registry.example/library/busybox:latest"}, "wrong_image_kind"),
        ({"package": None}, "no_package"),
        ({"package": None, "payload": "eyJ9"}, "no_manifests"),
        ({"payload": "eyJ9"}, "no_manifests"),
        ({"format": "gvmkit-vmdk"}, "package_format"),
        ({"format": 7}, "package_format"),
        ({"package": GVMI.replace("http:", "ftp:")}, "image_protocol"),
        ({"package": GVMI.replace("abab", "abxx")}, "bad_image"),
    ],
)
def test_refusals_of_the_vm_runtime(change: dict[str, Any], code: str) -> None:
    assert refused(a_golem_demand(**change), offer=an_offer(runtime="vm")) == (code, True)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"format": None},
        {"package": GVMI.replace("http:", "https:")},
        {"package": "hash:sha3:" + "ab" * 32 + ":gftp://0x" + "12" * 20 + "/" + "cd" * 32},
    ],
)
def test_packages_of_the_vm_runtime(change: dict[str, Any]) -> None:
    accepted(a_golem_demand(**change), offer=an_offer(runtime="vm"))


def held(demand: dict[str, Any], offer: Offer, constraints: str) -> tuple[float, int, int]:
    answer = negotiate(a_request(demand, offer=offer, constraints=constraints))
    assert isinstance(answer, Counter), answer
    return answer.resources.cpu_threads, answer.resources.memory_bytes, answer.resources.storage_bytes


DEFAULT_SIZES = "(&(golem.inf.mem.gib>=0.5)(golem.inf.storage.gib>=2.0)(golem.inf.cpu.threads>=1))"
LARGE_SIZES = DEFAULT_SIZES.replace("threads>=1", "threads>=3")


def test_a_demand_without_sizes_gets_what_the_offer_says() -> None:
    share, whole = build_offers(a_seller(), "vm", PRESET)
    assert held(a_golem_demand(), share, DEFAULT_SIZES) == (2, 4 << 30, 20 << 30)
    assert held(a_golem_demand(), whole, LARGE_SIZES) == (4, 8 << 30, 40 << 30)


def test_a_modest_demand_is_sent_to_the_smaller_offer() -> None:
    _, whole = build_offers(a_seller(), "vm", PRESET)
    assert refused(a_golem_demand(), offer=whole, constraints=DEFAULT_SIZES) == ("smaller_offer", True)
    assert refused(a_golem_demand(), offer=whole, constraints="(") == ("bad_constraint", True)


def test_a_demand_that_says_its_sizes_gets_them_on_any_offer() -> None:
    demand = a_golem_demand(mem=1, cpu=1, storage=3)
    for offer in build_offers(a_seller(), "vm", PRESET):
        assert held(demand, offer, DEFAULT_SIZES) == (1, 1 << 30, 3 << 30)


def test_runtimes_share_one_capacity() -> None:
    capacity = Capacity(small_plan())
    share, whole = build_offers(a_seller(), "vm", PRESET)
    assert capacity.reserve("docker", capacity.plan.share)
    assert refused(a_golem_demand(), offer=whole, constraints=LARGE_SIZES, capacity=capacity) == ("no_capacity", False)
    accepted(a_golem_demand(), offer=share, capacity=capacity)
    assert capacity.reserve("golem", share.lot)
    assert refused(a_demand(), capacity=capacity) == ("no_capacity", False)


def test_a_higher_price_is_taken_gladly() -> None:
    offered = an_offer().properties[COEFFS]
    assert accepted(a_demand(coeffs=[value * 2 for value in offered]))[COEFFS] == [value * 2 for value in offered]


def cover_of(properties: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(properties.get(name) for name in (COVER, LEAST_COVER, COVER_AFTER))


def test_who_pays_by_channel_reserves_what_is_asked_for_or_more() -> None:
    offer = an_offer_by_channel()
    assert cover_of(accepted(a_demand(platform=CHANNEL), offer=offer)) == (600, 60, 600)
    more = a_demand(platform=CHANNEL, cover=900, least_cover=61.5, cover_after=86400)
    assert cover_of(accepted(more, offer=offer)) == (900, 61.5, 86400)


def test_who_pays_otherwise_hears_nothing_of_channels() -> None:
    assert cover_of(accepted(a_demand(), offer=an_offer_by_channel())) == (None, None, None)
    assert cover_of(an_offer().properties) == (None, None, None)


@pytest.mark.parametrize(
    "said",
    [
        {"cover": 59},
        {"cover": 7201},
        {"cover": "600"},
        {"least_cover": 59},
        {"least_cover": True},
        {"cover_after": 599},
        {"cover_after": 1e99},
    ],
)
def test_less_is_not_taken(said: dict[str, Any]) -> None:
    assert refused(a_demand(platform=CHANNEL, **said), offer=an_offer_by_channel()) == ("channel_cover", True)


def test_no_capacity_is_not_final() -> None:
    capacity = Capacity(small_plan(slots=1))
    assert capacity.reserve("other", capacity.plan.share)
    assert refused(a_demand(), capacity=capacity) == ("no_capacity", False)
    capacity.release("other")
    accepted(a_demand(), capacity=capacity)


def test_a_rejection_as_the_market_takes_it() -> None:
    reason = Rejection("no_capacity", "full", False).as_reason()
    assert reason == {"message": "full", "code": "no_capacity", "golem.proposal.rejection.is-final": False}


def test_an_agreement_on_the_countered_terms_is_approved() -> None:
    request = a_request(a_demand(interval=30, accept=60))
    counter = negotiate(request)
    assert isinstance(counter, Counter)
    assert isinstance(review(request, counter.properties), Counter)


def test_an_agreement_on_other_terms_is_not() -> None:
    request = a_request(a_demand(interval=30))
    counter = negotiate(request)
    assert isinstance(counter, Counter)
    for forged in (
        counter.properties | {COEFFS: [0.0, 0.0, 0.0]},
        counter.properties | {"golem.inf.mem.gib": 64.0},
        {k: v for k, v in counter.properties.items() if k != INTERVAL},
    ):
        answer = review(request, forged)
        assert isinstance(answer, Rejection)
        assert (answer.code, answer.is_final) == ("terms_changed", True)


def test_floors_of_a_demand() -> None:
    text = (
        "(&(golem.node.debug.subnet=public)\n\t(golem.inf.mem.gib>=0.5)(golem.inf.storage.gib>2)"
        "(|(golem.inf.mem.gib>=1.25)(golem.runtime.name=oci))(golem.inf.cpu.threads>=x))"
    )
    assert floors(text) == {"golem.inf.mem.gib": 1.25, "golem.inf.storage.gib": 2.0}


def test_floors_make_a_generic_client_get_what_it_asked_for() -> None:
    answer = negotiate(a_request(a_demand(), constraints="(golem.inf.mem.gib>=6)"))
    assert isinstance(answer, Counter)
    assert answer.resources.memory_bytes == 6 << 30


def test_answers_are_quick() -> None:
    import time

    request = a_request(a_demand(interval=30), constraints="(&" + "(golem.inf.mem.gib>=0.5)" * 500 + ")")
    began = time.perf_counter()
    negotiate(request)
    assert time.perf_counter() - began < 0.05
