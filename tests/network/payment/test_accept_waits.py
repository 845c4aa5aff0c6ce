"""An acceptance that comes before enough is reserved waits for it, and no longer than its caller wants."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shem.node.payment.channel import NoChannel
from shem.wire.payment import Acceptance
from tests.network.payment.test_channels import PLATFORM, agree, channel


@pytest.fixture
async def world(tmp_path: Path, open_channels: Any) -> AsyncIterator[Any]:
    async with open_channels(tmp_path) as made:
        yield made


async def accept(node: Any, note: str, amount: str, allocation: str, wait_s: float) -> None:
    body = Acceptance(total_amount_accepted=amount, allocation_id=allocation)
    await node.payments.accept(node.id, "debit-note", note, body, cover_wait_s=wait_s)


async def test_a_bill_waits_for_its_channel_and_is_accepted_when_it_is_there(world, alice, bob, wait):
    deal = agree(world, alice, bob)
    note = await bob.bill_note(world.deals.activity(deal), "0.01")
    allocation = await alice.allocate("10", platform=PLATFORM)
    for wait_s in (0, 0.001):
        with pytest.raises(NoChannel):
            await accept(alice, note, "0.01", allocation, wait_s)
    assert alice.state(note) == "RECEIVED"
    await accept(alice, note, "0.01", allocation, 30)
    await wait(lambda: bob.state(note) == "ACCEPTED", "the voucher")
    assert channel(alice).signed == 10**16
