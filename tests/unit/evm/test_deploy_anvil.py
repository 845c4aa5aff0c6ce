"""A node puts the standard vault on a real node's chain, through the deployment proxy that stands there as on public chains."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from shem.node.config import NetworkConfig
from shem.node.db import Database
from shem.node.identity.keys import Identity
from shem.node.payment.drivers.evm import standard, vault
from shem.node.payment.drivers.evm.deployments import VaultThere
from shem.node.payment.drivers.evm.driver import EvmDriver
from shem.node.payment.drivers.networks import networks_from
from shem.testing.devchain import places
from tests.unit.evm.test_chaos_anvil import DEPTH, Anvil
from tests.unit.vault.conftest import anvil_process


@pytest.mark.interop
async def test_the_vault_comes_by_the_real_proxy(tmp_path: Path) -> None:
    with anvil_process() as ask:
        chain, me = Anvil(ask, tmp_path), Identity(b"\7" * 32)
        proxy = chain.call("eth_getCode", [standard.DEPLOYER, "latest"])
        assert len(proxy) > 2
        assert bytes.fromhex(proxy[2:]) != places.DEPLOYER_CODE, "theirs, not ours"
        chain.fund(bytes.fromhex(me.address[2:]), 10**18, 0)

        async def line(url: str, body: bytes) -> bytes:
            return json.dumps(ask(json.loads(body))).encode()

        config = NetworkConfig(
            chain_id=1337,
            rpc_urls=("http://anvil",),
            token=places.TOKEN_ADDRESS,
            token_symbol="tGLM",
            vault="standard",
            depth=DEPTH,
        )
        (network,) = networks_from({"devnet": config})
        db = Database(tmp_path / "node.sqlite")
        driver = EvmDriver(db, [msgspec.structs.replace(network, rebroadcast_s=0.0)], [me], transport=line)
        place = driver.deployments["devnet"]
        await place.check(me.address)
        with db.transaction(durable=True) as connection:
            asked = place.ask(connection, me.address)
        for _ in range(DEPTH + 2):
            await driver.managers["devnet", me.address].step()
            chain.mine()
        await driver.managers["devnet", me.address].step()
        deed = driver.deed(me.address, asked)
        assert deed is not None
        assert deed.state == "final"
        code = bytes.fromhex(chain.call("eth_getCode", [place.vault.address, "latest"])[2:])
        assert vault.is_our_code(code, place.vault, places.TOKEN_ADDRESS)
        assert await driver.vaults["devnet"].free(me.address) == 0
        with pytest.raises(VaultThere):
            await place.check(me.address)
        await driver.stop()
        db.close()
