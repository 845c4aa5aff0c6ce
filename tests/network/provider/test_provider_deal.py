"""From an offer to a paid invoice, and every way an agreement may end."""

from __future__ import annotations

import asyncio
import itertools
import time
from datetime import UTC, datetime, timedelta

import pytest

from shem.client.market import MarketApi
from shem.errors import Misconfigured, PeerFailed, Refused
from shem.node.payment.drivers.testmoney import PLATFORM
from shem.provider.config import ResourceLimits, Rules
from shem.provider.presets import FREE_PRESET
from shem.terms.amounts import format_amount
from shem.terms.pricing import LinearPricing
from shem.wire.market import ProposalEvent, ProposalRejectedEvent
from shem.wire.payment import Acceptance, DebitNote
from tests.network.provider.conftest import Rental, World, run, until

INTERVAL = "golem.com.scheme.payu.debit-note.interval-sec?"
ACCEPT_TIMEOUT = "golem.com.payment.debit-notes.accept-timeout?"
PAYMENT_TIMEOUT = "golem.com.scheme.payu.payment-timeout-sec?"
QUICK = Rules(
    interval_range_s=(0.1, 10),
    payment_timeout_range_s=(0.1, 60),
    min_accept_timeout_s=0.1,
    min_expiration_s=0.1,
    idle_limit_s=0.5,
)


async def test_from_offer_to_paid_invoice(world: World) -> None:
    requestor = world.requestor
    async with world.agent() as agent:
        assert agent.facts["driver"] == "bwrap"
        rental = await requestor.rent(world.package)
        await rental.open()
        result = await rental.shell("echo $GREETING; pwd; id -u")
        assert (result.result, result.stdout) == ("Ok", "hello\n/work\n0\n")
        await requestor.end(rental)
        invoice = await requestor.invoice(rental.agreement_id)
        usage = (await requestor.activities.usage(rental.activity_id)).current_usage
        assert usage is not None
        pricing = LinearPricing.from_properties((await world.agreement(rental.agreement_id)).offer.properties)
        assert invoice.amount == format_amount(pricing.cost(usage))
        await requestor.accept(invoice)

        async def settled() -> bool:
            return (await requestor.payment.invoice(invoice.invoice_id)).status == "SETTLED"

        await until(settled)
        assert not agent.deals
    assert len(await requestor.invoices(rental.agreement_id)) == 1
    assert world.bank.balances[world.bob.id] == pricing.cost(usage)


async def test_nothing_used_is_invoiced_at_nothing(world: World) -> None:
    async with world.agent():
        rental = await world.requestor.rent(world.package)
        await world.requestor.end(rental)
        assert (await world.requestor.invoice(rental.agreement_id)).amount == "0"


async def test_a_free_preset(world: World) -> None:
    async with world.agent(presets=(FREE_PRESET,)):
        rental = await world.requestor.rent(world.package)
        await rental.open()
        await world.requestor.end(rental)
        assert (await world.requestor.invoice(rental.agreement_id)).amount == "0"


async def test_a_price_that_could_never_be_billed_is_not_offered(world: World) -> None:
    async with world.agent():
        (offer,) = await MarketApi(world.provider_http).offers()
        platforms = [name for name in offer.properties if name.startswith("golem.com.payment.platform.")]
        assert platforms == [f"golem.com.payment.platform.{PLATFORM.platform}.address"]
    await world.bob.stop()
    world.bob.moves_money = False
    await world.bob.start()
    with pytest.raises(Misconfigured) as caught:
        async with world.agent():
            pass
    assert caught.value.code == "no_paying_platform"
    async with world.agent(presets=(FREE_PRESET,)) as agent:
        assert agent.facts["offers"]


async def test_debit_notes_follow_the_interval(world: World) -> None:
    requestor = world.requestor
    async with world.agent(rules=QUICK):
        rental = await requestor.rent(world.package, **{INTERVAL: 0.4, ACCEPT_TIMEOUT: 30})
        await rental.open()

        async def three() -> list[DebitNote] | None:
            notes = [note for note in await requestor.payment.debit_notes() if note.agreement_id == rental.agreement_id]
            return notes if len(notes) >= 3 else None

        notes = await until(three)
        amounts = [float(note.total_amount_due) for note in notes]
        assert amounts == sorted(amounts)
        assert amounts[0] > 0.1
        assert all(note.payment_due_date is None and note.usage_counter_vector for note in notes)
        gaps = [(b.timestamp - a.timestamp).total_seconds() for a, b in itertools.pairwise(notes)]
        assert all(0.2 < gap < 2 for gap in gaps)
        await requestor.end(rental)
        assert float((await requestor.invoice(rental.agreement_id)).amount) >= amounts[-1]


