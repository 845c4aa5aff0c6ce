"""The standard vault: its address is the same for everybody, and what the proxy puts there is what nodes look for; on the
devnet's chain, with a proxy of ours, and on a real node with the one that public chains have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from eth._utils.address import generate_safe_contract_address

from shem.node.identity.signing import keccak256
from shem.node.payment.drivers.evm import standard, vault
from shem.node.payment.drivers.networks import PUBLISHED

ADDRESSES = {
    "mainnet": "0xc74290a72b599f7baa874661804546c58b427d4a",
    "polygon": "0x8bcf1fd1c6ad261b4066b857c12de3e517332699",
    "hoodi": "0xfdbd2662c93e7a103cd3025277aaa1e12c0d3142",
    "holesky": "0x7cb05f3ece10119a598e0ef2690b72c88b5f3c03",
    "amoy": "0x80eda2ed8dc006aa2016f7dcd20d00e1866f09d0",
    "sepolia": "0x5591a3d09a2c74bf3063f90abf41c26860016966",
}
"""By heart: nodes of other versions look there, and money may lie there. Another vault gets another version in the salt."""


def test_the_addresses_stay() -> None:
    known = {n.name: standard.standard_vault(n.token) for n in PUBLISHED if n.token}
    assert known == ADDRESSES
    told = (Path(__file__).parents[3] / "docs" / "payments.md").read_text()
    assert all(f"| {name} | `{address}` |" in told for name, address in ADDRESSES.items())


def test_an_address_is_the_token_s_alone_and_what_the_chain_s_library_makes_of_it() -> None:
    tokens = [n.token for n in PUBLISHED if n.token]
    assert len({standard.standard_vault(token) for token in tokens}) == len(tokens)
    creator, salt = bytes.fromhex(standard.DEPLOYER[2:]), int.from_bytes(standard.SALT, "big")
    for token in tokens:
        theirs = generate_safe_contract_address(creator, salt, standard.creation(token))
        assert standard.standard_vault(token) == "0x" + theirs.hex()


def test_anybody_puts_it_where_everybody_looks_once(world: Any) -> None:
    anybody, place = world.people[5], vault.Vault(world.vault.chain_id, standard.standard_vault(world.token))
    assert world.rpc("eth_getCode", place.address, "latest") == "0x"
    call = standard.deployment(world.token)
    answer = bytes.fromhex(world.view(call, standard.DEPLOYER)[2:])
    assert standard.is_address(answer, place.address)
    done = world.send(anybody, call, standard.DEPLOYER)
    assert done.ok
    assert 1_500_000 < done.gas < 2_500_000
    code = bytes.fromhex(world.rpc("eth_getCode", place.address, "latest")[2:])
    assert vault.is_our_code(code, place, world.token)
    told = world.view(keccak256(b"domain_separator()")[:4], place.address)
    assert told == "0x" + vault.separator(place).hex()
    assert not world.send(world.people[6], call, standard.DEPLOYER).ok
    assert bytes.fromhex(world.rpc("eth_getCode", place.address, "latest")[2:]) == code


# PUSH 1, PUSH 0, MSTORE8, PUSH 1, PUSH 0, RETURN: makes a contract of the one byte 1
SMALL = bytes.fromhex("60015f5360015ff3")


@pytest.mark.parametrize("salt", [bytes(32), b"\1" * 32])
def test_the_proxy_is_the_public_one_s_equal(world: Any, salt: bytes) -> None:
    """In its words: what it answers, where it puts things, that it passes coins on, and what it refuses."""
    who, at = world.people[4], standard.DEPLOYER
    made = generate_safe_contract_address(bytes.fromhex(at[2:]), int.from_bytes(salt, "big"), SMALL)
    assert world.view(salt + SMALL, at) == "0x" + made.hex()
    assert world.send(who, salt + SMALL, at, value=7).ok
    assert world.rpc("eth_getCode", "0x" + made.hex(), "latest") == "0x01"
    assert int(world.rpc("eth_getBalance", "0x" + made.hex(), "latest"), 16) == 7
    assert not world.send(who, salt + SMALL, at, gas=500_000).ok, "there already"
    assert not world.send(who, salt + bytes.fromhex("5f5ffd"), at, gas=500_000).ok, "a constructor that reverts"
    assert not world.send(who, salt[:31], at, gas=500_000).ok, "no salt"
