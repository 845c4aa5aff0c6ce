"""Calls for the owner of this node: which keys it has, lock, unlock, a voucher signer of its own.

They take the key that lies in the data directory, as what :mod:`~shem.node.rest.admin` serves does. A passphrase comes in a
body, over loopback or whatever the operator has put before it, and is in no answer, log or error.
"""

from __future__ import annotations

from aiohttp import web

from shem.node.identity.keyring import Keyring
from shem.node.payment.service import Payments
from shem.node.rest.admin import owner_only
from shem.node.rest.server import read_json, respond
from shem.wire import identity as wire
from shem.wire.identity import ROOT


def routes(keyring: Keyring, payments: Payments) -> list[web.RouteDef]:
    """The routes of one node."""
    door = _Door(keyring, payments)
    return [
        web.get(ROOT, door.keys),
        web.post(f"{ROOT}/lock", door.lock),
        web.post(f"{ROOT}/unlock", door.unlock),
        web.post(f"{ROOT}/voucher-signer", door.voucher_signer),
    ]


class _Door:
    def __init__(self, keyring: Keyring, payments: Payments) -> None:
        self._keyring = keyring
        self._payments = payments

    def _answer(self) -> web.Response:
        ring = self._keyring
        return respond(
            wire.Keys(
                node_id=ring.identity.node_id,
                locked=ring.identity.locked,
                own_passphrase=ring.has_own_passphrase,
                voucher_signer=ring.voucher_key.node_id,
                payouts=[
                    wire.Payout(platform=platform, address=address)
                    for platform, address in sorted(self._payments.payouts.items())
                ],
            )
        )

    async def keys(self, request: web.Request) -> web.Response:
        owner_only(request)
        return self._answer()

    async def lock(self, request: web.Request) -> web.Response:
        owner_only(request)
        self._keyring.lock()
        return self._answer()

    async def unlock(self, request: web.Request) -> web.Response:
        owner_only(request)
        body = await read_json(request, wire.Unlock)
        await self._keyring.unlock(body.passphrase)
        return self._answer()

    async def voucher_signer(self, request: web.Request) -> web.Response:
        owner_only(request)
        body = await read_json(request, wire.VoucherSigner)
        await (self._keyring.renew_voucher_signer() if body.own else self._keyring.drop_voucher_signer())
        return self._answer()
