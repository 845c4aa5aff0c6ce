"""What a virtual network is: a range of addresses, which of them are the requestor's own, and whose the others are. Pure.

A network's text keeps what its requestor wrote: ``192.168.7.1/24`` stays that, and ``10.0.0.0`` with a mask, or with none
(then /24, or /128 for IPv6), gets its prefix. Clients compute with ``ip_network(text)``, so the prefix must be there.
"""

from __future__ import annotations

import ipaddress
import re

import msgspec

from shem.errors import Refused
from shem.terms.ids import NodeId

MAX_TEXT = 64
MAX_NODES = 4096
"""Addresses of nodes in one network; those of providers and of the requestor's own node together."""
MAX_ADDRESSES = 256
"""The requestor's own addresses in one network."""

_PREFIX = re.compile(r"0|[1-9][0-9]{0,2}")
_DEFAULT_PREFIX = {4: 24, 6: 128}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Range = ipaddress.IPv4Network | ipaddress.IPv6Network


class BadAddress(Refused):
    """Text that is no address, or an address that cannot be used so."""

    default_code = "bad_network_address"


class OutsideNetwork(Refused):
    """The address is not one of the network's."""

    default_code = "outside_network"


class TooManyAddresses(Refused):
    """The network is full."""

    default_code = "network_full"


class Member(msgspec.Struct, frozen=True):
    """Whose an address is."""

    node_id: NodeId
    ip: str


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """One network of one requestor."""

    network_id: str
    owner: NodeId
    ip: str
    """With its prefix, as it was given."""
    gateway: str
    addresses: tuple[str, ...]
    """The requestor's own, oldest first; the gateway to begin with."""
    nodes: tuple[Member, ...] = ()

    @property
    def range(self) -> Range:
        """All its addresses."""
        return ipaddress.ip_network(self.ip, strict=False)

    @property
    def mask(self) -> str:
        """As ``255.255.255.0``."""
        return str(self.range.netmask)

    def with_prefix(self, ip: str) -> str:
        """``192.168.0.5/24``."""
        return f"{ip}/{self.range.prefixlen}"


def plan(network_id: str, owner: NodeId, ip: str, mask: str | None, gateway: str | None) -> Network:
    """A new network. A prefix in ``ip`` goes before ``mask``. Raises :class:`BadAddress`, :class:`OutsideNetwork`."""
    address, prefix = _split(ip)
    if prefix is None:
        prefix = _DEFAULT_PREFIX[address.version] if mask is None else _prefix_of(mask, address.version)
    text = f"{address}/{prefix}"
    whole = ipaddress.ip_network(text, strict=False)
    if address.is_multicast:
        raise BadAddress(f"Invalid network IP address: {ip[:MAX_TEXT]}")
    chosen = _first_host(whole) if gateway is None else parse(gateway)
    if chosen not in whole:
        raise OutsideNetwork(f"Invalid network IP address: {chosen}")
    return Network(network_id=network_id, owner=owner, ip=text, gateway=str(chosen), addresses=(str(chosen),))


def add_address(network: Network, ip: str) -> Network:
    """The requestor is reachable there too; the same again changes nothing.

    Raises :class:`BadAddress`, :class:`OutsideNetwork`, :class:`TooManyAddresses`.
    """
    address = parse(ip)
    if address not in network.range:
        raise OutsideNetwork(f"Network not found for IP address: {address}")
    if str(address) in network.addresses:
        return network
    if len(network.addresses) >= MAX_ADDRESSES:
        raise TooManyAddresses(f"a network has at most {MAX_ADDRESSES} addresses of its requestor")
    return msgspec.structs.replace(network, addresses=(*network.addresses, str(address)))


def add_node(network: Network, node_id: NodeId, ip: str) -> Network:
    """That address is that node's. An address that is somebody's stays theirs until they are removed, as in the original:
    the call succeeds and changes nothing. Errors as for :func:`add_address`."""
    address = parse(ip)
    if address not in network.range:
        raise OutsideNetwork(f"Invalid network IP address: {address}")
    if any(member.ip == str(address) for member in network.nodes):
        return network
    if len(network.nodes) >= MAX_NODES:
        raise TooManyAddresses(f"a network has at most {MAX_NODES} addresses of nodes")
    return msgspec.structs.replace(network, nodes=(*network.nodes, Member(node_id, str(address))))


def remove_node(network: Network, node_id: NodeId) -> Network:
    """None of its addresses are that node's any more."""
    left = tuple(member for member in network.nodes if member.node_id != node_id)
    return msgspec.structs.replace(network, nodes=left)


def parse(text: str) -> Address:
    """One address, without a prefix. Raises :class:`BadAddress`."""
    try:
        if len(text) > MAX_TEXT or "%" in text:
            raise ValueError
        return ipaddress.ip_address(text)
    except ValueError:
        raise BadAddress("Invalid IP address: invalid IP address syntax") from None


def _split(text: str) -> tuple[Address, int | None]:
    head, slash, tail = text.partition("/")
    if not slash:
        return parse(head), None
    wrong = BadAddress(f"Invalid network IP address: {text[:MAX_TEXT]}")
    try:
        address = parse(head)
    except BadAddress:
        raise wrong from None
    if not _PREFIX.fullmatch(tail) or int(tail) > address.max_prefixlen:
        raise wrong
    return address, int(tail)


def _prefix_of(mask: str, version: int) -> int:
    parsed = parse(mask)
    ones = parsed.max_prefixlen - (~int(parsed) & ((1 << parsed.max_prefixlen) - 1)).bit_length()
    if parsed.version != version or int(parsed).bit_count() != ones:
        raise BadAddress(f"Invalid network mask: {parsed}", hint="a mask is ones first, then zeros: 255.255.255.0")
    return ones


def _first_host(whole: Range) -> Address:
    """One above the network's own address, where that is reserved."""
    reserved = whole.version == 4 and whole.prefixlen <= 30
    return whole.network_address + 1 if reserved else whole.network_address
