"""Address arithmetic of virtual networks, against what the original daemon answers and what clients compute with."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shem.errors import Refused
from shem.node.vpn import lifecycle
from shem.node.vpn.lifecycle import BadAddress, Member, Network, OutsideNetwork, TooManyAddresses
from shem.terms.ids import NodeId

ME, ALICE, BOB = (NodeId("0x" + digit * 40) for digit in "1ab")


def plan(ip: str, mask: str | None = None, gateway: str | None = None) -> Network:
    return lifecycle.plan("n", ME, ip, mask, gateway)


@pytest.mark.parametrize(
    ("ip", "mask", "gateway", "shown"),
    [
        # what the original daemon gave for the same
        ("192.168.0.0/24", None, None, ("192.168.0.0/24", "255.255.255.0", "192.168.0.1")),
        ("192.168.7.1/24", None, None, ("192.168.7.1/24", "255.255.255.0", "192.168.7.1")),
        ("10.0.0.0", "255.255.255.0", "10.0.0.1", ("10.0.0.0/24", "255.255.255.0", "10.0.0.1")),
        ("192.168.0.1/16", None, None, ("192.168.0.1/16", "255.255.0.0", "192.168.0.1")),
        ("10.1.2.3/16", None, None, ("10.1.2.3/16", "255.255.0.0", "10.1.0.1")),
        ("10.1.0.0", None, None, ("10.1.0.0/24", "255.255.255.0", "10.1.0.1")),
        ("172.16.9.9", None, None, ("172.16.9.9/24", "255.255.255.0", "172.16.9.1")),
        ("10.5.5.5", "255.255.0.0", None, ("10.5.5.5/16", "255.255.0.0", "10.5.0.1")),
        ("10.0.0.0/8", "255.255.255.0", None, ("10.0.0.0/8", "255.0.0.0", "10.0.0.1")),
        ("10.0.0.0/24", None, "10.0.0.9", ("10.0.0.0/24", "255.255.255.0", "10.0.0.9")),
        ("10.0.0.0/30", None, None, ("10.0.0.0/30", "255.255.255.252", "10.0.0.1")),
        ("10.0.0.0/31", None, None, ("10.0.0.0/31", "255.255.255.254", "10.0.0.0")),
        ("10.0.0.0/32", None, None, ("10.0.0.0/32", "255.255.255.255", "10.0.0.0")),
        ("0.0.0.0/0", None, None, ("0.0.0.0/0", "0.0.0.0", "0.0.0.1")),
        ("fd00::/64", None, None, ("fd00::/64", "ffff:ffff:ffff:ffff::", "fd00::")),
        ("fd00::1", None, None, ("fd00::1/128", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fd00::1")),
    ],
)
def test_networks_come_out_as_clients_expect(
    ip: str, mask: str | None, gateway: str | None, shown: tuple[str, str, str]
) -> None:
    network = plan(ip, mask, gateway)
    assert (network.ip, network.mask, network.gateway) == shown
    assert network.addresses == (network.gateway,)


@pytest.mark.parametrize(
    ("ip", "mask", "gateway"),
    [
        ("", None, None),
        ("x", None, None),
        ("10.0.0.0/33", None, None),
        ("10.0.0.0/024", None, None),
        ("10.0.0.0/", None, None),
        ("10.0.0.0/-1", None, None),
        ("10.0.0.0/٢٤", None, None),
        ("10.0.0.0/24/24", None, None),
        ("10.0.0.0/255.255.255.0", None, None),
        (" 10.0.0.0/24", None, None),
        ("10.0.0", None, None),
        ("010.0.0.0/8", None, None),
        ("fe80::1%eth0/64", None, None),
        ("fd00::/129", None, None),
        ("224.0.0.0/4", None, None),
        ("10.0.0.0", "24", None),
        ("10.0.0.0", "255.0.255.0", None),
        ("10.0.0.0", "0.0.0.255", None),
        ("10.0.0.0", "ffff::", None),
        ("10.0.0.0/24", None, "x"),
        ("10.0.0.0/24", None, "11.0.0.1"),
        ("10.0.0.0/24", None, "fd00::1"),
        ("1" * 100_000, None, None),
        ("10.0.0.0/" + "1" * 10_000, None, None),
    ],
)
def test_what_is_no_network_is_refused_in_a_line(ip: str, mask: str | None, gateway: str | None) -> None:
    with pytest.raises(Refused) as refused:
        plan(ip, mask, gateway)
    assert len(refused.value.message) < 200


@given(st.text(max_size=80), st.none() | st.text(max_size=40), st.none() | st.text(max_size=40))
def test_any_text_is_a_network_or_refused(ip: str, mask: str | None, gateway: str | None) -> None:
    try:
        network = plan(ip, mask, gateway)
    except Refused:
        return
    assert ipaddress.ip_address(network.gateway) in ipaddress.ip_network(network.ip, strict=False)


@given(st.integers(0, 2**32 - 1), st.integers(0, 32))
def test_arithmetic_is_that_of_the_library(number: int, prefix: int) -> None:
    address = ipaddress.IPv4Address(number)
    if address.is_multicast:
        return
    network = plan(f"{address}/{prefix}")
    whole = ipaddress.ip_network(network.ip, strict=False)
    assert network.ip == f"{address}/{prefix}"
    assert network.mask == str(whole.netmask)
    assert plan(str(address), network.mask).ip == network.ip
    assert ipaddress.ip_address(network.gateway) == (whole.network_address + 1 if prefix < 31 else whole[0])


def test_addresses_grow_once_and_stay_inside() -> None:
    network = plan("192.168.0.0/24")
    for ip in ("192.168.0.1", "192.168.0.5", "192.168.0.5", "192.168.0.255"):
        network = lifecycle.add_address(network, ip)
    assert network.addresses == ("192.168.0.1", "192.168.0.5", "192.168.0.255")
    assert network.with_prefix("192.168.0.5") == "192.168.0.5/24"
    for ip in ("10.0.0.1", "fd00::1"):
        with pytest.raises(OutsideNetwork, match=f"Network not found for IP address: {ip}"):
            lifecycle.add_address(network, ip)
    for ip in ("192.168.0.7/24", "", "x"):
        with pytest.raises(BadAddress, match="Invalid IP address"):
            lifecycle.add_address(network, ip)


def test_an_address_is_the_first_nodes_until_it_is_removed() -> None:
    network = plan("192.168.0.0/24")
    for node, ip in ((ALICE, "192.168.0.2"), (ALICE, "192.168.0.3"), (BOB, "192.168.0.2"), (ALICE, "192.168.0.2")):
        network = lifecycle.add_node(network, node, ip)
    assert network.nodes == (Member(ALICE, "192.168.0.2"), Member(ALICE, "192.168.0.3"))
    network = lifecycle.add_node(lifecycle.remove_node(network, ALICE), BOB, "192.168.0.2")
    assert network.nodes == (Member(BOB, "192.168.0.2"),)
    assert lifecycle.remove_node(network, ALICE) == network
    with pytest.raises(OutsideNetwork, match=r"Invalid network IP address: 10\.9\.9\.9"):
        lifecycle.add_node(network, ALICE, "10.9.9.9")


def test_networks_are_bounded() -> None:
    network = plan("10.0.0.0/8")
    start = ipaddress.IPv4Address("10.1.0.0")
    for place in range(lifecycle.MAX_ADDRESSES - 1):
        network = lifecycle.add_address(network, str(start + place))
    with pytest.raises(TooManyAddresses):
        lifecycle.add_address(network, "10.9.9.9")
    full = tuple(Member(BOB, str(start + place)) for place in range(lifecycle.MAX_NODES))
    network = Network(network_id="n", owner=ME, ip="10.0.0.0/8", gateway="10.0.0.1", addresses=(), nodes=full)
    with pytest.raises(TooManyAddresses):
        lifecycle.add_node(network, BOB, "10.0.0.1")
