"""Document signatures: equal to eth_account's typed data, one encoding only, bound to purpose, payload and issuer."""

import contextlib

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from hypothesis import given
from hypothesis import strategies as st

from shem.node.identity.keys import Identity
from shem.node.identity.signing import ORDER, BadSignature, document_digest, keccak256, recover, verify

SECRET = bytes(range(1, 33))


def typed(purpose: str, payload: bytes) -> object:
    return encode_typed_data(
        full_message={
            "types": {
                "EIP712Domain": [{"name": "name", "type": "string"}, {"name": "version", "type": "string"}],
                "Document": [{"name": "purpose", "type": "string"}, {"name": "payloadHash", "type": "bytes32"}],
            },
            "primaryType": "Document",
            "domain": {"name": "Shem document", "version": "1"},
            "message": {"purpose": purpose, "payloadHash": keccak256(payload)},
        }
    )


def test_keccak_is_ethereums() -> None:
    assert keccak256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"


@given(st.text(max_size=40), st.binary(max_size=200))
def test_equals_eth_account(purpose: str, payload: bytes) -> None:
    ours = Identity(SECRET).sign(purpose, payload)
    assert ours == bytes(Account.sign_message(typed(purpose, payload), SECRET).signature)


def test_node_id_is_the_ethereum_address() -> None:
    assert Identity(SECRET).node_id == Account.from_key(SECRET).address.lower()


def test_verify_takes_the_issuers_signature_and_no_other() -> None:
    alice, bob = Identity.generate(), Identity.generate()
    signature = alice.sign("market.offer", b"cheap")
    verify("market.offer", b"cheap", signature, alice.node_id)
    for purpose, payload, issuer in (
        ("market.demand", b"cheap", alice),
        ("market.offer", b"dear", alice),
        ("market.offer", b"cheap", bob),
    ):
        with pytest.raises(BadSignature):
            verify(purpose, payload, signature, issuer.node_id)


def test_the_same_signature_in_disguise_is_refused() -> None:
    alice = Identity.generate()
    digest = document_digest("p", b"x")
    good = alice.sign("p", b"x")
    s = int.from_bytes(good[32:64], "big")
    assert s <= ORDER // 2
    high_s = good[:32] + (ORDER - s).to_bytes(32, "big") + bytes([27 + 28 - good[64]])
    raw_v = good[:64] + bytes([good[64] - 27])
    for disguised in (high_s, raw_v, good[:64] + bytes([good[64] + 4]), good + b"\0", good[:64], b""):
        with pytest.raises(BadSignature):
            recover(digest, disguised)
    assert recover(digest, good) == alice.node_id


@given(st.binary(min_size=65, max_size=65))
def test_garbage_is_refused_and_never_worse(garbage: bytes) -> None:
    for signature in (garbage, garbage[:64] + b"\x1b", b"\0" * 32 + garbage[:32] + b"\x1b", b"\xff" * 64 + b"\x1b"):
        with contextlib.suppress(BadSignature):  # it may happen to be somebody's
            assert recover(document_digest("p", b"x"), signature).startswith("0x")


def test_a_digest_for_a_transaction_has_32_bytes() -> None:
    alice = Identity.generate()
    digest = keccak256(b"transaction")
    assert recover(digest, alice.sign_digest(digest)) == alice.node_id
    with pytest.raises(ValueError, match="32"):
        alice.sign_digest(b"short")


def test_secrets_do_not_show() -> None:
    alice = Identity(SECRET)
    for shown in (repr(alice), str(alice), f"{alice}"):
        assert SECRET.hex() not in shown
        assert alice.transport_seed.hex() not in shown
    assert alice.address == alice.node_id


def test_the_transport_key_follows_from_the_identity() -> None:
    assert Identity(SECRET).transport_id == Identity(SECRET).transport_id
    assert Identity(SECRET).transport_seed != SECRET
    assert Identity.generate().transport_id != Identity.generate().transport_id


def test_a_signature_whose_point_is_not_on_the_curve_belongs_to_no_key() -> None:
    signature = (5).to_bytes(32, "big") + (1).to_bytes(32, "big") + bytes([27])  # no point has 5 as its x
    with pytest.raises(BadSignature, match="no key"):
        recover(bytes(32), signature)
