"""A provider's node that has more documents than one answer holds."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from shem.client.http import ApiClient
from shem.client.payment import PaymentApi
from shem.cogs.clock import SystemClock
from shem.node.rest import payment as rest
from shem.provider.accountant import Accountant


async def test_what_was_asked_is_known_however_many_documents_there_are(world, alice, bob, provider, monkeypatch):
    """Else the last invoice after a restart would ask for less than its notes did, and be refused."""
    monkeypatch.setattr(rest, "MAX_LIST", 10)
    began = datetime.now(UTC)
    with bob.db.transaction():
        for _ in range(25):
            earlier = world.deals.make(alice.id, bob.id)
            bob.note(world.deals.activity(earlier), "1")
            bob.invoice(earlier, "2")
    deal = world.deals.make(alice.id, bob.id)
    activity = world.deals.activity(deal)
    for amount in ("1", "2", "3"):
        bob.note(activity, amount)
    bob.invoice(deal, "4")
    async with ApiClient(provider.base, bob.id) as http:
        accountant = Accountant(PaymentApi(http), SystemClock())
        assert await accountant.asked_before(deal, began) == {activity: "3"}
        invoiced = await accountant.invoiced(began)
    assert (len(invoiced), invoiced[deal].amount) == (26, "4")


@pytest.mark.parametrize("given", [1, 3])
async def test_a_node_that_says_the_same_again_is_asked_twice_at_most(world, alice, bob, provider, given):
    asked = 0

    class Stubborn(PaymentApi):
        async def debit_notes(self, *, after=None, max_items=None):
            nonlocal asked
            asked += 1
            return await super().debit_notes(max_items=given)

    activity = world.deals.activity(world.deals.make(alice.id, bob.id))
    began = datetime.now(UTC)
    for amount in ("1", "2", "3"):
        bob.note(activity, amount)
    async with ApiClient(provider.base, bob.id) as http:
        accountant = Accountant(Stubborn(http), SystemClock())
        await accountant.asked_before("-", began)
    assert asked == 2
