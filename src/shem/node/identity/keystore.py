"""The key file: Web3 Secret Storage version 3 (the format of Golem and of Ethereum wallets), made to survive a crash.

A key is never half there and never overwritten by another (:mod:`~shem.node.identity.keyfiles`). A passphrase of the
user's own is stretched hard (scrypt, n = 2**17: 0.3 s and 128 MB); one that we generated has 256 bits of its own and needs
none of that (n = 2**14: 0.05 s and 16 MB). A generated passphrase lies beside the key file, equally 0600: it protects
copies of the key file, not the directory.

A key changes its passphrase, never its place: the same key is encrypted anew and takes the old file's name in one step. A
generated passphrase is written before the key file that it opens, and removed after the one that it does not open any
more; a crash in between leaves a key file that one of the two passphrases opens, and the node then asks for the owner's.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import sys
import uuid
from pathlib import Path
from typing import Any

import coincurve
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from shem.errors import Misconfigured, Refused
from shem.node.identity.keyfiles import KeystoreUnusable, read_private, remove, replace_private, write_new
from shem.node.identity.signing import ORDER, address_of, keccak256
from shem.terms.ids import NodeId, parse_node_id

KEYSTORE = "identity.json"
PASSPHRASE = "identity.pass"  # noqa: S105  a file name
N_GENERATED = 1 << 14
N_USER = 1 << 17
MAX_PASSPHRASE = 1024
"""Characters."""
_R, _P = 8, 1
_MOST_WORK = 1 << 24
"""n·r·p: 64 times what we ask of a user's own passphrase ourselves, and 2 GiB of memory."""


class WrongPassphrase(Misconfigured):
    """The key file does not open with this passphrase."""

    default_code = "wrong_passphrase"


class OtherIdentity(Misconfigured):
    """The directory has a key already, and it is not the one that is asked for."""

    default_code = "other_identity"


def new_secret() -> bytes:
    """32 random bytes that are a valid secp256k1 key."""
    while True:
        secret = secrets.token_bytes(32)
        if 0 < int.from_bytes(secret, "big") < ORDER:
            return secret


def load_or_create_secret(directory: Path, passphrase: str | None, wanted: bytes | None = None) -> bytes:
    """The 32-byte secret of this directory, made on first use (``wanted``, if given).

    Without ``passphrase`` one is generated at creation and read back from its file later. Raises
    :class:`WrongPassphrase`, :class:`KeystoreUnusable`, and :class:`OtherIdentity` when there is one that is not ``wanted``.
    """
    if wanted is not None and not (len(wanted) == 32 and 0 < int.from_bytes(wanted, "big") < ORDER):
        raise KeystoreUnusable("the secret that is given for the identity is no secp256k1 key")
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = directory / KEYSTORE
        if not path.exists():
            _create(directory, passphrase, wanted or new_secret())
        found = read_secret(directory, passphrase)
    except OSError as error:
        raise unusable(directory, error) from error
    if wanted is not None and found != wanted:
        raise OtherIdentity(
            f"the directory {directory} has an identity already, and it is not the one that is given",
            hint="start without that secret, or with another data directory",
        )
    return found


def read_secret(directory: Path, passphrase: str | None = None) -> bytes:
    """The secret of a directory that has one. Raises :class:`WrongPassphrase`, :class:`KeystoreUnusable`, ``OSError``."""
    path = directory / KEYSTORE
    path.stat()  # a directory without one lacks no passphrase
    if passphrase is None:
        passphrase = _generated_passphrase(directory)
    return decrypt(read_private(path), passphrase)


def import_secret(directory: Path, secret: bytes, passphrase: str | None) -> bool:
    """Make a directory's identity of ``secret``, under ``passphrase`` or a generated one; False when it is that already.

    Raises :class:`OtherIdentity` for a directory that has another one, :class:`KeystoreUnusable`.
    """
    path = directory / KEYSTORE
    made = False
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            made = _create(directory, passphrase, secret)
        found = address_in(directory)
    except OSError as error:
        raise unusable(directory, error) from error
    if found != address_of(coincurve.PrivateKey(secret).public_key):
        raise OtherIdentity(
            f"the directory {directory} has the identity {found} already",
            hint="choose another data directory; a key is never overwritten",
        )
    return made


