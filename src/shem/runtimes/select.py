"""Which sandbox technology this machine offers: decided by running one, never by looking for a file."""

from __future__ import annotations

from collections.abc import Callable

from shem.errors import Misconfigured
from shem.runtimes.base import Driver
from shem.runtimes.bwrap.driver import BwrapDriver
from shem.runtimes.oci.driver import OciDriver

DRIVERS: dict[str, Callable[[], Driver]] = {"oci": OciDriver, "bwrap": BwrapDriver}
"""In order of preference: hard limits first."""


async def choose_driver(preference: str = "auto") -> Driver:
    """The first driver that works, or the one that is named.

    Raises :class:`~shem.errors.Misconfigured` that says, for each one tried, what is missing.
    """
    if preference != "auto" and preference not in DRIVERS:
        known = ", ".join(("auto", *DRIVERS))
        raise Misconfigured(
            f"There is no sandbox driver {preference!r}", code="unknown_driver", hint=f"One of: {known}"
        )
    missing = []
    for name in DRIVERS if preference == "auto" else (preference,):
        driver = DRIVERS[name]()
        found = await driver.probe()
        if found.available:
            return driver
        missing.append(f"{name}: {found.reason}")
    raise Misconfigured(
        f"No sandbox works on this machine ({'; '.join(missing)})",
        code="no_driver",
        hint="Allow unprivileged user namespaces, or run as root with runc or crun installed",
    )
