"""The binding of node id and transport key: 205 bytes, both signatures needed, equal to eth_account's typed data."""

from datetime import UTC, datetime, timedelta

import coincurve
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_utils import to_checksum_address

from shem.node.identity.binding import BINDING_BYTES, check_binding, make_binding
from shem.node.identity.keys import BINDING_LIFE_S, CLOCK_SKEW_S, Identity
from shem.node.identity.signing import BadSignature

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def test_the_statement_says_who_speaks_for_whom() -> None:
    alice = Identity.generate()
    statement = alice.make_binding(NOW)
    assert len(statement) == BINDING_BYTES == 205
    bound = alice.check_binding(statement, NOW)
    assert (bound.node_id, bound.transport_id) == (alice.node_id, alice.transport_id)
    assert bound.seq == int(NOW.timestamp() * 1000)


def test_equals_eth_account() -> None:
    key, transport = coincurve.PrivateKey(bytes(range(1, 33))), Ed25519PrivateKey.generate()
    statement = make_binding(key, transport, not_before=1, not_after=2**40, seq=7)
    message = encode_typed_data(
        full_message={
            "types": {
                "EIP712Domain": [{"name": "name", "type": "string"}, {"name": "version", "type": "string"}],
                "NodeKey": [
                    {"name": "identity", "type": "address"},
                    {"name": "transport", "type": "bytes32"},
                    {"name": "notBefore", "type": "uint64"},
                    {"name": "notAfter", "type": "uint64"},
                    {"name": "seq", "type": "uint64"},
                ],
            },
            "primaryType": "NodeKey",
            "domain": {"name": "node binding", "version": "1"},
            "message": {
                "identity": to_checksum_address(statement[:20]),
                "transport": statement[20:52],
                "notBefore": 1,
                "notAfter": 2**40,
                "seq": 7,
            },
        }
    )
    assert statement[76:141] == bytes(Account.sign_message(message, key.secret).signature)


def test_every_byte_counts() -> None:
    alice = Identity.generate()
    statement = alice.make_binding(NOW)
    for position in range(BINDING_BYTES):
        broken = bytearray(statement)
        broken[position] ^= 1
        with pytest.raises(BadSignature):
            check_binding(bytes(broken), NOW.timestamp())
    for wrong in (b"", statement[:-1], statement + b"\0"):
        with pytest.raises(BadSignature):
            check_binding(wrong, NOW.timestamp())


def test_nobody_can_claim_an_endpoint_that_is_not_theirs() -> None:
    """Mallory signs that Alice's transport key speaks for her, and cannot sign with that key."""
    alice, mallory = Identity.generate(), coincurve.PrivateKey()
    forged = make_binding(mallory, Ed25519PrivateKey.generate(), not_before=0, not_after=2**40, seq=1)
    spliced = forged[:20] + alice.transport_id + forged[52:]
    with pytest.raises(BadSignature):
        check_binding(spliced, NOW.timestamp())


@pytest.mark.parametrize("offset_s", [-CLOCK_SKEW_S - 1, BINDING_LIFE_S + 1])
def test_it_holds_for_a_time(offset_s: int) -> None:
    alice = Identity.generate()
    statement = alice.make_binding(NOW)
    alice.check_binding(statement, NOW + timedelta(seconds=-CLOCK_SKEW_S))
    alice.check_binding(statement, NOW + timedelta(seconds=BINDING_LIFE_S))
    with pytest.raises(BadSignature) as refused:
        alice.check_binding(statement, NOW + timedelta(seconds=offset_s))
    assert refused.value.code == "binding_expired"
