"""What the operator decides, read once at start and frozen.

Sources, later ones win: the defaults here, ``config.toml`` in the data directory, the environment (the names that Golem's
daemon reads where they mean the same), the command line.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from shem.errors import Misconfigured

MIN_KEY, MAX_KEY = 8, 200
"""Characters of an app key."""
_NETWORK = re.compile(r"[a-z0-9]{1,32}")
_SYMBOL = re.compile(r"[\w.+$]{1,32}")


class NetworkConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A chain that this node pays on and is paid on; overrides the published table's entry of the same name."""

    chain_id: Annotated[int, msgspec.Meta(ge=1)]
    rpc_urls: tuple[str, ...]
    token: str
    """Address of the ERC-20 contract."""
    token_symbol: str = "GLM"  # noqa: S105 - a ticker
    vault: str = ""
    """Address of the vault of payment channels over this token; ``standard``: the one where everybody finds it, once
    somebody has put it there (``shem payment deploy-vault``); empty: nobody pays or is paid by channel here."""
    multi_transfer: str = ""
    """Address of the contract that pays many receivers of this token in one transaction; empty: the published one, where
    the network and the token are published."""
    payout: str = ""
    """An address on this network that is paid instead of this node's own account; empty: as the node's ``payout`` says."""
    depth: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Blocks on top that make a payment final; ``None``: the chain's own ``finalized`` tag."""
    max_fee_gwei: str = ""
    """Most that is ever offered for a unit of gas, as a decimal number; above it payments wait and say so. Empty: what is
    usual on the network."""
    max_tip_gwei: str = ""
    """Most of it that goes to whoever makes the block."""
    pay_ahead_s: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """How long before its date a bill that is paid by transfer is paid, together with what else waits; ``None``: what is usual
    on the network."""
    max_head_age_s: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """An endpoint whose last block is older has fallen behind and is not asked; 0 for a chain that rests when idle;
    ``None``: what is usual on the network."""
    finality_s: Annotated[float, msgspec.Meta(gt=0, le=86400)] | None = None
    """How long it usually takes until a block is final; tell it together with ``depth``. ``None``: what is usual there."""
    cover_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=86400)] | None = None
    """How long a provider waits for money to be reserved for an agreement paid by channel; ``None``: by ``finality_s``."""
    settle_after_s: Annotated[float, msgspec.Meta(gt=0, le=90 * 86400)] | None = None
    """What is due on a channel that goes on is paid on the chain after so long; ``None``: after a day."""
    credit: str = "0"
    """Tokens' worth of work, as a decimal number, that a provider does for each requestor beyond what it has reserved:
    before its reserve is final, say. All of it may be lost, to everyone who cares to come under a new name."""
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
    id_secret: Annotated[str, msgspec.Meta(pattern=r"^(0x)?[0-9a-fA-F]{64}$")] | None = None
    """The secp256k1 secret, in hex, of an identity that is made at the first start. Better given by the environment."""
    api_allow_origin: tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=253)], ...] = ()
    """Web pages that may use this node from a browser, such as ``https://example.org``; ``*`` is any. They need a key too."""
    api_max_age_s: Annotated[int, msgspec.Meta(ge=0, le=86400)] = 3600
    """How long a browser may remember that they may."""
    max_rest_timeout_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 60.0
    """Longer polls are shortened to this."""
    market_events_default: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 20
    market_events_max: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    """How many events a collector of offers' and demands' events gets who names no number, and at most."""
    subscription_ttl_s: Annotated[float, msgspec.Meta(ge=1, le=30 * 24 * 3600)] = 3600.0
    """How long an offer or demand lives without its agent asking for events."""
    passphrase_file: Path | None = None
    """Opens the identity's key file, where that has a passphrase of the owner's: its first line. Without it the node starts
    locked."""
    payout: str = ""
    """An address that is paid instead of this node's own account; its key need not be here. Each node needs one of its own:
    two that share one cannot tell which of them was paid. Nobody here can agree to an early end of a channel that pays
    there: its payer settles it, and gets the rest back after the term."""
    name: str = ""
    networks: Mapping[str, NetworkConfig] = {}
    max_spool_bytes: int = 64 << 30
    """Disk that inputs and results in transit may take."""
    max_offers_each: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 200
    """Live offers, and live demands, of one identity; also offers of one other node that are kept here."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"

    def __repr__(self) -> str:
        return f"NodeConfig({str(self.data_dir)!r})"  # some fields are secrets


def _as(field: str) -> Callable[[str], dict[str, Any]]:
    return lambda text: {field: text}


def _origins(text: str) -> dict[str, Any]:
    return {"api_allow_origin": text.replace(",", " ").split()}


def address_of(url: str) -> dict[str, Any]:
    """``api_host`` and ``api_port`` of ``http://127.0.0.1:7465``. Raises :class:`ValueError`."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query:
        raise ValueError("expected http://host:port")
    return {"api_host": parts.hostname, "api_port": 80 if parts.port is None else parts.port}


