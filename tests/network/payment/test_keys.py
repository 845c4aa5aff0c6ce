"""Keys apart: a node whose key is locked, vouchers by a key of their own, and money that goes where no key of ours is."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shem.errors import KeyLocked, PeerFailed
from shem.node.identity.keystore import new_secret
from shem.node.identity.vouchersigner import VoucherSigner
from shem.node.payment.protocol import CloseMessage, method_of, seal
from shem.terms.pricing import LinearPricing
from shem.testing.devchain import places
from shem.testing.devchain.node import DevChain
from shem.wire import payment as wire

PLATFORM, PLAIN = "channel-devnet-tglm", "erc20-devnet-tglm"
TGLM = 10**18
PRICE = LinearPricing((Decimal("0.001"),), Decimal(0), ("golem.usage.duration_sec",))
COLD = "0x" + "c0" * 20
"""Somebody's address; its key is nowhere here."""


@pytest.fixture
async def world(tmp_path: Path, open_channels: Any) -> AsyncIterator[Any]:
    async with open_channels(tmp_path) as made:
        for node in made.nodes.values():
            node.identity.on_unlocked(lambda node=node: node.payments.unlocked())
        yield made


@pytest.fixture
def chain(world: Any) -> DevChain:
    running: DevChain = world.chain
    return running


def tokens(chain: DevChain, owner: str) -> int:
    data = "0x70a08231" + owner.removeprefix("0x").rjust(64, "0")
    return int(str(chain.rpc.call("eth_call", [{"to": places.TOKEN_ADDRESS, "data": data}, "latest"])), 16)


def channels(node: Any) -> list[Any]:
    return [channel for channel, _ in node.payments.channels.listed(node.id)]


async def accept(node: Any, document_id: str, amount: str, allocation: str) -> None:
    body = wire.Acceptance(total_amount_accepted=amount, allocation_id=allocation)
    await node.payments.accept(node.id, "invoice", document_id, body, cover_wait_s=20)


async def work(
    world: Any, alice: Any, bob: Any, *, platform: str = PLATFORM, paid_at: str = "", admit: bool = True
) -> tuple[str, str]:
    """(agreement, allocation), with cover seen by bob."""
    allocation = await alice.allocate("10", platform=platform)
    expires = int((time.time() + 3600) * 1000)
    deal = world.deals.make(
        alice.id, bob.id, platform=platform, pricing=PRICE, demand={"golem.srv.comp.expiration": expires}
    )
    if paid_at:
        terms = world.deals.agreement(deal, bob.id).offer_properties
        terms[f"golem.com.payment.platform.{platform}.address"] = paid_at
    world.deals.tell(deal, "Approved")
    if admit:
        await bob.payments.admit(bob.id, deal)
    return deal, allocation


async def finish(world: Any, alice: Any, bob: Any, deal: str, allocation: str, amount: str) -> str:
    world.deals.tell(deal, "Terminated")
    invoice: str = await bob.bill(deal, amount)
    alice.accept("invoice", invoice, amount, allocation)
    alice.payments.allocations.release(alice.id, allocation)
    return invoice


