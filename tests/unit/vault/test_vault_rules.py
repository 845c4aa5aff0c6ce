"""What the vault refuses and what it skips, case by case; each on the devnet's chain and on a real node."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from shem.node.identity.keys import Identity
from shem.node.identity.signing import ORDER, keccak256
from shem.node.payment.drivers.evm import erc20, vault
from shem.node.payment.drivers.evm.vault import ChannelKey, Claim, OnChain, Reservation
from shem.testing.devchain import places

DAY = 86400


@pytest.fixture
def open_channel(world: Any) -> tuple[ChannelKey, Identity, Identity]:
    """100 reserved by the first person for the fourth, for an hour; 1000 deposited."""
    payer, payee = world.people[0], world.people[3]
    assert world.do(payer, vault.deposit(payer.address, 1000)).ok
    until = world.now() + 3600
    done = world.do(payer, vault.reserve([Reservation(payee.address, payer.address, 100, until)]))
    key = ChannelKey(payer.address, payee.address, payer.address, 0)
    assert done.events == [vault.Reserved(key, 100, until)]
    assert world.channel(key) == OnChain(100, 0, until)
    assert world.account(payer) == (900, 1)
    return key, payer, payee


def test_what_stands_on_the_devnet_is_what_the_constructor_makes(world: Any) -> None:
    address, _ = world.deploy(world.people[0], places.artifact("Vault")["bytecode"], world.token)
    built, ours = (bytes.fromhex(world.rpc("eth_getCode", at, "latest")[2:]) for at in (address, world.vault.address))
    assert len(built) == len(ours)
    assert built[:-32] == ours[:-32], "they differ in their domain alone, which holds the address"
    for at in (address, world.vault.address):
        told = world.view(keccak256(b"domain_separator()")[:4], at)
        assert told == "0x" + vault.separator(vault.Vault(world.vault.chain_id, at)).hex()


def test_our_code_is_known_wherever_it_stands_and_nothing_else_is(world: Any) -> None:
    for _ in range(2):
        code = bytes.fromhex(world.rpc("eth_getCode", world.vault.address, "latest")[2:])
        assert vault.is_our_code(code, world.vault, world.token)
        elsewhere = vault.Vault(world.vault.chain_id, "0x" + "12" * 20)
        assert not vault.is_our_code(code, elsewhere, world.token)
        assert not vault.is_our_code(code, vault.Vault(1, world.vault.address), world.token)
        assert not vault.is_our_code(code, world.vault, world.vault.address)
        for place in (0, len(code) // 2, len(code) - 97):
            changed = code[:place] + bytes([code[place] ^ 1]) + code[place + 1 :]
            assert not vault.is_our_code(changed, world.vault, world.token)
        assert not vault.is_our_code(b"", world.vault, world.token)
        world.stand_on(places.artifact("Vault")["bytecode"])


def test_the_pinned_code_is_the_artifact_s() -> None:
    assert keccak256(places.runtime_code("Vault")) == vault.CODE_HASH


def test_ids_and_digests_are_the_contract_s_own(world: Any, open_channel: Any) -> None:
    key, _, _ = open_channel
    words = bytes.fromhex("".join(a[2:].rjust(64, "0") for a in (key.payer, key.payee, key.signer))) + bytes(32)
    assert world.view(keccak256(b"channel_id(address,address,address,uint64)")[:4] + words) == "0x" + key.id.hex()


def test_vouchers_are_cumulative_and_pay_once(world: Any, open_channel: Any) -> None:
    key, payer, payee = open_channel
    anybody = world.people[5]
    for amount, arrives in ((30, 30), (70, 40)):
        claim = Claim(key, amount, world.voucher(payer, key.id, amount))
        done = world.do(anybody, vault.redeem(payee.address, [claim]))
        assert done.ok
        assert done.events == [vault.Paid(key.id, payee.address, amount, arrives)]
        assert world.balance(payee.address) == amount
        assert not world.do(payee, vault.redeem(payee.address, [claim])).ok, "a second time brings nothing"
    lower = Claim(key, 50, world.voucher(payer, key.id, 50))
    assert not world.do(payee, vault.redeem(payee.address, [lower])).ok
    beyond = Claim(key, 10**9, world.voucher(payer, key.id, 10**9))
    assert world.do(payee, vault.redeem(payee.address, [beyond])).ok
    assert world.balance(payee.address) == 100, "never more than was reserved"


def test_only_the_payee_may_close_with_a_voucher(world: Any, open_channel: Any) -> None:
    key, payer, payee = open_channel
    said = world.voucher(payer, key.id, 10)
    assert world.do(world.people[5], vault.redeem(payee.address, [Claim(key, 10, said, close=True)])).ok
    assert world.channel(key).is_open
    said = world.voucher(payer, key.id, 11)
    done = world.do(payee, vault.redeem(payee.address, [Claim(key, 11, said, close=True)]))
    assert done.events == [vault.Paid(key.id, payee.address, 11, 1), vault.Released(key.id, 89)]
    assert world.channel(key) == OnChain()
    assert world.account(payer) == (989, 1)
    again = world.voucher(payer, key.id, 100)
    assert not world.do(payee, vault.redeem(payee.address, [Claim(key, 100, again)])).ok, "it died with its channel"


def test_bad_entries_hold_up_no_others(world: Any, open_channel: Any) -> None:
    key, payer, payee = open_channel
    until = world.now() + 3600
    assert world.do(payer, vault.reserve([Reservation(payee.address, payer.address, 50, until)])).ok
    other = ChannelKey(payer.address, payee.address, payer.address, 1)
    never = ChannelKey(payer.address, payee.address, payer.address, 7)
    mallory = world.people[6]
    claims = [
        Claim(key, 90, world.voucher(mallory, key.id, 90)),
        Claim(never, 90, world.voucher(payer, never.id, 90)),
        Claim(key, 90, world.voucher(payer, other.id, 90)),
        Claim(other, 20, world.voucher(payer, other.id, 20)),
        Claim(other, 20, world.voucher(payer, other.id, 20)),
    ]
    done = world.do(payee, vault.redeem(payee.address, claims))
    assert done.events == [vault.Paid(other.id, payee.address, 20, 20)]
    assert world.balance(payee.address) == 20


def bad_signatures(world: Any, key: ChannelKey, payer: Identity, payee: Identity) -> dict[str, bytes]:
    good = world.voucher(payer, key.id, 60)
    r, s, v = good[:32], int.from_bytes(good[32:64], "big"), good[64]
    other_vault = vault.Vault(world.vault.chain_id, world.token)
    other_chain = vault.Vault(world.vault.chain_id + 1, world.vault.address)
    return {
        "somebody else's": world.voucher(payee, key.id, 60),
        "the other s": r + (ORDER - s).to_bytes(32, "big")[:32] + bytes([55 - v]),
        "zero": bytes(64) + b"\x1b",
        "r too large": ORDER.to_bytes(32, "big") + good[32:],
        "another vault's": payer.sign_digest(vault.voucher_digest(other_vault, key.id, 60)),
        "another chain's": payer.sign_digest(vault.voucher_digest(other_chain, key.id, 60)),
        "a close": payer.sign_digest(vault.close_digest(world.vault, key.id, 60)),
        "another amount's": world.voucher(payer, key.id, 61),
    }


def test_signatures_that_are_none(world: Any, open_channel: Any) -> None:
    key, payer, payee = open_channel
    for what, said in bad_signatures(world, key, payer, payee).items():
        assert not world.do(payee, vault.redeem(payee.address, [Claim(key, 60, said)])).ok, what
    thief = world.people[4]
    stolen = Claim(key, 60, world.voucher(payer, key.id, 60))
    assert not world.do(thief, vault.redeem(thief.address, [stolen])).ok, "the id holds the payee"
    assert world.channel(key).claimed == 0


def test_a_close_needs_the_payee_s_word_for_this_sum(world: Any, open_channel: Any) -> None:
    key, payer, payee = open_channel
    for said in (
        world.close(payer, key.id, 40),
        world.close(payee, key.id, 41),
        payee.sign_digest(vault.voucher_digest(world.vault, key.id, 40)),
        bytes(64) + b"\x1b",
    ):
        assert not world.do(payer, vault.cooperative_close([(key, 40, said)])).ok
    said = world.close(payee, key.id, 40)
    assert not world.do(world.people[1], vault.cooperative_close([(key, 40, said)])).events, "not the payer"
    assert world.channel(key).is_open
    done = world.do(payer, vault.cooperative_close([(key, 40, said), (key, 40, said)]))
    assert done.events == [vault.Paid(key.id, payee.address, 40, 40), vault.Released(key.id, 60)]
    assert (world.account(payer), world.balance(payee.address)) == ((960, 1), 40)
    assert world.do(payer, vault.cooperative_close([(key, 40, said)])).events == [], "closed already: skipped"


def test_release_only_after_the_term(world: Any, open_channel: Any) -> None:
    key, payer, payee = open_channel
    assert not world.do(payer, vault.release([key])).ok
    until = world.channel(key).valid_until
    world.advance(until - world.now() - 30)
    assert not world.do(payer, vault.release([key])).ok, "shortly before"
    world.advance(60)
    said = world.voucher(payer, key.id, 25)
    assert world.do(payee, vault.redeem(payee.address, [Claim(key, 25, said)])).ok, "late, and not too late"
    assert world.do(world.people[1], vault.release([key])).events == [], "somebody else's ids are other channels"
    done = world.do(payer, vault.release([key, key]))
    assert done.events == [vault.Released(key.id, 75)]
    assert world.account(payer) == (975, 1)
    assert not world.do(payee, vault.redeem(payee.address, [Claim(key, 90, world.voucher(payer, key.id, 90))])).ok


def test_terms_only_grow_and_end_some_day(world: Any, open_channel: Any) -> None:
    key, payer, _ = open_channel
    until = world.channel(key).valid_until
    longest = world.now() + vault.MAX_TERM_S
    assert not world.do(payer, vault.extend(key, 0, until - 1)).ok
    assert not world.do(payer, vault.extend(key, 0, longest + DAY)).ok
    assert not world.do(payer, vault.extend(key, 901, until)).ok, "more than is free"
    assert not world.do(world.people[1], vault.extend(key, 0, until + 1)).ok
    assert world.do(payer, vault.extend(key, 900, longest)).events == [vault.Extended(key.id, 1000, longest)]
    assert world.do(payer, vault.extend(key, 0, longest)).ok
    assert world.account(payer) == (0, 1)


@pytest.mark.parametrize(
    "what", ["no payee", "no signer", "nothing", "over", "now", "milliseconds", "not free", "nobody's", "129"]
)
def test_reservations_that_are_refused(world: Any, what: str) -> None:
    payer, payee = world.people[0], world.people[3]
    assert world.do(payer, vault.deposit(payer.address, 1000)).ok
    now, nobody = world.now(), "0x" + "00" * 20
    good = Reservation(payee.address, payer.address, 1, now + 3600)
    wrong = {
        "no payee": [good, Reservation(nobody, payer.address, 1, now + 3600)],
        "no signer": [good, Reservation(payee.address, nobody, 1, now + 3600)],
        "nothing": [good, Reservation(payee.address, payer.address, 0, now + 3600)],
        "over": [good, Reservation(payee.address, payer.address, 1, now - 10)],
        "now": [good, Reservation(payee.address, payer.address, 1, now)],
        "milliseconds": [good, Reservation(payee.address, payer.address, 1, (now + 3600) * 1000)],
        "not free": [good, Reservation(payee.address, payer.address, 1000, now + 3600)],
        "nobody's": [],
        "129": [good] * 128,
    }[what]
    if what == "nobody's":
        assert not world.do(world.people[1], vault.reserve([good])).ok, "without a deposit"
        return
    data = vault.reserve(wrong)
    if what == "129":  # the encoder refuses to count so far, so the count is put in by hand
        data = data[:4] + data[4:36] + (129).to_bytes(32, "big") + data[68:] + good.encoded()
    assert not world.do(payer, data).ok
    assert world.account(payer) == (1000, 0), "all or nothing"


def test_deposits_and_withdrawals(world: Any) -> None:
    payer, friend = world.people[0], world.people[5]
    held = world.balance(payer.address)
    assert world.do(payer, vault.deposit(friend.address, 300)).ok
    assert world.account(friend) == (300, 0)
    assert not world.do(payer, vault.deposit("0x" + "00" * 20, 1)).ok
    assert not world.do(payer, vault.deposit(payer.address, held)).ok, "more than there is"
    assert not world.do(friend, vault.withdraw(friend.address, 301)).ok
    assert world.do(friend, vault.withdraw(payer.address, 100)).ok
    assert (world.balance(payer.address), world.account(friend)) == (held - 200, (200, 0))
    until = world.now() + 3600
    both = vault.deposit_and_reserve(50, [Reservation(friend.address, payer.address, 40, until)])
    done = world.do(payer, both)
    key = ChannelKey(payer.address, friend.address, payer.address, 0)
    assert vault.Reserved(key, 40, until) in done.events
    assert world.account(payer) == (10, 1)


def test_tokens_sent_by_mistake_disturb_nothing(world: Any, open_channel: Any) -> None:
    key, payer, payee = open_channel
    assert world.send(payer, erc20.transfer(world.vault.address, 77), world.token).ok
    assert world.account(payer) == (900, 1)
    said = world.close(payee, key.id, 100)
    assert world.do(payer, vault.cooperative_close([(key, 100, said)])).ok
    assert world.do(payer, vault.withdraw(payer.address, 900)).ok
    assert world.balance(world.vault.address) == 77


TOKENS = json.loads((Path(__file__).parents[1] / "evm" / "tokens.json").read_text())["mutants"]


@pytest.mark.parametrize(
    "token", ["", "a fee is kept", "it says no to who takes", "it says no to who gives", "it calls back"]
)
def test_tokens_that_do_otherwise_than_they_should_are_owed_nothing(world: Any, token: str) -> None:
    """And what one that calls back finds is a closed door, whatever it asks for: here something harmless. The first one
    behaves, so that it is the token that makes the difference."""
    payer, payee = world.people[0], world.people[3]
    packed = TOKENS.get(token)
    code = zlib.decompress(base64.b64decode(packed)).hex() if packed else places.artifact("Token")["bytecode"]
    world.token, _ = world.deploy(payer, code, 1000)
    world.stand_on(places.artifact("Vault")["bytecode"])
    taken = world.do(payer, vault.deposit(payer.address, 100)).ok
    assert taken == (token in ("", "it says no to who gives"))
    assert world.account(payer) == (100 if taken else 0, 0)
    assert world.balance(world.vault.address) == (100 if taken else 0)
    if not taken:
        return
    until = world.now() + 3600
    assert world.do(payer, vault.reserve([Reservation(payee.address, payer.address, 60, until)])).ok
    key = ChannelKey(payer.address, payee.address, payer.address, 0)
    claim = Claim(key, 50, world.voucher(payer, key.id, 50))
    for who, call in (
        (payer, vault.withdraw(payer.address, 40)),
        (payer, vault.settle([(key, 30)])),
        (payee, vault.redeem(payee.address, [claim])),
        (payer, vault.cooperative_close([(key, 60, world.close(payee, key.id, 60))])),
    ):
        assert world.do(who, call).ok == (not token)
    if token:
        assert (world.account(payer), world.channel(key)) == ((40, 1), OnChain(60, 0, until)), "nothing counts as paid"
