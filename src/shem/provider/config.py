"""What the owner of a machine decides, read once when the agent starts and never changed while it runs.

The settings live in ``provider.toml`` in the agent's data directory; the command line lays its own over them. Sizes are
GiB and may be fractions, prices are decimal strings of tokens: both are what an owner thinks in. Every value is checked
here, so that nothing later needs to doubt it.
"""

from __future__ import annotations

import platform
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from shem.errors import Misconfigured
from shem.provider.presets import DEFAULT_PRESET, Preset

FILE_NAME = "provider.toml"
MAX_COVER_S = 2 * 3600
MAX_COVER_AFTER_S = 24 * 3600
"""Requestors' nodes reserve no more ahead, and for no longer."""
MAX_GRACE_S = 365 * 24 * 3600
_PLATFORM = re.compile(r"[a-z0-9]{1,32}(-[a-z0-9]{1,32}){0,2}(-?\*)?|\*")


class ResourceLimits(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How much of the machine is for rent. ``None`` = all that is there (less what the system needs)."""

    cpu_threads: float | None = None
    memory_gib: float | None = None
    storage_gib: float | None = None
    max_agreements: int | None = None
    """``None`` = as many as the hardware carries (see :func:`shem.provider.capacity.plan`)."""


class Rules(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What the provider proposes and accepts in a negotiation. Seconds."""

    debit_note_interval_s: int = 120
    payment_timeout_s: int = 120
    accept_timeout_s: int = 240
    interval_range_s: tuple[float, float] = (1, 24 * 3600)
    payment_timeout_range_s: tuple[float, float] = (1, 24 * 3600)
    min_accept_timeout_s: float = 5
    min_expiration_s: float = 300
    max_expiration_s: int = 100 * 365 * 24 * 3600
    """With an accept timeout: somebody watches the bills."""
    max_expiration_unwatched_s: int = 30 * 60
    """Without an accept timeout: work that nobody acknowledges is bounded to this."""
    payment_timeout_required_from_s: int = 10 * 3600
    idle_limit_s: float = 90.0
    """An agreement without an activity for this long is ended (``NoActivity``)."""
    invoice_due_s: int = 24 * 3600
    """When an invoice is due if no payment timeout was negotiated."""
    debt_grace_s: float = 3600
    """Who has not paid an accepted invoice so long after its date gets no new agreement before it is paid."""
    cover_s: int = 600
    """Where deals are paid by channel: the requestor reserves the price of so much full use ahead."""
    least_cover_s: int = 60
    """Nothing starts before the price of so much is reserved in a final block."""
    cover_after_s: int = 600
    """For so long after an agreement's end the reserve lasts, beside the network's own margin."""
    cover_spare_s: float = 5.0
    """The work is stopped when no more than the price of so much full use is left of what is reserved."""
    cover_lead_s: float = 30.0
    """The work is stopped so long before nothing can be accepted any more because the reserve's time is over."""


class ProviderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One run of the provider agent."""

    data_dir: Path
    name: str = ""
    """What requestors see; the host's name by default."""
    subnet: str = "public"
    limits: ResourceLimits = ResourceLimits()
    share: int = 1
    """So many agents share this machine: each offers that part of its memory and disk, and at least one thread."""
    rules: Rules = Rules()
    platforms: tuple[str, ...] = ()
    """Payment platforms that are taken, best first; ``channel-*`` means all that begin so. Empty = all that the node has,
    channels first."""
    presets: tuple[Preset, ...] = (DEFAULT_PRESET,)
    active_presets: tuple[str, ...] = ()
    """By name; empty = the first."""
    runtimes: tuple[Literal["oci", "vm"], ...] = ("oci", "vm")
    """What is offered: ``oci`` runs docker images, ``vm`` the image files (GVMI) of programs written for Golem. One
    that this machine cannot run is left out; one that is asked for alone must work."""
    is_public: bool | None = None
    """Whether requestors reach this machine without help; ``None`` = the offers do not say."""
    country_code: str = ""
    """Two letters (ISO 3166), for requestors that choose by place; empty = the offers do not say."""
    drivers: tuple[str, ...] = ()
    """Sandbox drivers in order of preference, by name; empty = the best that works here."""
    images_dir: Path | None = None
    """Where images are unpacked; ``images`` below the data directory by default."""
    image_cache_gib: float = 20.0
    default_registry: str = ""
    """Where short image names (``python:3.12``) come from; empty = only full names are taken."""
    insecure_registries: tuple[str, ...] = ()
    """``host:port`` of registries spoken to over plain HTTP."""
    web_private_addresses: bool = False
    """Whether http(s) URLs of requestors (transfers, images) may lead to loopback and private addresses: this
    machine's and its owner's network's own services. Only for test networks."""
    shutdown_timeout_s: float = 20.0
    """How long a stopping agent tries to deliver its last notes and invoices."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    def __post_init__(self) -> None:
        _check(self)
        # sandboxes are made by programs with other working directories
        msgspec.structs.force_setattr(self, "data_dir", self.data_dir.absolute())
        if self.images_dir is not None:
            msgspec.structs.force_setattr(self, "images_dir", self.images_dir.absolute())

    @property
    def node_name(self) -> str:
        return self.name or platform.node() or "provider"

    @property
    def enabled(self) -> tuple[Preset, ...]:
        """The presets that are offered."""
        if not self.active_presets:
            return self.presets[:1]
        known = {preset.name: preset for preset in self.presets}
        return tuple(known[name] for name in self.active_presets)

    @property
    def images(self) -> Path:
        """The image store has one owner: agents that share a machine get a directory each."""
        root = self.images_dir or self.data_dir / "images"
        if self.images_dir is None or self.share == 1:
            return root
        return root / re.sub(r"[^A-Za-z0-9._-]", "_", self.node_name).lstrip(".")

    @property
    def units_dir(self) -> Path:
        """Where sandboxes are made."""
        return self.data_dir / "units"


def load_provider_config(data_dir: Path, overrides: Mapping[str, Any] | None = None) -> ProviderConfig:
    """Read ``data_dir/provider.toml`` (if it is there) and lay ``overrides`` (``None`` = not given) over it.

    Overrides are fields of :class:`ProviderConfig` and, for the command line, ``driver`` (``auto`` or a name),
    ``price_start``, ``price_hourly``, ``price_cpu_hourly`` (which change the first active preset), ``threads``,
    ``memory_gib`` and ``storage_gib``. Raises ``Misconfigured`` with the field and what it should be.
    """
    path = data_dir / FILE_NAME
    values: dict[str, Any] = {}
    if path.exists():
        try:
            values = tomllib.loads(path.read_text())
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise Misconfigured(f"{path} cannot be read: {error}", code="bad_provider_config") from error
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    driver = given.pop("driver", "auto")
    if driver != "auto":
        values["drivers"] = [driver]
    limits = {
        field: given.pop(name)
        for name, field in {"threads": "cpu_threads", "memory_gib": "memory_gib", "storage_gib": "storage_gib"}.items()
        if name in given
    }
    if limits:
        values["limits"] = {**values.get("limits", {}), **limits}
    prices = {field: given.pop(name) for name, field in _PRICES.items() if name in given}
    values |= given
    if "platforms" in values and not values["platforms"]:
        raise Misconfigured(
            "platforms names none, so nobody could pay",
            code="bad_platforms",
            hint=f"name some in {path}, such as channel-*, or remove the setting: then all that the node has are taken",
        )
    values["data_dir"] = str(data_dir)
    try:
        config = msgspec.convert(values, ProviderConfig, strict=False, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise Misconfigured(
            f"the provider settings of {data_dir} are wrong: {error}",
            code="bad_provider_config",
            hint=f"correct the named setting in {path} or on the command line",
        ) from error
    return _priced(config, prices) if prices else config


_PRICES = {"price_start": "start", "price_hourly": "env_per_hour", "price_cpu_hourly": "cpu_per_hour"}


def _priced(config: ProviderConfig, prices: Mapping[str, str]) -> ProviderConfig:
    first = config.enabled[0]
    changed = msgspec.structs.replace(first, **prices)
    presets = tuple(changed if preset is first else preset for preset in config.presets)
    return msgspec.structs.replace(config, presets=presets)


def _path(kind: type, value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(kind)


def _check_platforms(platforms: tuple[str, ...]) -> None:
    for name in platforms:
        if not _PLATFORM.fullmatch(name):
            raise Misconfigured(
                f"platforms: {name[:80]!r} is no payment platform",
                code="bad_platforms",
                hint="name them as `shem payment status` does (channel-devnet-tglm), or their beginnings (channel-*)",
            )


def _check(config: ProviderConfig) -> None:
    names = [preset.name for preset in config.presets]
    if not names or len(set(names)) != len(names):
        raise Misconfigured("there must be a preset, and each needs its own name", code="bad_preset")
    missing = [name for name in config.active_presets if name not in names]
    if missing:
        raise Misconfigured(
            f"active preset {missing[0]!r} does not exist", code="bad_preset", hint=f"known presets: {', '.join(names)}"
        )
    limits = config.limits
    for name in ("cpu_threads", "memory_gib", "storage_gib", "max_agreements"):
        value = getattr(limits, name)
        if value is not None and not value > 0:
            raise Misconfigured(f"limits.{name} must be greater than zero, not {value}", code="bad_limit")
    if config.share < 1:
        raise Misconfigured(f"share must be at least 1, not {config.share}", code="bad_limit")
    if not config.runtimes or len(set(config.runtimes)) != len(config.runtimes):
        raise Misconfigured("runtimes must name oci, vm or both, each once", code="bad_runtimes")
    if config.country_code and not re.fullmatch(r"[A-Z]{2}", config.country_code):
        raise Misconfigured(
            f"country_code must be two capital letters, not {config.country_code!r}", code="bad_country"
        )
    _check_platforms(config.platforms)
    rules = config.rules
    for name in ("debit_note_interval_s", "payment_timeout_s", "accept_timeout_s"):
        if getattr(rules, name) <= 0:
            raise Misconfigured(f"rules.{name} must be greater than zero", code="bad_rule")
    if rules.accept_timeout_s < rules.min_accept_timeout_s:
        raise Misconfigured(
            f"rules.accept_timeout_s must not be less than rules.min_accept_timeout_s ({rules.min_accept_timeout_s:g} s)",
            code="bad_rule",
        )
    for name in ("cover_s", "least_cover_s"):
        if not 0 < getattr(rules, name) <= MAX_COVER_S:
            raise Misconfigured(f"rules.{name} must be from 1 to {MAX_COVER_S} s", code="bad_rule")
    if rules.least_cover_s > rules.cover_s:
        raise Misconfigured("rules.least_cover_s must not be more than rules.cover_s", code="bad_rule")
    if not 0 <= rules.cover_after_s <= MAX_COVER_AFTER_S:
        raise Misconfigured(f"rules.cover_after_s must be from 0 to {MAX_COVER_AFTER_S} s", code="bad_rule")
    for name in ("cover_spare_s", "cover_lead_s"):
        if not 0 <= getattr(rules, name) <= MAX_COVER_S:
            raise Misconfigured(f"rules.{name} must be from 0 to {MAX_COVER_S} s", code="bad_rule")
    if rules.cover_spare_s >= rules.cover_s:  # the work would be stopped as soon as it starts
        raise Misconfigured("rules.cover_spare_s must be less than rules.cover_s", code="bad_rule")
    if not 0 <= rules.debt_grace_s <= MAX_GRACE_S:
        raise Misconfigured(f"rules.debt_grace_s must be from 0 to {MAX_GRACE_S} s", code="bad_rule")
    for name in ("interval_range_s", "payment_timeout_range_s"):
        low, high = getattr(rules, name)
        if not 0 < low <= high:
            raise Misconfigured(f"rules.{name} must be a range of positive seconds", code="bad_rule")
    if not re.fullmatch(r"[A-Za-z0-9_.:;/ -]{1,128}", config.subnet) or config.subnet != config.subnet.strip():
        raise Misconfigured(
            f"subnet {config.subnet!r} cannot be used in a constraint",
            code="bad_subnet",
            hint="letters, digits, spaces and _.:;/- can, as every requestor reads them",
        )
