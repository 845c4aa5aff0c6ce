"""The provider's side of money on a real chain, by transfer and by channel: paid in the middle of long agreements, and
gone with the right reason when it is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shem.client.cover import CoverApi
from shem.client.payment import PaymentApi
from shem.cogs.tasks import TaskScope
from shem.errors import MoneyShort, PeerFailed, Refused
from shem.node.payment.service import PaymentConfig
from shem.provider.accountant import Accountant
from shem.provider.agent import ProviderAgent
from shem.provider.billing import Bill, SendNote
from shem.provider.config import Rules
from shem.provider.presets import Preset
from shem.sdk import Golem, events
from shem.sdk.hiring import NoProviders
from shem.terms.amounts import format_amount, parse_amount
from shem.wire.market import ProposalEvent, ProposalRejectedEvent
from shem.wire.payment import Acceptance, DebitNote
from tests.network.provider.conftest import ChainWorld, Rental, until

pytestmark = pytest.mark.timeout(120)

TRANSFER, CHANNEL = "erc20-devnet-tglm", "channel-devnet-tglm"
BOTH = pytest.mark.parametrize("platform", [TRANSFER, CHANNEL])
INTERVAL = "golem.com.scheme.payu.debit-note.interval-sec?"
ACCEPT_TIMEOUT = "golem.com.payment.debit-notes.accept-timeout?"
PAYMENT_TIMEOUT = "golem.com.scheme.payu.payment-timeout-sec?"
TENTH = Preset(name="test", start="0.1", env_per_hour="360")
"""0.1 tGLM to start, 0.1 for each second."""
QUICK = Rules(
    interval_range_s=(0.1, 10),
    payment_timeout_range_s=(0.1, 60),
    min_accept_timeout_s=0.1,
    min_expiration_s=0.1,
    idle_limit_s=20,
    cover_s=20,
    least_cover_s=3,
    cover_spare_s=1,
)


@asynccontextmanager
async def opened(root: Path, platform: str, **config: Any) -> AsyncIterator[ChainWorld]:
    async with ChainWorld(root, platform, PaymentConfig(**config)) as world:
        yield world


@asynccontextmanager
async def accepting(world: ChainWorld) -> AsyncIterator[list[DebitNote]]:
    """A requestor that accepts every note at once; those it has accepted."""
    requestor, accepted = world.requestor, []

    async def loop() -> None:
        after = None
        while True:
            try:
                for event in await requestor.payment.debit_note_events(after=after, timeout_s=5, provider_events=()):
                    note = await requestor.payment.debit_note(event.debit_note_id)
                    if note.status == "RECEIVED" and await accept(note):
                        accepted.append(note)
                    after = event.event_date
            except PeerFailed:
                await asyncio.sleep(0.1)  # the node is being restarted

    async def accept(note: DebitNote) -> bool:
        try:
            await requestor.payment.accept_debit_note(
                note.debit_note_id,
                Acceptance(total_amount_accepted=note.total_amount_due, allocation_id=requestor.allocation),
            )
        except MoneyShort:
            return False
        return True

    async with TaskScope("accepting") as scope:
        scope.start(loop(), "accepting")
        yield accepted


async def paid(world: ChainWorld, rental: Rental) -> int:
    """Accept the invoice, give the allocation back, and wait for the money: what came, in base units."""
    requestor = world.requestor
    invoice = await requestor.invoice(rental.agreement_id)
    await requestor.accept(invoice)
    await requestor.payment.release_allocation(requestor.allocation)

    async def settled() -> bool:
        return (await PaymentApi(world.provider_http).invoice(invoice.invoice_id)).status == "SETTLED"

    await until(settled, 30)
    got = world.tokens(world.bob.id)
    assert got == parse_amount(invoice.amount)
    return got


@BOTH
async def test_notes_are_paid_in_the_middle_of_a_long_agreement(tmp_path: Path, platform: str) -> None:
    """By transfer a note is paid when the chain says so, by channel when it is accepted: no reserve goes to the chain."""
    async with opened(tmp_path, platform) as world, world.agent(rules=QUICK, presets=(TENTH,)):
        requestor = world.requestor
        async with accepting(world) as notes:
            rental = await requestor.rent(world.package, **{INTERVAL: 0.3, PAYMENT_TIMEOUT: 1.2, ACCEPT_TIMEOUT: 20})
            await rental.open()

            async def enough() -> bool:
                due = [note.payment_due_date for note in notes if note.payment_due_date is not None]
                return len(due) >= 2 and datetime.now(UTC) > due[0] + timedelta(seconds=1.1)

            await until(enough, 30)
            assert await requestor.agreement_state(rental.agreement_id) == "Approved"
            await requestor.end(rental)
            assert await paid(world, rental) > 3 * 10**17


@BOTH
async def test_nodes_tell_their_agents_what_is_reserved(tmp_path: Path, platform: str) -> None:
    async with opened(tmp_path, platform) as world, world.agent(rules=QUICK, presets=(TENTH,)):
        rental = await world.requestor.rent(world.package)
        await rental.create()
        found = await CoverApi(world.provider_http).cover(rental.agreement_id)
        assert (found.platform, found.by_channel, found.finality_sec) == (platform, platform == CHANNEL, 1.0)
        if found.by_channel:
            told = (found.started, found.lacks, found.wanted, found.least, found.accepted, found.credit)
            assert told == (True, None, "2.1", "0.4", "0", "0")
            assert found.room == "2.1"
        else:
            assert (found.started, found.room, found.until) == (None, None, None)
        for mine in (rental.agreement_id, "ab" * 32, "%2e%2e"):
            with pytest.raises(Refused):
                await CoverApi(world.requestor.http).cover(mine)


@BOTH
async def test_notes_that_nobody_accepts_end_the_agreement(tmp_path: Path, platform: str) -> None:
    async with opened(tmp_path, platform) as world, world.agent(rules=QUICK, presets=(TENTH,)):
        rental = await world.requestor.rent(world.package, **{INTERVAL: 0.3, ACCEPT_TIMEOUT: 0.5})
        await rental.create()
        reason = await world.requestor.ended(rental.agreement_id)
        assert (reason["golem.provider.code"], await rental.state()) == ("DebitNotesDeadline", "Terminated")
        await paid(world, rental)


@pytest.mark.slow
@pytest.mark.parametrize("who", ["alice", "bob"])
async def test_a_node_restarts_under_work_that_is_paid_by_channel(tmp_path: Path, who: str) -> None:
    async with opened(tmp_path, CHANNEL) as world, world.agent(rules=QUICK, presets=(TENTH,)):
        requestor = world.requestor
        async with accepting(world) as notes:
            rental = await requestor.rent(world.package, **{INTERVAL: 0.3, ACCEPT_TIMEOUT: 60})
            await rental.create()
            await until(lambda: _more_than(notes, 1), 30)
            node = getattr(world, who)
            world.alice.bootstrap = [world.bob]  # it comes back at another address
            await node.stop()
            await node.start()
            held = len(notes)
            await until(lambda: _more_than(notes, held + 2), 30)
            assert await requestor.agreement_state(rental.agreement_id) == "Approved"
            await requestor.end(rental)
            assert await paid(world, rental) > 2 * 10**17


async def _more_than(notes: list[DebitNote], count: int) -> bool:
    return len(notes) > count


@pytest.mark.slow
async def test_who_has_not_paid_in_time_gets_nothing_new_until_it_has(tmp_path: Path) -> None:
    rules = msgspec.structs.replace(QUICK, debt_grace_s=0, invoice_due_s=0)
    async with opened(tmp_path, TRANSFER) as world, world.agent(rules=rules, presets=(TENTH,)):
        requestor = world.requestor
        rental = await requestor.rent(world.package)
        await rental.create()
        await requestor.end(rental)
        invoice = await requestor.invoice(rental.agreement_id)
        world.chain.rpc.call("shem_setAutomine", [False])
        await requestor.accept(invoice)

        async def refused() -> bool:
            _, answer = await requestor.negotiate(world.package)
            reason = (isinstance(answer, ProposalRejectedEvent) and answer.reason) or {}
            return reason.get("code") == "overdue_payments"

        await until(refused)
        world.chain.rpc.call("shem_setAutomine", [True])

        async def served() -> bool:
            return not await refused()

        await until(served, 30)


@BOTH
@pytest.mark.slow
async def test_a_chain_that_stands_still_ends_what_is_paid_by_transfer(tmp_path: Path, platform: str) -> None:
    """A voucher in hand needs no chain; a transfer that does not come in time is none."""
    async with opened(tmp_path, platform) as world, world.agent(rules=QUICK, presets=(TENTH,)):
        requestor = world.requestor
        async with accepting(world) as notes:
            rental = await requestor.rent(world.package, **{INTERVAL: 0.3, PAYMENT_TIMEOUT: 0.9, ACCEPT_TIMEOUT: 20})
            await rental.create()
            world.chain.rpc.call("shem_setAutomine", [False])
            if platform == TRANSFER:
                reason = await requestor.ended(rental.agreement_id)
                assert reason["golem.provider.code"] == "DebitNoteNotPaid"
            else:
                due = await until(lambda: _payable(notes, 3))
                await until(lambda: _past(due + timedelta(seconds=1.2)))
                assert await requestor.agreement_state(rental.agreement_id) == "Approved"
                await requestor.end(rental)
            world.chain.rpc.call("shem_setAutomine", [True])
            await paid(world, rental)


async def _payable(notes: list[DebitNote], count: int) -> datetime | None:
    due = [note.payment_due_date for note in notes if note.payment_due_date is not None]
    return due[count - 1] if len(due) >= count else None


async def _past(moment: datetime) -> bool:
    return datetime.now(UTC) > moment


@pytest.mark.parametrize(("budget", "why"), [("", "has reserved no money"), ("0.3", "0.3 are left, 0.4 are needed")])
async def test_a_requestor_that_reserves_nothing_or_too_little_gets_no_work(
    tmp_path: Path, budget: str, why: str
) -> None:
    async with opened(tmp_path, CHANNEL, cover_timeout_s=1.5) as world, world.agent(rules=QUICK, presets=(TENTH,)):
        requestor = world.requestor
        requestor.budget = budget or "5"
        _, answer = await requestor.negotiate(world.package)
        assert isinstance(answer, ProposalEvent)
        if not budget:
            await requestor.payment.release_allocation(requestor.allocation)
        rental = await requestor.agree(answer.proposal.proposal_id)
        with pytest.raises((PeerFailed, Refused)) as caught:
            await rental.create()
        assert getattr(caught.value, "code", "") in ("no_cover", "agreement_not_approved")
        reason = await requestor.ended(rental.agreement_id)
        assert reason["golem.provider.code"] == "NoCover"
        assert why in reason["message"]
        assert (await requestor.invoice(rental.agreement_id)).amount == "0"


@pytest.mark.slow
async def test_work_stops_when_what_is_reserved_is_used_up_and_all_of_it_is_paid(tmp_path: Path) -> None:
    async with opened(tmp_path, CHANNEL) as world, world.agent(rules=QUICK, presets=(TENTH,)):
        requestor = world.requestor
        requestor.budget = "0.9"
        async with accepting(world):
            rental = await requestor.rent(world.package, **{INTERVAL: 0.4})
            await rental.create()
            reason = await requestor.ended(rental.agreement_id, timeout_s=40)
            assert reason["golem.provider.code"] == "CoverUsedUp"
            assert 5 * 10**17 < await paid(world, rental) <= 9 * 10**17


@pytest.mark.slow
async def test_two_agreements_that_use_up_one_reserve_are_both_paid(tmp_path: Path) -> None:
    """Neither is noted in between; each has its part of what is reserved, so both bills can be accepted."""
    rules = Rules(cover_s=4, least_cover_s=3, cover_spare_s=0)
    async with opened(tmp_path, CHANNEL) as world, world.agent(rules=rules, presets=(TENTH,)):
        requestor = world.requestor
        requestor.budget = "1"
        rentals = [await requestor.rent(world.package, **{INTERVAL: 60}) for _ in range(2)]
        for rental in rentals:
            await rental.create()
        for rental in rentals:
            assert (await requestor.ended(rental.agreement_id, timeout_s=40))["golem.provider.code"] == "CoverUsedUp"
        invoices = [await requestor.invoice(rental.agreement_id) for rental in rentals]
        for invoice in invoices:
            await requestor.accept(invoice)
        await requestor.payment.release_allocation(requestor.allocation)
        total = sum(parse_amount(invoice.amount) for invoice in invoices)
        assert 6 * 10**17 <= total <= 10**18
        await until(lambda: world.paid_to(world.bob.id, format_amount(total)), 30)


@pytest.mark.slow
async def test_without_a_note_in_between_no_more_is_billed_than_was_reserved(tmp_path: Path) -> None:
    """Nothing was accepted when the reserve was used up: a bill above it would not be paid at all."""
    rules = Rules(cover_s=2, least_cover_s=2, cover_spare_s=0)
    async with opened(tmp_path, CHANNEL) as world, world.agent(rules=rules, presets=(TENTH,)):
        requestor = world.requestor
        requestor.budget = "0.3"
        rental = await requestor.rent(world.package, **{INTERVAL: 60})
        await rental.create()
        reason = await requestor.ended(rental.agreement_id, timeout_s=40)
        assert reason["golem.provider.code"] == "CoverUsedUp"
        assert await paid(world, rental) == 3 * 10**17


@pytest.mark.slow
async def test_work_stops_before_the_end_of_the_reserves_time(tmp_path: Path) -> None:
    """The reserve lasts for the agreement's 300 s, 600 for bills, 600 to spare and twice the margin of 120."""
    rules = Rules(cover_after_s=0, cover_s=60, least_cover_s=20, cover_lead_s=300 + 600 + 120 - 3)
    async with opened(tmp_path, CHANNEL) as world, world.agent(rules=rules, presets=(TENTH,)):
        soon = int((datetime.now(UTC) + timedelta(seconds=305)).timestamp() * 1000)
        rental = await world.requestor.rent(world.package, **{"golem.srv.comp.expiration": soon})
        await rental.create()
        reason = await world.requestor.ended(rental.agreement_id, timeout_s=40)
        assert reason["golem.provider.code"] == "CoverEnds"
        await paid(world, rental)


