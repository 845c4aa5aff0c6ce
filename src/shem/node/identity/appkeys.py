"""App keys: what programs show to use this node. A key stands for one identity (node id).

Keys are compared by a digest in an index, so looking one up takes the same time whatever is right about it, and the
database holds none that could be used.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

from shem.errors import NotFound, Refused
from shem.node.config import MAX_KEY, MIN_KEY
from shem.node.db import Database
from shem.terms.ids import NodeId

AUTOCONFIGURED = "autoconfigured"
"""Name of the key that configuration asks for; programs look for it by this name."""
LOCAL = "local"
"""Name of the key that lies in the data directory."""

_SCHEMA = [
    """
    create table app_key (
        name text primary key,
        digest blob not null unique,
        node_id text not null,
        created text not null
    );
    """
]


@dataclass(frozen=True)
class AppKey:
    """A key without its secret."""

    name: str
    node_id: NodeId
    created: str


class AppKeys:
    """The keys of one node."""

    def __init__(self, db: Database) -> None:
        self._db = db
        db.migrate("app_keys", _SCHEMA)
        rows = db.connection.execute("select digest, node_id, name from app_key")
        self._known = {bytes(r["digest"]): (str(r["node_id"]), str(r["name"])) for r in rows}

    def lookup(self, key: str) -> tuple[str, str] | None:
        """``(node id, name)`` of a key that somebody shows; ``None`` when it is not one of ours."""
        return self._known.get(_digest(key))

    def create(self, name: str, node_id: NodeId, key: str | None = None) -> str:
        """A new key (random unless given), the only time it is told. The same name and key again changes nothing."""
        if not 0 < len(name) <= 100:
            raise Refused("a key needs a name of at most 100 characters", code="bad_key_name")
        secret = key or secrets.token_hex(16)
        if not MIN_KEY <= len(secret) <= MAX_KEY:
            raise Refused(f"an app key has from {MIN_KEY} to {MAX_KEY} characters", code="bad_key")
        digest = _digest(secret)
        with self._db.transaction(durable=True) as connection:
            old = connection.execute("select digest from app_key where name = ?", (name,)).fetchone()
            if old and bytes(old["digest"]) != digest and key is None:
                raise Refused(f"there is a key named {name!r}", code="key_exists", hint="drop it first")
            connection.execute(
                "insert or replace into app_key values (?, ?, ?, ?)",
                (name, digest, node_id, datetime.now(UTC).isoformat()),
            )
        if old:
            self._known.pop(bytes(old["digest"]), None)
        self._known[digest] = (node_id, name)
        return secret

    def drop(self, name: str) -> None:
        """Programs that show this key are turned away from now on."""
        with self._db.transaction(durable=True) as connection:
            row = connection.execute("delete from app_key where name = ? returning digest", (name,)).fetchone()
        if row is None:
            raise NotFound(f"there is no key named {name!r}", code="key_unknown")
        self._known.pop(bytes(row["digest"]), None)

    def list(self) -> list[AppKey]:
        """All keys, by name."""
        rows = self._db.connection.execute("select name, node_id, created from app_key order by name")
        return [AppKey(r["name"], NodeId(r["node_id"]), r["created"]) for r in rows]


def _digest(key: str) -> bytes:
    # a header may hold bytes that are no text: such a key is wrong, not a mistake of ours
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
