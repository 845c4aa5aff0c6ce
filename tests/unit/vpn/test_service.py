"""The address book over its store: whose it is, what survives, what is forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from shem.cogs.clock import ManualClock
from shem.errors import NotFound, Refused
from shem.node.db import MEMORY, Database
from shem.node.vpn import service
from shem.node.vpn.service import MAX_NETWORKS, Networks, TooManyNetworks

ME, THEM, ALICE = ("0x" + digit * 40 for digit in "12a")


def test_it_survives_a_restart_and_keeps_its_order(tmp_path: Path) -> None:
    db = Database(tmp_path / "node.db")
    networks = Networks(db, ManualClock())
    made = networks.create(ME, "192.168.0.0/24", None, None)
    networks.add_address(ME, made.network_id, "192.168.0.9")
    networks.add_address(ME, made.network_id, "192.168.0.4")
    networks.add_node(ME, made.network_id, ALICE.upper().replace("X", "x"), "192.168.0.3")
    networks.add_node(ME, made.network_id, ALICE, "192.168.0.2")
    before = networks.get(ME, made.network_id)
    db.close()
    db = Database(tmp_path / "node.db")
    try:
        again = Networks(db, ManualClock())
        assert again.list(ME) == [before]
        assert before.addresses == ("192.168.0.1", "192.168.0.9", "192.168.0.4")
        assert [(member.node_id, member.ip) for member in before.nodes] == [
            (ALICE, "192.168.0.3"),
            (ALICE, "192.168.0.2"),
        ]
        again.remove_node(ME, made.network_id, ALICE)
        assert again.get(ME, made.network_id).nodes == ()
        again.remove(ME, made.network_id)
        assert again.list(ME) == []
        assert db.connection.execute("select count(*) from vpn_address").fetchone()[0] == 0
    finally:
        db.close()


def test_nobody_sees_or_changes_anothers() -> None:
    networks = Networks(Database(MEMORY), ManualClock())
    made = networks.create(ME, "192.168.0.0/24", None, None)
    assert networks.list(THEM) == []
    for call in (
        lambda: networks.get(THEM, made.network_id),
        lambda: networks.remove(THEM, made.network_id),
        lambda: networks.add_address(THEM, made.network_id, "192.168.0.2"),
        lambda: networks.add_node(THEM, made.network_id, ALICE, "192.168.0.2"),
        lambda: networks.remove_node(THEM, made.network_id, ALICE),
    ):
        with pytest.raises(NotFound):
            call()
    assert networks.get(ME, made.network_id) == made


def test_a_refused_change_changes_nothing() -> None:
    networks = Networks(Database(MEMORY), ManualClock())
    made = networks.create(ME, "192.168.0.0/24", None, None)
    for node, ip in ((ALICE, "10.0.0.1"), ("nope", "192.168.0.2")):
        with pytest.raises(Refused):
            networks.add_node(ME, made.network_id, node, ip)
    assert networks.get(ME, made.network_id) == made


async def test_networks_that_programs_left_behind_make_way_after_a_day() -> None:
    clock = ManualClock()
    networks = Networks(Database(MEMORY), clock)
    kept = networks.create(ME, "10.0.0.0/24", None, None)
    for _ in range(MAX_NETWORKS - 1):
        networks.create(ME, "10.0.0.0/24", None, None)
    with pytest.raises(TooManyNetworks):
        networks.create(ME, "10.0.0.0/24", None, None)
    networks.create(THEM, "10.0.0.0/24", None, None)
    await clock.advance(service.FORGOTTEN_AFTER.total_seconds() + 1)
    networks.add_node(ME, kept.network_id, ALICE, "10.0.0.2")
    new = networks.create(ME, "10.0.0.0/24", None, None)
    assert [network.network_id for network in networks.list(ME)] == [kept.network_id, new.network_id]
    assert len(networks.list(THEM)) == 1
