"""Bytes that are no transaction are refused as such, whatever the library makes of them."""

from __future__ import annotations

import random

import rlp
from eth_keys.datatypes import PrivateKey

from shem.testing.devchain.evm import BadTransaction, Evm, PragueVM

KEY = PrivateKey(b"\1" * 32)
VALUES: tuple[object, ...] = (b"", b"\0", b"\xff" * 32, b"\xff" * 33, b"\1" * 19, [], [[]], [b"a"])


def signed() -> bytes:
    unsigned = PragueVM.get_transaction_builder().new_unsigned_dynamic_fee_transaction(
        1337, 0, 1, 2, 21_000, b"\2" * 20, 5, b"abc", ()
    )
    return bytes(unsigned.as_signed_transaction(KEY).encode())


def outcome(raw: bytes) -> str:
    try:
        Evm.decode_transaction(raw)
    except BadTransaction:
        return "refused"
    return "taken"


def test_each_field_replaced_by_what_does_not_belong_there() -> None:
    fields = rlp.decode(signed()[1:])
    assert outcome(signed()) == "taken"
    seen = set()
    for kind in (b"\x02", b"\x01", b"\x03", b"\x04", b""):
        for place in range(len(fields)):
            for value in VALUES:
                seen.add(outcome(kind + rlp.encode([*fields[:place], value, *fields[place + 1 :]])))
    assert seen == {"refused", "taken"}


def test_bytes_changed_lost_and_made_up() -> None:
    dice, seen = random.Random(7), set()
    for _ in range(1500):
        raw = bytearray(signed())
        place = dice.randrange(len(raw))
        match dice.randrange(4):
            case 0:
                raw[place] = dice.randrange(256)
            case 1:
                del raw[place:]
            case 2:
                raw.insert(place, dice.randrange(256))
            case _:
                raw = bytearray(dice.randbytes(dice.randrange(80)))
        seen.add(outcome(bytes(raw)))
    assert seen == {"refused", "taken"}
