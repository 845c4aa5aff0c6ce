"""An owner moves its own money: into the vault, out of it, all of it; over REST, on a chain with a vault in this process."""

from __future__ import annotations

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
from shem.errors import Conflict, KeyLocked, MoneyShort, NotAllowed, NotFound, Refused
from shem.node.config import NetworkConfig
from shem.node.payment.drivers.base import PaymentDriver
from shem.node.payment.drivers.channel import ChannelDriver
from shem.node.payment.drivers.evm.driver import EvmDriver
from shem.node.payment.drivers.networks import networks_from
from shem.terms.pricing import LinearPricing
from shem.testing.devchain import places
from shem.testing.devchain.node import DevChain
from shem.wire import payment as wire
from tests.network.payment.conftest import door_of

PLATFORM, PLAIN = "channel-devnet-tglm", "erc20-devnet-tglm"
TGLM = 10**18
PRICE = LinearPricing((Decimal("0.001"),), Decimal(0), ("golem.usage.duration_sec",))
"""0.6 tGLM of cover."""
STRANGER = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
HASH = re.compile(r"0x[0-9a-f]{64}")


@pytest.fixture
async def world(tmp_path: Path, open_channels: Any) -> AsyncIterator[Any]:
    async with open_channels(tmp_path) as made:
        yield made


@pytest.fixture
def chain(world: Any) -> DevChain:
    running: DevChain = world.chain
    return running


@pytest.fixture
async def api(requestor: Any) -> AsyncIterator[PaymentApi]:
    async with ApiClient(requestor.base, requestor.node.id) as http:
        yield PaymentApi(http)


def tokens(chain: DevChain, owner: str) -> int:
    data = "0x70a08231" + owner.removeprefix("0x").lower().rjust(64, "0")
    return int(str(chain.rpc.call("eth_call", [{"to": places.TOKEN_ADDRESS, "data": data}, "latest"])), 16)


async def free(node: Any) -> int:
    units: int = await node.payments.channels.shared.chains[PLATFORM].free(node.id)
    return units


async def final(api: PaymentApi, asked: wire.Asked) -> wire.Transaction:
    """Told of each state, none of them twice."""
    states = [(await api.transaction(asked.id)).state]
    while states[-1] not in ("final", "failed"):
        seen = await api.transaction(asked.id, unless=states[-1], timeout_s=20)
        assert seen.state != states[-1], states
        states.append(seen.state)
    assert [s for s in ("new", "sent", "mined", "final", "failed") if s in states] == states
    return await api.transaction(asked.id)


async def over(api: PaymentApi, asked: wire.Asked) -> wire.ExitStatus:
    return await api.exit_status(asked.id, unless="open", timeout_s=30)


def agree(world: Any, alice: Any, bob: Any) -> str:
    expires = int((time.time() + 3600) * 1000)
    deal: str = world.deals.make(
        alice.id, bob.id, platform=PLATFORM, pricing=PRICE, demand={"golem.srv.comp.expiration": expires}
    )
    world.deals.tell(deal, "Approved")
    return deal


async def work(world: Any, alice: Any, bob: Any, wait: Any, amount: str = "0.2") -> tuple[str, str]:
    """(agreement, allocation): bob works, and holds a voucher for ``amount``."""
    allocation = await alice.allocate("10", platform=PLATFORM)
    deal = agree(world, alice, bob)
    await bob.payments.admit(bob.id, deal)
    note = await bob.bill_note(world.deals.activity(deal), amount)
    alice.accept("debit-note", note, amount, allocation)
    await wait(lambda: bob.state(note) == "ACCEPTED", "the voucher")
    return deal, allocation


async def status(api: PaymentApi, platform: str = PLATFORM) -> wire.PlatformStatus:
    return next(one for one in await api.status() if one.platform == platform)


