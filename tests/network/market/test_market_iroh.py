"""The same business over real QUIC."""

from __future__ import annotations

from typing import Any

from shem.node.peer.iroh import iroh_transport


async def test_an_agreement_over_iroh(town: Any) -> None:
    def over_iroh(node: Any) -> None:
        node.transport = iroh_transport("127.0.0.1:0")

    middle = await town.node("middle", prepare=over_iroh)
    bob = await town.node("bob", knows=middle, prepare=over_iroh)
    alice = await town.node("alice", knows=middle, prepare=over_iroh)
    agreement_id, demand_id, _ = await town.approved(alice, bob)
    assert alice.market.agreement(agreement_id).state == bob.market.agreement(agreement_id).state == "Approved"
    await bob.api.terminate(agreement_id, {"message": "done"})
    await town.eventually(lambda: alice.market.agreement(agreement_id).state == "Terminated")
    assert (await alice.next_proposal(demand_id)).proposal.state == "Initial"
