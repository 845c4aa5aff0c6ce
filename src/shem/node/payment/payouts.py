"""Where a node is paid: at its own account, or at another address that its operator names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from shem.errors import Misconfigured, Refused
from shem.node.config import NetworkConfig
from shem.node.identity.signing import mistyped
from shem.node.payment.drivers.networks import Network
from shem.terms.ids import parse_node_id


def payouts(networks: Sequence[Network], usual: str, configured: Mapping[str, NetworkConfig]) -> dict[str, str]:
    """By platform, for those that do not pay the node's own account. ``usual``: where nothing else is said.

    Raises :class:`~shem.errors.Misconfigured` for what is no address that can be paid.
    """
    # Also what no network uses yet: who mistyped it learns of it now, and not when one is added.
    said = {f"networks.{name}.payout": given.payout for name, given in configured.items()}
    for place, text in {"payout": usual, **said}.items():
        if text:
            _account(text, place, "a network")
    found: dict[str, str] = {}
    for network in networks:
        given = configured.get(network.name)
        place = f"networks.{network.name}.payout" if given is not None and given.payout else "payout"
        text = given.payout if given is not None and given.payout else usual
        if not text:
            continue
        address = _payable(text, place, network)
        found |= {platform.platform: address for platform in (*network.platforms, *network.channel_platforms)}
    return found


def _payable(text: str, place: str, network: Network) -> str:
    return _account(text, place, network.name, network.token, network.vault, network.multi_transfer)


def _account(text: str, place: str, payer: str, *contracts: str) -> str:
    address: str = ""
    with suppress(Refused):
        address = parse_node_id(text)
    if not address or int(address, 16) == 0 or address in contracts:
        raise Misconfigured(
            f"{place}: {text[:60]!r} is no address that {payer} can pay",
            code="bad_payout_address",
            hint="an account's address is 0x and 40 hexadecimal digits",
        )
    if mistyped(text):
        raise Misconfigured(
            f"{place}: {text} is mistyped: its capital letters are a checksum, and it fails",
            code="bad_payout_address",
            hint="copy the address again; or write it in small letters, if you are sure",
        )
    return address
