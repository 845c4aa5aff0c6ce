"""What an account did once costs nothing at every look, however much that is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from shem.node.db import Database
from shem.node.payment.drivers.evm import erc20, requests
from shem.node.payment.drivers.evm.history import deeds
from shem.node.payment.drivers.evm.store import MIGRATIONS, IntentStore
from shem.node.payment.drivers.networks import PUBLISHED

ME, PAYEE = "0x" + "33" * 20, "0x" + "44" * 20
NETWORK = msgspec.structs.replace(PUBLISHED[-1], token="0x" + "11" * 20, vault="0x" + "22" * 20)


def database(path: Path, old: int) -> Database:
    """``old`` transfers that are final, one under way, one that waits."""
    db = Database(path)
    db.migrate("payment_evm", MIGRATIONS)
    db.migrate("payment_vault", requests.MIGRATIONS)
    call = erc20.transfer(PAYEE, 5)
    with db.transaction() as connection:
        for place in range(old + 2):
            state = "final" if place < old else "sent" if place == old else "new"
            nonce = place if state != "new" else None
            connection.execute(
                "insert into evm_intent (id, key, chain_id, sender, dst, data, value, state, nonce)"
                " values (?, ?, ?, ?, ?, ?, '0', ?, ?)",
                (place + 1, f"order:{place}", NETWORK.chain_id, ME, NETWORK.token, call, state, nonce),
            )
            if nonce is not None:
                row = (f"0x{place:064x}", place + 1, b"raw", 1, 1, 1, float(place))
                connection.execute("insert into evm_attempt values (?, ?, ?, ?, ?, ?, ?)", row)
    return db


def effort(db: Database, do: Callable[[], object]) -> int:
    """In steps of SQLite's machine, by the dozen."""
    counted = []
    db.connection.set_progress_handler(lambda: counted.append(1), 12)
    do()
    db.connection.set_progress_handler(None, 0)
    return len(counted)


@pytest.mark.parametrize("what", ["under way", "waiting", "open", "nonce", "history"])
def test_old_intents_are_not_looked_at(tmp_path: Path, what: str) -> None:
    efforts = []
    for old in (50, 2000):
        db = database(tmp_path / f"{old}.sqlite", old)
        store = IntentStore(db.connection, NETWORK.chain_id, ME)
        do: dict[str, Callable[[], object]] = {
            "under way": store.under_way,
            "waiting": lambda store=store: store.waiting(100),  # type: ignore[misc]
            "open": store.has_open,
            "nonce": store.next_nonce,
            "history": lambda db=db: deeds(db.connection, [NETWORK], ME, 10),  # type: ignore[misc]
        }
        efforts.append(effort(db, do[what]))
        assert [intent.nonce for intent in store.under_way()] == [old]
        db.close()
    assert efforts[1] <= efforts[0] + 2
