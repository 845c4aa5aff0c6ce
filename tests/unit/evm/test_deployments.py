"""The standard vault is put on a chain once, whoever dies, whoever else does it too; and nothing is sent where it cannot be."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from shem.errors import Refused, ShemError
from shem.node.config import NetworkConfig
from shem.node.identity.keys import Identity
from shem.node.payment.drivers.evm import standard, vault
from shem.node.payment.drivers.evm.deployments import NoDeployer, VaultRefused, VaultThere
from shem.node.payment.drivers.evm.manager import TransactionManager
from shem.node.payment.drivers.networks import networks_from
from shem.node.payment.drivers.vaults import WrongVault
from shem.testing.devchain import places
from shem.testing.devchain.evm import Account
from shem.testing.devchain.node import DevChain

TOKEN = places.TOKEN_ADDRESS
PLACE = vault.Vault(places.CHAIN_ID, standard.standard_vault(TOKEN))
COIN = 10**18


class PowerCut(BaseException):
    """The node is gone between one instruction and the next."""


class DiesBeforeSending(TransactionManager):
    async def _broadcast(self, attempts: Sequence[Any], problems: dict[str, Any]) -> None:
        if attempts:
            raise PowerCut


class DiesAfterSending(TransactionManager):
    async def _broadcast(self, attempts: Sequence[Any], problems: dict[str, Any]) -> None:
        await super()._broadcast(attempts, problems)
        if attempts:
            raise PowerCut


async def put(payer: Any) -> str:
    """As the treasury does."""
    place, me = payer.driver.deployments["devnet"], payer.identity.address
    open_one: str | None = place.under_way(me)
    if open_one is not None:
        return open_one
    await place.check(me)
    with payer.db.transaction(durable=True) as connection:
        asked: str = place.ask(connection, me)
    return asked


def rows(payer: Any) -> list[sqlite3.Row]:
    found: list[sqlite3.Row] = payer.db.connection.execute("select * from evm_intent order by id").fetchall()
    return found


def code_at(chain: DevChain, address: str) -> bytes:
    return bytes.fromhex(str(chain.rpc.call("eth_getCode", [address, "latest"]))[2:])


def sent(chain: DevChain, who: str) -> int:
    return int(str(chain.rpc.call("eth_getTransactionCount", [who, "latest"])), 16)


def stands(chain: DevChain) -> bool:
    return vault.is_our_code(code_at(chain, PLACE.address), PLACE, TOKEN)


async def ended(payer: Any, asked: str, until: Callable[..., Any], state: str = "final") -> Any:
    def over() -> bool:
        return payer.driver.deed(payer.identity.address, asked).state in ("final", "failed")

    await until(over)
    deed = payer.driver.deed(payer.identity.address, asked)
    assert deed.state == state, deed
    return deed


async def test_it_stands_where_it_was_said_and_is_used(new_payer: Any, chain: DevChain, until: Any) -> None:
    payer = new_payer(vault=PLACE.address)  # what "standard" means, long before it is there
    driver = payer.open()
    await driver.start()
    with pytest.raises(WrongVault, match="nobody has put the vault of tGLM at") as missing:
        await driver.vaults["devnet"].free(payer.identity.address)
    assert "shem payment deploy-vault --network devnet" in (missing.value.hint or "")
    assert "nobody has put" in driver.vaults["devnet"].problems()[0].message
    deed = await ended(payer, await put(payer), until)
    assert (deed.kind, deed.amount, deed.detail) == ("deploy", 0, f"the vault at {PLACE.address}")
    assert deed.platform == "erc20-devnet-tglm"
    assert 1_500_000 < (deed.gas_used or 0) < 2_500_000
    assert stands(chain)
    assert await driver.vaults["devnet"].free(payer.identity.address) == 0
    assert list(driver.vaults["devnet"].problems()) == []
    await payer.close()


async def test_asked_twice_it_is_one_transaction(new_payer: Any, chain: DevChain, until: Any) -> None:
    payer = new_payer()
    driver = payer.open()  # not started: the first call stays under way
    assert await put(payer) == await put(payer)
    with payer.db.transaction() as connection:  # who has looked at the same time
        assert driver.deployments["devnet"].ask(connection, payer.identity.address) == await put(payer)
    await driver.start()
    await ended(payer, await put(payer), until)
    with pytest.raises(VaultThere, match=f"stands at {PLACE.address} already") as there:
        await put(payer)
    assert 'vault = "standard" under [networks.devnet]' in (there.value.hint or "")
    assert (len(rows(payer)), sent(chain, payer.identity.address)) == (1, 1)
    await payer.close()


@pytest.mark.parametrize("moment", ["stored", "signed", "sent"])
async def test_killed_it_is_put_there_once(new_payer: Any, chain: DevChain, until: Any, moment: str) -> None:
    payer = new_payer()
    payer.open()
    asked = await put(payer)
    await payer.close()
    if moment != "stored":
        kind = DiesBeforeSending if moment == "signed" else DiesAfterSending
        driver = payer.open()
        driver.manager_type = kind
        manager = driver._manager(
            payer.network, payer.identity, driver.managers["devnet", payer.identity.address]._clock
        )
        with pytest.raises(PowerCut):
            await manager.step()
        await payer.close()
    payer.open()
    assert [(row["state"], row["nonce"]) for row in rows(payer)] == [
        ("new", None) if moment == "stored" else ("sent", 0)
    ]
    await payer.driver.start()
    assert await put(payer) == asked
    await ended(payer, asked, until)
    assert stands(chain)
    assert (len(rows(payer)), sent(chain, payer.identity.address)) == (1, 1)
    await payer.close()


@pytest.fixture
def two(chain: DevChain, payer_type: Any, devnet_network: Any, tmp_path: Path) -> list[Any]:
    """Accounts of two nodes, with coins."""
    people = [Identity(bytes([number]) * 32) for number in (21, 22)]
    for one in people:
        chain.fund(one.address, wei=COIN)
    network = devnet_network(chain.rpc_url, poll_s=0.01, max_poll_s=0.05)
    return [payer_type(tmp_path / f"{one.address}.sqlite", one, network) for one in people]


async def test_whom_somebody_else_has_spared_the_fee(two: list[Any], chain: DevChain, until: Any) -> None:
    slow, fast = two
    slow.open()
    asked = await put(slow)
    await fast.open().start()
    await ended(fast, await put(fast), until)
    await slow.driver.start()
    deed = await ended(slow, asked, until, "failed")
    assert deed.detail == f"the vault at {PLACE.address}: somebody else has put it there"
    assert sent(chain, slow.identity.address) == 0
    with pytest.raises(VaultThere):
        await put(slow)
    for one in two:
        await one.close()


async def test_two_in_one_block(two: list[Any], chain: DevChain, until: Any) -> None:
    chain.rpc.call("shem_setAutomine", [False])
    asked = []
    for one in two:
        await one.open().start()
        asked.append(await put(one))
        await until(lambda one=one: rows(one)[0]["state"] == "sent")
    await until(lambda: len(chain.chain.executable(10)) == 2)
    chain.rpc.call("shem_mine", [4])
    for one, name in zip(two, asked, strict=True):
        await until(lambda one=one, name=name: one.driver.deed(one.identity.address, name).state in ("final", "failed"))
    deeds = [one.driver.deed(one.identity.address, name) for one, name in zip(two, asked, strict=True)]
    assert sorted(deed.state for deed in deeds) == ["failed", "final"]
    assert all(deed.tx_hash for deed in deeds)
    assert stands(chain)
    for one in two:
        with pytest.raises(VaultThere):
            await put(one)
        await one.close()


async def test_what_has_failed_may_be_asked_for_again(new_payer: Any, chain: DevChain, until: Any) -> None:
    payer = new_payer()
    driver = payer.open()
    first = await put(payer)
    # as a reorganisation leaves it that takes back the call of who was faster
    payer.db.connection.execute("update evm_intent set state = 'failed'")
    second = await put(payer)
    assert second != first
    await driver.start()
    await ended(payer, second, until)
    assert stands(chain)
    await payer.close()


def code(text: str) -> Account:
    return Account(code=bytes.fromhex(text))


OTHER_TOKEN = places.runtime_code("Vault") + vault.constructed(PLACE, "0x" + "12" * 20)
CHAINS: dict[str, tuple[dict[str, Account], type[ShemError], str]] = {
    "another contract": (
        {PLACE.address: Account(code=places.runtime_code("MultiTransfer") + bytes(32))},
        WrongVault,
        "is not our vault of tGLM",
    ),
    "another token's vault": ({PLACE.address: Account(code=OTHER_TOKEN)}, WrongVault, "is not our vault of tGLM"),
    "no proxy": ({standard.DEPLOYER: Account()}, NoDeployer, "has no deployment proxy at 0x4e59"),
    # PUSH 20, PUSH 0, RETURN
    "another proxy": ({standard.DEPLOYER: code("60145ff3")}, NoDeployer, "is not the deployment proxy"),
    # PUSH 0, PUSH 0, REVERT: what comes of code that the chain does not know
    "no Cancun": ({standard.DEPLOYER: code("5f5ffd")}, VaultRefused, "would not make the vault: "),
}


@pytest.mark.parametrize("what", CHAINS)
async def test_what_cannot_be_is_said_and_nothing_is_sent(
    what: str, tmp_path: Path, payer_type: Any, devnet_network: Any
) -> None:
    others, error, said = CHAINS[what]
    async with DevChain(directory=tmp_path / "chain", others=others) as chain:
        payer = payer_type(tmp_path / "db", Identity(b"\7" * 32), devnet_network(chain.rpc_url, vault=PLACE.address))
        payer.open()
        chain.fund(payer.identity.address, wei=COIN)
        with pytest.raises(error, match=said) as refused:
            await put(payer)
        assert type(refused.value) is error
        assert refused.value.hint
        with pytest.raises(WrongVault, match="is not our vault" if error is WrongVault else "nobody has put"):
            await payer.driver.vaults["devnet"].free(payer.identity.address)
        assert (rows(payer), sent(chain, payer.identity.address)) == ([], 0)
        await payer.close()


async def test_a_stranger_s_account_puts_nothing_anywhere(payer: Any) -> None:
    with pytest.raises(Refused, match="does not hold the key"), payer.db.transaction() as connection:
        payer.driver.deployments["devnet"].ask(connection, "0x" + "34" * 20)


def test_standard_is_a_word_of_the_configuration() -> None:
    given = {"chain_id": 99, "rpc_urls": ("http://a",), "token": TOKEN.upper().replace("X", "x")}
    (network,) = networks_from({"own": NetworkConfig(**given, vault="standard", token_symbol="XYZ")})
    assert network.vault == PLACE.address
    assert [p.platform for p in network.channel_platforms] == ["channel-own-xyz"]
    (other,) = networks_from({"own": NetworkConfig(**given | {"token": "0x" + "12" * 20}, vault="standard")})
    assert other.vault == standard.standard_vault("0x" + "12" * 20) != PLACE.address
    (none,) = networks_from({"own": NetworkConfig(**given)})
    assert none.vault == ""
    with pytest.raises(ShemError, match=r"networks\.own\.vault is 'Standard'") as refused:
        networks_from({"own": NetworkConfig(**given, vault="Standard")})
    assert 'or "standard"' in (refused.value.hint or "")
