"""On a chain without a vault an owner puts the standard one there, two operators write one word each, and deals are paid by
channel: over REST and by the command line, on a chain in this process."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shem.client.http import ApiClient
from shem.client.payment import PaymentApi
from shem.errors import Conflict, MoneyShort, NotAllowed, Refused
from shem.node.config import NetworkConfig
from shem.node.payment.drivers.base import PaymentDriver
from shem.node.payment.drivers.channel import ChannelDriver
from shem.node.payment.drivers.evm import standard
from shem.node.payment.drivers.evm.driver import EvmDriver
from shem.node.payment.drivers.networks import networks_from
from shem.node.payment.drivers.vaults import WrongVault
from shem.terms.pricing import LinearPricing
from shem.testing.devchain import places
from shem.testing.devchain.node import DevChain
from shem.wire import payment as wire
from tests.e2e.test_cli_alone import inside
from tests.network.payment.conftest import door_of, world_of

PLATFORM, PLAIN = "channel-devnet-tglm", "erc20-devnet-tglm"
TGLM = 10**18
PRICE = LinearPricing((Decimal("0.001"),), Decimal(0), ("golem.usage.duration_sec",))
VAULT = standard.standard_vault(places.TOKEN_ADDRESS)
HASH = re.compile(r"0x[0-9a-f]{64}")


class Setting:
    """What the operators have written for ``vault``."""

    vault = ""


@pytest.fixture
def setting() -> Setting:
    return Setting()


@pytest.fixture
async def world(tmp_path: Path, setting: Setting) -> AsyncIterator[Any]:
    """Alice and bob, each with coins and tokens, and no vault."""
    async with DevChain(directory=tmp_path / "chain", block_time_s=0.02) as chain, world_of(tmp_path) as made:

        def drivers(node: Any) -> list[PaymentDriver]:
            config = NetworkConfig(
                chain_id=places.CHAIN_ID,
                rpc_urls=(chain.rpc_url,),
                token=places.TOKEN_ADDRESS,
                token_symbol="tGLM",
                vault=setting.vault,
                aliases=("holesky",),
            )
            (network,) = networks_from({"devnet": config})
            erc20 = EvmDriver(
                node.db,
                [msgspec.structs.replace(network, poll_s=0.01, max_poll_s=0.05, gather_s=0.03)],
                [node.identity],
            )
            return [erc20, ChannelDriver(erc20)] if erc20.vaults else [erc20]

        made.drivers = drivers  # type: ignore[method-assign]
        made.chain = chain
        made.config = msgspec.structs.replace(made.config, cover_timeout_s=2.0)
        for name in ("alice", "bob"):
            node = await made.add(name)
            chain.fund(node.id, wei=TGLM, token_units=100 * TGLM)
        yield made


def tokens(chain: DevChain, owner: str) -> int:
    data = "0x70a08231" + owner.removeprefix("0x").rjust(64, "0")
    return int(str(chain.rpc.call("eth_call", [{"to": places.TOKEN_ADDRESS, "data": data}, "latest"])), 16)


async def shem(base: str, key: str, *argv: str) -> Any:
    return await asyncio.to_thread(inside, "payment", *argv, "--api-url", base, "--app-key", key)


async def test_from_no_vault_to_a_deal_paid_by_channel(world, alice, bob, wait, setting, requestor):
    none = await shem(requestor.base, alice.id, "deposit", "1")
    assert none.status == 2
    assert "code: no_vault" in none.err
    assert "shem payment deploy-vault" in " ".join(none.err.split())
    not_yours = await shem(requestor.base, f"{alice.id}-program", "deploy-vault")
    assert (not_yours.status, not_yours.out) == (2, "")
    assert "code: not_the_owner" in not_yours.err

    done = await shem(requestor.base, alice.id, "deploy-vault", "--network", "devnet")
    assert done.status == 0, done
    (tx_hash,) = HASH.findall(done.out)
    receipt = world.chain.rpc.call("eth_getTransactionReceipt", [tx_hash])
    block, gas = int(receipt["blockNumber"], 16), int(receipt["gasUsed"], 16)
    assert done.out == (
        f"the vault stands at {VAULT}: {tx_hash} in block {block}, {gas} gas\n"
        "to use it, write this in the configuration of each node and start it again:\n"
        '\n[networks.devnet]\nvault = "standard"\n'
    )
    assert "the deployment is asked for" in done.err
    again = await shem(requestor.base, alice.id, "deploy-vault", "--json")
    assert (again.status, again.out) == (2, "")
    assert "code: vault_there" in again.err
    history = await shem(requestor.base, alice.id, "history")
    assert (
        re.sub(r"\s+", " ", history.out)
        .rstrip()
        .endswith(f" final deploy vault {PLAIN} block {block} gas {gas} {tx_hash} the vault at {VAULT}")
    )

    setting.vault = "standard"
    for node in (alice, bob):
        await node.stop()
        await node.start()
    await wait(lambda: alice.network.connected() and bob.network.connected(), "the network")
    allocation = await alice.allocate("10", platform=PLATFORM)
    expires = int((time.time() + 3600) * 1000)
    deal = world.deals.make(
        alice.id, bob.id, platform=PLATFORM, pricing=PRICE, demand={"golem.srv.comp.expiration": expires}
    )
    world.deals.tell(deal, "Approved")
    await bob.payments.admit(bob.id, deal)
    note = await bob.bill_note(world.deals.activity(deal), "0.2")
    alice.accept("debit-note", note, "0.2", allocation)
    await wait(lambda: bob.state(note) == "ACCEPTED", "the voucher")
    ((channel, _),) = bob.payments.channels.listed(bob.id)
    assert (channel.vault, channel.signed) == (VAULT, TGLM // 5)
    world.deals.tell(deal, "Terminated")
    invoice = await bob.bill(deal, "0.25")
    alice.accept("invoice", invoice, "0.25", allocation)
    alice.payments.allocations.release(alice.id, allocation)
    await wait(lambda: bob.state(invoice) == "SETTLED", "the payment", timeout_s=20)
    assert tokens(world.chain, bob.id) == 100 * TGLM + TGLM // 4
    assert tokens(world.chain, places.VAULT_ADDRESS) == 0


async def test_asked_twice_and_not_waited_for(world, alice, requestor):
    world.chain.rpc.call("shem_setAutomine", [False])
    asked = [await shem(requestor.base, alice.id, "deploy-vault", "--no-wait", "--json") for _ in range(2)]
    told = [json.loads(one.out) for one in asked]
    assert told[0] == told[1]
    assert {**told[0], "id": ""} == {
        "id": "",
        "platform": PLAIN,
        "vault": VAULT,
        "network": "devnet",
        "setting": 'vault = "standard"',
    }
    plain = await shem(requestor.base, alice.id, "deploy-vault", "--no-wait")
    assert (
        plain.out == f"the deployment of the vault at {VAULT} is asked for; see shem payment history {told[0]['id']}\n"
    )
    late = await shem(requestor.base, alice.id, "deploy-vault", "--timeout", "0")
    assert late.status == 3
    world.chain.rpc.call("shem_setAutomine", [True])
    async with ApiClient(requestor.base, alice.id) as http:
        api = PaymentApi(http)
        seen = await api.transaction(told[0]["id"])
        while seen.state not in ("final", "failed"):
            seen = await api.transaction(seen.id, unless=seen.state, timeout_s=20)
        assert (seen.kind, seen.state, seen.amount) == ("deploy", "final", "0")
        assert [one.id for one in await api.transactions()] == [seen.id]
        for order in (wire.VaultOrder(), wire.VaultOrder(platform=PLAIN), wire.VaultOrder(network="holesky")):
            with pytest.raises(Conflict, match=VAULT) as there:
                await api.deploy_vault(order)
            assert there.value.code == "vault_there"


async def test_json_tells_the_transaction_and_the_setting(world, alice, requestor):
    done = await shem(requestor.base, alice.id, "deploy-vault", "--json")
    told = json.loads(done.out)
    assert (done.status, told["state"], told["vault"], told["setting"]) == (0, "final", VAULT, 'vault = "standard"')
    assert HASH.fullmatch(told["txHash"])
    assert told["gasUsed"] > 1_500_000


async def test_what_is_refused_and_why(world, alice, requestor):
    async def code(**body: Any) -> tuple[int, str]:
        answer, told, _ = await requestor("POST", "/shem-api/v1/payment/vault", body)
        return answer, told["code"]

    assert await code(network="nowhere") == (400, "bad_payment_platform")
    assert await code(platform="erc20-nowhere-glm") == (400, "bad_payment_platform")
    assert await code(platform=PLAIN, network="mainnet") == (400, "bad_payment_platform")
    async with ApiClient(requestor.base, f"{alice.id}-program") as http:
        with pytest.raises(NotAllowed) as refused:
            await PaymentApi(http).deploy_vault(wire.VaultOrder())
        assert refused.value.code == "not_the_owner"
    carol = await world.add("carol")
    with pytest.raises(MoneyShort) as poor:
        await carol.payments.treasury.deploy_vault(carol.id, None, None)
    assert poor.value.code == "money_no_gas"
    alice.identity.lock()
    assert await code() == (423, "identity_locked")
    assert await alice.payments.treasury.transactions(alice.id, after=None, limit=9, timeout_s=0) == []


async def test_configured_before_it_is_there(world, alice, bob, setting):
    """Nothing is sent, nothing is believed, and the same command mends it without a restart."""
    setting.vault = "standard"
    await alice.stop()
    await alice.start()
    treasury = alice.payments.treasury
    async with door_of(alice) as door:
        _, told, _ = await door("POST", "/shem-api/v1/payment/deposit", {"amount": "1"})
        assert told["code"] == "wrong_vault"
        assert f"nobody has put the vault of tGLM at {VAULT} on devnet yet" in told["message"]
        with pytest.raises(WrongVault) as missing:
            await treasury.deposit(alice.id, treasury.platform(None, None), "1")
        assert "shem payment deploy-vault --network devnet" in (missing.value.hint or "")
        assert (await shem(door.base, alice.id, "deploy-vault")).status == 0
        done = await shem(door.base, alice.id, "deposit", "1")
        assert done.status == 0
    assert tokens(world.chain, VAULT) == TGLM


async def test_money_that_is_on_no_chain(tmp_path):
    async with world_of(tmp_path, "dora") as made:
        dora = made.nodes["dora"]
        with pytest.raises(Refused, match="is on no chain") as refused:
            await dora.payments.treasury.deploy_vault(dora.id, None, None)
        assert refused.value.code == "bad_payment_platform"
