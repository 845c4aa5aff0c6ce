"""Who a node is: one secp256k1 key, and the transport key that follows from it.

The node id is the Ethereum address of the key, so the same key that signs agreements owns the money. The ed25519 key of
the transport is derived from it (HMAC-SHA256 with a fixed label): nothing more to store or lose, and whoever learns the
transport key (it sits in the memory of the QUIC library) learns nothing about the identity.

A node can be *locked*: it then has all of this but the key itself. It is reached and reaches others under its name, by its
transport key and what the identity signed before (:mod:`~shem.node.identity.presence`), checks and keeps what comes, and
signs nothing: whoever asks for a signature gets :class:`~shem.errors.KeyLocked`. A key that has a passphrase of its owner's
is locked from the start until that is told; any can be locked later. Locking drops the key from our objects; what the
interpreter and the crypto library copied before is overwritten when they please.

Secrets never appear in ``repr``, logs or errors.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path

import coincurve
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shem.errors import KeyLocked
from shem.node.identity import keystore, signing
from shem.node.identity.binding import Binding, check_binding, make_binding
from shem.node.identity.keyfiles import KeystoreUnusable
from shem.node.identity.presence import Presence, read_presence, write_presence
from shem.node.peer.records import sign_record
from shem.terms.ids import NodeId

BINDING_LIFE_S = 400 * 24 * 3600
"""A binding is made anew at every start; it has to outlast one uptime."""
CLOCK_SKEW_S = 3600
"""How far our clock may be ahead of a peer's before it refuses our binding."""


