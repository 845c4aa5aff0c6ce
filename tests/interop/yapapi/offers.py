"""Offers of the market as they come, with what yapapi's models read out of them."""

import asyncio
from datetime import UTC, datetime, timedelta

from common import run
from yapapi import props
from yapapi.config import ApiConfig
from yapapi.props.builder import DemandBuilder
from yapapi.props.com import ComLinear
from yapapi.props.inf import InfBase
from yapapi.rest import Configuration, Market


async def main():
    found = {}
    async with Configuration(ApiConfig()).market() as client:
        market = Market(client)
        demand = DemandBuilder()
        demand.add(props.NodeInfo(name="lister", subnet_tag="public"))
        demand.add(props.Activity(expiration=datetime.now(UTC) + timedelta(minutes=30)))
        demand.ensure("(golem.runtime.name=vm)")
        async with market.subscribe(demand.properties, demand.constraints) as subscription:
            known = [known.id async for known in market.subscriptions()]
            async with asyncio.timeout(30):
                async for offer in subscription.events():
                    node, price = props.NodeInfo.from_properties(offer.props), ComLinear.from_properties(offer.props)
                    inf = InfBase.from_properties(offer.props)
                    found[offer.issuer] = {
                        "name": node.name,
                        "subnet": node.subnet_tag,
                        "runtime": inf.runtime,
                        "memory": inf.mem,
                        "transfers": inf.transfers,
                        "fixed": str(price.fixed_price),
                        "scheme": price.scheme.value,
                        "counters": sorted(str(getattr(c, "value", c)) for c in price.usage_vector),
                    }
                    if len(found) == 3:
                        break
            ours = subscription.id in known
    return {"offers": found, "ours": ours}


run(main())
