"""A turn of a negotiation as golem-core takes it: argv[1] is a JSON file with the provider's proposal, the answer is printed."""

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from golem.managers.proposal.plugins.linear_coeffs import LinearPerCpuCoeffsCost
from golem.managers.proposal.plugins.negotiating import MidAgreementPaymentsNegotiator, PaymentPlatformNegotiator
from golem.payload import Constraints, Payload, PayloadSyntaxParser, Properties, RepositoryVmPayload
from golem.payload.defaults import ActivityInfo, NodeInfo, PaymentInfo
from golem.resources import DebitNote, DemandData, LinearCoeffs, ProposalData
from golem.resources.exceptions import PaymentValidationException
from golem.resources.utils.payment import PaymentProps, validate_payment_calculated_cost


async def build_demand(given):
    package = RepositoryVmPayload(package_url=given["package"], min_cpu_threads=given["threads"])
    payment = PaymentInfo(**given["payment"])
    activity = ActivityInfo(lifetime=timedelta(seconds=given["lifetime_s"]), multi_activity=True)
    parse = PayloadSyntaxParser.get_instance().parse_constraints
    properties, constraints = Properties(given["decorations"]["properties"]), Constraints()
    constraints.items.extend(parse(text) for text in given["decorations"]["constraints"])
    payloads: list[Payload] = [NodeInfo(subnet_tag="public"), payment, activity, package]
    for payload in payloads:
        more, items = await payload.build_properties_and_constraints()
        properties.update(more)
        constraints.items.extend(items.items)
    return properties, constraints


def judge(notes, properties):
    """What golem-core finds wrong with the debit notes of an activity, in order; amounts in tokens, times in seconds."""
    began = datetime.now(UTC)
    coeffs, payment = LinearCoeffs.from_properties(properties), PaymentProps.from_properties(properties)
    wrong, payable = [], 0
    for number, note in enumerate(notes):
        at, due = (None if note[key] is None else began + timedelta(seconds=note[key]) for key in ("at_s", "due_s"))
        try:
            DebitNote.validate_mid_agreement_payment(began, at, payment, due, number, payable)
            validate_payment_calculated_cost(coeffs, Decimal(note["amount"]), note["usage"])
        except PaymentValidationException as error:
            wrong.append(f"{note}: {error}")
        payable += due is not None
    return wrong


async def main(given):
    if "notes" in given:
        return judge(given["notes"], given["properties"])
    now = datetime.now(UTC)
    properties, constraints = await build_demand(given)
    properties.update(given["before"])
    offered = ProposalData(
        properties=Properties(given["properties"]),
        constraints=PayloadSyntaxParser.get_instance().parse_constraints(given["constraints"]),
        proposal_id="R-1",
        issuer_id="0x" + "00" * 20,
        state=given["state"],
        timestamp=now,
        prev_proposal_id=None,
    )
    before = Properties(properties)
    demand = DemandData(properties, constraints, "d", "0x" + "11" * 20, now)
    negotiators = [PaymentPlatformNegotiator()]
    if given["mid_agreement"]:
        negotiators.append(MidAgreementPaymentsNegotiator())
    for negotiator in negotiators:
        await negotiator(demand, offered)
    coeffs = LinearCoeffs.from_properties(offered.properties)
    return {
        "agreed": given["state"] == "Draft" and demand.properties == before,
        "name": NodeInfo.from_properties(offered.properties).name,
        "coeffs": [str(coeffs.price_duration_sec), str(coeffs.price_cpu_sec), str(coeffs.price_initial)],
        "per_cpu": LinearPerCpuCoeffsCost("price_duration_sec")(offered),
        "demand": {"properties": demand.properties.serialize(), "constraints": constraints.serialize()},
    }


print(json.dumps(asyncio.run(main(json.loads(Path(sys.argv[1]).read_text())))))
