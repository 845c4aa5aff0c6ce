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


def mine(chain_id: int = 1337, symbol: str = "tGLM", **changes: object) -> NetworkConfig:
    return NetworkConfig(
        chain_id=chain_id,
        rpc_urls=("http://a",),
        token=places.TOKEN_ADDRESS,
        token_symbol=symbol,
        **changes,  # type: ignore[arg-type]
    )


def test_an_alias_is_another_name_for_the_same_money() -> None:
    (network,) = networks_from({"devnet": mine(aliases=("holesky", "hoodi"))})
    own, *others = network.platforms
    assert own == network.platform
    assert [p.platform for p in others] == ["erc20-holesky-tglm", "erc20-hoodi-tglm"]
    assert [p.network for p in others] == ["holesky", "hoodi"]
    assert {p.money for p in (own, *others)} == {"erc20-devnet-tglm"}
    assert {p.chain_id for p in others} == {1337}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"devnet": mine(aliases=("holesky",)), "holesky": mine(17000)}, "a network of this configuration itself"),
        ({"devnet": mine(aliases=("devnet",))}, "a network of this configuration itself"),
        ({"devnet": mine(aliases=("polygon",))}, "whose tokens have value"),
        ({"devnet": mine(symbol="GLM", aliases=("mainnet",))}, "whose tokens have value"),
        ({"polygon": mine(137, symbol="GLM", aliases=("holesky",))}, "no test network of your own"),
        ({"other": mine(1, symbol="GLM", aliases=("holesky",))}, "no test network of your own"),
        ({"devnet": mine(aliases=("hoodi", "hoodi"))}, "is an alias of devnet already"),
        ({"devnet": mine(aliases=("hoodi",)), "b": mine(7, aliases=("hoodi",))}, "is an alias of devnet already"),
        ({"devnet": mine(aliases=("a-b",))}, "no name of a network"),
        ({"devnet": mine(aliases=("",))}, "no name of a network"),
        ({"devnet": mine(aliases=("Holesky",))}, "no name of a network"),
        ({"devnet": mine(), "again": mine()}, "are both chain 1337"),
    ],
)
def test_names_that_could_be_taken_for_other_money_are_refused(config: dict[str, NetworkConfig], said: str) -> None:
    with pytest.raises(Misconfigured, match=said):
        networks_from(config)


def test_a_vault_makes_the_channel_platforms() -> None:
    assert not any(network.channel_platforms for network in PUBLISHED)
    assert networks_from({"devnet": mine()})[0].channel_platforms == []
    given = mine(aliases=("holesky",), vault=places.VAULT_ADDRESS.upper().replace("X", "x"))
    (network,) = networks_from({"devnet": given})
    own, other = network.channel_platforms
    assert (own.platform, own.driver, own.money) == ("channel-devnet-tglm", "channel", "channel-devnet-tglm")
    assert (other.platform, other.money) == ("channel-holesky-tglm", "channel-devnet-tglm")
    assert network.vault == places.VAULT_ADDRESS
    assert [platform.driver for platform in network.platforms] == ["erc20", "erc20"]


@pytest.mark.parametrize("vault", ["0x12", "0x" + "zz" * 20, "12" * 21, "0x" + "00" * 20, places.TOKEN_ADDRESS])
def test_a_vault_that_can_be_none_is_named(vault: str) -> None:
    with pytest.raises(Misconfigured, match=r"networks\.devnet\.vault"):
        networks_from({"devnet": mine(vault=vault)})
