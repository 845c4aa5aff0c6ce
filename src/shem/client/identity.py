"""Typed calls for the owner of a node: its keys. All need the app key that lies in its data directory."""

from __future__ import annotations

from shem.client.http import ApiClient
from shem.wire import identity as wire
from shem.wire.identity import ROOT


class IdentityApi:
    """Errors are those of :class:`~shem.client.http.ApiClient`; ``NotAllowed`` with a key that is not the owner's."""

    def __init__(self, http: ApiClient) -> None:
        self._http = http

    async def keys(self) -> wire.Keys:
        """Which there are, and whether the identity's is locked."""
        return await self._http.call("GET", ROOT, into=wire.Keys)

    async def lock(self) -> wire.Keys:
        """Sign nothing from now on; checking and storing goes on."""
        return await self._http.call("POST", f"{ROOT}/lock", into=wire.Keys)

    async def unlock(self, passphrase: str | None = None) -> wire.Keys:
        """Sign again; what waited goes on. ``NotAllowed`` (``wrong_passphrase``)."""
        body = wire.Unlock(passphrase=passphrase)
        return await self._http.call("POST", f"{ROOT}/unlock", json=body, into=wire.Keys, timeout_s=60)

    async def voucher_signer(self, *, own: bool) -> wire.Keys:
        """A new key that signs vouchers from now on; with ``own`` false: the identity does so itself."""
        body = wire.VoucherSigner(own=own)
        return await self._http.call("POST", f"{ROOT}/voucher-signer", json=body, into=wire.Keys)
