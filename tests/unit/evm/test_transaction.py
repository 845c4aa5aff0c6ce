"""Our bytes are the bytes of the library that everybody uses."""

from __future__ import annotations

import random

import pytest
from eth_account import Account

from shem.node.identity.keys import Identity
from shem.node.payment.drivers.evm.transaction import Transaction, encode_rlp


def random_transaction(rng: random.Random) -> Transaction:
    sized = [0, 1, 0x7F, 0x80, 0xFF, 0x100, 2**32, 2**64]
    return Transaction(
        chain_id=rng.choice([1, 137, 1337, 560048, 11155111]),
        nonce=rng.choice([0, 1, 127, 128, 255, 256, rng.getrandbits(32)]),
        max_tip=rng.choice([*sized[:-1], rng.getrandbits(50)]),
        max_fee=rng.choice([*sized[1:], rng.getrandbits(60)]),
        gas=rng.randint(21000, 30_000_000),
        to="0x" + rng.randbytes(20).hex(),
        value=rng.choice([*sized, rng.getrandbits(255)]),
        data=rng.randbytes(rng.choice([0, 1, 4, 36, 55, 56, 68, 300, 70_000])),
    )


@pytest.mark.parametrize("seed", range(8))
def test_signed_bytes_equal_the_reference(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(25):
        secret = rng.randbytes(32)
        tx = random_transaction(rng)
        signed = tx.sign(Identity(secret))
        reference = Account.from_key(secret).sign_transaction(
            {
                "type": 2,
                "chainId": tx.chain_id,
                "nonce": tx.nonce,
                "maxPriorityFeePerGas": tx.max_tip,
                "maxFeePerGas": tx.max_fee,
                "gas": tx.gas,
                "to": bytes.fromhex(tx.to[2:]),
                "value": tx.value,
                "data": tx.data,
            }
        )
        assert signed.raw == bytes(reference.raw_transaction)
        assert signed.tx_hash == "0x" + bytes(reference.hash).hex()


def test_signing_again_gives_the_same_bytes() -> None:
    tx = random_transaction(random.Random(1))
    assert tx.sign(Identity(b"\1" * 32)) == tx.sign(Identity(b"\1" * 32))


@pytest.mark.parametrize(
    ("item", "encoded"),
    [
        (b"", "80"),
        (b"\0", "00"),
        (b"\x7f", "7f"),
        (b"\x80", "8180"),
        (b"dog", "83646f67"),
        ([], "c0"),
        ([b"cat", b"dog"], "c88363617483646f67"),
        ([[], [[]], [[], [[]]]], "c7c0c1c0c3c0c1c0"),
        (b"a" * 55, "b7" + "61" * 55),
        (b"a" * 56, "b838" + "61" * 56),
        (b"a" * 256, "b90100" + "61" * 256),
        ([b"a" * 55], "f838b7" + "61" * 55),
    ],
)
def test_rlp(item: object, encoded: str) -> None:
    assert encode_rlp(item).hex() == encoded  # type: ignore[arg-type]
