"""Where a node's things are on this machine, for the node and for the programs of the same user."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

KEY_FILE = "app.key"
"""In a node's data directory: the app key for programs of the user who runs the node (0600)."""


def default_data_dir(environ: Mapping[str, str] | None = None) -> Path:
    """``$SHEM_DATA_DIR``, else ``$XDG_DATA_HOME/shem``, else ``~/.local/share/shem``."""
    env = os.environ if environ is None else environ
    if chosen := env.get("SHEM_DATA_DIR"):
        return Path(chosen)
    base = env.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "shem"


def local_app_key(environ: Mapping[str, str] | None = None) -> str:
    """``$YAGNA_APPKEY``, else the key that this user's own node has left; ``""`` when there is neither."""
    env = os.environ if environ is None else environ
    if key := env.get("YAGNA_APPKEY"):
        return key
    try:
        return (default_data_dir(env) / KEY_FILE).read_text().strip()
    except OSError:
        return ""
