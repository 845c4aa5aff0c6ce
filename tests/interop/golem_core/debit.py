"""Short intervals of debit notes and payments negotiated by the client's own negotiator, and notes paid while work lasts."""

import asyncio

from common import Managers, run
from golem.managers import MidAgreementPaymentsNegotiator, NegotiatingPlugin, PaymentPlatformNegotiator
from golem.node import GolemNode
from golem.resources import Deploy, NewDebitNote, Run, Start

INTERVAL, PAYMENT = "golem.com.scheme.payu.debit-note.interval-sec?", "golem.com.scheme.payu.payment-timeout-sec?"
NOTES = 4


class Short(MidAgreementPaymentsNegotiator):
    """Takes whatever the provider offers down to two and four seconds, and proposes that."""

    async def __call__(self, demand_data, proposal_data):
        demand_data.properties[INTERVAL] = 2
        demand_data.properties[PAYMENT] = 4


async def main():
    notes = []
    plugins = [NegotiatingPlugin(proposal_negotiators=(PaymentPlatformNegotiator(), Short()))]
    async with GolemNode() as golem, Managers(golem, plugins=plugins) as managers:

        async def keep(event):
            notes.append(event.resource)

        await golem.event_bus.on(NewDebitNote, keep)
        agreement = await managers.agreement.get_agreement()
        activity = await agreement.create_activity()
        batch = await activity.execute_commands(Deploy(), Start(), Run("sleep 1000"))
        async with asyncio.timeout(90):
            while len([n for n in notes if n.data and n.data.status != "RECEIVED"]) < NOTES:
                for note in notes:
                    await note.get_data(force=True)
                await asyncio.sleep(0.2)  # the manager accepts notes and tells nobody
        properties = (await agreement.get_data()).offer.properties
        await activity.destroy()
        await batch.wait(ignore_errors=True)
    return {
        "negotiated": [properties[INTERVAL], properties[PAYMENT]],
        "statuses": sorted({note.data.status for note in notes[:NOTES]}),
        "amounts": [note.data.total_amount_due for note in notes],
        "payable": len([note for note in notes if note.data.payment_due_date]),
        "vectors": all(isinstance(note.data.usage_counter_vector, list) for note in notes),
    }


run(main())