async def test_a_locked_provider_takes_vouchers_answers_and_signs_nothing(world, alice, bob, wait, chain):
    deal, allocation = await work(world, alice, bob)
    activity = world.deals.activity(deal)
    note = await bob.bill_note(activity, "0.1")
    secret = bob.identity._key.secret
    bob.identity.lock()

    alice.accept("debit-note", note, "0.1", allocation)
    await wait(lambda: bob.state(note) == "ACCEPTED", "the voucher")
    assert channels(bob)[0].signed == TGLM // 10
    for ask in (lambda: bob.note(activity, "0.2"), lambda: bob.invoice(deal, "0.2")):
        with pytest.raises(KeyLocked) as locked:
            ask()
        assert locked.value.code == "identity_locked"
        assert "unlock" in locked.value.hint

    # to a peer it is a matter of time, not a refusal; and nothing is noted that could not be signed
    close = CloseMessage(
        issuer=alice.id,
        recipient=bob.id,
        chain_id=channels(alice)[0].chain_id,
        vault=channels(alice)[0].vault,
        channel_id=channels(alice)[0].channel_id,
        amount=str(TGLM // 10),
    )
    with pytest.raises(PeerFailed) as not_now:
        await alice.network.call(
            bob.id, method_of("close"), msgspec.msgpack.encode(seal("close", close, alice.identity))
        )
    assert not_now.value.code == "identity_locked"
    assert channels(bob)[0].state == "open"

    bob.identity.unlock(secret)
    invoice = await finish(world, alice, bob, deal, allocation, "0.2")
    await wait(lambda: bob.state(invoice) == alice.state(invoice) == "SETTLED", "the end", 20)
    assert tokens(chain, bob.id) == 100 * TGLM + TGLM // 5
    await wait(lambda: channels(alice)[0].state == "closed")


async def test_a_locked_requestor_accepts_nothing_until_it_is_unlocked(world, alice, bob, wait, chain):
    deal, allocation = await work(world, alice, bob)
    secret = alice.identity._key.secret
    alice.identity.lock()
    note = await bob.bill_note(world.deals.activity(deal), "0.1")  # it comes, and is kept
    with pytest.raises(KeyLocked):
        alice.accept("debit-note", note, "0.1", allocation)
    assert (alice.state(note), channels(alice)[0].signed) == ("RECEIVED", 0)
    assert alice.account(deal).accepted == 0
    alice.identity.unlock(secret)
    alice.accept("debit-note", note, "0.1", allocation)
    await wait(lambda: bob.state(note) == "ACCEPTED", "the voucher")
    invoice = await finish(world, alice, bob, deal, allocation, "0.1")
    await wait(lambda: bob.state(invoice) == alice.state(invoice) == "SETTLED", "the end", 20)
    assert tokens(chain, bob.id) == 100 * TGLM + TGLM // 10


async def test_a_requestor_that_comes_back_locked_in_mid_deal(world, alice, bob, wait, chain):
    """It looks at the chain and takes bills without its key, and asks bob what he holds when it has it again."""
    deal, allocation = await work(world, alice, bob)
    activity = world.deals.activity(deal)
    note = await bob.bill_note(activity, "0.1")
    alice.accept("debit-note", note, "0.1", allocation)
    await wait(lambda: bob.state(note) == "ACCEPTED", "the voucher")
    secret = alice.identity._key.secret
    await alice.stop()
    alice.identity.lock()
    alice.bootstrap = [bob]
    await alice.start()
    invoice = bob.invoice(deal, "0.2")
    await bob.send("invoice", invoice, 20)
    with pytest.raises(KeyLocked):
        await accept(alice, invoice, "0.2", allocation)
    assert channels(alice)[0].signed == TGLM // 10
    alice.identity.unlock(secret)
    await accept(alice, invoice, "0.2", allocation)
    world.deals.tell(deal, "Terminated")
    alice.payments.allocations.release(alice.id, allocation)
    await wait(lambda: bob.state(invoice) == alice.state(invoice) == "SETTLED", "the end", 20)
    assert tokens(chain, bob.id) == 100 * TGLM + TGLM // 5


async def test_what_the_chain_brings_to_a_locked_node_is_told_once_it_is_unlocked(world, alice, bob, wait, chain):
    """The transaction was signed before; it pays, the order is settled, and the payee hears of it later."""
    deal, allocation = await work(world, alice, bob, platform=PLAIN)
    secret = alice.identity._key.secret
    chain.rpc.call("shem_setAutomine", [False])
    invoice = await bob.bill(deal, "0.3")
    alice.accept("invoice", invoice, "0.3", allocation)
    store = alice.db.connection
    await wait(lambda: store.execute("select count(*) from evm_attempt").fetchone()[0], "a signed transaction", 10)
    alice.identity.lock()
    chain.rpc.call("shem_setAutomine", [True])
    await wait(lambda: alice.state(invoice) == "SETTLED", "the payment", 20)
    assert tokens(chain, bob.id) == 100 * TGLM + 3 * TGLM // 10
    [letter] = alice.payments.books.store.letters(bob.id, 10)
    assert (letter.kind, letter.signature) == ("payment", b"")
    assert bob.state(invoice) == "ACCEPTED"
    alice.identity.unlock(secret)
    await wait(lambda: bob.state(invoice) == "SETTLED", "the notice", 20)


async def test_a_locked_node_sends_no_transaction_and_says_why(world, alice, bob, wait, chain):
    deal, allocation = await work(world, alice, bob, platform=PLAIN)
    secret = alice.identity._key.secret
    invoice = await bob.bill(deal, "0.3")
    alice.accept("invoice", invoice, "0.3", allocation)
    alice.identity.lock()  # in the same turn of the loop: nothing is signed yet
    await wait(lambda: [p.code for p in alice.payments.problems()] == ["CantSign"], "the problem", 10)
    assert tokens(chain, bob.id) == 100 * TGLM
    alice.identity.unlock(secret)
    await wait(lambda: bob.state(invoice) == "SETTLED", "the payment", 20)
    assert tokens(chain, bob.id) == 100 * TGLM + 3 * TGLM // 10


async def test_vouchers_by_a_key_of_their_own_and_its_successor(world, alice, bob, wait, chain):
    hot = VoucherSigner(new_secret())
    alice.payments.sign_vouchers_with(hot)
    deal, allocation = await work(world, alice, bob)
    assert [(c.payer, c.signer) for c in channels(bob)] == [(alice.id, hot.node_id)]
    activity = world.deals.activity(deal)
    note = await bob.bill_note(activity, "0.1")
    alice.accept("debit-note", note, "0.1", allocation)
    await wait(lambda: bob.state(note) == "ACCEPTED", "the voucher")

    successor = VoucherSigner(new_secret())
    alice.payments.sign_vouchers_with(successor)
    await wait(lambda: len([c for c in channels(alice) if c.reserved]) == 2, "another channel", 20)
    await wait(lambda: len([c for c in channels(bob) if c.reserved]) == 2, "bob's look at it", 20)
    note = await bob.bill_note(activity, "0.25")
    alice.accept("debit-note", note, "0.25", allocation)
    await wait(lambda: bob.state(note) == "ACCEPTED", "the voucher")
    assert {c.signer: c.signed for c in channels(bob)} == {
        hot.node_id: TGLM // 10,
        successor.node_id: 15 * TGLM // 100,
    }

    invoice = await finish(world, alice, bob, deal, allocation, "0.3")
    await wait(lambda: bob.state(invoice) == alice.state(invoice) == "SETTLED", "the end", 20)
    await wait(lambda: {c.state for c in channels(alice)} == {"closed"}, "both closed", 20)
    assert tokens(chain, bob.id) == 100 * TGLM + 3 * TGLM // 10
    assert tokens(chain, hot.node_id) == tokens(chain, successor.node_id) == 0
    free = await alice.payments.books.drivers[PLATFORM].chain(PLATFORM).free(alice.id)
    assert tokens(chain, alice.id) + free == 100 * TGLM - 3 * TGLM // 10


async def test_a_cold_payout_address_is_settled_with_and_the_rest_comes_back_after_the_term(
    world, alice, bob, wait, chain
):
    deal, allocation = await work(world, alice, bob, paid_at=COLD)
    invoice = await finish(world, alice, bob, deal, allocation, "0.2")
    await wait(lambda: bob.state(invoice) == alice.state(invoice) == "SETTLED", "the settlement", 20)
    assert (tokens(chain, COLD), tokens(chain, bob.id)) == (TGLM // 5, 100 * TGLM)
    [channel] = channels(alice)
    assert (channel.state, channel.claimed) == ("closing", TGLM // 5)


async def test_what_a_cold_address_is_owed_is_collected_for_it_by_its_node(world, alice, bob, wait, chain):
    deal, allocation = await work(world, alice, bob, paid_at=COLD)
    note = await bob.bill_note(world.deals.activity(deal), "0.3")
    alice.accept("debit-note", note, "0.3", allocation)
    await wait(lambda: bob.state(note) == "ACCEPTED")
    await alice.stop()
    store = bob.payments.channels.shared.store
    store.save(msgspec.structs.replace(channels(bob)[0], valid_until=int(time.time())))
    bob.payments.channels.changed()
    await wait(lambda: bob.state(note) == "SETTLED", "the redemption", 20)
    assert (tokens(chain, COLD), tokens(chain, bob.id)) == (3 * TGLM // 10, 100 * TGLM)


async def test_transfers_to_a_cold_address_are_counted(world, alice, bob, wait, chain):
    deal, allocation = await work(world, alice, bob, platform=PLAIN, paid_at=COLD)
    invoice = await finish(world, alice, bob, deal, allocation, "0.4")
    await wait(lambda: bob.state(invoice) == "SETTLED", "the payment", 20)
    assert (tokens(chain, COLD), tokens(chain, bob.id)) == (4 * TGLM // 10, 100 * TGLM)


async def test_accounts_that_receive_name_the_payout_address(world, bob):
    await bob.stop()
    world.config = msgspec.structs.replace(world.config, payouts={PLAIN: COLD})
    await bob.start()
    allocations = bob.payments.allocations
    assert {a.platform: a.address for a in allocations.accounts(bob.id, send=False)} == {PLAIN: COLD, PLATFORM: bob.id}
    assert {a.address for a in allocations.accounts(bob.id, send=True)} == {bob.id}
