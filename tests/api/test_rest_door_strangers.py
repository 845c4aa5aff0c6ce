"""Another identity of the same node, with every id of somebody's deal: it is turned away, and nothing of the deal changes."""

from __future__ import annotations

import json
import secrets

import pytest

from tests.api.conftest import MARKET, Door, World

pytestmark = pytest.mark.asyncio(loop_scope="session")

BODY = {
    "properties": {}, "constraints": "()", "message": "mine now", "totalAmount": "1", "totalAmountAccepted": "0",
    "rejectionReason": "BAD_SERVICE", "text": '[{"terminate":{}}]', "state": ["Terminated", None], "ip": "192.168.0.9",
}  # fmt: skip
KEPT = ("subscription", "proposal", "agreement", "allocation", "document", "activity")


def deal_rows(door: Door) -> dict[str, list[tuple[object, ...]]]:
    """Every row of the tables that hold deals, work and money."""
    connection = door.node.db.connection
    names = [row[0] for row in connection.execute("select name from sqlite_master where type = 'table' order by name")]
    return {
        name: sorted((tuple(row) for row in connection.execute(f"select * from {name}")), key=repr)
        for name in names
        if any(word in name for word in KEPT) and "event" not in name
    }


async def test_ids_of_another_identity_open_nothing(world: World) -> None:
    deal = await world.deal(fresh=True)
    key = world.alice.node.keys.create(f"stranger {secrets.token_hex(4)}", "0x" + secrets.token_hex(20))
    stranger = Door(world.alice.node, key, world.alice.session)
    before = deal_rows(world.alice)
    assert len(before) >= 4
    body = {
        **BODY,
        "allocationId": deal.allocation_id,
        "agreementId": deal.agreement_id,
        "activityId": deal.activity_id,
    }
    body["proposalId"], body["validTo"] = deal.proposals["demand"], "2999-01-01T00:00:00Z"
    tried, opened = 0, []
    for call in stranger.calls:
        if "{id}" in call.template or "{activity_id}" in call.template:
            tried += 1
            sent = None if call.method == "GET" else json.dumps(body).encode()
            answer = await stranger(call.method, f"{deal.fill(call)}?timeout=0.05", sent)
            if answer.status < 400:
                opened.append(str(call))
    assert tried > 40
    assert opened == []
    assert (await world.alice("GET", f"{MARKET}/agreements/{deal.agreement_id}")).status == 200
    assert deal_rows(world.alice) == before
