"""A key that signs vouchers and nothing else, so that the key that owns the money need not.

A channel's name binds who signs its vouchers, and a voucher counts up to what is reserved in that channel: whoever steals
this key can hand the payees of open channels what was reserved for them, and nothing more. It lies in a directory of its
own with a number, as a key file with its generated passphrase; the highest number counts. A new one is complete before the
old one goes, and nothing is ever signed with an old one again: channels of another signer are paid and closed, and new
ones opened.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import coincurve

from shem.node.identity import keystore, signing
from shem.node.identity.keyfiles import KeystoreUnusable
from shem.terms.ids import NodeId

DIRECTORY = "voucher-signer"
_NUMBER = re.compile(r"[1-9][0-9]{0,5}")


class VoucherSigner:
    """Signs digests of vouchers."""

    def __init__(self, secret: bytes) -> None:
        """From the 32-byte secp256k1 secret."""
        self._key = coincurve.PrivateKey(secret)
        self.node_id: NodeId = signing.address_of(self._key.public_key)
        """Its address, as channels name it."""

    def sign_digest(self, digest: bytes) -> bytes:
        """65 bytes ``r|s|v`` over the digest of a voucher that was built here."""
        if len(digest) != 32:
            raise ValueError("a digest has 32 bytes")
        return signing.sign_with(self._key, digest)

    def __repr__(self) -> str:
        return f"VoucherSigner({self.node_id})"


def open_voucher_signer(data_dir: Path) -> VoucherSigner | None:
    """The one that counts; ``None`` where the identity signs vouchers itself.

    Raises :class:`~shem.node.identity.keyfiles.KeystoreUnusable`, :class:`~shem.node.identity.keystore.WrongPassphrase`.
    """
    try:
        numbers = _numbers(data_dir)
        return VoucherSigner(keystore.read_secret(_place(data_dir, numbers[-1]))) if numbers else None
    except OSError as error:
        raise KeystoreUnusable(f"the voucher signer's key cannot be read: {error.strerror}") from error


def renew_voucher_signer(data_dir: Path) -> VoucherSigner:
    """A new one in place of the last, whose key is removed. Raises as :func:`open_voucher_signer` does."""
    try:
        (data_dir / DIRECTORY).mkdir(exist_ok=True, mode=0o700)
        old = _numbers(data_dir)
        made = VoucherSigner(keystore.load_or_create_secret(_place(data_dir, old[-1] + 1 if old else 1), None))
        for number in old:
            shutil.rmtree(_place(data_dir, number))
    except OSError as error:
        raise KeystoreUnusable(f"the voucher signer's key cannot be changed: {error.strerror}") from error
    return made


def drop_voucher_signer(data_dir: Path) -> None:
    """Have the identity sign vouchers itself again. Raises as :func:`open_voucher_signer` does."""
    try:
        for number in _numbers(data_dir):  # the one that counts last
            shutil.rmtree(_place(data_dir, number))
    except OSError as error:
        raise KeystoreUnusable(f"the voucher signer's key cannot be removed: {error.strerror}") from error


def _numbers(data_dir: Path) -> list[int]:
    """Of those that are whole, ascending."""
    root = data_dir / DIRECTORY
    names = [entry.name for entry in root.iterdir()] if root.is_dir() else []
    found = [int(name) for name in names if _NUMBER.fullmatch(name) and (root / name / keystore.KEYSTORE).exists()]
    return sorted(found)


def _place(data_dir: Path, number: int) -> Path:
    return data_dir / DIRECTORY / str(number)
