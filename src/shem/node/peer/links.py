"""The table of live links: one per node, found by node id or by endpoint id."""

from __future__ import annotations

from shem.cogs.pulse import Pulses
from shem.node.peer.link import Link
from shem.terms.ids import NodeId


class Links:
    """Only live links are ever given out; an ended one stays inside until it is removed."""

    def __init__(self) -> None:
        self._by_node: dict[NodeId, Link] = {}
        self._by_endpoint: dict[bytes, Link] = {}
        self._arrivals: Pulses[bytes] = Pulses()

    def get(self, node_id: NodeId) -> Link | None:
        link = self._by_node.get(node_id)
        return link if link is not None and link.live else None

    def at(self, endpoint_id: bytes) -> Link | None:
        """The live link with that endpoint."""
        link = self._by_endpoint.get(endpoint_id)
        return link if link is not None and link.live else None

    async def wait_at(self, endpoint_id: bytes, timeout_s: float) -> Link | None:
        """The same, once there is one."""
        return await self._arrivals.wait_for(endpoint_id, lambda: self.at(endpoint_id), timeout_s)

    def add(self, link: Link) -> Link | None:
        """Returns the link with that node that it displaces, if one is still in the table."""
        old = self._by_node.get(link.node_id)
        if old is not None:
            self.remove(old)
        self._by_node[link.node_id] = link
        self._by_endpoint[link.connection.remote_id] = link
        self._arrivals.beat(link.connection.remote_id)
        return old

    def remove(self, link: Link) -> bool:
        """Whether it was still in the table."""
        if self._by_node.get(link.node_id) is not link:
            return False
        del self._by_node[link.node_id]
        if self._by_endpoint.get(link.connection.remote_id) is link:
            del self._by_endpoint[link.connection.remote_id]
        return True

    def live(self) -> list[Link]:
        """All of them, the longest connected first."""
        return [link for link in self._by_node.values() if link.live]

    def __len__(self) -> int:
        return len(self._by_node)