async def test_into_the_vault_and_out_of_it(world, alice, api, chain):
    done = await final(api, await api.deposit(wire.MoneyMove(amount="12.000000000000000001", network="devnet")))
    assert (done.kind, done.state, done.amount, done.entries) == ("deposit", "final", "12.000000000000000001", 1)
    assert HASH.fullmatch(done.tx_hash or "")
    assert done.gas_used
    assert await free(alice) == 12 * TGLM + 1
    seen = await status(api)
    assert seen.vault is not None
    assert (seen.wallet, seen.vault.free, seen.amount) == ("87.999999999999999999", "12.000000000000000001", "100")
    assert (await status(api, PLAIN)).vault is None

    away = await final(api, await api.withdraw(wire.MoneyMove(amount="2", platform=PLAIN, receiver=STRANGER)))
    back = await final(api, await api.withdraw(wire.MoneyMove(amount="all")))
    assert (away.amount, back.amount) == ("2", "10.000000000000000001")
    assert (done.receiver, away.receiver, back.receiver) == (None, STRANGER.lower(), alice.id)
    assert (await free(alice), tokens(chain, STRANGER), tokens(chain, alice.id)) == (0, 2 * TGLM, 98 * TGLM)

    told = await api.transactions()
    assert [one.kind for one in told if one.kind != "approve"] == ["withdraw", "withdraw", "deposit"]
    assert [one.receiver for one in told[:2]] == [alice.id, STRANGER.lower()]
    assert {one.state for one in told} == {"final"}
    assert len(await api.transactions(limit=1)) == 1
    assert await api.transactions(after=told[0].at) == []


async def test_what_cannot_be_moved_is_refused_by_a_stable_code(world, alice, bob, wait, api, requestor):
    async def code(path: str, **body: Any) -> tuple[int, str]:
        answer, told, _ = await requestor("POST", f"/shem-api/v1/payment/{path}", body)
        return answer, told["code"]

    assert await code("deposit", amount="100.000000000000000001") == (400, "money_too_much")
    assert await code("deposit", amount="0") == (400, "bad_amount")
    assert await code("deposit", amount="-1") == (400, "bad_amount")
    assert await code("deposit", amount="1e1") == (400, "bad_amount"), "nobody moves a thousand by a slip of the hand"
    assert await code("withdraw", amount="1E-3") == (400, "bad_amount")
    assert await code("deposit", amount="0.0000000000000000001") == (400, "bad_amount")
    assert await code("deposit", amount="1", network="nowhere") == (400, "bad_payment_platform")
    assert await code("deposit", amount="1", platform="erc20-nowhere-glm") == (400, "bad_payment_platform")
    assert await code("deposit", amount="1", platform=PLAIN, network="holesky") == (400, "bad_payment_platform")
    assert await code("withdraw", amount="1") == (400, "money_too_much")
    assert await code("withdraw", amount="all") == (409, "nothing_there")
    assert await code("exit") == (409, "nothing_there")
    assert await code("withdraw", amount="1", receiver="0x12") == (400, "bad_node_id")
    assert await code("withdraw", amount="1", receiver=STRANGER.replace("5aA", "5AA")) == (400, "bad_receiver")
    assert await code("withdraw", amount="1", receiver=places.VAULT_ADDRESS) == (400, "bad_receiver")
    assert await code("withdraw", amount="1", receiver=places.TOKEN_ADDRESS) == (400, "bad_receiver")
    assert await code("withdraw", amount="1", receiver="0x" + "00" * 20) == (400, "bad_receiver")
    assert (await requestor("GET", "/shem-api/v1/payment/transactions/nothing"))[0] == 404
    assert (await requestor("POST", "/shem-api/v1/payment/transactions/nothing/retry"))[0] == 404
    assert (await requestor("GET", "/shem-api/v1/payment/exits/nothing"))[0] == 404
    assert await api.transactions() == []

    # what is promised to others, by transfer or by channel, is not moved away from under them
    await alice.allocate("60", platform=PLAIN)
    await alice.allocate("15", platform=PLATFORM)
    with pytest.raises(MoneyShort) as error:
        await api.deposit(wire.MoneyMove(amount="41"))
    assert (error.value.code, error.value.details["available"]) == ("money_promised", "40")
    assert (await final(api, await api.deposit(wire.MoneyMove(amount="all")))).amount == "40"
    with pytest.raises(MoneyShort) as error:
        await api.withdraw(wire.MoneyMove(amount="26", receiver=STRANGER))
    assert (error.value.code, error.value.details["available"]) == ("money_promised", "25")
    assert (await final(api, await api.withdraw(wire.MoneyMove(amount="26")))).amount == "26"