async def test_accepted_notes_keep_an_agreement_alive(world: World) -> None:
    requestor = world.requestor
    async with world.agent(rules=QUICK):
        rental = await requestor.rent(world.package, **{INTERVAL: 0.3, ACCEPT_TIMEOUT: 2, PAYMENT_TIMEOUT: 60})
        await rental.open()
        accepted: set[str] = set()

        async def accept() -> bool:
            for note in await requestor.payment.debit_notes():
                if note.status == "RECEIVED":
                    acceptance = Acceptance(
                        total_amount_accepted=note.total_amount_due, allocation_id=requestor.allocation
                    )
                    await requestor.payment.accept_debit_note(note.debit_note_id, acceptance)
                    accepted.add(note.debit_note_id)
            return len(accepted) >= 8

        await until(accept)
        assert await requestor.agreement_state(rental.agreement_id) == "Approved"
        await requestor.end(rental)
        await requestor.invoice(rental.agreement_id)


async def test_notes_nobody_accepts_end_the_agreement(world: World) -> None:
    requestor = world.requestor
    async with world.agent(rules=QUICK):
        rental = await requestor.rent(world.package, **{INTERVAL: 0.3, ACCEPT_TIMEOUT: 0.3})
        await rental.create()
        reason = await requestor.ended(rental.agreement_id)
        assert reason["golem.provider.code"] == "DebitNotesDeadline"
        assert await rental.state() == "Terminated"
        assert float((await requestor.invoice(rental.agreement_id)).amount) >= 0.1


async def test_notes_nobody_pays_end_the_agreement(world: World) -> None:
    requestor = world.requestor
    async with world.agent(rules=QUICK):
        rental = await requestor.rent(world.package, **{INTERVAL: 0.3, PAYMENT_TIMEOUT: 0.3})
        await rental.create()
        assert (await requestor.ended(rental.agreement_id))["golem.provider.code"] == "DebitNoteNotPaid"


async def test_an_agreement_without_an_activity_is_ended(world: World) -> None:
    async with world.agent(rules=QUICK):
        rental = await world.requestor.rent(world.package)
        assert (await world.requestor.ended(rental.agreement_id))["golem.provider.code"] == "NoActivity"
        assert (await world.requestor.invoice(rental.agreement_id)).amount == "0"


async def test_a_demand_for_one_activity_is_ended_after_it(world: World) -> None:
    requestor = world.requestor
    async with world.agent():
        rental = await requestor.rent(world.package, **{"golem.srv.caps.multi-activity": None})
        await rental.open()
        await requestor.activities.destroy(rental.activity_id, timeout_s=10)
        assert (await requestor.ended(rental.agreement_id))["golem.provider.code"] == "Success"
        await requestor.invoice(rental.agreement_id)


async def test_an_agreement_expires(world: World) -> None:
    requestor = world.requestor
    async with world.agent(rules=QUICK):
        soon = int((datetime.now(UTC) + timedelta(seconds=3)).timestamp() * 1000)
        rental = await requestor.rent(world.package, **{"golem.srv.comp.expiration": soon})
        await rental.create()
        assert (await requestor.ended(rental.agreement_id))["golem.provider.code"] == "Expired"
        assert await rental.state() == "Terminated"


async def test_several_activities_on_one_agreement(world: World) -> None:
    requestor = world.requestor
    async with world.agent():
        first = await requestor.rent(world.package)
        second = Rental(requestor, first.agreement_id)
        await asyncio.gather(first.open(), second.open())
        await first.shell("echo 1 > /work/f")
        assert (await second.shell("ls /work")).stdout == ""
        await requestor.activities.destroy(first.activity_id, timeout_s=10)
        assert (await second.run("/bin/true")).result == "Ok"
        await requestor.end(second)
        invoice = await requestor.invoice(first.agreement_id)
        assert set(invoice.activity_ids) == {first.activity_id, second.activity_id}
        assert float(invoice.amount) > 0.2, "a start price for each"


