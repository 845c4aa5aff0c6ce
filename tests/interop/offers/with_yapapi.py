"""A turn of a negotiation as yapapi takes it: argv[1] is a JSON file with the provider's proposal, the answer is printed."""

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from ya_market import models
from yapapi import props
from yapapi.payload import vm
from yapapi.props import com, inf
from yapapi.props.builder import DemandBuilder
from yapapi.rest.market import OfferProposal
from yapapi.strategy import LeastExpensiveLinearPayuMS


async def build_demand(given, strategy):
    demand = DemandBuilder()
    expiration = datetime.now(UTC) + timedelta(seconds=given["lifetime_s"])
    demand.add(props.Activity(expiration=expiration, multi_activity=True))
    demand.add(props.NodeInfo(subnet_tag="public"))
    demand.ensure(f"({props.NodeInfoKeys.subnet_tag}=public)")
    demand.add_properties(given["decorations"]["properties"])
    for constraint in given["decorations"]["constraints"]:
        demand.ensure(constraint)
    await strategy.decorate_demand(demand)
    package = vm._VmPackage(  # what vm.repo() returns once it has asked the registry
        image_url=given["package"],
        constraints=vm._VmConstraints(min_mem_gib=0.5, min_storage_gib=2.0, min_cpu_threads=given["threads"]),
    )
    await package.decorate_demand(demand)
    return demand


async def main(given):
    strategy = LeastExpensiveLinearPayuMS(
        max_fixed_price=Decimal("1.0"),
        max_price_for={com.Counter.CPU: Decimal("0.2"), com.Counter.TIME: Decimal("0.1")},
    )
    proposal = models.Proposal(
        properties=given["properties"],
        constraints=given["constraints"],
        proposal_id="R-1",
        issuer_id="0x" + "00" * 20,
        state=given["state"],
        timestamp=datetime.now(UTC),
    )
    event = models.ProposalEvent(proposal=proposal)
    offer = OfferProposal(None, event)
    machine, price = inf.InfBase.from_properties(offer.props), com.ComLinear.from_properties(offer.props)
    demand = await build_demand(given, strategy)
    answer = await strategy.respond_to_provider_offer(demand, offer)
    answer.properties["golem.com.payment.chosen-platform"] = given["platform"]
    return {
        "score": await strategy.score_offer(offer),
        "name": props.NodeInfo.from_properties(offer.props).name,
        "runtime": machine.runtime,
        "mem": machine.mem,
        "storage": machine.storage,
        "transfers": machine.transfers,
        "scheme": price.scheme.value,
        "cost_of_a_minute": price.calculate_cost([60.0, 60.0]),
        "demand": {"properties": answer.properties, "constraints": answer.constraints},
    }


print(json.dumps(asyncio.run(main(json.loads(Path(sys.argv[1]).read_text())))))
