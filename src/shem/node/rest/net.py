"""The net API: ``/net-api/v1`` and its second version, which is the same calls under ``/net-api/v2/vpn``.

An address book only: who has which address in which network. Nothing carries packets yet, and the WebSockets that would
say so before they open.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from shem.errors import NotImplementedHere, Refused
from shem.node.rest.server import caller, names, read_json, respond
from shem.node.vpn import lifecycle
from shem.node.vpn.lifecycle import Network
from shem.node.vpn.service import Networks
from shem.wire import net as wire
from shem.wire.net import ROOT, ROOT_V2

MAX_PORT = 65535


def routes(networks: Networks, status: Callable[[], wire.NetStatus]) -> list[web.RouteDef]:
    """``status`` tells how this node is connected."""
    rest = _NetRest(networks)

    async def net_status(request: web.Request) -> web.Response:
        return respond(status())

    found = [web.get(f"{ROOT_V2}/net/status", net_status)]
    for root in (ROOT, f"{ROOT_V2}/vpn"):
        one = f"{root}/net/{{id}}"
        found += [
            web.post(f"{root}/net", rest.create),
            web.get(f"{root}/net", rest.list),
            web.get(one, rest.get),
            web.delete(one, rest.remove),
            web.post(f"{one}/addresses", rest.add_address),
            web.get(f"{one}/addresses", rest.addresses),
            web.post(f"{one}/nodes", rest.add_node),
            web.get(f"{one}/nodes", rest.nodes),
            web.delete(f"{one}/nodes/{{node}}", rest.remove_node),
            web.get(f"{one}/tcp", rest.connections),
            web.get(f"{one}/tcp/{{ip}}/{{port}}", rest.tcp),
            web.get(f"{one}/raw/from/{{source}}/to/{{target}}", rest.raw),
        ]
    return found


class _NetRest:
    def __init__(self, networks: Networks) -> None:
        self._networks = networks

    async def create(self, request: web.Request) -> web.Response:
        body = await read_json(request, wire.NewNetwork)
        return respond(shape(self._networks.create(caller(request), body.ip, body.mask, body.gateway)))

    async def list(self, request: web.Request) -> web.Response:
        return respond([shape(network) for network in self._networks.list(caller(request))])

    async def get(self, request: web.Request) -> web.Response:
        return respond(shape(self._named(request)))

    async def remove(self, request: web.Request) -> web.Response:
        self._networks.remove(caller(request), names(request)["id"])
        return respond(None)

    async def add_address(self, request: web.Request) -> web.Response:
        body = await read_json(request, wire.Address)
        self._networks.add_address(caller(request), names(request)["id"], body.ip)
        return respond(None)

    async def addresses(self, request: web.Request) -> web.Response:
        network = self._named(request)
        return respond([wire.Address(ip=network.with_prefix(ip)) for ip in network.addresses])

    async def add_node(self, request: web.Request) -> web.Response:
        body = await read_json(request, wire.Node)
        self._networks.add_node(caller(request), names(request)["id"], body.id, body.ip)
        return respond(None)

    async def nodes(self, request: web.Request) -> web.Response:
        return respond([wire.Node(id=member.node_id, ip=member.ip) for member in self._named(request).nodes])

    async def remove_node(self, request: web.Request) -> web.Response:
        self._networks.remove_node(caller(request), names(request)["id"], names(request)["node"])
        return respond(None)

    async def connections(self, request: web.Request) -> web.Response:
        self._named(request)
        return respond([])  # nothing opens any

    async def tcp(self, request: web.Request) -> web.Response:
        network, port = self._named(request), names(request)["port"]
        self._inside(network, names(request)["ip"])
        if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= MAX_PORT):
            raise Refused(f"{port[:20]!r} is not a port", code="bad_port")
        raise _no_data_path()

    async def raw(self, request: web.Request) -> web.Response:
        network = self._named(request)
        for end in ("source", "target"):
            self._inside(network, names(request)[end])
        raise _no_data_path()

    def _named(self, request: web.Request) -> Network:
        return self._networks.get(caller(request), names(request)["id"])

    def _inside(self, network: Network, ip: str) -> None:
        address = lifecycle.parse(ip)
        if address not in network.range:
            raise lifecycle.OutsideNetwork(f"Invalid network IP address: {address}")


def shape(network: Network) -> wire.Network:
    """As the API shows it."""
    return wire.Network(id=network.network_id, ip=network.ip, mask=network.mask, gateway=network.gateway)


def _no_data_path() -> NotImplementedHere:
    return NotImplementedHere(
        "this node keeps the addresses of virtual networks, and carries no packets between them yet",
        code="no_data_path",
        hint="move data by TRANSFER commands for now",
    )
