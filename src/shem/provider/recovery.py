"""What an earlier run of the agent left behind, put in order before a new one begins.

A crashed agent leaves sandboxes (swept by the driver), offers that nobody serves, agreements that still count as
approved, activities that will never move again, and work that was done and not billed. The work in progress cannot be
resumed, so its activities are ended with a clear word, the agreements terminated, and what the node has on record (the
last counters of every activity) is billed. Everything here may be repeated: it looks before it acts.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from shem.client.activity import ActivityApi
from shem.errors import Refused, ShemError
from shem.provider.accountant import Accountant
from shem.provider.billing import SHUTDOWN, Bill, EndAgreement, read_terms
from shem.provider.config import Rules
from shem.provider.deal import Desk, terminate
from shem.provider.offering import is_ours
from shem.terms.amounts import parse_amount
from shem.wire.market import AgreementEntry

log = logging.getLogger(__name__)

LOOK_BACK = timedelta(days=30)
"""Agreements that ended longer ago are not looked at again."""
WHY = "the provider agent was restarted; work in progress was lost"


async def recover(desk: Desk, rules: Rules) -> int:
    """Close everything that is open from before; how many agreements that were. Raises ``PeerFailed``."""
    await _withdraw_offers(desk)
    since = desk.clock.now() - LOOK_BACK
    invoiced = await desk.accountant.invoiced(since)
    closed = 0
    for entry in await desk.market.list_agreements(state="Approved"):
        closed += await _close(desk, rules, entry)
    for entry in await desk.market.list_agreements(state="Terminated", after=since):
        if entry.id not in invoiced:
            closed += await _close(desk, rules, entry)
    return closed


async def _withdraw_offers(desk: Desk) -> None:
    for offer in await desk.market.offers():
        if is_ours(offer.properties):
            try:
                await desk.market.unsubscribe_offer(offer.offer_id)
            except Refused as error:
                log.info("offer %s of an earlier run: %s", offer.offer_id, error)


async def _close(desk: Desk, rules: Rules, entry: AgreementEntry) -> bool:
    if entry.role != "Provider":
        return False
    agreement_id = entry.id
    agreement = await desk.market.agreement(agreement_id)
    if not is_ours(agreement.offer.properties):
        return False
    began = agreement.approved_date or agreement.timestamp
    log.info("agreement %s is left from an earlier run (%s)", agreement_id, agreement.state)
    try:
        terms = read_terms(agreement.demand.properties, agreement.offer.properties, rules)
    except Refused as error:
        log.error("agreement %s cannot be billed: %s", agreement_id, error)
        return False
    bill = Bill(terms, began)
    await _end_activities(desk, agreement_id, bill, began)
    if agreement.state == "Approved":
        await terminate(desk.market, agreement_id, EndAgreement(code=SHUTDOWN, message=WHY))
    await _send_final_notes(desk, desk.accountant, agreement_id, bill)
    await desk.accountant.invoice_once(agreement_id, bill, began)
    return True


async def _end_activities(desk: Desk, agreement_id: str, bill: Bill, began: datetime) -> None:
    now = desk.clock.now()
    for activity_id in await ActivityApi(desk.http).of_agreement(agreement_id):
        bill.activity_began(activity_id, now)
        try:
            if (await desk.activities.state(activity_id)).state[0] != "Terminated":
                await desk.activities.set_state(
                    activity_id, "Terminated", reason="ProviderRestarted", error_message=f"provider_restarted: {WHY}"
                )
            bill.used(activity_id, (await desk.activities.usage(activity_id)).current_usage or [])
        except ShemError as error:
            log.warning("activity %s: %s", activity_id, error)
        bill.activity_ended(activity_id, now)
    for activity_id, amount in (await desk.accountant.asked_before(agreement_id, began)).items():
        if activity_id in bill.activity_ids:
            bill.note_asked_before(activity_id, parse_amount(amount))


async def _send_final_notes(desk: Desk, accountant: Accountant, agreement_id: str, bill: Bill) -> None:
    for order in bill.final_notes(desk.clock.now()):
        if order.amount > bill.asked(order.activity_id):
            try:
                await accountant.deliver_note(await accountant.issue_note(bill, order))
            except Refused as error:
                log.warning("agreement %s: the node refuses a debit note: %s", agreement_id, error)
