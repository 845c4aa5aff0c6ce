"""Where a node's things are on this machine, for the node and for the programs of the same user."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

KEY_FILE = "app.key"
"""In a node's data directory: the app key for programs of the user who runs the node (0600)."""
URL_FILE = "api.url"
"""There too, while the node runs: the address of its REST API."""
SECRETS = ("YAGNA_AUTOCONF_ID_SECRET", "YAGNA_AUTOCONF_APPKEY", "YAGNA_APPKEY")
"""Variables that hold secrets."""
DEFAULT_URL = "http://127.0.0.1:7465"
MAX_FILE = 1000


def default_data_dir(environ: Mapping[str, str] | None = None) -> Path:
    """``$SHEM_DATA_DIR``, else ``$YAGNA_DATADIR``, else ``$XDG_DATA_HOME/shem``, else ``~/.local/share/shem``."""
    env = os.environ if environ is None else environ
    if chosen := env.get("SHEM_DATA_DIR") or env.get("YAGNA_DATADIR"):
        return Path(chosen)
    base = env.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "shem"


def local_app_key(environ: Mapping[str, str] | None = None) -> str:
    """``$YAGNA_APPKEY``, else the key that this user's own node has left; ``""`` when there is neither."""
    env = os.environ if environ is None else environ
    return env.get("YAGNA_APPKEY") or owners_key(default_data_dir(env))


def owners_key(data_dir: Path) -> str:
    """The key that the node of this directory has left for its owner; ``""`` when there is none to read."""
    return _line(data_dir / KEY_FILE)


def forget_secrets() -> None:
    """What this process was told by its environment and has read need not be told to those that it starts."""
    for name in SECRETS:
        os.environ.pop(name, None)


def local_api_url(environ: Mapping[str, str] | None = None) -> str:
    """``$YAGNA_API_URL``, else where this user's own node says it is, else where one usually is."""
    env = os.environ if environ is None else environ
    return env.get("YAGNA_API_URL") or node_url(default_data_dir(env)) or DEFAULT_URL


def node_url(data_dir: Path) -> str:
    """Where the node of this directory says it is; ``""`` when it does not run, or cannot be asked."""
    return _line(data_dir / URL_FILE)


def _line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MAX_FILE).strip()
    except (OSError, ValueError):
        return ""
