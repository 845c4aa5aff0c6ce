"""Our own client layer and SDK against both: they speak the API, so the original daemon is as good as our node, as far as it
goes (it comes without an exe unit)."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from shem import Golem
from shem.client.activity import ActivityApi, ProviderActivityApi
from shem.client.http import ApiClient
from shem.client.market import MarketApi
from shem.client.payment import PaymentApi
from shem.errors import Gone, NotAuthenticated, NotFound, Refused
from shem.wire import market, payment
from tests.api.conversation import TERMS, ZERO_AGREEMENT, ZERO_UUID
from tests.api.networks import PLATFORM, Network, Side

pytestmark = pytest.mark.asyncio(loop_scope="session")


@asynccontextmanager
async def client(side: Side) -> AsyncIterator[ApiClient]:
    async with ApiClient(side.api_url, side.app_key) as http:
        yield http


async def test_a_whole_deal_through_our_clients(network: Network) -> None:
    """From the allocation to the accepted invoice, typed."""
    async with client(network.requestor) as rent, client(network.provider) as serve, asyncio.TaskGroup() as tasks:
        wants, offers, money, bills = MarketApi(rent), MarketApi(serve), PaymentApi(rent), PaymentApi(serve)
        allocation = await money.create_allocation(payment.NewAllocation(total_amount="5", make_deposit=False))
        decorations = await money.demand_decorations([allocation.allocation_id])
        address = f"golem.com.payment.platform.{PLATFORM}.address"
        mark, ends = secrets.token_hex(8), datetime.now(UTC) + timedelta(hours=1)
        offered = {**TERMS, "mark": mark, address: network.provider.node_id, "golem.com.payment.protocol.version": 3}
        wanted = {d.key: d.value for d in decorations.properties}
        wanted |= {
            "golem.srv.comp.expiration": int(ends.timestamp() * 1000),
            "golem.com.payment.chosen-platform": PLATFORM,
        }
        constraints = f"(&(mark={mark}){''.join(decorations.constraints)})"
        offer = await offers.subscribe_offer(offered, "()")
        demand = await wants.subscribe_demand(wanted, constraints)
        scan = await wants.begin_scan(market.NewScan(type="offer", constraints=f"(mark={mark})"))
        assert [found.offer_id for found in await wants.scan_offers(scan, timeout_s=20)] == [offer]
        await wants.end_scan(scan)
        (first,) = await wants.collect_demand_events(demand, timeout_s=20)
        assert isinstance(first, market.ProposalEvent)
        await wants.counter_as_requestor(demand, first.proposal.proposal_id, wanted, constraints)
        (theirs,) = await offers.collect_offer_events(offer, timeout_s=20)
        await offers.counter_as_provider(offer, theirs.proposal.proposal_id, offered, "()")
        (final,) = await wants.collect_demand_events(demand, timeout_s=20)
        agreement = await wants.create_agreement(final.proposal.proposal_id, ends)
        await wants.confirm(agreement, app_session_id="ours")
        (asked,) = await offers.collect_offer_events(offer, timeout_s=20)
        assert isinstance(asked, market.AgreementEvent)
        began = datetime.now(UTC) - timedelta(seconds=1)
        await offers.approve(agreement, app_session_id=mark, timeout_s=20)
        await wants.wait_agreement(agreement, timeout_s=20)
        assert (await wants.agreement(agreement)).state == "Approved"
        (entry,) = [one for one in await wants.list_agreements(state="Approved") if one.id == agreement]
        assert entry.role == "Requestor"

        agent = ProviderActivityApi(serve)
        creating = tasks.create_task(ActivityApi(rent).create(agreement))
        (created,) = await agent.events(after=began, app_session_id=mark, timeout_s=20)
        await agent.set_state(created.activity_id, "Initialized")
        assert await creating == created.activity_id
        assert (await ActivityApi(rent).state(created.activity_id)).state[0] == "Initialized"

        due = datetime.now(UTC) + timedelta(hours=1)
        note = await bills.issue_debit_note(
            payment.NewDebitNote(activity_id=created.activity_id, total_amount_due="0.1", payment_due_date=due)
        )
        await bills.send_debit_note(note.debit_note_id, timeout_s=20)
        (heard,) = await money.debit_note_events(after=began, app_session_id="ours", timeout_s=20)
        accepted = payment.Acceptance(total_amount_accepted="0.1", allocation_id=allocation.allocation_id)
        await money.accept_debit_note(heard.debit_note_id, accepted, timeout_s=20)
        invoice = await bills.issue_invoice(
            payment.NewInvoice(
                agreement_id=agreement, amount="0.1", payment_due_date=due, activity_ids=[created.activity_id]
            )
        )
        await bills.send_invoice(invoice.invoice_id, timeout_s=20)
        (arrived,) = await money.invoice_events(after=began, app_session_id="ours", timeout_s=20)
        await money.accept_invoice(arrived.invoice_id, accepted, timeout_s=20)
        assert (await money.invoice(arrived.invoice_id)).status == "ACCEPTED"
        assert (await money.allocation(allocation.allocation_id)).spent_amount == "0.1"
        await wants.terminate(agreement, {"message": "done"})
        events = await offers.agreement_events(after=began, app_session_id=mark, timeout_s=20)
        assert isinstance(events[0], market.AgreementApprovedEvent)
        await wants.unsubscribe_demand(demand)
        await offers.unsubscribe_offer(offer)
        await money.release_allocation(allocation.allocation_id)


async def test_refusals_become_our_errors(network: Network) -> None:
    async with client(network.requestor) as http:
        deals, money = MarketApi(http), PaymentApi(http)
        with pytest.raises(NotFound):
            await deals.agreement(ZERO_AGREEMENT)
        with pytest.raises(Refused, match="hexadecimal"):
            await deals.agreement("nope")
        with pytest.raises(NotFound):
            await money.invoice(ZERO_UUID)
        made = await money.create_allocation(payment.NewAllocation(total_amount="1", make_deposit=False))
        await money.release_allocation(made.allocation_id)
        with pytest.raises(Gone, match="already released"):
            await money.release_allocation(made.allocation_id)
        with pytest.raises(Refused, match="platform"):
            await money.create_allocation(
                payment.NewAllocation(total_amount="1", make_deposit=False, payment_platform="erc20-holesky-tGLM")
            )
    stranger = Side("nobody", network.requestor.api_url, "wrong-key", "")
    async with client(stranger) as http:
        with pytest.raises(NotAuthenticated, match="Invalid application key"):
            await MarketApi(http).offers()


async def test_our_command_line_looks_at_the_market(network: Network) -> None:
    mark = secrets.token_hex(8)
    async with client(network.provider) as serve, client(network.requestor) as rent:
        offer = await MarketApi(serve).subscribe_offer({**TERMS, "mark": mark}, "()")
        demand = await MarketApi(rent).subscribe_demand({}, f"(mark={mark})")
        assert await MarketApi(rent).collect_demand_events(demand, timeout_s=20)  # the offer has arrived
        words = ["-m", "shem", "market", "scan", f"(mark={mark})", "--json", "--api-url", network.requestor.api_url]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *words,
            env={**os.environ, "YAGNA_APPKEY": network.requestor.app_key},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(60):
                out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0
        (found,) = json.loads(out)
        assert offer in found.values()
        await MarketApi(serve).unsubscribe_offer(offer)
        await MarketApi(rent).unsubscribe_demand(demand)


async def test_the_sdk_sets_money_aside_and_gives_it_back(network: Network) -> None:
    side = network.requestor
    async with client(side) as http:
        async with Golem(api_url=side.api_url, app_key=side.app_key, budget="2", progress=False):
            (held,) = await PaymentApi(http).allocations()
            assert (held.total_amount, held.payment_platform) == ("2", PLATFORM)
        assert await PaymentApi(http).allocations() == []
