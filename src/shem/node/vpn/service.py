"""The address book of virtual networks: made, filled and dropped by requestors, each seeing only their own."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime, timedelta

from shem.cogs.clock import Clock
from shem.errors import NotFound, Refused
from shem.node.db import Database
from shem.node.vpn import lifecycle, store
from shem.node.vpn.lifecycle import Network
from shem.terms.ids import NodeId, parse_node_id

MAX_NETWORKS = 1024
"""Of one identity."""
FORGOTTEN_AFTER = timedelta(days=1)
"""Programs that end badly leave their networks behind: with no room left, those unchanged for so long make way."""


class NetworkNotFound(NotFound):
    """No such network, or another identity's."""

    default_code = "network_not_found"


class TooManyNetworks(Refused):
    """All of them are in use."""

    default_code = "too_many_networks"


class Networks:
    """One node's virtual networks. Everything is on disk when a call returns."""

    def __init__(self, db: Database, clock: Clock) -> None:
        db.migrate(store.DOMAIN, store.SCRIPTS)
        self._db = db
        self._clock = clock

    def create(self, owner: str, ip: str, mask: str | None, gateway: str | None) -> Network:
        """Raises :class:`~shem.node.vpn.lifecycle.BadAddress`, :class:`~shem.node.vpn.lifecycle.OutsideNetwork`,
        :class:`TooManyNetworks`."""
        made = lifecycle.plan(uuid.uuid4().hex, NodeId(owner), ip, mask, gateway)
        with self._db.transaction() as connection:
            if store.count(connection, owner) >= MAX_NETWORKS:
                store.delete(connection, store.unused_since(connection, owner, self._now_us() - _us(FORGOTTEN_AFTER)))
            if store.count(connection, owner) >= MAX_NETWORKS:
                raise TooManyNetworks(f"there are {MAX_NETWORKS} networks already", hint="delete some")
            store.save(connection, None, made, self._now_us())
        return made

    def list(self, owner: str) -> list[Network]:
        """Oldest first."""
        return store.of_owner(self._db.connection, owner)

    def get(self, owner: str, network_id: str) -> Network:
        """Raises :class:`NetworkNotFound`."""
        found = store.find(self._db.connection, network_id, owner)
        if found is None:
            raise NetworkNotFound(f"there is no network {network_id[:60]!r}")
        return found

    def remove(self, owner: str, network_id: str) -> None:
        """Raises :class:`NetworkNotFound`."""
        with self._db.transaction() as connection:
            store.delete(connection, [self.get(owner, network_id).network_id])

    def add_address(self, owner: str, network_id: str, ip: str) -> None:
        """See :func:`~shem.node.vpn.lifecycle.add_address`. Raises :class:`NetworkNotFound` besides."""
        self._change(owner, network_id, lambda network: lifecycle.add_address(network, ip))

    def add_node(self, owner: str, network_id: str, node_id: str, ip: str) -> None:
        """See :func:`~shem.node.vpn.lifecycle.add_node`. Raises :class:`NetworkNotFound`, ``bad_node_id`` besides."""
        node = parse_node_id(node_id)
        self._change(owner, network_id, lambda network: lifecycle.add_node(network, node, ip))

    def remove_node(self, owner: str, network_id: str, node_id: str) -> None:
        """A node that is not there is no mistake. Raises :class:`NetworkNotFound`, ``bad_node_id``."""
        node = parse_node_id(node_id)
        self._change(owner, network_id, lambda network: lifecycle.remove_node(network, node))

    def _change(self, owner: str, network_id: str, change: Callable[[Network], Network]) -> None:
        with self._db.transaction() as connection:
            network = self.get(owner, network_id)
            store.save(connection, network, change(network), self._now_us())

    def _now_us(self) -> int:
        return _stamp(self._clock.now())


def _stamp(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000)


def _us(span: timedelta) -> int:
    return span // timedelta(microseconds=1)
