"""Who a node is: one secp256k1 key, and the transport key that follows from it.

The node id is the Ethereum address of the key, so the same key that signs agreements owns the money. The ed25519 key of
the transport is derived from it (HMAC-SHA256 with a fixed label): nothing more to store or lose, and whoever learns the
transport key (it sits in the memory of the QUIC library) learns nothing about the identity.

Secrets never appear in ``repr``, logs or errors.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime
from io import BufferedReader
from pathlib import Path

import coincurve
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shem.node.identity import keystore, signing
from shem.node.identity.binding import Binding, check_binding, make_binding
from shem.terms.ids import NodeId

BINDING_LIFE_S = 400 * 24 * 3600
"""A binding is made anew at every start; it has to outlast one uptime."""
CLOCK_SKEW_S = 3600
"""How far our clock may be ahead of a peer's before it refuses our binding."""


class Identity:
    """A node's own key. Make one with :meth:`open_or_create` or, in tests, :meth:`generate`."""

    def __init__(self, secret: bytes) -> None:
        """From the 32-byte secp256k1 secret."""
        self._key = coincurve.PrivateKey(secret)
        self._transport_seed = hmac.digest(secret, b"shem transport key 1", hashlib.sha256)
        self._transport = Ed25519PrivateKey.from_private_bytes(self._transport_seed)
        self.node_id: NodeId = signing.address_of(self._key.public_key)
        self.transport_id: bytes = self._transport.public_key().public_bytes_raw()
        """The 32-byte endpoint id that peers see."""

    @classmethod
    def open_or_create(cls, directory: Path, passphrase: str | None = None, secret: bytes | None = None) -> Identity:
        """The identity kept in ``directory`` (blocking: 0.05 s, or 0.3 s with a passphrase of the user's own).

        ``secret`` (32 bytes) is what a new one is made of; a directory that has another keeps it, and this raises
        :class:`~shem.node.identity.keystore.OtherIdentity`. Else raises
        :class:`~shem.node.identity.keystore.WrongPassphrase` or
        :class:`~shem.node.identity.keystore.KeystoreUnusable`; all are ``Misconfigured``.
        """
        return cls(keystore.load_or_create_secret(directory, passphrase, secret))

    @classmethod
    def open(cls, directory: Path) -> Identity:
        """The identity that is kept in ``directory``, for its owner's tools. Errors as for :meth:`open_or_create`."""
        try:
            return cls(keystore.read_secret(directory))
        except OSError as error:
            raise keystore.KeystoreUnusable(
                f"no identity can be read in {directory}: {error.strerror}", hint="name the node's data directory"
            ) from error

    @classmethod
    def generate(cls) -> Identity:
        """A fresh one, in memory only."""
        return cls(keystore.new_secret())

    @property
    def address(self) -> str:
        """The same as ``node_id``, under the name that chain code uses."""
        return self.node_id

    @property
    def transport_seed(self) -> bytes:
        """32 secret bytes for the transport."""
        return self._transport_seed

    @property
    def public_key(self) -> bytes:
        """64 bytes: the point of the curve that the node id is the hash of."""
        return bytes(self._key.public_key.format(compressed=False)[1:])

    def derive(self, purpose: str) -> bytes:
        """32 secret bytes for one purpose; nothing about the identity follows from them."""
        return hmac.digest(self._key.secret, f"shem {purpose}".encode(), hashlib.sha256)

    def sign_file(self, file: BufferedReader) -> bytes:
        """65 bytes ``v|r|s`` (``v`` 0 or 1) over the sha-256 of what the user signs by hand, as Golem's command line does.
        Nothing else is hashed so here: it can pass for no transaction and no document."""
        signature = signing.sign_with(self._key, hashlib.file_digest(file, "sha256").digest())
        return bytes([signature[64] - 27]) + signature[:64]

    def sign(self, purpose: str, payload: bytes) -> bytes:
        """65 bytes ``r|s|v`` over ``document_digest(purpose, payload)``."""
        return signing.sign_with(self._key, signing.document_digest(purpose, payload))

    def sign_digest(self, digest: bytes) -> bytes:
        """65 bytes ``r|s|v`` (``v`` 27 or 28) over 32 bytes built here. Only for chain transactions built locally."""
        if len(digest) != 32:
            raise ValueError("a digest has 32 bytes")
        return signing.sign_with(self._key, digest)

    def verify(self, purpose: str, payload: bytes, signature: bytes, issuer: NodeId) -> None:
        """See :func:`shem.node.identity.signing.verify`."""
        signing.verify(purpose, payload, signature, issuer)

    def make_binding(self, now: datetime) -> bytes:
        """The statement that our transport key speaks for us; ``seq`` is the time in milliseconds."""
        now_s = int(now.timestamp())
        return make_binding(
            self._key,
            self._transport,
            not_before=max(0, now_s - CLOCK_SKEW_S),
            not_after=now_s + BINDING_LIFE_S,
            seq=int(now.timestamp() * 1000),
        )

    def check_binding(self, statement: bytes, now: datetime) -> Binding:
        """See :func:`shem.node.identity.binding.check_binding`."""
        return check_binding(statement, now.timestamp())

    def __repr__(self) -> str:
        return f"Identity({self.node_id})"
