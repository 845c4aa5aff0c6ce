"""What accounts of this node did on their chains, or are about to: for people to read."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from shem.node.payment.drivers.evm import erc20
from shem.node.payment.drivers.evm.deployments import KEY, vault_of
from shem.node.payment.drivers.evm.store import State
from shem.node.payment.drivers.networks import Network

MAX_DEEDS = 1000
_INTENTS = (
    "select i.*, (select min(signed_at) from evm_attempt where intent = i.id) as signed_at,"
    " (select tx_hash from evm_attempt where intent = i.id order by signed_at desc, max_fee desc limit 1) as last_hash"
    " from evm_intent i"
)
_PAYS = ("withdraw", "settle", "close", "redeem")
"""What gives a request's payee its money."""


class Deed(msgspec.Struct, frozen=True):
    """One transaction, or what waits to become a part of one."""

    id: str
    kind: str
    """``transfer``, ``faucet``, ``approve``, ``deploy``, ``deposit``, ``withdraw``, ``reserve``, ``extend``, ``settle``,
    ``close``, ``release``, ``redeem``."""
    platform: str
    state: State
    """``new`` until it is signed; ``final`` and ``failed`` are for good."""
    tx_hash: str
    """Of the attempt that was mined; before that of the last one sent. Empty before there is one."""
    block_number: int | None
    gas_used: int | None
    amount: int
    """Base units: what was asked to be moved, and once it is final, what was. 0 where nothing moves."""
    at: float | None
    """Unix seconds of the asking where that is known, else of the first signature."""
    intent: int | None
    """The row of its transaction; ``None`` before there is one."""
    entries: int
    """Of how many channels, or receivers."""
    detail: str
    receiver: str = ""
    """Who gets what is moved, where that is one address and not a vault."""


def deeds(connection: sqlite3.Connection, networks: Sequence[Network], address: str, limit: int) -> list[Deed]:
    """Newest first, at most :data:`MAX_DEEDS`."""
    found: list[Deed] = []
    limit = min(limit, MAX_DEEDS)
    for network in networks:
        found += _waiting(connection, network, address, limit)
        rows = connection.execute(
            # From the newest on until there are enough: any index would give all of them, to be sorted.
            f"{_INTENTS} not indexed where chain_id = ? and sender = ? order by i.id desc limit ?",
            (network.chain_id, address, limit),
        )
        found += [_deed(connection, network, row) for row in rows.fetchall()]
    found.sort(key=lambda deed: float("inf") if deed.at is None else deed.at, reverse=True)
    return found[:limit]


def one_deed(connection: sqlite3.Connection, networks: Sequence[Network], address: str, name: str) -> Deed | None:
    """By its id; or by the id of a request to a vault, whatever transaction that is a part of by now."""
    for network in networks:
        asked = (
            connection.execute(
                "select * from vault_request where chain_id = ? and vault = ? and account = ? and request_id = ?",
                (network.chain_id, network.vault, address, name),
            ).fetchone()
            if network.vault
            else None
        )
        intent = name if asked is None else asked["intent"]
        row = connection.execute(
            f"{_INTENTS} where chain_id = ? and sender = ? and i.id = ?", (network.chain_id, address, intent)
        ).fetchone()
        if asked is None:
            if row is not None:
                return _deed(connection, network, row)
        elif row is None:
            return _unsent(network, asked)
        else:
            moved = asked["moved"] if row["state"] == "final" else asked["amount"]
            whole = _deed(connection, network, row)
            return msgspec.structs.replace(
                whole,
                id=name,
                amount=int(moved),
                at=asked["made_at"],
                detail=asked["detail"],
                receiver=_receiver([asked]),
            )
    return None


def _waiting(connection: sqlite3.Connection, network: Network, address: str, limit: int) -> list[Deed]:
    """Orders and requests that are in no call, and those that failed without one."""
    orders = connection.execute(
        "select * from evm_order where chain_id = ? and payer = ? and intent is null order by id desc limit ?",
        (network.chain_id, address, limit),
    )
    waiting = [_unsent_order(network, row) for row in orders]
    if not network.vault:
        return waiting
    rows = connection.execute(
        "select * from vault_request where chain_id = ? and vault = ? and account = ? and intent is null"
        " order by id desc limit ?",
        (network.chain_id, network.vault, address, limit),
    )
    return waiting + [_unsent(network, row) for row in rows]


def _unsent_order(network: Network, row: sqlite3.Row) -> Deed:
    return Deed(
        id=row["order_id"],
        kind="transfer",
        platform=network.platform.platform,
        state="new",
        tx_hash="",
        block_number=None,
        gas_used=None,
        amount=int(row["amount"]),
        at=row["made_at"],
        intent=None,
        entries=1,
        detail="",
        receiver=row["payee"],
    )


def _unsent(network: Network, row: sqlite3.Row) -> Deed:
    return Deed(
        id=row["request_id"],
        kind=row["kind"],
        platform=network.channel_platforms[0].platform,
        state="failed" if row["state"] == "failed" else "new",
        tx_hash="",
        block_number=None,
        gas_used=None,
        amount=int(row["amount"]),
        at=row["made_at"],
        intent=None,
        entries=1,
        detail=row["detail"],
        receiver=_receiver([row]),
    )


def _receiver(requests: Sequence[sqlite3.Row]) -> str:
    found = {str(row["payee"]) for row in requests if row["kind"] in _PAYS}
    return found.pop() if len(found) == 1 else ""


def _deed(connection: sqlite3.Connection, network: Network, row: sqlite3.Row) -> Deed:
    area, _, rest = str(row["key"]).partition(":")
    kind, platform, entries, at, detail = area, network.platform.platform, 1, row["signed_at"], ""
    amount, receiver = 0, ""
    if area == "order":
        kind = "transfer"
        receiver, amount = erc20.parse_transfer(row["data"])
    elif area == "multi":
        paid = erc20.parse_transfer_many(row["data"])
        kind, amount, entries = "transfer", sum(units for _, units in paid), len(paid)
        receiver = paid[0][0] if len({payee for payee, _ in paid}) == 1 else ""
    elif area == KEY.removesuffix(":"):
        detail = f"the vault at {vault_of(row['key'])}"
        if row["state"] == "failed" and row["nonce"] is None:
            detail += ": somebody else has put it there"
    elif area == "leave":
        kind = "approve"
    elif area == "vault":
        kind, platform = rest.partition(":")[0], network.channel_platforms[0].platform if network.vault else ""
        kind = "approve" if kind == "leave" else kind
        asked = connection.execute("select * from vault_request where intent = ?", (row["id"],)).fetchall()
        if asked:
            column = "moved" if row["state"] == "final" else "amount"
            amount, entries = sum(int(one[column]) for one in asked), len(asked)
            at, detail = min(one["made_at"] for one in asked), asked[0]["detail"]
            receiver = _receiver(asked)
    if row["state"] == "failed" and not row["tx_hash"] and row["nonce"] is not None:
        detail = "another transaction of the account took its place"
    return Deed(
        id=str(row["id"]),
        kind=kind,
        platform=platform,
        state=row["state"],
        tx_hash=row["tx_hash"] or (row["last_hash"] if row["state"] == "sent" else "") or "",
        block_number=row["block_number"],
        gas_used=row["gas_used"],
        amount=amount,
        at=at,
        intent=row["id"],
        entries=entries,
        detail=detail,
        receiver=receiver,
    )