def _udp(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    if parts.scheme != "udp" or not parts.hostname:
        raise ValueError("expected udp://ip:port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return {"peer_bind": f"{host}:{parts.port or 0}"}


_UNITS = {
    name: seconds
    for seconds, names in (
        (0.001, "ms msec"),
        (1, "s sec secs second seconds"),
        (60, "m min mins minute minutes"),
        (3600, "h hr hour hours"),
        (86400, "d day days"),
    )
    for name in names.split()
}


def seconds_of(text: str) -> float:
    """``1h 30m`` as the original daemon reads it. Raises :class:`ValueError`."""
    text = text.strip().lower()
    if not re.fullmatch(r"(?:\d{1,9}\s*[a-z]+\s*)+", text):
        raise ValueError("expected a duration such as 1h")
    parts = [(int(number), unit) for number, unit in re.findall(r"(\d+)\s*([a-z]+)", text)]
    if not all(unit in _UNITS for _, unit in parts):
        raise ValueError("expected a duration such as 1h")
    return sum(number * _UNITS[unit] for number, unit in parts)


_ENVIRONMENT: dict[str, Callable[[str], dict[str, Any]]] = {
    "YAGNA_AUTOCONF_APPKEY": _as("app_key"),
    "YAGNA_AUTOCONF_ID_SECRET": _as("id_secret"),
    "YAGNA_API_URL": address_of,
    "YAGNA_API_ALLOW_ORIGIN": _origins,
    "YA_NET_BIND_URL": _udp,
    "MAX_REST_TIMEOUT": _as("max_rest_timeout_s"),
    "MARKET_MAX_EVENTS_DEFAULT": _as("market_events_default"),
    "MARKET_MAX_EVENTS_MAX": _as("market_events_max"),
    "DEFAULT_SUBSCRIPTION_TTL": lambda text: {"subscription_ttl_s": seconds_of(text)},
    "SHEM_PEER_BIND": _as("peer_bind"),
    "SHEM_LOG_LEVEL": _as("log_level"),
}
"""Later ones win."""


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
    for name, read in _ENVIRONMENT.items():
        if text := env.get(name):
            try:
                told = read(text)
            except ValueError as error:  # its words name no value: some are secrets
                raise Misconfigured(f"{name}: {error}", code="bad_config") from None
            values |= told
            said_by |= dict.fromkeys(told, name)
    given = {k: v for k, v in overrides.items() if v is not None}
    values |= given
    said_by |= {field: f"--{field.replace('_', '-')}" for field in given}
    values["data_dir"] = str(data_dir)
    if isinstance(values.get("log_level"), str):
        values["log_level"] = values["log_level"].upper()
    try:
        config = msgspec.convert(values, NodeConfig, strict=False, dec_hook=_path)
    except msgspec.ValidationError as error:
        words = _with_network(str(error), values.get("networks"))
        raise Misconfigured(_complaint(words, said_by), code="bad_config", hint=_how_to_write(words)) from error
    for name, network in config.networks.items():
        _check_network(name, network, str(path))
    return config


def _with_network(words: str, networks: object) -> str:
    """The library says that a network is wrong, and not which."""
    if "$.networks[...]" not in words or not isinstance(networks, Mapping):
        return words
    for name, table in networks.items():
        try:
            msgspec.convert(table, NetworkConfig, strict=False)
        except msgspec.ValidationError:
            return words.replace("$.networks[...]", f"$.networks.{name}")
    return words


_QUOTED = {"max_fee_gwei": "30", "max_tip_gwei": "1.5", "credit": "0.5"}
_LISTED = {"rpc_urls": "https://polygon.example/rpc", "aliases": "other"}


def _how_to_write(words: str) -> str:
    """What TOML wants around a value of the right meaning."""
    field = words.rpartition(".")[2].strip("`")
    if "Expected `str`" in words and field in _QUOTED:
        return f'write it in quotes, such as "{_QUOTED[field]}", so that it is exact'
    if "Expected `array`" in words and field in _LISTED:
        return f'write it in brackets, such as ["{_LISTED[field]}"]'
    return ""


def _check_network(name: str, network: NetworkConfig, source: str) -> None:
    """What would only be found out when something is to be paid. No address is named: it may have a key in it."""
    what, hint = "", ""
    if not _NETWORK.fullmatch(name):  # a platform is told by its hyphens: erc20-<network>-<token>
        what, hint = f"{name[:40]!r} is no name of a network", "use small letters and digits only, 32 at most"
    elif not _SYMBOL.fullmatch(network.token_symbol):
        what, hint = f"{name}.token_symbol is no symbol of a token", "use letters, digits and dots, 32 at most"
    elif not all(_is_endpoint(url) for url in network.rpc_urls):
        what, hint = f"{name}.rpc_urls: one is no address of an endpoint", "write it as https://polygon.example/rpc"
    if what:
        raise Misconfigured(f"{source}: networks.{what}", code="bad_config", hint=hint)


def _is_endpoint(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _complaint(words: str, said_by: Mapping[str, str]) -> str:
    """Who said it, which field, and what is wrong. The library names no values, which may be secret."""
    if unknown := re.search(r"unknown field `(\w+)`(?: - at `\$\.?(.*)`)?", words):
        table = unknown[2] or ""
        source = said_by.get((table or unknown[1]).split(".")[0].split("[")[0], "the configuration")
        of = "network" if table.startswith("networks") else "node"
        return f"{source}: {table + '.' if table else ''}{unknown[1]} is no setting of a {of}"
    what, _, place = words.partition(" - at `$")
    field = place.strip("`.")
    return f"{said_by.get(field.split('.')[0].split('[')[0], 'the configuration')}: {field}: {what}"


def _path(kind: type, value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(kind)
