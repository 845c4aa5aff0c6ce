"""From an offer to a paid invoice, and every way an agreement may end."""

from __future__ import annotations

import pytest

from tests.network.provider.conftest import World, until


async def test_from_offer_to_paid_invoice(world: World) -> None:
    requestor = world.requestor
    async with world.agent():
        rental = await requestor.rent(world.package)
        await rental.open()
        result = await rental.shell("echo $GREETING; pwd; id -u")
        assert (result.result, result.stdout) == ("Ok", "hello\n/work\n0\n")
        await requestor.end(rental)
        invoice = await requestor.invoice(rental.agreement_id)
        assert float(invoice.amount) > 0.1
        await requestor.accept(invoice)

        async def settled() -> bool:
            return (await requestor.payment.invoice(invoice.invoice_id)).status == "SETTLED"

        await until(settled)
        assert len(await requestor.invoices(rental.agreement_id)) == 1
    assert world.bank.balances[world.bob.id] == pytest.approx(float(invoice.amount) * 10**18)
