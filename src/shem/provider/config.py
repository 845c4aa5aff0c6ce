"""What the owner of a machine decides, read once when the agent starts and never changed while it runs.

The settings live as ``provider.json`` in the agent's data directory, written by :func:`save` and read by :func:`load`;
what one run adds (where the node is, its key) comes with the call and is never written. Sizes in the file are GiB and
may be fractions, prices are decimal strings of tokens: both are what an owner thinks in. Every value is checked here,
so that nothing later needs to doubt it.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import msgspec

from shem.errors import Misconfigured
from shem.provider.presets import DEFAULT_PRESET, Preset

FILE_NAME = "provider.json"


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
    interval_range_s: tuple[int, int] = (1, 24 * 3600)
    payment_timeout_range_s: tuple[int, int] = (1, 24 * 3600)
    min_accept_timeout_s: int = 5
    min_expiration_s: int = 300
    max_expiration_s: int = 100 * 365 * 24 * 3600
    """With an accept timeout: somebody watches the bills."""
    max_expiration_unwatched_s: int = 30 * 60
    """Without an accept timeout: work that nobody acknowledges is bounded to this."""
    payment_timeout_required_from_s: int = 10 * 3600
    idle_limit_s: float = 90.0
    """An agreement without an activity for this long is ended (``NoActivity``)."""
    invoice_due_s: int = 24 * 3600
    """When an invoice is due if no payment timeout was negotiated."""


class ProviderConfig(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    """One run of the provider agent."""

    data_dir: Path
    api_url: str = "http://127.0.0.1:7465"
    app_key: str = ""
    node_name: str = ""
    subnet: str = "public"
    limits: ResourceLimits = ResourceLimits()
    rules: Rules = Rules()
    presets: tuple[Preset, ...] = (DEFAULT_PRESET,)
    active_presets: tuple[str, ...] = (DEFAULT_PRESET.name,)
    drivers: tuple[str, ...] = ()
    """Sandbox drivers in order of preference, by name; empty = the best that works here."""
    default_registry: str = ""
    """Where short image names (``python:3.12``) come from; empty = only full names are taken."""
    insecure_registries: tuple[str, ...] = ()
    """``host:port`` of registries spoken to over plain HTTP."""
    image_cache_gib: float = 20.0
    shutdown_timeout_s: float = 30.0
    """How long a stopping agent tries to deliver its last notes and invoices."""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def enabled(self) -> tuple[Preset, ...]:
        """The presets that are offered."""
        known = {preset.name: preset for preset in self.presets}
        return tuple(known[name] for name in self.active_presets)

    @property
    def idle_limit(self) -> timedelta:
        return timedelta(seconds=self.rules.idle_limit_s)


class _Stored(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    """The part of :class:`ProviderConfig` that outlives a run."""

    node_name: str = ""
    subnet: str = "public"
    limits: ResourceLimits = ResourceLimits()
    rules: Rules = Rules()
    presets: tuple[Preset, ...] = (DEFAULT_PRESET,)
    active_presets: tuple[str, ...] = (DEFAULT_PRESET.name,)
    drivers: tuple[str, ...] = ()
    default_registry: str = ""
    insecure_registries: tuple[str, ...] = ()
    image_cache_gib: float = 20.0
    shutdown_timeout_s: float = 30.0


def load(data_dir: Path, *, api_url: str, app_key: str) -> ProviderConfig:
    """The stored settings of ``data_dir`` (defaults where there is no file). Raises ``Misconfigured``."""
    path = data_dir / FILE_NAME
    stored = _Stored()
    if path.exists():
        try:
            stored = msgspec.json.decode(path.read_bytes(), type=_Stored)
        except msgspec.MsgspecError as error:
            raise Misconfigured(
                f"{path} is not a provider configuration: {error}",
                code="bad_provider_config",
                hint="correct the named setting, or move the file away to start from the defaults",
            ) from None
    values = {name: getattr(stored, name) for name in stored.__struct_fields__}
    return ProviderConfig(data_dir=data_dir, api_url=api_url, app_key=app_key, **values)


def save(config: ProviderConfig) -> None:
    """Write the lasting part of ``config`` to its data directory; the file is replaced in one step."""
    stored = _Stored(**{name: getattr(config, name) for name in _Stored.__struct_fields__})
    config.data_dir.mkdir(parents=True, exist_ok=True)
    path = config.data_dir / FILE_NAME
    draft = path.with_suffix(".new")
    with draft.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(stored), indent=2) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _check(config: ProviderConfig) -> None:
    names = [preset.name for preset in config.presets]
    if len(set(names)) != len(names):
        raise Misconfigured("two presets have the same name", code="bad_preset", hint="give each its own name")
    missing = [name for name in config.active_presets if name not in names]
    if missing:
        raise Misconfigured(
            f"active preset {missing[0]!r} does not exist", code="bad_preset", hint=f"known presets: {', '.join(names)}"
        )
    if not config.active_presets:
        raise Misconfigured("no preset is active, so nothing would be offered", code="bad_preset")
    limits = config.limits
    for name in ("cpu_threads", "memory_gib", "storage_gib", "max_agreements"):
        value = getattr(limits, name)
        if value is not None and not value > 0:
            raise Misconfigured(f"limits.{name} must be greater than zero, not {value}", code="bad_limit")
    rules = config.rules
    for name in ("interval_range_s", "payment_timeout_range_s"):
        low, high = getattr(rules, name)
        if not 0 < low <= high:
            raise Misconfigured(f"rules.{name} must be a range of positive seconds", code="bad_rule")
    if not config.subnet or len(config.subnet) > 128 or any(c in config.subnet for c in "()*\n"):
        raise Misconfigured(f"subnet {config.subnet!r} cannot be used in a constraint", code="bad_subnet")
