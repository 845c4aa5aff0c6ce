"""Test tokens: from a chain of one's own at once, from the faucet of a published network by one transaction at a time."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shem.errors import Refused
from shem.node.payment.drivers.base import ChainUnreachable, NoFaucet
from shem.node.payment.drivers.evm.driver import GIFT_TOKENS, NoGas
from shem.node.payment.drivers.networks import PUBLISHED

PLATFORM = "erc20-devnet-tglm"
TOKEN = 10**18
FAUCET = "0x" + "fa" * 20


async def test_a_chain_of_ones_own_gives_at_once(payer: Any, token_balance: Any) -> None:
    before = token_balance(payer.identity.address)
    said = await payer.driver.fund(PLATFORM, payer.identity.address)
    assert said.startswith(f"{GIFT_TOKENS} tGLM and ")
    assert token_balance(payer.identity.address) == before + GIFT_TOKENS * TOKEN


async def test_a_chain_that_gives_nothing_says_so(new_payer: Any) -> None:
    payer = new_payer(faucet_call="shem_give")
    payer.open()
    with pytest.raises(NoFaucet, match="gives nothing away"):
        await payer.driver.fund(PLATFORM, payer.identity.address)
    await payer.close()


async def test_a_faucet_is_asked_once_at_a_time(new_payer: Any, chain: Any, until: Any) -> None:
    payer = new_payer(faucet_call="", faucet=FAUCET)
    driver = payer.open()  # not started: the first call stays under way
    said = [await driver.fund(PLATFORM, payer.identity.address) for _ in range(2)]
    assert said == [
        "the faucet of devnet is asked for tGLM; they come when its transaction is mined",
        "the faucet of devnet is asked already",
    ]
    payee = "0x" + "12" * 20
    payer.order("one", payee, TOKEN)  # a payment beside it is none of its business
    await driver.start()
    await payer.wait_told(1)
    rows = payer.db.connection.execute("select dst, hex(data) as data, state, nonce from evm_intent order by id")
    asked, paid = [tuple(row) for row in rows]
    # the first four bytes of keccak("create()"): published, the same for every faucet of a test network
    assert asked == (FAUCET, "EFC81A8C", "final", 0)
    assert paid[2:] == ("final", 1)
    assert (await driver.fund(PLATFORM, payer.identity.address)).startswith("the faucet of devnet is asked for")
    await payer.close()


async def test_asking_takes_coins_for_the_fee(new_payer: Any) -> None:
    payer = new_payer(wei=0, token_units=0, faucet_call="", faucet=FAUCET)
    payer.open()
    with pytest.raises(NoGas, match=r"has no dETH on devnet") as refused:
        await payer.driver.fund(PLATFORM, payer.identity.address)
    assert "public faucet" in (refused.value.hint or "")
    assert payer.db.connection.execute("select count(*) from evm_intent").fetchone()[0] == 0
    await payer.close()


async def test_money_is_not_given_away(new_payer: Any) -> None:
    payer = new_payer(faucet_call="", faucet=FAUCET, symbol="GLM")
    payer.open()
    with pytest.raises(NoFaucet, match="nobody gives away GLM"):
        await payer.driver.fund("erc20-devnet-glm", payer.identity.address)
    for platform in ("erc20-nowhere-glm", PLATFORM):
        with pytest.raises(Refused):
            await payer.driver.fund(platform, payer.identity.address)
    await payer.close()


async def test_a_stranger_gets_nothing_and_silence_is_said(new_payer: Any) -> None:
    payer = new_payer(faucet_call="", faucet=FAUCET)
    payer.open()
    with pytest.raises(Refused, match="does not hold the key"):
        await payer.driver.fund(PLATFORM, "0x" + "34" * 20)
    await payer.close()
    payer.network = msgspec.structs.replace(payer.network, rpc_urls=("http://127.0.0.1:1",))
    payer.open()
    with pytest.raises(ChainUnreachable):
        await payer.driver.fund(PLATFORM, payer.identity.address)
    await payer.close()


def test_published_test_networks_have_faucets_and_those_of_money_none() -> None:
    for network in PUBLISHED:
        assert bool(network.faucet or network.faucet_call) == (network.symbol != "GLM"), network.name