async def test_a_programs_key_sends_money_to_nobody_else(world, alice, requestor):
    async with ApiClient(requestor.base, f"{alice.id}-program") as http:
        api = PaymentApi(http)
        await final(api, await api.deposit(wire.MoneyMove(amount="2")))
        with pytest.raises(NotAllowed) as error:
            await api.withdraw(wire.MoneyMove(amount="1", receiver=STRANGER))
        assert error.value.code == "not_the_owner"
        with pytest.raises(NotAllowed):
            await api.exit(wire.ExitOrder(receiver=STRANGER))
        await final(api, await api.withdraw(wire.MoneyMove(amount="1", receiver=alice.id)))
        assert (await over(api, await api.exit(wire.ExitOrder()))).withdrawn == "1"


async def test_two_deposits_at_once_do_not_take_the_same_money(world, alice, api):
    await api.deposit(wire.MoneyMove(amount="60"))
    with pytest.raises(MoneyShort):
        await api.deposit(wire.MoneyMove(amount="60"))


async def test_without_coins_for_fees_nothing_is_begun(world, chain):
    carol = await world.add("carol")
    chain.fund(carol.id, token_units=5 * TGLM)
    treasury = carol.payments.treasury
    with pytest.raises(MoneyShort) as error:
        await treasury.deposit(carol.id, treasury.platform(None, "devnet"), "1")
    assert error.value.code == "money_no_gas"
    assert await treasury.transactions(carol.id, after=None, limit=9, timeout_s=0) == []


async def test_a_locked_node_moves_nothing_and_still_tells(world, alice, api):
    asked = await api.deposit(wire.MoneyMove(amount="3"))
    await final(api, asked)
    alice.identity.lock()
    treasury = alice.payments.treasury
    vault = treasury.platform(None, None)
    with pytest.raises(KeyLocked):
        await treasury.deposit(alice.id, vault, "1")
    with pytest.raises(KeyLocked):
        await treasury.withdraw(alice.id, vault, "all", None)
    with pytest.raises(KeyLocked):
        await treasury.exit(alice.id, vault, None, force=True)
    assert (await api.transaction(asked.id)).state == "final"
    assert len(await api.transactions()) == 2
    assert (await status(api)).amount == "100"


async def test_an_exit_closes_what_is_idle_and_takes_everything_out(world, alice, bob, wait, api, chain):
    deal, allocation = await work(world, alice, bob, wait)
    with pytest.raises(Conflict) as error:
        await api.exit(wire.ExitOrder())
    assert (error.value.code, error.value.details["agreements"]) == ("work_running", [deal])
    assert error.value.message == "an agreement that is paid through this vault goes on"
    world.deals.tell(deal, "Terminated")
    with pytest.raises(Conflict) as error:
        await api.exit(wire.ExitOrder())
    assert (error.value.code, error.value.details["allocations"]) == ("work_running", [allocation])
    assert error.value.message.startswith("an allocation sets money aside on ")
    invoice = await bob.bill(deal, "0.25")
    alice.accept("invoice", invoice, "0.25", allocation)
    alice.payments.allocations.release(alice.id, allocation)
    asked = await api.exit(wire.ExitOrder())
    assert (await api.exit(wire.ExitOrder())).id == asked.id
    with pytest.raises(Conflict) as error:
        await api.exit(wire.ExitOrder(receiver=STRANGER))
    assert error.value.code == "exit_under_way"
    with pytest.raises(Conflict) as error:
        await api.deposit(wire.MoneyMove(amount="1"))
    assert error.value.code == "exit_under_way"
    done = await over(api, asked)
    assert (done.state, done.locked, done.detail) == ("done", [], "")
    assert done.withdrawn == "0.35"
    assert done.withdrawal is not None
    taken = await api.transaction(done.withdrawal)
    assert (taken.kind, taken.state, taken.amount) == ("withdraw", "final", "0.35")
    assert tokens(chain, alice.id) == 100 * TGLM - TGLM // 4
    assert tokens(chain, bob.id) == 100 * TGLM + TGLM // 4
    assert (await free(alice), bob.state(invoice)) == (0, "SETTLED")
    with pytest.raises(Conflict) as error:
        await api.exit(wire.ExitOrder())
    assert error.value.code == "nothing_there"


