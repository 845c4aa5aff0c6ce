"""Peer records and their bounded book: the newest wins, forgeries and garbage are refused, strangers make room."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shem.errors import Refused
from shem.node.identity.keys import Identity
from shem.node.peer.records import RECORD_PURPOSE, AddressBook, Record, SignedRecord, read_record, sign_record

ADDRESSES = ["192.0.2.1:4433"]


def test_a_record_is_signed_by_its_node() -> None:
    alice, bob = Identity.generate(), Identity.generate()
    signed = sign_record(alice, ADDRESSES, 5)
    record = read_record(signed)
    assert record == Record(alice.node_id, alice.transport_id, tuple(ADDRESSES), 5)
    alice.verify(RECORD_PURPOSE, signed.payload, signed.signature, record.node_id)
    with pytest.raises(Refused):
        alice.verify(RECORD_PURPOSE, signed.payload, bob.sign(RECORD_PURPOSE, signed.payload), record.node_id)


@pytest.mark.parametrize(
    "content",
    [
        ["0xAB", bytes(32), [], 1],
        ["0x" + "a" * 40, bytes(31), [], 1],
        ["0x" + "a" * 40, bytes(32), ["localhost:1"], 1],
        ["0x" + "a" * 40, bytes(32), ["192.0.2.1:1"] * 17, 1],
        ["0x" + "a" * 40, bytes(32), [], -1],
        ["0x" + "a" * 40, bytes(32), [], 1 << 63],
        {},
        7,
    ],
)
def test_garbage_is_refused(content: object) -> None:
    with pytest.raises(Refused):
        read_record(SignedRecord(msgspec.msgpack.encode(content), bytes(65)))


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(payload: bytes) -> None:
    with pytest.raises(Refused):
        read_record(SignedRecord(payload, bytes(65)))


def entry(number: int, seq: int = 1) -> tuple[Record, SignedRecord]:
    return Record(f"0x{number:040x}", bytes(32), (), seq), SignedRecord(b"%d" % seq, bytes(65))


def test_the_newest_wins_in_any_order() -> None:
    book = AddressBook()
    for seq in (2, 1, 3, 2):
        record, signed = entry(1, seq)
        assert book.is_news(record) == ((seq == 2 and len(book) == 0) or seq == 3)
        book.put(record, signed, direct=False)
    assert book.get(entry(1)[0].node_id) == entry(1, 3)


def test_hearsay_makes_room_before_acquaintance() -> None:
    book = AddressBook(capacity=4)
    for number in (1, 2):
        book.put(*entry(number), direct=True)
    for number in range(10, 30):
        book.put(*entry(number), direct=False)
    assert len(book) == 4
    assert [book.get(entry(number)[0].node_id) is not None for number in (1, 2, 28, 29, 27)] == [True] * 4 + [False]
    book.put(*entry(1, 2), direct=False)  # news by hearsay of somebody we have met
    for number in range(40, 60):
        book.put(*entry(number), direct=False)
    assert book.get(entry(1)[0].node_id) == entry(1, 2)
    for number in range(100, 110):
        book.put(*entry(number), direct=True)
    assert len(book) == 4
    assert len(list(book.newest())) == 4