def change_passphrase(directory: Path, secret: bytes, passphrase: str | None) -> None:
    """Encrypt the directory's key anew: under ``passphrase``, or a generated one that lies beside it.

    ``secret`` is the key, as :func:`read_secret` gave it. Raises :class:`KeystoreUnusable`.
    """
    try:
        if passphrase is None:
            if not has_own_passphrase(directory):
                return  # never the only passphrase that opens it replaced before the file is
            generated = secrets.token_urlsafe(32)
            replace_private(directory / PASSPHRASE, generated.encode())
            replace_private(directory / KEYSTORE, encrypt(secret, generated, n=N_GENERATED))
        else:
            replace_private(directory / KEYSTORE, encrypt(secret, passphrase, n=N_USER))
            remove(directory / PASSPHRASE)
    except OSError as error:
        raise unusable(directory, error) from error


def address_in(directory: Path) -> NodeId:
    """Whose key lies there, as the file says without being opened. Raises :class:`KeystoreUnusable`, ``OSError``."""
    try:
        content = json.loads(read_private(directory / KEYSTORE))
        return parse_node_id("0x" + str(content["address"]).lower().removeprefix("0x"))
    except (ValueError, KeyError, TypeError, RecursionError, Refused):
        raise KeystoreUnusable("the key file is damaged", hint="restore it from a copy") from None


def read_passphrase(path: Path) -> str:
    """The first line of a file that others may not read. Raises :class:`KeystoreUnusable`."""
    try:
        content = read_private(path)
    except OSError as error:
        raise KeystoreUnusable(f"the passphrase in {path} cannot be read: {error.strerror}") from error
    return passphrase_in(content, str(path))


def passphrase_in(content: bytes, place: str) -> str:
    """Its first line. Raises :class:`KeystoreUnusable` where there is none, or one that nobody can have meant."""
    line = content.split(b"\n", 1)[0].rstrip(b"\r").decode("utf-8", errors="replace")
    if not 0 < len(line) <= MAX_PASSPHRASE or "\ufffd" in line:
        raise KeystoreUnusable(
            f"there is no passphrase in {place}", hint=f"a first line of 1 to {MAX_PASSPHRASE} characters, in UTF-8"
        )
    return line


def has_own_passphrase(directory: Path) -> bool:
    """Whether the owner alone knows what opens the key file. Raises as :func:`read_secret` does, but for a wrong one."""
    try:
        read_secret(directory)
    except WrongPassphrase:
        return True
    return False


def unusable(directory: Path, error: OSError) -> KeystoreUnusable:
    """The error to raise for files that cannot be read or written."""
    return KeystoreUnusable(
        f"the key directory {directory} cannot be used: {error.strerror}", hint="check its owner and free space"
    )


def encrypt(secret: bytes, passphrase: str, *, n: int) -> bytes:
    """A version 3 key file: scrypt and AES-128-CTR, as all wallets read it."""
    salt, vector = secrets.token_bytes(32), secrets.token_bytes(16)
    key = _stretch(passphrase, salt, n, _R, _P)
    hidden = _aes(key, vector, secret)
    crypto = {
        "cipher": "aes-128-ctr",
        "cipherparams": {"iv": vector.hex()},
        "ciphertext": hidden.hex(),
        "kdf": "scrypt",
        "kdfparams": {"dklen": 32, "n": n, "r": _R, "p": _P, "salt": salt.hex()},
        "mac": keccak256(key[16:] + hidden).hex(),
    }
    address = address_of(coincurve.PrivateKey(secret).public_key).removeprefix("0x")
    return json.dumps({"address": address, "crypto": crypto, "id": str(uuid.uuid4()), "version": 3}).encode()


