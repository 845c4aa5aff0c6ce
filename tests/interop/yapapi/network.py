"""A private network's address book: made, given nodes, serialized, taken up again and removed."""

from common import Record, run
from yapapi import Golem


async def main():
    async with Golem(budget=1, event_consumer=Record()) as golem:
        network = await golem.create_network("192.168.7.0/24")
        async with network:
            first = await network.add_node("0x" + "1" * 40)
            second = await network.add_node("0x" + "2" * 40, "192.168.7.77")
            await network.refresh_nodes()
            saved = network.serialize()
            again = await golem.resume_network(saved)
            await network.remove_node("0x" + "1" * 40)
            args, uri = second.get_deploy_args(), second.get_websocket_uri(22)
    return {
        "owner": network.owner_ip,
        "first": first.ip,
        "second": second.ip,
        "same": again.network_id == saved["_network_id"],
        "args": args["net"][0],
        "uri": uri,
    }


run(main())
