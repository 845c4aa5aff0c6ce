"""What the operator decides, read once at start and frozen.

Sources, later ones win: the defaults here, ``config.toml`` in the data directory, the environment (the names that Golem's
daemon reads where they mean the same), the command line.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from shem.errors import Misconfigured

MIN_KEY, MAX_KEY = 8, 200
"""Characters of an app key."""


class NetworkConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A chain that this node pays on and is paid on; overrides the published table's entry of the same name."""

    chain_id: int
    rpc_urls: tuple[str, ...]
    token: str
    """Address of the ERC-20 contract."""
    token_symbol: str = "GLM"  # noqa: S105 - a ticker
    depth: int | None = None
    """Blocks on top that make a payment final; ``None``: the chain's own ``finalized`` tag."""
    aliases: tuple[str, ...] = ()
    """Other names for the same chain and money, for programs that know no other (``holesky`` is their default). Only for
    test networks of one's own."""


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One node."""

    data_dir: Path
    api_host: str = "127.0.0.1"
    """REST carries app keys in plain HTTP: keep it on loopback, or put a TLS proxy in front."""
    api_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 7465
    """0 takes a free port; the line that ``node run --json`` prints tells it."""
    peer_bind: str = "0.0.0.0:0"
    bootstrap: tuple[str, ...] = ()
    """Addresses of peers to find others through, as ``shem identity show`` prints them."""
    app_key: Annotated[str, msgspec.Meta(min_length=MIN_KEY, max_length=MAX_KEY)] | None = None
    """A key to create at start under the name ``autoconfigured``."""
    name: str = ""
    networks: Mapping[str, NetworkConfig] = {}
    max_spool_bytes: int = 64 << 30
    """Disk that inputs and results in transit may take."""
    max_offers_each: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 200
    """Live offers, and live demands, of one identity; also offers of one other node that are kept here."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"


_ENVIRONMENT = {
    "YAGNA_AUTOCONF_APPKEY": "app_key",
    "SHEM_PEER_BIND": "peer_bind",
    "SHEM_LOG_LEVEL": "log_level",
}


def load_config(data_dir: Path, overrides: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> NodeConfig:
    """Read ``data_dir/config.toml`` and lay the environment and ``overrides`` (``None`` = not given) over it.

    Raises :class:`~shem.errors.Misconfigured` naming the file, the field and what it should be.
    """
    env = os.environ if environ is None else environ
    data_dir = data_dir.expanduser().absolute()
    path = data_dir / "config.toml"
    values: dict[str, Any] = {}
    if path.exists():
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Misconfigured(f"{path} cannot be read: {error}", code="bad_config") from error
    said_by = dict.fromkeys(values, str(path))
    for name, field in _ENVIRONMENT.items():
        if env.get(name):
            values[field], said_by[field] = env[name], name
    given = {k: v for k, v in overrides.items() if v is not None}
    values |= given
    said_by |= {field: f"--{field.replace('_', '-')}" for field in given}
    values["data_dir"] = str(data_dir)
    if isinstance(values.get("log_level"), str):
        values["log_level"] = values["log_level"].upper()
    try:
        return msgspec.convert(values, NodeConfig, strict=False, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise Misconfigured(_complaint(str(error), said_by), code="bad_config") from error


def _complaint(words: str, said_by: Mapping[str, str]) -> str:
    """Who said it, which field, and what is wrong. The library names no values, which may be secret."""
    if unknown := re.search(r"unknown field `(\w+)`(?: - at `\$\.?(.*)`)?", words):
        table = unknown[2] or ""
        source = said_by.get((table or unknown[1]).split(".")[0].split("[")[0], "the configuration")
        return f"{source}: {table + '.' if table else ''}{unknown[1]} is no setting of a node"
    what, _, place = words.partition(" - at `$")
    field = place.strip("`.")
    return f"{said_by.get(field.split('.')[0].split('[')[0], 'the configuration')}: {field}: {what}"


def _path(kind: type, value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(kind)
