"""App keys: what programs show to use this node. A key stands for one identity (node id).

Keys are compared by a digest in an index, so looking one up takes the same time whatever is right about it. The owner may
ask for a key again (Golem's tools do), so each is also kept sealed with the node's own key: the database by itself holds
none that could be used.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from shem.errors import NotFound, Refused
from shem.node.config import MAX_KEY, MIN_KEY
from shem.node.db import Database
from shem.node.identity.sealing import Sealer
from shem.terms.ids import NodeId

AUTOCONFIGURED = "autoconfigured"
"""Name of the key that configuration asks for; programs look for it by this name."""
LOCAL = "local"
"""Name of the key that lies in the data directory. It alone manages the others."""
MAX_KEYS = 1000
MAX_ORIGINS = 32
MAX_ORIGIN = 253

_SCHEMA = [
    """
    create table app_key (
        name text primary key,
        digest blob not null unique,
        node_id text not null,
        created text not null
    );
    """,
    """
    alter table app_key add column sealed blob;
    alter table app_key add column origins text not null default '[]';
    """,
]


@dataclass(frozen=True)
class AppKey:
    """One key. ``secret`` is ``None`` for one from before keys were kept, of another identity, or made while the node's key
    was locked; and for all while it is."""

    name: str
    node_id: NodeId
    created: str
    origins: tuple[str, ...] = ()
    """Web pages that may use this node with it; see ``rest.cors``."""
    secret: str | None = field(default=None, repr=False)


class AppKeys:
    """The keys of one node."""

    def __init__(self, db: Database, sealer: Sealer) -> None:
        self._db = db
        self._sealer = sealer
        db.migrate("app_keys", _SCHEMA)
        rows = db.connection.execute("select digest, node_id, name, origins from app_key").fetchall()
        self._known = {bytes(r["digest"]): (str(r["node_id"]), str(r["name"])) for r in rows}
        self._origins = {str(r["name"]): frozenset(json.loads(r["origins"])) for r in rows}

    def lookup(self, key: str) -> tuple[str, str] | None:
        """``(node id, name)`` of a key that somebody shows; ``None`` when it is not one of ours."""
        return self._known.get(_digest(key))

    def create(self, name: str, node_id: NodeId, key: str | None = None, origins: Sequence[str] = ()) -> str:
        """A new key (random unless given). The same name and key again changes nothing but the origins.

        Raises :class:`~shem.errors.Refused`: ``bad_key_name``, ``bad_key``, ``bad_origin``, ``key_exists`` (another key has
        this name, and none was given to replace it), ``too_many_keys``.
        """
        _check(name, origins)
        secret = key or secrets.token_hex(16)
        if not MIN_KEY <= len(secret) <= MAX_KEY:
            raise Refused(f"an app key has from {MIN_KEY} to {MAX_KEY} characters", code="bad_key")
        digest = _digest(secret)
        owner = self._known.get(digest)
        if owner is not None and owner[1] != name:
            raise Refused("another name has this key already", code="bad_key", hint="choose another key")
        with self._db.transaction(durable=True) as connection:
            old = connection.execute("select digest from app_key where name = ?", (name,)).fetchone()
            if old and bytes(old["digest"]) != digest and key is None:
                raise Refused(f"there is a key named {name!r}", code="key_exists", hint="drop it first")
            if old is None and len(self._known) >= MAX_KEYS:
                raise Refused(f"there are {MAX_KEYS} keys already", code="too_many_keys", hint="drop some")
            connection.execute(
                "insert into app_key values (?, ?, ?, ?, ?, ?) on conflict (name) do update set digest = excluded.digest,"
                " node_id = excluded.node_id, origins = excluded.origins, sealed = coalesce(excluded.sealed,"
                " case when digest = excluded.digest then sealed end)",
                (
                    name,
                    digest,
                    node_id,
                    datetime.now(UTC).isoformat(),
                    self._sealer.seal(secret, name),
                    json.dumps(list(origins)),
                ),
            )
        if old:
            self._known.pop(bytes(old["digest"]), None)
        self._known[digest] = (node_id, name)
        self._origins[name] = frozenset(origins)
        return secret

    def find(self, name: str) -> AppKey | None:
        """The key of this name."""
        return next((key for key in self.list() if key.name == name), None)

    def drop(self, name: str) -> None:
        """Programs that show this key are turned away from now on."""
        with self._db.transaction(durable=True) as connection:
            row = connection.execute("delete from app_key where name = ? returning digest", (name,)).fetchone()
        if row is None:
            raise NotFound(f"there is no key named {name[:100]!r}", code="key_unknown")
        self._known.pop(bytes(row["digest"]), None)
        self._origins.pop(name, None)

    def list(self) -> list[AppKey]:
        """All keys, by name."""
        rows = self._db.connection.execute("select * from app_key order by name")
        return [
            AppKey(
                r["name"],
                NodeId(r["node_id"]),
                r["created"],
                tuple(json.loads(r["origins"])),
                None if r["sealed"] is None else self._sealer.open(r["sealed"], r["name"]),
            )
            for r in rows
        ]

    def origins_of(self, name: str) -> frozenset[str]:
        """The web pages that may use this key; empty for one that is not there."""
        return self._origins.get(name, frozenset())

    def any_allows(self, origin: str) -> bool:
        """Whether some key is for this web page: a browser asks before it shows its key."""
        return any(origin in allowed for allowed in self._origins.values())


def _check(name: str, origins: Sequence[str]) -> None:
    if not 0 < len(name) <= 100 or not name.isprintable():
        raise Refused("a key needs a name of at most 100 characters", code="bad_key_name")
    if len(origins) > MAX_ORIGINS or not all(0 < len(o) <= MAX_ORIGIN and o.isprintable() for o in origins):
        raise Refused(f"an app key has at most {MAX_ORIGINS} origins such as https://example.org", code="bad_origin")


def _digest(key: str) -> bytes:
    # a header may hold bytes that are no text: such a key is wrong, not a mistake of ours
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