class Identity:
    """A node's own key. Make one with :meth:`open_or_create` or, in tests, :meth:`generate`."""

    _key: coincurve.PrivateKey | None

    def __init__(self, secret: bytes) -> None:
        """From the 32-byte secp256k1 secret."""
        key = coincurve.PrivateKey(secret)
        self._begin(signing.address_of(key.public_key), hmac.digest(secret, b"shem transport key 1", hashlib.sha256))
        self._key = key

    def _begin(self, node_id: NodeId, transport_seed: bytes) -> None:
        self._key = None
        self._transport_seed = transport_seed
        self._transport = Ed25519PrivateKey.from_private_bytes(transport_seed)
        self.node_id: NodeId = node_id
        self.transport_id: bytes = self._transport.public_key().public_bytes_raw()
        """The 32-byte endpoint id that peers see."""
        self._binding = b""
        self._record = b""
        self._directory: Path | None = None
        self._unlocked: list[Callable[[], None]] = []

    @classmethod
    def open_or_create(cls, directory: Path, passphrase: str | None = None, secret: bytes | None = None) -> Identity:
        """The identity kept in ``directory`` (blocking: 0.05 s, or 0.3 s with a passphrase of the user's own).

        ``secret`` (32 bytes) is what a new one is made of; a directory that has another keeps it, and this raises
        :class:`~shem.node.identity.keystore.OtherIdentity`. Else raises
        :class:`~shem.node.identity.keystore.WrongPassphrase` or
        :class:`~shem.node.identity.keyfiles.KeystoreUnusable`; all are ``Misconfigured``.
        """
        opened = cls(keystore.load_or_create_secret(directory, passphrase, secret))
        opened._directory = directory
        kept = read_presence(directory, opened.node_id, datetime.now(UTC).timestamp())
        opened._record = b"" if kept is None else kept.record
        return opened

    @classmethod
    def open(cls, directory: Path, passphrase: str | None = None) -> Identity:
        """The identity that is kept in ``directory``, for its owner's tools. Errors as for :meth:`open_or_create`."""
        try:
            return cls(keystore.read_secret(directory, passphrase))
        except OSError as error:
            raise KeystoreUnusable(
                f"no identity can be read in {directory}: {error.strerror}", hint="name the node's data directory"
            ) from error

    @classmethod
    def open_locked(cls, directory: Path) -> Identity:
        """The identity of ``directory`` without its key. Raises :class:`~shem.node.identity.keyfiles.KeystoreUnusable`, and
        :class:`~shem.node.identity.keystore.WrongPassphrase` for one that was never seen unlocked."""
        node_id = keystore.address_in(directory)
        kept = read_presence(directory, node_id, datetime.now(UTC).timestamp())
        if kept is None:
            raise keystore.WrongPassphrase(
                f"the key in {directory} needs your passphrase: it is not known yet what a locked node would show others",
                hint="start the node with its passphrase once",
            )
        locked = cls.__new__(cls)
        locked._begin(node_id, kept.seed)
        locked._binding, locked._record, locked._directory = kept.binding, kept.record, directory
        return locked

    @classmethod
    def generate(cls) -> Identity:
        """A fresh one, in memory only."""
        return cls(keystore.new_secret())

    # --- locking ---

    @property
    def locked(self) -> bool:
        """Whether there is no key to sign with now."""
        return self._key is None

    def lock(self) -> None:
        """Sign nothing from now on."""
        self._key = None

    def unlock(self, secret: bytes) -> None:
        """Sign again. Raises :class:`~shem.node.identity.keystore.OtherIdentity` for another identity's secret."""
        key = coincurve.PrivateKey(secret)
        if signing.address_of(key.public_key) != self.node_id:
            raise keystore.OtherIdentity(f"that is not the key of {self.node_id}")
        if self._key is None:
            self._key = key
            for callback in self._unlocked:
                callback()

    def on_unlocked(self, callback: Callable[[], None]) -> None:
        """Call each time the key is unlocked."""
        self._unlocked.append(callback)

    def _secret_key(self) -> coincurve.PrivateKey:
        if self._key is None:
            raise KeyLocked(
                f"the key of {self.node_id} is locked: nothing is signed with it",
                hint="unlock it: shem identity unlock",
            )
        return self._key

    # --- what a locked node goes on with ---

    def keep_record(self, signed: bytes) -> None:
        """Remember what was signed about where the node is, as it travels, for a start without the key."""
        self._record = signed
        self._keep()

    def kept_record(self) -> bytes:
        """The last of :meth:`keep_record`, also by an earlier run; empty when there was none."""
        return self._record

    def _keep(self) -> None:
        # A key that opens by itself at each start needs none of this, and the less lies about the better.
        own = self._directory is not None and not (self._directory / keystore.PASSPHRASE).exists()
        if self._directory is not None and self._binding and own:
            write_presence(self._directory, Presence(self._transport_seed, self._binding, self._record))

    def leave_presence(self, directory: Path, now: datetime) -> None:
        """What a start in ``directory`` without the key will need. Raises ``OSError``."""
        kept = read_presence(directory, self.node_id, now.timestamp())
        record = self._record or (kept.record if kept is not None else b"")
        if not record:
            record = msgspec.msgpack.encode(sign_record(self, [], int(now.timestamp() * 1000)))
        write_presence(directory, Presence(self._transport_seed, self.make_binding(now), record))

    # --- signing ---

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
        return bytes(self._secret_key().public_key.format(compressed=False)[1:])

    def derive(self, purpose: str) -> bytes:
        """32 secret bytes for one purpose; nothing about the identity follows from them."""
        return hmac.digest(self._secret_key().secret, f"shem {purpose}".encode(), hashlib.sha256)

    def sign_file(self, file: BufferedReader) -> bytes:
        """65 bytes ``v|r|s`` (``v`` 0 or 1) over the sha-256 of what the user signs by hand, as Golem's command line does.
        Nothing else is hashed so here: it can pass for no transaction and no document."""
        signature = signing.sign_with(self._secret_key(), hashlib.file_digest(file, "sha256").digest())
        return bytes([signature[64] - 27]) + signature[:64]

    def sign(self, purpose: str, payload: bytes) -> bytes:
        """65 bytes ``r|s|v`` over ``document_digest(purpose, payload)``."""
        return signing.sign_with(self._secret_key(), signing.document_digest(purpose, payload))

    def sign_digest(self, digest: bytes) -> bytes:
        """65 bytes ``r|s|v`` (``v`` 27 or 28) over 32 bytes built here: of a chain transaction, a voucher or a channel's
        close, each under a type or domain of its own. Never over what a peer sent."""
        if len(digest) != 32:
            raise ValueError("a digest has 32 bytes")
        return signing.sign_with(self._secret_key(), digest)

    def verify(self, purpose: str, payload: bytes, signature: bytes, issuer: NodeId) -> None:
        """See :func:`shem.node.identity.signing.verify`."""
        signing.verify(purpose, payload, signature, issuer)

    def make_binding(self, now: datetime) -> bytes:
        """The statement that our transport key speaks for us; ``seq`` is the time in milliseconds. While the key is locked:
        the last one that was made."""
        if self._key is None and self._binding:
            return self._binding
        now_s = int(now.timestamp())
        self._binding = make_binding(
            self._secret_key(),
            self._transport,
            not_before=max(0, now_s - CLOCK_SKEW_S),
            not_after=now_s + BINDING_LIFE_S,
            seq=int(now.timestamp() * 1000),
        )
        self._keep()
        return self._binding

    def check_binding(self, statement: bytes, now: datetime) -> Binding:
        """See :func:`shem.node.identity.binding.check_binding`."""
        return check_binding(statement, now.timestamp())

    def __repr__(self) -> str:
        return f"Identity({self.node_id})"
