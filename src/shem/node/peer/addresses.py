"""Network addresses as text: ``ip:port``, and ``<endpoint id>@ip:port,ip:port`` to give to others as a bootstrap."""

from __future__ import annotations

import ipaddress

from shem.errors import Misconfigured

MAX_ADDRESSES = 16


class BadAddress(Misconfigured):
    """Not an address of a peer."""

    default_code = "bad_peer_address"


def parse_address(text: str) -> tuple[str, int]:
    """``("192.0.2.1", 4433)`` of ``192.0.2.1:4433``; IPv6 in brackets. Host names are not taken. Raises BadAddress."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        ip = ipaddress.ip_address(host[1:-1] if bracketed else host)
        number = int(port) if port.isascii() and port.isdigit() else -1
        if bracketed != (ip.version == 6) or not 0 <= number <= 65535:
            raise ValueError
    except ValueError:
        raise BadAddress(
            f"{text[:80]!r} is not an address", hint="write 192.0.2.1:4433 or [2001:db8::1]:4433"
        ) from None
    return str(ip), number


def format_address(host: str, port: int) -> str:
    """``ip:port``, with brackets for IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def format_bootstrap(endpoint_id: bytes, addresses: list[str]) -> str:
    """What another node is given to find us."""
    return f"{endpoint_id.hex()}@{','.join(addresses)}"


def parse_bootstrap(text: str) -> tuple[bytes, list[str]]:
    """(endpoint id, addresses). Raises BadAddress."""
    head, _, tail = text.strip().partition("@")
    addresses = tail.split(",")
    try:
        endpoint_id = bytes.fromhex(head)
    except ValueError:
        endpoint_id = b""
    if len(endpoint_id) != 32 or len(head) != 64 or not 1 <= len(addresses) <= MAX_ADDRESSES:
        raise BadAddress(
            f"{text[:100]!r} is not the address of a node", hint="copy it whole: <64 hex digits>@ip:port[,ip:port]"
        )
    return endpoint_id, [format_address(*parse_address(one)) for one in addresses]
