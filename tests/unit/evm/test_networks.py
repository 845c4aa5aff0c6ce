from __future__ import annotations

import pytest

from shem.errors import Misconfigured
from shem.node.config import NetworkConfig
from shem.node.payment.drivers.networks import GWEI, PUBLISHED, networks_from
from shem.node.payment.drivers.vaults import VaultTerms
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


PUBLIC = """
mainnet  1        GLM  0x7DD9c5Cba05E151C895FDe1CF355C9A1D5DA6429 0xCfD497F7D111F14c3eF7eBEeE63771d1506f0AF8 -
polygon  137      GLM  0x0B220b82F3eA3B7F6d9A1D8ab58930C064A2b5Bf 0x50100d4faf5f3b09987dea36dc2eddd57a3e561b -
holesky  17000    tGLM 0x8888888815bf4DB87e57B609A50f938311EEd068 0xAaAAAaA00E1841A63342db7188abA84BDeE236c7 0xFACe100969FF47EB58d2CF603321B581A84bcEaC
amoy     80002    tGLM 0x2b60e60d3fb0b36a7ccb388f9e71570da4c4594f 0xa0a51642a594763d78091bf03ee6bf8e8d663bba 0xf29ff8a13211ac33861986e407190ae5c773d53c
hoodi    560048   tGLM 0x55555555555556AcFf9C332Ed151758858bd7a26 0x222222222220C9269Cfb43eD434888F604d1dC21 0x500F965199C63865A3E666cA3fF55B64F1c8Bc8b
sepolia  11155111 tGLM 0x167b15ada84c63427c6c813B915a42eFC72E7175 -                                          0x31A2a20956a40c2F358Fa5cec59D55a9C5d6fF9A
"""  # noqa: E501
"""Golem's pages of contracts and the configuration its nodes ship: chain, token, multi-transfer, faucet."""


def test_published_addresses_are_golems() -> None:
    theirs = {line.split()[0]: line.split()[1:] for line in PUBLIC.strip().splitlines()}
    ours = {
        network.name: [
            str(network.chain_id),
            network.symbol,
            *(address or "-" for address in (network.token, network.multi_transfer, network.faucet)),
        ]
        for network in PUBLISHED
        if network.name != "devnet"
    }
    assert ours == {name: [row[0], row[1], *(word.lower() for word in row[2:])] for name, row in theirs.items()}


def test_published_limits_are_what_is_usual() -> None:
    """In gwei: mainnet 40 at most and 1.01 as a tip, Polygon 500 and 25.011; ten payments in a call, as Golem's nodes make."""
    known = {network.name: network for network in PUBLISHED}
    assert [known["mainnet"].max_fee_wei, known["mainnet"].usual_tip_wei] == [40 * GWEI, 1_010_000_000]
    assert [known["polygon"].max_fee_wei, known["polygon"].usual_tip_wei] == [500 * GWEI, 25_011_000_000]
    for network in PUBLISHED:
        assert network.usual_tip_wei <= network.max_tip_wei <= network.max_fee_wei
        assert network.multi_max <= (100 if network.name == "devnet" else 10)
        assert (network.pay_ahead_s is None) == (network.symbol != "GLM"), "bills in money wait for their date"
        assert network.depth is None, "all of them say themselves what is final"
        assert network.vault == "", "nobody has published one"


def test_an_operator_sets_limits_and_contracts() -> None:
    multi = "0x" + "AB" * 20
    given = mine(
        multi_transfer=multi, max_fee_gwei="25.5", max_tip_gwei="2", max_head_age_s=90, depth=12, pay_ahead_s=600
    )
    (network,) = networks_from({"own": given})
    assert network.multi_transfer == multi.lower()
    assert (network.max_fee_wei, network.max_tip_wei) == (25_500_000_000, 2_000_000_000)
    assert (network.max_head_age_s, network.depth, network.pay_ahead_s) == (90, 12, 600)
    (network,) = networks_from({"own": mine(max_head_age_s=0)})
    assert network.max_head_age_s is None
    assert (network.max_fee_wei, network.multi_transfer) == (100 * GWEI, "")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"multi_transfer": "0x12"}, r"networks\.own\.multi_transfer"),
        ({"multi_transfer": places.TOKEN_ADDRESS}, "is the token itself"),
        ({"max_fee_gwei": "much"}, r"networks\.own\.max_fee_gwei"),
        ({"max_fee_gwei": "0"}, "is nothing"),
        ({"max_tip_gwei": "0.0000000001"}, r"networks\.own\.max_tip_gwei"),
        ({"max_tip_gwei": "200"}, "more than"),
    ],
)
def test_limits_that_can_be_none_are_named(changes: dict[str, str], said: str) -> None:
    with pytest.raises(Misconfigured, match=said):
        networks_from({"own": mine(**changes)})


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


def test_patience_for_cover_follows_finality() -> None:
    terms = {network.name: network.vault_terms for network in PUBLISHED}
    assert terms["mainnet"].cover_timeout_s > 2 * terms["mainnet"].finality_s > 1200
    assert terms["polygon"].cover_timeout_s < 120
    assert terms["devnet"].cover_timeout_s == 30
    assert {one.credit for one in terms.values()} == {0}


def test_the_operator_decides_about_channels() -> None:
    given = mine(finality_s=4.0, settle_after_s=60.0, credit="0.25")
    [network] = networks_from({"devnet": given})
    assert network.vault_terms == VaultTerms(
        finality_s=4.0, cover_timeout_s=30.0, settle_after_s=60.0, credit=25 * 10**16
    )
    assert network.platform.finality_s == 4.0
    [network] = networks_from({"devnet": mine(cover_timeout_s=5.0)})
    assert network.vault_terms.cover_timeout_s == 5.0


@pytest.mark.parametrize("credit", ["", "-1", "much", "0.0000000000000000001"])
def test_a_credit_that_is_no_amount_is_named(credit: str) -> None:
    with pytest.raises(Misconfigured, match=r"networks\.devnet\.credit"):
        networks_from({"devnet": mine(credit=credit)})


MISTYPED = "0x0b220b82F3eA3B7F6d9A1D8ab58930C064A2b5Bf"


@pytest.mark.parametrize("setting", ["token", "vault", "multi_transfer"])
def test_a_mistyped_contract_stops_the_start(setting: str) -> None:
    """Its capital letters are a checksum; without any there is none."""
    right = {"token": "0x" + "12" * 20, setting: MISTYPED.lower()}
    networks_from({"mine": NetworkConfig(chain_id=99, rpc_urls=("http://a",), **right)})
    with pytest.raises(Misconfigured, match=f"^networks.mine.{setting}: {MISTYPED} is mistyped") as refused:
        networks_from({"mine": NetworkConfig(chain_id=99, rpc_urls=("http://a",), **(right | {setting: MISTYPED}))})
    assert refused.value.code == f"bad_{setting}_address"
    assert "small letters" in refused.value.hint
