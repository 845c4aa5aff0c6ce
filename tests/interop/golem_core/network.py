"""A private network's address book."""

from common import run
from golem.node import GolemNode


async def main():
    async with GolemNode() as golem:
        network = await golem.create_network("192.168.8.0/24", requestor_ip="192.168.8.5")
        first = await network.create_node("0x" + "1" * 40)
        second = await network.create_node("0x" + "2" * 40, "192.168.8.9")
        await network.refresh_nodes()
        async with GolemNode() as other:
            listed = [known.id for known in await other.networks()]
        args = network.deploy_args(second)
        await network.remove()
        async with GolemNode() as other:
            left = [known.id for known in await other.networks()]
    return {
        "address": network.network_address,
        "first": first,
        "listed": network.id in listed,
        "left": network.id in left,
        "args": {**args, "id": args["id"] == network.id},
    }


run(main())
