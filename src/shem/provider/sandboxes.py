"""Which sandbox technology this provider uses, and its image store."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from shem.errors import Misconfigured
from shem.provider.capacity import GIB
from shem.provider.config import ProviderConfig
from shem.runtimes.base import Capabilities, Driver
from shem.runtimes.bwrap.driver import BwrapDriver
from shem.runtimes.images.registry import RegistryConfig
from shem.runtimes.images.store import ImageStore, StoreLimits
from shem.runtimes.oci.driver import OciDriver

log = logging.getLogger(__name__)

DRIVERS: dict[str, Callable[[], Driver]] = {"oci": OciDriver, "bwrap": BwrapDriver}
"""All there are, the best first."""


class Chosen(msgspec.Struct, frozen=True):
    """A driver that works here, and what it can do."""

    driver: Driver
    capabilities: Capabilities


async def choose_driver(config: ProviderConfig, units_dir: Path) -> Chosen:
    """The first driver of the owner's list (or of all) whose canary runs; what a crash of it left is swept away.

    Raises ``Misconfigured`` (``no_driver``) with each driver's reason when none works.
    """
    reasons = []
    for name in config.drivers or tuple(DRIVERS):
        make = DRIVERS.get(name)
        if make is None:
            raise Misconfigured(f"there is no driver {name!r}", code="no_driver", hint=f"known are {', '.join(DRIVERS)}")
        driver = make()
        await driver.recover(units_dir)
        capabilities = await driver.probe()
        if capabilities.available:
            log.info("sandboxes are made by %s (%s)", name, capabilities.isolation)
            for note in capabilities.notes:
                log.info("%s: %s", name, note)
            return Chosen(driver, capabilities)
        reasons.append(f"{name}: {capabilities.reason}")
    raise Misconfigured(
        f"no sandbox driver works on this machine ({'; '.join(reasons)})",
        code="no_driver",
        hint="allow unprivileged user namespaces, or install runc or crun and run as root",
    )


def open_image_store(config: ProviderConfig) -> ImageStore:
    """The store of this agent; not yet entered."""
    registry = RegistryConfig(
        default_registry=config.default_registry, insecure_hosts=frozenset(config.insecure_registries)
    )
    return ImageStore(
        config.images, registry=registry, limits=StoreLimits(max_bytes=int(config.image_cache_gib * GIB))
    )
