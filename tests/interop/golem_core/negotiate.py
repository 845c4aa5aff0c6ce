"""An agreement of days: intervals of notes and payments are negotiated in turns, by the client's own rules, until both
sides say the same. (ray-on-golem rents like this.)
"""

from datetime import timedelta

from common import Managers, ready, run
from golem.managers import MidAgreementPaymentsNegotiator, NegotiatingPlugin, PaymentPlatformNegotiator
from golem.node import GolemNode
from golem.resources import NewProposal, Run

INTERVAL, PAYMENT = "golem.com.scheme.payu.debit-note.interval-sec?", "golem.com.scheme.payu.payment-timeout-sec?"


async def main():
    counters = []
    negotiators = (
        PaymentPlatformNegotiator(),
        MidAgreementPaymentsNegotiator(
            optimal_debit_note_interval=timedelta(minutes=3), optimal_payment_timeout=timedelta(hours=12)
        ),
    )

    async def count(event):
        if (await event.resource.get_data()).state == "Draft":
            counters.append(event.resource.id)

    async with GolemNode() as golem:
        await golem.event_bus.on(NewProposal, count)
        plugins = [NegotiatingPlugin(proposal_negotiators=negotiators)]
        async with Managers(golem, plugins=plugins, lifetime=timedelta(days=365)) as managers:
            agreement = await managers.agreement.get_agreement()
            activity = await ready(await agreement.create_activity())
            batch = await activity.execute_commands(Run("echo done"))
            said = (await batch.wait(60))[0].stdout
            data = await agreement.get_data()
            await activity.destroy()
    return {
        "said": said,
        "offered": {"interval": data.offer.properties[INTERVAL], "payment": data.offer.properties[PAYMENT]},
        "demanded": {"interval": data.demand.properties[INTERVAL], "payment": data.demand.properties[PAYMENT]},
        "counters": len(counters),
    }


run(main())
