"""Which addresses of the internet are anybody's to speak to.

Requestors name places that a provider then connects to. What is private, local, reserved or somebody's metadata service is
reached from the provider's machine and not from the requestor's, so it is none of the requestor's business.
"""

from __future__ import annotations

import ipaddress

_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""IPv4 addresses as IPv6-only networks write them."""
_UNICAST = ipaddress.ip_network("2000::/3")


def is_public(host: str) -> bool:
    """Whether an address is a public one, looking through the forms that hide an IPv4 address in an IPv6 one.

    A name that is no address is ``True``: it is checked when it is resolved.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return True
    if isinstance(address, ipaddress.IPv6Address):
        inner = _inner(address)
        if inner is None:
            return address.is_global and address in _UNICAST
        address = inner
    return address.is_global and not address.is_multicast


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in _TRANSLATED:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour
