"""What a hostile peer may say about channels, on either side, and what it gets for it. Mallory speaks by hand."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shem.errors import PeerFailed, Refused
from shem.node.payment.channel_books import id_bytes, vault_of
from shem.node.payment.drivers.evm.vault import Vault, voucher_digest
from shem.node.payment.protocol import (
    AcceptanceMessage,
    ChannelMessage,
    CloseMessage,
    KeyPart,
    VoucherPart,
    method_of,
    seal,
)
from shem.terms.pricing import LinearPricing
from shem.testing.devchain import places

PLATFORM = "channel-devnet-tglm"
TGLM = 10**18
PRICE = LinearPricing((Decimal("0.001"),), Decimal(0), ("golem.usage.duration_sec",))


@pytest.fixture
async def world(tmp_path: Path, open_channels: Any) -> AsyncIterator[Any]:
    async with open_channels(tmp_path, "mallory") as made:
        yield made


async def say(sender: Any, receiver: Any, kind: Any, message: Any) -> bytes:
    signed = seal(kind, message, sender.identity)
    answer: bytes = await sender.network.call(receiver.id, method_of(kind), msgspec.msgpack.encode(signed))
    return answer


def channel(node: Any) -> Any:
    return node.payments.channels.listed(node.id)[-1][0]


async def begin(world: Any, payer: Any, payee: Any) -> tuple[str, str]:
    """(agreement, allocation) with cover."""
    allocation = await payer.allocate("10", platform=PLATFORM)
    expires = int((time.time() + 3600) * 1000)
    demand = {"golem.srv.comp.expiration": expires}
    deal = world.deals.make(payer.id, payee.id, platform=PLATFORM, pricing=PRICE, demand=demand)
    world.deals.tell(deal, "Approved")
    await payee.payments.admit(payee.id, deal)
    return deal, allocation


def accepted(mallory: Any, bob: Any, deal: str, note: str, amount: int, voucher: Any) -> AcceptanceMessage:
    return AcceptanceMessage(
        issuer=mallory.id,
        recipient=bob.id,
        document_id=note,
        agreement_id=deal,
        amount=str(amount),
        accepted=str(amount),
        issued_at=1,
        voucher=voucher,
    )


async def test_acceptances_without_a_good_voucher_change_nothing(world, bob, mallory):
    deal, _ = await begin(world, mallory, bob)
    amount = TGLM // 10
    note = await bob.bill_note(world.deals.activity(deal), "0.1")
    held = channel(bob)
    key = KeyPart(payer=held.payer, payee=held.payee, signer=held.signer, nonce=held.nonce)
    good = vault_of(held)

    def voucher(units: int, vault: Vault = good, signer: Any = mallory, **changes: Any) -> VoucherPart:
        signature = signer.identity.sign_digest(voucher_digest(vault, id_bytes(held), units))
        return VoucherPart(key=msgspec.structs.replace(key, **changes), amount=str(units), signature=signature)

    refused = {
        "none": None,
        "too little": voucher(amount - 1),
        "another vault's": voucher(amount, Vault(good.chain_id, places.TOKEN_ADDRESS)),
        "another chain's": voucher(amount, Vault(1, good.address)),
        "another signer's": voucher(amount, signer=world.nodes["alice"]),
        "another payee's": voucher(amount, payee=mallory.id),
        "no signature": msgspec.structs.replace(voucher(amount), signature=bytes(65)),
    }
    for what, sent in refused.items():
        with pytest.raises(Refused):
            await say(mallory, bob, "acceptance", accepted(mallory, bob, deal, note, amount, sent))
        assert (bob.state(note), channel(bob).signed) == ("RECEIVED", 0), what
    again_later = {
        "more than is reserved": voucher(held.reserved + 1),
        "a channel that is not there": voucher(amount, nonce=77),
    }
    for what, sent in again_later.items():
        with pytest.raises(PeerFailed):
            await say(mallory, bob, "acceptance", accepted(mallory, bob, deal, note, amount, sent))
        assert (bob.state(note), channel(bob).signed) == ("RECEIVED", 0), what
    # the control
    await say(mallory, bob, "acceptance", accepted(mallory, bob, deal, note, amount, voucher(amount)))
    await say(mallory, bob, "acceptance", accepted(mallory, bob, deal, note, amount, voucher(amount)))
    after = bob.payments.channels.shared.store.channel(held)
    assert (bob.state(note), after.signed, after.owed) == ("ACCEPTED", amount, amount)


async def test_announced_channels_count_only_as_the_chain_has_them(world, alice, bob, mallory):
    await begin(world, mallory, bob)
    held = channel(bob)
    key = KeyPart(payer=held.payer, payee=held.payee, signer=held.signer, nonce=held.nonce)
    plain = ChannelMessage(
        issuer=mallory.id,
        recipient=bob.id,
        platform=PLATFORM,
        chain_id=held.chain_id,
        vault=held.vault,
        key=key,
        tx_hash="0x1",
    )
    for changes in (
        {"vault": places.TOKEN_ADDRESS},
        {"chain_id": 1},
        {"platform": "erc20-devnet-tglm"},
        {"key": msgspec.structs.replace(key, payer=alice.id)},
        {"key": msgspec.structs.replace(key, payee=alice.id)},
    ):
        with pytest.raises(Refused):
            await say(mallory, bob, "channel", msgspec.structs.replace(plain, **changes))
    # names of channels that the vault does not have: few are kept, none counts
    kept = 0
    for nonce in range(100, 120):
        try:
            await say(
                mallory, bob, "channel", msgspec.structs.replace(plain, key=msgspec.structs.replace(key, nonce=nonce))
            )
            kept += 1
        except Refused:
            pass
    assert kept <= 8
    assert [c.reserved for c, _ in bob.payments.channels.listed(bob.id)].count(0) == kept
    # a stranger's is not even kept
    with pytest.raises(PeerFailed):
        await say(alice, bob, "channel", msgspec.structs.replace(plain, issuer=alice.id))


async def test_a_close_is_signed_for_the_highest_voucher_and_only_when_all_is_over(world, alice, bob, mallory):
    deal, allocation = await begin(world, mallory, bob)
    note = await bob.bill_note(world.deals.activity(deal), "0.1")
    mallory.accept("debit-note", note, "0.1", allocation)
    held = channel(bob)
    ask = CloseMessage(
        issuer=mallory.id,
        recipient=bob.id,
        chain_id=held.chain_id,
        vault=held.vault,
        channel_id=held.channel_id,
        amount="0",
    )
    for amount in (0, TGLM // 10 - 1, TGLM // 10, TGLM // 10 + 1):  # the agreement goes on
        with pytest.raises(Refused):
            await say(mallory, bob, "close", msgspec.structs.replace(ask, amount=str(amount)))
    with pytest.raises(Refused):  # not her channel
        await say(alice, bob, "close", msgspec.structs.replace(ask, issuer=alice.id, amount=str(TGLM // 10)))
    assert channel(bob).state == "open"


class Liar:
    """Signs everything but what it is asked to agree to."""

    def __init__(self, identity: Any) -> None:
        self._identity = identity
        self.node_id = identity.node_id
        self.sign = identity.sign
        self.locked = False
        self.asked = 0

    def sign_digest(self, digest: bytes) -> bytes:
        self.asked += 1
        return bytes(self._identity.sign_digest(digest[::-1]))


async def test_a_payee_that_signs_another_sum_is_settled_with(world, alice, mallory, wait):
    deal, allocation = await begin(world, alice, mallory)

    mallory.payments.books.signer = Liar(mallory.identity)
    invoice = await mallory.bill(deal, "0.2")
    alice.accept("invoice", invoice, "0.2", allocation)
    await wait(lambda: mallory.state(invoice) == "ACCEPTED")
    world.deals.tell(deal, "Terminated")
    alice.payments.allocations.release(alice.id, allocation)
    await wait(lambda: alice.state(invoice) == "SETTLED", "the end", 20)
    assert (channel(alice).claimed, channel(alice).state) == (TGLM // 5, "closing")
    assert mallory.payments.books.signer.asked
