"""How much of the machine is let, and to whom: a ledger that never promises the same thread or byte twice.

The owner's limits and the hardware give the *total*; the total divided by the number of agreements gives the *share* of
an agreement that does not say what it needs. An agreement holds its resources from the moment it is proposed to us
until it has ended, so two that come in the same instant cannot both take the last of something.

Demands of our SDK say what they need (:data:`~shem.terms.resources.REQUIRE`); programs written for Golem do not: they choose
an offer by what it says and expect to get that. So what is offered to them is a *lot* (:func:`lots`): the share in whole
threads, and the whole machine for those whom the share does not suffice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from shem.errors import Misconfigured, Refused
from shem.provider.config import ResourceLimits
from shem.provider.hardware import Hardware
from shem.terms.resources import REQUIRE

GIB = 1 << 30

_RESERVED_MEMORY = 512 << 20
_MIN_SHARE_MEMORY = 512 << 20
_MIN_SHARE_STORAGE = 2 * GIB
_DISK_HEADROOM = 0.9
"""The part of the free disk that may be let: images and the system need the rest."""
_MAX_SLOTS = 256
_DEFAULT_PIDS = 1024
_MAX_PIDS = 32768
_EPSILON = 1e-9


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """An amount of machine."""

    cpu_threads: float
    memory_bytes: int
    storage_bytes: int
    pids: int = _DEFAULT_PIDS
    """A limit, not a stock: not counted against a total."""


class Plan(msgspec.Struct, frozen=True):
    """What is for rent in all, and by default to one agreement."""

    total: Resources
    share: Resources
    slots: int


def plan(hardware: Hardware, limits: ResourceLimits, agents: int = 1) -> Plan:
    """Divide the machine, of which ``agents`` agents have an equal part each.

    Threads are then shared out whole: at least one each, as the kernel divides its time fairly anyway.
    Raises ``Misconfigured`` when the owner's limits leave nothing to rent.
    """
    threads = hardware.cpu.threads
    if agents > 1:
        threads = min(threads, max(1.0, threads // agents))
    threads = min(threads, limits.cpu_threads or math.inf)
    memory = max(hardware.memory_bytes - _RESERVED_MEMORY, hardware.memory_bytes // 2) // agents
    memory = min(memory, _bytes(limits.memory_gib) or memory)
    storage = int(hardware.disk_free_bytes * _DISK_HEADROOM) // agents
    storage = min(storage, _bytes(limits.storage_gib) or storage)
    if threads < 0.01 or memory < (16 << 20) or storage < (16 << 20):
        raise Misconfigured(
            f"there is nothing to rent: {threads:g} threads, {memory >> 20} MiB memory, {storage >> 20} MiB disk",
            code="nothing_to_rent",
            hint="free some disk, or raise the limits in the provider's settings",
        )
    slots = limits.max_agreements or min(
        max(1, int(threads)), max(1, memory // _MIN_SHARE_MEMORY), max(1, storage // _MIN_SHARE_STORAGE)
    )
    slots = min(slots, _MAX_SLOTS)
    total = Resources(cpu_threads=threads, memory_bytes=memory, storage_bytes=storage)
    share = Resources(
        cpu_threads=threads / slots,
        memory_bytes=memory // slots,
        storage_bytes=storage // slots,
    )
    return Plan(total, share, slots)


def lots(plan: Plan) -> tuple[Resources, ...]:
    """The sizes in which the machine is let to those who do not say what they need, from small to large.

    An offer names whole threads and at least one, so a lot has that: where the share is less than a thread, fewer
    agreements fit at once than there are slots. The largest lot is the whole machine.
    """
    total, share = plan.total, plan.share
    threads = min(total.cpu_threads, max(1.0, math.floor(share.cpu_threads)))
    small = msgspec.structs.replace(share, cpu_threads=threads)
    return (small, total) if small != total and plan.slots > 1 else (total,)


class Capacity:
    """The ledger. Keys are agreement ids."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._held: dict[str, Resources] = {}

    @property
    def held(self) -> Mapping[str, Resources]:
        return self._held

    @property
    def free(self) -> Resources:
        """What nobody holds."""
        total, held = self.plan.total, self._held.values()
        return Resources(
            cpu_threads=total.cpu_threads - sum(r.cpu_threads for r in held),
            memory_bytes=total.memory_bytes - sum(r.memory_bytes for r in held),
            storage_bytes=total.storage_bytes - sum(r.storage_bytes for r in held),
        )

    def possible(self, wanted: Resources) -> bool:
        """Would ``wanted`` fit if the machine were empty?"""
        return _fits(wanted, self.plan.total)

    def fits(self, wanted: Resources) -> bool:
        """Does ``wanted`` fit now?"""
        return len(self._held) < self.plan.slots and _fits(wanted, self.free)

    def reserve(self, key: str, wanted: Resources) -> bool:
        """Hold ``wanted`` for ``key`` if it fits. Repeating a reservation changes nothing."""
        if key in self._held:
            return True
        if not self.fits(wanted):
            return False
        self._held[key] = wanted
        return True

    def release(self, key: str) -> bool:
        """Give back what ``key`` holds; tells whether it held anything."""
        return self._held.pop(key, None) is not None


def says_what_it_needs(demand: Mapping[str, Any]) -> bool:
    """Whether a demand has any of our size properties."""
    return any(name.startswith(REQUIRE) for name in demand)


def wanted_by(demand: Mapping[str, Any], floors: Mapping[str, float], share: Resources) -> Resources:
    """What one agreement of this demand would hold.

    In this order: what the demand requires outright (``golem.!exp.shem.v1.require.*``); what its constraints ask of the
    offer (``floors``: property name → lower bound), where that is more than the share; the share. Raises ``Refused``
    (``bad_requirement``) for a requirement that is not a positive number.
    """
    cpus = _required(demand, "cpu.threads")
    memory = _required(demand, "mem.gib")
    storage = _required(demand, "storage.gib")
    pids = _required(demand, "pids")
    if cpus is None:
        cpus = max(share.cpu_threads, floors.get("golem.inf.cpu.threads", 0.0))
    memory_bytes = (
        int(memory * GIB)
        if memory is not None
        else max(share.memory_bytes, int(floors.get("golem.inf.mem.gib", 0.0) * GIB))
    )
    storage_bytes = (
        int(storage * GIB)
        if storage is not None
        else max(share.storage_bytes, int(floors.get("golem.inf.storage.gib", 0.0) * GIB))
    )
    return Resources(
        cpu_threads=cpus,
        memory_bytes=memory_bytes,
        storage_bytes=storage_bytes,
        pids=min(int(pids), _MAX_PIDS) if pids is not None else share.pids,
    )


def _required(demand: Mapping[str, Any], name: str) -> float | None:
    value = demand.get(REQUIRE + name)
    if value is None:
        return None
    if isinstance(value, str):  # generic clients write every property as text
        try:
            value = float(value)
        except ValueError:
            value = None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise Refused(
            f"{REQUIRE}{name} must be a number greater than zero, not {demand.get(REQUIRE + name)!r}",
            code="bad_requirement",
        )
    return float(value)


def _fits(wanted: Resources, into: Resources) -> bool:
    return (
        wanted.cpu_threads <= into.cpu_threads + _EPSILON
        and wanted.memory_bytes <= into.memory_bytes
        and wanted.storage_bytes <= into.storage_bytes
    )


def _bytes(gib: float | None) -> int:
    return int(gib * GIB) if gib is not None else 0
