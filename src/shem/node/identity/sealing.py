"""Small secrets in the database, useless without the node's own key: a copy of the database opens no door."""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE = 12


class Sealer:
    """AES-GCM under a key that is derived from the identity for one purpose."""

    def __init__(self, key: bytes) -> None:
        """``key``: 32 secret bytes."""
        self._cipher = AESGCM(key)

    def seal(self, secret: str, bound_to: str) -> bytes:
        """Opens only together with the same ``bound_to``, so that nobody swaps two of them."""
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, secret.encode(), bound_to.encode())

    def open(self, sealed: bytes, bound_to: str) -> str | None:
        """``None`` for what was sealed by another identity, or is damaged."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], bound_to.encode()).decode()
        except (InvalidTag, ValueError):
            return None
