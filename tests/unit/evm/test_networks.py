from __future__ import annotations

import pytest

from shem.errors import Misconfigured
from shem.node.config import NetworkConfig
from shem.node.payment.drivers.networks import PUBLISHED, networks_from
from shem.testing.devchain import places


def test_no_network_is_served_without_an_endpoint() -> None:
    assert networks_from({}) == []
    assert not any(network.rpc_urls for network in PUBLISHED)


def test_published_platforms_have_their_known_names() -> None:
    names = {network.platform.platform for network in PUBLISHED}
    assert names == {
        "erc20-mainnet-glm",
        "erc20-polygon-glm",
        "erc20-hoodi-tglm",
        "erc20-holesky-tglm",
        "erc20-amoy-tglm",
        "erc20-sepolia-tglm",
        "erc20-devnet-tglm",
    }


def test_configuration_gives_a_published_network_its_endpoints() -> None:
    polygon = next(network for network in PUBLISHED if network.name == "polygon")
    given = NetworkConfig(chain_id=137, rpc_urls=("http://a",), token=polygon.token.upper().replace("X", "x"), depth=64)
    (network,) = networks_from({"polygon": given})
    assert (network.rpc_urls, network.depth, network.token) == (("http://a",), 64, polygon.token)
    assert network.multi_transfer == polygon.multi_transfer
    assert network.max_fee_wei == polygon.max_fee_wei


def test_another_token_has_no_published_contracts() -> None:
    given = NetworkConfig(chain_id=137, rpc_urls=("http://a",), token="0x" + "12" * 20)
    (network,) = networks_from({"polygon": given})
    assert network.multi_transfer == ""


def test_a_network_of_ones_own() -> None:
    given = NetworkConfig(chain_id=99, rpc_urls=("http://a",), token=places.TOKEN_ADDRESS, token_symbol="XYZ")
    (network,) = networks_from({"mine": given})
    assert network.platform.platform == "erc20-mine-xyz"
    assert network.platform.chain_id == 99


@pytest.mark.parametrize("token", ["", "0x12", "0x" + "zz" * 20, "12" * 21])
def test_a_token_that_is_no_address_is_named(token: str) -> None:
    with pytest.raises(Misconfigured, match=r"networks\.mine\.token"):
        networks_from({"mine": NetworkConfig(chain_id=99, rpc_urls=("http://a",), token=token)})
