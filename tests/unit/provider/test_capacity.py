"""Dividing a machine, and never letting the same part of it twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shem.errors import Misconfigured, Refused
from shem.provider.capacity import GIB, Capacity, Resources, plan, wanted_by
from shem.provider.config import ResourceLimits
from shem.provider.hardware import Cpu, Hardware
from tests.unit.provider.builders import HARDWARE, a_demand, small_plan


def test_as_many_agreements_as_threads() -> None:
    found = plan(HARDWARE, ResourceLimits())
    assert found.slots == 8
    assert found.share.cpu_threads == 1.0
    assert found.share.memory_bytes * 8 <= found.total.memory_bytes <= HARDWARE.memory_bytes
    assert found.share.storage_bytes * 8 <= found.total.storage_bytes <= 90 * GIB


def test_scarce_memory_makes_fewer_shares() -> None:
    found = plan(HARDWARE, ResourceLimits(memory_gib=1.0))
    assert found.slots == 2


def test_the_owner_may_promise_more_agreements_than_threads() -> None:
    assert plan(HARDWARE, ResourceLimits(cpu_threads=2, max_agreements=5)).slots == 5


def test_the_owner_never_gets_more_than_there_is() -> None:
    found = plan(HARDWARE, ResourceLimits(cpu_threads=99, memory_gib=999, storage_gib=9999))
    assert found.total.cpu_threads == 8
    assert found.total.memory_bytes < HARDWARE.memory_bytes
    assert found.total.storage_bytes < HARDWARE.disk_free_bytes


def test_agents_that_share_a_machine_offer_a_thread_each() -> None:
    small = Hardware(
        cpu=Cpu(architecture="x86_64", cores=2, threads=2.0), memory_bytes=8 * GIB, disk_free_bytes=9 * GIB
    )
    found = plan(small, ResourceLimits(), agents=3)
    assert found.total.cpu_threads == 1.0
    assert found.total.memory_bytes * 3 <= 8 * GIB


def test_a_machine_with_nothing_to_rent() -> None:
    full = Hardware(cpu=HARDWARE.cpu, memory_bytes=8 * GIB, disk_free_bytes=1000)
    with pytest.raises(Misconfigured, match="nothing to rent"):
        plan(full, ResourceLimits())


def test_an_ended_agreement_gives_back_what_it_held() -> None:
    ledger = Capacity(small_plan())
    half = ledger.plan.share
    assert ledger.reserve("a", half)
    assert ledger.reserve("a", half), "asking again changes nothing"
    assert ledger.reserve("b", half)
    assert not ledger.fits(half)
    assert ledger.release("a")
    assert not ledger.release("a")
    assert ledger.fits(half)


def test_slots_are_a_limit_of_their_own() -> None:
    ledger = Capacity(small_plan(slots=2))
    tiny = Resources(cpu_threads=0.1, memory_bytes=1, storage_bytes=1)
    assert ledger.reserve("a", tiny)
    assert ledger.reserve("b", tiny)
    assert not ledger.reserve("c", tiny)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.floats(0.1, 5), st.integers(1, 9 * GIB)), max_size=40))
def test_the_machine_is_never_promised_twice(steps: list[tuple[int, bool, float, int]]) -> None:
    ledger = Capacity(small_plan(slots=4))
    for key, take, threads, size in steps:
        if take:
            ledger.reserve(str(key), Resources(cpu_threads=threads, memory_bytes=size, storage_bytes=size))
        else:
            ledger.release(str(key))
        assert ledger.free.cpu_threads >= -1e-6
        assert ledger.free.memory_bytes >= 0
        assert ledger.free.storage_bytes >= 0
        assert len(ledger.held) <= 4


def test_what_a_demand_needs() -> None:
    share = small_plan().share
    assert wanted_by(a_demand(), {}, share) == share
    exact = wanted_by(a_demand(mem=0.25, cpu=0.5, storage=1, pids=64), {}, share)
    assert exact == Resources(cpu_threads=0.5, memory_bytes=GIB // 4, storage_bytes=GIB, pids=64)
    text = wanted_by(a_demand(mem="0.25"), {}, share)
    assert text.memory_bytes == GIB // 4
    by_constraint = wanted_by(a_demand(), {"golem.inf.mem.gib": 6.0, "golem.inf.cpu.threads": 1.0}, share)
    assert (by_constraint.memory_bytes, by_constraint.cpu_threads) == (6 * GIB, share.cpu_threads)


@pytest.mark.parametrize("value", [0, -1, "much", True, [1], float("inf"), 1e12])
def test_needs_that_make_no_sense(value: object) -> None:
    with pytest.raises(Refused, match=r"require\.mem\.gib"):
        wanted_by(a_demand(mem=value), {}, small_plan().share)
