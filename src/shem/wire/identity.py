"""Shapes of our own calls for the owner of a node: its keys."""

from __future__ import annotations

from typing import Annotated

import msgspec

from shem.wire.base import Wire

ROOT = "/shem-api/v1/identity"


class Payout(Wire, kw_only=True, omit_defaults=False):
    """Where a platform pays when not to the node's own account."""

    platform: str
    address: str


class Keys(Wire, kw_only=True, omit_defaults=False):
    """``own_passphrase``: the owner alone knows it; else it lies beside the key file. ``voucher_signer``: who signs vouchers;
    the node id where the identity does so itself."""

    node_id: str
    locked: bool
    own_passphrase: bool
    voucher_signer: str
    payouts: list[Payout]


class Unlock(Wire):
    """Without a passphrase: by the one that was generated."""

    passphrase: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)] | None = None

    def __repr__(self) -> str:
        return "Unlock()"


class VoucherSigner(Wire):
    """``own``: a new key that signs vouchers only; false: the identity signs them itself."""

    own: bool
