"""The statement that ties a node's identity to its transport key, signed by both.

A peer is authenticated twice: the transport proves that the other end holds an ed25519 key (its endpoint id), and this
statement proves that the owner of a secp256k1 identity says *this transport key speaks for me*, and that the holder of
the transport key agrees. Without the second signature anybody could claim somebody else's endpoint as theirs. The
statement is public and may be replayed: it is good only on a connection whose authenticated endpoint id is the one in
it, which the caller compares.

Both keys sign the EIP-712 digest of ``NodeKey(address identity,bytes32 transport,uint64 notBefore,uint64 notAfter,
uint64 seq)`` in the domain ``{"node binding", "1"}``. On the wire it is 205 bytes::

    identity 20 | transport 32 | notBefore 8 | notAfter 8 | seq 8 | secp256k1 signature 65 | ed25519 signature 64

Times are Unix seconds. A higher ``seq`` revokes lower ones that name another transport key.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import coincurve
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shem.node.identity import signing
from shem.node.identity.signing import BadSignature
from shem.terms.ids import NodeId

BINDING_BYTES = 205

_DOMAIN = signing.domain_separator("node binding", "1")
_TYPE = signing.keccak256(b"NodeKey(address identity,bytes32 transport,uint64 notBefore,uint64 notAfter,uint64 seq)")
_LAYOUT = struct.Struct(">20s32sQQQ65s64s")


@dataclass(frozen=True, slots=True)
class Binding:
    """A statement whose two signatures have been checked."""

    node_id: NodeId
    transport_id: bytes
    not_before: int
    not_after: int
    seq: int


def binding_digest(identity: bytes, transport_id: bytes, not_before: int, not_after: int, seq: int) -> bytes:
    """What both keys sign. ``identity`` is the 20-byte address."""
    words = b"".join(number.to_bytes(32, "big") for number in (not_before, not_after, seq))
    return signing.typed_digest(_DOMAIN, _TYPE + bytes(12) + identity + transport_id + words)


def make_binding(
    key: coincurve.PrivateKey, transport: Ed25519PrivateKey, *, not_before: int, not_after: int, seq: int
) -> bytes:
    """The 205 bytes."""
    identity = bytes.fromhex(signing.address_of(key.public_key)[2:])
    transport_id = transport.public_key().public_bytes_raw()
    digest = binding_digest(identity, transport_id, not_before, not_after, seq)
    return _LAYOUT.pack(
        identity, transport_id, not_before, not_after, seq, signing.sign_with(key, digest), transport.sign(digest)
    )


def check_binding(statement: bytes, now_s: float) -> Binding:
    """Both signatures, the form and the time. Raises :class:`BadSignature`.

    The caller still has to compare ``transport_id`` with the connection's authenticated endpoint id.
    """
    if len(statement) != BINDING_BYTES:
        raise BadSignature(f"a binding has {BINDING_BYTES} bytes, not {len(statement)}", code="bad_binding")
    identity, transport_id, not_before, not_after, seq, by_identity, by_transport = _LAYOUT.unpack(statement)
    if not not_before <= now_s <= not_after:
        raise BadSignature(
            "the binding is not valid now", code="binding_expired", hint="compare the clocks of the two machines"
        )
    digest = binding_digest(identity, transport_id, not_before, not_after, seq)
    node_id = NodeId("0x" + identity.hex())
    if signing.recover(digest, by_identity) != node_id:
        raise BadSignature("the binding is not signed by the identity it names", code="bad_binding")
    try:
        Ed25519PublicKey.from_public_bytes(transport_id).verify(by_transport, digest)
    except (InvalidSignature, ValueError) as error:
        raise BadSignature("the binding is not signed by the transport key it names", code="bad_binding") from error
    return Binding(node_id, transport_id, not_before, not_after, seq)