async def test_a_forced_exit_pays_what_is_owed_and_tells_what_stays(world, alice, bob, wait, api, chain):
    deal, _ = await work(world, alice, bob, wait)
    await final(api, await api.deposit(wire.MoneyMove(amount="5")))
    asked = await api.exit(wire.ExitOrder(force=True, receiver=STRANGER.lower()))
    done = await over(api, asked)
    assert (done.state, done.withdrawn) == ("done", "5")
    (locked,) = done.locked
    assert (locked.amount, locked.peer) == ("0.4", bob.id)
    assert locked.until.timestamp() > time.time() + 3600
    assert tokens(chain, STRANGER) == 5 * TGLM
    assert tokens(chain, bob.id) == 100 * TGLM + TGLM // 5
    # the work goes on on what stayed
    note = await bob.bill_note(world.deals.activity(deal), "0.1")
    alice.accept("debit-note", note, "0.1", (await api.allocations())[0].allocation_id)
    await wait(lambda: bob.state(note) == "ACCEPTED", "the next voucher")
    seen = await status(api)
    assert seen.vault is not None
    assert (seen.vault.reserved, seen.vault.signed) == ("0.4", "0.1")
    assert (seen.owed, seen.paid, seen.allocated) == ("0.1", "0.2", "9.7")


