"""Small secrets in the database, useless without the node's own key: a copy of the database opens no door."""

from __future__ import annotations

import os
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shem.errors import KeyLocked

_NONCE = 12


class Sealer:
    """AES-GCM under a key that is derived from the identity for one purpose. While the identity is locked there is none:
    nothing can be sealed or opened."""

    def __init__(self, key: Callable[[], bytes]) -> None:
        """``key`` gives 32 secret bytes, or raises :class:`~shem.errors.KeyLocked`; it is asked each time and not kept."""
        self._key = key

    def seal(self, secret: str, bound_to: str) -> bytes | None:
        """Opens only together with the same ``bound_to``, so that nobody swaps two of them; ``None`` while locked."""
        nonce = os.urandom(_NONCE)
        try:
            return nonce + AESGCM(self._key()).encrypt(nonce, secret.encode(), bound_to.encode())
        except KeyLocked:
            return None

    def open(self, sealed: bytes, bound_to: str) -> str | None:
        """``None`` for what was sealed by another identity, or is damaged, and while locked."""
        try:
            return AESGCM(self._key()).decrypt(sealed[:_NONCE], sealed[_NONCE:], bound_to.encode()).decode()
        except (InvalidTag, ValueError, KeyLocked):
            return None
