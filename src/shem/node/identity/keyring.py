"""A node's keys as its owner handles them: opened or locked at the start, locked, unlocked, the voucher signer renewed.

The owner (identity) key has the money, sends transactions and signs documents. The voucher signer, where there is one, signs
vouchers only (:mod:`~shem.node.identity.vouchersigner`); else the identity does that, too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from shem.errors import Conflict, NotAllowed
from shem.node.identity import keystore
from shem.node.identity.keys import Identity
from shem.node.identity.keystore import WrongPassphrase
from shem.node.identity.vouchersigner import (
    VoucherSigner,
    drop_voucher_signer,
    open_voucher_signer,
    renew_voucher_signer,
)

log = logging.getLogger(__name__)


class PassphraseRefused(NotAllowed):
    """The key does not open with what was said."""

    default_code = "wrong_passphrase"


class Keyring:
    """The keys in one data directory."""

    def __init__(self, data_dir: Path, identity: Identity, voucher: VoucherSigner | None = None) -> None:
        self.identity = identity
        self._data_dir = data_dir
        self._voucher = voucher
        self._opening = asyncio.Lock()
        self._renewed: list[Callable[[VoucherSigner | Identity], None]] = []

    @classmethod
    def open(cls, data_dir: Path, passphrase: str | None = None, secret: bytes | None = None) -> Keyring:
        """Blocking. Without the ``passphrase`` of a key that has one of its owner's: locked. Raises as
        :meth:`Identity.open_or_create` and :meth:`Identity.open_locked` do."""
        try:
            identity = Identity.open_or_create(data_dir, passphrase, secret)
        except WrongPassphrase:
            if passphrase is not None:
                raise
            identity = Identity.open_locked(data_dir)
            if secret is not None:  # the key itself is as good as what opens its file
                identity.unlock(secret)
            else:
                log.warning("the key of %s is locked: nothing is signed until its owner unlocks it", identity.node_id)
        return cls(data_dir, identity, open_voucher_signer(data_dir))

    @property
    def voucher_key(self) -> VoucherSigner | Identity:
        """What signs vouchers now."""
        return self._voucher or self.identity

    @property
    def has_own_passphrase(self) -> bool:
        """Whether no passphrase for the identity's key lies beside it."""
        return not (self._data_dir / keystore.PASSPHRASE).exists()

    def on_voucher_key(self, callback: Callable[[VoucherSigner | Identity], None]) -> None:
        """Call with what signs vouchers from now on."""
        self._renewed.append(callback)

    def lock(self) -> None:
        """Sign nothing with the identity until :meth:`unlock`."""
        if not self.identity.locked:
            self.identity.lock()
            log.warning("the key of %s is locked by its owner", self.identity.node_id)

    async def unlock(self, passphrase: str | None) -> None:
        """Without ``passphrase``: by the generated one that lies beside the key.

        Raises :class:`PassphraseRefused`, :class:`~shem.errors.Conflict` while another call tries (each takes its time
        and 128 MB), :class:`~shem.node.identity.keyfiles.KeystoreUnusable`.
        """
        if not self.identity.locked:
            return
        if self._opening.locked():
            raise Conflict("somebody is unlocking the key just now", code="unlocking", hint="try again in a second")
        async with self._opening:
            try:
                secret = await asyncio.to_thread(keystore.read_secret, self._data_dir, passphrase)
            except WrongPassphrase as error:
                raise PassphraseRefused(error.message, hint="try again") from None
            except OSError as error:
                raise keystore.unusable(self._data_dir, error) from error
            self.identity.unlock(secret)
            log.warning("the key of %s is unlocked", self.identity.node_id)

    async def renew_voucher_signer(self) -> None:
        """A new key that signs vouchers from now on; the old one is removed. Raises :class:`~shem.errors.Conflict`,
        :class:`~shem.node.identity.keyfiles.KeystoreUnusable`."""
        await self._change(renew_voucher_signer)

    async def drop_voucher_signer(self) -> None:
        """Have the identity sign vouchers itself from now on. Raises as :meth:`renew_voucher_signer` does."""
        await self._change(drop_voucher_signer)

    async def _change(self, change: Callable[[Path], VoucherSigner | None]) -> None:
        if self._opening.locked():
            raise Conflict("somebody is changing a key just now", code="busy", hint="try again in a second")
        async with self._opening:
            # told at once to whoever signs, in the same turn of the loop: the old key is gone
            self._voucher = await asyncio.to_thread(change, self._data_dir)
            for callback in self._renewed:
                callback(self.voucher_key)
        log.info("vouchers are signed by %s", self.voucher_key.node_id)