async def test_a_provider_collects_what_it_holds(world, alice, bob, wait, provider, chain):
    deal, _ = await work(world, alice, bob, wait)
    async with ApiClient(provider.base, bob.id) as http:
        api = PaymentApi(http)
        seen = await status(api)
        assert seen.vault is not None
        assert (seen.vault.to_collect, seen.vault.channels) == ("0.2", 0)
        done = await over(api, await api.exit(wire.ExitOrder(force=True)))
        assert (done.state, done.withdrawal, done.locked) == ("done", None, [])
        assert tokens(chain, bob.id) == 100 * TGLM + TGLM // 5
        assert [one.kind for one in await api.transactions()] == ["redeem"]
        await wait(lambda: bob.account(deal).settled == TGLM // 5, "the count")


async def test_an_exit_survives_a_restart(world, alice, bob, wait, chain):
    deal, allocation = await work(world, alice, bob, wait)
    world.deals.tell(deal, "Terminated")
    invoice = await bob.bill(deal, "0.2")
    alice.accept("invoice", invoice, "0.2", allocation)
    await wait(lambda: bob.state(invoice) == "ACCEPTED")
    alice.payments.allocations.release(alice.id, allocation)
    treasury = alice.payments.treasury
    begun = await treasury.exit(alice.id, treasury.platform(None, None), None, force=False)
    await alice.stop()
    alice.bootstrap = [bob]
    await alice.start()
    treasury = alice.payments.treasury
    done = await treasury.exit_state(alice.id, begun.exit_id, unless="open", timeout_s=30)
    assert (done.state, done.withdrawn) == ("done", 4 * TGLM // 10)
    assert tokens(chain, alice.id) == 100 * TGLM - 2 * TGLM // 10
    with pytest.raises(NotFound):
        await treasury.exit_state(bob.id, begun.exit_id, unless=None, timeout_s=0)


async def test_a_payee_that_will_not_close_is_paid_and_the_rest_is_told(world, alice, bob, wait, api, chain):
    deal, allocation = await work(world, alice, bob, wait)
    world.deals.tell(deal, "Terminated")
    invoice = await bob.bill(deal, "0.2")
    alice.accept("invoice", invoice, "0.2", allocation)
    await wait(lambda: bob.state(invoice) == "ACCEPTED")
    store = bob.payments.channels.shared.store
    held = next(c for c, _ in bob.payments.channels.listed(bob.id))
    store.save(msgspec.structs.replace(held, signed=held.signed + 1))  # he will not agree to her sum
    alice.payments.allocations.release(alice.id, allocation)
    done = await over(api, await api.exit(wire.ExitOrder()))
    assert (done.state, [one.amount for one in done.locked]) == ("done", ["0.4"])
    assert tokens(chain, bob.id) == 100 * TGLM + TGLM // 5


async def test_what_is_no_vault_of_ours_gets_no_money(world, tmp_path, chain):
    """The operator's configuration names an address where nothing stands."""
    config = NetworkConfig(
        chain_id=places.CHAIN_ID,
        rpc_urls=(chain.rpc_url,),
        token=places.TOKEN_ADDRESS,
        token_symbol="tGLM",
        vault="0x" + "12" * 20,
    )

    def drivers(node: Any) -> list[PaymentDriver]:
        erc20 = EvmDriver(node.db, networks_from({"devnet": config}), [node.identity])
        return [erc20, ChannelDriver(erc20)]

    world.drivers = drivers
    carol = await world.add("carol")
    chain.fund(carol.id, wei=TGLM, token_units=TGLM)
    treasury = carol.payments.treasury
    vault = treasury.platform(None, None)
    for asked in (treasury.deposit(carol.id, vault, "1"), treasury.exit(carol.id, vault, None, force=False)):
        with pytest.raises(Refused) as error:
            await asked
        assert error.value.code == "wrong_vault"
    async with door_of(carol) as door, ApiClient(door.base, carol.id) as http:
        seen = {one.platform: one for one in await PaymentApi(http).status()}
        assert "nobody has put the vault" in str(seen[PLATFORM].error)
        assert (seen[PLATFORM].error_code, seen[PLAIN].error_code) == ("wrong_vault", None)
        assert "networks.devnet.vault" in str(seen[PLATFORM].error_hint)
        assert {one.code for one in await PaymentApi(http).driver_status()} == {"wrong_vault"}
        assert seen[PLAIN].wallet == "1"
    assert tokens(chain, carol.id) == TGLM


async def test_an_exit_waits_for_a_chain_that_stands_still(world, alice, bob, wait, api, chain):
    await final(api, await api.deposit(wire.MoneyMove(amount="5")))
    treasury = alice.payments.treasury
    exits, vault = treasury.exits, treasury.platform(None, None)
    assert exits is not None
    chain.rpc.call("shem_setAutomine", [False])
    begun = exits.begin(alice.id, vault.platform, alice.id, force=False)
    seen = await treasury.exit_state(alice.id, begun.exit_id, unless="open", timeout_s=0.5)
    assert seen.state == "open"
    assert seen.withdrawal
    chain.rpc.call("shem_setAutomine", [True])
    done = await treasury.exit_state(alice.id, begun.exit_id, unless="open", timeout_s=30)
    assert (done.state, done.withdrawn) == ("done", 5 * TGLM)


async def test_a_node_without_a_vault_says_so(tmp_path, open_world):
    async with open_world(tmp_path, "alice") as bare:
        alice = bare.nodes["alice"]
        with pytest.raises(Refused) as error:
            alice.payments.treasury.platform(None, None)
        assert error.value.code == "no_vault"
        with pytest.raises(NotFound):
            await alice.payments.treasury.transaction(alice.id, "1", unless=None, timeout_s=0)
        assert await alice.payments.treasury.transactions(alice.id, after=None, limit=1, timeout_s=0) == []
