"""Which sandbox technology this provider uses, which kinds of image it can read, and its image store."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from shem.errors import Misconfigured
from shem.provider.capacity import GIB
from shem.provider.config import ProviderConfig
from shem.provider.offering import VM, Runtime
from shem.runtimes.base import Capabilities, Driver
from shem.runtimes.images.gvmi import gvmi_available
from shem.runtimes.images.registry import RegistryConfig
from shem.runtimes.images.store import ImageStore, StoreLimits
from shem.runtimes.select import DRIVERS

log = logging.getLogger(__name__)


class Chosen(msgspec.Struct, frozen=True):
    """A driver that works here, and what it can do."""

    driver: Driver
    capabilities: Capabilities


async def choose_driver(config: ProviderConfig) -> Chosen:
    """The first driver of the owner's list (or of all) whose canary runs. What crashed runs left is swept away.

    Raises ``Misconfigured`` (``no_driver``) with each driver's reason when none works.
    """
    unknown = [name for name in config.drivers if name not in DRIVERS]
    if unknown:
        raise Misconfigured(
            f"there is no sandbox driver {unknown[0]!r}", code="unknown_driver", hint=f"known are {', '.join(DRIVERS)}"
        )
    reasons = []
    for name in config.drivers or tuple(DRIVERS):
        driver = DRIVERS[name]()
        await driver.recover(config.units_dir)
        capabilities = await driver.probe()
        if capabilities.available:
            log.info("sandboxes are made by %s (%s)", name, capabilities.isolation)
            for note in capabilities.notes:
                log.info("%s: %s", name, note)
            return Chosen(driver, capabilities)
        reasons.append(f"{name}: {capabilities.reason}")
    raise Misconfigured(
        f"no sandbox works on this machine ({'; '.join(reasons)})",
        code="no_driver",
        hint="allow unprivileged user namespaces, or run as root with runc or crun installed",
    )


async def choose_runtimes(config: ProviderConfig) -> tuple[Runtime, ...]:
    """Those of the owner's that work here.

    Raises ``Misconfigured`` (``no_runtime``) when none does.
    """
    if VM not in config.runtimes or (reason := await asyncio.to_thread(gvmi_available)) is None:
        return config.runtimes
    others = tuple(name for name in config.runtimes if name != VM)
    if not others:
        raise Misconfigured(
            f"image files for the runtime vm cannot be read here: {reason}",
            code="no_runtime",
            hint="install squashfs-tools-ng, or offer docker images: runtimes = ['oci']",
        )
    log.warning("the runtime vm is not offered: %s", reason)
    return others


def open_image_store(config: ProviderConfig) -> ImageStore:
    """The store of this agent; not yet entered."""
    registry = RegistryConfig(
        default_registry=config.default_registry, insecure_hosts=frozenset(config.insecure_registries)
    )
    limits = StoreLimits(max_bytes=int(config.image_cache_gib * GIB))
    return ImageStore(config.images, registry=registry, limits=limits)
