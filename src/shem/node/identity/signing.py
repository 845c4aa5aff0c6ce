"""Signatures of documents: EIP-712 digests built here by hand, secp256k1 keys, one encoding only.

A signature is never made over bytes that somebody else chose: every digest is that of a typed structure, built locally,
under a domain name of its own per use. A document is signed as ``Document(string purpose, bytes32 payloadHash)`` in the
domain ``{"Shem document", "1"}``, so a signature for one purpose is worthless for another, and none can pass for a
transaction, a voucher or a node binding. The domain carries no chain id: an identity is the same on every chain.

A signature is 65 bytes, ``r (32) | s (32) | v (1)``, with ``s`` in the lower half and ``v`` 27 or 28, as ``ecrecover``
on chain takes it. Any other encoding of the same signature is refused, so that signatures can be compared as bytes.
"""

from __future__ import annotations

from functools import lru_cache

import coincurve

from shem.errors import Refused
from shem.node.identity import keccak
from shem.terms.ids import NodeId

SIGNATURE_BYTES = 65
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
"""Of the curve's group; ``s`` above half of it is the same signature in disguise."""
keccak256 = keccak.keccak256


class BadSignature(Refused):
    """The signature is not the issuer's, or not in the one form we take."""

    default_code = "bad_signature"


_DOMAIN_TYPE = keccak256(b"EIP712Domain(string name,string version)")
_DOCUMENT_TYPE = keccak256(b"Document(string purpose,bytes32 payloadHash)")


def domain_separator(name: str, version: str) -> bytes:
    """EIP-712 separator of a domain of name and version only."""
    return keccak256(_DOMAIN_TYPE + keccak256(name.encode()) + keccak256(version.encode()))


def typed_digest(separator: bytes, structure: bytes) -> bytes:
    """What is signed: the digest of an encoded structure (type hash and fields, 32 bytes each) in its domain."""
    return keccak256(b"\x19\x01" + separator + keccak256(structure))


_DOCUMENTS = domain_separator("Shem document", "1")


def document_digest(purpose: str, payload: bytes) -> bytes:
    """The 32 bytes that are signed for ``payload`` used as ``purpose`` (``"market.agreement"``, say)."""
    return typed_digest(_DOCUMENTS, _DOCUMENT_TYPE + _purpose_hash(purpose) + keccak256(payload))


@lru_cache(maxsize=64)
def _purpose_hash(purpose: str) -> bytes:
    """There are a handful of purposes, and a signature for every message."""
    return keccak256(purpose.encode())


def address_of(public_key: coincurve.PublicKey) -> NodeId:
    """The Ethereum address of a key, as a node id."""
    return NodeId("0x" + keccak256(public_key.format(compressed=False)[1:])[-20:].hex())


def mistyped(text: str) -> bool:
    """Whether the capital letters of an address are a checksum (EIP-55) that fails: money sent there would be nobody's."""
    digits = text[2:]
    if digits in (digits.lower(), digits.upper()):
        return False
    hashed = keccak256(digits.lower().encode()).hex()
    return digits != "".join(c.upper() if int(h, 16) >= 8 else c for c, h in zip(digits.lower(), hashed, strict=False))


def sign_with(key: coincurve.PrivateKey, digest: bytes) -> bytes:
    """65 bytes over a 32-byte digest built by us. The library gives the low ``s`` and a deterministic nonce."""
    signature = key.sign_recoverable(digest, hasher=None)
    return bytes(signature[:64]) + bytes([27 + signature[64]])


def recover(digest: bytes, signature: bytes) -> NodeId:
    """Who signed ``digest``. Raises :class:`BadSignature` unless the signature is in the one form we take."""
    if len(signature) != SIGNATURE_BYTES:
        raise BadSignature(f"a signature has {SIGNATURE_BYTES} bytes, not {len(signature)}")
    r, s, v = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big"), signature[64]
    if not (0 < r < ORDER and 0 < s <= ORDER // 2 and v in (27, 28)):
        raise BadSignature("the signature is not in canonical form")
    try:
        key = coincurve.PublicKey.from_signature_and_message(signature[:64] + bytes([v - 27]), digest, hasher=None)
    except ValueError as error:  # a point off the curve
        raise BadSignature("the signature belongs to no key") from error
    return address_of(key)


def verify(purpose: str, payload: bytes, signature: bytes, issuer: NodeId) -> None:
    """Raises :class:`BadSignature` unless ``issuer`` signed exactly this payload for exactly this purpose."""
    if recover(document_digest(purpose, payload), signature) != issuer:
        raise BadSignature(f"the signature is not by {issuer}")