class GreedyAccountant(Accountant):
    """Bills a thousand times the use."""

    async def issue_note(self, bill: Bill, order: SendNote) -> str:
        usage = tuple(1000 * used for used in order.usage)
        return await super().issue_note(
            bill, msgspec.structs.replace(order, amount=bill.terms.pricing.cost(usage), usage=usage)
        )


class GreedyAgent(ProviderAgent):
    """Honest in everything but its bills."""

    def _accountant(self) -> Accountant:
        return GreedyAccountant(self._payment, self._clock)


@BOTH
async def test_who_bills_too_much_is_refused_told_why_and_left(
    tmp_path: Path, platform: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[events.Event] = []
    async with opened(tmp_path, platform) as world:
        golem = Golem(
            budget="50",
            platform=platform,
            api_url=world.alice.url,
            app_key=world.alice.key,
            subnet="test",
            progress=False,
            listener=seen.append,
        )
        async with GreedyAgent(world.config(rules=QUICK, presets=(TENTH,)), world.provider_http), golem:
            async with golem.rent(image=world.root / "image") as machine:
                await machine.shell("true")
            await until(lambda: _said(caplog, "was rejected: it bills"), 30)
            with pytest.raises(NoProviders):
                async with golem.rent(image=world.root / "image", hire_timeout=1):
                    pass
        assert {event.code for event in seen if isinstance(event, events.BillRefused)} == {"bill_too_high"}
        assert [event.code for event in seen if isinstance(event, events.ProviderLeft)] == ["bill_too_high"]
        assert world.tokens(world.bob.id) == 0


async def _said(caplog: pytest.LogCaptureFixture, words: str) -> bool:
    return any(record.name == "shem.provider.agent" and words in record.getMessage() for record in caplog.records)