def decrypt(keystore: bytes, passphrase: str) -> bytes:
    """The secret of a version 3 key file. Raises :class:`WrongPassphrase`, :class:`KeystoreUnusable`."""
    try:
        content = json.loads(keystore)
        if not isinstance(content, dict) or content.get("version") != 3:
            raise KeystoreUnusable("the key file is not a version 3 key file")
        secret = _open(content, passphrase)
    except KeystoreUnusable:
        raise
    except ValueError as error:  # a wrong MAC and damaged JSON are both ValueErrors; the cause never holds the secret
        if "MAC" in str(error):
            raise WrongPassphrase("the key file does not open with this passphrase") from None
        raise KeystoreUnusable("the key file is damaged", hint="restore it from a copy") from None
    except (KeyError, TypeError, AttributeError, NotImplementedError, MemoryError, OverflowError, RecursionError):
        raise KeystoreUnusable("the key file is damaged", hint="restore it from a copy") from None
    if len(secret) != 32:
        raise KeystoreUnusable("the key file does not hold a 32-byte key")
    return secret


def _open(content: dict[str, Any], passphrase: str) -> bytes:
    crypto = content["crypto"]
    if (crypto["kdf"], crypto["cipher"]) != ("scrypt", "aes-128-ctr"):
        # Another wallet's file. The library takes 0.4 s to import (it brings pairings along), which a node whose own file
        # is of the usual kind should not pay at each start.
        given = crypto["kdfparams"]
        work = int(given["c"]) if crypto["kdf"] == "pbkdf2" else int(given["n"]) * int(given["r"]) * int(given["p"])
        if work > _MOST_WORK:
            raise KeystoreUnusable("the key file asks for more work than any wallet does")
        limit = sys.getrecursionlimit()
        try:
            import eth_keyfile
        finally:
            # Its import raises the limit beyond what the C stack carries: hostile nesting would then crash the process.
            sys.setrecursionlimit(limit)

        return bytes(eth_keyfile.decode_keyfile_json(content, passphrase.encode()))
    given = crypto["kdfparams"]
    n, r, p = int(given["n"]), int(given["r"]), int(given["p"])
    if n * r * p > _MOST_WORK or int(given["dklen"]) != 32:
        raise KeystoreUnusable("the key file asks for more work than any wallet does")
    key = _stretch(passphrase, bytes.fromhex(given["salt"]), n, r, p)
    hidden = bytes.fromhex(crypto["ciphertext"])
    if not hmac.compare_digest(keccak256(key[16:] + hidden), bytes.fromhex(crypto["mac"])):
        raise ValueError("MAC mismatch")
    return _aes(key, bytes.fromhex(crypto["cipherparams"]["iv"]), hidden)


def _stretch(passphrase: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    memory = 128 * r * (n + p + 2)
    return hashlib.scrypt(passphrase.encode(), salt=salt, n=n, r=r, p=p, dklen=32, maxmem=memory + (1 << 20))


def _aes(key: bytes, vector: bytes, data: bytes) -> bytes:
    return Cipher(algorithms.AES(key[:16]), modes.CTR(vector)).encryptor().update(data)


def _create(directory: Path, passphrase: str | None, secret: bytes) -> bool:
    n = N_USER
    if passphrase is None:
        n = N_GENERATED
        # The passphrase first: a crash in between leaves one that the next start uses.
        if not (directory / PASSPHRASE).exists():
            write_new(directory / PASSPHRASE, secrets.token_urlsafe(32).encode())
        passphrase = _generated_passphrase(directory)
    return write_new(directory / KEYSTORE, encrypt(secret, passphrase, n=n))


def _generated_passphrase(directory: Path) -> str:
    path = directory / PASSPHRASE
    if not path.exists():
        raise WrongPassphrase(
            f"the key file in {directory} was made with a passphrase of yours", hint="start with that passphrase"
        )
    return read_private(path).decode(errors="replace").strip()
