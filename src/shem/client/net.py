"""Typed calls of the net API: the address book of virtual networks."""

from __future__ import annotations

from shem.client.http import ApiClient
from shem.wire import net as wire
from shem.wire.net import ROOT, ROOT_V2


class NetApi:
    """The virtual networks of the client's identity.

    Errors are those of :class:`~shem.client.http.ApiClient`: ``NotFound`` for a network that is not there (the original
    daemon answers ``NotAllowed``), ``Refused`` for an address that is none, or not of the network.
    """

    def __init__(self, http: ApiClient) -> None:
        self._http = http

    async def create(self, ip: str, *, mask: str | None = None, gateway: str | None = None) -> wire.Network:
        """A new network such as ``192.168.0.0/24``."""
        body = wire.NewNetwork(ip=ip, mask=mask, gateway=gateway)
        return await self._http.call("POST", f"{ROOT}/net", json=body, into=wire.Network)

    async def networks(self) -> list[wire.Network]:
        """All of them."""
        return await self._http.call("GET", f"{ROOT}/net", into=list[wire.Network])

    async def get(self, network_id: str) -> wire.Network:
        """One."""
        return await self._http.call("GET", f"{ROOT}/net/{network_id}", into=wire.Network)

    async def remove(self, network_id: str) -> None:
        """Drop it."""
        await self._http.call("DELETE", f"{ROOT}/net/{network_id}")

    async def add_address(self, network_id: str, ip: str) -> None:
        """The requestor itself is reachable there. Again is harmless."""
        await self._http.call("POST", f"{ROOT}/net/{network_id}/addresses", json=wire.Address(ip=ip))

    async def addresses(self, network_id: str) -> list[str]:
        """The requestor's own, each with the network's prefix."""
        found = await self._http.call("GET", f"{ROOT}/net/{network_id}/addresses", into=list[wire.Address])
        return [address.ip for address in found]

    async def add_node(self, network_id: str, node_id: str, ip: str) -> None:
        """That node has that address. Again is harmless; another node's address stays that node's."""
        await self._http.call("POST", f"{ROOT}/net/{network_id}/nodes", json=wire.Node(id=node_id, ip=ip))

    async def nodes(self, network_id: str) -> list[wire.Node]:
        """Whose which address is."""
        return await self._http.call("GET", f"{ROOT}/net/{network_id}/nodes", into=list[wire.Node])

    async def remove_node(self, network_id: str, node_id: str) -> None:
        """None of the addresses are that node's any more."""
        await self._http.call("DELETE", f"{ROOT}/net/{network_id}/nodes/{node_id}")

    async def status(self) -> wire.NetStatus:
        """How the node is connected."""
        return await self._http.call("GET", f"{ROOT_V2}/net/status", into=wire.NetStatus)
