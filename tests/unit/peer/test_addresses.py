"""Addresses as text."""

import pytest

from shem.errors import Misconfigured
from shem.node.peer.addresses import format_address, format_bootstrap, parse_address, parse_bootstrap

ENDPOINT = bytes(range(32))


@pytest.mark.parametrize("text", ["192.0.2.1:4433", "[2001:db8::1]:1", "127.0.0.1:0", "0.0.0.0:65535"])
def test_good_ones(text: str) -> None:
    assert format_address(*parse_address(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "1.2.3.4",
        "1.2.3.4:",
        "1.2.3.4:65536",
        "1.2.3.4:-1",
        "localhost:1",
        "::1:80",
        "[1.2.3.4]:5",
        "1.2.3:4",
        "1.2.3.4:٣",
    ],
)
def test_bad_ones(text: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        parse_address(text)
    assert refused.value.code == "bad_peer_address"


def test_bootstrap_addresses_come_back() -> None:
    addresses = ["192.0.2.1:4433", "[2001:db8::1]:4433"]
    assert parse_bootstrap(f"  {format_bootstrap(ENDPOINT, addresses)}\n") == (ENDPOINT, addresses)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "ab@1.2.3.4:5",
        f"{ENDPOINT.hex()}@",
        ENDPOINT.hex(),
        f"{ENDPOINT.hex()}@x",
        f"zz{ENDPOINT.hex()[2:]}@1.2.3.4:5",
    ],
)
def test_bad_bootstraps_are_refused_with_a_hint(text: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        parse_bootstrap(text)
    assert refused.value.hint