async def test_several_agreements_at_once_and_no_more_than_fit(world: World) -> None:
    requestor = world.requestor
    async with world.agent() as agent:
        rentals = [await requestor.rent(world.package) for _ in range(2)]
        await asyncio.gather(*(rental.open() for rental in rentals))
        demand_id, refusal = await requestor.negotiate(world.package)
        assert isinstance(refusal, ProposalRejectedEvent)
        assert refusal.reason is not None
        assert refusal.reason["code"] == "no_capacity"
        assert refusal.reason["golem.proposal.rejection.is-final"] is False
        await requestor.end(rentals[0])
        again = await requestor.next_event(demand_id)
        assert isinstance(again, ProposalEvent), "room again: a fresh proposal"
        assert again.proposal.state == "Initial"
        third = await requestor.rent(world.package)
        await third.open()
        assert len(agent.deals) == 2
        for rental in (rentals[1], third):
            await requestor.end(rental)
        for rental in (*rentals, third):
            await requestor.invoice(rental.agreement_id)


async def test_the_last_place_goes_to_one_of_two(world: World) -> None:
    requestor = world.requestor
    limits = ResourceLimits(cpu_threads=1, memory_gib=1, storage_gib=1, max_agreements=1)
    async with world.agent(limits=limits):
        answers = [(await requestor.negotiate(world.package))[1] for _ in range(2)]
        assert all(isinstance(answer, ProposalEvent) for answer in answers)
        outcomes = await asyncio.gather(
            *(requestor.agree(answer.proposal.proposal_id) for answer in answers if isinstance(answer, ProposalEvent)),
            return_exceptions=True,
        )
        won = [outcome for outcome in outcomes if isinstance(outcome, Rental)]
        lost = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
        assert (len(won), len(lost)) == (1, 1), outcomes


async def test_stopping_ends_and_bills_everything(world: World) -> None:
    requestor = world.requestor
    async with world.agent():
        rental = await requestor.rent(world.package)
        await rental.open()
        batch = await requestor.activities.exec(rental.activity_id, [run("/bin/sleep", "60")])
        await until(lambda: requestor.activities.running(rental.activity_id))
    reason = await requestor.ended(rental.agreement_id)
    assert (reason["kind"], reason["golem.provider.code"]) == ("AgreementTerminatedEvent", "Shutdown")
    assert await rental.state() == "Terminated"
    (result,) = await rental.finish(batch)
    assert result.message is not None
    assert result.message.startswith("cancelled: ")
    assert float((await requestor.invoice(rental.agreement_id)).amount) > 0.1
    assert await MarketApi(world.provider_http).offers() == []
    assert not list((world.root / "agent" / "units").glob("*/*"))


async def test_renting_and_running_is_quick(world: World) -> None:
    requestor = world.requestor
    async with world.agent():
        await requestor.end(await (await requestor.rent(world.package)).open())
        began = time.perf_counter()
        rental = await requestor.rent(world.package)
        await rental.open()
        assert (await rental.shell("echo first")).stdout == "first\n"
        assert time.perf_counter() - began < 5.0
        await requestor.end(rental)


async def test_a_provider_away_is_an_error_not_a_wait(world: World) -> None:
    requestor = world.requestor
    async with world.agent():
        rental = await requestor.rent(world.package)
    with pytest.raises((PeerFailed, Refused)):
        await rental.create()


async def test_an_end_while_the_own_node_is_away_is_made_up_for(world: World, caplog: pytest.LogCaptureFixture) -> None:
    requestor = world.requestor
    async with world.agent() as agent:
        rental = await requestor.rent(world.package)
        deal = agent.deals[rental.agreement_id]
        await world.bob.stop()
        caplog.clear()
        deal.stop("NoActivity", "nothing happens")

        async def tried() -> bool:
            return any(
                record.name == "shem.provider.deal" and record.levelname == "WARNING" for record in caplog.records
            )

        await until(tried)
        await world.bob.start()
        assert (await requestor.ended(rental.agreement_id, timeout_s=30))["golem.provider.code"] == "NoActivity"
        assert (await requestor.invoice(rental.agreement_id, timeout_s=30)).amount == "0"
    assert len(await requestor.invoices(rental.agreement_id)) == 1


async def test_a_demand_for_one_activity_gets_no_second(world: World) -> None:
    requestor = world.requestor
    async with world.agent():
        rental = await requestor.rent(world.package, **{"golem.srv.caps.multi-activity": False})
        await rental.create()
        with pytest.raises((Refused, PeerFailed, TimeoutError)):
            await requestor.activities.create(rental.agreement_id, timeout_s=5)
        assert await rental.state() != "Terminated"
        await requestor.end(rental)
        assert (await requestor.invoice(rental.agreement_id)).activity_ids
